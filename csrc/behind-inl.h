// What a program sums up behind its loop: outer products over the rows of all steps, and products with matrices.
//
// Floor: 2 N Z K flops for each sum and product. Rows come in blocks that fit the caches. Of each block the gradients
// are transposed once, whoever reads them, and the values packed into panels; a result is then a product of the two,
// added to that of the blocks before, so that long sums keep their digits. Every number has one thread that computes
// it, in an order that does not depend on how many there are.
#pragma once

#include "arrays-inl.h"
#include "products-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S>
struct BehindScan {
  static constexpr int64_t kItem = sizeof(S);
  static constexpr int64_t kBlockRows = 512;

  const Run& run;
  const Program& program;
  const Steps steps;
  const int threads;
  const Barriers barriers;
  const int64_t block_rows;
  S** columns;       // of each array, where it is a gradient: a block of its rows as columns, (columns, block_rows)
  S** packed;        // of each sum, its values of a block; several may have the same
  S** matrices;      // of each product, its matrix packed
  const S** before;  // per thread: rows of values, of a neighbour
  S* results;        // per thread

  // Blocks of a gradient cut into pieces that meet values of one head.
  struct Pieces {
    int64_t count, units, heads;
    int64_t head(int64_t i) const { return i % heads; }
    int64_t gate(int64_t i) const { return i / heads; }
  };

  BehindScan(const Run& r, const int64_t* offsets, int t, Barriers b, Scratch& scratch)
      : run(r), program(*r.program), steps{r.steps, r.batch, r.batch_sizes, offsets, r.reverse}, threads(t),
        barriers(b), block_rows(smaller(r.rows, kBlockRows)), columns(take_cleared<S*>(scratch, program.arrays.count)),
        packed(take_cleared<S*>(scratch, program.sums.count)),
        matrices(take_cleared<S*>(scratch, program.products.count)), before(scratch.take<const S*>(t * block_rows)),
        results(scratch.take<S>(t * kProductRows * kPanel<S, kPlain>)) {
    for (int64_t i = 0; i < program.sums.count; ++i) {
      const OuterSum& sum = program.sums[i];
      S*& turned = columns[sum.grad.array];
      if (!turned) turned = scratch.take<S>(width(sum.grad.array) * block_rows);
      const int64_t same = first_of_same_values(i);
      packed[i] = same < i ? packed[same] : scratch.take<S>(sum.heads * values_of(sum).size(block_rows));
    }
    for (int64_t i = 0; i < program.products.count; ++i)
      matrices[i] = scratch.take<S>(pieces(program.products[i]).count * matrix_size(program.products[i]));
  }

  int64_t first_of_same_values(int64_t i) const {
    const auto same = [&](const OuterSum& a, const OuterSum& b) {
      return a.values.array == b.values.array && a.values.block == b.values.block && a.heads == b.heads;
    };
    int64_t first = 0;
    while (!same(program.sums[first], program.sums[i])) ++first;
    return first;
  }

  int64_t size_of(int array) const { return run.sizes[program.arrays[array].size]; }
  int64_t width(int array) const { return program.arrays[array].blocks * size_of(array); }
  S* data(int array) const { return reinterpret_cast<S*>(run.places[array].data); }

  template <class Job>
  Pieces pieces(const Job& job) const {
    const int64_t units = size_of(job.grad.array);
    if (job.heads == 1) return {1, job.grad.blocks * units, 1};
    return {job.grad.blocks * job.heads, units / job.heads, job.heads};
  }

  // The columns that a head's values have, and those of a matrix.
  Panels<S> values_of(const OuterSum& sum) const { return Panels<S>(size_of(sum.values.array) / sum.heads); }
  Panels<S> columns_of(const BackProduct& product) const { return Panels<S>(size_of(product.to) / product.heads); }
  int64_t matrix_size(const BackProduct& product) const {
    return columns_of(product).size(pieces(product).units);  // of a piece
  }

  void execute(int thread) const {
    Seat seat{thread, threads};
    S* own_results = results + thread * kProductRows * kPanel<S, kPlain>;
    const S** source = before + thread * block_rows;
    for (int64_t begin = 0, end; begin < run.rows; begin = end) {
      end = smaller(begin + block_rows, run.rows);
      const auto pack = [&](const Seat& share) {
        for (int64_t i = 0; !begin && i < program.products.count; ++i) pack_matrix(i, share);
        pack_block({begin, end}, share, source);
      };
      if (!barriers.meet_after(seat, pack)) return;
      const auto multiply = [&](const Seat& share) {
        for (int64_t i = 0; i < program.sums.count; ++i) add_outer(i, {begin, end}, share, own_results);
        const Part own = part(end - begin, share);
        for (int64_t i = 0; i < program.products.count; ++i)
          multiply_back(i, {begin + own.begin, begin + own.end}, own_results);
      };
      if (!barriers.meet_after(seat, multiply)) return;
    }
  }

  void pack_matrix(int64_t i, const Seat& seat) const {
    const BackProduct& product = program.products[i];
    const Pieces cut = pieces(product);
    const Panels<S> panels = columns_of(product);
    const S* from = data(product.matrix) + product.row_block * size_of(product.grad.array) * panels.columns;
    const Part own = part(cut.units, seat);
    for (int64_t piece = 0; piece < cut.count; ++piece)
      pack_rows(
          panels, [&](int64_t k) { return from + (piece * cut.units + k) * panels.columns; }, cut.units, own.begin,
          own.end, matrices[i] + piece * matrix_size(product));
  }

  // A share of some rows, as the sums read them.
  void pack_block(Part rows, const Seat& seat, const S** source) const {
    const int64_t count = rows.end - rows.begin;
    const Part own = part(count, seat);
    for (int64_t array = 0; array < program.arrays.count; ++array)
      if (columns[array]) {
        const int64_t ld = run.places[array].stride;
        transpose(data(static_cast<int>(array)) + (rows.begin + own.begin) * ld, ld, own.end - own.begin,
                  width(static_cast<int>(array)), columns[array] + own.begin, block_rows);
      }
    for (int64_t i = 0; i < program.sums.count; ++i) {
      if (first_of_same_values(i) < i) continue;
      const OuterSum& sum = program.sums[i];
      find_values(sum.values, rows.begin, own, source);
      const Panels<S> panels = values_of(sum);
      for (int64_t head = 0; head < sum.heads; ++head)
        pack_rows(
            panels, [&](int64_t k) { return source[k] + head * panels.columns; }, count, own.begin, own.end,
            packed[i] + head * panels.size(block_rows));
    }
  }

  // Where the rows [begin + own.begin, begin + own.end) of a block of values are.
  void find_values(const Blocks& values, int64_t begin, Part own, const S** source) const {
    const Array& array = program.arrays[values.array];
    const ArrayPlace& place = run.places[values.array];
    const int64_t first = values.block * size_of(values.array);
    const S* all = data(values.array) + first;
    if (array.kind != ArrayKind::neighbour) {
      for (int64_t k = own.begin; k < own.end; ++k) source[k] = all + (begin + k) * place.stride;
      return;
    }
    int64_t time = step_of(begin + own.begin);
    for (int64_t k = own.begin; k < own.end; ++k) {
      const int64_t n = begin + k;
      while (n >= steps.offset_at(time + 1)) ++time;
      const int64_t row = n - steps.offset_at(time), other = steps.time(time) + array.offset;  // time(t) is its inverse
      source[k] = row < steps.rows(other)
                      ? all + (steps.offset(other) + row) * place.stride
                      : reinterpret_cast<const S*>(place.initial) + row * place.initial_stride + first;
    }
  }

  // The time of row n of all steps.
  int64_t step_of(int64_t n) const {
    int64_t low = 0, high = steps.count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      steps.offset_at(middle) <= n ? low = middle : high = middle - 1;
    }
    return low;
  }

  // A share of a sum's rows, of a block's rows.
  void add_outer(int64_t i, Part rows, const Seat& seat, S* own_results) const {
    const OuterSum& sum = program.sums[i];
    const Pieces cut = pieces(sum);
    const Panels<S> panels = values_of(sum);
    const int64_t units = size_of(sum.grad.array), count = rows.end - rows.begin;
    const bool add = sum.add || rows.begin;
    const S* grad = columns[sum.grad.array] + sum.grad.block * units * block_rows;
    S* to = data(sum.to) + sum.row_block * units * panels.columns;
    const Part own = part(sum.grad.blocks * units, seat);
    for (int64_t piece = own.begin / cut.units; piece * cut.units < own.end; ++piece) {
      const Part some{larger(own.begin, piece * cut.units), smaller(own.end, (piece + 1) * cut.units)};
      multiply_panels(
          grad, block_rows, some, count, packed[i] + cut.head(piece) * panels.size(block_rows), panels, add,
          [&](int64_t z) { return to + z * panels.columns; }, own_results);
    }
    if (sum.bias < 0) return;
    S* bias = data(sum.bias) + sum.row_block * units;
    for (int64_t z = own.begin; z < own.end; ++z) {
      const S total = sum_of<S>(grad + z * block_rows, count);
      bias[z] = add ? bias[z] + total : total;
    }
  }

  void multiply_back(int64_t i, Part rows, S* own_results) const {
    const BackProduct& product = program.products[i];
    const Pieces cut = pieces(product);
    const Panels<S> panels = columns_of(product);
    const int64_t ld = run.places[product.grad.array].stride, ld_to = run.places[product.to].stride;
    const S* grad = data(product.grad.array) + product.grad.block * size_of(product.grad.array);
    for (int64_t piece = 0; piece < cut.count; ++piece)
      multiply_panels(
          grad + piece * cut.units, ld, rows, cut.units, matrices[i] + piece * matrix_size(product), panels,
          product.add || cut.gate(piece) > 0,
          [&](int64_t n) { return data(product.to) + n * ld_to + cut.head(piece) * panels.columns; }, own_results);
  }
};

// Multiply-adds of a row.
inline double work_behind(const Run& run) {
  const Program& program = *run.program;
  const auto size = [&](int array) { return double(run.sizes[program.arrays[array].size]); };
  double work = 0;
  for (const OuterSum& sum : program.sums)
    work += sum.grad.blocks * size(sum.grad.array) * size(sum.values.array) / sum.heads;
  for (const BackProduct& product : program.products)
    work += product.grad.blocks * size(product.grad.array) * size(product.to) / product.heads;
  return work;
}

template <class S>
TeamPlan plan_team_behind(const Run& run, const Team& team) {
  constexpr int64_t kPieces = 64;  // that anything of this size can be shared in
  TeamWork work{};
  work.ahead = work_behind(run) * kWorth<S>;
  work.steps = 1, work.rows = run.rows;
  work.panels = kPieces;
  work.directions = 1;
  work.meet_by_units = true;
  return plan_team(work, team);
}

// False where fewer threads came than were asked for, and nothing was done.
template <class S>
bool run_behind(const Run& run, Team& team) {
  if (!run.program->sums.count && !run.program->products.count) return true;
  Scratch scratch;
  const int64_t* offsets = make_offsets(run, scratch);
  const TeamPlan plan = plan_team_behind<S>(run, team);
  BehindScan<S> scan(run, offsets, plan.threads, make_barriers(plan, scratch), scratch);
  return team.run(
      plan.threads, [](void* context, int thread) { static_cast<BehindScan<S>*>(context)->execute(thread); }, &scan);
}

}  // namespace fastrnn::FASTRNN_NAMESPACE

// The arrays of a run, step by step: where their rows are, the states and rows that the engine keeps itself, and
// totals.
#pragma once

#include "phases.h"
#include "plan-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

inline const int64_t* make_offsets(const Run& run, Scratch& scratch) {
  Sizes sizes{};
  sizes.steps = run.steps;
  sizes.batch_sizes = run.batch_sizes;
  return make_offsets(sizes, scratch);
}

// Where the rows of an array are at a step.
struct View {
  char* place;
  int64_t stride;  // bytes from row to row
};

// Views of an array come in pairs: as it is read, and as it is written.
FASTRNN_INLINE int64_t view_of(int64_t array, bool write) { return 2 * array + write; }

template <class T>
FASTRNN_INLINE T* take_cleared(Scratch& scratch, int64_t count) {
  T* all = scratch.take<T>(count);
  for (int64_t i = 0; i < count; ++i) all[i] = T{};
  return all;
}

template <class S>
struct RunArrays {
  static constexpr int64_t kItem = sizeof(S);

  // An array whose views change from step to step. Of a state or a row `data` has two buffers, which take turns.
  struct Moving {
    ArrayKind kind;
    int64_t array;
    char* data;
    int64_t stride, buffer;  // bytes
  };

  struct Neighbour {
    int64_t array, offset;
    View history, initial;  // from the first row on
  };

  // What functions add to a total goes through three floors, so that long sums keep their digits: they add to a partial
  // sum, which after some steps goes to the sum of a thread, and those at last to the caller.
  struct Total {
    int64_t array, columns, ld;
    S *partial, *sum;  // (threads, ld)
  };

  const Run& run;
  const Steps& steps;
  const int threads;
  Moving* moving;
  Neighbour* neighbours;
  Total* totals;
  int64_t moving_count = 0, neighbour_count = 0, total_count = 0;
  View* all_views;  // per thread

  RunArrays(const Run& r, const Steps& s, int t, Scratch& scratch) : run(r), steps(s), threads(t) {
    const Span<Array>& arrays = run.program->arrays;
    moving = scratch.take<Moving>(arrays.count);
    neighbours = scratch.take<Neighbour>(arrays.count);
    totals = scratch.take<Total>(arrays.count);
    all_views = take_cleared<View>(scratch, threads * view_count());
    for (int64_t i = 0; i < arrays.count; ++i) {
      const ArrayPlace& place = run.places[i];
      const int64_t width = columns(i), stride = place.stride * kItem;
      switch (arrays[i].kind) {
        case ArrayKind::step: moving[moving_count++] = {arrays[i].kind, i, place.data, stride, 0}; break;
        case ArrayKind::state:
        case ArrayKind::row:
          moving[moving_count++] = {arrays[i].kind, i, reinterpret_cast<char*>(scratch.take<S>(2 * run.batch * width)),
                                    width * kItem, run.batch * width * kItem};
          break;
        case ArrayKind::neighbour:
          neighbours[neighbour_count++] = {
              i, arrays[i].offset, {place.data, stride}, {place.initial, place.initial_stride * kItem}};
          break;
        case ArrayKind::total: {
          const int64_t ld = ceil_div(width, 64) * 64;  // no two threads in a cache line
          totals[total_count++] = {i, width, ld, scratch.take<S>(threads * ld), scratch.take<S>(threads * ld)};
          break;
        }
        default: break;
      }
    }
  }

  int64_t view_count() const { return 2 * run.program->arrays.count; }
  View* views(int thread) const { return all_views + thread * view_count(); }

  // Numbers in a row of an array.
  int64_t columns(int64_t i) const {
    const Array& array = run.program->arrays[i];
    if (array.single || array.kind == ArrayKind::number) return 1;
    return array.blocks * run.sizes[array.size];
  }

  // A share of the states' first rows.
  void begin_states(const Seat& share) const {
    for (int64_t i = 0; i < moving_count; ++i)
      if (moving[i].kind == ArrayKind::state) begin_state(moving[i], part(run.batch, share));
  }

  // What of a thread's views does not change, and its sums.
  void prepare(int thread) const {
    View* own = views(thread);
    for (int64_t i = 0; i < run.program->arrays.count; ++i) {
      const bool has_rows = run.program->arrays[i].kind == ArrayKind::sequence;
      own[view_of(i, false)] =
          own[view_of(i, true)] = {run.places[i].data, has_rows ? run.places[i].stride * kItem : 0};
    }
    for (int64_t i = 0; i < total_count; ++i) {
      const Total& total = totals[i];
      clear(total.partial + thread * total.ld, total.columns);
      clear(total.sum + thread * total.ld, total.columns);
      own[view_of(total.array, true)] = {reinterpret_cast<char*>(total.partial + thread * total.ld), 0};
    }
  }

  // In both buffers: a row that begins at a later step is then in whichever is read, since no step before writes it.
  void begin_state(const Moving& state, Part rows) const {
    const ArrayPlace& place = run.places[state.array];
    const int64_t width = state.stride / kItem;
    for (int64_t buffer = 0; buffer < 2; ++buffer)
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        S* to = reinterpret_cast<S*>(state.data + buffer * state.buffer + r * state.stride);
        if (place.initial)
          copy(to, reinterpret_cast<const S*>(place.initial) + r * place.initial_stride, width);
        else
          clear(to, width);
      }
  }

  void set_views(int64_t s, View* own) const {
    const int64_t offset = steps.offset(s), turn = s & 1;
    for (int64_t i = 0; i < moving_count; ++i) {
      const Moving& array = moving[i];
      const bool is_step = array.kind == ArrayKind::step, is_state = array.kind == ArrayKind::state;
      char* read = array.data + (is_step ? offset * array.stride : turn * array.buffer);
      own[view_of(array.array, false)] = {read, array.stride};
      own[view_of(array.array, true)] = {is_state ? array.data + (turn ^ 1) * array.buffer : read, array.stride};
    }
  }

  // Views of neighbours for the rows from r on, up to same_neighbours(s, r, ..).
  void set_neighbours(int64_t s, int64_t r, View* own) const {
    for (int64_t i = 0; i < neighbour_count; ++i) {
      const Neighbour& array = neighbours[i];
      const int64_t other = s + array.offset;
      View view = array.initial;
      if (r < steps.rows(other))
        view = {array.history.place + steps.offset(other) * array.history.stride, array.history.stride};
      own[view_of(array.array, false)] = view;
    }
  }

  // The end of the rows from r on that all have, or all lack, a row in each neighbouring step.
  int64_t same_neighbours(int64_t s, int64_t r, int64_t end) const {
    const int64_t before = steps.rows(s - 1), after = steps.rows(s + 1);
    if (r < before) end = smaller(end, before);
    if (r < after) end = smaller(end, after);
    return end;
  }

  // Hands out units [begin, end) of the states that a part wrote, of those rows that end with step s.
  void finish_states(const PhasePart& part, int64_t s, Part rows, int64_t begin, int64_t end, const View* own) const {
    const int64_t ending = larger(rows.begin, steps.rows(s + 1));
    if (ending >= rows.end) return;
    for (const Operand& operand : part.operands) {
      if (operand.array < 0 || !operand.write || run.program->arrays[operand.array].kind != ArrayKind::state) continue;
      S* to = reinterpret_cast<S*>(run.places[operand.array].final);
      if (!to) continue;
      const View& view = own[view_of(operand.array, true)];
      const int64_t first = operand.block * run.sizes[part.size] + begin, ld = columns(operand.array);
      for (int64_t r = ending; r < rows.end; ++r)
        copy(to + r * ld + first, reinterpret_cast<const S*>(view.place + r * view.stride) + first, end - begin);
    }
  }

  // A thread's partial sums, into its sums.
  void fold(int thread) const {
    for (int64_t i = 0; i < total_count; ++i) {
      const Total& total = totals[i];
      S *partial = total.partial + thread * total.ld, *sum = total.sum + thread * total.ld;
      for (int64_t column = 0; column < total.columns; ++column) sum[column] += partial[column];
      clear(partial, total.columns);
    }
  }

  // The sums of all threads, one after the other, for a share of the columns.
  void sum_up(int thread) const {
    for (int64_t i = 0; i < total_count; ++i) {
      const Total& total = totals[i];
      S* to = reinterpret_cast<S*>(run.places[total.array].data);
      const Part own = part(total.columns, thread, threads);
      for (int64_t column = own.begin; column < own.end; ++column) {
        S sum = total.sum[column];
        for (int t = 1; t < threads; ++t) sum += total.sum[t * total.ld + column];
        to[column] = sum;
      }
    }
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE

// One part of a phase in a run: its panels of units, its packed weights, and its results for some rows.
//
// Floor: 2 K Z flops a row and term. Packed weights are read once for every tile of rows, so with one row a product
// goes as fast as weights come out of cache: all results of all panels then come one behind the other, two streams at
// a time.
// Units [begin, end) of a part, all of one head; `width` is their number in whole vectors, `offset` the widths before.
#pragma once

#include "arrays-inl.h"
#include "int8_product-inl.h"
#include "products-inl.h"
#include "weight_cache-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

struct UnitPanel {
  int64_t begin, end, width, offset;
};

// A term in a run. Its packed panels stand between those of other terms: panel by panel, in each result by result, the
// terms of the same place in their results.
template <class S>
struct Factor {
  const Term* term;
  const S* matrix;         // its first row and column
  int64_t ld, depth;       // of the matrix; numbers of the operand that reach a unit
  bool as_it_lies;         // not packed, for so few rows that it would not pay
  int64_t all, before;     // depths of the terms beside it, and of those in results before
  int64_t offset;          // of its terms' panels in the packed weights
  S* packed;               // all of those
  PanelTag* tags;          // of its panels, if packed weights are kept
  const Int8Matrix* int8;  // the whole matrix, read as it lies, or null; and
  int64_t rounded;         // which of the part's rounded operands it multiplies

  S* panel(const UnitPanel& p) const { return packed + offset + p.offset * all + p.width * before; }
};

// An operand of matrices of int8, as every thread rounds it before it multiplies: its rows of a step, or those of a
// chunk of steps.
struct RoundedOperand {
  int64_t array, column;  // its first number
  bool ahead;
  Int8Rows rows;
};

// Which factors a result sums up: [first, own) for many steps at once, since no step writes what they read; [own, end)
// step by step, on top of the others. `ahead`: its place among the results that have the former, or -1.
struct ResultPlan {
  int64_t first, own, end, ahead;
};

// A product of one row with packed panels of equal width that lie one behind the other.
template <class S>
struct RowProduct {
  const Factor<S>* factor;
  int64_t column;  // of the operand
  int64_t width, count;
  const UnitPanel* panel;  // the first
  const S* bias;           // null: adds to what is there
  int64_t to;              // in the results of one row
};

struct OperandPlan {
  int64_t view;                // < 0: of result -1 - view
  int64_t column, unit_bytes;  // bytes before its block, and between its units
};

template <class S>
struct PartPlan {
  static constexpr int64_t kItem = sizeof(S);
  static constexpr int64_t kResultBytes = 32 * 1024;  // of results that are still in L1 when the function reads them

  const PhasePart* part;
  const int64_t* sizes;
  const Array* arrays;
  bool has_means;
  int64_t units, count, heads;  // count: of results; heads: no panel crosses the bound of one of so many
  const int64_t* bounds;        // (threads + 1) units: what each thread computes
  const UnitPanel* panels;
  const int64_t* first_panel;  // (threads + 1)
  const ResultPlan* results;
  Factor<S>* factors;
  int64_t first_tag;  // of its factors, each with one for each panel
  S* bias;            // a row of every result, panel by panel
  int64_t ahead_count, ahead_rows;
  S* ahead;  // sums for a chunk of steps, (panel, result, ahead_rows, width)
  const OperandPlan* operands;
  RoundedOperand* rounded;
  int64_t rounded_count;
  RowProduct<S>* row_products;
  const int64_t* first_row_product;  // (threads + 1)

  int64_t head(const UnitPanel& p, int64_t of_heads) const { return p.begin / (units / of_heads); }
  Part panels_of(int64_t share) const { return {first_panel[share], first_panel[share + 1]}; }
  const S* bias_of(const UnitPanel& p, int64_t j) const { return bias + p.offset * count + p.width * j; }

  // Row `row` of the chunk.
  S* ahead_of(const UnitPanel& p, int64_t j, int64_t row) const {
    return ahead + (p.offset * ahead_count + p.width * results[j].ahead) * ahead_rows + row * p.width;
  }

  // The first number of a factor's operand that reaches panel p.
  int64_t column(const Factor<S>& f, const UnitPanel& p) const {
    const Blocks& v = f.term->operand;
    return v.block * sizes[arrays[v.array].size] + (f.term->heads > 1 ? head(p, f.term->heads) * f.depth : 0);
  }

  // Rows that are computed at once.
  int64_t block_rows() const { return larger<int64_t>(12, kResultBytes / (count * kPanel<S, kPlain> * kItem)); }

  // Numbers of a thread's results.
  int64_t workspace(int threads) const {
    int64_t row = 0;  // of one thread
    for (int t = 0; t < threads; ++t) {
      int64_t own = 0;
      for (int64_t p = first_panel[t]; p < first_panel[t + 1]; ++p) own += panels[p].width;
      row = larger(row, own * count);
    }
    return larger(row, block_rows() * count * kPanel<S, kPlain>);
  }

  // Packs panel i.
  void pack(int64_t i, const ArrayPlace* places) const {
    const UnitPanel& p = panels[i];
    for (int64_t j = 0; j < count; ++j) {
      const Blocks& from = part->results[j].bias;
      S* to = bias + p.offset * count + p.width * j;
      clear(to, p.width);
      if (from.array >= 0)
        copy(to, reinterpret_cast<const S*>(places[from.array].data) + from.block * units + p.begin, p.end - p.begin);
      for (int64_t f = results[j].first; f < results[j].end; ++f)
        if (!factors[f].as_it_lies) pack_factor(factors[f], p, factors[f].tags ? factors[f].tags + i : nullptr);
    }
  }

  // The first weight of a factor's units of panel p; transposed they are columns.
  const S* weights_of(const Factor<S>& f, const UnitPanel& p) const {
    if (!f.term->transposed) return f.matrix + p.begin * f.ld;
    const int64_t of_head = head(p, f.term->heads);
    return f.matrix + of_head * f.depth * f.ld + p.begin - of_head * (units / f.term->heads);
  }

  void pack_factor(const Factor<S>& f, const UnitPanel& p, PanelTag* tag) const {
    const int64_t own = p.end - p.begin;
    const S* from = weights_of(f, p);
    S* to = f.panel(p);
    if (!f.term->transposed) {
      const auto take = [&](Fingerprint& print) { print.add(from, own * f.depth * kItem); };
      return pack_if_changed(tag, take, [&] {
        if (own < p.width) clear(to, p.width * f.depth);
        transpose(from, f.ld, own, f.depth, to, p.width);
      });
    }
    for (int64_t k = 0; k < f.depth; ++k, from += f.ld, to += p.width)
      for (int64_t i = 0; i < p.width; i += kLanes<S>)
        store(to + i, load_part(from + i, static_cast<int>(smaller<int64_t>(kLanes<S>, own - i))));
  }

  // Rounds rows of what a thread multiplies with matrices of int8: from row `row` of a step on.
  void round(int thread, const View* views, int64_t row, int64_t rows) const {
    for (int64_t k = 0; k < rounded_count; ++k) {
      const View& view = views[view_of(rounded[k].array, false)];
      if (!rounded[k].ahead) round(thread, rounded[k], view.place + row * view.stride, view.stride, rows, row);
    }
  }

  // Of what is computed ahead: from row `row` of all steps on, which is row `to` of the chunk.
  void round_ahead(int thread, const ArrayPlace* places, int64_t row, int64_t rows, int64_t to) const {
    for (int64_t k = 0; k < rounded_count; ++k) {
      const ArrayPlace& place = places[rounded[k].array];
      const int64_t stride = place.stride * kItem;
      if (rounded[k].ahead) round(thread, rounded[k], place.data + row * stride, stride, rows, to);
    }
  }

  void round(int thread, const RoundedOperand& operand, const char* from, int64_t stride, int64_t rows,
             int64_t to) const {
    if constexpr (sizeof(S) == sizeof(float))
      operand.rows.of(thread).fill(reinterpret_cast<const float*>(from) + operand.column, stride / kItem, rows, to);
  }

  // The same product as below with a matrix of int8, of rounded rows from row `at` on.
  void product_int8(const UnitPanel& p, const Factor<S>& f, int thread, int64_t at, int64_t rows, const S* init,
                    int64_t ld_init, S* c) const {
    if constexpr (sizeof(S) == sizeof(float)) {
      const Int8Rows own = rounded[f.rounded].rows.of(thread);
      const int64_t of_head = f.term->heads > 1 ? head(p, f.term->heads) : 0;
      for (int64_t i = 0; i < p.width; i += kLanes<S>) {
        const int lanes = static_cast<int>(smaller<int64_t>(kLanes<S>, p.end - p.begin - i));
        const int64_t first = f.term->row_block * units + p.begin + i;
        in_int8_tiles(rows, [&](int64_t top, int64_t count) {
          Vec<float> products[kInt8Rows];
          own.times(*f.int8, first, lanes, at + top, count, products, of_head);
          for (int64_t r = top; r < top + count; ++r)
            store(c + r * p.width + i, load(init + r * ld_init + i) + products[r - top]);
        });
      }
    }
  }

  // c (rows, width) = rows of a, `stride` bytes apart, times the weights of a panel + init, whose rows are ld_init
  // apart. `at`: the first of these rows among the rounded ones of the thread.
  void product(const UnitPanel& p, const Factor<S>& f, const char* a, int64_t stride, int64_t rows, const S* init,
               int64_t ld_init, S* c, int thread, int64_t at) const {
    if (f.int8) return product_int8(p, f, thread, at, rows, init, ld_init, c);
    const S* from = reinterpret_cast<const S*>(a);
    const int64_t ld = stride / kItem;
    if (f.as_it_lies) {
      const int64_t together = ld_init ? 1 : rows;
      for (int64_t r = 0; r < rows; r += together)
        multiply_raw(from + r * ld, ld, together, f.depth, weights_of(f, p), p.end - p.begin, init + r * ld_init,
                     c + r * p.width, p.width);
      return;
    }
    switch (p.width / kLanes<S>) {
      case 1: return multiply<S, 1>(from, ld, rows, f.depth, f.panel(p), init, ld_init, c);
      case 2: return multiply<S, 2>(from, ld, rows, f.depth, f.panel(p), init, ld_init, c);
      case 3: return multiply<S, 3>(from, ld, rows, f.depth, f.panel(p), init, ld_init, c);
      default: return multiply<S, kPlain>(from, ld, rows, f.depth, f.panel(p), init, ld_init, c);
    }
  }

  // The part of the results of panel p that is computed ahead, for `rows` rows from row `row` of all steps on, which
  // is row `to` of the chunk.
  void multiply_ahead(int thread, const UnitPanel& p, const ArrayPlace* places, int64_t row, int64_t rows,
                      int64_t to) const {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = results[j].first; i < results[j].own; ++i) {
        const ArrayPlace& place = places[factors[i].term->operand.array];
        const int64_t stride = place.stride * kItem;
        const bool first = i == results[j].first;
        S* c = ahead_of(p, j, to);
        product(p, factors[i], place.data + row * stride + column(factors[i], p) * kItem, stride, rows,
                first ? bias_of(p, j) : c, first ? 0 : p.width, c, thread, to);
      }
  }

  // Products of one row for all panels of a share; results lie panel by panel. `in_chunk` is its row of the chunk.
  void multiply_one_row(int thread, int64_t share, const View* views, int64_t row, int64_t in_chunk, S* c) const {
    if (ahead_count) {
      S* to = c;
      for (int64_t p = first_panel[share]; p < first_panel[share + 1]; ++p)
        for (int64_t j = 0; j < count; ++j, to += panels[p].width)
          if (results[j].ahead >= 0)
            for (int64_t i = 0; i < panels[p].width; i += kLanes<S>)
              store(to + i, load(ahead_of(panels[p], j, in_chunk) + i));
    }
    for (int64_t i = first_row_product[share]; i < first_row_product[share + 1]; ++i) {
      const RowProduct<S>& one = row_products[i];
      const Factor<S>& f = *one.factor;
      const View& view = views[view_of(f.term->operand.array, false)];
      const char* row_at = view.place + row * view.stride + one.column * kItem;
      S* to = c + one.to;
      const S* init = one.bias ? one.bias : to;
      if (f.as_it_lies) {
        product(*one.panel, f, row_at, view.stride, 1, init, 0, to, thread, row);
        continue;
      }
      const S *a = reinterpret_cast<const S*>(row_at), *packed = f.panel(*one.panel);
      switch (one.width / kLanes<S>) {
        case 1: multiply_row<S, 1>(a, f.depth, packed, one.count, init, to); break;
        case 2: multiply_row<S, 2>(a, f.depth, packed, one.count, init, to); break;
        case 3: multiply_row<S, 3>(a, f.depth, packed, one.count, init, to); break;
        default: multiply_row<S, kPlain>(a, f.depth, packed, one.count, init, to);
      }
    }
  }

  // Products of some rows for one panel; results lie one behind the other, (rows, width) each.
  void multiply_rows(int thread, const UnitPanel& p, const View* views, int64_t row, int64_t rows, int64_t in_chunk,
                     S* c) const {
    for (int64_t j = 0; j < count; ++j, c += rows * p.width)
      for (int64_t i = results[j].own; i < results[j].end; ++i) {
        const View& view = views[view_of(factors[i].term->operand.array, false)];
        const bool first = i == results[j].own, on_ahead = results[j].ahead >= 0;
        product(p, factors[i], view.place + row * view.stride + column(factors[i], p) * kItem, view.stride, rows,
                !first     ? c
                : on_ahead ? ahead_of(p, j, in_chunk)
                           : bias_of(p, j),
                first && !on_ahead ? 0 : p.width, c, thread, row);
      }
  }

  // The means among the results of some rows, at all units of a panel.
  void take_means(const UnitPanel& p, const View* views, int64_t row, int64_t rows, S* c) const {
    if (!has_means) return;
    for (int64_t j = 0; j < count; ++j, c += rows * p.width) {
      const Result& r = part->results[j];
      if (r.terms.count) continue;
      const View& view = views[view_of(r.mean.array, false)];
      const int64_t of_head = units / r.mean_heads, first = r.mean.block * units + head(p, r.mean_heads) * of_head;
      const char* from = view.place + row * view.stride + first * kItem;
      for (int64_t i = 0; i < rows; ++i, from += view.stride) {
        const Vec<S> mean = broadcast(sum_of<S>(reinterpret_cast<const S*>(from), of_head) / static_cast<S>(of_head));
        for (int64_t u = 0; u < p.width; u += kLanes<S>) store(c + i * p.width + u, mean);
      }
    }
  }

  // The part's function on some rows of arrays alone.
  void call_on_arrays(const View* views, int64_t row, int64_t rows, int64_t begin, int64_t end, char** pointers,
                      int64_t* strides) const {
    for (int64_t k = 0; k < part->operands.count; ++k) {
      const View& view = views[operands[k].view];
      pointers[k] = view.place + row * view.stride + operands[k].column + begin * operands[k].unit_bytes;
      strides[k] = view.stride;
    }
    part->function(rows, end - begin, pointers, strides);
  }

  // The same on a panel, with results that begin at `c`, and from row `in_chunk` on where they were computed ahead; or
  // all at `c` where that is < 0.
  void call(const UnitPanel& p, const View* views, int64_t row, int64_t rows, int64_t in_chunk, S* c, char** pointers,
            int64_t* strides) const {
    for (int64_t k = 0; k < part->operands.count; ++k) {
      const OperandPlan& operand = operands[k];
      if (operand.view < 0) {
        const int64_t j = -1 - operand.view;
        const bool is_ahead = in_chunk >= 0 && results[j].ahead >= 0 && results[j].own == results[j].end;
        pointers[k] = reinterpret_cast<char*>(is_ahead ? ahead_of(p, j, in_chunk) : c + j * rows * p.width);
        strides[k] = p.width * kItem;
      } else {
        const View& view = views[operand.view];
        pointers[k] = view.place + row * view.stride + operand.column + p.begin * operand.unit_bytes;
        strides[k] = view.stride;
      }
    }
    part->function(rows, p.end - p.begin, pointers, strides);
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE

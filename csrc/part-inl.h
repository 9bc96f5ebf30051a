// One part of a phase in a run: its panels of units, its packed weights, and its results for some rows.
//
// Floor: 2 K Z flops a row and term. Packed weights are read once for every tile of rows, so with one row a product
// goes as fast as weights come out of cache: all results of all panels then come one behind the other, two streams at
// a time.
// Where the rows of an array are at a step.
struct View {
  char* place;
  int64_t stride;  // bytes from row to row
};

// Views of an array come in pairs: as it is read, and as it is written.
FASTRNN_INLINE int64_t view_of(int64_t array, bool write) { return 2 * array + write; }

// Units [begin, end) of a part, all of one head; `width` is their number in whole vectors, `offset` the widths before.
struct UnitPanel {
  int64_t begin, end, width, offset;
};

// A term in a run. Its packed panels stand between those of other terms: panel by panel, in each result by result, the
// terms of the same place in their results.
template <class S>
struct Factor {
  const Term* term;
  int64_t depth;       // numbers of the operand that reach a unit
  int64_t all, before;  // depths of the terms beside it, and of those in results before
  S* packed;

  S* panel(const UnitPanel& p) const { return packed + p.offset * all + p.width * before; }
};

// A product of one row with packed panels of equal width that lie one behind the other.
template <class S>
struct RowProduct {
  const Factor<S>* factor;
  int64_t column;  // of the operand
  int64_t width, count;
  const S* panels;
  const S* bias;  // null: adds to what is there
  int64_t to;     // in the results of one row
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
  int64_t units, results, heads;  // results: how many; heads: no panel crosses the bound of one of so many
  const int64_t* bounds;          // (threads + 1) units: what each thread computes
  const UnitPanel* panels;
  const int64_t* first_panel;  // (threads + 1)
  Factor<S>* factors;          // of all results, one behind the other
  const int64_t* first_factor;  // (results + 1)
  S* bias;                     // a row of every result, panel by panel
  const OperandPlan* operands;
  RowProduct<S>* row_products;
  const int64_t* first_row_product;  // (threads + 1)

  int64_t panel_count(int threads) const { return first_panel[threads]; }
  const Result& result(int64_t j) const { return part->results[j]; }
  int64_t head(const UnitPanel& p, int64_t of_heads) const { return p.begin / (units / of_heads); }
  const S* bias_of(const UnitPanel& p, int64_t j) const { return bias + p.offset * results + p.width * j; }

  // The first number of a term's operand that reaches panel p.
  int64_t column(const Factor<S>& f, const UnitPanel& p, const Span<Array>& arrays) const {
    const Blocks& v = f.term->operand;
    return v.block * sizes[arrays[v.array].size] + (f.term->heads > 1 ? head(p, f.term->heads) * f.depth : 0);
  }

  // Rows that are computed at once.
  int64_t block_rows() const { return larger<int64_t>(12, kResultBytes / (results * kPanel<S, kPlain> * kItem)); }

  // Numbers of a thread's results.
  int64_t workspace(int threads) const {
    int64_t row = 0;  // of one thread
    for (int t = 0; t < threads; ++t) {
      int64_t own = 0;
      for (int64_t p = first_panel[t]; p < first_panel[t + 1]; ++p) own += panels[p].width;
      row = larger(row, own * results);
    }
    return larger(row, block_rows() * results * kPanel<S, kPlain>);
  }

  void pack(const UnitPanel& p, const Run& run) const {
    const Span<Array>& arrays = run.program->arrays;
    for (int64_t j = 0; j < results; ++j) {
      const Blocks& from = result(j).bias;
      S* to = bias + p.offset * results + p.width * j;
      clear(to, p.width);
      if (from.array >= 0)
        copy(to, reinterpret_cast<const S*>(run.places[from.array].data) + from.block * units + p.begin,
             p.end - p.begin);
      for (int64_t i = first_factor[j]; i < first_factor[j + 1]; ++i)
        pack_term(factors[i], p, reinterpret_cast<const S*>(run.places[factors[i].term->matrix].data),
                  arrays[factors[i].term->matrix]);
    }
  }

  void pack_term(const Factor<S>& f, const UnitPanel& p, const S* matrix, const Array& form) const {
    const Term& term = *f.term;
    const int64_t columns = sizes[form.columns_size] / form.columns_parts, count = p.end - p.begin;
    S* to = f.panel(p);
    if (!term.transposed) {
      if (count < p.width) clear(to, p.width * f.depth);
      return transpose(matrix + (term.row_block * units + p.begin) * columns, columns, count, f.depth, to, p.width);
    }
    const int64_t of_head = term.heads > 1 ? head(p, term.heads) : 0;
    const S* from = matrix + (term.row_block * sizes[form.size] + of_head * f.depth) * columns + p.begin -
                    of_head * (units / term.heads);
    for (int64_t k = 0; k < f.depth; ++k, from += columns, to += p.width)
      for (int64_t i = 0; i < p.width; i += kLanes<S>)
        store(to + i, load_part(from + i, static_cast<int>(smaller<int64_t>(kLanes<S>, count - i))));
  }

  // Products of one row for all panels of a thread; results lie panel by panel.
  void multiply_one_row(int thread, const View* views, int64_t row, S* c) const {
    for (int64_t i = first_row_product[thread]; i < first_row_product[thread + 1]; ++i) {
      const RowProduct<S>& product = row_products[i];
      const View& view = views[view_of(product.factor->term->operand.array, false)];
      const S* a = reinterpret_cast<const S*>(view.place + row * view.stride) + product.column;
      const auto go = [&](auto vectors) {
        multiply_row<S, decltype(vectors)::value>(a, product.factor->depth, product.panels, product.count,
                                                  product.bias ? product.bias : c + product.to, c + product.to);
      };
      switch (product.width / kLanes<S>) {
        case 1: go(std::integral_constant<int, 1>()); break;
        case 2: go(std::integral_constant<int, 2>()); break;
        case 3: go(std::integral_constant<int, 3>()); break;
        default: go(std::integral_constant<int, kPlain>());
      }
    }
  }

  // Products of some rows for one panel; results lie one behind the other, (rows, width) each.
  void multiply_rows(const UnitPanel& p, const View* views, const Span<Array>& arrays, int64_t row, int64_t rows,
                     S* c) const {
    for (int64_t j = 0; j < results; ++j, c += rows * p.width)
      for (int64_t i = first_factor[j]; i < first_factor[j + 1]; ++i) {
        const Factor<S>& f = factors[i];
        const View& view = views[view_of(f.term->operand.array, false)];
        const S* a = reinterpret_cast<const S*>(view.place + row * view.stride) + column(f, p, arrays);
        const bool first = i == first_factor[j];
        const S* init = first ? bias_of(p, j) : c;
        const int64_t ld_init = first ? 0 : p.width, lda = view.stride / kItem;
        switch (p.width / kLanes<S>) {
          case 1: multiply<S, 1>(a, lda, rows, f.depth, f.panel(p), init, ld_init, c); break;
          case 2: multiply<S, 2>(a, lda, rows, f.depth, f.panel(p), init, ld_init, c); break;
          case 3: multiply<S, 3>(a, lda, rows, f.depth, f.panel(p), init, ld_init, c); break;
          default: multiply<S, kPlain>(a, lda, rows, f.depth, f.panel(p), init, ld_init, c);
        }
      }
  }

  // The means among the results of some rows, at all units of a panel.
  void take_means(const UnitPanel& p, const View* views, int64_t row, int64_t rows, S* c) const {
    for (int64_t j = 0; j < results; ++j, c += rows * p.width) {
      const Result& r = result(j);
      if (r.terms.count) continue;
      const View& view = views[view_of(r.mean.array, false)];
      const int64_t count = units / r.mean_heads, column = r.mean.block * units + head(p, r.mean_heads) * count;
      const char* from = view.place + row * view.stride + column * kItem;
      for (int64_t i = 0; i < rows; ++i, from += view.stride) {
        const Vec<S> mean = broadcast(sum_of(reinterpret_cast<const S*>(from), count) / static_cast<S>(count));
        for (int64_t u = 0; u < p.width; u += kLanes<S>) store(c + i * p.width + u, mean);
      }
    }
  }

  static S sum_of(const S* from, int64_t count) {
    constexpr int L = kLanes<S>;
    Vec<S> sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L)
      for (int v = 0; v < 4; ++v) sum[v] += load(from + i + v * L);
    for (; i < count; i += L) sum[0] += load_part(from + i, static_cast<int>(smaller<int64_t>(L, count - i)));
    const Vec<S> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    Vec<S> lanes[1] = {all};
    return sums_of_lanes<1>(lanes)[0];
  }

  // The part's function on some rows and units, with results that begin at `c`, so wide.
  void call(const View* views, int64_t row, int64_t rows, int64_t begin, int64_t end, S* c, int64_t width,
            char** pointers, int64_t* strides) const {
    for (int64_t k = 0; k < part->operands.count; ++k) {
      const OperandPlan& operand = operands[k];
      if (operand.view < 0) {
        pointers[k] = reinterpret_cast<char*>(c + (-1 - operand.view) * rows * width);
        strides[k] = width * kItem;
      } else {
        const View& view = views[operand.view];
        pointers[k] = view.place + row * view.stride + operand.column + begin * operand.unit_bytes;
        strides[k] = view.stride;
      }
    }
    part->function(rows, end - begin, pointers, strides);
  }
};

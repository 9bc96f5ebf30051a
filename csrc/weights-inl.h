// The weights of one direction as the forward scan multiplies them: packed into panels that hold all gates of some
// units, or as they lie where so few rows would not repay that.
#pragma once

#include "pack-inl.h"
#include "plan-inl.h"
#include "weight_cache-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

template <class S, class A, class Cell>
struct ForwardWeights {
  using W = Wide<S>;
  static constexpr int L = kLanes<S>;
  static constexpr int G = Cell::kGates;
  static constexpr int kBlocks = Cell::kVectors / G;  // blocks of L units in a panel, at most
  static constexpr int64_t kWidth = kPanel<S, Cell::kVectors>;

  const Sizes& z;
  const Parameters<const S, const A>& given;
  const bool projected, packed, packed_inputs;
  const int64_t panels;
  const Panels<S> outputs;                        // of the projection
  const int64_t ld_inputs, ld_outputs, ld_units;  // rows of x, h and the units: whole groups, with zeros behind
  S *w_ih, *w_hh, *w_hr;
  W *init_ih, *init_hh, *init_hr;  // biases, as one row of every panel
  PanelTag* tags;                  // of the packed weights that are kept: panels of w_ih, of w_hh, then of w_hr

  static int64_t panel_count(const Sizes& z) { return ceil_div(z.hidden, kBlocks * L); }

  // The panels of the projection are cut for as many threads as `shares`.
  ForwardWeights(const Forward<S, A>& args, int d, int64_t shares, Scratch& scratch)
      : z(args.sizes), given(args.weights[d]), projected(given.w_hr != nullptr),
        packed(args.keeps_packed || z.rows >= larger<int64_t>(kKeptRows, (z.inputs + z.outputs) / 16)),
        packed_inputs(args.tokens ? z.rows >= z.inputs / 4 : packed), panels(panel_count(z)),
        outputs(z.outputs, shares), ld_inputs(grouped<S>(z.inputs)), ld_outputs(grouped<S>(z.outputs)),
        ld_units(grouped<S>(z.hidden)) {
    const int64_t size_ih = packed_inputs ? panels * kWidth * ld_inputs : 0;
    const int64_t size_hh = packed ? panels * kWidth * ld_outputs : 0;
    const int64_t size_hr = projected ? outputs.size(z.hidden) : 0;
    PackedMemory memory{packed ? args.weight_cache[d] : nullptr, scratch};
    memory.open(
        PackedMemory::bytes_of<S>(size_ih) + PackedMemory::bytes_of<S>(size_hh) + PackedMemory::bytes_of<S>(size_hr),
        2 * panels + outputs.count,
        {int64_t(args.mode), int64_t(sizeof(S)), z.inputs, z.hidden, z.outputs, size_ih, outputs.count, kWidth});
    w_ih = size_ih ? memory.take<S>(size_ih) : nullptr;
    w_hh = size_hh ? memory.take<S>(size_hh) : nullptr;
    w_hr = size_hr ? memory.take<S>(size_hr) : nullptr;
    tags = memory.tags;
    init_ih = scratch.take<W>(panels * kWidth);
    init_hh = scratch.take<W>(panels * kWidth);
    init_hr = projected ? scratch.take<W>(outputs.begin(outputs.count)) : nullptr;
  }

  // The first block of L units of panel p, and the panel's columns: about as many in all, and zeros over the edge.
  int64_t begin(int64_t p) const { return kBlocks == 1 ? p : ceil_div(z.hidden, L) * p / panels; }
  int64_t width(int64_t p) const { return kBlocks == 1 ? kWidth : (begin(p + 1) - begin(p)) * G * L; }

  // This thread's share of them.
  void pack(const Seat& seat) const {
    const Part own = part(panels, seat);
    for (int64_t p = own.begin; p < own.end; ++p) {
      if (packed_inputs) pack_panel(p, given.w_ih, z.inputs, w_ih + p * kWidth * ld_inputs, p);
      if (packed) pack_panel(p, given.w_hh, z.outputs, w_hh + p * kWidth * ld_outputs, panels + p);
      pack_bias(p);
    }
    if (projected) {
      const Part own_outputs = part(outputs.count, seat);
      for (int64_t p = own_outputs.begin; p < own_outputs.end; ++p) {
        const int64_t first = outputs.begin(p), count = outputs.end(p) - first, width = outputs.width(p);
        const S* from = given.w_hr + first * z.hidden;
        const auto take = [&](Fingerprint& print) { print.add(from, count * z.hidden * sizeof(S)); };
        pack_if_changed(tag_of(2 * panels + p), take, [&] {
          S* to = w_hr + outputs.offset(p, z.hidden);
          if (count < width) clear(to, width * ld_units);
          transpose(from, z.hidden, count, z.hidden, to, width);
        });
        clear(init_hr + first, width);
        if (given.b_hr) convert(init_hr + first, given.b_hr + first, count);
      }
    }
  }

  PanelTag* tag_of(int64_t tag) const { return tags ? tags + tag : nullptr; }

  // The gates of L units side by side, block after block, for each k.
  void pack_panel(int64_t p, const S* w, int64_t depth, S* to, int64_t tag) const {
    const int64_t first = begin(p) * L, end = smaller(begin(p + 1) * L, z.hidden);
    const auto take = [&](Fingerprint& print) {
      for (int gate = 0; gate < G; ++gate)
        print.add(w + (gate * z.hidden + first) * depth, (end - first) * depth * static_cast<int64_t>(sizeof(S)));
    };
    pack_if_changed(tag_of(tag), take, [&] {
      if (end < begin(p + 1) * L) clear(to, grouped<S>(depth) * width(p));
      for (int64_t unit = first; unit < end; unit += L, to += G * L * kGroup<S>)
        for (int gate = 0; gate < G; ++gate)
          transpose(w + (gate * z.hidden + unit) * depth, depth, smaller<int64_t>(L, end - unit), depth,
                    to + gate * L * kGroup<S>, width(p));
    });
  }

  void pack_bias(int64_t p) const {
    W *of_input = init_ih + p * kWidth, *of_state = init_hh + p * kWidth;
    for (int64_t unit = begin(p) * L; unit < begin(p + 1) * L; unit += L)
      for (int gate = 0; gate < G; ++gate, of_input += L, of_state += L) {
        const int lanes = static_cast<int>(smaller<int64_t>(L, z.hidden - unit));
        const auto bias = [&](const A* b) { return b ? load_part(b + gate * z.hidden + unit, lanes) : Vec<S>{}; };
        store(of_input, bias(given.b_ih));
        store(of_state, bias(given.b_hh));
      }
  }

  // Rows of x times the weights of some panels, with their bias, to to(p) (rows, width(p)).
  template <class To>
  void times_inputs(const S* x, int64_t rows, Part own, const To& to) const {
    if (!packed) return as_they_lie(x, rows, z.inputs, own, given.w_ih, init_ih, to);
    if (rows == 1 && z.rows == 1) return times_panels(x, z.inputs, own, w_ih, init_ih, to(own.begin));
    for (int64_t p = own.begin; p < own.end; ++p) product(x, rows, z.inputs, p, w_ih, init_ih, to(p), Nothing{});
  }

  // Rows of h times packed panel p, with its bias, to c.
  template <class Expect>
  void times_states(const S* h, int64_t rows, int64_t p, W* c, const Expect& expect) const {
    product(h, rows, z.outputs, p, w_hh, init_hh, c, expect);
  }

  // Whether the step of so many rows streams weights that no cache gives back before the next: those of all panels
  // then come one behind the other, and what else a step does comes behind all of them.
  bool streams(int64_t rows) const { return !packed || rows == 1; }

  // Such rows of h times some panels, whose results lie `rows` times kWidth apart.
  void times_all(const S* h, int64_t rows, Part own, W* c) const {
    const auto to = [&](int64_t p) { return c + (p - own.begin) * rows * kWidth; };
    if (!packed) return as_they_lie(h, rows, z.outputs, own, given.w_hh, init_hh, to);
    times_panels(h, z.outputs, own, w_hh, init_hh, c);
  }

  // One row times some packed panels, whose results lie kWidth apart.
  void times_panels(const S* a, int64_t depth, Part own, const S* packed_weights, const W* init, W* c) const {
    for (int64_t p = own.begin, next; p < own.end; p = next) {
      for (next = p; next < own.end && width(next) == kWidth;) ++next;
      const int64_t at = p * kWidth;
      W* to = c + (p - own.begin) * kWidth;
      if (next > p)
        multiply_row<S, Cell::kVectors>(a, depth, packed_weights + at * grouped<S>(depth), next - p, init + at, to);
      else
        product(a, 1, depth, next++, packed_weights, init, to, Nothing{});
    }
  }

  // Rows of the units times panel p of the projection, with its bias.
  void project(const S* units, int64_t rows, int64_t p, W* c) const {
    multiply_plain<S>(outputs.width(p), units, ld_units, rows, z.hidden, w_hr + outputs.offset(p, z.hidden),
                      init_hr + outputs.begin(p), c);
  }

  template <class Expect>
  void product(const S* a, int64_t rows, int64_t depth, int64_t p, const S* panels, const W* init, W* c,
               const Expect& expect) const {
    const int64_t ld = grouped<S>(depth);
    const S* panel = panels + p * kWidth * ld;
    init += p * kWidth;
    if (width(p) < kWidth) return multiply_plain<S>(width(p), a, ld, rows, depth, panel, init, c, expect);
    multiply<S, Cell::kVectors>(a, ld, rows, depth, panel, init, 0, c, expect);
  }

  // Weights that are not packed, gate by gate: from end to end as they lie in memory.
  template <class To>
  void as_they_lie(const S* a, int64_t rows, int64_t depth, Part own, const S* raw, const W* init, const To& to) const {
    for (int gate = 0; gate < G; ++gate)
      for (int64_t p = own.begin; p < own.end; ++p) {
        const int64_t end = smaller(begin(p + 1) * L, z.hidden);
        int64_t column = gate * L;
        for (int64_t unit = begin(p) * L; unit < end; unit += L, column += G * L)
          multiply_raw(a, grouped<S>(depth), rows, depth, raw + (gate * z.hidden + unit) * depth,
                       smaller<int64_t>(L, end - unit), init + p * kWidth + column, to(p) + column, width(p));
      }
  }

  // The product of one-hot rows with the weights of panel p, with their bias, to c (rows, width(p)): a column of w_ih
  // each.
  void gather(const int64_t* tokens, int64_t rows, int64_t p, W* c) const {
    const W* init = init_ih + p * kWidth;
    const int64_t count = width(p);
    for (int64_t row = 0; row < rows; ++row, c += count) {
      if (packed_inputs) {
        const int64_t group = tokens[row] / kGroup<S> * kGroup<S>;
        const S* from = w_ih + p * ld_inputs * kWidth + group * count;
        for (int64_t i = 0; i < count; i += L)
          store(c + i, of_group(from + i * kGroup<S>, tokens[row] - group) + load(init + i));
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t unit = (begin(p) + i / (G * L)) * L + i % L, gate = i / L % G;
        const bool there = unit < z.hidden;
        c[i] = there ? widen(given.w_ih[(gate * z.hidden + unit) * z.inputs + tokens[row]]) + init[i] : W(0);
      }
    }
  }
};

}  // namespace fastrnn::FASTRNN_NAMESPACE

// Steps made ready: the scans of forward-inl.h and int8-inl.h, laid out once, that go on from call to call.
//
// Floor of a step: that of a scan, 2 G H (I + P) flops a row, and G H (I + P) packed weights read once, which of one
// row is what it takes. Everything else was done before.
#pragma once

#include "int8-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

// What scans ask for where they meet others, which one that is alone never does: it is not even constructed.
inline Barrier& no_barrier(Scratch& kept) { return *reinterpret_cast<Barrier*>(kept.take<char>(sizeof(Barrier))); }

// Where a layer's last states go, of which nobody asks: h to y, which is the same of one step, c to memory of its own.
template <class C, class Layer>
Layer with_last_states(Layer layer, Scratch& kept) {
  layer.hn = layer.y;
  layer.cn = facts(layer.mode).has_cell ? kept.take<C>(layer.sizes.batch * layer.sizes.hidden) : nullptr;
  return layer;
}

template <class S, class Cell>
struct PreparedFloats {
  static void* operator new(size_t, void* place) { return place; }
  using Scan = ForwardScan<S, S, Cell>;
  using Layer = Forward<S>;

  const Forward<S> args;
  const Scan scan;
  S *before, *after;

  PreparedFloats(const Forward<S>& layer, Scratch& kept)
      : args(with_last_states<S>(layer, kept)),
        scan(args, 0, nullptr, TeamPlan{1, false, false}, no_barrier(kept), kept), before(scan.state),
        after(scan.next) {
    scan.weights.pack(Seat{0, 1});
    const int64_t batch = scan.z.batch;
    for (S* state : {before, after}) clear(state, batch * scan.ld_outputs);
    if (scan.unprojected) clear(scan.unprojected, batch * scan.ld_units);
    if (Cell::kHasCell) clear(scan.cell_state, batch * scan.z.hidden);
  }

  void step() {
    const Sizes& z = scan.z;
    const Part panels{0, scan.panels}, rows{0, z.batch};
    if (scan.x != args.x) Scan::copy_rows(const_cast<S*>(scan.x), scan.ld_inputs, args.x, z.inputs, rows);
    scan.multiply_inputs(0, 1, panels, rows);
    if (scan.weights.streams(z.batch))
      scan.step_streaming(0, panels, rows, before, after, scan.results);
    else
      for (int64_t p = 0; p < scan.panels; ++p) scan.step(0, p, rows, before, after, scan.results);
    if (scan.projected)
      for (int64_t p = 0; p < scan.weights.outputs.count; ++p) scan.project(0, p, rows, after, scan.results);
    S* const swap = before;
    before = after;
    after = swap;
  }

  void get_state(float* h, float* c) const {
    const Sizes& z = scan.z;
    for (int64_t r = 0; r < z.batch; ++r) convert(h + r * z.outputs, before + r * scan.ld_outputs, z.outputs);
    if (Cell::kHasCell) copy(c, scan.cell_state, z.batch * z.hidden);
  }
  void set_state(const float* h, const float* c) {
    const Sizes& z = scan.z;
    for (int64_t r = 0; r < z.batch; ++r) convert(before + r * scan.ld_outputs, h + r * z.outputs, z.outputs);
    if (Cell::kHasCell) copy(scan.cell_state, c, z.batch * z.hidden);
  }
};

template <class Cell>
struct PreparedInt8 {
  static void* operator new(size_t, void* place) { return place; }
  using Layer = Int8Forward;

  const Int8Forward args;
  const Int8Scan<Cell> scan;
  float *before, *after;

  PreparedInt8(const Int8Forward& layer, Scratch& kept)
      : args(with_own_weights(with_last_states<float>(layer, kept), kept)),
        scan(args, 0, nullptr, 1, no_barrier(kept), kept), before(scan.state), after(scan.next) {
    const Sizes& z = scan.z;
    for (float* state : {before, after}) clear(state, z.batch * z.outputs);
    if (Cell::kHasCell) clear(scan.cell_state, z.batch * z.hidden);
  }

  // They are read as they lie.
  static Int8Forward with_own_weights(Int8Forward layer, Scratch& kept) {
    const Sizes& z = layer.sizes;
    const int64_t rows = Cell::kGates * z.hidden;
    Int8Parameters& w = layer.weights[0];
    const auto keep = [&](auto*& values, int64_t count) {
      using N = std::remove_const_t<std::remove_pointer_t<std::remove_reference_t<decltype(values)>>>;
      if (!values) return;
      N* const own = kept.take<N>(count);
      copy<N>(own, values, count);
      values = own;
    };
    keep(w.w_ih, rows * z.inputs), keep(w.s_ih, rows), keep(w.b_ih, rows);
    keep(w.w_hh, rows * z.outputs), keep(w.s_hh, rows), keep(w.b_hh, rows);
    keep(w.w_hr, z.outputs * z.hidden), keep(w.s_hr, z.outputs);
    return layer;
  }

  void step() {
    const Sizes& z = scan.z;
    const Part blocks{0, ceil_div(z.hidden, Int8Scan<Cell>::L)};
    const Int8Rows x = scan.inputs.of(0), h = scan.states.of(0), u = scan.units.of(0);
    scan.multiply_inputs(0, 1, blocks, x);
    h.fill(before, z.outputs, z.batch);
    for (int64_t block = 0; block < blocks.end; ++block) scan.step(0, block, z.batch, h, before, after);
    if (scan.projected) {
      u.fill(scan.unprojected, z.hidden, z.batch);
      for (int64_t block = 0; block < ceil_div(z.outputs, Int8Scan<Cell>::L); ++block)
        scan.project(0, block, z.batch, u, after);
    }
    float* const swap = before;
    before = after;
    after = swap;
  }

  void get_state(float* h, float* c) const {
    copy(h, before, scan.z.batch * scan.z.outputs);
    if (Cell::kHasCell) copy(c, scan.cell_state, scan.z.batch * scan.z.hidden);
  }
  void set_state(const float* h, const float* c) {
    copy(before, h, scan.z.batch * scan.z.outputs);
    if (Cell::kHasCell) copy(scan.cell_state, c, scan.z.batch * scan.z.hidden);
  }
};

template <class S>
struct PreparedLinear {
  static void* operator new(size_t, void* place) { return place; }
  using Layer = LinearForward<S>;
  using W = Wide<S>;

  const LinearForward<S> args;
  const Panels<S> panels;
  const int64_t ld;  // of a row of x, as rows of products
  S *x, *packed;
  W *init, *results;

  PreparedLinear(const LinearForward<S>& layer, Scratch& kept)
      : args(layer), panels(layer.outputs), ld(grouped<S>(layer.inputs)), x(kept.take<S>(layer.rows * ld)),
        packed(kept.take<S>(panels.size(layer.inputs))), init(kept.take<W>(panels.begin(panels.count))),
        results(kept.take<W>(layer.rows * kPanel<S, kPlain>)) {
    clear(x, layer.rows * ld);
    clear(packed, panels.size(layer.inputs));
    clear(init, panels.begin(panels.count));
    if (layer.b) convert(init, layer.b, layer.outputs);
    for (int64_t p = 0; p < panels.count; ++p)
      transpose(layer.w + panels.begin(p) * layer.inputs, layer.inputs, panels.end(p) - panels.begin(p), layer.inputs,
                packed + panels.offset(p, layer.inputs), panels.width(p));
  }

  void step() {
    const S* from = args.x;
    if (ld != args.inputs) {
      for (int64_t r = 0; r < args.rows; ++r) copy(x + r * ld, args.x + r * args.inputs, args.inputs);
      from = x;
    }
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.begin(p), width = panels.width(p);
      multiply_plain<S>(width, from, ld, args.rows, args.inputs, packed + panels.offset(p, args.inputs), init + first,
                        results);
      for (int64_t r = 0; r < args.rows; ++r)
        convert(args.y + r * args.outputs + first, results + r * width, panels.end(p) - first);
    }
  }

  void get_state(float*, float*) const {}
  void set_state(const float*, const float*) {}
};

template <class Step>
Prepared prepare(const typename Step::Layer& layer, Scratch& kept) {
  return {new (kept.take<Step>(1)) Step(layer, kept), [](void* self) { static_cast<Step*>(self)->step(); },
          [](const void* self, float* h, float* c) { static_cast<const Step*>(self)->get_state(h, c); },
          [](void* self, const float* h, const float* c) { static_cast<Step*>(self)->set_state(h, c); }};
}

template <class S>
Prepared prepare_floats(const Forward<S>& layer, Scratch& kept) {
  Prepared made{};
  with_cell<Wide<S>>(layer.mode, [&](auto cell) { made = prepare<PreparedFloats<S, decltype(cell)>>(layer, kept); });
  return made;
}

inline Prepared prepare_int8(const Int8Forward& layer, Scratch& kept) {
  Prepared made{};
  with_cell<float>(layer.mode, [&](auto cell) { made = prepare<PreparedInt8<decltype(cell)>>(layer, kept); });
  return made;
}

}  // namespace fastrnn::FASTRNN_NAMESPACE

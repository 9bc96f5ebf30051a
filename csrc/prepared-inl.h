// Steps made ready: the scans of forward-inl.h and int8-inl.h, laid out once, that go on from call to call.
//
// Floor of a step: that of a scan, 2 G H (I + P) flops a row, and G H (I + P) packed weights read once, which of one
// row is what it takes. Everything else was done before.
//
// Weights are read forwards and backwards in turn: what a step read last is still in a cache that does not hold all of
// them, and the next step reads that first. Forwards alone it would find nothing, since each line goes just before it
// is wanted. No sum changes its order by it.
#pragma once

#include "int8-inl.h"

namespace fastrnn::FASTRNN_NAMESPACE {

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
  bool backwards = false;

  PreparedFloats(const Forward<S>& layer, Scratch& kept)
      : args(with_last_states<S>(layer, kept)), scan(args, 0, nullptr, TeamPlan{}, Barriers{}, kept),
        before(scan.state), after(scan.next) {
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
    if (z.batch == 1) {
      step_row();
    } else {
      scan.multiply_inputs(0, 1, panels, rows);
      for (int64_t p = 0; p < scan.panels; ++p) scan.step(0, p, rows, before, after, scan.results);
    }
    if (scan.projected)
      for (int64_t p = 0; p < scan.weights.outputs.count; ++p) scan.project(0, p, rows, after, scan.results);
    S* const swap = before;
    before = after;
    after = swap;
  }

  // One row, up to its gates: two panels at once, as the product of a row takes them.
  void step_row() {
    const auto& weights = scan.weights;
    constexpr int64_t kWidth = Scan::kWidth;
    const auto panels = [&](int64_t pair) { return Part{2 * pair, smaller(2 * pair + 2, scan.panels)}; };
    const auto inputs = [&](int64_t pair) {
      const Part own = panels(pair);
      weights.times_panels(scan.x, scan.z.inputs, own, weights.w_ih, weights.init_ih, scan.product_at(own.begin, 0));
    };
    const auto states = [&](int64_t pair) {
      const Part own = panels(pair);
      weights.times_panels(before, scan.z.outputs, own, weights.w_hh, weights.init_hh,
                           scan.results + own.begin * kWidth);
    };
    const int64_t pairs = ceil_div(scan.panels, 2);
    if (backwards) {
      for (int64_t pair = pairs; pair-- > 0;) states(pair);
      for (int64_t pair = pairs; pair-- > 0;) inputs(pair);
    } else {
      for (int64_t pair = 0; pair < pairs; ++pair) inputs(pair);
      for (int64_t pair = 0; pair < pairs; ++pair) states(pair);
    }
    backwards = !backwards;
    for (int64_t p = 0; p < scan.panels; ++p) scan.open(0, p, {0, 1}, scan.results + p * kWidth);
    for (int64_t p = 0; p < scan.panels; ++p) scan.close(0, p, {0, 1}, scan.results + p * kWidth, before, after);
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
  using Scan = Int8Scan<Cell, PackedInt8Matrix>;
  const Scan scan;
  float *before, *after;
  bool backwards = false;

  PreparedInt8(const Int8Forward& layer, Scratch& kept)
      : args(with_last_states<float>(layer, kept)), scan(args, 0, nullptr, 1, Barriers{}, kept), before(scan.state),
        after(scan.next) {
    const Sizes& z = scan.z;
    for (float* state : {before, after}) clear(state, z.batch * z.outputs);
    if (Cell::kHasCell) clear(scan.cell_state, z.batch * z.hidden);
  }

  void step() {
    const Sizes& z = scan.z;
    const int64_t blocks = ceil_div(z.hidden, Scan::L);
    const Int8Rows x = scan.inputs.of(0), h = scan.states.of(0), u = scan.units.of(0);
    if (!scan.float_inputs) x.fill(args.x, z.inputs, z.batch);
    h.fill(before, z.outputs, z.batch);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block = backwards ? blocks - 1 - i : i;
      scan.multiply_inputs(block, z.batch, args.x, x);
      scan.step(0, block, z.batch, h, before, after);
    }
    backwards = !backwards;
    if (scan.projected) {
      u.fill(scan.unprojected, z.hidden, z.batch);
      for (int64_t block = 0; block < ceil_div(z.outputs, Scan::L); ++block) scan.project(0, block, z.batch, u, after);
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

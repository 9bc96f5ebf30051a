"""Other libraries on the same parameters: ONNX Runtime and OpenVINO (inference, one ONNX graph for both), JAX
(inference and training: one jitted ``lax.scan``), and oneDNN's own LSTM through torch.  Each is imported only when
asked for, and is a peer where installed.

They run one layer of whole rows in float32; :func:`_plain` refuses the rest.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from problem import Problem, Results
from timing import LINGERS, Side
from torch import Tensor

Built = tuple[Side, Callable[[], Results]]

# The order of torch's gates in ONNX: i f g o -> i o f c, and r z n -> z r h.
ONNX = {"LSTM": ("LSTM", (0, 3, 1, 2)), "GRU": ("GRU", (1, 0, 2)), "RNN_TANH": ("RNN", (0,))}


def _plain(case: Case, threads: int) -> str | None:
    shape = case.shape
    if shape.layers > 1 or shape.packed or shape.proj_size or shape.dtype != "float32":
        return "one layer of whole rows in float32 only"
    return None


def _inference(case: Case, threads: int) -> str | None:
    return "inference only" if case.work == "train" else _plain(case, threads)


def onnx_model(problem: Problem) -> bytes:
    """The problem's module as a graph of one node, with ``x`` and the first states as inputs."""
    from onnx import TensorProto, checker, helper, numpy_helper

    module, case = problem.module, problem.case
    kind, order = ONNX[case.mode]
    directions = ["", "_reverse"][: case.directions]

    def gates(name: str) -> Tensor:
        blocks = [getattr(module, f"{name}_l0{end}").detach().chunk(len(order)) for end in directions]
        return torch.stack([torch.cat([own[gate] for gate in order]) for own in blocks])

    constants = {
        "W": gates("weight_ih"),
        "R": gates("weight_hh"),
        "B": torch.cat([gates("bias_ih"), gates("bias_hh")], -1),
    }
    states = ["h0", "c0"] if case.mode == "LSTM" else ["h0"]
    outputs = ["y", "h", "c"] if case.mode == "LSTM" else ["y", "h"]
    options: dict[str, Any] = {"linear_before_reset": 1} if case.mode == "GRU" else {}
    node = helper.make_node(
        kind,
        ["x", "W", "R", "B", "", *states],
        outputs,
        hidden_size=case.shape.hidden,
        direction="bidirectional" if case.shape.bidirectional else "forward",
        **options,
    )
    steps, batch, hidden = case.shape.steps, case.shape.rows, case.shape.hidden
    state = [case.directions, batch, hidden]
    shapes = {"x": [steps, batch, case.inputs], "y": [steps, case.directions, batch, hidden]}
    info = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name, state))
        for name in ("x", *states, *outputs)
    }
    graph = helper.make_graph(
        [node],
        "layer",
        [info[name] for name in ("x", *states)],
        [info[name] for name in outputs],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


def _feeds(problem: Problem) -> dict[str, Any]:
    x, hx = problem.data.x, problem.data.hx
    states = hx if isinstance(hx, tuple) else (hx,)
    return {name: value.detach().numpy() for name, value in zip(("x", "h0", "c0"), (x, *states), strict=False)}


def _from_onnx(problem: Problem, outputs: list[Any]) -> Results:
    y, *last = (torch.from_numpy(output.copy()) for output in outputs)
    return problem.name([y.transpose(1, 2).flatten(2), *last])


def _onnxruntime(problem: Problem, threads: int) -> Built:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
    feeds = _feeds(problem)

    def call() -> list[Any]:
        return session.run(None, feeds)

    # A million pauses, some 16 ms on a Zen. To forbid it ("session.force_spinning_stop") would slow its own steps down.
    return Side(call, pool="ONNX Runtime", lingers=0.05 * (threads > 1)), lambda: _from_onnx(problem, call())


def _openvino(problem: Problem, threads: int) -> Built:
    import openvino

    # Where the CPU has bfloat16 OpenVINO takes it unasked.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    request = core.compile_model(core.read_model(onnx_model(problem), b""), "CPU", exact).create_infer_request()
    feeds = _feeds(problem)
    for name, value in feeds.items():
        request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def results() -> Results:
        request.infer()
        return _from_onnx(problem, [request.get_output_tensor(i).data for i in range(len(request.results))])

    return Side(request.infer, pool="OpenVINO"), results


def _onednn_refusal(case: Case, threads: int) -> str | None:
    if case.mode != "LSTM" or case.shape.bidirectional:
        return "torch exposes oneDNN's LSTM only, one direction a call"
    return _inference(case, threads)


def _onednn(problem: Problem, threads: int) -> Built:
    """oneDNN's LSTM primitive as torch exposes it, ``aten::mkldnn_rnn_layer``: what nn.LSTM calls, but with weights
    packed once, ahead, as inductor does for a frozen model.  nn.LSTM packs them at each call."""
    module, (x, hx, _) = problem.module, problem.data
    hidden, size = module.hidden_size, list(x.shape)
    parameters = [parameter.detach() for parameter in module.parameters()]
    w_ih, w_hh, b_ih, b_hh = parameters
    h0, c0 = (state[0] for state in hx)
    # weights, hidden_size, reverse, has_biases, batch_first, input_size
    packed = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(w_ih, w_hh, hidden, False, True, False, size)
    # reverse, batch_sizes, mode, hidden_size, num_layers, has_biases, bidirectional, batch_first, train
    options = (False, [], 2, hidden, 1, True, False, False, False)

    def call() -> Any:
        with torch.no_grad():
            return torch.ops.aten.mkldnn_rnn_layer(x, *packed, b_ih, b_hh, h0, c0, *options)

    def results() -> Results:
        y, h, c, _ = call()
        return problem.name([y, h[None], c[None]])

    return Side(call, lingers=LINGERS * (threads > 1)), results


_jax_threads: list[int] = []


def _jax_refusal(case: Case, threads: int) -> str | None:
    if _jax_threads and threads not in _jax_threads:
        return f"JAX began with {_jax_threads[0]} threads and keeps them: run {threads} threads in another process"
    return _plain(case, threads) or ("one direction only" if case.shape.bidirectional else None)


def _jax(problem: Problem, threads: int) -> Built:
    if not _jax_threads:
        _jax_threads.append(threads)
        # What XLA sizes its pool by. The usual XLA_FLAGS for one thread do nothing in JAX 0.10: 1.9 cores were busy.
        os.environ["NPROC"] = str(threads)
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # else a second thread hands work over

    mode = problem.case.mode

    def cell(a: Any, b: Any, h: Any, c: Any) -> tuple[Any, Any]:
        if mode == "LSTM":
            i, f, g, o = jnp.split(a + b, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c
        if mode == "GRU":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
            z = jax.nn.sigmoid(a_z + b_z)
            return (1 - z) * jnp.tanh(a_n + jax.nn.sigmoid(a_r + b_r) * b_n) + z * h, c
        return jnp.tanh(a + b), c

    def layer(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(state: Any, a: Any) -> Any:
            state = cell(a, state[0] @ w_hh + b_hh, *state)
            return state, state[0]

        last, y = jax.lax.scan(step, (h0, c0), x @ w_ih + b_ih)
        return y, last

    feeds = {name: jnp.asarray(value) for name, value in _feeds(problem).items()}
    h0 = feeds["h0"][0]
    c0 = feeds["c0"][0] if mode == "LSTM" else h0
    # JAX's users keep a matrix as (inputs, outputs), which is also what its products like best.
    arguments = [feeds["x"], *(jnp.asarray(p.detach().t().contiguous().numpy()) for p in problem.module.parameters())]
    grad_y = jnp.asarray(problem.data.grad_y.numpy())

    def train(*arguments: Any) -> Any:
        outputs, pull = jax.vjp(layer, *arguments)
        return outputs, pull((grad_y, jax.tree.map(jnp.zeros_like, outputs[1])))

    compiled = jax.jit(train if problem.case.work == "train" else layer)

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    def results() -> Results:
        outputs, grads = call() if problem.case.work == "train" else (call(), ())
        y, last = outputs
        last = [value[None] for value in last][: 2 if mode == "LSTM" else 1]
        found = [torch.tensor(jax.device_get(value)) for value in (y, *last, *grads)]
        first_weight = 2 + len(last)
        return problem.name(found[:first_weight] + [grad.t() for grad in found[first_weight:]])

    return Side(call, pool="JAX"), results


def installed() -> list[tuple[str, Callable[[Case, int], str | None], Callable[[Problem, int], Built]]]:
    """Name, refusal and build of each library that can be imported here."""
    table = [
        ("ONNX Runtime", ("onnx", "onnxruntime"), _inference, _onnxruntime),
        ("OpenVINO", ("onnx", "openvino"), _inference, _openvino),
        ("JAX", ("jax",), _jax_refusal, _jax),
    ]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight"):
        table.append(("oneDNN", (), _onednn_refusal, _onednn))
    return [
        (name, refusal, build)
        for name, modules, refusal, build in table
        if all(importlib.util.find_spec(module) for module in modules)
    ]

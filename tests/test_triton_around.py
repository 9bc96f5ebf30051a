"""What stands around the Triton scans, counted without a GPU: the meta device has no values, so that whoever asked a
device for one, or waited for it, would fail, and a copy from the host is seen among the operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import RAGGED, Case, Inputs, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import by_torch, checks, paths
from fastrnn.backends import triton as backend
from fastrnn.backends import triton_launch, triton_rows

pytest.importorskip("triton", minversion="3.6")
from fastrnn.kernels import triton_one_step, triton_scan, triton_scan_backward

ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


def tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, (tuple, list)) else [values]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)


class Launches(TorchDispatchMode):
    """Names what a device has to do: operations that write its memory, ``of_device``, but for those that only make
    views or room, and those that touch the host's, ``of_host``."""

    def __init__(self):
        super().__init__()
        self.of_device: list[str] = []
        self.of_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        touched = [*tensors_in(list(args)), *tensors_in(list((kwargs or {}).values())), *tensors_in(out)]
        if any(tensor.device.type == "cpu" for tensor in touched):
            self.of_host.append(name)
        elif not views and name not in ALLOCATES and any(tensor.numel() for tensor in tensors_in(out)):
            self.of_device.append(name)
        return out


class Kernel:
    """Takes a kernel's place and counts it under this name."""

    def __init__(self, seen: list[str], name: str):
        self.seen, self.name = seen, name

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *values, **options: self.seen.append(self.name)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """As on a GPU whose kernels do nothing."""
    found = Launches()
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_scan, "scan_forward", Kernel(found.of_device, "scan"))
    monkeypatch.setattr(triton_scan_backward, "scan_backward", Kernel(found.of_device, "scan"))
    monkeypatch.setattr(triton_one_step, "step_product", Kernel(found.of_device, "product"))
    monkeypatch.setattr(triton_one_step, "step_gather", Kernel(found.of_device, "gather"))
    return found


def on_device(case: Case) -> Inputs:
    return make(case).map(lambda tensor: tensor.to("meta"))


KINDS = [
    Case("", mode, steps=1, hidden=64, proj_size=projected, directions=directions, bias=bias, dtype=dtype)
    for mode in backend.MODES
    for projected in ((0, 32) if mode == "LSTM" else (0,))
    for directions in (1, 2)
    for bias in (True, False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize("tokens", [False, True], ids=["rows", "tokens"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("save", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("case", [*KINDS, *(replace(case, lengths=(1, 1, 1)) for case in KINDS)], ids=str)
def test_a_step_takes_four_launches_at_most(launches: Launches, case: Case, save: bool, given: bool, tokens: bool):
    """A product for each direction and the scan, with a projection a product more, but both directions in one, as are
    those of tokens, and the zeros that a module begins with."""
    inputs, outputs = on_device(case), case.proj_size or case.hidden
    if not case.lengths:  # a step of many, batch first
        inputs = inputs._replace(x=inputs.x.new_empty(3, 9, case.inputs)[:, 4:5].transpose(0, 1))
    if tokens:
        inputs = inputs._replace(x=inputs.x[..., 0].long())
    backend.Rows.of(inputs.x, inputs.batch_sizes)  # lengths are there from the call before
    with launches:
        if not given:
            sizes = checks.Sizes(case.inputs, case.hidden, outputs, 1, case.directions)
            h0, c0 = paths.first_states(case.mode, inputs.x, 3, case.dtype, sizes)
            inputs = inputs._replace(h0=h0, c0=c0)
        found = backend.forward(*inputs[:6], save=save)
    product = "addmm" if case.bias else "mm"
    before = ["product"] if case.proj_size and case.directions == 2 else [product] * case.directions
    before = ["gather"] if tokens else before
    expected = ["new_zeros"] * (not given) + before + ["scan"] + ["product"] * bool(case.proj_size)
    assert launches.of_device == expected and len(expected) <= 4
    assert not launches.of_host
    assert found.y.shape == (*inputs.x.shape[: inputs.x.dim() - (not tokens)], case.directions * outputs)
    assert found.hn.shape == (case.directions, 3, outputs)


@pytest.mark.parametrize("directions", [1, 2])
def test_of_a_step_backward_multiplies_no_weights_with_each_other(launches: Launches, directions: int):
    """There is no step before that would read W_hh W_hr; what y and hn hand in is added up before it is projected."""
    inputs = on_device(Case("", steps=1, hidden=64, proj_size=32, directions=directions))
    saved: Any = backend.forward(*inputs[:6], save=True).saved
    launches.of_device.clear()
    with launches:
        backend.backward(*inputs[:6], saved, *inputs[6:], True, True, True)
    before = ["add", *["mm"] * directions, "_to_copy", *["clone"] * (directions - 1), "scan", "tanh", "mul"]
    each = ["mm", "addmm_", "mm", "mm", "sum", "clone", "mm"]
    assert launches.of_device == [*before, *each * directions, "_to_copy"]


@pytest.mark.parametrize("outputs", [7, 3], ids=["plain", "projected"])
def test_the_first_states_are_one_piece_of_zeros(launches: Launches, outputs: int):
    sizes = checks.Sizes(5, 7, outputs, 1, 1)
    with launches:
        h0, c0 = paths.first_states("LSTM", torch.empty(1, 2, 5, device="meta"), 2, torch.float32, sizes)
    assert launches.of_device == ["new_zeros"]
    assert c0 is not None and h0.is_contiguous() and c0.is_contiguous()
    assert (h0.shape, c0.shape) == ((1, 2, outputs), (1, 2, 7))


@pytest.mark.parametrize("mode", backend.MODES)
def test_no_weight_output_or_state_is_copied(launches: Launches, mode: str):
    """Of a padded batch, both ways and in both directions: what is there beside the scans and the products."""
    inputs = on_device(Case("", mode, hidden=512, directions=2, dtype=torch.bfloat16))
    with launches:
        saved: Any = backend.forward(*inputs[:6], save=True).saved
    assert launches.of_device == ["addmm", "addmm", "new_zeros", "scan"]  # the barrier's flags
    launches.of_device.clear()
    with launches:
        backend.backward(*inputs[:6], saved, *inputs[6:], True, True, True)
    assert not {"cat", "stack", "index", "_unsafe_index"} & set(launches.of_device)
    # Small: an LSTM's first c and its gradient in float32 and back, a GRU's gradients in the order of its parameters.
    copies = {"LSTM": 3, "GRU": 0}.get(mode, 0)
    assert launches.of_device.count("_to_copy") == copies
    assert "copy_" not in launches.of_device


@pytest.mark.parametrize("case", [Case("", lengths=RAGGED, directions=2), Case("", "GRU", lengths=RAGGED)], ids=str)
def test_a_packed_batch_asks_the_host_for_nothing_when_its_lengths_are_known(launches: Launches, case: Case):
    """So a CUDA graph holds it, after the call that warms up."""
    case = replace(case, dtype=torch.bfloat16)
    inputs = on_device(case)
    triton_rows._on_device.cache_clear()
    for asked in (True, False):
        # The same lengths in another tensor.
        inputs = inputs._replace(batch_sizes=make(case).batch_sizes)
        launches.of_host.clear()
        with launches:
            saved: Any = backend.forward(*inputs[:6], save=True).saved
            backend.backward(*inputs[:6], saved, *inputs[6:], True, True, True)
        assert bool(launches.of_host) == asked, launches.of_host


@pytest.mark.parametrize("capturing", [False, True])
def test_lengths_that_a_graph_reads_are_kept(monkeypatch: pytest.MonkeyPatch, capturing: bool):
    streams: list[object] = []

    class Lengths:
        device, record_stream = "cuda:0", streams.append

    tensor: Any = Lengths()
    monkeypatch.setattr(triton_rows, "_captured", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"current of {device}")
    triton_rows._hold(tensor)
    assert triton_rows._captured == ({tensor} if capturing else set())
    assert streams == ([] if capturing else ["current of cuda:0"])


class OnCuda:
    """A parameter of a GPU that is not there."""

    def __init__(self, dtype: torch.dtype, place: int):
        self.dtype, self.is_cuda, self.place = dtype, True, place

    def data_ptr(self) -> int:
        return self.place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bfloat16_parameters_are_flattened_for_cudnn(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    """Where torch.nn flattens, as a module is made, moved or cast.  Other dtypes torch.nn does itself."""
    asked: list[tuple[Any, ...]] = []
    module = fastrnn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3, batch_first=True)
    weights = [OnCuda(dtype, k) for k in range(len(module._flat_weights))]
    monkeypatch.setattr(by_torch, "Tensor", OnCuda)
    monkeypatch.setattr(torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_of", lambda weight: torch.no_grad())
    monkeypatch.setattr(by_torch, "get_cudnn_mode", lambda mode: f"cuDNN's {mode}")
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *values: asked.append(values))
    module._flat_weights = weights  # type: ignore[assignment]
    module.flatten_parameters()
    expected = (weights, 5, 5, "cuDNN's LSTM", 7, 3, 2, True, True)
    assert asked == ([expected] if dtype is torch.bfloat16 else [])
    weights[1].place = weights[0].place  # shared
    asked.clear()
    module.flatten_parameters()
    assert not asked

"""Weights of 8 bits in one call of the C++ core: the bits of Python's own way, and what is left to that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

readable = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API of DLPack"
)

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "three layers, both ways": {"num_layers": 3, "bidirectional": True},
    "projected": {"num_layers": 2, "proj_size": 5},
    "projected, no bias": {"bidirectional": True, "proj_size": 5, "bias": False},
}
SHAPES = {"step": (1, 1), "rows": (1, 3), "one row": (7, 1), "few": (5, 2), "unbatched": (4,)}


def made(kind: str, **form: Any) -> nn.Module:
    torch.manual_seed(5)
    return fastrnn.quantize_dynamic(getattr(nn, kind)(19, 33, **form))


def flat(result: Any) -> list[Tensor]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def in_python(module: nn.Module, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp, "fast_path_int8", lambda *_: None)
        return module(*arguments)


def same(found: list[Tensor], exact: list[Tensor]) -> bool:
    pairs = list(zip(found, exact, strict=True))
    return all(torch.equal(f, e) and f.is_contiguous() and not f.requires_grad and f._base is None for f, e in pairs)


@readable
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_bits_of_the_way_in_python(kind: str, form: dict[str, Any], shape: tuple[int, ...], given: bool):
    if "proj_size" in form and kind != "LSTM":
        pytest.skip(f"{kind} has no projection")
    module = made(kind, **form)
    x = torch.randn(*shape, 19)
    hx = in_python(module, x)[1] if given else None
    exact = flat(in_python(module, x, hx))
    found = cpp.fast_path_int8(vars(module), x, hx)
    assert found is not None
    assert same(flat(found), exact) and same(flat(module(x, hx)), exact)
    spoilt = [tensor.clone() for tensor in exact]
    spoilt[-1].view(-1)[-1] += 1e-6
    assert not same(flat(found), spoilt)
    module.batch_first = True
    if 1 in shape or len(shape) == 1:  # else the input is not as the kernel reads it
        turned = x if len(shape) == 1 else x.transpose(0, 1).contiguous()
        found = cpp.fast_path_int8(vars(module), turned, hx)
        assert found is not None
        assert same(flat(found), [e.contiguous() for e in flat(in_python(module, turned, hx))])


@readable
@pytest.mark.parametrize("threads", [1, 2])
def test_long_calls_without_the_interpreter(threads: int):
    torch.manual_seed(5)
    module = fastrnn.quantize_dynamic(nn.LSTM(96, 192, num_layers=2, bidirectional=True))
    x, before = torch.randn(30, 2, 96), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = cpp.fast_path_int8(vars(module), x, None)
        assert found is not None
        assert same(flat(found), flat(in_python(module, x)))
    finally:
        torch.set_num_threads(before)


@readable
def test_gradients_neither_hinder_nor_come():
    module = made("LSTM")
    x, h = torch.randn(1, 2, 19, requires_grad=True), torch.randn(1, 2, 33, requires_grad=True)
    for hx in (None, (h, h)):
        assert same(flat(module(x, hx)), flat(in_python(module, x, hx)))
        assert cpp.fast_path_int8(vars(module), x, hx) is not None


@readable
def test_what_it_leaves_to_python():
    module = made("LSTM", num_layers=2)
    x, h = torch.randn(3, 2, 19), torch.zeros(2, 2, 33)
    attributes = vars(module)

    def left(input: Any = x, hx: Any = None) -> bool:
        return cpp.fast_path_int8(attributes, input, hx) is None

    assert not left() and not left(hx=(h, h)) and not left(hx=[h, h])
    assert left(x[0, 0]) and left(x[:0]) and left(x[:, :0]) and left(x[..., :3]) and left(x.transpose(0, 1))
    assert left([1]) and left(None) and left(torch.zeros(3, 2, dtype=torch.int64)) and left(x.to("meta"))
    assert all(left(x.to(dtype)) for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int32))
    assert left(torch._neg_view(x)) and left(x.to_sparse()) and left(nn.Parameter(x))
    assert left(nn.utils.rnn.pack_sequence([x[:, 0]]))
    assert left(hx=h) and left(hx=(h,)) and left(hx=(h, h[..., :5])) and left(hx=(h, h.double()))
    assert left(hx=(h, None)) and left(hx=(h[0], h[0])) and left(hx=(h[:1], h[:1]))
    with torch.autocast("cpu", torch.bfloat16):
        assert left()
    with fastrnn.use_backend("reference"):
        assert left()
    with fastrnn.use_backend("cpp"):
        assert not left()
    with torch.autograd.forward_ad.dual_level():
        assert left()
    seen = []
    torch.func.vmap(lambda one: seen.append(left(one)) or one)(x[None])
    assert seen == [True]


def test_weights_stored_with_the_wrong_sign():
    module, x = made("LSTM", proj_size=5), torch.randn(3, 2, 19)
    exact, buffers = module(x)[0], module._buffers
    for name, right in list(buffers.items()):
        assert right is not None
        buffers[name] = torch._neg_view(-right)
        assert torch.equal(module(x)[0], exact)
        buffers[name] = right


def test_numbers_stored_with_the_wrong_sign():
    module, x, h = made("GRU"), torch.randn(1, 2, 19), torch.rand(1, 2, 33)
    assert same(flat(module(torch._neg_view(x), torch._neg_view(h))), flat(module(-x, -h)))


@readable
@pytest.mark.parametrize("name", ["weight_ih_l1", "scale_hh_l0", "bias_hh_l1", "weight_hr_l0", "scale_hr_l1"])
def test_weights_are_read_only_where_they_are_what_they_should_be(name: str):
    module = made("LSTM", num_layers=2, proj_size=5)
    x, buffers = torch.randn(3, 2, 19), module._buffers
    own: Any = buffers[name]
    for other in (own[:-1], own.double(), own.to_sparse(), own.to("meta"), own.unsqueeze(0), None):
        buffers[name] = other
        assert cpp.fast_path_int8(vars(module), x, None) is None
    del buffers[name]
    assert cpp.fast_path_int8(vars(module), x, None) is None
    buffers[name] = own
    assert cpp.fast_path_int8(vars(module), x, None) is not None
    for attribute, wrong in (("hidden_size", 34), ("proj_size", 0), ("num_layers", 1), ("bidirectional", True)):
        assert cpp.fast_path_int8(vars(module) | {attribute: wrong}, x, None) is None
    for order in (tuple(module._order), module._order[:-1], module._order[::-1], []):
        assert cpp.fast_path_int8(vars(module) | {"_order": order}, x, None) is None

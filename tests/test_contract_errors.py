"""Bad input: the exception that torch.nn raises, with its message, on every backend.

torch.nn itself says what is right: each call is made on its module and on ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn.checks import Unfit

LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")


def both(name: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    return getattr(nn, name)(4, 5, **options), getattr(fastrnn, name)(4, 5, **options)


def outcome(function: Callable, *arguments: Any, **options: Any) -> tuple[type, str] | None:
    """The error of a call, None where there is none; torch.nn's own differ from release to release."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    return None


def states(name: str, *shapes: tuple[int, ...], **options: Any) -> Any:
    """A state for RNN and GRU of the first shape, for an LSTM a pair of the first and the last."""
    first = torch.zeros(shapes[0], **options)
    return (first, torch.zeros(shapes[-1], **options)) if name.startswith("LSTM") else first


x, good = torch.zeros(3, 2, 4), (1, 2, 5)
packed = pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
LAYER_CALLS: dict[str, Any] = {
    "input 1-D": lambda name: (x[0, 0],),
    "input 4-D": lambda name: (x[None],),
    "input 0-D": lambda name: (x[0, 0, 0],),
    "input size": lambda name: (torch.zeros(3, 2, 7),),
    "input size unbatched": lambda name: (torch.zeros(3, 7),),
    "input float64": lambda name: (x.double(),),
    "input int64": lambda name: (x.long(),),
    "input complex": lambda name: (x.to(torch.complex64),),
    "input on meta": lambda name: (x.to("meta"),),
    "input a list": lambda name: ([[1.0]],),
    "no steps": lambda name: (x[:0],),
    "hx 2-D for 3-D": lambda name: (x, states(name, (1, 5))),
    "hx 3-D for 2-D": lambda name: (x[:, 0], states(name, good)),
    "hx 0-D for 2-D": lambda name: (x[:, 0], states(name, ())),
    "hx size for 2-D": lambda name: (x[:, 0], states(name, (1, 6))),
    "hx layers": lambda name: (x, states(name, (2, 2, 5))),
    "hx rows": lambda name: (x, states(name, (1, 3, 5))),
    "hx units": lambda name: (x, states(name, (1, 2, 6))),
    "cx units": lambda name: (x, states(name, good, (1, 2, 6))),
    "cx rank": lambda name: (x, states(name, good, (2, 5))),
    "hx float64": lambda name: (x, states(name, good, dtype=torch.float64)),
    "hx on meta": lambda name: (x, states(name, good, device="meta")),
    "hx of the other kind": lambda name: (x, torch.zeros(good) if name == "LSTM" else (torch.zeros(good),) * 2),
    "hx of three": lambda name: (x, [torch.zeros(good)] * 3),
    "packed input size": lambda name: (pack_sequence([torch.zeros(3, 7)]),),
    "packed input float64": lambda name: (pack_sequence([torch.zeros(3, 4).double()]),),
    "packed hx rows": lambda name: (packed, states(name, (1, 3, 5))),
    "packed hx units": lambda name: (packed, states(name, (1, 2, 6))),
    "packed hx layers": lambda name: (packed, states(name, (2, 2, 5), good)),
    "packed cx layers": lambda name: (packed, states(name, good, (0, 2, 5))),
    "packed hx 2-D": lambda name: (packed, states(name, (2, 5))),
    "packed hx 4-D": lambda name: (packed, states(name, (1, 1, 2, 5))),
    "packed hx 4-D, cx 3-D": lambda name: (packed, states(name, (1, 2, 5, 1), good)),
    "packed cx 4-D": lambda name: (packed, states(name, good, (1, 1, 2, 5))),
    "packed cx of many": lambda name: (packed, states(name, good, (1, 2, 5, 5))),
    "packed 3-D data": lambda name: (PackedSequence(torch.zeros(3, 2, 4), torch.tensor([1, 1, 1])),),
    "packed sum of lengths": lambda name: (PackedSequence(torch.zeros(4, 4), torch.tensor([2, 1])),),
    "packed lengths grow": lambda name: (PackedSequence(torch.zeros(3, 4), torch.tensor([1, 2])),),
}
# Where torch.nn's LSTM asks nothing of sizes, and reads memory beyond them.
UNCHECKED = ("packed input size", "packed hx rows", "packed hx units", "packed 3-D data", "packed sum of lengths")
UNCHECKED += ("packed lengths grow", "packed hx 4-D", "packed hx 4-D, cx 3-D", "packed cx 4-D", "packed cx of many")
UNCHECKED += ("packed hx layers", "packed cx layers")
INTEGRAL = torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool
LAYER_CALLS |= {f"input {dtype}": lambda name, dtype=dtype: (x.to(dtype),) for dtype in INTEGRAL}
# One sequence; of int64 and int32, it would be tokens.
LAYER_CALLS |= {f"input {dtype} 2-D": lambda name, dtype=dtype: (x[:, 0].to(dtype),) for dtype in INTEGRAL[2:]}
CELL_CALLS: dict[str, Any] = {
    "input 3-D": lambda name: (x,),
    "input 0-D": lambda name: (x[0, 0, 0],),
    "input size": lambda name: (torch.zeros(2, 7),),
    "input float64": lambda name: (x[0].double(),),
    "input int64": lambda name: (x[0].long(),),
    "hx 3-D": lambda name: (x[0], states(name, good)),
    "hx 1-D for 2-D": lambda name: (x[0], states(name, (5,))),
    "hx 2-D for 1-D": lambda name: (x[0, 0], states(name, (1, 5))),
    "hx rows": lambda name: (x[0], states(name, (3, 5))),
    "hx units": lambda name: (x[0], states(name, (2, 6))),
    "cx units": lambda name: (x[0], states(name, (2, 5), (2, 6))),
    "hx float64": lambda name: (x[0], states(name, (2, 5), dtype=torch.float64)),
    "hx of the other kind": lambda name: (x[0], torch.zeros(2, 5) if name == "LSTMCell" else (torch.zeros(2, 5),) * 2),
}
for dtype in (*INTEGRAL, torch.complex64):
    CELL_CALLS |= {
        f"input {dtype}": lambda name, dtype=dtype: (x[0].to(dtype),),
        f"input {dtype} 1-D": lambda name, dtype=dtype: (x[0, 0].to(dtype),),
        f"input {dtype} and a state": lambda name, dtype=dtype: (x[0].to(dtype), states(name, (2, 5))),
        f"input {dtype} of another size": lambda name, dtype=dtype: (torch.zeros(3, 9).to(dtype), states(name, (3, 5))),
        f"state {dtype}": lambda name, dtype=dtype: (x[0], states(name, (2, 5), dtype=dtype)),
    }
CALLS = [(name, call) for name in LAYERS for call in LAYER_CALLS] + [(n, call) for n in CELLS for call in CELL_CALLS]
CALLS = [(name, call) for name, call in CALLS if name.startswith("LSTM") or "cx" not in call]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_bad_call(target, name: str, call: str):
    if target.device.type != "cpu":
        pytest.skip("the calls are on the CPU")
    arguments = (LAYER_CALLS | CELL_CALLS if name in CELLS else CELL_CALLS | LAYER_CALLS)[call](name)
    theirs, ours = both(name, {})
    ours.load_state_dict(theirs.state_dict())
    if name == "LSTM" and call in UNCHECKED:
        found = outcome(ours, *arguments)
        assert found is not None and found[0] is RuntimeError
        return
    same_outcome(target, theirs, ours, *arguments)


class Foreign(torch.Tensor):
    """A tensor that no kernel takes."""


FOREIGN: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": torch.Tensor.to_sparse,
    "subclass": lambda tensor: tensor.as_subclass(Foreign),
    "autocast": torch.Tensor.double,  # which torch.nn casts not
}


@pytest.mark.parametrize("call", UNCHECKED)
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("place", ["input", "h", "c", "all"])
def test_a_bad_packed_call_of_what_no_kernel_takes_does_not_reach_torchs_function(call: str, kind: str, place: str):
    """It reads memory beyond such tensors, whatever their layout."""
    packed, (h, c) = [*LAYER_CALLS[call]("LSTM"), states("LSTM", good)][:2]
    tensors = {"input": packed.data, "h": h, "c": c}
    x, h, c = (FOREIGN[kind](tensor) if place in (at, "all") else tensor for at, tensor in tensors.items())
    module = fastrnn.LSTM(4, 5).double() if kind == "autocast" and place == "all" else fastrnn.LSTM(4, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), pytest.raises(RuntimeError):
        module(packed._replace(data=x), (h, c))


@pytest.mark.parametrize("kind", FOREIGN)
def test_missing_parameters_are_named_whatever_the_input_is(kind: str):
    module = fastrnn.LSTM(4, 5)
    module.bias_hh_l0 = None
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), pytest.raises(TypeError, match="None"):
        module(packed._replace(data=FOREIGN[kind](packed.data)))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("second", [False, True], ids=["h", "c"])
def test_a_batch_of_states_for_one_sequence(name: str, size: int, second: bool):
    """torch.nn takes it where there are as many as units, and reads memory beyond them."""
    module, one, many = getattr(fastrnn, name)(4, size), torch.zeros(size), torch.zeros(size, size)
    hx = ((one, many) if second else (many, one)) if name == "LSTMCell" else many
    with pytest.raises(RuntimeError, match="Expected hidden to be 1D"):
        module(torch.zeros(4), hx)


def same_outcome(target, theirs: nn.Module, ours: nn.Module, *arguments: Any) -> None:
    expected = outcome(theirs, *arguments)
    with fastrnn.use_backend(target.name):
        found = outcome(ours, *arguments)
    if expected is None:  # torch.nn computes what no kernel does; asked for by name, a backend must not pretend
        assert found is not None and found[0] is fastrnn.BackendError
        assert outcome(ours, *arguments) is None
    else:
        assert found == expected


CONSTRUCTIONS: list[tuple[str, tuple, dict[str, Any]]] = [
    *[(name, (4, 5), {"bias": 1}) for name in LAYERS],
    *[(name, (4, 5), {"batch_first": 0}) for name in LAYERS],
    *[(name, (4.0, 5), {}) for name in LAYERS],
    *[(name, (4, 5.0), {}) for name in LAYERS],
    *[(name, (0, 5), {}) for name in LAYERS],
    *[(name, (4, 0), {}) for name in LAYERS],
    *[(name, (4, 5, 0), {}) for name in LAYERS],
    *[(name, (4, 5), {"dropout": value}) for name in LAYERS for value in (-0.1, 1.1, True)],
    *[(name, (4, 5), {"proj_size": value}) for name in LAYERS for value in (-1, 5)],
    ("RNN", (4, 5), {"proj_size": 0}),
    ("GRU", (4, 5), {"proj_size": 0}),
    ("RNN", (4, 5), {"nonlinearity": "sin"}),
    ("RNN", (4, 5, 1, "sin"), {}),
    ("LSTM", (4, 5), {"nonlinearity": "tanh"}),
    ("LSTMCell", (4, -5), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), CONSTRUCTIONS)
def test_bad_construction(name: str, arguments: tuple, options: dict[str, Any]):
    theirs, ours = (outcome(getattr(package, name), *arguments, **options) for package in (nn, fastrnn))
    assert ours == theirs


def test_a_cell_of_an_unknown_nonlinearity_raises_in_forward():
    theirs, ours = both("RNNCell", {"nonlinearity": "sin"})
    assert outcome(ours, x[0]) == outcome(theirs, x[0]) == (RuntimeError, "Unknown nonlinearity: sin")


# Of a parameter: others, and as many numbers of another shape.
WRONG_SHAPES: dict[str, Any] = {
    "fewer": lambda weight: weight[:3],
    "turned": lambda weight: weight.t(),
    "flat": lambda weight: weight.flatten(),
    "one more dimension": lambda weight: weight[None],
}


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_parameter_of_a_wrong_shape_never_reaches_a_kernel(target, name: str, parameter: str, wrong: str):
    ours = getattr(fastrnn, name)(4, 5)
    right = getattr(ours, parameter)
    new = nn.Parameter(WRONG_SHAPES[wrong](right.detach()).contiguous())
    if new.shape == right.shape:
        pytest.skip("a bias is flat")
    setattr(ours, parameter, new)
    expected = Unfit, f"Expected a parameter of size {tuple(right.shape)}, got {list(new.shape)}"
    for grad in (False, True):
        with fastrnn.use_backend(target.name), torch.set_grad_enabled(grad):
            assert outcome(ours, x) == expected


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_cells_of_no_size_are_torchs(target, name: str, sizes: tuple[int, int]):
    theirs, ours = (getattr(package, name)(*sizes) for package in (nn, fastrnn))
    ours.load_state_dict(theirs.state_dict())
    for given in ((torch.zeros(2, sizes[0]),), (torch.zeros(2, sizes[0]), states(name, (2, sizes[1])))):
        same_outcome(target, theirs, ours, *given)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                for own, right in zip(flat(ours(*given)), flat(theirs(*given)), strict=True):
                    assert torch.equal(own, right)


def flat(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else [each for part in results for each in flat(part)]


CHANGED = [("num_layers", value) for value in (0, -1, 2, None)] + [("hidden_size", value) for value in (0, -5, 4, 6)]
CHANGED += [("input_size", value) for value in (0, -1, 3, 5)] + [("bidirectional", True), ("proj_size", 2)]


@pytest.mark.parametrize(("attribute", "value"), CHANGED, ids=str)
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_an_attribute_changed_later_is_an_error_of_torchs_type(name: str, attribute: str, value: Any):
    """Whose LSTM with another hidden_size reads what is not there, or divides by it: then a RuntimeError, too."""
    theirs, ours = both(name, {})
    if not hasattr(theirs, attribute):
        pytest.skip("a cell has no such thing")
    for module in (theirs, ours):
        setattr(module, attribute, value)
    cell = name in CELLS
    given = x[0] if cell else x
    for hx in (None, states(name, (2, 5) if cell else good)):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found, expected = outcome(ours, given, hx), (RuntimeError, "")
                if (name, attribute) != ("LSTM", "hidden_size"):
                    expected = outcome(theirs, given, hx)
            assert (found and issubclass(found[0], expected[0])) if expected else found is None, (found, expected)


def test_dropout_with_one_layer_warns():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        fastrnn.LSTM(4, 5, dropout=0.5)


def test_a_backend_asked_for_by_name_says_why_it_cannot_serve():
    lstm = fastrnn.LSTM(4, 5)
    with fastrnn.use_backend("reference"), torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(fastrnn.BackendError, match="'reference' was asked for by name but cannot serve: autocast"):
            fastrnn.GRU(4, 5)(x)

    class Own(torch.Tensor):
        pass

    with fastrnn.use_backend("reference"), pytest.raises(fastrnn.BackendError, match="got a Own"):
        lstm(x.as_subclass(Own))
    assert lstm(x.as_subclass(Own))[0].shape == (3, 2, 5)

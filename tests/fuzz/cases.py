"""What a fuzzed call is, as plain values: the ``repr`` of a case is all that it takes to run it again."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3, "JordanRNN": 1}


@dataclass(frozen=True, repr=False)
class Case:
    """A network and the calls that are made on it.  Sizes, then how it is called, then what is odd about it."""

    kind: str = "LSTM"
    nonlinearity: str = "tanh"
    output: str = "identity"  # of a JordanRNN
    inputs: int = 3
    hidden: int = 4
    layers: int = 1
    outputs: int = 0  # of a projection or a JordanRNN
    both: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    dtype: str = "f32"
    steps: int = 3
    rows: int = 2
    form: str = "padded"  # single, sorted, unsorted: one sequence, packed
    lengths: tuple[int, ...] = ()  # of the packed forms; with form "padded", the argument of that name
    reset: bool = False
    tokens: str = ""  # "onehot", or "embedding", "weight": what is given as embedding=
    vocabulary: int = 5
    cells: bool = False  # return_cell_states
    narrow: bool = False  # weights of 8 bits
    recompute: bool = False
    learned: bool = False  # learn_initial_state
    states: str = "none"  # tuple, list: given; else a layout of LAYOUTS
    layout: str = "plain"
    weights: str = "plain"
    grads: str = "plain"
    mode: str = "grad"  # no_grad, inference
    needs: str = "xhw"  # which of x, the states and the weights want gradients
    seeds: str = "yhc"  # which results have a gradient coming in
    twice: bool = False  # gradients of the gradients, too
    training: bool = True
    backend: str = ""
    threads: int = 1
    path: str = "module"
    autocast: bool = False
    odd: str = ""  # what some values of x are
    gain: float = 1.0
    changes: tuple[str, ...] = ()  # of the weights, each followed by a call
    seed: int = 0

    def __repr__(self) -> str:
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return f"Case({', '.join(f'{name}={value!r}' for name, value in own.items())})"

    @property
    def is_cell(self) -> bool:
        return self.kind in CELLS

    @property
    def name(self) -> str:
        """The kind of cell: RNN, LSTM, GRU or JordanRNN."""
        return self.kind.removesuffix("Cell")

    @property
    def directions(self) -> int:
        return 2 if self.both else 1

    @property
    def units(self) -> int:
        return self.outputs or self.hidden

    @property
    def torch_has_it(self) -> bool:
        """Whether torch.nn has this network and this way to call it."""
        own = self.tokens or self.cells or self.learned or self.reset or self.narrow
        return self.kind != "JordanRNN" and not (own or (self.lengths and self.form == "padded"))

    @property
    def ragged(self) -> tuple[int, ...]:
        return self.lengths or (self.steps,) * (1 if self.form == "single" else self.rows)


LAYOUTS = ("plain", "turned", "backwards", "sliced", "offset", "wide", "negative", "row", "column", "windows")


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """A tensor of this shape that lies otherwise in memory.  The last three repeat values, or overlap."""
    if layout == "plain" or tensor.numel() == 0:
        return tensor
    if layout == "turned" and tensor.dim() > 1:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "backwards":
        dims = tuple(reversed(range(tensor.dim())))
        return tensor.permute(dims).contiguous().permute(dims)
    if layout in ("sliced", "wide"):  # every second element of every dimension, or of the last
        spread = [layout == "sliced" or dim == tensor.dim() - 1 for dim in range(tensor.dim())]
        shape = [2 * size + 1 if wide else size for size, wide in zip(tensor.shape, spread, strict=True)]
        room = torch.full(shape, float("nan") if tensor.is_floating_point() else -1, dtype=tensor.dtype)
        place = room[tuple(slice(1, None, 2) if wide else slice(None) for wide in spread)]
        return place.copy_(tensor)
    if layout == "offset":
        room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
        return room[1:].view(tensor.shape).copy_(tensor)
    if layout == "negative" and tensor.is_floating_point():
        return torch._neg_view(-tensor)  # type: ignore[attr-defined]
    if layout == "row":
        return tensor[:1].expand(tensor.shape)
    if layout == "column":
        return tensor[..., :1].expand(tensor.shape)
    if layout == "windows":
        strides = [1, *[2] * (tensor.dim() - 2), 1][-tensor.dim() :]
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=False)) + 1
        room = tensor.flatten().repeat(reach // tensor.numel() + 1)[:reach].contiguous()
        return room.as_strided(tensor.shape, strides)
    return tensor


class Data(NamedTuple):
    """The tensors of a case, in its dtype and as they lie in memory.

    ``x`` is padded (T, B, I) or batch-first, (T, I), or the rows (N, I) of a packed sequence; of tokens the same
    without I.  ``state`` is h0 and, of an LSTM, c0; ``weights`` the parameters, learned first states among them;
    ``grads`` one for each of y, hn, cn.
    """

    x: Tensor
    state: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    reset: Tensor | None
    table: Tensor | None
    grads: tuple[Tensor, ...]


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters."""
    rows, found = GATES[case.name] * case.hidden, {}
    for layer in range(case.layers):
        for end in ("", "_reverse")[: case.directions]:
            suffix = "" if case.is_cell else f"_l{layer}{end}"
            width = case.inputs if layer == 0 else case.units * case.directions
            found |= {f"weight_ih{suffix}": (rows, width), f"weight_hh{suffix}": (rows, case.units)}
            if case.bias:
                found |= {f"bias_ih{suffix}": (rows,), f"bias_hh{suffix}": (rows,)}
            if case.outputs:
                found[f"weight_hr{suffix}"] = (case.outputs, case.hidden)
                if case.bias and case.kind == "JordanRNN":
                    found[f"bias_hr{suffix}"] = (case.outputs,)
    return found


def data_of(case: Case) -> Data:
    generator, dtype = torch.Generator().manual_seed(case.seed), DTYPES[case.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (values * case.gain / case.hidden**0.5).to(dtype)

    weights = {name: laid_out(uniform(shape), case.weights) for name, shape in shapes(case).items()}
    table = None
    if case.tokens in ("embedding", "weight"):
        table = normal(case.vocabulary, case.inputs)
    batch = () if case.form == "single" else (case.rows,)
    lead = batch if case.is_cell else (case.steps, *batch)
    if case.batch_first and case.form == "padded" and not case.is_cell:
        lead = lead[::-1]
    if case.form in PACKED:
        lead = (sum(case.lengths),)
    if case.tokens:
        count = case.vocabulary if table is not None else case.inputs
        x = torch.randint(count, lead, generator=generator)
    else:
        x = normal(*lead, case.inputs)
        if case.odd and x.numel():
            x.view(-1)[torch.randint(x.numel(), (2,), generator=generator)] = float(case.odd)
    x = laid_out(x, case.layout)
    slots = () if case.is_cell else (case.layers * case.directions,)
    sizes = (case.units, case.hidden) if case.name == "LSTM" else (case.units,)
    state = tuple(normal(*slots, *batch, size) for size in sizes)
    state = tuple(laid_out(each, case.states) if case.states in LAYOUTS else each for each in state)
    reset = torch.rand(lead, generator=generator) < 0.3 if case.reset else None
    width = case.units * case.directions
    ys = () if case.is_cell else ((*lead, width),)
    if case.learned:
        names = ("initial_h", "initial_c")
        weights |= {name: normal(*slots, size) for name, size in zip(names, sizes, strict=False)}
    grads = [normal(*shape) for shape in (*ys, *(tuple(each.shape) for each in state))]
    return Data(x, state, weights, reset, table, tuple(laid_out(grad, case.grads) for grad in grads))


PACKED = ("sorted", "unsorted")


def network(case: Case, library: Any, weights: dict[str, Tensor]) -> Any:
    """A module of ``library`` with these weights, in their dtype and as they lie in memory."""
    options: dict[str, Any] = {"bias": case.bias}
    if case.name in ("RNN", "JordanRNN"):
        options["nonlinearity"] = case.nonlinearity
    if case.kind == "JordanRNN":
        options["output_nonlinearity"] = case.output
    if not case.is_cell:
        options |= dict(
            num_layers=case.layers, batch_first=case.batch_first, bidirectional=case.both, dropout=case.dropout
        )
        if case.name == "LSTM" and case.outputs:
            options["proj_size"] = case.outputs
        if library is fastrnn:
            wanted = {"recompute": case.recompute, "learn_initial_state": case.learned}
            options |= {name: True for name, value in wanted.items() if value}
    sizes = (case.inputs, case.hidden, *((case.outputs,) if case.kind == "JordanRNN" else ()))
    module = getattr(library, case.kind)(*sizes, dtype=next(iter(weights.values())).dtype, **options)
    for name, value in weights.items():
        module.get_parameter(name).data = value
    return module.train(case.training)


def by_path(case: Case, weights: dict[str, Tensor]) -> Any:
    """Our module, come by one of the paths that lead to it."""

    def new(weights: dict[str, Tensor]) -> Any:
        if case.narrow:
            return fastrnn.quantize_dynamic(network(case, nn if case.seed % 2 else fastrnn, weights))
        return network(case, fastrnn, weights)

    if case.path in ("converted", "compilable"):
        return fastrnn.convert(network(case, nn, weights), compilable=case.path == "compilable")
    module = new(weights)
    if case.path == "again":
        return fastrnn.convert(fastrnn.revert(module))
    if case.path == "deepcopy":
        return copy.deepcopy(module)
    if case.path == "pickle":
        return pickle.loads(pickle.dumps(module))
    if case.path == "state_dict":
        other = new({name: torch.zeros_like(value) for name, value in weights.items()})
        other.load_state_dict(module.state_dict())
        return other
    return module


def given(case: Case, x: Tensor) -> Tensor | PackedSequence:
    """The input as the call wants it."""
    return packing(case)._replace(data=x) if case.form in PACKED else x


def packing(case: Case) -> PackedSequence:
    """The places (t * B + b) of the rows of a packed batch."""
    places = torch.arange(max(case.lengths) * len(case.lengths)).view(max(case.lengths), -1)
    return pack_padded_sequence(places, torch.tensor(case.lengths), enforce_sorted=case.form == "sorted")

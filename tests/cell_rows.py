"""The table: which oracle is right about which cell of the library, and what it calls fastrnn's parameters."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import cell_loops as loops
import torch
import torchrecurrent
from cell_oracles import Row, by_module
from torch import Tensor, nn

from fastrnn import cells
from fastrnn.cell import Antisymmetric, Cell, Diagonal, Heads, Input, LowRank, Recurrent, SequenceInput, sigmoid, tanh


def one(cell: Any, x: Tensor, states: list[Tensor]) -> Any:
    """A module whose output is its one state."""
    h = cell(x, states[0])
    return h, [h]


def two(cell: Any, x: Tensor, states: list[Tensor]) -> Any:
    """A module of two states, the first of which is its output."""
    found = cell(x, tuple(states))
    return found[0], list(found)


def output_and_states(cell: Any, x: Tensor, states: list[Tensor]) -> Any:
    output, found = cell(x, tuple(states) if len(states) > 1 else states[0])
    return output, list(found) if isinstance(found, tuple) else [found]


def janet(cell: Any, x: Tensor, states: list[Tensor]) -> Any:
    h, _ = cell(x, (states[0], states[0]))  # its two states are one
    return h, [h]


def delayed(cell: Any, x: Tensor, states: list[Tensor]) -> Any:
    h = cell(x, states[0], states[-1])
    return h, [h, *states[:-1]]


def layer(*names: str) -> dict[str, tuple[str, ...]]:
    """torch.nn's names of the parameters of a layer."""
    return {f"{name}_l0": (name,) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *names)}


def whole(module: Any, x: Tensor, states: list[Tensor]) -> Any:
    """A module of torch.nn over one step."""
    y, found = module(x[None], states[0][None] if len(states) == 1 else tuple(state[None] for state in states))
    return y[0], [state[0] for state in (found if isinstance(found, tuple) else (found,))]


def torch_nn(kind: type, names: Mapping[str, Any] | None = None, state: int = 0, **options: Any) -> Callable[..., Any]:
    def make(inputs: int, hidden: int) -> Any:
        return kind(inputs, hidden, dtype=torch.float64, **options)

    return by_module(make, layer() | dict(names or {}), whole, state)


class Hardsigmoid(nn.Module):
    """torch.nn's, whose derivative is 1/6 rounded to float32 in float64, too."""

    def forward(self, v: Tensor) -> Tensor:
        return nn.functional.relu6(v + 3) / 6


def zoo(
    kind: str, call: Callable[..., Any] = one, names: Mapping[str, Any] | None = None, **options: Any
) -> Callable[..., Any]:
    def make(inputs: int, hidden: int) -> Any:
        cell = getattr(torchrecurrent, f"{kind}Cell")(inputs, hidden, dtype=torch.float64, **options)
        for name, child in cell.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(cell, name, Hardsigmoid())
        return cell

    return by_module(make, names or {}, call)


def behind(*matrices: str) -> dict[str, tuple[str, ...]]:
    """torchrecurrent's weight_hh and bias_hh, which hold several of fastrnn's."""
    return {f"{kind}_hh": tuple(f"{kind}_{name}" for name in matrices) for kind in ("weight", "bias")}


def zeros_of(name: str) -> Callable[..., Tensor]:
    return lambda p: torch.zeros_like(p[name])


def third_between(name: str) -> Callable[..., Tensor]:
    """TauGRU's blocks as torchrecurrent has them: that of the delayed state stands behind the first."""

    def blocks(p: Mapping[str, Tensor]) -> Tensor:
        first, *others = p[f"{name}_hh"].chunk(3)
        return torch.cat([first, p[f"{name}_dh"], *others])

    return blocks


def low_rank(ending: str) -> Callable[..., Tensor]:
    return lambda p: p[f"weight_{ending}_u"] @ p[f"weight_{ending}_v"]


def of_heads(gates: int, heads: int) -> Callable[..., Tensor]:
    return lambda p: loops.block_diagonal(p["weight_hh"], gates, heads)


def diagonal(p: Mapping[str, Tensor]) -> Tensor:
    return torch.diag(p["weight_hh"])


def by_ncps(mode: str) -> Callable[..., Any]:
    def step(p: Mapping[str, Tensor], x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Any:
        cell = importlib.import_module("ncps.torch").CfCCell(
            x.shape[1], states[0].shape[1], mode, backbone_units=len(p["bias_ih"])
        )
        parts = zip(("ff1", "ff2", "time_a", "time_b"), p["weight_ff"].chunk(4), p["bias_ff"].chunk(4), strict=True)
        theirs = {"backbone.0.weight": torch.cat([p["weight_ih"], p["weight_hh"]], 1), "backbone.0.bias": p["bias_ih"]}
        for name, weight, bias in parts:
            theirs |= {f"{name}.weight": weight, f"{name}.bias": bias}
        h, _ = torch.func.functional_call(cell.double(), theirs, (x, states[0], extras["ts"][:, None]))
        return h, [h]

    return step


def by_xlstm(heads: int) -> Callable[..., Any]:
    def step(p: Mapping[str, Tensor], x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Any:
        vanilla = importlib.import_module("xlstm.blocks.slstm.src.vanilla")
        matrix = p["weight_hh"].unflatten(0, (4, heads, -1)).transpose(0, 1).flatten(1, 2)
        wx, pointwise = x @ p["weight_ih"].mT, vanilla.slstm_pointwise_function_registry["slstm"]
        _, found, _ = vanilla.slstm_forward(wx[None], torch.stack(list(states)), matrix, p["bias_ih"], pointwise)
        return found[0], list(found)

    return step


def by_mingru(p: Mapping[str, Tensor], x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Any:
    """It has no bias: x and 1 are its inputs; and as many units as inputs, or a multiple."""
    module = importlib.import_module("minGRU_pytorch").minGRU
    weight = torch.cat([p["weight_ih"], p["bias_ih"][:, None]], 1)
    built = module(weight.shape[1], expansion_factor=len(weight) / 2 / weight.shape[1], proj_out=False).double()
    call = (torch.cat([x, torch.ones_like(x[:, :1])], 1)[:, None], states[0][:, None])
    h = torch.func.functional_call(built, {"to_hidden_and_gate.weight": weight}, call)[:, 0]
    return h, [h]


class MaskedGRU(Cell):
    """Not of the library: a mask of a sequence on the state that a product sees (Gal and Ghahramani, 2016)."""

    mask = SequenceInput("hidden_size")
    W, U = Input("r z n"), Recurrent("r z n")

    def step(self, x, h, *, mask):
        a, b = self.W(x), self.U(mask * h)
        z = sigmoid(a.z + b.z)
        return dict(h=(1 - z) * tanh(a.n + sigmoid(a.r + b.r) * b.n) + z * h)


def masked_gru(p: Mapping[str, Tensor], x: Tensor, states: list[Tensor], extras: Mapping[str, Tensor]) -> Any:
    h, matrix = states[0], p["weight_hh"] * extras["mask"]
    h = torch.gru_cell(x, h, p["weight_ih"], matrix, p["bias_ih"], p["bias_hh"])
    return h, [h]


TORCH_NN = [
    Row(cells.RNN(), "torch.nn", torch_nn(nn.RNN)),
    Row(cells.RNN(nonlinearity="relu"), "torch.nn", torch_nn(nn.RNN, nonlinearity="relu")),
    Row(cells.LSTM(), "torch.nn", torch_nn(nn.LSTM)),
    Row(cells.GRU(), "torch.nn", torch_nn(nn.GRU)),
    Row(
        cells.ProjectedLSTM(),
        "torch.nn",
        torch_nn(nn.LSTM, layer("weight_hr"), 1, proj_size=3),
        dict(proj_size=3),
        multiple=4,
    ),
    Row(cells.RNN(kinds={"U": LowRank(2)}), "torch.nn", torch_nn(nn.RNN, {"weight_hh_l0": low_rank("hh")})),
    Row(cells.LSTM(kinds={"U": Heads(2)}), "torch.nn", torch_nn(nn.LSTM, {"weight_hh_l0": of_heads(4, 2)}), multiple=2),
    Row(cells.RNN(kinds={"U": Diagonal()}), "torch.nn", torch_nn(nn.RNN, {"weight_hh_l0": diagonal})),
]
ZOO = [
    Row(cells.AntisymmetricRNN(), "zoo", zoo("AntisymmetricRNN")),
    Row(
        cells.AntisymmetricRNN(epsilon=0.3, nonlinearity="relu", kinds={"U": Antisymmetric(0.2)}),
        "zoo",
        zoo("AntisymmetricRNN", epsilon=0.3, gamma=0.2, nonlinearity="relu"),
    ),
    Row(
        cells.GatedAntisymmetricRNN(epsilon=0.3, kinds={"U": Antisymmetric(0.2)}),
        "zoo",
        zoo(
            "GatedAntisymmetricRNN",
            names={"bias_hh": lambda p: torch.zeros_like(p["bias_ih"].chunk(2)[0])},
            epsilon=0.3,
            gamma=0.2,
        ),
    ),
    Row(cells.ATR(), "zoo", zoo("ATR")),
    Row(cells.BR(), "zoo", zoo("BR")),
    Row(cells.NBR(), "zoo", zoo("NBR")),
    Row(cells.CFN(), "zoo", zoo("CFN")),
    Row(cells.CoRNN(), "zoo", zoo("coRNN", two)),
    Row(cells.CoRNN(dt=0.2, gamma=0.7, epsilon=1.3), "zoo", zoo("coRNN", two, dt=0.2, gamma=0.7, epsilon=1.3)),
    Row(cells.FastRNN(), "zoo", zoo("FastRNN")),
    Row(
        cells.FastGRNN(),
        "zoo",
        zoo("FastGRNN", names={"bias_ih": ("b",), "bias_hh": zeros_of("b")}, nonlinearity="sigmoid"),
    ),
    Row(
        cells.FastGRNN(kinds={"W": LowRank(2), "U": LowRank(3)}, nonlinearity="tanh"),
        "zoo",
        zoo(
            "FastGRNN",
            names={
                "bias_ih": ("b",),
                "bias_hh": zeros_of("b"),
                "weight_ih": low_rank("ih"),
                "weight_hh": low_rank("hh"),
            },
            nonlinearity="tanh",
        ),
    ),
    Row(cells.IndRNN(), "zoo", zoo("IndRNN", names={"vector_u": ("weight_hh",)}, nonlinearity="relu")),
    Row(cells.IndRNN(nonlinearity="tanh"), "zoo", zoo("IndRNN", names={"vector_u": ("weight_hh",)})),
    Row(cells.IntersectionRNN(), "zoo", zoo("IntersectionRNN", output_and_states)),
    Row(cells.JANET(), "zoo", zoo("JANET", janet)),
    Row(cells.LEM(ahead=False), "zoo", zoo("LEM", two)),
    Row(cells.LEM(ahead=False, dt=0.4), "zoo", zoo("LEM", two, dt=0.4)),
    Row(cells.LightRU(), "zoo", zoo("LightRU")),
    Row(cells.LiGRU(), "zoo", zoo("LiGRU")),
    Row(
        cells.LiGRU(nonlinearity="tanh", gate_nonlinearity="hard_sigmoid"),
        "zoo",
        zoo("LiGRU", nonlinearity="tanh", gate_nonlinearity="hard_sigmoid"),
    ),
    Row(cells.MCLSTM(), "zoo", zoo("MCLSTM", output_and_states)),
    Row(cells.MGU(), "zoo", zoo("MGU", names=behind("hh", "nh"))),
    Row(cells.MinimalRNN(), "zoo", zoo("MinimalRNN")),
    Row(cells.MiRU1(update=0.3), "zoo", zoo("MiRU1", names=behind("hh", "nh"), update_coefficient=0.3)),
    Row(cells.MiRU2(reset=0.7), "zoo", zoo("MiRU2", reset_coefficient=0.7)),
    Row(cells.MultiplicativeLSTM(), "zoo", zoo("MultiplicativeLSTM", two)),
    Row(cells.MUT1(), "zoo", zoo("MUT1", names=behind("hh", "nh"))),
    Row(cells.MUT2(), "zoo", zoo("MUT2", names=behind("hh", "nh"))),
    Row(cells.MUT3(), "zoo", zoo("MUT3", names=behind("hh", "rh", "nh"))),
    Row(cells.NAS(), "zoo", zoo("NAS", two)),
    Row(cells.OriginalLSTM(), "zoo", zoo("OriginalLSTM", two)),
    Row(cells.PeepholeLSTM(), "zoo", zoo("PeepholeLSTM", two, {"weight_ph": ("p",)})),
    Row(
        cells.PeepholeLSTM(nonlinearity="softplus", gate_nonlinearity="hard_sigmoid"),
        "zoo",
        zoo("PeepholeLSTM", two, {"weight_ph": ("p",)}, nonlinearity="softplus", gate_nonlinearity="hard_sigmoid"),
    ),
    Row(cells.RAN(), "zoo", zoo("RAN", two, {"weight_ih": ("weight_ic", "weight_ih")})),
    Row(cells.ResLSTM(), "zoo", zoo("ResLSTM", two, {"weight_ph": ("p",)})),
    Row(cells.SCRN(), "zoo", zoo("SCRN", two, behind("hh", "uh"))),
    Row(cells.SGRN(), "zoo", zoo("SGRN")),
    Row(cells.SGU(), "zoo", zoo("SGU", names=behind("gh", "hh"))),
    Row(cells.DSGU(), "zoo", zoo("DSGU", names=behind("gh", "hh"))),
    Row(cells.STAR(), "zoo", zoo("STAR")),
    *(
        Row(
            cells.TauGRU(delay=delay),
            "zoo",
            zoo("tauGRU", delayed, {f"{kind}_hh": third_between(kind) for kind in ("weight", "bias")}),
        )
        for delay in (1, 3)
    ),
    Row(cells.TRNN(), "zoo", zoo("TRNN")),
    Row(cells.TGRU(), "zoo", zoo("TGRU", two)),
    Row(cells.TLSTM(), "zoo", zoo("TLSTM", output_and_states)),
    Row(cells.UGRNN(), "zoo", zoo("UGRNN")),
    Row(cells.UnICORNN(), "zoo", zoo("UnICORNN", two, {"weight_ch": ("a",)})),
    Row(cells.UnICORNN(dt=0.5, alpha=0.9), "zoo", zoo("UnICORNN", two, {"weight_ch": ("a",)}, dt=0.5, alpha=0.9)),
    Row(
        cells.WMCLSTM(),
        "zoo",
        zoo("WMCLSTM", two, {f"{kind}_mh": (f"{kind}_mh", f"{kind}_oh") for kind in ("weight", "bias")}),
    ),
]
LOOPS = [
    *(
        Row(cells.Jordan(nonlinearity=f, output_nonlinearity=g), "loop", loops.jordan(f, g), dict(output_size=3))
        for f, g in (("tanh", "identity"), ("relu", "sigmoid"), ("tanh", "leaky_relu"), ("silu", "tanh"))
    ),
    Row(MaskedGRU(), "loop", masked_gru),
    Row(cells.ResetBeforeGRU(), "loop", loops.reset_before_gru),
    Row(cells.CoupledLSTM(), "loop", loops.coupled_lstm),
    Row(cells.LayerNormLSTM(), "loop", loops.layer_norm_lstm),
    Row(cells.LayerNormGRU(), "loop", loops.layer_norm_gru),
    Row(cells.SRU(), "loop", loops.sru),
    Row(cells.MinGRU(), "loop", loops.min_gru(True)),
    Row(cells.MinGRU(positive=False), "loop", loops.min_gru(False)),
    Row(cells.MinLSTM(), "loop", loops.min_lstm(True)),
    Row(cells.MinLSTM(positive=False), "loop", loops.min_lstm(False)),
    Row(cells.SLSTM(), "loop", loops.slstm(4), multiple=4, start=(0.5, 1.5)),
    Row(cells.SLSTM(kinds={"U": Heads(2)}), "loop", loops.slstm(2), multiple=2, start=(0.5, 1.5)),
    Row(cells.CfC(), "loop", loops.cfc("default"), dict(backbone_size=6)),
    Row(cells.CfC(mode="no_gate"), "loop", loops.cfc("no_gate"), dict(backbone_size=6)),
    Row(cells.RHN(), "loop", loops.rhn(3)),
    Row(cells.RHN(depth=5), "loop", loops.rhn(5)),
    Row(cells.LEM(dt=0.5), "loop", loops.lem(0.5)),
    Row(cells.BlockGRU(), "loop", loops.block_gru(8), dict(units=5, action_size=2), multiple=8),
    Row(
        cells.BlockGRU(kinds={"hid": Heads(2), "gru": Heads(2)}),
        "loop",
        loops.block_gru(2),
        dict(units=5, action_size=2),
        multiple=2,
    ),
]
PACKAGES = [
    Row(cells.CfC(), "ncps", by_ncps("default"), dict(backbone_size=6), needs="ncps.torch"),
    Row(cells.CfC(mode="no_gate"), "ncps", by_ncps("no_gate"), dict(backbone_size=6), needs="ncps.torch"),
    Row(cells.SLSTM(), "xlstm", by_xlstm(4), multiple=4, start=(0.5, 1.5), needs="xlstm.blocks.slstm.src.vanilla"),
    Row(cells.MinGRU(), "mingru", by_mingru, start=(0.1, 1.0), needs="minGRU_pytorch"),
]
ROWS = [*TORCH_NN, *ZOO, *LOOPS, *PACKAGES]

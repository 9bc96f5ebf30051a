"""Initial values for recurrent networks, by scheme.  Each function changes a model in place and returns it::

    rnn = fastrnn.init.orthogonal_(fastrnn.init.xavier_uniform_(fastrnn.init.forget_bias_(fastrnn.LSTM(32, 64))))

A scheme applies to every recurrent module of the model (``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells, torch's or
fastrnn's, ``fastrnn.JordanRNN``, ``fastrnn.Network`` and ``fastrnn.NetworkCell``; all layers and directions) that has
what it sets, and leaves all other values as they are.  Of any cell, what is said of ``weight_ih`` is meant of all its
``Input`` matrices, and what is said of ``weight_hh`` of all its ``Recurrent`` ones that are dense or of heads.  It
raises ValueError where there is none, or where what it sets is computed, by a parametrization such as weight_norm:
initialise before parametrizing.

The parameters of torch.nn hold one block of H rows a gate, so a scheme that was published for one matrix is applied to
each block by itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from fastrnn.cell import Dense, Heads, Input, Recurrent
from fastrnn.jordan import JordanRNN
from fastrnn.kinds import kind
from fastrnn.modes import CELLS
from fastrnn.network.definition import Definition

Model = TypeVar("Model", bound=nn.Module)
Found = TypeVar("Found")


def orthogonal_(model: Model, gain: float = 1.0, generator: Generator | None = None) -> Model:
    """Recurrent matrices that keep lengths: ``W = gain * Q`` with ``Q^T Q = I``, one random Q for each gate.

    Sets each gate's block (H, P) of ``weight_hh`` and, where h is W_hr times something, ``weight_hr`` (P, H); of a
    matrix that is not square the rows or the columns, whichever are fewer, are orthonormal.  A product of T such square
    matrices has singular values gain^T, so with gain 1 a linear network neither vanishes nor explodes.

    Source: Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (2014).
    """
    blocks = [block for module in _recurrent(model) for block in _blocks(module, "weight_hh", "weight_hr")]
    for block in _some(blocks, model, "recurrent weights"):
        draft = torch.empty_like(block, dtype=torch.promote_types(block.dtype, torch.float32))  # QR has no narrower one
        block.copy_(nn.init.orthogonal_(draft, gain, generator))
    return model


def xavier_uniform_(model: Model, gain: float = 1.0, generator: Generator | None = None) -> Model:
    """Input matrices that keep the variance of signals and of gradients: ``a = gain * sqrt(6 / (I + H))``, drawn from
    ``U(-a, a)``.

    Sets each gate's block (H, I) of ``weight_ih``.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).
    """
    blocks = [block for module in _recurrent(model) for block in _blocks(module, "weight_ih")]
    for block in _some(blocks, model, "input weights"):
        nn.init.xavier_uniform_(block, gain, generator)
    return model


def forget_bias_(model: Model, value: float = 1.0) -> Model:
    """An LSTM that remembers from the start: ``f = sigmoid(value + ...)``, with 1 some 0.73 instead of 0.5.

    torch.nn adds two biases, so the forget gate's block (H,) of ``bias_ih`` is set to ``value`` and that of ``bias_hh``
    to 0.  Modules other than LSTM have no forget gate and stay as they are; of a cell of the user's or the library's, a
    gate of the name f is one.

    Source: Gers, Schmidhuber, Cummins, "Learning to forget" (2000); Jozefowicz, Zaremba, Sutskever, "An empirical
    exploration of recurrent network architectures" (2015).
    """
    modules = _recurrent(model)
    pairs = [(block, value) for module in modules for block in _gate(module, "bias_ih", "f")]
    pairs += [(block, 0.0) for module in modules for block in _gate(module, "bias_hh", "f")]
    for block, bias in _some(pairs, model, "LSTM with biases"):
        nn.init.constant_(block, bias)
    return model


def chrono_(model: Model, longest: float, generator: Generator | None = None) -> Model:
    """Gates that remember from the start for 2 to ``longest`` steps, some units for few and some for many.

    A gate ``sigmoid(b)`` forgets within some ``1 + e^b`` steps.  So of an LSTM ``b_f = log(u)`` and ``b_i = -b_f``, and
    of a GRU ``b_z = log(u)``, with u drawn from ``U(1, longest - 1)`` for each unit.  These blocks (H,) of ``bias_ih``
    are set and those of ``bias_hh`` are 0; all other biases, and modules other than LSTM and GRU, stay as they are.  A
    cell of the user's or the library's with gates of the names f and i is taken for an LSTM.

    Raises:
        ValueError: ``longest`` is not greater than 2, or there is no LSTM or GRU with biases.

    Source: Tallec, Ollivier, "Can recurrent neural networks warp time?" (2018), whose GRU keeps where z is small;
    torch.nn's keeps where it is large.
    """
    if not longest > 2:
        raise ValueError(f"longest must be greater than 2, got {longest}")
    opposed: list[tuple[Tensor, Tensor | None]] = []  # what keeps, and what lets new values in where that has a bias
    zeros: list[Tensor] = []
    for module in _recurrent(model):
        forget, enter = _gate(module, "bias_ih", "f"), _gate(module, "bias_ih", "i")
        if forget and enter:
            opposed += zip(forget, enter, strict=True)
            zeros += _gate(module, "bias_hh", "f") + _gate(module, "bias_hh", "i")
        elif kind(module) in ("GRU", "GRUCell"):
            opposed += [(block, None) for block in _gate(module, "bias_ih", "z")]
            zeros += _gate(module, "bias_hh", "z")
    for keeping, entering in _some(opposed, model, "LSTM or GRU with biases"):
        keeping.uniform_(1, longest - 1, generator=generator).log_()
        if entering is not None:
            entering.copy_(-keeping)
    for block in zeros:
        block.zero_()
    return model


def identity_(model: Model, gain: float = 1.0, std: float = 0.001, generator: Generator | None = None) -> Model:
    """The IRNN, an Elman network of ReLUs that copies its state until it learns not to: ``W_hh = gain * I``, biases 0
    and ``W_ih`` drawn from ``N(0, std^2)``.

    Modules other than ``nn.RNN`` and ``nn.RNNCell`` with ``nonlinearity="relu"`` stay as they are.

    Source: Le, Jaitly, Hinton, "A simple way to initialize recurrent networks of rectified linear units" (2015), with
    gain 1, and 0.01 where little memory is needed.
    """
    relus = [module for module in _recurrent(model) if getattr(module, "nonlinearity", None) == "relu"]
    for module in _some(relus, model, "RNN of ReLUs"):
        for block in _blocks(module, "weight_hh"):
            nn.init.eye_(block).mul_(gain)
        for block in _blocks(module, "bias_ih", "bias_hh"):
            nn.init.zeros_(block)
        for block in _blocks(module, "weight_ih"):
            nn.init.normal_(block, 0.0, std, generator)
    return model


def _recurrent(model: nn.Module) -> list[nn.Module]:
    classes = nn.RNNBase | nn.RNNCellBase | JordanRNN | Definition
    return [module for module in model.modules() if isinstance(module, classes)]


def _gate(module: Any, what: str, gate: str) -> list[Tensor]:
    """The rows of one gate in the parameters of a kind, "bias_ih" or "bias_hh", of every layer and direction."""
    if isinstance(module, Definition):
        return [block for block, own in _cell_blocks(module, what) if own == gate]
    own = kind(module)
    gates = next((cell.gates for mode, cell in CELLS.items() if own and mode == own.removesuffix("Cell")), ())
    return _blocks(module, what)[gates.index(gate) :: len(gates)] if gate in gates else []


def _cell_blocks(module: Definition, *kinds: str) -> list[tuple[Tensor, str | None]]:
    """Each gate's rows in the parameters of a cell, and its name: kinds as torch.nn's names of them."""
    wanted = {"ih": Input, "hh": Recurrent}
    found: list[tuple[Tensor, str | None]] = []
    for name, matrix in module.parts.matrices.items():
        for what in kinds:
            stem, _, side = what.partition("_")
            if side not in wanted or not isinstance(matrix, wanted[side]):
                continue
            if stem == "weight" and not isinstance(module.parts.kinds[name], Dense | Heads):
                continue
            parameter_name = f"{stem}_{module.parts.names[name]}"
            for own, parameter in module.named_parameters():
                if own == parameter_name or own.startswith(f"{parameter_name}_l"):
                    rows = parameter.detach().split(len(parameter) // matrix.blocks)
                    found += zip(rows, matrix.gates or (None,), strict=True)
    return found


def _blocks(module: Any, *kinds: str) -> list[Tensor]:
    """Each gate's own rows of the module's parameters of these kinds, to be written to."""
    if isinstance(module, Definition):
        return [block for block, _ in _cell_blocks(module, *kinds)]
    if isinstance(module, JordanRNN):
        names = module._names
    else:
        names = getattr(module, "_flat_weights_names", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
    blocks: list[Tensor] = []
    for name in names:
        parameter = getattr(module, name) if name.startswith(kinds) else None
        if parameter is None:  # of another kind, or a bias that the cell goes without
            continue
        if not isinstance(parameter, nn.Parameter):
            raise ValueError(f"{name} of {type(module).__name__} is computed, not a parameter: initialise it before")
        one = name.startswith("weight_hr")  # the only matrix that has no gates
        blocks += parameter.detach().split(parameter.shape[0] if one else module.hidden_size)
    return blocks


def _some(found: list[Found], model: nn.Module, what: str) -> list[Found]:
    if not found:
        raise ValueError(f"{type(model).__name__} has no {what} to initialise")
    return found

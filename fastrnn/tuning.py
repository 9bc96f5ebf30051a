"""`tune`: measures ahead what :func:`fastrnn.use_tuning` would measure at the first call of a kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn.choices import Choice, table, use_tuning
from fastrnn.modules import GRU, LSTM, RNN

_CLASSES: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}


class TuningCase(NamedTuple):
    """One network and the shape of its calls: ``cell`` is "RNN", "LSTM" or "GRU", ``batch`` B, ``steps`` T; ``packed``
    lengths fall evenly from T to T / 4; ``training`` False times inference, forward alone."""

    cell: str
    input_size: int
    hidden_size: int
    batch: int
    steps: int
    dtype: torch.dtype = torch.float32
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    packed: bool = False
    training: bool = True


def tune(
    model_or_cases: nn.Module | Iterable[TuningCase], *inputs: Any, device: torch.device | str = "cuda", **keywords: Any
) -> list[Choice]:
    """Finds the fastest path of every kind of call that is not known yet: for a model, of the calls of fastrnn's
    modules in ``model(*inputs, **keywords)``, in training and in inference; or of a list of :class:`TuningCase`.

    Returns all that is known of the device.  Kinds, buckets of sizes and where the results are kept:
    :mod:`fastrnn.choices`.

    Raises:
        TypeError: neither a module nor cases were given.
        ValueError: a case names no cell of torch.nn's.
    """
    device = torch.device(device)
    if isinstance(model_or_cases, nn.Module):
        with use_tuning():
            for training in (False, True):
                with torch.set_grad_enabled(training):
                    model_or_cases(*inputs, **keywords)
        return table(device).all()
    if isinstance(model_or_cases, (str, TuningCase)) or not isinstance(model_or_cases, Iterable):
        raise TypeError(f"expected a module or an iterable of TuningCase, got {type(model_or_cases).__name__}")
    for case in model_or_cases:
        if not isinstance(case, TuningCase):
            raise TypeError(f"expected a TuningCase, got {type(case).__name__}")
        _run(case, device)
    return table(device).all()


def _run(case: TuningCase, device: torch.device) -> None:
    if case.cell not in _CLASSES:
        raise ValueError(f"expected a cell of {', '.join(_CLASSES)}, got {case.cell!r}")
    projection = dict(proj_size=case.proj_size) if case.proj_size else {}
    module = _CLASSES[case.cell](
        case.input_size, case.hidden_size, num_layers=case.num_layers, bidirectional=case.bidirectional,
        device=device, dtype=case.dtype, **projection,
    )  # fmt: skip
    x = torch.randn(case.steps, case.batch, case.input_size, device=device, dtype=case.dtype)
    x.requires_grad_(case.training)
    given: Any = x
    if case.packed:
        given = pack_padded_sequence(
            x, torch.linspace(case.steps, max(1, case.steps // 4), case.batch, dtype=torch.float64, device="cpu").long()
        )
    with use_tuning(), torch.set_grad_enabled(case.training):
        module(given)

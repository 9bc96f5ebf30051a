"""Published cells, each its equations, to import or to start one's own from; one file a family.

A cell is traced where it is defined, so the families come with the first cell that is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrnn.cells.cfc import CfC
    from fastrnn.cells.dreamer import BlockGRU
    from fastrnn.cells.gated import (
        ATR,
        BR,
        CFN,
        DSGU,
        NBR,
        SGRN,
        SGU,
        STAR,
        IntersectionRNN,
        LightRU,
        MinimalRNN,
        MiRU1,
        MiRU2,
    )
    from fastrnn.cells.gru import GRU, MGU, UGRNN, LiGRU, ResetBeforeGRU, TauGRU
    from fastrnn.cells.jordan import SCRN, Jordan
    from fastrnn.cells.lstm import JANET, LSTM, CoupledLSTM, OriginalLSTM, PeepholeLSTM, ProjectedLSTM
    from fastrnn.cells.lstm_forms import MCLSTM, NAS, RAN, WMCLSTM, MultiplicativeLSTM, ResLSTM
    from fastrnn.cells.mut import MUT1, MUT2, MUT3
    from fastrnn.cells.norms import LayerNormGRU, LayerNormLSTM
    from fastrnn.cells.oscillators import LEM, CoRNN, UnICORNN
    from fastrnn.cells.parallel import SRU, TGRU, TLSTM, TRNN, MinGRU, MinLSTM
    from fastrnn.cells.rhn import RHN
    from fastrnn.cells.rnn import RNN, AntisymmetricRNN, GatedAntisymmetricRNN, IndRNN
    from fastrnn.cells.tiny import FastGRNN, FastRNN
    from fastrnn.cells.xlstm import SLSTM

__all__ = [
    "ATR",
    "AntisymmetricRNN",
    "BR",
    "BlockGRU",
    "CFN",
    "CfC",
    "CoRNN",
    "CoupledLSTM",
    "DSGU",
    "FastGRNN",
    "FastRNN",
    "GRU",
    "GatedAntisymmetricRNN",
    "IndRNN",
    "IntersectionRNN",
    "JANET",
    "Jordan",
    "LEM",
    "LSTM",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LiGRU",
    "LightRU",
    "MCLSTM",
    "MGU",
    "MUT1",
    "MUT2",
    "MUT3",
    "MiRU1",
    "MiRU2",
    "MinGRU",
    "MinLSTM",
    "MinimalRNN",
    "MultiplicativeLSTM",
    "NAS",
    "NBR",
    "OriginalLSTM",
    "PeepholeLSTM",
    "ProjectedLSTM",
    "RAN",
    "RHN",
    "RNN",
    "ResLSTM",
    "ResetBeforeGRU",
    "SCRN",
    "SGRN",
    "SGU",
    "SLSTM",
    "SRU",
    "STAR",
    "TGRU",
    "TLSTM",
    "TRNN",
    "TauGRU",
    "UGRNN",
    "UnICORNN",
    "WMCLSTM",
]

_FAMILIES = (
    "cfc",
    "dreamer",
    "gated",
    "gru",
    "jordan",
    "lstm",
    "lstm_forms",
    "mut",
    "norms",
    "oscillators",
    "parallel",
    "rhn",
    "rnn",
    "tiny",
    "xlstm",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for family in _FAMILIES:
        found = vars(importlib.import_module(f"{__name__}.{family}"))
        globals().update({each: found[each] for each in __all__ if each in found})
    return globals()[name]


def __dir__() -> list[str]:
    return [*globals(), *__all__]

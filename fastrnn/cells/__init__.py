"""Published cells, each its equations, to import or to start one's own from; one file a family."""

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

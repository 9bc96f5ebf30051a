"""The modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastrnn.cell.declare import Cell
from fastrnn.network.calls import OneStep, Sequences


class Network(Sequences):
    """Any recurrent cell over whole sequences, in layers and one or both directions, as torch.nn.LSTM is one.

    ``Network(cell, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, learn_initial_state=False, recompute=False, zoneout=0.0,
    recurrent_dropout=0.0, recurrent_dropout_per="sequence", weight_dropout=0.0, **sizes)``

    Args:
        cell: a :class:`fastrnn.cell.Cell` or its class.
        input_size: I, the features of x.
        hidden_size: H, the units of what the cell gives no other size.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as of torch.nn.LSTM.
        learn_initial_state: whether parameters ``initial_<state>`` (num_layers * D, size), zeros at first, stand where
            there is no ``hx``, and at the start of every piece.
        recompute: whether backward computes each of about sqrt(T) segments of steps again, from the states between
            them: the same results in a fraction of the memory and some 1.4 times the time.
        zoneout: the probability that a unit of a state keeps its value; of all states, or by name.  In evaluation a
            state is the mean.
        recurrent_dropout: the probability that a unit of what recurrent matrices are applied to is dropped in training,
            by one mask a "sequence" or one a "step", as ``recurrent_dropout_per`` says.
        weight_dropout: the probability that a weight of a recurrent matrix is dropped in training, for a call.
        sizes: the units of what the cell gives sizes of other names, as ``proj_size=32``; H by default.

    Parameters are those that the cell declares, of every layer and direction, as ``weight_ih_l0`` and
    ``weight_hh_l0_reverse``.

    Raises:
        TypeError, ValueError: an argument that makes no network.
    """

    recurrent_dropout: float
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    learn_initial_state: bool
    recompute: bool

    def __init__(
        self,
        cell: Cell | type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        zoneout: float | Mapping[str, float] = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_per: str = "sequence",
        weight_dropout: float = 0.0,
        **sizes: int,
    ) -> None:
        super().__init__(cell, input_size, hidden_size, bias, sizes)
        by_state = dict.fromkeys(self.state_names, zoneout) if isinstance(zoneout, (int, float)) else dict(zoneout)
        for name in by_state:
            if name not in self.state_names:
                raise ValueError(f"zoneout: {type(self.cell).__name__} has no state {name!r}, only {self.state_names}")
        rates = {f"zoneout of {name}": rate for name, rate in by_state.items()}
        for name, rate in (rates | dict(recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout)).items():
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ValueError(f"{name} should be a probability from 0 to below 1, got {rate!r}")
        if recurrent_dropout_per not in ("sequence", "step"):
            raise ValueError(f"recurrent_dropout_per should be 'sequence' or 'step', got {recurrent_dropout_per!r}")
        self.zoneout: dict[str, float] = {name: float(rate) for name, rate in by_state.items() if rate}
        self.recurrent_dropout, self.recurrent_dropout_per = float(recurrent_dropout), recurrent_dropout_per
        self.weight_dropout: float = float(weight_dropout)
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError("num_layers must be greater than zero")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, float(dropout)
        self.bidirectional, self.learn_initial_state, self.recompute = bidirectional, learn_initial_state, recompute
        factory = dict(device=device, dtype=dtype)
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else directions * self.output_size
            if self.cell.square and inputs != hidden_size:
                raise ValueError(f"{type(self.cell).__name__} wants hidden_size features in every layer, got {inputs}")
            for d in range(directions):
                self._names = self._register(f"_l{layer}" + "_reverse" * d, inputs, factory)
        if learn_initial_state:
            for name, size in zip(self.state_names, self.state_sizes, strict=True):
                shape = num_layers * directions, size
                self.register_parameter(f"initial_{name}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()


class NetworkCell(OneStep):
    """One step of any recurrent cell, as torch.nn.LSTMCell is of one.

    ``NetworkCell(cell, input_size, hidden_size, bias=True, device=None, dtype=None, **sizes)``; arguments as of
    :class:`Network`, parameters as of one direction of one of its layers, without an ending.
    """

    def __init__(
        self, cell: Cell | type[Cell], input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
        dtype: Any = None, **sizes: int,
    ) -> None:  # fmt: skip
        super().__init__(cell, input_size, hidden_size, bias, sizes)
        self._names = self._register("", input_size, dict(device=device, dtype=dtype))
        self.reset_parameters()

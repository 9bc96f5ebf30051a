"""`Network` and `NetworkCell`: any cell (:mod:`fastrnn.cell`) as a module, over whole sequences and step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastrnn import fused, sequences
from fastrnn.cell.declare import Cell, Recurrent, SequenceInput
from fastrnn.cell.equations import parameter_shapes
from fastrnn.cell.regularise import Regularised, operand_sizes
from fastrnn.cell.trace import trace
from fastrnn.checks import is_tokens, packed_rows
from fastrnn.dynamo import traced
from fastrnn.fused.layer import Steps, direction
from fastrnn.storage import require_memory


class _Definition(nn.Module):
    """A cell with sizes: what both modules have in common.

    Attributes:
        cell: the definition, an instance of a :class:`fastrnn.cell.Cell`.
        input_size, hidden_size, bias: as of torch.nn's modules.
        sizes: the number of units of each size that the cell names, "input_size" and "hidden_size" among them.
    """

    cell: Cell

    def __init__(
        self, cell: Cell | type[Cell], input_size: int, hidden_size: int, bias: bool, sizes: dict[str, int]
    ) -> None:
        super().__init__()
        if isinstance(cell, type) and issubclass(cell, Cell):
            cell = cell()
        if not isinstance(cell, Cell):
            raise TypeError(f"cell should be a fastrnn.cell.Cell, or its class, got: {type(cell).__name__}")
        if not isinstance(bias, bool):
            raise TypeError(f"bias should be of type bool, got: {type(bias).__name__}")
        self.cell, self.bias = cell, bias
        traced = trace(cell)
        known = {node.size for node in traced.graph.nodes if node.size} | {"input_size", "hidden_size"}
        for name in sizes:
            if name not in known:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        found = {"input_size": input_size, "hidden_size": hidden_size}
        found |= {str(name): sizes.get(str(name), hidden_size) for name in sorted(known - set(found))}
        for name, size in found.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be greater than zero")
        if cell.square and input_size != hidden_size:
            raise ValueError(
                f"{type(cell).__name__} meets x with its states unit by unit: expected input_size to be hidden_size, "
                f"{hidden_size}, got {input_size}"
            )
        self.input_size, self.hidden_size, self.sizes = input_size, hidden_size, found
        self._traced, self._compiled = traced, fused.prepare(cell)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the states, in the order of ``hx``."""
        return tuple(self._traced.parts.states)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The number of units of each state."""
        return tuple(self.sizes[size] for size in self._traced.parts.states.values())

    @property
    def output_size(self) -> int:
        """The number of units of the output of one direction."""
        return self.sizes[str(self._traced.output.size)]

    def _register(self, ending: str, inputs: int, factory: dict[str, Any]) -> list[str]:
        """Parameters of one direction, their names with ``ending``; returns the names without."""
        own = self.sizes | {"input_size": inputs}
        shapes = parameter_shapes(self._traced.parts, self._traced.columns, own, self.bias)
        for name, shape in shapes.items():
            self.register_parameter(name + ending, nn.Parameter(torch.empty(shape, **factory)))
        return list(shapes)

    def reset_parameters(self) -> None:
        """Draws parameters without an ``init`` of their own from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn's do."""
        bound, parts = 1 / math.sqrt(self.hidden_size), self._traced.parts
        fixed = {name: each.init for name, each in (parts.vectors | parts.scalars).items() if each.init is not None}
        for name, parameter in self.named_parameters():
            stem = name.rpartition("_l")[0] if isinstance(self, Network) else name
            stem = stem or name
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)
            elif stem in fixed:
                nn.init.constant_(parameter, fixed[stem])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_traced", "_compiled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._traced, self._compiled = trace(self.cell), fused.prepare(self.cell)

    def _of_direction(self, ending: str) -> dict[str, Tensor]:
        """The parameters of one direction, by name without its ending."""
        own = self._parameters  # of torch.nn.Module: its attributes take a microsecond each
        found = {name: own.get(name + ending) for name in self._names}
        return {name: getattr(self, name + ending) if each is None else each for name, each in found.items()}

    def _first(self) -> Tensor:
        """The first parameter, whose dtype and device are those of all."""
        found = next(iter(self._parameters.values()), None)
        return next(self.parameters()) if found is None else found

    def _extras(self, given: dict[str, Any]) -> dict[str, Tensor]:
        wanted = self._traced.parts.extras
        for name in given:
            if name not in wanted:
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {name!r}")
        for name in wanted:
            if name not in given:
                raise TypeError(
                    f"{type(self).__name__}.forward() missing the keyword argument {name!r}, of {self.cell}"
                )
        return given

    def extra_repr(self) -> str:
        named = [f"{name}={size}" for name, size in self.sizes.items() if name not in ("input_size", "hidden_size")]
        return ", ".join([repr(self.cell), str(self.input_size), str(self.hidden_size), *named]) + (
            "" if self.bias else ", bias=False"
        )


class Network(_Definition):
    """Any recurrent cell over whole sequences, in layers and one or both directions, as torch.nn.LSTM is one.

    ``Network(cell, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, *, learn_initial_state=False, zoneout=0.0, recurrent_dropout=0.0,
    recurrent_dropout_per="sequence", weight_dropout=0.0, **sizes)``

    Args:
        cell: a :class:`fastrnn.cell.Cell` or its class.
        input_size: I, the features of x.
        hidden_size: H, the units of what the cell gives no other size.
        num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as of torch.nn.LSTM.
        learn_initial_state: whether parameters ``initial_<state>`` (num_layers * D, size), zeros at first, stand where
            there is no ``hx``, and at the start of every piece.
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
        self.zoneout = {name: float(rate) for name, rate in by_state.items() if rate}
        self.recurrent_dropout, self.recurrent_dropout_per = float(recurrent_dropout), recurrent_dropout_per
        self.weight_dropout = float(weight_dropout)
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError("num_layers must be greater than zero")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, float(dropout)
        self.bidirectional, self.learn_initial_state = bidirectional, learn_initial_state
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
                self.register_parameter(f"initial_{name}", nn.Parameter(torch.empty(shape, **factory)))
        self.reset_parameters()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: sequences.Lengths | None = None,
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
        **extras: Any,
    ) -> tuple[Any, Any]:
        """Runs the network.

        Args:
            input: (T, B, I), batch-first (B, T, I), one sequence (T, I), or packed; or tokens, without I, from 0 to
                I - 1, which stand for one-hot rows.
            hx: the states before the first step, (num_layers * D, B, size) each, for one sequence without B; of several
                states a tuple.  None is zeros, or the learned state.
            lengths, reset, embedding: see :mod:`fastrnn.options`.
            extras: what the cell takes beside x, by name, shaped as the input is: of a step (T, B, size) or (T, B), of
                a sequence (B, size) or (B,); packed where the input is.

        Returns:
            The output of the last layer, (T, B, D * size), and the states behind the last step, shaped as ``hx``.

        Raises:
            TypeError, ValueError, RuntimeError: an argument, shape, dtype or device does not fit; the message has what
                was expected and what came.
        """
        if not torch.compiler.is_compiling() and traced():
            raise NotImplementedError(
                f"{type(self.cell).__name__}: a trace would hold T, the number of steps of its example; torch.export "
                "the module, for one T"
            )
        extras = self._extras(extras)
        if embedding is not None:
            look = (lambda t: F.embedding(t, embedding)) if isinstance(embedding, Tensor) else embedding
            if not isinstance(embedding, (Tensor, nn.Embedding)):
                raise TypeError(f"embedding must be an nn.Embedding or its weight, got {type(embedding).__name__}")
            input = input._replace(data=look(input.data)) if isinstance(input, PackedSequence) else look(input)
        if lengths is None and reset is None:
            return self._run(input, hx, extras)
        return self._run_pieces(input, hx, lengths, reset, extras)

    def _run_pieces(self, input: Any, hx: Any, lengths: Any, reset: Any, extras: dict[str, Tensor]) -> Any:
        """The extras go along as more features of x, those of a sequence at each of its steps."""
        if extras and isinstance(input, Tensor):
            if is_tokens(input):
                raise ValueError("lengths and reset with extras want vectors, not tokens; give an embedding")
            single = input.dim() == 2
            features, widths = [input], {}
            for name, tensor in extras.items():
                declared = self._traced.parts.extras[name]
                tensor = tensor.unsqueeze(-1) if declared.size is None else tensor
                if isinstance(declared, SequenceInput) and not single:
                    tensor = tensor.unsqueeze(1 if self.batch_first else 0)
                widths[name] = tensor.shape[-1]
                features.append(tensor.expand(*input.shape[:-1], -1).to(input.dtype))
            input = torch.cat(features, -1)

        def run(packed: PackedSequence, state: Any) -> Any:
            if not extras or not isinstance(packed, PackedSequence):
                return self._run(packed, state, extras)
            x, *others = packed.data.split([self.input_size, *widths.values()], -1)
            own: dict[str, Any] = {}
            for name, tensor in zip(extras, others, strict=True):
                declared = self._traced.parts.extras[name]
                tensor = tensor.squeeze(-1) if declared.size is None else tensor
                if isinstance(declared, SequenceInput):
                    own[name] = tensor[: int(packed.batch_sizes[0])]
                else:
                    own[name] = packed._replace(data=tensor)
            return self._run(packed._replace(data=x), state, own)

        initial = [getattr(self, f"initial_{name}", None) for name in self.state_names]
        return sequences.run_pieces(run, self, input, hx, initial, lengths, reset)

    def _run(self, input: Any, hx: Any, extras: dict[str, Any]) -> Any:
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        if not isinstance(x, Tensor):
            raise TypeError(f"expected input to be a tensor or a PackedSequence, got {type(x).__name__}")
        tokens = is_tokens(x)
        x = x.long() if tokens else x
        rank = x.dim() + tokens
        if rank not in ((2,) if packed else (2, 3)):
            raise ValueError(f"{type(self.cell).__name__}: Expected input to be 2D or 3D, got {rank}D instead")
        single, turn = rank == 2 and not packed, self.batch_first and rank == 3
        x = x.transpose(0, 1) if turn else x.unsqueeze(1) if single else x
        weight = self._first()
        if not tokens and x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if not tokens and x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"input must have the type {weight.dtype}, got type {x.dtype}")
        order = input.sorted_indices if packed else None
        if packed:
            rows = packed_rows(input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            steps = Steps(len(input.batch_sizes), rows, x.shape[0], input.batch_sizes)
        else:
            steps = Steps(x.shape[0], x.shape[1], x.shape[0] * x.shape[1])
            if 0 in x.shape[:1]:
                raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        states = self._states(hx, steps.batch, single, order, weight)
        own = {name: self._extra(name, tensor, steps, single, turn, order) for name, tensor in extras.items()}
        require_memory(x, *states, *own.values())
        y, ends = self._layers(x if packed else x.flatten(0, 1), steps, states, own)
        if not packed:
            y = y.unflatten(0, (steps.count, steps.batch))
        y = y.transpose(0, 1) if turn else y.squeeze(1) if single else y
        if order is not None:
            ends = [end.index_select(1, input.unsorted_indices) for end in ends]
        ends = [end.squeeze(1) if single else end for end in ends]
        output = PackedSequence(y, input.batch_sizes, order, input.unsorted_indices) if packed else y
        return output, ends[0] if len(ends) == 1 else tuple(ends)

    def _states(self, hx: Any, rows: int, single: bool, order: Tensor | None, weight: Tensor) -> list[Tensor]:
        slots = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            learned = [getattr(self, f"initial_{name}", None) for name in self.state_names]
            return [
                weight.new_zeros(slots, rows, size) if own is None else own.unsqueeze(1).expand(-1, rows, -1)
                for own, size in zip(learned, self.state_sizes, strict=True)
            ]
        given = (hx,) if isinstance(hx, Tensor) else hx
        if not isinstance(given, (tuple, list)) or len(given) != len(self.state_names):
            got = len(given) if isinstance(given, (tuple, list)) else type(hx).__name__
            raise RuntimeError(f"expected {len(self.state_names)} states, {', '.join(self.state_names)}, got {got}")
        found = []
        for name, state, size in zip(self.state_names, given, self.state_sizes, strict=True):
            wanted = (slots, size) if single else (slots, rows, size)
            if not isinstance(state, Tensor) or tuple(state.shape) != wanted:
                got = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
                raise RuntimeError(f"Expected state {name} size {wanted}, got {got}")
            if state.dtype != weight.dtype:
                raise ValueError(f"state {name} must have the type {weight.dtype}, got type {state.dtype}")
            if state.device != weight.device:
                raise RuntimeError(f"Expected state {name} on {weight.device}, got {state.device}")
            state = state.unsqueeze(1) if single else state
            found.append(state if order is None else state.index_select(1, order))
        return found

    def _extra(self, name: str, given: Any, steps: Steps, single: bool, turn: bool, order: Tensor | None) -> Tensor:
        """An extra as a layer takes it: (N, size) or (N,) of a step, (B, size) or (B,) of a sequence."""
        declared = self._traced.parts.extras[name]
        tail = () if declared.size is None else (self.sizes[declared.size],)
        if isinstance(declared, SequenceInput):
            wanted: tuple[int, ...] = tail if single else (steps.batch, *tail)
            tensor = given
        elif steps.sizes is not None:
            wanted, tensor = (steps.rows, *tail), given.data if isinstance(given, PackedSequence) else given
        else:
            lead = (steps.count,) if single else (steps.batch, steps.count) if turn else (steps.count, steps.batch)
            wanted, tensor = (*lead, *tail), given
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != wanted:
            got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise RuntimeError(f"Expected {name} of size {list(wanted)}, got {got}")
        tensor = tensor.to(self._first().dtype)
        if isinstance(declared, SequenceInput):
            tensor = tensor.unsqueeze(0) if single else tensor
            return tensor if order is None else tensor.index_select(0, order)
        if steps.sizes is not None:
            return tensor
        tensor = tensor.unsqueeze(1) if single else tensor.transpose(0, 1) if turn else tensor
        return tensor.flatten(0, 1)

    def _layers(
        self, x: Tensor, steps: Steps, states: list[Tensor], extras: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers over rows (N, I)."""
        directions = 2 if self.bidirectional else 1
        cell = self._regularised()
        compiled = self._compiled if cell is self.cell else fused.prepare(cell)
        scan = fused.choose(compiled, x.device, states[0].dtype)
        ends: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = F.dropout(x, self.dropout, True)
            outputs = []
            for d in range(directions):
                ending, slot = f"_l{layer}" + "_reverse" * d, layer * directions + d
                parameters = self._of_direction(ending)
                if self.training and self.weight_dropout:
                    parameters = {name: self._drop_weight(name, each) for name, each in parameters.items()}
                own, more = [state[slot] for state in states], extras | self._masks(cell, steps, states[0])
                y, last = direction(scan, compiled, parameters, x, steps._replace(reverse=d == 1), own, more)
                outputs.append(y)
                for all_ends, end in zip(ends, last, strict=True):
                    all_ends.append(end)
            x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        return x, [each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each) for each in ends]

    def _regularised(self) -> Cell:
        """The cell with what is dropped in it, in training or in evaluation."""
        dropped = self.recurrent_dropout_per if self.training and self.recurrent_dropout else None
        if not self.zoneout and dropped is None:
            return self.cell
        sizes = tuple(dict.fromkeys(operand_sizes(self.cell).values()))
        return Regularised(self.cell, self.zoneout, self.training, dropped, sizes)

    def _masks(self, cell: Cell, steps: Steps, like: Tensor) -> dict[str, Tensor]:
        """The masks of one direction of one layer, from torch's generator: those of zoneout, then what is kept."""
        if not isinstance(cell, Regularised) or not self.training:
            return {}
        found = {}
        for name, rate in self.zoneout.items():
            size = self.sizes[self._traced.parts.states[name]]
            found[f"zoneout_{name}"] = like.new_empty(steps.rows, size).bernoulli_(rate)
        for size in cell.sizes:
            rows, kept = steps.batch if cell.dropped == "sequence" else steps.rows, 1 - self.recurrent_dropout
            found[f"keep_{size}"] = like.new_empty(rows, self.sizes[size]).bernoulli_(kept) / kept
        return found

    def _drop_weight(self, name: str, parameter: Tensor) -> Tensor:
        parts = self._traced.parts
        recurrent = {parts.names[n] for n, matrix in parts.matrices.items() if isinstance(matrix, Recurrent)}
        stem = name.removeprefix("weight_").removesuffix("_u").removesuffix("_v")
        drops = name.startswith("weight_") and (stem in recurrent or name.removeprefix("weight_") in recurrent)
        return F.dropout(parameter, self.weight_dropout) if drops else parameter

    def extra_repr(self) -> str:
        text = super().extra_repr()
        defaults = dict(num_layers=1, batch_first=False, dropout=0.0, bidirectional=False, learn_initial_state=False)
        defaults |= dict(zoneout={}, recurrent_dropout=0.0, recurrent_dropout_per="sequence", weight_dropout=0.0)
        return text + "".join(f", {k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v)


class NetworkCell(_Definition):
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

    def forward(self, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None, **extras: Any) -> Any:
        """The output, where it is none of the states, and the states after the step.

        Args:
            input: (B, I), or (I,).
            hx: the states, (B, size) or (size,) each, of several a tuple; zeros by default.
            extras: what the cell takes beside x, (B, size) or (B,), without B for one row.

        Returns:
            The states, one tensor or a tuple; for a cell whose output is none of them ``(output, states)``.
        """
        extras = self._extras(extras)
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            got = f"{input.dim()}D" if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {got} instead")
        single = input.dim() == 1
        x = input.unsqueeze(0) if single else input
        weight = self._first()
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[-1]} expected {self.input_size}")
        given = (hx,) if isinstance(hx, Tensor) else hx
        if given is None:
            states = [weight.new_zeros(x.shape[0], size) for size in self.state_sizes]
        else:
            if not isinstance(given, (tuple, list)) or len(given) != len(self.state_names):
                raise RuntimeError(f"expected {len(self.state_names)} states, {', '.join(self.state_names)}")
            states = [state.unsqueeze(0) if single else state for state in given]
        for name, state, size in zip(self.state_names, states, self.state_sizes, strict=True):
            if tuple(state.shape) != (x.shape[0], size):
                raise RuntimeError(f"Expected state {name} size {(x.shape[0], size)}, got {list(state.shape)}")
        own = {name: (tensor.unsqueeze(0) if single else tensor) for name, tensor in extras.items()}
        compiled = self._compiled
        scan = fused.choose(compiled, x.device, states[0].dtype)
        parameters = self._of_direction("")
        y, ends = direction(scan, compiled, parameters, x, Steps(1, x.shape[0], x.shape[0]), states, own)
        y, *ends = [each.squeeze(0) if single else each for each in (y, *ends)]
        found = ends[0] if len(ends) == 1 else tuple(ends)
        return found if self._traced.output in self._traced.next.values() else (y, found)

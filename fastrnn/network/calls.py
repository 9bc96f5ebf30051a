"""What a call of any cell does, whatever its weights are: over whole sequences, and one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastrnn import fused, sequences
from fastrnn.cell.declare import SequenceInput
from fastrnn.checks import is_tokens
from fastrnn.dynamo import called_by_compilers, leaf, traced
from fastrnn.fused.engines import ENGINES
from fastrnn.fused.layer import Steps, direction
from fastrnn.network.arguments import check_state, given_states, read
from fastrnn.network.definition import Definition
from fastrnn.network.layers import regularised, run_layers
from fastrnn.network.plain import plain_call, plain_step


class Sequences(Definition):
    """The calls of a network.

    Attributes:
        num_layers, batch_first, dropout, bidirectional, learn_initial_state, recompute, zoneout, recurrent_dropout,
            recurrent_dropout_per, weight_dropout: see :class:`fastrnn.Network`.
    """

    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    learn_initial_state: bool
    recompute: bool
    zoneout: dict[str, float]
    recurrent_dropout: float
    recurrent_dropout_per: str
    weight_dropout: float

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | Sequence[Tensor] | None = None,
        lengths: sequences.Lengths | None = None,  # by place, as torch's older exporter of ONNX gives all
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
        return_states: bool = False,
        **extras: Any,
    ) -> Any:
        """Runs the network.

        Args:
            input: (T, B, I), batch-first (B, T, I), one sequence (T, I), or packed; or tokens, without I, from 0 to
                I - 1, which stand for one-hot rows.
            hx: the states before the first step, (num_layers * D, B, size) each, for one sequence without B; of several
                states a tuple.  None is zeros, or the learned state.
            lengths, reset, embedding: see :mod:`fastrnn.options`.
            return_states: whether the states of the last layer behind every step come third.
            extras: what the cell takes beside x, by name, shaped as the input is: of a step (T, B, size) or (T, B), of
                a sequence (B, size) or (B,); packed where the input is.

        Returns:
            The output of the last layer, (T, B, D * size), and the states behind the last step, shaped as ``hx``; and
            with ``return_states`` each state shaped as the output is, of several states a tuple.

        Raises:
            TypeError, ValueError, RuntimeError: an argument, shape, dtype or device does not fit; the message has what
                was expected and what came.
        """
        compiling = torch.compiler.is_compiling()
        plain = lengths is reset is embedding is None and not (extras or return_states or compiling)
        if plain and (found := plain_call(self, input, hx)) is not None:
            return found
        options = dict(lengths=lengths, reset=reset, embedding=embedding, return_states=return_states or None)
        if (call := leaf(self, input, hx, **options, **extras)) is not None:
            return call
        if not compiling and traced():
            raise NotImplementedError(
                f"{type(self).__name__} of {self.cell}: a trace would hold T, the number of steps of its example; "
                "torch.export the module, for one T"
            )
        extras = self.checked_extras(extras)
        if embedding is not None:
            look = (lambda t: F.embedding(t, embedding)) if isinstance(embedding, Tensor) else embedding
            if not isinstance(embedding, (Tensor, nn.Embedding)):
                raise TypeError(f"embedding must be an nn.Embedding or its weight, got {type(embedding).__name__}")
            input = input._replace(data=look(input.data)) if isinstance(input, PackedSequence) else look(input)
        if lengths is None and reset is None:
            found = self._run(input, hx, extras, return_states)
        else:
            found = self._run_pieces(input, hx, lengths, reset, extras, return_states)
        if not return_states:
            return found
        y, state, *every = found
        return y, state, every[0] if len(every) == 1 else tuple(every)

    def prepare(
        self, zoneout: tuple[tuple[str, float], ...], training: bool, dropped: str | None, every_state: bool
    ) -> bool:
        """Makes the entry of ``_variants`` under these arguments: the cell with what is dropped in it
        (:func:`fastrnn.network.layers.regularised`), and compiled.  A compiler, which cannot look into this, calls it
        where it meets it, and finds the entry."""
        key = zoneout, training, dropped, every_state
        if key not in self._variants:
            cell = regularised(self.cell, dict(zoneout), training, dropped)
            self._variants[key] = cell, fused.prepare(cell, every_state)
        return True

    called_by_compilers(prepare)

    def _run_pieces(
        self, input: Any, hx: Any, lengths: Any, reset: Any, extras: dict[str, Tensor], every_state: bool
    ) -> Any:
        """The extras go along as more features of x, those of a sequence at each of its steps."""
        if extras and isinstance(input, Tensor):
            if is_tokens(input):
                raise ValueError("lengths and reset with extras want vectors, not tokens; give an embedding")
            single = input.dim() == 2
            features, widths = [input], {}
            for name, tensor in extras.items():
                declared = self.extras[name]
                tensor = tensor.unsqueeze(-1) if declared.size is None else tensor
                if isinstance(declared, SequenceInput) and not single:
                    tensor = tensor.unsqueeze(1 if self.batch_first else 0)
                widths[name] = tensor.shape[-1]
                features.append(tensor.expand(*input.shape[:-1], -1).to(input.dtype))
            input = torch.cat(features, -1)

        def run(packed: PackedSequence, state: Any) -> Any:
            if not extras or not isinstance(packed, PackedSequence):
                return self._run(packed, state, extras, every_state)
            x, *others = packed.data.split([self.input_size, *widths.values()], -1)
            own: dict[str, Any] = {}
            for name, tensor in zip(extras, others, strict=True):
                declared = self.extras[name]
                tensor = tensor.squeeze(-1) if declared.size is None else tensor
                if isinstance(declared, SequenceInput):
                    own[name] = tensor[: int(packed.batch_sizes[0])]
                else:
                    own[name] = packed._replace(data=tensor)
            return self._run(packed._replace(data=x), state, own, every_state)

        initial = [getattr(self, f"initial_{name}", None) for name in self.state_names]
        return sequences.run_pieces(run, self, input, hx, initial, lengths, reset)

    def _run(self, input: Any, hx: Any, extras: dict[str, Any], every_state: bool) -> Any:
        given = read(self, input, hx, extras)
        y, ends, every = run_layers(self, given, every_state)
        if not every_state:
            return given.rows(y), given.ends(ends)
        states = tuple(given.rows(state) for state in every)
        return given.rows(y), given.ends(ends), *states

    def extra_repr(self) -> str:
        text = super().extra_repr()
        defaults = dict(num_layers=1, batch_first=False, dropout=0.0, bidirectional=False, learn_initial_state=False)
        defaults |= dict(recompute=False)
        defaults |= dict(zoneout={}, recurrent_dropout=0.0, recurrent_dropout_per="sequence", weight_dropout=0.0)
        return text + "".join(f", {k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v)


class OneStep(Definition):
    """The calls of a cell."""

    def forward(self, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None, **extras: Any) -> Any:
        """The output, where it is none of the states, and the states after the step.

        Args:
            input: (B, I), or (I,).
            hx: the states, (B, size) or (size,) each, of several a tuple; zeros by default.
            extras: what the cell takes beside x, (B, size) or (B,), without B for one row.

        Returns:
            The states, one tensor or a tuple; for a cell whose output is none of them ``(output, states)``.
        """
        compiling = torch.compiler.is_compiling()
        if not (extras or compiling) and (found := plain_step(self, input, hx)) is not None:
            return found
        if (call := leaf(self, input, hx, **extras)) is not None:
            return call
        if not compiling and traced():
            raise NotImplementedError(
                f"{type(self).__name__} of {self.cell}: torch.jit.trace has no operator of it; torch.export the module"
            )
        extras = self.checked_extras(extras)
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            got = f"{input.dim()}D" if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {got} instead")
        single = input.dim() == 1
        x = input.unsqueeze(0) if single else input
        weight = self.first_parameter()
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[-1]} expected {self.input_size}")
        if hx is None:
            states = [weight.new_zeros(x.shape[0], size) for size in self.state_sizes]
        else:
            states = []
            for name, state, size in zip(self.state_names, given_states(self, hx), self.state_sizes, strict=True):
                check_state(name, state, (size,) if single else (x.shape[0], size), weight)
                states.append(state.unsqueeze(0) if single else state)
        own = {name: (tensor.unsqueeze(0) if single else tensor) for name, tensor in extras.items()}
        compiled = self._compiled
        scan = fused.choose(compiled, x.device, states[0].dtype, self.int8)
        parameters = self.of_direction("")
        steps, within = Steps(1, x.shape[0], x.shape[0]), scan is ENGINES["cpp"].scan
        y, ends, _ = direction(scan, compiled, parameters, x, steps, states, own, within)
        y, *ends = [each.squeeze(0) if single else each for each in (y, *ends)]
        found = ends[0] if len(ends) == 1 else tuple(ends)
        return found if self.output_is_state else (y, found)

"""`RNN`, `LSTM` and `GRU`: subclasses of torch.nn's that run on fastrnn's kernels.

All but running (:mod:`fastrnn.running`) is inherited: construction, parameters, initial values, state_dict, repr,
pickles, and so is every error.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch._jit_internal import _overload_method
from torch.nn.utils.rnn import PackedSequence

from fastrnn import options, scripting
from fastrnn.backends.cpp import fast_path
from fastrnn.one_step import of_layer
from fastrnn.options import Options
from fastrnn.running import run
from fastrnn.scripting import Pair
from fastrnn.sequences import Lengths


def runs(base: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: Python calls :func:`run`, TorchScript compiles the decorated forward.

    TorchScript takes no keyword-only arguments, and looks for the source where :func:`functools.wraps` says it is, but
    for the names of types, as of a pair, in the file where this function stands.
    The older ONNX exporter passes all that the signature names by position: so the function takes all of it so, while
    its signature, as the overloads, keeps for keywords what torch.nn has not.
    """

    def decorate(scripted: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(scripted)
        def forward(self, input, hx=None, lengths=None, reset=None, embedding=None, return_cell_states=None):
            if (
                lengths is reset is embedding is return_cell_states is None
                and not self.learn_initial_state
                and not self.return_cell_states
                and not self.recompute
            ):
                # a compiler sees no more of this than that it does not hold
                if not torch.compiler.is_compiling():
                    if (result := fast_path(self.__dict__, input, hx)) is not None:
                        return result
                    if torch.is_grad_enabled() and (result := of_layer(self, input, hx)) is not None:
                        return result
                return run(self, base, input, hx)
            return options.forward(run, self, base, input, hx, lengths, reset, embedding, return_cell_states)

        own = inspect.signature(forward, follow_wrapped=False)
        kinds = [
            p if p.name in ("self", "input", "hx") else p.replace(kind=p.KEYWORD_ONLY) for p in own.parameters.values()
        ]
        vars(forward)["__signature__"] = own.replace(parameters=kinds)
        return forward

    return decorate


class RNN(Options, nn.RNN):
    """:class:`torch.nn.RNN` on fastrnn's kernels: ``h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)``, or relu.

    ``RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None)``.  Arguments, parameters, results and errors are torch.nn's.
    """

    _padded_state, _packed_state = scripting._padded_state, scripting._packed_state

    @overload
    @_overload_method
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pass

    @overload
    @_overload_method
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:
        pass

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
        return_cell_states: bool | None = None,
    ) -> Any:
        pass

    @runs(nn.RNN)
    def forward(self, input, hx=None):
        """Runs the network on (T, B, I), batch-first (B, T, I), unbatched (T, I) or packed input, from state ``hx``.

        Returns the last layer's output and the last states; arguments by keyword alone are in
        :mod:`fastrnn.options`.
        """
        if isinstance(input, PackedSequence):
            return self._packed_state(input, hx)
        else:
            return self._padded_state(input, hx)


class LSTM(Options, nn.LSTM):
    """:class:`torch.nn.LSTM` on fastrnn's kernels; its equations are in :mod:`fastrnn.modes`.

    ``LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    proj_size=0, device=None, dtype=None)``.  Arguments, parameters, results and errors are torch.nn's.
    """

    _padded_pair, _packed_pair = scripting._padded_pair, scripting._packed_pair

    @overload  # type: ignore[override]
    @_overload_method
    def forward(self, input: Tensor, hx: Pair | None = None) -> tuple[Tensor, Pair]:
        pass

    @overload
    @_overload_method
    def forward(self, input: PackedSequence, hx: Pair | None = None) -> tuple[PackedSequence, Pair]:
        pass

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Pair | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
        return_cell_states: bool | None = None,
    ) -> Any:
        pass

    @runs(nn.LSTM)
    def forward(self, input, hx=None):
        """Runs the network on (T, B, I), batch-first (B, T, I), unbatched (T, I) or packed input, from ``(h_0, c_0)``.

        Returns the last layer's output and the last states ``(h_n, c_n)``; arguments by keyword alone are in
        :mod:`fastrnn.options`.
        """
        if isinstance(input, PackedSequence):
            return self._packed_pair(input, hx)
        else:
            return self._padded_pair(input, hx)


class GRU(Options, nn.GRU):
    """:class:`torch.nn.GRU` on fastrnn's kernels; its equations are in :mod:`fastrnn.modes`.

    ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None)``.  Arguments, parameters, results and errors are torch.nn's.
    """

    _padded_state, _packed_state = scripting._padded_state, scripting._packed_state

    @overload  # type: ignore[override]
    @_overload_method
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pass

    @overload
    @_overload_method
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]:
        pass

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
        return_cell_states: bool | None = None,
    ) -> Any:
        pass

    @runs(nn.GRU)
    def forward(self, input, hx=None):
        """Runs the network on (T, B, I), batch-first (B, T, I), unbatched (T, I) or packed input, from state ``hx``.

        Returns the last layer's output and the last states; arguments by keyword alone are in
        :mod:`fastrnn.options`.
        """
        if isinstance(input, PackedSequence):
            return self._packed_state(input, hx)
        else:
            return self._padded_state(input, hx)

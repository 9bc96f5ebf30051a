"""`JordanRNN`: the recurrent network whose output, not its hidden state, is fed back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional, options
from fastrnn.checks import is_tokens, packed_rows
from fastrnn.modes import OUTPUTS
from fastrnn.options import Options
from fastrnn.running import run
from fastrnn.sequences import Lengths


class _Equations:
    """In the place of a class of torch.nn, which has no such network: what runs where no kernel does, and raises."""

    @staticmethod
    def forward(module: JordanRNN, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Any:
        network: dict[str, Any] = {
            "nonlinearity": module.nonlinearity,
            "output_nonlinearity": module.output_nonlinearity,
            "num_layers": module.num_layers,
            "bidirectional": module.bidirectional,
            "dropout": module.dropout,
            "training": module.training,
        }
        weights = module._flat_weights
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            packed_rows(batch_sizes, sorted_indices, unsorted_indices)
            if hx is not None and sorted_indices is not None:
                hx = hx.index_select(1, sorted_indices)
            y, hn = functional.jordan_rnn(data, hx, weights, batch_sizes=batch_sizes, **network)
            hn = hn if unsorted_indices is None else hn.index_select(1, unsorted_indices)
            return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), hn
        if input.dim() + is_tokens(input) == 2:
            single = None if hx is None else hx.unsqueeze(1)
            y, hn = functional.jordan_rnn(input.unsqueeze(1), single, weights, **network)
            return y.squeeze(1), hn.squeeze(1)
        return functional.jordan_rnn(input, hx, weights, batch_first=module.batch_first, **network)


class JordanRNN(Options, nn.Module):
    """A Jordan network, over whole sequences::

        u_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)        f: tanh or relu
        h_t = g(W_hr u_t + b_hr)                              g: identity, tanh, relu or sigmoid

    The state h_t is the network's output, y_t in Jordan, "Serial order: a parallel distributed processing approach"
    (1986).  A fused kernel runs it on the ``cpp`` backend, :mod:`fastrnn.backends.reference` elsewhere.

    Args:
        input_size: I.
        hidden_size: H, the size of u.
        output_size: P, the size of h.
        num_layers: layers; each reads the output of the one before.
        nonlinearity: f.
        output_nonlinearity: g.
        bias: whether there are ``bias_ih``, ``bias_hh`` (H,) and ``bias_hr`` (P,).
        batch_first: whether input and output have the batch as their first dimension.
        dropout: in training, the probability to drop an element between two layers.
        bidirectional: whether a second network reads the sequence backwards; the outputs then stand side by side.
        learn_initial_state, recompute: as :mod:`fastrnn.options` says.

    Parameters are named as torch.nn's (``weight_ih_l0``, ``weight_hh_l0_reverse``): ``weight_ih`` (H, I or D*P),
    ``weight_hh`` (H, P), ``weight_hr`` (P, H).  A matrix begins uniform within 1/sqrt(its columns), a bias within
    1/sqrt(H).
    """

    input_size: int
    hidden_size: int
    output_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        output_nonlinearity: str = "identity",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("output_size", output_size),
            ("num_layers", num_layers),
        ):
            if not isinstance(size, int):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be greater than zero, got {size}")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        if output_nonlinearity not in OUTPUTS:
            raise ValueError(f"Unknown output_nonlinearity '{output_nonlinearity}'. Select from {OUTPUTS}.")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout should be a number in range [0, 1], got {dropout}")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.nonlinearity, self.output_nonlinearity = nonlinearity, output_nonlinearity
        self.dropout, self.bidirectional = float(dropout), bidirectional
        directions = 2 if bidirectional else 1
        self._names: list[str] = []
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else output_size * directions
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (hidden_size, inputs),
                "weight_hh": (hidden_size, output_size),
            }
            if bias:
                shapes |= {"bias_ih": (hidden_size,), "bias_hh": (hidden_size,)}
            shapes["weight_hr"] = (output_size, hidden_size)
            if bias:
                shapes["bias_hr"] = (output_size,)
            for end in ("", "_reverse")[:directions]:
                for name, shape in shapes.items():
                    self._names.append(f"{name}_l{layer}{end}")
                    self.register_parameter(
                        self._names[-1], nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    )
        self.reset_parameters()
        self._switch_on(learn_initial_state, False, recompute)

    # What fastrnn.running.run asks of a module, in torch.nn's words.
    @property
    def mode(self) -> str:
        return f"JORDAN_{self.nonlinearity}_{self.output_nonlinearity}".upper()

    @property
    def proj_size(self) -> int:
        return self.output_size

    @property
    def _flat_weights_names(self) -> list[str]:
        return self._names

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _update_flat_weights(self) -> None:
        """Nothing: the list is made anew at every look."""

    def flatten_parameters(self) -> None:
        """Nothing; some models call torch.nn's before every forward."""

    def reset_parameters(self) -> None:
        if self.learn_initial_state:
            nn.init.zeros_(self.get_parameter("initial_h"))
        for parameter in self._flat_weights:
            columns = parameter.shape[1] if parameter.dim() == 2 else self.hidden_size
            nn.init.uniform_(parameter, -1 / math.sqrt(columns), 1 / math.sqrt(columns))

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(f"torch.jit.script knows no {type(self).__name__}; torch.export takes it, for one T")

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, {self.output_size}"
        defaults = {"num_layers": 1, "nonlinearity": "tanh", "output_nonlinearity": "identity", "bias": True}
        defaults |= {"batch_first": False, "dropout": 0.0, "bidirectional": False}
        return (
            text
            + "".join(
                f", {name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value
            )
            + super().extra_repr()
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
        embedding: nn.Embedding | Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the network on (T, B, I), batch-first (B, T, I), unbatched (T, I) or packed input.

        Without the last dimension and int64 or int32, it is tokens from 0 to I - 1, which stand for one-hot rows.
        ``hx``, the output before the first step, is (num_layers * D, B, P), unbatched (num_layers * D, P); None is
        zeros.  Returns the last layer's output, (T, B, D*P) or as the input is, and the last outputs of all layers.
        Arguments by keyword alone are in :mod:`fastrnn.options`.

        Raises:
            ValueError, RuntimeError, IndexError: as :func:`fastrnn.rnn`.
        """
        return options.forward(run, self, _Equations, input, hx, lengths, reset, embedding, None)

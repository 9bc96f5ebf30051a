"""What TorchScript compiles in the place of a module's forward: torch's own operators behind torch.nn's checks.

TorchScript follows neither ``super()`` nor a method overloaded elsewhere, so torch.nn's forward cannot be named there.
The functions become methods of the modules under their own names; those for a pair of states are LSTM's.
"""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Pair = tuple[Tensor, Tensor]
_operators: Any = torch._VF  # its type annotations know one form of each function


def copied(forward: Any) -> Any:
    """A torch.nn cell's forward under the name ``_torch_forward``, which, annotated, TorchScript compiles as it is."""
    return FunctionType(forward.__code__, forward.__globals__, "_torch_forward", forward.__defaults__)


def _padded_state(self, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
    if input.dim() not in (2, 3):
        raise ValueError(f"Expected input to be 2D or 3D, got {input.dim()}D instead")
    single = input.dim() == 2
    batch_dim = 0 if self.batch_first else 1
    if hx is not None and hx.dim() != input.dim():
        raise RuntimeError(f"For {input.dim()}-D input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
    if single:
        input = input.unsqueeze(batch_dim)
    if hx is None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        hx = torch.zeros(count, input.size(batch_dim), self.hidden_size, dtype=input.dtype, device=input.device)
    elif single:
        hx = hx.unsqueeze(1)
    self.check_forward_args(input, hx, None)
    bias, layers, bidirectional, batch_first = self.bias, self.num_layers, self.bidirectional, self.batch_first
    weights, dropout, training = self._flat_weights, self.dropout, self.training
    if self.mode == "GRU":
        y, hn = _operators.gru(input, hx, weights, bias, layers, dropout, training, bidirectional, batch_first)
    elif self.mode == "RNN_TANH":
        y, hn = _operators.rnn_tanh(input, hx, weights, bias, layers, dropout, training, bidirectional, batch_first)
    else:
        y, hn = _operators.rnn_relu(input, hx, weights, bias, layers, dropout, training, bidirectional, batch_first)
    return (y.squeeze(batch_dim), hn.squeeze(1)) if single else (y, hn)


def _packed_state(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
    data, sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        hx = torch.zeros(count, int(sizes[0]), self.hidden_size, dtype=data.dtype, device=data.device)
    else:
        hx = self.permute_hidden(hx, sorted_indices)
    self.check_forward_args(data, hx, sizes)
    bias, layers, bidirectional = self.bias, self.num_layers, self.bidirectional
    weights, dropout, training = self._flat_weights, self.dropout, self.training
    if self.mode == "GRU":
        y, hn = _operators.gru(data, sizes, hx, weights, bias, layers, dropout, training, bidirectional)
    elif self.mode == "RNN_TANH":
        y, hn = _operators.rnn_tanh(data, sizes, hx, weights, bias, layers, dropout, training, bidirectional)
    else:
        y, hn = _operators.rnn_relu(data, sizes, hx, weights, bias, layers, dropout, training, bidirectional)
    return PackedSequence(y, sizes, sorted_indices, unsorted_indices), self.permute_hidden(hn, unsorted_indices)


def _padded_pair(self, input: Tensor, hx: Pair | None) -> tuple[Tensor, Pair]:
    if input.dim() not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
    single = input.dim() == 2
    batch_dim = 0 if self.batch_first else 1
    if hx is not None and (hx[0].dim() != input.dim() or hx[1].dim() != input.dim()):
        raise RuntimeError(
            f"For {input.dim()}-D input, hx and cx should also be {input.dim()}-D "
            f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    if single:
        input = input.unsqueeze(batch_dim)
    if hx is None:
        count, rows = self.num_layers * (2 if self.bidirectional else 1), input.size(batch_dim)
        outputs = self.proj_size if self.proj_size > 0 else self.hidden_size
        h0 = torch.zeros(count, rows, outputs, dtype=input.dtype, device=input.device)
        hx = (h0, torch.zeros(count, rows, self.hidden_size, dtype=input.dtype, device=input.device))
    elif single:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    self.check_forward_args(input, hx, None)
    y, hn, cn = _operators.lstm(
        input,
        hx,
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
        self.batch_first,
    )
    return (y.squeeze(batch_dim), (hn.squeeze(1), cn.squeeze(1))) if single else (y, (hn, cn))


def _packed_pair(self, input: PackedSequence, hx: Pair | None) -> tuple[PackedSequence, Pair]:
    data, sizes, sorted_indices, unsorted_indices = input
    if hx is None:
        count, rows = self.num_layers * (2 if self.bidirectional else 1), int(sizes[0])
        outputs = self.proj_size if self.proj_size > 0 else self.hidden_size
        h0 = torch.zeros(count, rows, outputs, dtype=data.dtype, device=data.device)
        hx = (h0, torch.zeros(count, rows, self.hidden_size, dtype=data.dtype, device=data.device))
    else:
        hx = self.permute_hidden(hx, sorted_indices)
    y, hn, cn = _operators.lstm(
        data,
        sizes,
        hx,
        self._flat_weights,
        self.bias,
        self.num_layers,
        self.dropout,
        self.training,
        self.bidirectional,
    )
    return PackedSequence(y, sizes, sorted_indices, unsorted_indices), self.permute_hidden((hn, cn), unsorted_indices)

"""What a layer module's forward does: from the arguments of a call, in any form, to a path, and back.

Arguments that make no network are given to torch.nn's forward, which raises.  That forward also runs where
:func:`fastrnn.dynamo.observed` or :func:`fastrnn.paths.plan` leave it to torch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastrnn.backends import reference, requested, unable
from fastrnn.checks import Misplaced, Sizes, Unfit, is_tokens, packed_rows
from fastrnn.dynamo import leaf, observed
from fastrnn.embedding import folded
from fastrnn.modes import CELLS
from fastrnn.paths import cast, casts, first_states, plan
from fastrnn.storage import require_memory
from fastrnn.walk import cell_states, walk


def hand_over(module: Any, base: type[Any], input: Any, hx: Any, problem: Exception | None) -> Any:
    """torch.nn's forward, which raises its own error where our ``problem`` is one of its own, too."""
    if isinstance(problem, (Unfit, TypeError)) and issubclass(base, nn.RNNBase):  # cells look for themselves
        raise problem
    packed = isinstance(input, PackedSequence)
    unchecked = packed and issubclass(base, nn.LSTM)
    if isinstance(problem, RuntimeError) and unchecked:
        raise problem  # torch.nn checks no sizes there, and reads memory beyond them
    if isinstance(problem, ValueError) and issubclass(base, nn.RNNBase) and not unchecked:
        # The dtype of the weights.  torch.nn's check alone says it in torch.nn's words: its function, with weights that
        # another thread is about to change, may crash.
        if not torch._C._is_any_autocast_enabled():
            base.check_input(module, *(input[:2] if packed else (input, None)))
            raise problem
    result = base.forward(module, input, hx)
    if problem is not None and (name := requested()):
        raise unable(name, problem) from problem
    if isinstance(problem, Misplaced):  # of which torch.nn's cells may make numbers from nowhere
        raise problem
    return result


def theirs(module: nn.Module, base: type[Any], input: Any, hx: Any) -> Any:
    """torch.nn's forward, or what torch.fx records in its place."""
    call = leaf(module, input, hx)
    return base.forward(module, input, hx) if call is None else call


def run(
    module: Any,
    base: type[Any],
    input: Any,
    hx: Any,
    planned: Callable[..., Any] | None = None,
    vectors: Tensor | None = None,
    cells: bool = False,
) -> Any:
    """The forward of a layer module, ours or that of ``base``, its class in torch.nn.

    ``planned``, in the place of :func:`fastrnn.paths.plan`, finds a path even while somebody looks on.  With
    ``vectors`` (V, I) the input is tokens that stand for those; with ``cells`` the cell states of all steps come third.
    """
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    # By name: Dynamo of torch 2.6 unpacks no PackedSequence.
    batch_sizes = input.batch_sizes if packed else None
    sorted_indices = input.sorted_indices if packed else None
    unsorted_indices = input.unsorted_indices if packed else None
    mode = module.mode
    if not isinstance(x, Tensor) or x.is_nested:
        if packed and not isinstance(x, (Tensor, fx.Proxy)):
            raise TypeError(f"data of a PackedSequence must be a tensor, got {type(x).__name__}")
        return theirs(module, base, input, hx)
    tokens = is_tokens(x)
    x = x.long() if tokens else x
    if planned is None and observed():
        if tokens:  # as torch's operators take them
            x = F.one_hot(x, module.input_size).to(module._flat_weights[0].dtype)
            input = PackedSequence(x, batch_sizes, sorted_indices, unsorted_indices) if packed else x
        return theirs(module, base, input, hx)
    rank = x.dim() + tokens  # tokens lack the dimension of their one-hot rows
    single = rank == 2 and not packed
    if not (single or rank == (2 if packed else 3)) or not is_state(hx, mode, 2 if single else 3):
        if packed and CELLS[mode].has_cell_state:  # torch.nn's asks nothing of these, and reads memory beyond them
            if rank != 2:
                raise RuntimeError(f"input must have 2 dimensions, got {rank}")  # as torch.nn's RNN and GRU do
            for state in hx if isinstance(hx, (tuple, list)) else ():
                if isinstance(state, Tensor) and state.dim() > 3:
                    raise RuntimeError(f"LSTM: Expected hidden states of 3 dimensions, got {state.dim()}")
        return theirs(module, base, input, hx)
    turn = module.batch_first and rank == 3
    if turn:
        x = x.transpose(0, 1)
    elif single:
        x = x.unsqueeze(1)
    rows = packed_rows(batch_sizes, sorted_indices, unsorted_indices) if packed else x.shape[1]

    parameters, weights = module._parameters, module._flat_weights
    for name, weight in zip(module._flat_weights_names, weights, strict=False):
        if parameters.get(name) is not weight:  # swapped or computed; torch.nn's own look takes microseconds
            module._update_flat_weights()
            weights = module._flat_weights
            break
    weights = [*weights]  # in the module's own list another thread may exchange them meanwhile
    if packed or torch._C._is_any_autocast_enabled():  # torch's functions read some of these on the way to a kernel
        states = () if hx is None else hx if CELLS[mode].has_cell_state else (hx,)
        require_memory(x, batch_sizes, sorted_indices, unsorted_indices, *states, *weights)
    hidden, projected = module.hidden_size, module.proj_size
    outputs = projected if projected > 0 else hidden
    sizes = Sizes(module.input_size, hidden, outputs, module.num_layers, 2 if module.bidirectional else 1)
    if min(sizes) < 1:
        raise Unfit(f"a network wants sizes of at least 1, got {sizes}")
    if vectors is not None:
        require_memory(*weights)
        sizes = sizes._replace(inputs=vectors.shape[0])
        weights = folded(weights, vectors, sizes.num_layers, sizes.directions)
    if hx is None:
        autocast = torch._C._is_any_autocast_enabled() and not tokens
        h0, c0 = first_states(mode, x, rows, x.dtype if autocast else weights[0].dtype, sizes)
    else:
        h0, c0 = hx if CELLS[mode].has_cell_state else (hx, None)
        if single:
            h0, c0 = h0.unsqueeze(1), c0 if c0 is None else c0.unsqueeze(1)
        elif sorted_indices is not None:
            h0, c0 = h0.index_select(1, sorted_indices), c0 if c0 is None else c0.index_select(1, sorted_indices)

    if torch._C._is_any_autocast_enabled() and (dtype := casts(mode, x, batch_sizes, sizes)):
        x, h0, c0, weights = cast(x, h0, c0, weights, dtype)
    path = (planned or plan)(mode, x, batch_sizes, h0, c0, weights, sizes)
    if tokens and path is None:
        path = reference.layer  # torch.nn has no such path
    if isinstance(path, Exception) and (cells or tokens):
        raise path  # torch.nn has no such network
    if path is None or isinstance(path, Exception):
        return hand_over(module, base, input, hx, path)
    dropout = module.dropout if module.training else 0.0
    y, hn, cn, all_cells = walk(path, mode, x, batch_sizes, h0, c0, weights, sizes, dropout)
    if cells:
        all_cells = cell_states(all_cells, y)
        if turn or single:
            all_cells = all_cells.transpose_(0, 1) if turn else all_cells.squeeze_(1)
        elif packed:
            all_cells = PackedSequence(all_cells, batch_sizes, sorted_indices, unsorted_indices)
    if turn:
        # No view, which could not be changed in place everywhere; a compiler of early torch takes T and B for numbers.
        y = y.transpose(0, 1) if planned and torch.compiler.is_compiling() else y.transpose_(0, 1)
    elif single:
        y, hn = y.squeeze(1), hn.squeeze(1)
        cn = cn if c0 is None else cn.squeeze(1)
    elif packed:
        y = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
        if unsorted_indices is not None:
            hn = hn.index_select(1, unsorted_indices)
            cn = cn if c0 is None else cn.index_select(1, unsorted_indices)
    state = hn if c0 is None else (hn, cn)
    return (y, state, all_cells) if cells else (y, state)


def unexpected(module: nn.Module, given: dict[str, Any], advice: str) -> TypeError:
    """The error of a forward that has not the keyword arguments that it is called with."""
    names = " and ".join(map(repr, given))
    return TypeError(f"{type(module).__qualname__}.forward() got an unexpected keyword argument {names}: {advice}")


def is_state(hx: Any, mode: str, rank: int) -> bool:
    """Whether ``hx`` is a state of this many dimensions, for an LSTM a pair of two, or None."""
    if hx is None:
        return True
    if not CELLS[mode].has_cell_state:
        return isinstance(hx, Tensor) and hx.dim() == rank
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:  # a union of types would cost a microsecond
        return False
    h0, c0 = hx
    return isinstance(h0, Tensor) and isinstance(c0, Tensor) and h0.dim() == c0.dim() == rank

"""One step that is trained on a CPU, by torch's own function of a cell.

A step with a derivative is two products and some pointwise operations each way, over weights that the next update
changes: whatever a fused kernel packs or keeps, it uses once.  Torch's operators, which autograd runs without Python,
take half to nine tenths of our kernels' time there, in every size (``benchmarks/NOTES.md``).  A step without a
derivative, and every sequence of more steps, is faster on our kernels.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastrnn.backends import asked, cpp
from fastrnn.dynamo import UNDISTURBED, observed, transformed
from fastrnn.modes import CELLS, TORCH_MODES
from fastrnn.paths import watching_path
from fastrnn.storage import has_freed

_STEPS: dict[str, Callable[..., Any]] = {mode: getattr(torch._VF, f"{mode.lower()}_cell") for mode in TORCH_MODES}


def _chosen() -> bool:
    """Whether something else was asked for: a backend by its name, every state to look at, or a graph or a transform,
    for which :mod:`fastrnn.paths` plans."""
    return asked() is not None or watching_path.get() is not None or observed() or transformed()


def _narrow(operator: str) -> bool:
    """Whether oneDNN multiplies such numbers by instructions of this machine, not one by one."""
    return torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, operator)()


_DTYPES = (
    torch.float32,
    torch.float64,
    *((torch.bfloat16,) if _narrow("_is_mkldnn_bf16_supported") else ()),
    *((torch.float16,) if _narrow("_is_mkldnn_fp16_supported") else ()),
)


_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


# Torch shares steps of so many gates and of more than one row out among its threads.
_SHARED_GATES = 32


def _waits(module: Any, mode: str, input: Tensor, batch: int) -> bool:
    """Whether torch's threads wait for one another in such a step, since they are more than there are CPUs: our kernels
    then take half of its time and less."""
    shared = batch > 1 and len(CELLS[mode].gates) * module.hidden_size >= _SHARED_GATES
    return shared and input.dtype in (torch.float32, torch.float64) and cpp.crowded()


def of_cell(module: Any, mode: str, input: Any, hx: Any) -> Any:
    """What torch.nn's cell gives, where this is the ordinary training call of one; None where it is not.

    Sizes that do not fit are errors of torch's function, in torch.nn's words.
    """
    parameters = module._parameters
    weights = [parameters.get(name, module) for name in _NAMES]  # a name that is none: parametrized
    if type(input) is not Tensor or input.dim() != 2 or type(weights[1]) is not Parameter or _chosen():
        return None
    if _waits(module, mode, input, input.shape[0]):
        return None
    pair = CELLS[mode].has_cell_state
    if hx is None:
        zeros = input.new_zeros(input.shape[0], module.hidden_size, layout=torch.strided)  # whatever that of input
        hx = (zeros, zeros) if pair else zeros
    if pair and (type(hx) is not tuple or len(hx) != 2):
        return None
    states = hx if pair else (hx,)
    if any(type(state) is not Tensor or state.dim() != 2 for state in states):
        return None
    tensors = (input, *states, *weights)
    return _STEPS[mode](input, hx, *weights) if _is_trained(tensors) else None


# Up to so many steps torch's function, which takes them one by one, is no slower in training.
_STEPS_OF_LAYERS = {"RNN_TANH": 3, "RNN_RELU": 3, "GRU": 1}
# The same in C, where nothing about the call is out of the ordinary: half of what stands around the function.
cpp.prepare_trained_steps(
    _STEPS,
    {mode: (getattr(torch._VF, mode.lower()), steps) for mode, steps in _STEPS_OF_LAYERS.items()},
    (
        (torch.is_grad_enabled, (True,)),
        (asked, (None,)),
        (watching_path.get, (None,)),
        *((ask, (expected,)) for ask, expected in UNDISTURBED),
    ),
)


def of_layer(module: Any, input: Any, hx: Any) -> Any:
    """What torch.nn's layer gives, where this is the ordinary training call of a few steps; None where it is not."""
    steps = _STEPS_OF_LAYERS.get(module.mode)
    if steps is None or type(input) is not Tensor or input.dim() != 3 or module.proj_size:
        return None
    turned = module.batch_first
    if input.shape[turned] > steps or input.shape[2] != module.input_size or _chosen():
        return None
    parameters, weights = module._parameters, [*module._flat_weights]  # that another thread may exchange
    for name, weight in zip(module._flat_weights_names, weights, strict=False):
        if parameters.get(name) is not weight:
            return None
    if _waits(module, module.mode, input, input.shape[1 - turned]):
        return None
    layers, both = module.num_layers, module.bidirectional
    shape = (layers * (1 + both), input.shape[1 - turned], module.hidden_size)
    if hx is None:
        hx = input.new_zeros(shape, layout=torch.strided)
    elif type(hx) is not Tensor or hx.shape != shape:
        return None
    if not _is_trained((input, hx, *weights)):
        return None
    function = getattr(torch._VF, module.mode.lower())
    return function(input, hx, weights, module.bias, layers, module.dropout, module.training, both, turned)


def _is_trained(tensors: tuple[Any, ...]) -> bool:
    """Whether a derivative is recorded by one of these tensors, None among them, which are of one dtype that torch is
    fast in, on the CPU, and have their memory."""
    dtype, trained = tensors[0].dtype, False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, Parameter) or tensor.dtype is not dtype or not tensor.is_cpu:
            return False
        trained = trained or tensor.requires_grad
    return trained and dtype in _DTYPES and not has_freed(tensors)

"""What all modules with weights of 8 bits share: how they are made of one with floats, and what they refuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastrnn import options
from fastrnn.backends import BackendError, cpp, requested
from fastrnn.cell.int8 import numbers
from fastrnn.compilable import Compilable
from fastrnn.dynamo import transformed

# By default the input product stays float32 where the state is so many times as wide as the input: a step of one layer
# then reads at most 1.6 times the bytes.
FLOAT_INPUT = 4


def belongings(module: nn.Module, narrow: nn.Module) -> dict[str, Any]:
    """The attributes of a module that go along to the one in its place: hooks on calls, and what users have set."""
    hooks = {name for name in vars(nn.Module()) if "forward" in name or "backward" in name}
    own = {name for name in vars(module).keys() - vars(narrow).keys() - {*options.NAMES} if not name.startswith("_")}
    return {name: value for name, value in vars(module).items() if name in hooks | own}


def floats(own: nn.Module, name: str) -> Tensor:
    """A weight of a module that is to be quantized.

    Raises:
        ValueError: it is not float32 on a CPU, or neither a parameter nor computed by ``torch.nn.utils.parametrize``.
    """
    tensor = getattr(own, name)
    if not isinstance(tensor, nn.Parameter) and not parametrize.is_parametrized(own, name):
        # by a hook (weight_norm and pruning of old, weight drop), maybe with other numbers at the next call
        raise ValueError(f"{name} of {type(own).__name__} is computed, not a parameter: make it one first")
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        raise ValueError(f"{name}: expected float32 on the CPU, got {tensor.dtype} on {tensor.device}")
    return tensor


def stays_float(module: Any, float_input: bool | None) -> bool:
    """Whether the first product with the input is to stay float32; None: where that costs little."""
    return FLOAT_INPUT * module.input_size <= module.hidden_size if float_input is None else float_input


def as_float(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of 1 and a weight that stays float32, as :func:`fastrnn.cell.int8.quantize` gives those of 8 bits."""
    return weight.new_ones(weight.shape[:-1]).detach(), numbers(weight).clone()


class Narrow(nn.Module):
    """What all modules with weights of 8 bits share: they are made of one with floats, load no floats, run in no graph.

    Attributes:
        runs_on: the backends that may be asked for by name.
        serves_options: whether options of :mod:`fastrnn.options` go along.
        float_input: whether the first product with the input, of a first layer or a cell, is in float32: its matrix is
            float32, with scales of 1.
    """

    _float: type[nn.Module]
    float_input: bool
    runs_on: tuple[str, ...] = ("cpp",)
    serves_options: bool = False

    @classmethod
    def from_float(cls, module: nn.Module, float_input: bool | None = None) -> Any:
        """The same network with weights of 8 bits, of a module of torch.nn's or fastrnn's class; weights are copied,
        hooks on calls and attributes that users have set are those of the module.

        Args:
            module: what it is made of.
            float_input: whether the first product with the input stays float32; None: where that costs little, see
                :mod:`fastrnn.quantized`.

        Raises:
            TypeError: it is not of that class.
            ValueError: its weights are none, not float32 on a CPU, not finite, or neither parameters nor computed by
                ``torch.nn.utils.parametrize``; or an option of :mod:`fastrnn.options` is on that changes its numbers.
            BackendError: the compiled core is missing.
        """
        same = isinstance(module, cls._float) or isinstance(module, Compilable) and module._base is cls._float
        if not same:
            raise TypeError(f"expected a module of {cls._float.__name__}, got {type(module).__name__}")
        if not cls.serves_options:
            options.refuse(module, f"{cls.__name__} does not have")
        if cls.runs_on == ("cpp",) and (reason := cpp.unavailable()):
            raise BackendError(f"weights of 8 bits run on the C++ kernels alone, and {reason}")
        make: Any = cls
        narrow = make(module, float_input).train(module.training)
        vars(narrow).update(belongings(module, narrow))
        return narrow

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: list[str],
    ) -> None:
        """Loads nothing of others' dtypes, as a module of floats has under the same names."""
        own = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        given = {name: state_dict[prefix + name].dtype for name in own if prefix + name in state_dict}
        if wrong := [name for name in given if given[name] is not own[name].dtype]:
            first = f"{wrong[0]} of {given[wrong[0]]}, expected {own[wrong[0]].dtype}"
            errors.append(f"{prefix or 'the state'} is of no {type(self).__name__}: it has {first}.")
        else:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(f"torch.jit.script knows no {type(self).__name__}: script the float module")

    def _check_that_kernels_may_run(self) -> None:
        if torch.compiler.is_dynamo_compiling():  # the graph breaks here in any case; with fullgraph=True it says why
            torch._dynamo.graph_break(msg=f"{type(self).__name__} has no operator that a graph could hold")
        if torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack():
            raise RuntimeError(f"{type(self).__name__} has no operator that a trace could hold: trace the float module")
        if transformed():
            raise RuntimeError(
                f"{type(self).__name__} has no derivatives and serves neither torch.func's transforms nor forward-mode "
                "AD: take the float module for these"
            )
        if (name := requested()) not in (None, *self.runs_on):
            raise BackendError(f"fastrnn backend {name!r} was asked for by name but has no weights of 8 bits")

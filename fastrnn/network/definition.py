"""A cell with sizes and parameters: what a network and one step of it have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import fused
from fastrnn.cell.declare import Cell, Parts, SequenceInput, StepInput
from fastrnn.cell.equations import parameter_shapes
from fastrnn.cell.trace import trace
from fastrnn.storage import require_memory

_DERIVED = ("_traced", "_compiled", "_variants", "_plain")  # made again where a module is copied


class Definition(nn.Module):
    """A cell with sizes: what both modules have in common.

    Attributes:
        cell: the definition, an instance of a :class:`fastrnn.cell.Cell`.
        input_size, hidden_size, bias: as of torch.nn's modules.
        sizes: the number of units of each size that the cell names, "input_size" and "hidden_size" among them.
        state_names, state_sizes: of the states, in the order of ``hx``.
        int8: whether matrices have 8 bits.
    """

    bias: bool
    input_size: int
    hidden_size: int
    sizes: dict[str, int]

    cell: Cell
    int8: bool = False
    _names: list[str]  # of the parameters of a direction

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
        self._variants: dict[Any, tuple[Cell, Any]] = {}  # of the cell, as calls need them
        self.state_names: tuple[str, ...] = tuple(traced.parts.states)
        self.state_sizes: tuple[int, ...] = tuple(found[size] for size in traced.parts.states.values())

    @property
    def drops(self) -> bool:
        """Whether a call drops what is dropped in training."""
        return self.training

    @property
    def parts(self) -> Parts:
        """The cell's declarations."""
        return self._traced.parts

    @property
    def extras(self) -> dict[str, StepInput | SequenceInput]:
        """What the cell takes beside x and the states."""
        return self._traced.parts.extras

    @property
    def output_is_state(self) -> bool:
        """Whether the output is one of the states."""
        return self._traced.output in self._traced.next.values()

    @property
    def output_size(self) -> int:
        """The number of units of the output of one direction."""
        return self.sizes[str(self._traced.output.size)]

    def _register(self, ending: str, inputs: int, factory: dict[str, Any]) -> list[str]:
        """Parameters of one direction, their names with ``ending``; returns the names without."""
        own = self.sizes | {"input_size": inputs}
        shapes = parameter_shapes(self._traced.parts, self._traced.columns, own, self.bias)
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=factory["device"], dtype=factory["dtype"])
            self.register_parameter(name + ending, nn.Parameter(empty))
        return list(shapes)

    def reset_parameters(self) -> None:
        """Draws parameters without an ``init`` of their own from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn's do."""
        bound, parts = 1 / math.sqrt(self.hidden_size), self._traced.parts
        fixed = {name: each.init for name, each in (parts.vectors | parts.scalars).items() if each.init is not None}
        for name, parameter in self.named_parameters():
            stem = name.removesuffix("_reverse")
            stem = stem.rpartition("_l")[0] if stem.rpartition("_l")[2].isdigit() else stem
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)
            elif stem in fixed:
                nn.init.constant_(parameter, fixed[stem])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles: nothing, since no cell stands in TorchScript."""
        raise NotImplementedError(
            f"torch.jit.script knows no {type(self).__name__} of {self.cell}; torch.export the module, for one T"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._traced, self._compiled = trace(self.cell), fused.prepare(self.cell)
        self._variants = {}

    def of_direction(self, ending: str) -> dict[str, Any]:
        """The parameters of one direction, by name without its ending."""
        own = self._parameters  # of torch.nn.Module: its attributes take a microsecond each
        found: dict[str, Any] = {name: own.get(name + ending) for name in self._names}
        for name, parameter in found.items():
            if parameter is None:  # computed, by a parametrization
                found[name] = getattr(self, name + ending)
        require_memory(*found.values())
        return found

    def first_parameter(self) -> Tensor:
        """The first parameter, whose dtype and device are those of all."""
        found = next(iter(self._parameters.values()), None)
        return next(self.parameters()) if found is None else found

    def checked_extras(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """The extras of a call, all that the cell takes and no others."""
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

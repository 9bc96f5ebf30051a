"""A model read as a chain: perhaps an embedding, recurrent layers one upon the other, perhaps a linear layer.

That is what :func:`fastrnn.stream` runs.  An ``nn.Sequential`` is its modules one after the other, of which a recurrent
one hands on its output without its states.  Of any other model torch.fx records what ``forward`` does with its first
argument; it may take and return states, which the stream keeps itself.  Nothing is guessed: what is not plainly such a
chain is refused with its name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as _any_global_hook

from fastrnn import options
from fastrnn.kinds import KINDS, kind
from fastrnn.modes import CELLS

_KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_CLASSES = tuple(cls for name in _KINDS for cls in KINDS[name] if cls)
_INT8 = tuple(cls for name in _KINDS for cls in (KINDS[name].int8,) if cls)
_RECURRENT = (*_CLASSES, *(KINDS["JordanRNN"].ours,))
_INSTEAD = (
    "expected an embedding, then recurrent layers, then a linear layer, each of what the one before returns: put these "
    "modules into an nn.Sequential, stream that, and compute the rest around it"
)


class Layer(NamedTuple):
    """A recurrent layer's weights; None for those that it has not.

    Attributes:
        mode: of :data:`fastrnn.modes.CELLS`.
        sizes: I, H and P.
        scales: of the rows of weight_ih, weight_hh and weight_hr, of weights of 8 bits.
        matrices: weight_ih (G*H, I), weight_hh (G*H, P), weight_hr (P, H).
        biases: bias_ih and bias_hh (G*H), or none.
        initial: h (P) and c (H), of a learned initial state, or none.
        float_input: whether weight_ih is float32 among weights of 8 bits; its scales are 1.
    """

    mode: str
    sizes: tuple[int, int, int]
    scales: list[Tensor]
    matrices: list[Tensor]
    biases: list[Tensor]
    initial: list[Tensor]
    float_input: bool


class Chain(NamedTuple):
    """The modules of a chain, in their order."""

    embedding: nn.Embedding | None
    recurrent: tuple[Any, ...]
    linear: nn.Linear | None

    def layers(self) -> list[Layer]:
        """The weights of all layers, as they are now."""
        return [layer for module in self.recurrent for layer in _layers(module)]


def is_cell(module: Any) -> bool:
    """Whether a recurrent module is one of torch.nn's cells."""
    return not hasattr(module, "num_layers")


def mode_of(module: Any) -> str:
    """The mode of a recurrent module, a key of :data:`fastrnn.modes.CELLS`."""
    if hasattr(module, "mode"):
        return module.mode
    if hasattr(module, "nonlinearity"):
        return f"RNN_{module.nonlinearity.upper()}"
    return "LSTM" if isinstance(module, (nn.LSTMCell, KINDS["LSTMCell"].int8 or nn.LSTMCell)) else "GRU"


def _layers(module: Any) -> Iterator[Layer]:
    narrow, mode = isinstance(module, _INT8), mode_of(module)
    hidden, width = module.hidden_size, module.input_size
    outputs = getattr(module, "proj_size", 0) or hidden
    states = (("initial_h", "initial_c")[: 1 + CELLS[mode].has_cell_state]) if hasattr(module, "initial_h") else ()
    for k in range(getattr(module, "num_layers", 1)):
        end = "" if is_cell(module) else f"_l{k}"
        names = ("ih", "hh", "hr")[: 2 + bool(getattr(module, "proj_size", 0))]
        yield Layer(
            mode,
            (width, hidden, outputs),
            [getattr(module, f"scale_{name}{end}") for name in names] if narrow else [],
            [getattr(module, f"weight_{name}{end}") for name in names],
            [getattr(module, f"bias_{name}{end}") for name in ("ih", "hh")] if module.bias else [],
            [getattr(module, name)[k] for name in states],
            narrow and k == 0 and module.float_input,
        )
        width = outputs


def chain_of(model: nn.Module) -> Chain:
    """The chain that a model is.

    Raises:
        ValueError: it is none, or has something that a stream cannot do; the message names the module and what to do.
    """
    found = _in_order(model, "")
    embedding, linear = None, None
    if found and isinstance(found[0][1], nn.Embedding):
        embedding = _checked_embedding(*found.pop(0))
    if found and isinstance(found[-1][1], nn.Linear):
        linear = found.pop()[1]
    for name, module in found:
        if not isinstance(module, _RECURRENT):
            raise ValueError(f"{_called(name, module)} stands between or in the place of recurrent layers: {_INSTEAD}")
    if not found:
        raise ValueError(f"{type(model).__name__} has no recurrent layer: {_INSTEAD}")
    recurrent = tuple(module for _, module in found)
    for name, module in found:
        _check_recurrent(name, module)
    width = recurrent[0].input_size if embedding is None else embedding.embedding_dim
    for name, module in [*found, *([("the linear layer", linear)] if linear else [])]:
        takes = module.in_features if isinstance(module, nn.Linear) else module.input_size
        if takes != width:
            raise ValueError(f"{_called(name, module)} takes {takes} numbers, and {width} come to it")
        width = getattr(module, "proj_size", 0) or getattr(module, "hidden_size", 0)
    return Chain(embedding, recurrent, linear)


def _called(name: str, module: Any) -> str:
    return f"{name}, {type(module).__name__}," if name else type(module).__name__


def _in_order(model: nn.Module, name: str) -> list[tuple[str, Any]]:
    """The modules that run, with their names; those that do nothing in evaluation are left out."""
    if type(model) is nn.Sequential:
        _check_call(name, model)
        children = model.named_children()
        return [each for child, module in children for each in _in_order(module, f"{name}.{child}".lstrip("."))]
    if not _is_part(model):
        return [each for part, module in _recorded(model) for each in _in_order(module, f"{name}.{part}".lstrip("."))]
    _check_call(name, model)
    if isinstance(model, nn.Dropout) and model.training and model.p:
        raise ValueError(f"{_called(name, model)} drops in training: call eval() of the model first")
    return [] if isinstance(model, (nn.Identity, nn.Dropout)) else [(name, model)]


def _is_part(module: Any) -> bool:
    others = (nn.Embedding, nn.Linear, nn.Identity, nn.Dropout)
    return isinstance(module, (*_RECURRENT, *others)) or _is_of_torch(module) or kind(module) is not None


def _is_of_torch(module: Any) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and type(module) is not nn.Sequential


def _check_call(name: str, module: Any) -> None:
    """Raises ValueError where a call of the module is more than its class's forward."""
    hooks = "_forward_hooks", "_forward_pre_hooks"
    if "forward" in vars(module) or any(getattr(module, each) for each in hooks) or _any_global_hook():
        raise ValueError(
            f"{_called(name, module)} has a hook or a forward of its own, which a stream does not call: remove it first"
        )
    plain = nn.Sequential, nn.Embedding, nn.Linear, nn.Identity, nn.Dropout
    bases = [cls for cls in (*plain, *_CLASSES) if isinstance(module, cls)]
    if bases and type(module).forward not in [cls.forward for cls in (*plain, *_CLASSES)]:
        raise ValueError(
            f"{_called(name, module)} has a forward of its own class, which a stream does not call: {_INSTEAD}"
        )


def _checked_embedding(name: str, module: nn.Embedding) -> nn.Embedding:
    if module.max_norm is not None:
        raise ValueError(f"{_called(name, module)} has max_norm, by which a call changes its weight: set it to None")
    return module


def _check_recurrent(name: str, module: Any) -> None:
    called = _called(name, module)
    if not isinstance(module, _CLASSES):
        raise ValueError(f"{called} is no RNN, LSTM or GRU, and no stream runs it: call it with its state instead")
    if getattr(module, "bidirectional", False):
        raise ValueError(
            f"{called} is bidirectional: its second direction begins at the end of the sequence, which a stream has not"
        )
    if getattr(module, "return_cell_states", False):
        raise ValueError(f"{called} has return_cell_states on, which a step does not return: read the stream's state")
    if getattr(module, "num_layers", 1) > 1 and module.training and module.dropout:
        raise ValueError(f"{called} has dropout and is in training: call eval() of the model first")
    assert not set(options.on(module)) - {"learn_initial_state", "recompute"}


def _recorded(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a model's forward calls, each with what the one before returned."""
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return _is_part(m) or type(m) is nn.Sequential

    name = type(model).__name__
    _check_call("", model)
    try:
        graph = Tracer().trace(model)
    except Exception as error:  # whatever the model's code raises when it is given no numbers
        raise ValueError(f"{name}.forward cannot be recorded ({error}): {_INSTEAD}") from error
    modules = dict(model.named_modules())
    current, states, pairs = None, set(), set()  # what came last; states in and out; results with a state
    for node in graph.nodes:
        if node.op == "placeholder":
            current = node if current is None else current
            states.add(node)
        elif node.op == "call_module" and _takes(node, current, states):
            yield str(node.target), modules[str(node.target)]
            current = node
            recurrent = isinstance(modules[str(node.target)], _RECURRENT)
            pairs |= {node} if recurrent and not _returns_one(modules[str(node.target)]) else set()
        elif node.target is operator.getitem and node.args[0] in pairs and node.args[1] in (0, 1):
            if node.args[1]:
                states.add(node)
            elif current is node.args[0]:
                current = node
        elif node.target is operator.getitem and node.args[0] in states and _is_index(node.args[1]):
            states.add(node)  # h or c of an LSTM's
        elif node.op != "output" or not _returns(node.args[0], current, states):
            raise ValueError(f"{name}.forward has {node.format_node() or node}, which a stream does not do: {_INSTEAD}")


def _returns_one(module: Any) -> bool:
    return is_cell(module) and not CELLS[mode_of(module)].has_cell_state


def _is_index(index: Any) -> bool:
    return isinstance(index, int)


def _takes(node: Any, current: Any, states: set[Any]) -> bool:
    """Whether a call takes what came last, and perhaps a state; nothing else that a module may be asked for."""
    others = [*node.args[1:], *node.kwargs.values()]
    if len(others) > 1 or not node.kwargs.keys() <= {"hx"}:
        return False
    return node.args[:1] == (current,) and all(each is None or _is_state(each, states) for each in others)


def _is_state(value: Any, states: set[Any]) -> bool:
    return all(_is_state(each, states) for each in value) if isinstance(value, (tuple, list)) else value in states


def _returns(result: Any, current: Any, states: set[Any]) -> bool:
    """Whether a model returns what came last, alone or before states."""
    if isinstance(result, (tuple, list)):
        return bool(result) and result[0] is current and all(_is_state(each, states) for each in result[1:])
    return result is current

"""What a network does to its gradients: the norm of dL/dh_t over t, where vanishing and exploding can be seen.

For a loss L and a state h_t, ``dL/dh_t`` is the whole derivative of backpropagation through time: what comes from
above, through the output y_t, and what comes back from later steps, through h_(t+1).  If the recurrent Jacobians
shrink, the norm falls exponentially from the end of the sequence to its beginning, and early inputs are not learned
from; if they stretch, it grows.

Source: Bengio, Simard, Frasconi, "Learning long-term dependencies with gradient descent is difficult" (1994); Pascanu,
Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import Token
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastrnn import fused, paths, walk
from fastrnn.backends import reference
from fastrnn.convert import convert, revert
from fastrnn.jordan import JordanRNN
from fastrnn.network import Network, NetworkCell

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextmanager
def gradient_norms(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Records the norm of dL/dh_t at every step t of every recurrent layer of ``model``, torch.nn's or ours (of a
    :class:`fastrnn.JordanRNN` h_t is the output that is fed back, of a :class:`fastrnn.Network` its first state)::

        with fastrnn.diagnostics.gradient_norms(model) as norms:
            criterion(model(x), target).backward()
        norms["rnn.l0"]  # (T,)

    The dictionary is filled when the block ends.  A key is the module's name in the model, a dot, and the layer,
    ``l0``, ``l0_reverse``, ``l1`` ... as in the names of parameters; of a cell (``nn.LSTMCell``), the module's name
    alone; and where ``model`` is itself the recurrent module, without the name and the dot.  A value is (T,), in
    float32 or wider: at t the Euclidean norm over all rows and units, ``sqrt(sum_b |dL/dh_(t,b)|^2)``, in the order of
    the sequence in both directions; 0 where no gradient arrives.  Steps of several calls, as a cell's in a loop or the
    pieces of truncated BPTT, follow one another in the order of the calls; gradients of several backward passes through
    one graph add up as in ``.grad``.

    Inside the block the layers run the plain equations (:mod:`fastrnn.backends.reference`) on any backend, since a
    fused kernel keeps no h_t that autograd knows: the same results up to rounding, the same dropout masks, in more time
    and memory.  Calls that record no graph, as under ``torch.no_grad``, are left out.

    Raises:
        TypeError: ``model`` holds no recurrent module.
        RuntimeError: a layer ran on torch's own functions, which show no h_t (under autocast, torch.compile, tracing,
            or in a class derived from torch.nn's by others); or no gradient reached any state inside the block.
    """
    kinds = nn.RNNBase | nn.RNNCellBase | JordanRNN | Network | NetworkCell
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not modules:
        raise TypeError(f"gradient_norms expects a model with recurrent modules; {type(model).__name__} has none")
    states: dict[str, list[Tensor]] = {}
    norms: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            if isinstance(module, nn.RNNCellBase | NetworkCell):
                _watch_cell(module, name, states, stack)
                continue
            if isinstance(module, Network):
                _watch_network(module, f"{name}." if name else "", states, stack)
                continue
            own = type(module)
            if type(convert(module)) is not own:
                stack.callback(revert, module)
            _watch_layers(module, f"{name}." if name else "", states, stack)
        yield norms
    if all(h.grad is None for own in states.values() for h in own):
        raise RuntimeError("gradient_norms: run both the forward and the backward pass of the model inside the block")
    norms |= {name: torch.stack([_norm(h) for h in own]) for name, own in states.items()}


def _norm(h: Tensor) -> Tensor:
    wide = torch.promote_types(h.dtype, torch.float32)
    return h.new_zeros((), dtype=wide) if h.grad is None else torch.linalg.vector_norm(h.grad, dtype=wide)


def _watch_network(module: Network, prefix: str, states: dict[str, list[Tensor]], stack: ExitStack) -> None:
    """Has the network's forward run its equations, which keep every state."""
    tokens: list[Token[Any]] = []

    def before(module: Any, args: Any) -> None:
        count, outer = 0, fused.watching.get()  # that of a block around this one

        def watch(steps: list[list[Tensor]]) -> None:
            nonlocal count
            layer, reverse = divmod(count, 2) if module.bidirectional else (count, 0)
            _keep(states, f"{prefix}l{layer}{'_reverse' * reverse}", [found[0] for found in steps])
            count += 1
            if outer is not None:
                outer(steps)

        tokens.append(fused.watching.set(watch))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        fused.watching.reset(tokens.pop())

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after, always_call=True, prepend=True).remove)


def _watch_cell(module: nn.Module, name: str, states: dict[str, list[Tensor]], stack: ExitStack) -> None:
    def after(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, NetworkCell) and not module.output_is_state:
            output = output[1]
        _keep(states, name, [output[0] if isinstance(output, tuple) else output])

    stack.callback(module.register_forward_hook(after).remove)


def _watch_layers(module: nn.Module, prefix: str, states: dict[str, list[Tensor]], stack: ExitStack) -> None:
    """Has the module's forward run on a path that keeps every h."""
    layer = 0
    tokens: list[Token[walk.Path | None]] = []

    def watch(directions: list[list[Tensor]]) -> None:
        nonlocal layer
        for suffix, own in zip(("", "_reverse"), directions, strict=False):
            _keep(states, f"{prefix}l{layer}{suffix}", own)
        layer += 1

    def before(module: nn.Module, args: Any) -> None:
        nonlocal layer
        layer = 0
        outer: Any = paths.watching_path.get()  # of a block around this one

        def watch_all(directions: list[list[Tensor]]) -> None:
            watch(directions)
            if outer is not None:
                outer.keywords["watch"](directions)

        tokens.append(paths.watching_path.set(functools.partial(reference.layer, watch=watch_all)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        paths.watching_path.reset(tokens.pop())

    def check(module: nn.Module, args: Any, output: Any) -> None:
        if not layer:
            name = prefix.removesuffix(".") or "the model"
            raise RuntimeError(f"gradient_norms cannot see the states of {name}: it ran on torch's own functions")

    stack.callback(module.register_forward_pre_hook(before).remove)
    # Blocks within blocks take back in turn what they have set.
    stack.callback(module.register_forward_hook(after, always_call=True, prepend=True).remove)
    stack.callback(module.register_forward_hook(check).remove)


def _keep(states: dict[str, list[Tensor]], name: str, own: list[Tensor]) -> None:
    """Adds one call's h_t, whose gradients autograd shall keep; states of no graph have none."""
    if any(h.requires_grad for h in own):
        states.setdefault(name, []).extend(own)
    for h in own:
        if h.requires_grad:
            h.retain_grad()


def plot(curves: Mapping[str, Tensor], axes: Axes | None = None) -> Axes:
    """Draws norms over t on a logarithmic scale, one line each, and returns the axes (matplotlib's, made if not given).

    ``curves`` maps a label to norms (T,); what :func:`gradient_norms` gives is such a mapping.  Zeros have no place on
    the scale and are left out.
    """
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots()[1]
    for label, norms in curves.items():
        axes.semilogy(norms.detach().cpu().double().tolist(), label=label, nonpositive="mask")
    axes.set(xlabel="step t", ylabel="norm of dL/dh_t")
    axes.legend()
    return axes

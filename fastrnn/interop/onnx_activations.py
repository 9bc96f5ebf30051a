"""The activations of a recurrent node of ONNX: ``activations``, ``activation_alpha`` and ``activation_beta``.

The numbers stand in two lists, one after the other for those functions that have any, the forward direction's first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from fastrnn.interop.cells import Activation


class _Function(NamedTuple):
    """One of :data:`fastrnn.interop.cells.FUNCTIONS`, whether it has an alpha and a beta, and what these are where a
    node does not say so."""

    name: str
    alpha: bool = False
    beta: bool = False
    defaults: tuple[float, ...] | None = None


# Without numbers the specification has Affine(1, 0) and ThresholdedRelu(1) and no ScaledTanh; ONNX Runtime takes 0 for
# all of them.  So a node has to say them.
_FUNCTIONS = {
    "Tanh": _Function("tanh"),
    "Sigmoid": _Function("sigmoid"),
    "Relu": _Function("relu"),
    "Softsign": _Function("softsign"),
    "Softplus": _Function("softplus"),
    "LeakyRelu": _Function("leaky_relu", alpha=True, defaults=(0.01,)),
    "Elu": _Function("elu", alpha=True, defaults=(1.0,)),
    "HardSigmoid": _Function("hard_sigmoid", alpha=True, beta=True, defaults=(0.2, 0.5)),
    "ThresholdedRelu": _Function("thresholded_relu", alpha=True),
    "Affine": _Function("affine", alpha=True, beta=True),
    "ScaledTanh": _Function("scaled_tanh", alpha=True, beta=True),
}
_BY_NAME = {name.lower(): name for name in _FUNCTIONS}


def read_activations(
    given: Sequence[str],
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    refuse: Callable[[str], NoReturn],
) -> tuple[Activation, ...]:
    """The functions of all directions.

    Args:
        given: their names, in any case.
        alphas, betas: the numbers, None where the node has no such list.
        refuse: raises, with what is wrong: an unknown name, no number where there is no default, or more or fewer
            numbers than functions that have one, where ONNX does not say whose they are.
    """
    for name in given:
        if name.lower() not in _BY_NAME:
            refuse(f"expected activations among {', '.join(_FUNCTIONS)}, got {name!r}")
    functions = [(_BY_NAME[name.lower()], _FUNCTIONS[_BY_NAME[name.lower()]]) for name in given]
    for label, values, takers in (
        ("activation_alpha", alphas, [name for name, function in functions if function.alpha]),
        ("activation_beta", betas, [name for name, function in functions if function.beta]),
    ):
        if takers and values and len(values) != len(takers):
            refuse(f"expected {label} to have {len(takers)} values, of {', '.join(takers)}, got {list(values)}")
    numbers = iter(alphas or ()), iter(betas or ())
    found = []
    for name, function in functions:
        own: list[float] = []
        for label, wanted, values in zip(("alpha", "beta"), (function.alpha, function.beta), numbers, strict=True):
            number = next(values, None) if wanted else None
            if wanted and number is None and function.defaults is None:
                refuse(f"expected activation_{label} for {name}, for which runtimes have different defaults")
            if wanted:
                own.append(number if number is not None else (function.defaults or ())[len(own)])
        found.append((function.name, *own))
    return tuple(found)


def written(activations: Sequence[Activation], directions: int) -> dict[str, Any]:
    """The attributes of a node that has these functions in each direction.

    Raises:
        ValueError: ONNX has no such function; the message has its name.
    """
    found: dict[str, Any] = {"activations": [], "activation_alpha": [], "activation_beta": []}
    for name, *numbers in activations:
        name, numbers = ("affine", [1.0, 0.0]) if name == "identity" else (name, numbers)
        theirs = next((each for each, function in _FUNCTIONS.items() if function.name == name), None)
        if theirs is None:
            raise ValueError(f"ONNX has no activation {name} for a recurrent node, only {', '.join(_FUNCTIONS)}")
        found["activations"].append(theirs)
        for label, number in zip(("activation_alpha", "activation_beta"), numbers, strict=False):
            found[label].append(number)
    return {label: values * directions for label, values in found.items() if values}

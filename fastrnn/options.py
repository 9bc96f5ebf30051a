"""What the modules do beyond torch.nn's, on every backend.  All of it is off unless asked for by keyword.

Of a call, ``network(input, hx, ...)``; the numbers are pytorch/pytorch's, where users asked for it:

``lengths`` (#517, #43227)
    (B,) integers from 1 to T: the steps of each sequence of a padded batch; for one sequence (T, I) an integer.  The
    same as packing it, without the order: output (T, B, D*P) with zeros in the padding, final states of each sequence's
    own last step, gradients of the padding zero.
``reset``
    (T, B) bool, batch-first (B, T), for one sequence (T,): where a sequence begins anew before that step, as an episode
    of reinforcement learning does.  The pieces between give what each gives alone.  A row's first piece begins with
    ``hx``, unless ``reset[0]`` says otherwise, in the reverse direction its last piece; all others with the initial
    state.  The final states are those of a row's last piece, in the reverse direction of its first.
``embedding``
    An ``nn.Embedding`` or its weight (V, I), with tokens, int64 or int32 without the last dimension, as the input: the
    same as ``network(embedding(tokens), hx)``.  Where a vocabulary is smaller than half the tokens, the table is folded
    into the first layer's ``weight_ih`` and its columns are gathered, which saves most of the input product; not of an
    embedding whose call is more than a gather, by hooks, a parametrization or a class of others, which is called.
``return_cell_states`` (#31423)
    ``(output, (h_n, c_n), cell_states)`` from an LSTM: c_t of the last layer at every step, shaped as the output with H
    in the place of P and in its dtype.

Of a module, as keyword-only arguments of its class or attributes set later.  Whatever takes a module, as `revert` or
`quantize_dynamic` do, serves these or refuses them by name (:func:`refuse`), never loses them in silence:

``learn_initial_state``
    Parameters ``initial_h`` (num_layers * D, P) and, for an LSTM, ``initial_c`` (num_layers * D, H), zeros at first,
    stand where there is no ``hx``, and at the start of every piece.  (Of the class alone.)
``return_cell_states``
    What a call does that does not say.
``recompute``
    Backward computes the gates again, from h and c kept every sqrt(T) steps or more (:mod:`fastrnn.recompute`): the
    same results in a fraction of the memory and 1.4 to 1.5 times the time.  It reads all matrices again, so that none
    may be changed in place before it; biases may.  Not where torch.nn's own functions run.

In the hands of those that make graphs: torch.fx records a call with all of this as one.  torch.jit.trace and the older
ONNX exporter take all but ``reset`` and cell states, for any T, B and lengths; torch.export all but ``lengths`` and
``reset``.

Raises:
    NotImplementedError: a graph cannot hold what is asked for.
    ValueError: ``lengths`` or ``reset`` with a PackedSequence, or of another shape or dtype; ``return_cell_states``
        for a cell without c.
    RuntimeError: a length is not within 1 .. T.
    TypeError: ``embedding`` is neither an ``nn.Embedding`` nor a tensor.
    IndexError: a token is not within 0 .. V - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import by_torch, recompute, sequences
from fastrnn import embedding as embeddings
from fastrnn.backends import cpp, reference
from fastrnn.checks import is_tokens, packed_rows
from fastrnn.dynamo import exported, leaf, observed, traced
from fastrnn.modes import CELLS
from fastrnn.paths import plan
from fastrnn.storage import require_memory
from fastrnn.walk import Path

# Each option of a module, and whether with it on a call gives something else than torch.nn's of the same weights.
CHANGES = {"learn_initial_state": True, "return_cell_states": True, "recompute": False}
NAMES = tuple(CHANGES)


def on(module: nn.Module) -> list[str]:
    """The options that a module, of whatever class, has on."""
    return [name for name in NAMES if getattr(module, name, False)]


def refuse(module: nn.Module, what: str, where: str = "", harmless: bool = False) -> None:
    """How whatever holds no options refuses a module that has one on, with its name: silence would change the numbers.

    Args:
        module: of any class.
        what: the end of the message, as "which ... has not".
        where: the module's name in its model.
        harmless: whether options that change no numbers are refused, too.

    Raises:
        ValueError: an option is on.
    """
    if used := [name for name in on(module) if harmless or CHANGES[name]]:
        raise ValueError(f"{where or type(module).__name__} has {' and '.join(used)} on, which {what}")


def _absent(name: str) -> property:
    def refuse(module: Any, value: bool) -> None:
        if value:
            own = f"{type(module).__module__}.{type(module).__name__}"
            raise ValueError(f"{own} has no {name}: set it on the module that it was made from")

    return property(lambda module: False, refuse)


class NoOptions:
    """For modules that serve none of them: setting one to True is an error, which in silence would change nothing.

    Raises:
        ValueError: an option is set to True.
    """

    learn_initial_state: property = _absent("learn_initial_state")
    return_cell_states: property = _absent("return_cell_states")
    recompute: property = _absent("recompute")


class Options:
    """A module's options beyond torch.nn's.  They are attributes, which modules from elsewhere need not have."""

    learn_initial_state = False
    return_cell_states = False
    recompute = False

    def __init__(
        self,
        *args: Any,
        learn_initial_state: bool = False,
        return_cell_states: bool = False,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._switch_on(learn_initial_state, return_cell_states, recompute)

    def flatten_parameters(self) -> None:
        """As torch.nn's, which cuDNN's calls are faster after; bfloat16, too."""
        module: Any = super()
        module.flatten_parameters()
        by_torch.flatten(self)

    def _switch_on(self, *values: bool) -> None:
        """Sets the options, in the order of NAMES, of a module that has its other parameters."""
        for name, value in zip(NAMES, values, strict=True):
            if not isinstance(value, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
            if value:
                setattr(self, name, True)
        module: Any = self
        if module.return_cell_states and not CELLS[module.mode].has_cell_state:
            raise ValueError(f"return_cell_states is for an LSTM; {module.mode} has no cell state")
        if module.learn_initial_state:
            like, slots = module._flat_weights[0], module.num_layers * (2 if module.bidirectional else 1)
            module.initial_h = nn.Parameter(like.new_zeros(slots, module.proj_size or module.hidden_size))
            if CELLS[module.mode].has_cell_state:
                module.initial_c = nn.Parameter(like.new_zeros(slots, module.hidden_size))

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        for name in ("initial_h", "initial_c"):
            if hasattr(self, name):
                nn.init.zeros_(getattr(self, name))

    def extra_repr(self) -> str:
        text = super().extra_repr()  # type: ignore[misc]
        return text + "".join(f", {name}=True" for name in NAMES if getattr(self, name))

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles: a module as it is, since none of this stands in TorchScript."""
        if self.return_cell_states:
            raise NotImplementedError(
                "torch.jit.script knows no return_cell_states: set it to False, or torch.export the module, for one T"
            )
        if self.learn_initial_state:
            raise NotImplementedError("torch.jit.script knows no learn_initial_state: torch.jit.trace does")
        return self


def forward(
    run: Callable[..., Any],
    module: Any,
    base: type[Any],
    input: Any,
    hx: Any,
    lengths: sequences.Lengths | None,
    reset: Tensor | None,
    embedding: nn.Embedding | Tensor | None,
    return_cell_states: bool | None,
) -> Any:
    """The forward of a module with an option on, around ``run``, that of a module without."""
    call = leaf(
        module, input, hx, lengths=lengths, reset=reset, embedding=embedding, return_cell_states=return_cell_states
    )
    if call is not None:
        return call
    cells = module.return_cell_states if return_cell_states is None else return_cell_states
    if cells and not CELLS[module.mode].has_cell_state:
        raise ValueError(f"return_cell_states is for an LSTM; {module.mode} has no cell state")
    initial = (module.initial_h, getattr(module, "initial_c", None)) if module.learn_initial_state else (None, None)
    if embedding is not None and embeddings.does_more(embedding):
        input, embedding = embeddings.each_looked_up(input, embedding), None
    if embedding is not None and not embeddings.takes(embedding, input):
        input, embedding = embeddings.each_looked_up(input, embedding), None
    _check_that_graphs_may_hold(cells, lengths is not None, reset is not None)
    again = module.recompute and not observed()  # torch's own operators recompute nothing
    planned = _planner(cells, again) if cells or again else None

    given = input.data if isinstance(input, PackedSequence) else input
    states = hx if isinstance(hx, (tuple, list)) else (hx,)
    table = getattr(embedding, "weight", embedding)
    require_memory(*(tensor for tensor in (given, *states, *initial, table) if isinstance(tensor, Tensor)))

    def inner(input: Any, hx: Any) -> Any:
        vectors = None
        if embedding is not None:
            input, vectors = embeddings.embed(input, embedding, module.weight_ih_l0, module.mode)
        if hx is None and initial[0] is not None:
            hx = _expanded(initial, input, module)
        if vectors is planned is None and not torch.compiler.is_compiling():
            if (result := cpp.fast_path(module.__dict__, input, hx)) is not None:
                return result
        return run(module, base, input, hx, planned, vectors, cells)

    if lengths is None and reset is None:
        return inner(input, hx)
    return sequences.run_pieces(inner, module, input, hx, initial, lengths, reset)


def _check_that_graphs_may_hold(cells: bool, lengths: bool, reset: bool) -> None:
    """Raises NotImplementedError where a graph would be made, and hold numbers that are of its example alone."""
    if cells and traced():
        raise NotImplementedError(
            "return_cell_states: torch has no operator that gives them, and a trace would hold T, the number of steps "
            "of its example; torch.export takes it, for one T"
        )
    if reset and (traced() or exported()):
        raise NotImplementedError(
            "reset: torch has no operator that takes it, and a graph would hold the values of its example; leave the "
            "call out of what is traced or exported, or, in a trace, give the pieces as sequences with lengths"
        )
    if lengths and exported():
        raise NotImplementedError(
            "lengths: their values say how large tensors are, which torch.export does not know; torch.jit.trace and "
            "torch.onnx.export(dynamo=False) take them"
        )


def _expanded(initial: Sequence[Tensor | None], input: Any, module: Any) -> Any:
    """The learned state for all sequences of an input, as that input wants it."""
    if isinstance(input, PackedSequence):
        # By name: Dynamo of torch 2.6 unpacks no PackedSequence.
        rows = packed_rows(input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        shape: tuple[Any, ...] = (rows,)
    else:
        rank = input.dim() + is_tokens(input)
        shape = () if rank < 3 else (input.shape[0 if module.batch_first else 1],)
    found = [state.unsqueeze(1).expand(-1, *shape, -1) if shape else state for state in initial if state is not None]
    return tuple(found) if len(found) == 2 else found[0]


def _planner(cells: bool, again: bool) -> Callable[..., Path | Exception | None]:
    """A :func:`fastrnn.paths.plan` with all cell states, or with recomputation, or both.

    The functions of torch.nn give no cell states, so the equations run in their place; they recompute nothing.
    """

    def planned(*arguments: Any) -> Any:
        path = None if observed() else plan(*arguments, cells=cells, ours=again)
        if path is None and cells:
            return reference.layer
        return recompute.around(path) if again else path

    return planned

"""The fused kernels for the CPU, built from csrc/module.cpp; called through :mod:`fastrnn.backends.cpp`.

``layer`` is a dict of ``mode`` and ``activation``, the numbers of ``Mode`` in csrc/cell_table.h and of ``Activation``
in csrc/scan.h, ``threads``, the sizes ``steps``, ``batch``, ``rows``, ``inputs``, ``hidden_size``, ``outputs`` and
``directions``, and ``batch_sizes``, int64 or None.  ``x`` holds tokens, int64, where ``tokens`` says so.  Every
tensor is dense, on the CPU, and holds what csrc/scan.h says of the argument of its name; results are written into the
tensors given for them.

Raises:
    IndexError: a token is out of range.
    ValueError: an argument does not have the size that ``layer`` asks for; the message names it and both sizes.  Or
        layers are not one upon the other, of the same mode and rows, with one direction each.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Buffer

Layer = dict[str, int | Tensor | None]

def isa() -> str:
    """Name of the instruction set in use: the best that this machine runs, or what ``FASTRNN_ISA`` names.

    Raises:
        RuntimeError: ``FASTRNN_ISA`` names one that this build or this machine lacks.
    """

def thread_source() -> str:
    """Where the threads of teams come from, as the build chose it: ``openmp``, or ``std``, a pool of the core's own."""

def usable_cpus() -> int:
    """CPUs that this process may keep busy: of its affinity, no more than its control groups' quota leaves it, or what
    ``FASTRNN_CPUS`` says."""

def cpus_of_quota(text: str) -> int:
    """A quota in whole CPUs, by the text of ``cpu.max``, or of ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` with a
    blank between; 0 for none."""

def this_machine(threads: int) -> dict[str, Any]:
    """``Machine`` of csrc/team_plan.h at this time, for a team of at most so many threads."""

def plan_team(work: dict[str, Any], machine: dict[str, Any]) -> tuple[int, bool, int]:
    """``TeamPlan`` for ``TeamWork`` on a ``Machine``: threads of a direction, directions side by side, groups."""

def predicted_time(
    work: dict[str, Any], machine: dict[str, Any], threads: int, side_by_side: bool, groups: int
) -> float:
    """Microseconds that the work takes by a plan; ``groups`` divides ``threads``."""

def plan_wavefront(work: dict[str, Any], machine: dict[str, Any], layers: int, piece: int) -> int:
    """How many of ``layers``, each this work, run at a time on a thread each, ``piece`` rows behind one another."""

def predicted_wavefront(work: dict[str, Any], machine: dict[str, Any], height: int, piece: int) -> float:
    """Microseconds that ``height`` such layers take together."""

def assume_rates(start: float, meeting: float, multiply_adds: float, read: float) -> None:
    """For tests: the plan counts with these rates in the place of those measured; zeros for these again."""

def assume_late(every: int) -> None:
    """For tests: at one meeting of so many half of a team leaves; 0 for meetings that were late."""

def assume_absent(every: int) -> None:
    """For tests: to one round of so many a thread comes so late that others have begun its share; 0 for none."""

def assume_apart(apart: bool) -> None:
    """For tests: whether each array that a call works in is memory of its own, behind which an allocator can look."""

def most_in_company() -> int:
    """How many threads may work with meetings at this time: few behind a meeting that came late."""

def note_company(late: int, threads: int) -> None:
    """Notes that a meeting was late by so many nanoseconds, and how many threads to go on with."""

def forget_company() -> None:
    """Forgets it."""

def supported_isas() -> list[str]:
    """Names of the compiled instruction sets that this machine runs, the best first."""

def fast_path(attributes: dict[str, Any], input: Any, hx: Any, mode: str | None = ...) -> Any:
    """The forward of a layer module, or with ``mode``, a key of ``CELLS``, of a cell module, of these attributes.

    It serves plain dense tensors, all steps with the same rows and time first, without gradients, while the guards of
    ``prepare_fast_path`` answer as they should; and what is trained as ``prepare_trained_steps`` says.  All else,
    errors included, it answers with None.
    """

def fast_path_int8(attributes: dict[str, Any], input: Any, hx: Any, mode: str | None = ...) -> Any:
    """``fast_path`` for weights of 8 bits: those ``_buffers`` that ``_order`` names, in the order of ``forward_int8``.
    Results have no gradient, also while gradients are on."""

Guards = list[tuple[Callable[[], Any], tuple[Any, ...]]]

def prepare_fast_path(
    parameter: type, empty_like: Callable, threads: Callable, of_floats: Guards, of_integers: Guards
) -> None:
    """Gives ``fast_path`` and ``fast_path_int8`` what they need of torch; before, and where torch has no exchange
    API of DLPack, they answer every call with None.  Each guard, of the one or of the other, is a function and the
    objects one of which it has to return."""

def prepare_trained_steps(cells: dict[str, Callable], layers: dict[str, tuple[Callable, int]], guards: Guards) -> None:
    """Gives ``fast_path`` torch's functions of cells and of layers, by mode, which it calls for what is trained while
    these guards answer as they should: of layers, up to so many steps."""

def weight_cache_count() -> int:
    """How many parameters packed weights are kept for: those of which a longer call without gradients was made, while
    their memory lives."""

def storages_are_at_hand() -> bool:
    """Whether this torch tells in C of a tensor's storage, which ``freed`` and ``fast_path`` need."""

def freed(tensors: tuple[Tensor | None, ...]) -> int:
    """The place of the first of these tensors whose storage is too small for it, as after
    ``untyped_storage().resize_(0)``; -1 where there is none."""

def fingerprint(weights: Buffer) -> int:
    """The 64 bits by which cached weights are known, of the bytes of a contiguous buffer."""

def multiply_adds(wanted: int) -> int:
    """Runs ``wanted`` multiply-adds of float32 or some more, on registers alone: the processor's own limit.

    Returns:
        How many it ran, on this one thread.
    """

def multiplies_bfloat16() -> bool:
    """Whether the instruction set in use multiplies bfloat16 itself, or numbers are widened on the fly."""

# layer, x, tokens, h0, c0, weights, y, hn, cn, gates, cells and hidden, by name
ForwardLayer = dict[str, Any]
# layer, x, tokens, h0, c0, weights, gates, cells, hidden, grad_y, grad_hn, grad_cn, grad_cells, grad_x, grad_h0,
# grad_c0 and grad_weights, by name
BackwardLayer = dict[str, Any]

def forward_float(layers: list[ForwardLayer]) -> None:
    """Layers one upon the other, from the lowest: the x of each but the first is the y of the one before."""

def backward_float(layers: list[BackwardLayer]) -> None:
    """The same from the highest: the grad_y of each but the first is the grad_x of the one before."""

def forward_int8(
    *,
    layer: Layer,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    y: Tensor,
    hn: Tensor,
    cn: Tensor | None,
) -> None:
    """``weights`` holds of each direction scale_ih, weight_ih (int8), scale_hh, weight_hh, then, where they are,
    bias_ih and bias_hh, scale_hr and weight_hr; all else is float32."""

forward_double = forward_float
forward_bfloat16 = forward_float  # ``cells`` and ``grad_cells`` hold float32
forward_mixed = forward_float  # x and the matrices of weights hold bfloat16; layers come one by one
backward_double = backward_float
backward_bfloat16 = backward_float
backward_mixed = backward_float

class Program:
    """One step of a recurrence as phases (csrc/phases.h), checked once and run any number of times.

    The dicts of ``spec``, with what each field is when it is left out:

    - program: ``dtype`` "float32" or "float64", ``sizes`` (how many there are), ``arrays``, ``phases``.
    - array: ``kind``, a name of ``ArrayKind``, ``size`` and ``blocks`` = 1 (a number has neither), ``single`` = False,
      ``offset`` of a neighbour (-1 or 1), ``columns_size``, ``columns_parts`` = 1 and ``int8`` = False of a matrix,
      and a ``name`` for messages.
    - phase: ``meets`` = True, ``parts``.
    - part: ``size``, ``function`` (its address), ``operands``, ``results`` = ().
    - operand: ``array``, ``block`` = 0 and ``write`` = False; or ``result``, a place in the part's results.
    - result: ``terms`` and perhaps ``bias``, a dict of ``array`` and ``block`` = 0; or ``mean``, a dict of ``array``,
      ``block`` = 0 and ``heads`` = 1.
    - term: ``array``, ``block`` = 0, ``blocks`` = 1, ``matrix``, ``row_block`` = 0, ``transposed`` = False,
      ``heads`` = 1.

    Raises:
        ValueError: a field is missing, unknown or out of range, or two things do not fit together.
    """

    def __init__(self, spec: dict[str, Any]) -> None: ...
    def run(
        self,
        *,
        steps: int,
        batch: int,
        rows: int,
        batch_sizes: Tensor | None,
        reverse: bool,
        threads: int,
        sizes: Sequence[int],
        arrays: Sequence[Tensor | dict[str, Tensor | None] | None],
        keep: bool = ...,
    ) -> None:
        """Runs all steps, ``rows`` rows in all.

        An array is a tensor on the CPU of the program's dtype, with dense rows; a step's may be further apart than
        their length.  That of a neighbour is a dict of ``history`` and ``initial``, of a state a dict of ``initial``
        and ``final``, each a tensor or None; of a matrix of int8 a dict of ``values``, int8, and ``scales``, one a row;
        of a row None.  What is written does not overlap what else is given.  With ``keep``, packed weights stay for the
        next run of this program while the memory of the first matrix that is an nn.Parameter lives; they are known by
        fingerprints, so no change of the weights goes unnoticed.

        Raises:
            ValueError: a tensor or a size is not as the program asks; the message says what was expected and what came.
        """

def weights_fingerprint(weights: Tensor, count: int, bytes: int) -> int:
    """The fingerprint of a dense tensor of ``count`` numbers of so many bytes each."""

class Stream:
    """A stream of the bytes of a file (csrc/stream_file.h), for ``batch`` rows; see :mod:`fastrnn.streaming`.

    Raises:
        ValueError: the bytes are no such file; the message says what is wrong with them, or the batch is out of range.
    """

    outputs: int
    state_size: int
    def __init__(self, bytes: Buffer, batch: int) -> None: ...
    def step_function(
        self,
        memory: bytearray,
        rows: Tensor,
        row: Tensor | None,
        prepare: Callable[[Any], tuple[int, bool, Tensor]],
        guards: Sequence[tuple[Callable[[], Any], Any]],
    ) -> Callable[[Any], Tensor]:
        """``step(x)``, which returns one of both tensors of ``memory``.  Of an x out of the ordinary, and where one of
        ``guards`` does not return the object beside it, it asks ``prepare`` for the address, whether that is one row
        without a batch, and for what owns the memory."""

    def read(self, bytes: Buffer) -> None:
        """Other weights, of the same sizes; the state stays."""

    def reset(self, rows: list[int] | None) -> None: ...
    def get_state(self, to: Tensor) -> None:
        """The state, ``state_size`` numbers of float32."""

    def set_state(self, state: Tensor) -> None: ...

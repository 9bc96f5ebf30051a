"""What the child processes of ``test_memory_safety.py`` run: ``python memory_programs.py PROGRAM ARGUMENT...``.

With ``FASTRNN_CORE`` the compiled core is that file (``other_core.py``): one built under AddressSanitizer.
"""

from __future__ import annotations

import faulthandler
import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import other_core  # noqa: F401  ahead of fastrnn
import torch
from swaps import Swaps
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

faulthandler.enable()
INPUTS, HIDDEN, STEPS, ROWS = 16, 24, 6, 4

Arguments = dict[str, Any]


def int8(name: str, **options: Any) -> nn.Module:
    return fastrnn.quantize_dynamic(getattr(nn, name)(INPUTS, HIDDEN, **options))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: fastrnn.LSTM(INPUTS, HIDDEN),
    "LSTM of two layers": lambda: fastrnn.LSTM(INPUTS, HIDDEN, num_layers=2),
    "LSTM with a projection": lambda: fastrnn.LSTM(INPUTS, HIDDEN, bidirectional=True, proj_size=8),
    "LSTM of float64": lambda: fastrnn.LSTM(INPUTS, HIDDEN, dtype=torch.float64),
    "LSTM of bfloat16": lambda: fastrnn.LSTM(INPUTS, HIDDEN, dtype=torch.bfloat16),
    "LSTM, recompute": lambda: fastrnn.LSTM(INPUTS, HIDDEN, recompute=True),
    "LSTM, learned": lambda: fastrnn.LSTM(INPUTS, HIDDEN, learn_initial_state=True),
    "GRU": lambda: fastrnn.GRU(INPUTS, HIDDEN),
    "GRU of two directions": lambda: fastrnn.GRU(INPUTS, HIDDEN, bidirectional=True, num_layers=2),
    "RNN": lambda: fastrnn.RNN(INPUTS, HIDDEN),
    "RNN without biases": lambda: fastrnn.RNN(INPUTS, HIDDEN, nonlinearity="relu", bias=False),
    "JordanRNN": lambda: fastrnn.JordanRNN(INPUTS, HIDDEN, 8),
    "LSTMCell": lambda: fastrnn.LSTMCell(INPUTS, HIDDEN),
    "GRUCell": lambda: fastrnn.GRUCell(INPUTS, HIDDEN),
    "RNNCell": lambda: fastrnn.RNNCell(INPUTS, HIDDEN),
    "int8 LSTM": lambda: int8("LSTM", num_layers=2),
    "int8 GRU": lambda: int8("GRU", bidirectional=True),
    "int8 RNN": lambda: int8("RNN"),
    "int8 LSTMCell": lambda: int8("LSTMCell"),
    "int8 GRUCell": lambda: int8("GRUCell"),
}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors(part)]


def own(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module by name."""
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))


def arguments(name: str, module: Any, form: str, steps: int = STEPS) -> Arguments:
    """What a call of this form is given, by name; ``run`` puts it together."""
    dtype = torch.float64 if "float64" in name else torch.bfloat16 if "bfloat16" in name else torch.float32
    cell = "Cell" in name
    lead = (ROWS,) if cell else (steps, ROWS)
    given: Arguments = {"x": torch.randn(*lead, INPUTS, dtype=dtype)}
    if form == "tokens":
        given["x"] = torch.randint(INPUTS, lead)
    if form == "packed":
        packed = pack_padded_sequence(given["x"], torch.tensor([steps, steps, 3, 1][:ROWS]))
        given = {"x": packed.data, "batch_sizes": packed.batch_sizes}
    if form in ("state", "packed"):
        slots = () if cell else (module.num_layers * (2 if module.bidirectional else 1),)
        units = HIDDEN if cell else getattr(module, "proj_size", 0) or HIDDEN
        given["h0"] = torch.randn(*slots, ROWS, units, dtype=dtype)
        if "LSTM" in name:
            given["c0"] = torch.randn(*slots, ROWS, HIDDEN, dtype=dtype)
    return given


def run(module: Any, given: Arguments) -> list[Tensor]:
    x = given["x"]
    if "batch_sizes" in given:
        x = PackedSequence(x, given["batch_sizes"])
    hx = (given["h0"], given["c0"]) if "c0" in given else given.get("h0")
    return tensors(module(x, hx))


def forms(name: str) -> tuple[str, ...]:
    if "Cell" in name:
        return "plain", "state"
    return ("plain", "state", "packed") if "int8" in name else ("plain", "state", "packed", "tokens")


def functions() -> Iterator[tuple[str, Callable[[nn.Module, Arguments], list[Tensor]]]]:
    """`run`, and the same by the functions, for the modules that have one."""
    for name in MODULES:
        yield name, run
    for name, function in {"LSTM": fastrnn.lstm, "GRU": fastrnn.gru, "RNN": fastrnn.rnn}.items():

        def call(module: Any, given: Arguments, function: Any = function) -> list[Tensor]:
            hx = (given["h0"], given["c0"]) if "c0" in given else given.get("h0")
            return tensors(function(given["x"], hx, module._flat_weights, batch_sizes=given.get("batch_sizes")))

        yield name, call


def freed(backend: str, when: str, every: str = "1") -> None:
    """Every tensor of every call in turn without its memory, or with half of it: an error, and the next call is right.

    ``when``: before forward without gradients, before forward with them, or between forward and backward.
    ``every``: every so manieth of these alone.
    """
    count = 0
    for name, call in functions():
        for form in forms(name):
            if "int8" in name and (when != "inference" or backend not in ("quick", "cpp")):
                continue  # it has no gradients, and one path
            if backend == "quick" and when == "backward" and "Cell" in name:
                continue  # trained by torch's own function, whose backward takes memory for granted
            if backend == "numba" and ("bfloat16" in name or "Jordan" in name):
                continue  # it does not serve them
            module = MODULES[name]()
            given = arguments(name, module, form)
            gradients = torch.no_grad() if when == "inference" else nullcontext()
            with gradients, fastrnn.use_backend(backend) if backend != "quick" else nullcontext():
                expected = [part.clone() for part in call(module, given)]
                call(module, given)
                for victim, part in itertools.product((*own(module), *given), (0, 2)):
                    of_module = victim not in given
                    tensor = own(module)[victim] if of_module else given[victim]
                    if part and not (of_module or victim in ("h0", "c0", "x")):
                        continue
                    count += 1
                    if count % int(every):
                        continue
                    print(f"{name}, {call.__name__}, {form}, {victim}, {'half' if part else 'all'}", flush=True)
                    if victim.startswith("initial") and form in ("state", "packed"):
                        continue  # not read where there is a state
                    storage = tensor.untyped_storage()
                    size, kept = storage.nbytes(), tensor.detach().clone()
                    if when == "backward":
                        unread = ["bias", "initial"]
                        if backend == "reference":  # x has no gradient, nor has a cell's state
                            unread += ["weight_ih", "weight_hh"][: 1 + ("Cell" in name)]
                        reads = not any(each in victim for each in unread)
                        outputs = call(module, given)
                    storage.resize_(size // part if part else 0)
                    try:
                        if when == "backward":
                            torch.autograd.backward(
                                [out for out in outputs if out.requires_grad],
                                [torch.ones_like(out) for out in outputs if out.requires_grad],
                            )
                        else:
                            call(module, given)
                    except RuntimeError:
                        pass
                    else:
                        assert when == "backward" and not reads, "no error"
                    storage.resize_(size)
                    tensor.detach().copy_(kept)
                    found = call(module, given)
                    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "off afterwards"
    assert count > 800


def elsewhere(every: str = "1") -> None:
    """A parameter or buffer on the meta device, an argument on the CPU: an error in all classes and forms."""
    count = 0
    for name, make in MODULES.items():
        for form, gradients in itertools.product(forms(name), (False, True)):
            for victim in own(make()):
                if victim.startswith("initial") and form in ("state", "packed"):
                    continue  # not read where there is a state
                count += 1
                if count % int(every):
                    continue
                module = make()
                given = arguments(name, module, form)
                with torch.set_grad_enabled(gradients):
                    run(module, given)
                    print(name, form, victim, flush=True)
                    owner: Any = module
                    if victim in dict(module.named_buffers()):
                        setattr(owner, victim, getattr(owner, victim).to("meta"))
                    else:
                        setattr(owner, victim, nn.Parameter(getattr(owner, victim).detach().to("meta")))
                    try:
                        run(module, given)
                    except (RuntimeError, ValueError, NotImplementedError):
                        continue
                    raise AssertionError("no error")


LONG: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {  # module, shape of x, whether it trains
    "GRU": (lambda: fastrnn.GRU(512, 1024), (40, 2, 512), False),
    "GRU of bfloat16": (lambda: fastrnn.GRU(128, 256, dtype=torch.bfloat16), (40, 2, 128), False),
    "LSTM": (lambda: fastrnn.LSTM(128, 256, num_layers=2), (40, 8, 128), False),
    "a small LSTM": (lambda: fastrnn.LSTM(16, 24), (6, 1, 16), False),
    "LSTM that trains": (lambda: fastrnn.LSTM(64, 128), (20, 8, 64), True),
    "GRU that trains": (lambda: fastrnn.GRU(64, 128, bidirectional=True), (20, 8, 64), True),
    "JordanRNN": (lambda: fastrnn.JordanRNN(64, 128, 32), (40, 8, 64), False),
    "LSTMCell": (lambda: fastrnn.LSTMCell(512, 512), (32, 512), False),
    "RNNCell that trains": (lambda: fastrnn.RNNCell(256, 256), (32, 256), True),
    "int8 LSTM": (lambda: fastrnn.quantize_dynamic(nn.LSTM(256, 512)), (40, 4, 256), False),
    "int8 GRUCell": (lambda: fastrnn.quantize_dynamic(nn.GRUCell(512, 512)), (32, 512), False),
}


def stress(kind: str, way: str, seconds: str, backend: str = "") -> None:
    """Two threads call a module, a third one writes to it, in one of the ``way``s:

    ``exchange``
        A weight for another: each result is, bit for bit, that of one or the other.
    ``damage``
        Weights freed, deleted, moved, cast and loaded: whatever a call gives or raises, it ends; afterwards the module,
        whole again, gives what it gave.
    """
    torch.manual_seed(0)
    make, shape, trains = LONG[kind]
    module: Any = make()
    x = torch.randn(shape, dtype=torch.bfloat16 if "bfloat16" in kind else torch.float32)
    name = "weight_hh" if "Cell" in kind else "weight_hh_l0"
    first = {key: value.detach().clone() for key, value in module.state_dict().items()}
    other = first[name].flip(0)
    end = time.monotonic() + float(seconds)
    told: Counter[str] = Counter()
    problems: list[str] = []

    def going() -> bool:
        """Until the time is over, or on a slow machine until there were some calls and some writes."""
        enough = time.monotonic() > end and min(told["writes"], told.total() - told["writes"]) > 5
        return not (enough or problems or time.monotonic() > end + 60)

    def call() -> list[Tensor]:
        with fastrnn.use_backend(backend) if backend else nullcontext(), torch.set_grad_enabled(trains):
            results = tensors(module(x))
            if trains:
                (grad,) = torch.autograd.grad(sum(part.sum() for part in results), [leaf])
                results = [*results, grad]
            return [part.detach().clone() for part in results]

    leaf = x.requires_grad_() if trains else x
    known = []
    swaps = Swaps(module, name)
    for weight in (first[name], other):
        swaps.assign_data(weight)
        known.append(call())

    def caller() -> None:
        while going():
            try:
                found = call()
            except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                told[type(error).__name__] += 1
                if way == "exchange" and "modified by an inplace operation" not in str(error):
                    problems.append(f"{type(error).__name__}: {error}")
                continue
            told["results"] += 1
            right = any(all(torch.equal(a, b) for a, b in zip(found, one, strict=True)) for one in known)
            if way == "exchange" and not trains and not right:
                problems.append(f"off by {(found[0] - known[0][0]).abs().max().item()}")

    def exchange() -> Iterator[Callable[[], None]]:
        for weight in (other, first[name]):
            for change in (swaps.assign_data, swaps.assign, swaps.put):
                yield lambda change=change, weight=weight: change(weight)

    def restore() -> None:
        for key, value in first.items():
            tensor = value.clone()
            setattr(module, key, tensor if key in module._buffers else nn.Parameter(tensor))

    def damage() -> Iterator[Callable[[], None]]:
        for key in first:
            yield lambda key=key: setattr(getattr(module, key), "data", torch.empty(0))
            yield restore
            yield lambda key=key: delattr(module, key)
            yield restore_deleted
            yield lambda key=key: setattr(getattr(module, key), "data", first[key][:1].clone())
            yield restore
            if "int8" not in kind:  # one by one: torch.nn's own functions, which raise for all at once, survive no move
                yield lambda key=key: setattr(module, key, nn.Parameter(first[key].to("meta")))
                yield restore
                yield lambda key=key: setattr(module, key, nn.Parameter(first[key].double()))
                yield restore
        yield lambda: module.load_state_dict({key: (value * 0.5).to(value.dtype) for key, value in first.items()})
        yield lambda: module.load_state_dict(first)

    def restore_deleted() -> None:
        for key, value in first.items():
            if not hasattr(module, key):
                if "int8" in kind:
                    module.register_buffer(key, value.clone())
                else:
                    module.register_parameter(key, nn.Parameter(value.clone()))

    callers = [threading.Thread(target=caller) for _ in range(2)]
    for thread in callers:
        thread.start()
    while going():
        for change in exchange() if way == "exchange" else damage():
            change()
            told["writes"] += 1
            time.sleep(0.0005)
    for thread in callers:
        thread.join()
    assert not problems, problems
    restore_deleted()
    restore()
    found = call()
    assert all(torch.equal(a, b) for a, b in zip(found, known[0], strict=True)), "other results afterwards"
    print(kind, way, dict(told))
    assert told["writes"] > 5 and told.total() - told["writes"] > 5


def stresses(seconds: str, *kinds: str) -> None:
    """`stress` of each of these modules, or of all, in both ways."""
    for kind, way in itertools.product(kinds or LONG, ("exchange", "damage")):
        stress(kind, way, seconds)


def everything(seconds: str) -> None:
    """All programs, for a sanitizer."""
    for backend, when in itertools.product(("quick", "cpp"), ("inference", "training", "backward")):
        freed(backend, when)
    elsewhere()
    stresses(seconds)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    sys.stdout.flush()

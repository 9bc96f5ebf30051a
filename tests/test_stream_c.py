"""The C library: the same bits as Python's handle, files checked to the last byte, no memory taken by a step."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import streaming
from fastrnn.backends import cpp

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CC") or shutil.which("cc") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="a C compiler is missing")
INCLUDE, LIBRARY = streaming.c_library()
OK, CANNOT_READ, NOT_A_STREAM, OTHER_VERSION, WRONG_SIZE, WRONG_CHECKSUM, MALFORMED = range(7)
BAD_ARGUMENT, BAD_TOKEN = 8, 9


def made(build: Callable[..., Any], *sizes: int, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(*sizes, **options).eval()


@pytest.fixture(scope="module")
def library() -> Any:
    found = ctypes.CDLL(str(LIBRARY))
    found.fastrnn_error.restype = found.fastrnn_status_text.restype = ctypes.c_char_p
    for name in ("batch", "inputs", "outputs", "vocabulary", "state_size"):
        function = getattr(found, f"fastrnn_stream_{name}")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    for name in ("step", "step_tokens"):
        getattr(found, f"fastrnn_stream_{name}").argtypes = [ctypes.c_void_p] * 3
    for name in ("get_state", "set_state"):
        getattr(found, f"fastrnn_stream_{name}").argtypes = [ctypes.c_void_p] * 2
    found.fastrnn_stream_reset.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.fastrnn_stream_free.argtypes = [ctypes.c_void_p]
    found.fastrnn_stream_read.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p]
    found.fastrnn_stream_load.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p]
    return found


class Handle:
    """A handle of the C library, by Python's own way into shared libraries."""

    def __init__(self, library: Any, path: Path, batch: int) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        status = library.fastrnn_stream_load(os.fsencode(path), batch, ctypes.byref(self.handle))
        assert status == OK, library.fastrnn_error()
        self.y = torch.empty(batch, library.fastrnn_stream_outputs(self.handle))

    def step(self, x: Tensor) -> Tensor:
        name = "step" if x.is_floating_point() else "step_tokens"
        x = x.float() if x.is_floating_point() else x
        function = getattr(self.library, f"fastrnn_stream_{name}")
        assert function(self.handle, x.data_ptr(), self.y.data_ptr()) == OK
        return self.y.clone()

    def __del__(self) -> None:
        self.library.fastrnn_stream_free(self.handle)


def chain(dtype: torch.dtype) -> nn.Module:
    parts = (
        nn.Embedding(11, 7),
        fastrnn.LSTM(7, 9, num_layers=2, proj_size=5, learn_initial_state=True),
        nn.Linear(5, 3),
    )
    nn.init.normal_(parts[1].initial_h)
    return nn.Sequential(*parts).to(dtype)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: made(nn.LSTM, 64, 64),
    "GRU": lambda: made(nn.GRU, 5, 33, num_layers=2),
    "RNN without biases": lambda: made(nn.RNN, 9, 16, bias=False, nonlinearity="relu"),
    "int8": lambda: fastrnn.quantize_dynamic(made(nn.LSTM, 21, 40, proj_size=9)),
    "int8 but for the inputs": lambda: fastrnn.quantize_dynamic(made(nn.GRU, 9, 40, num_layers=2)),
    "bfloat16": lambda: made(nn.GRU, 15, 31).bfloat16(),
    "a chain": lambda: made(chain, torch.float32),
    "a chain of bfloat16": lambda: made(chain, torch.bfloat16),
}


def inputs(model: nn.Module, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, nn.Sequential):
        return torch.randint(11, (12, batch), generator=generator)
    module: Any = model
    dtype = torch.bfloat16 if next(model.parameters(), torch.empty(0)).dtype is torch.bfloat16 else torch.float32
    return torch.randn(12, batch, module.input_size, generator=generator).to(dtype)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_both_handles_give_the_same_bits(name: str, batch: int, library: Any, tmp_path: Path):
    model = MODELS[name]()
    ours = fastrnn.stream(model, batch)
    ours.save(tmp_path / "model.stream")
    theirs = Handle(library, tmp_path / "model.stream", batch)
    x = inputs(model, batch)
    for step in x:
        assert torch.equal(ours.step(step).float(), theirs.step(step))
    state = torch.empty(library.fastrnn_stream_state_size(theirs.handle))
    assert library.fastrnn_stream_get_state(theirs.handle, state.data_ptr()) == OK
    own = ours.state if isinstance(ours.state, tuple) else (ours.state,)
    layers = [each[k].float().reshape(-1) for k in range(len(own[0])) for each in own]
    assert torch.equal(torch.cat(layers), state)
    for row in (batch - 1, -1):
        assert library.fastrnn_stream_reset(theirs.handle, row) == OK
        ours.reset(None if row < 0 else row)
        assert torch.equal(ours.step(x[0]).float(), theirs.step(x[0]))
    again = Handle(library, tmp_path / "model.stream", batch)
    assert library.fastrnn_stream_set_state(again.handle, state.data_ptr()) == OK
    ours.state = own if len(own) == 2 else own[0]
    assert torch.equal(ours.step(x[1]).float(), again.step(x[1]))


def test_floats_are_rounded_to_a_models_bfloat16_as_torch_does(library: Any, tmp_path: Path):
    model = made(nn.GRU, 15, 31).bfloat16()
    handle = fastrnn.stream(model)
    handle.save(tmp_path / "model.stream")
    theirs = Handle(library, tmp_path / "model.stream", 1)
    for x in torch.randn(5, 1, 15):
        assert torch.equal(handle.step(x.bfloat16()).float(), theirs.step(x))


def test_what_is_no_call_is_refused(library: Any, tmp_path: Path):
    fastrnn.stream(made(nn.GRU, 4, 4)).save(tmp_path / "model.stream")
    fastrnn.stream(made(chain, torch.float32)).save(tmp_path / "chain.stream")
    plain, tokens = Handle(library, tmp_path / "model.stream", 2), Handle(library, tmp_path / "chain.stream", 1)
    x, y, token = torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([11])
    assert library.fastrnn_stream_step(plain.handle, None, y.data_ptr()) == BAD_ARGUMENT
    assert library.fastrnn_stream_step(None, x.data_ptr(), y.data_ptr()) == BAD_ARGUMENT
    assert library.fastrnn_stream_step_tokens(plain.handle, token.data_ptr(), y.data_ptr()) == BAD_ARGUMENT
    assert library.fastrnn_stream_step(tokens.handle, x.data_ptr(), y.data_ptr()) == BAD_ARGUMENT
    assert library.fastrnn_stream_step_tokens(tokens.handle, token.data_ptr(), y.data_ptr()) == BAD_TOKEN
    assert b"a token is out of range" in library.fastrnn_error()
    assert library.fastrnn_stream_outputs(None) == 0 and library.fastrnn_stream_outputs(plain.handle) == 4
    for row in (-2, 2):
        assert library.fastrnn_stream_reset(plain.handle, row) == BAD_ARGUMENT
    for batch in (0, -1, 1 << 21):
        to = ctypes.c_void_p(1)
        path = os.fsencode(tmp_path / "model.stream")
        assert library.fastrnn_stream_load(path, batch, ctypes.byref(to)) == BAD_ARGUMENT and not to
        assert b"batch: expected 1 to 1048576" in library.fastrnn_error()
    for path in (tmp_path / "none", tmp_path):
        assert library.fastrnn_stream_load(os.fsencode(path), 1, ctypes.byref(to)) == CANNOT_READ and not to
    assert library.fastrnn_stream_load(None, 1, ctypes.byref(to)) == BAD_ARGUMENT
    texts = {library.fastrnn_status_text(status) for status in range(11)}
    assert len(texts) == 11 and library.fastrnn_status_text(11) == b"unknown status"


def status_of(library: Any, image: bytes) -> int:
    to = ctypes.c_void_p()
    status = library.fastrnn_stream_read(image, len(image), 1, ctypes.byref(to))
    assert bool(to) == (status == OK)
    library.fastrnn_stream_free(to)
    return status


@pytest.fixture(params=["a chain", "int8"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    fastrnn.stream(MODELS[request.param]()).save(tmp_path / "model.stream")
    return (tmp_path / "model.stream").read_bytes()


def sealed(image: bytearray) -> bytes:
    """With the size and the checksum that its bytes have: what nobody but the checks of each field can tell."""
    image[16:24] = struct.pack("<Q", len(image))
    image[12:16] = struct.pack("<I", zlib.crc32(memoryview(image)[16:]))
    return bytes(image)


def test_every_cut_and_every_flipped_bit_is_seen(image: bytes, library: Any):
    assert status_of(library, image) == OK
    for size in [*range(200), *range(200, len(image), 37)]:
        assert status_of(library, image[:size]) == (NOT_A_STREAM if size < 16 else WRONG_SIZE), size
    assert status_of(library, image + b"\0") == WRONG_SIZE
    generator = random.Random(0)
    for place in [*range(200), *(generator.randrange(len(image)) for _ in range(400))]:
        flipped = bytearray(image)
        flipped[place] ^= 1 << generator.randrange(8)
        expected = (
            NOT_A_STREAM if place < 8 else OTHER_VERSION if place < 12 else WRONG_SIZE if 16 <= place < 24
            else WRONG_CHECKSUM
        )  # fmt: skip
        assert status_of(library, bytes(flipped)) == expected, place


def test_files_that_only_seem_right_are_refused_and_never_read_beyond(image: bytes, library: Any):
    """Changed at will and sealed again: fields are checked by themselves, whatever the checksum says."""
    generator = random.Random(1)
    statuses = []
    for _ in range(1500):
        changed = bytearray(image)
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(24, 160)
            changed[place] = generator.choice([0, 1, 2, 127, 128, 255, generator.randrange(256)])
        if generator.random() < 0.3:
            changed = changed[: generator.randrange(64, len(image))]
        statuses.append(status_of(library, sealed(changed)))
    assert set(statuses) <= {OK, MALFORMED} and statuses.count(MALFORMED) > 1000


FIELDS = {
    "numbers: expected 0 or 1": (24, "<I", 2),
    "layers: expected 1 to 1024, got 0": (28, "<I", 0),
    "layers: expected 1 to 1024, got 1025": (28, "<I", 1025),
    "vocabulary: expected 0 to": (32, "<Q", 1 << 40),
    "inputs: expected 1 to": (40, "<Q", 0),
    "bias of the linear layer": (56, "<I", 2),
    "reserved": (60, "<I", 1),
    "layer 0, mode: expected 0 to 3": (64, "<I", 4),
    "layer 0, flags": (68, "<I", 16),
    "layer 0, hidden units: expected 1 to": (72, "<Q", 0),
    "the projection of an LSTM": (64, "<I", 3),
    "more numbers than the file has": (72, "<Q", 1 << 30),
}


@pytest.mark.parametrize("message", FIELDS)
def test_fields_are_named(message: str, tmp_path: Path, library: Any):
    fastrnn.stream(MODELS["a chain"]()).save(tmp_path / "model.stream")
    place, form, value = FIELDS[message]
    changed = bytearray((tmp_path / "model.stream").read_bytes())
    struct.pack_into(form, changed, place, value)
    assert status_of(library, sealed(changed)) == MALFORMED
    assert message in library.fastrnn_error().decode()


def test_numbers_of_int8_are_symmetric(tmp_path: Path, library: Any):
    narrow = fastrnn.quantize_dynamic(made(nn.GRU, 4, 4))
    narrow.weight_ih_l0[0, 0] = -128
    with pytest.raises(ValueError, match="expected -127 to 127, got -128"):
        fastrnn.stream(narrow)


def compiled(source: Path, to: Path, *flags: str) -> Path:
    folder = LIBRARY.parent
    command = [*COMPILER.split(), "-O2", "-Wall", "-Wextra", "-Werror", str(source), f"-I{INCLUDE}", str(LIBRARY)]
    done = subprocess.run([*command, f"-Wl,-rpath,{folder}", *flags, "-o", str(to)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to


@needs_compiler
@pytest.mark.parametrize("name", ["LSTM", "a chain"])
def test_the_example_in_c_gives_pythons_bits(name: str, tmp_path: Path):
    program = compiled(ROOT / "examples" / "c" / "stream.c", tmp_path / "stream")
    model = MODELS[name]()
    handle, x = fastrnn.stream(model), inputs(model, 1)
    handle.save(tmp_path / "model.stream")
    expected = torch.stack([handle.step(step).clone() for step in x])
    given = bytes(x.reshape(-1).view(torch.uint8).tolist())
    done = subprocess.run([program, tmp_path / "model.stream"], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view_as(expected)
    assert torch.equal(found, expected)
    (tmp_path / "cut").write_bytes((tmp_path / "model.stream").read_bytes()[:-1])
    done = subprocess.run([program, tmp_path / "cut"], input=given, capture_output=True, text=False)
    assert done.returncode == 1 and b"cut short" in done.stderr


@needs_compiler
@pytest.mark.parametrize("standard", ["-std=c99", "-xc++"])
def test_the_header_stands_alone(standard: str, tmp_path: Path):
    source = "#include <fastrnn_stream.h>\nint main(void) { return fastrnn_error() == 0; }\n"
    command = [*COMPILER.split(), standard, "-pedantic-errors", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
    language = [] if standard.startswith("-x") else ["-xc"]
    done = subprocess.run([*command, *language, "-fsyntax-only", "-"], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def no_memory(tmp_path: Path, steps: int) -> None:
    program = compiled(ROOT / "tests" / "native" / "stream_steps.c", tmp_path / "steps", "-pthread")
    for name in ("LSTM", "int8", "bfloat16"):
        fastrnn.stream(MODELS[name]()).save(tmp_path / "model.stream")
        done = subprocess.run([program, tmp_path / "model.stream", str(steps)], capture_output=True, text=True)
        during, in_all = (int(line.split()[0]) for line in done.stdout.splitlines())
        assert during == 0 and in_all > 10, done.stdout  # the counter counts
        assert not subprocess.run([program, tmp_path / "model.stream", "threads"]).returncode


@needs_compiler
@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "confstr"), reason="the counter is for glibc")
def test_steps_take_no_memory(tmp_path: Path):
    no_memory(tmp_path, 20_000)


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "confstr"), reason="the counter is for glibc")
def test_a_million_steps_take_no_memory(tmp_path: Path):
    no_memory(tmp_path, 1_000_000)


def test_the_library_needs_neither_python_nor_openmp():
    if not shutil.which("ldd"):
        pytest.skip("ldd is missing")
    found = subprocess.run(["ldd", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in found and not any(word in found for word in ("python", "gomp", "torch", "not found"))

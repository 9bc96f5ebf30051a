"""`make fuzz`: many generated networks and calls, in processes whose death is a result too.

Every case is written down before it runs.  Where a process dies, or stands still, that case is what it died of; where
fastrnn differs, the case is made as small as it gets.  Each is printed as what a Python prompt takes::

    PYTHONPATH=tests python -m fuzz --replay "Case(kind='GRU', rows=1)"
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

NOTHING = "no case yet"
STILL = 300.0  # seconds for one case, with the compilation of a kernel


class Run:
    """The parent's side: chunks of examples given out to processes, and what came back."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.lock, self.begun = arguments, threading.Lock(), time.monotonic()
        self.given = self.examples = 0
        self.found: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._serve, args=(k,)) for k in range(arguments.processes)]

    def run(self) -> int:
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            self.threads[-1].join(timeout=30)
            self.report()
        for thread in self.threads:
            thread.join()
        self.report()
        return 1 if self.found else 0

    def report(self) -> None:
        seconds = time.monotonic() - self.begun
        found = ", ".join(f"{count} {what}" for what, count in self.found.items()) or "no difference, no crash"
        text = f"{self.examples} of {self.arguments.examples} examples in {seconds:.0f} s"
        print(f"{text}, {self.examples / max(seconds, 1):.1f} a second: {found}", flush=True)

    def next_chunk(self) -> tuple[int, int] | None:
        """A seed and a number of examples."""
        with self.lock:
            number, size = self.given // self.arguments.chunk, self.arguments.chunk
            count = min(size, self.arguments.examples - self.given)
            self.given += size
            return (self.arguments.seed + number, count) if count > 0 else None

    def note(self, what: str, seed: int, text: str) -> None:
        with self.lock:
            self.found[what] += 1
            print(f"--- {what}, seed {seed}\n{text}", flush=True)

    def _serve(self, k: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            worker = None
            while chunk := self.next_chunk():
                worker = worker or _start(place)
                if not self._chunk(worker, place, *chunk):
                    worker = None
            if worker is not None:
                assert worker.stdin is not None
                worker.stdin.close()
                worker.wait()

    def _chunk(self, worker: Any, place: Path, seed: int, count: int) -> bool:
        """Whether the process lives on."""
        case, stalled = place / "case", threading.Event()

        def watch() -> None:
            while worker.poll() is None and not done.wait(5):
                if case.exists() and time.time() - case.stat().st_mtime > STILL:
                    stalled.set()
                    worker.send_signal(signal.SIGABRT)  # faulthandler writes where it stood
                    return

        done = threading.Event()
        case.write_text(json.dumps([0, NOTHING]))
        watcher = threading.Thread(target=watch)
        watcher.start()
        print(seed, count, file=worker.stdin, flush=True)
        answer = worker.stdout.readline()
        done.set()
        watcher.join()
        if answer:
            result = json.loads(answer)
            with self.lock:
                self.examples += result["examples"]
            if result["text"]:
                self.note("differences", seed, result["text"])
            return True
        number, last = json.loads(case.read_text())
        with self.lock:
            self.examples += number
        errors = (place / "stderr").read_text()[-3000:]
        what = "standstills" if stalled.is_set() else "crashes"
        self.note(what, seed, f"exit status {worker.wait()}, in {last}\n{errors}")
        if last == NOTHING:
            self.given = self.arguments.examples  # nor will the next one start
        return False


def _start(place: Path) -> Any:
    command = [sys.executable, "-m", "fuzz", "--worker", str(place / "case")]
    with open(place / "stderr", "w") as errors:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)


def work(written: str) -> None:
    """A worker: for each line of standard input, a chunk of examples and a line with its result."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print
    faulthandler.enable()
    import warnings

    import torch
    from fuzz.strategies import calls
    from hypothesis import HealthCheck, Phase, given, seed, settings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote to holds NaN
    chosen = dict(database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    phases = [Phase.generate, Phase.shrink]
    case_file = os.open(written, os.O_WRONLY | os.O_CREAT)
    for line in sys.stdin:
        number, count = map(int, line.split())
        done, failed, last = 0, False, None

        @seed(number)
        @settings(max_examples=count, phases=phases, **chosen)  # type: ignore[arg-type]
        @given(calls(number))
        def chunk(case: Any) -> None:
            nonlocal done, failed, last
            done, last = done + (not failed), case
            text = json.dumps([done, repr(case)]).encode()
            os.pwrite(case_file, text, 0)
            os.ftruncate(case_file, len(text))
            try:
                play_any(case)
            except Exception:
                failed = True
                raise

        text = ""
        try:
            chunk()
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__)[-2:])
            text = f"{last}\n{where}{type(error).__name__}: {error}"[:4000]
        print(json.dumps({"examples": done, "text": text}), file=results, flush=True)


def play_any(case: Any) -> None:
    from fuzz.bad import BadCall, play_bad
    from fuzz.play import play

    play_bad(case) if isinstance(case, BadCall) else play(case)


def replay(text: str) -> None:
    from fuzz.bad import BadCall
    from fuzz.cases import Case

    play_any(eval(text, {"Case": Case, "BadCall": BadCall}))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--chunk", type=int, default=500, help="examples that one seed generates")
    parser.add_argument("--replay", metavar="CASE", help="run one case alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return 0
    if arguments.replay:
        replay(arguments.replay)
        return 0
    print(f"seed {arguments.seed}", flush=True)
    return Run(arguments).run()


if __name__ == "__main__":
    sys.exit(main())

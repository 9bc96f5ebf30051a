"""What a stranger does first with an installed fastrnn, beside torch alone: run with ``python -I`` from any folder.

The installed package is live on its compiled core, has every instruction set of the wheel that this machine runs, and
gives what torch.nn gives, forward, backward, converted and with weights of 8 bits; then the first block of the README
given as an argument runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

import fastrnn
from fastrnn import _core, backends


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def main() -> None:
    assert "site-packages" in fastrnn.__file__, fastrnn.__file__
    assert backends.available()["cpp"] is None, backends.available()
    assert "generic" in _core.supported_isas() and _core.isa() == _core.supported_isas()[0]
    torch.manual_seed(0)
    for kind in ("RNN", "LSTM", "GRU"):
        theirs = getattr(torch.nn, kind)(20, 40, 2, bidirectional=True)
        ours = getattr(fastrnn, kind)(20, 40, 2, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(9, 5, 20)
        close(ours(x)[0], theirs(x)[0])
        ours(x)[0].square().sum().backward()
        theirs(x)[0].square().sum().backward()
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(own.grad, other.grad)
    model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
    x = torch.randn(4, 2, 8)
    before = model(x)[0]
    close(fastrnn.convert(model)(x)[0], before)
    narrow = fastrnn.quantize_dynamic(model)(x)[0]
    assert (narrow - before).abs().max() < 0.02
    if len(sys.argv) > 1:
        block = re.search(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)
        assert block, f"{sys.argv[1]} has no block of Python"
        exec(compile(block[1], sys.argv[1], "exec"), {})
    print(f"fastrnn {fastrnn.__version__} runs on {_core.isa()}, beside torch {torch.__version__}")


if __name__ == "__main__":
    main()

"""Packages of AOTInductor: what calls fastrnn's operator loads where fastrnn is imported; what does not, anywhere."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import fastrnn

COMPILER = os.environ.get("CXX") or shutil.which("g++")
pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights"),  # of torch.nn's modules as well
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # where Inductor packs weights for oneDNN
]
FORMS = ["torch.nn's", "default", "reverted", "compilable"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, num_layers=2, bidirectional=True)

    def forward(self, x: Tensor) -> Any:
        y, state = self.rnn(x.tanh())
        return y.tanh(), state


def exported(form: str) -> tuple[nn.Module, ExportedProgram]:
    """torch.nn's model, and what torch.export makes of it; T and B are symbols where fastrnn's operator holds them."""
    torch.manual_seed(0)
    theirs = Model().eval()
    model = copy.deepcopy(theirs)
    if form != "torch.nn's":
        model = fastrnn.convert(model, compilable=form != "default")
    if form == "reverted":
        model = fastrnn.revert(model)
    sizes = ({0: Dim("T", min=2), 1: Dim("B", min=2)},) if form == "compilable" else None
    with torch.no_grad():
        return theirs, export(model, (torch.randn(6, 3, 4),), dynamic_shapes=sizes)


@pytest.mark.parametrize("form", FORMS)
def test_which_operators_a_package_would_call(form: str):
    calls = {str(node.target) for node in exported(form)[1].graph.nodes if node.op == "call_function"}
    assert ("fastrnn.layer.default" in calls) is (form == "compilable")
    assert ("aten.gru.input" in calls) is (form != "compilable")
    assert not {call for call in calls if call.startswith("fastrnn.")} - {"fastrnn.layer.default"}


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("form", ["default", "compilable"])
def test_a_package_gives_what_the_model_gives(form: str, tmp_path: Path):
    theirs, program = exported(form)
    package, data = str(tmp_path / "model.pt2"), str(tmp_path / "data.pt")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    calls = [torch.randn(6, 3, 4)] + [torch.randn(9, 2, 4)] * (form == "compilable")
    with torch.no_grad():
        torch.save([(x, theirs(x)) for x in calls], data)
    run = (
        f"import torch; model = torch._inductor.aoti_load_package({package!r})\n"
        f"for x, expected in torch.load({data!r}):\n"
        "    for found, right in zip(model(x), expected, strict=True): torch.testing.assert_close(found, right)\n"
    )
    alone, beside = (
        subprocess.run([sys.executable, "-c", f"{first}{run}"], capture_output=True, text=True)
        for first in ("", "import fastrnn\n")
    )
    assert beside.returncode == 0, beside.stderr
    if form == "compilable":
        assert alone.returncode != 0 and "fastrnn::layer" in alone.stderr, alone.stderr
    else:
        assert alone.returncode == 0, alone.stderr

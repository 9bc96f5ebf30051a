"""Classes that derive from torch.nn's, taken along; what `convert` reports; models built where ours are asked for."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn import __main__ as main
from fastrnn import derived

X = torch.linspace(-1, 1, 5 * 3 * 4).view(5, 3, 4)


class Scaled(nn.LSTM):
    """As many libraries write one: arguments of its own, torch.nn's forward, something behind it."""

    def __init__(self, size: int, scale: float = 2.0) -> None:
        super().__init__(size, size)
        self.scale = scale

    def forward(self, input, hx=None):  # type: ignore[override]
        y, state = super().forward(input, hx)
        return self.scale * y, state


class Longer(Scaled):
    """One more class between."""


class ScaledCell(nn.GRUCell):
    def forward(self, input, hx=None):
        return 2 * super().forward(input, hx)


class Checked(nn.LSTM):
    """Overrides what torch.nn's forward calls inside."""

    def check_forward_args(self, input, hidden, batch_sizes):
        raise ValueError("mine")


class Abstract(nn.GRU, ABC):
    """As those of pytorch-forecasting."""

    @abstractmethod
    def named(self) -> str: ...


class Concrete(Abstract):
    def named(self) -> str:
        return "concrete"


class Meta(type):
    pass


class OfMeta(nn.GRU, metaclass=Meta):
    pass


def reached(module: nn.Module, monkeypatch: pytest.MonkeyPatch, *args: torch.Tensor) -> bool:
    """Whether a call comes to ours, in Python: gradients are on."""
    import fastrnn.cell_modules
    import fastrnn.modules

    calls: list[object] = []
    with monkeypatch.context() as patched:
        for where, name in ((fastrnn.modules, "run"), (fastrnn.cell_modules, "step")):
            real = getattr(where, name)
            patched.setattr(where, name, lambda *a, real=real, **k: (calls.append(a), real(*a, **k))[1])
        module(*args)
    return bool(calls)


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (lambda: Scaled(4), (X,)),
        (lambda: Longer(4, 3.0), (X,)),
        (lambda: ScaledCell(4, 4), (X[0],)),
        (lambda: Concrete(4, 4), (X,)),
    ],
    ids=["Scaled", "Longer", "ScaledCell", "Concrete"],
)
def test_a_derived_class_runs_its_own_forward_on_our_kernels(make, args, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    module = make()
    before, cls, parameters = module(*args), type(module), list(module.parameters())
    assert not reached(module, monkeypatch, *args)
    assert fastrnn.convert(module) is module
    assert isinstance(module, cls) and type(module).__name__ == cls.__name__ and reached(module, monkeypatch, *args)
    torch.testing.assert_close(module(*args), before)
    assert all(now is then for now, then in zip(module.parameters(), parameters, strict=True))
    assert type(fastrnn.convert(make())) is type(module)  # one class for all of them
    again = pickle.loads(pickle.dumps(module))
    copied = copy.deepcopy(module)
    for other in (again, copied):
        assert type(other) is type(module) and reached(other, monkeypatch, *args)
        torch.testing.assert_close(other(*args), before)
    fastrnn.revert(module)
    assert type(module) is cls and not reached(module, monkeypatch, *args)


def test_it_trains_as_before():
    torch.manual_seed(0)
    theirs = Scaled(4)
    ours = fastrnn.convert(copy.deepcopy(theirs))
    for module in (theirs, ours):
        module(X)[0].square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_a_pickle_names_no_class_that_is_made_here(tmp_path: Path):
    """It is read in a process that has converted nothing."""
    (tmp_path / "theirs.py").write_text("from torch import nn\nclass Own(nn.GRU):\n    pass\n")
    write = "import sys, torch, fastrnn, theirs; torch.save(fastrnn.convert(theirs.Own(3, 4)), 'm.pt')"
    read = "import torch, theirs; m = torch.load('m.pt', weights_only=False); print(type(m).__mro__[1:3])"
    for code in (write, read):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "(<class 'theirs.Own'>, <class 'fastrnn.modules.GRU'>)\n"


def test_parametrized_modules_of_a_derived_class():
    module = parametrizations.weight_norm(Scaled(4), "weight_hh_l0")
    before = module(X)[0]
    fastrnn.convert(module)
    assert isinstance(module, fastrnn.LSTM) and isinstance(module, Scaled)
    torch.testing.assert_close(module(X)[0], before)
    fastrnn.revert(module)
    assert not isinstance(module, fastrnn.LSTM) and isinstance(module, Scaled)
    torch.testing.assert_close(module(X)[0], before)


def model() -> nn.Module:
    """Something of everything."""
    made = nn.ModuleDict(
        dict(lstm=nn.LSTM(4, 4), cell=nn.GRUCell(4, 4), scaled=Scaled(4), checked=Checked(4, 4), meta=OfMeta(4, 4))
    )
    made["scripted"] = torch.jit.script(nn.GRU(4, 4))
    made["linear"], made["ours"] = nn.Linear(4, 4), fastrnn.GRU(4, 4)
    made["linear"].hidden = [nn.Sequential(nn.GRU(4, 4)), None]  # a plain list
    made["linear"].named = {"a": nn.RNN(4, 4)}
    return made


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_report_names_all_that_is_recurrent():
    converted, report = fastrnn.convert(model(), report=True)
    assert isinstance(converted["lstm"], fastrnn.LSTM)
    assert report.swapped == {
        "lstm": "torch.nn.LSTM -> fastrnn.LSTM",
        "cell": "torch.nn.GRUCell -> fastrnn.GRUCell",
        "scaled": f"{__name__}.Scaled -> {__name__}.Scaled on fastrnn's kernels",
    }
    assert set(report.left) == {"checked", "meta", "scripted", "linear.hidden[0]", "linear.named['a']"}
    for name, reason in dict(checked="check_forward_args", meta="Meta", scripted="TorchScript").items():
        assert reason in report.left[name]
    assert "nn.ModuleList" in report.left["linear.hidden[0]"]
    assert str(report).splitlines()[-1] == "3 swapped, 5 left"
    assert type(converted["checked"]) is Checked and type(converted["meta"]) is OfMeta
    assert fastrnn.convert(converted, report=True)[1].swapped == {}


def test_classes_for_compilers_leave_derived_ones():
    converted, report = fastrnn.convert(nn.ModuleList([nn.LSTM(4, 4), Scaled(4)]), compilable=True, report=True)
    assert type(converted[1]) is Scaled and list(report.left) == ["1"] and list(report.swapped) == ["0"]


def test_wrapped_by_torch_distributed():
    wrapped = type("FSDPLSTM", (type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"}), nn.LSTM), {})
    assert "convert first" in (derived.refusal(wrapped, nn.LSTM) or "")


def test_in_place_of_torch(monkeypatch: pytest.MonkeyPatch):
    before = {name: vars(nn.LSTM).get(name) for name in ("__init__", "__setstate__")}
    LSTM, pickled = nn.LSTM, pickle.dumps([nn.GRU(4, 4), nn.GRUCell(4, 4)])
    with fastrnn.in_place_of_torch():
        torch.manual_seed(0)
        found = [LSTM(4, 4), nn.GRUCell(4, 4), Scaled(4), *pickle.loads(pickled), fastrnn.LSTM(4, 4)]
        with fastrnn.in_place_of_torch():
            found.append(nn.RNN(4, 4))
        found.append(nn.RNN(4, 4))
        elsewhere: list[nn.Module] = []
        thread = threading.Thread(target=lambda: elsewhere.append(nn.LSTM(4, 4)))
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="greater than zero"):
            nn.LSTM(4, 0)
    kinds = ("LSTM", "GRUCell", "LSTM", "GRU", "GRUCell", "LSTM", "RNN", "RNN")
    assert all(isinstance(module, getattr(fastrnn, kind)) for module, kind in zip(found, kinds, strict=True))
    assert type(found[0]) is fastrnn.LSTM and type(elsewhere[0]) is nn.LSTM
    assert found[2].scale == 2.0 and reached(found[2], monkeypatch, X)
    torch.manual_seed(0)
    assert torch.equal(found[0].weight_ih_l0, nn.LSTM(4, 4).weight_ih_l0)
    assert type(nn.LSTM(4, 4)) is LSTM and type(pickle.loads(pickled)[1]) is nn.GRUCell
    assert {name: vars(nn.LSTM).get(name) for name in before} == before


def test_check_of_a_file_and_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    torch.save(nn.Sequential(nn.LSTM(4, 4), nn.ReLU()), tmp_path / "model.pt")
    assert "0: torch.nn.LSTM -> fastrnn.LSTM\n1 swapped, 0 left" in main.check([str(tmp_path / "model.pt")])
    (tmp_path / "built_here.py").write_text("from torch import nn\ndef build():\n    return nn.GRU(3, 4)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the model: torch.nn.GRU -> fastrnn.GRU" in main.check(["built_here:build"])
    torch.save(nn.LSTM(4, 4).state_dict(), tmp_path / "state.pt")
    with pytest.raises(SystemExit):
        main.check([str(tmp_path / "state.pt")])
    assert "not its state_dict" in capsys.readouterr().err

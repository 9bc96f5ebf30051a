"""What the processes of ``test_together_processes.py`` run: ``python together_processes.py FUNCTION ARGUMENT...``."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

import fastrnn

PATIENCE = 300  # seconds after which a process that waits for ever ends itself


class Model(nn.Module):
    """Three layers, the first of them packed, and a cell in a loop."""

    def __init__(self, first: type[Any], second: type[Any], third: type[Any]) -> None:
        super().__init__()
        self.first = first(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.second = second(10, 6, batch_first=True)
        self.third = third(6, 6, batch_first=True)
        self.cell = fastrnn.LSTMCell(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed, _ = self.first(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        y, _ = pad_packed_sequence(packed, batch_first=True)
        y, _ = self.third(self.second(y)[0])
        state = None
        for step in y.unbind(1):
            state = self.cell(step, state)
        return state[0]


MODELS = {  # of one kind where each kernel may take seconds to compile
    "cpp": (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN),
    "numba": (fastrnn.LSTM, fastrnn.LSTM, fastrnn.LSTM),
}


def train(model: nn.Module, x: Tensor, lengths: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x, lengths) - 1).square().mean().backward()
        optimizer.step()


def replicated(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.children(), model):
        fully_shard(part, mesh=mesh)
    assert isinstance(model.first, fastrnn.LSTM) and model.first.weight_hh_l0.to_local().shape[0] == 10
    return model


def parallel(rank: str, folder: str, *ways: str) -> None:
    """Half of a batch in each of two processes: the same parameters as from the whole in one."""
    store, own = f"file://{folder}/store", int(rank)
    dist.init_process_group("gloo", store, rank=own, world_size=2, timeout=timedelta(seconds=PATIENCE))
    x, lengths = torch.randn(8, 6, 4), torch.tensor([6, 2, 5, 3, 1, 6, 4, 4])
    half = slice(4 * own, 4 * own + 4)
    for backend, classes in MODELS.items():
        start = Model(*classes)
        with fastrnn.use_backend(backend):
            alone = copy.deepcopy(start)
            train(alone, x, lengths)
            for way in ways:
                model = globals()[way](copy.deepcopy(start))
                train(model, x[half], lengths[half])
                found = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in state(model)}
                torch.testing.assert_close(found, alone.state_dict())
        assert not any(torch.allclose(value, start.state_dict()[name]) for name, value in state(alone))
    dist.destroy_process_group()
    # What DDP and FSDP2 keep of the group outlives it, and a thread of gloo's that lets go of a tensor while Python
    # winds up ends the process with "terminate called without an active exception" (pytorch/pytorch#190489).
    os._exit(0)


def state(model: nn.Module) -> Iterable[tuple[str, Any]]:
    return getattr(model, "module", model).state_dict().items()


class Encoded(Dataset):
    """Rows that the worker which fetches them sends through a model."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(self.x[index])[0]


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x)[0].sum(), list(model.parameters())))


def forked(folder: str) -> None:
    """A model that ran on two threads runs in a child of fork and in the workers of a DataLoader, to the bit.

    torch itself refuses derivatives in a child of a process that took some, so the child is forked before.
    """
    torch.set_num_threads(2)
    x, gru = torch.randn(3, 40, 20, 70), fastrnn.GRU(70, 130)
    for backend in MODELS:
        with fastrnn.use_backend(backend):
            gru(x[0])
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)  # as in a DataLoader's worker: on two, torch's own operators wait for ever
        for backend in MODELS:
            with fastrnn.use_backend(backend):
                torch.save(gradients(gru, x[0]), f"{folder}/{backend}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for backend in MODELS:
        with fastrnn.use_backend(backend):  # the parent still has its threads
            found = torch.load(f"{folder}/{backend}")
            assert all(torch.equal(a, b) for a, b in zip(found, gradients(gru, x[0]), strict=True))
            rows = torch.stack([gru(part)[0].detach() for part in x])
            loader = DataLoader(Encoded(gru, x), num_workers=2, multiprocessing_context="fork", timeout=PATIENCE)
            assert torch.equal(torch.cat(list(loader)), rows)


def step(models: dict[str, nn.Module], x: Tensor) -> None:
    """One step of each model on the backend of that name."""
    for backend, model in models.items():
        with fastrnn.use_backend(backend):
            model(x)[0].square().sum().backward()
        for parameter in model.parameters():
            parameter.data.sub_(parameter.grad)  # torch.optim would take seconds to import


def shared() -> None:
    """A spawned process that trains models in shared memory changes the very parameters that this one runs on."""
    context: Any = torch.multiprocessing.get_context("spawn")
    x = torch.randn(5, 3, 4)
    models = {backend: fastrnn.LSTM(4, 5).share_memory() for backend in MODELS}
    twins = copy.deepcopy(models)
    process = context.Process(target=step, args=(models, x), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    step(twins, x)
    for backend, model in models.items():
        assert all(parameter.is_shared() for parameter in model.parameters())
        with fastrnn.use_backend(backend):
            assert torch.equal(model(x)[0], twins[backend](x)[0])


if __name__ == "__main__":
    signal.alarm(PATIENCE)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    globals()[sys.argv[1]](*sys.argv[2:])

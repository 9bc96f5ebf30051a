"""What the processes of ``test_together_processes.py`` run: ``python together_processes.py FUNCTION ARGUMENT...``."""

from __future__ import annotations

import copy
import os
import signal
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset

import fastrnn

BACKENDS = ("cpp", "numba")
PATIENCE = 300  # seconds after which a process that waits for ever ends itself


class Model(nn.Module):
    """Every class: layers two ways and packed, and a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = fastrnn.GRU(10, 6, batch_first=True)
        self.rnn = fastrnn.RNN(6, 6, batch_first=True)
        self.cell = fastrnn.LSTMCell(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed, _ = self.lstm(packed)
        _, h = self.gru(packed)
        y, _ = self.rnn(h.transpose(0, 1).expand(-1, 3, -1))
        state = None
        for x in y.unbind(1):
            state = self.cell(x, state)
        return state[0]


def train(model: nn.Module, x: Tensor, lengths: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x, lengths) - 1).square().mean().backward()
        optimizer.step()


def parallel(rank: str, folder: str) -> None:
    """Half of a batch in each of two processes, by DDP and by FSDP2: the same parameters as from the whole in one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    own, store = int(rank), f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=own, world_size=2, timeout=timedelta(seconds=PATIENCE))
    mesh = init_device_mesh("cpu", (2,))
    x, lengths = torch.randn(8, 6, 4), torch.tensor([6, 2, 5, 3, 1, 6, 4, 4])
    half = slice(4 * own, 4 * own + 4)
    start = Model()
    for backend in BACKENDS:
        with fastrnn.use_backend(backend):
            alone, replicated, sharded = (copy.deepcopy(start) for _ in range(3))
            train(alone, x, lengths)
            train(DistributedDataParallel(replicated), x[half], lengths[half])
            for part in sharded.children():
                fully_shard(part, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            train(sharded, x[half], lengths[half])
        gathered = {name: value.full_tensor() for name, value in sharded.state_dict().items()}
        expected = alone.state_dict()
        torch.testing.assert_close(replicated.state_dict(), expected)
        torch.testing.assert_close(gathered, expected)
        assert not any(torch.allclose(value, expected[name]) for name, value in start.state_dict().items())
        assert isinstance(sharded.lstm, fastrnn.LSTM) and sharded.lstm.weight_hh_l0.to_local().shape[0] == 10
    dist.destroy_process_group()


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
    for backend in BACKENDS:
        with fastrnn.use_backend(backend):
            gru(x[0])
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)  # as in a DataLoader's worker: on two, torch's own operators wait for ever
        for backend in BACKENDS:
            with fastrnn.use_backend(backend):
                torch.save(gradients(gru, x[0]), f"{folder}/{backend}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for backend in BACKENDS:
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
    models = {backend: fastrnn.LSTM(4, 5).share_memory() for backend in BACKENDS}
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

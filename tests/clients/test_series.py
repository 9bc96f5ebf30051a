"""Forecasting and training loops: pytorch-forecasting, whose networks are subclasses of torch.nn's, and Lightning."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrnn


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_pytorch_forecasting(cell: str):
    """DeepAR: its LSTM and GRU derive from torch.nn's and call their forward, which is ours after ``convert``."""
    forecasting, pandas = pytest.importorskip("pytorch_forecasting"), pytest.importorskip("pandas")
    steps = np.arange(60)
    rows = [{"time": t, "value": float(np.sin(t / 5 + g)), "group": str(g)} for g in range(4) for t in steps]
    data = forecasting.TimeSeriesDataSet(
        pandas.DataFrame(rows),
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=20,
        max_prediction_length=5,
        time_varying_unknown_reals=["value"],
        target_normalizer=forecasting.GroupNormalizer(groups=["group"]),
    )
    theirs = forecasting.DeepAR.from_dataset(data, cell_type=cell, hidden_size=12, rnn_layers=2, dropout=0.0)
    ours, report = fastrnn.convert(copy.deepcopy(theirs), report=True)
    assert isinstance(ours.rnn, getattr(fastrnn, cell)) and type(theirs.rnn) in type(ours.rnn).__mro__, report
    x, y = next(iter(data.to_dataloader(train=True, batch_size=8, num_workers=0)))
    losses = []
    for model in (theirs, ours):
        model.train()
        loss = model.loss(model(x)["prediction"], y)
        loss = loss.mean() if isinstance(loss, Tensor) else loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (own.grad is None) is (other.grad is None)
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_lightning(tmp_path: Any):
    """A Trainer's steps, its checkpoint, and a module that is built within ``in_place_of_torch``."""
    lightning = pytest.importorskip("lightning")

    class Fitted(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            loss = nn.functional.mse_loss(self.head(self.rnn(batch[0])[0])[..., 0], batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    x = torch.randn(32, 10, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.cumsum(1).sum(2)), batch_size=8)
    torch.manual_seed(0)
    theirs = Fitted()
    with fastrnn.in_place_of_torch():
        torch.manual_seed(0)
        ours = Fitted()
    assert type(theirs.rnn) is nn.GRU and type(ours.rnn) is fastrnn.GRU
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu")
    for name, model in (("theirs", theirs), ("ours", ours)):
        trainer = lightning.Trainer(max_epochs=3, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        trainer.fit(model, loader)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)
    theirs.load_state_dict(torch.load(tmp_path / "ours.ckpt", weights_only=True)["state_dict"])  # and back
    assert torch.equal(theirs.rnn.weight_hh_l0, ours.rnn.weight_hh_l0)

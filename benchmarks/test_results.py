"""Results as data: what stands in the JSON is what the tables hold, and what plots are made of."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import plots
import pytest
import records
from cases import cases
from measures import OURS, Row

NAMES = sorted(path.stem for path in records.RESULTS.glob("*.json"))


def test_every_table_has_its_json() -> None:
    assert NAMES == sorted(path.stem for path in records.RESULTS.glob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_an_older_table_is_what_its_json_holds(name: str) -> None:
    found = json.loads((records.RESULTS / f"{name}.json").read_text())
    assert (records.RESULTS / f"{name}.md").exists() and found["machine"] and found["command"]
    if "read from the table" in found["provenance"]:
        assert found == records.from_table(records.RESULTS / f"{name}.md")
        timed = [row for row in found["rows"] if "peer" in row]
        assert all(row["spread"] is None for row in timed)
        for row, ratio, *_ in plots.ratios(timed):  # the printed medians give the printed ratio
            assert ratio == pytest.approx(row["over_torch_nn"], rel=0.02)


def test_bytes_of_a_table_of_memory() -> None:
    found = json.loads((records.RESULTS / "memory.json").read_text())["rows"]
    recomputed = [row for row in found if row["saved"] is None]
    assert len(found) == 3 * len(recomputed) > 30 and {row["side"] for row in recomputed} == {"fastrnn, recompute"}
    theirs = {row["case"]: row for row in found if row["side"] == records.FIRST}
    ratios = [row["kept"] / theirs[row["case"]]["kept"] for row in found if row["side"] == "fastrnn"]
    assert max(ratios) == pytest.approx(1, abs=0.005)  # as the page says of its rows


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.md").write_text("# Times\n\nMachine: none.\n")
    with pytest.raises(ValueError, match="none.md: expected a machine"):
        records.from_table(tmp_path / "none.md")


def test_a_run_writes_its_samples(tmp_path: Path) -> None:
    report = pytest.importorskip("report")
    pytest.importorskip("matplotlib")
    samples = {"torch.nn": [4e-3, 5e-3, 6e-3, 9e-3], OURS: [1e-3, 2e-3, 3e-3]}
    rows = []
    for case in cases(["tiny"], ["GRU"], ["infer"]):
        for peer, taken in samples.items():
            middle = statistics.median(taken)
            row = Row(case, 1, peer, middle, 5.5e-3 / middle, 0.5, 0.1, (0.9, "y"), records.spread(taken))
            rows.append(row)
    report.record("run", rows, [], tmp_path)
    found = json.loads((tmp_path / "run.json").read_text())
    assert len(found["rows"]) == len(rows) and {"torch", "numpy", "fastrnn", "Python"} <= found["versions"].keys()
    ours = next(row for row in found["rows"] if row["peer"] == OURS)
    assert ours["milliseconds"] == pytest.approx(2.0) and ours["over_torch_nn"] == pytest.approx(2.75)
    assert ours["spread"] | {"samples": 3, "least": 1.0, "greatest": 3.0} == ours["spread"]
    assert ours["spread"]["lower_quartile"] < 2 < ours["spread"]["upper_quartile"]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "run.md").exists()


def test_the_page_of_plots_is_made_of_them(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    chosen = [name for name in NAMES if name != "memory"][:2]  # which has bytes, not times
    for name in chosen:
        (tmp_path / f"{name}.json").write_text((records.RESULTS / f"{name}.json").read_text())
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    plots.main(tmp_path / "site")
    page = (tmp_path / "site" / "plots.md").read_text()
    for name in chosen:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        drawn = (tmp_path / "site" / f"{name}.svg").read_text()
        assert f"({name}.svg)" in page and found["command"] in page and found["provenance"] in page
        assert all(row["case"] in drawn for row in found["rows"])
        plots.save(found["rows"], tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_text() == drawn
        found["rows"][1]["milliseconds"] *= 2
        plots.save(found["rows"], tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_text() != drawn

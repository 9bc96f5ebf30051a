"""The gate lets right results pass and stops wrong ones, whichever result is wrong."""

from collections.abc import Callable

import pytest
import torch
from cases import Case, cases
from measures import OURS, Row, measures
from problem import Problem, WrongResult, evaluate

TRAINING = next(iter(cases(["tiny"], ["LSTM"], ["train"])))


def results(case: Case = TRAINING) -> tuple[Problem, dict[str, torch.Tensor]]:
    problem = Problem(case)
    return problem, problem.name(evaluate(problem.module, problem.data, case.work == "train"))


def test_right_results_pass() -> None:
    problem, right = results()
    assert 0 < problem.check(right) <= 0.5


def scale(result: torch.Tensor) -> None:
    result.mul_(1 + 1e-4)


def lose_one(result: torch.Tensor) -> None:
    result.view(-1)[3] = torch.nan


@pytest.mark.parametrize("name", results()[1])
@pytest.mark.parametrize("wrong", [scale, lose_one])
def test_one_wrong_result_is_stopped(name: str, wrong: Callable[[torch.Tensor], None]) -> None:
    problem, right = results()
    wrong(right[name])
    with pytest.raises(WrongResult, match=rf"{name}: error"):
        problem.check(right)


def test_missing_result_is_stopped() -> None:
    problem, right = results()
    del right["d_x"]
    with pytest.raises(WrongResult, match="d_x: expected shape .* got nothing"):
        problem.check(right)


def test_work_is_counted() -> None:
    lstm = {str(case): case for case in cases(["measured", "packed"], ["LSTM"])}
    assert lstm["LSTM-T100-B32-H256-infer"].flops == 2 * 100 * 32 * 4 * 256 * 512
    assert lstm["LSTM-T100-B32-H256-train"].flops == 3 * lstm["LSTM-T100-B32-H256-infer"].flops
    packed = lstm["LSTM-T100-B32-H256-packed-infer"]
    assert packed.lengths[0] == 100 and packed.lengths[-1] == 25
    assert packed.flops / lstm["LSTM-T100-B32-H256-infer"].flops == pytest.approx(0.625, abs=0.01)


def test_error_over_own_tells_where_it_is_largest() -> None:
    problem, right = results()
    same = problem.error_over_own(right)
    assert same is not None and same[0] == pytest.approx(1)
    right["h"].add_(1e-3)
    worst = problem.error_over_own(right)
    assert worst is not None and worst[0] > 100 and worst[1] == "h"


def test_measures_count_the_rows_that_they_name() -> None:
    case, packed = (next(iter(cases(["packed" if p else "measured"], ["LSTM"], ["train"]))) for p in (False, True))

    def row(case: Case, ratio: float) -> Row:
        return Row(case, 1, OURS, 1.0, ratio, 0.5, 0.1, (0.9, "y"))

    lines = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in measures([row(case, 2.0), row(packed, 2.0)])}
    assert lines["LSTM train, over torch.nn"] == ["1.7", "2.00", "2.00 to 2.00", "yes |"]
    assert lines["LSTM train, packed, over torch.nn packed"] == ["2.5", "2.00", "2.00 to 2.00", "no |"]
    assert lines["error over torch.nn's own, largest of all results"][-1] == "yes |"
    assert "GRU train, over torch.nn" not in lines

"""The barrier's protocol, in every interleaving of two and three threads: `barrier_model.py`."""

from __future__ import annotations

import barrier_model as model
import pytest


@pytest.mark.parametrize(("threads", "meetings", "groups"), [(2, 3, 1), (3, 1, 1), (3, 1, 2)])
def test_all_see_what_was_done_before_and_nobody_sleeps_for_ever(threads: int, meetings: int, groups: int):
    assert model.explore(threads, meetings, groups) > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "meetings", "groups"), [(3, 2, 1), (3, 2, 2)])
def test_three_threads_meet_twice(threads: int, meetings: int, groups: int):
    assert model.explore(threads, meetings, groups) > 10000


@pytest.mark.parametrize(("threads", "meetings", "shares"), [(2, 3, (True,)), (2, 3, (True, False)), (3, 1, (True,))])
def test_a_share_is_done_once_by_whoever_takes_it(threads: int, meetings: int, shares: tuple[bool, ...]):
    assert model.explore(threads, meetings, shares=shares) > 1000


@pytest.mark.parametrize("fault", model.FAULTS)
def test_every_weaker_order_is_found_out(fault: str):
    with pytest.raises(model.Broken):
        model.explore(2, 3, 1, fault, shares=(True,))

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


@pytest.mark.parametrize("fault", model.FAULTS)
def test_every_weaker_order_is_found_out(fault: str):
    with pytest.raises(model.Broken):
        model.explore(2, 2, 1, fault)

"""Which attempts a data set still wants, and which of them it takes."""

from __future__ import annotations

from vla_runtime.data.assembly import Tally


def test_attempts_that_a_kill_left_out_are_made_before_later_ones_count():
    """Two processes: one finished attempts 3 and 4 while the other was at 2, and both were killed."""
    tally = Tally(0, wanted=3, done={0: True, 1: False, 3: True, 4: True})
    assert tally.missing == 0
    assert tally.next(spare=True) == [2]
    tally.done[2] = True
    assert tally.next(spare=True) == []
    assert tally.chosen() == [0, 2, 3]
    assert Tally(0, wanted=2, done={0: True, 1: False, 2: True}).next(spare=True) == []

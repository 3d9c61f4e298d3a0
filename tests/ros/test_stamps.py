"""Strays are few and return; a clock that was set goes on; messages that come late are neither."""

from __future__ import annotations

import numpy as np
import pytest

from vla_runtime.ros.stamps import Axis, ahead, spans, steps

MOMENTS = [500.0 + number * 0.1 for number in range(40)]
STAMPS = [moment - 400.0 for moment in MOMENTS]


def changed(**by):
    """STAMPS, with those from `at` on (to `to`) moved by `by`."""
    at, to = by["at"], by.get("to", 40)
    return [stamp + (by["by"] if at <= index < to else 0.0) for index, stamp in enumerate(STAMPS)]


def test_an_undisturbed_stream_is_of_one_clock():
    (one,) = spans(STAMPS, MOMENTS)
    assert one.members == list(range(40))
    assert one.delay == pytest.approx(400.0)
    assert spans([], []) == []
    assert [span.members for span in spans(STAMPS[:1], MOMENTS[:1])] == [[0]]


@pytest.mark.parametrize("by", [1e6, -50.0, 1.5])
@pytest.mark.parametrize(("at", "to"), [(0, 1), (10, 11), (10, 12), (38, 40)])
def test_a_few_messages_of_another_time_are_strays(by, at, to):
    (one,) = spans(changed(at=at, to=to, by=by), MOMENTS)
    assert one.members == [index for index in range(40) if not at <= index < to]


def test_however_many_are_strays_if_the_clock_returns():
    (one,) = spans(changed(at=10, to=30, by=60.0), MOMENTS)
    assert one.members == [*range(10), *range(30, 40)]


@pytest.mark.parametrize("by", [-30.0, 3600.0])
def test_a_clock_that_was_set_goes_on_as_another(by):
    stamps = changed(at=15, by=by)
    # The last of before arrives behind the first of after.
    stamps[14:16], moments = [stamps[15], stamps[14]], list(MOMENTS)
    found = spans(stamps, moments)
    assert [one.members for one in found] == [[*range(14), 15], [14, *range(16, 40)]]
    ((moment, step),) = steps(found)
    assert (moment, step) == (moments[14], pytest.approx(by, abs=0.11))
    axis = Axis(found, gap=10.0)
    times = {index: axis.stamped(stamps[index], place) for place, one in enumerate(found) for index in one.members}
    assert times[13] == stamps[13]
    assert times[16] - times[13] == pytest.approx(10.3, abs=0.11)
    assert axis.recorded(moments[20]) == pytest.approx(times[20], abs=0.11)


def test_messages_that_queued_up_are_no_strays():
    moments = list(MOMENTS)
    moments[10:20] = [moments[20] + index * 1e-3 for index in range(10)]
    late = [moment + (3.0 if index >= 25 else 0.0) for index, moment in enumerate(moments)]
    for recorded in (moments, late):
        (one,) = spans(STAMPS, recorded)
        assert one.members == list(range(40))


def test_stamps_that_are_noise_take_no_long_time():
    noise = np.random.default_rng(0).uniform(0, 1e9, 20_000).tolist()
    spans(noise, [float(index) for index in range(20_000)])


@pytest.mark.parametrize("off", [3600.0, -3600.0, 0.3])
def test_by_how_much_another_clock_is_ahead(off):
    stamps = [stamp + off - 0.02 for stamp in STAMPS]
    stamps[5] = 1e9
    assert ahead(stamps, MOMENTS, (STAMPS, MOMENTS)) == pytest.approx(off - 0.02)

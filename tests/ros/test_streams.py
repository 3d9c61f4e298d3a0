"""Streams become observations by the robot's stamps; what does not fit is left out and told."""

from __future__ import annotations

import numpy as np
import pytest
from air import Air
from hypothesis import given, settings
from hypothesis import strategies as st
from robots import reach_robot

from vla_runtime.control.clock import VirtualClock
from vla_runtime.robot_side import Topic
from vla_runtime.ros.messages import image_message, state_message
from vla_runtime.ros.streams import Streams
from vla_runtime.types import SpecMismatch

CAMERAS = ("overhead", "hand")
NAMES = ("j1", "j2", "hand.x", "hand.y")


class Said:
    """A robot whose clock is `ahead` of ours; its messages take `delay` seconds."""

    def __init__(self, ahead=1000.0, **changes):
        self.air, self.clock, self.ahead = Air(), VirtualClock(5.0), ahead
        self.contract = reach_robot(**changes)
        self.streams = Streams(self.contract, self.air.transport(), self.clock)

    def joints(self, time, values=(0.0, 0.0, 0.1, 0.2), delay=0.0, names=NAMES):
        stream = self.contract.robot.state["joints"]
        self._say(
            stream, state_message(dict(zip(names, values, strict=True)), stream, time + self.ahead, ""), time + delay
        )

    def image(self, name, time, value=0, delay=0.0):
        stream = self.contract.robot.cameras[name]
        picture = np.full((16, 16, 3), value, np.uint8)
        self._say(stream, image_message(picture, stream, time + self.ahead, ""), time + delay)

    def _say(self, stream, message, received):
        self.clock.sleep_until(received)
        self.air.say(Topic(stream.topic, stream.type, stream.reliable, stream.depth), message)


def test_what_is_missing_is_named_and_nothing_is_made_up():
    said = Said()
    assert said.streams.missing() == ["camera overhead", "camera hand", "state joints", "state position"]
    with pytest.raises(RuntimeError, match="camera overhead"):
        said.streams.observation(CAMERAS)
    said.joints(5.0)
    assert said.streams.missing() == ["camera overhead", "camera hand"]
    assert said.streams.observation(()).state.tolist() == pytest.approx([0.0, 0.0, 0.1, 0.2])


def test_joints_of_another_order_are_put_in_ours():
    said = Said()
    said.joints(5.0, (0.2, 2.0, 0.1, 1.0), names=("hand.y", "j2", "hand.x", "j1"))
    assert said.streams.observation(()).state.tolist() == pytest.approx([1.0, 2.0, 0.1, 0.2])


def test_images_meet_the_joints_of_their_moment():
    """Cameras are slow: the newest joints are of after the image."""
    said = Said()
    for step in range(6):
        said.joints(5.0 + step / 50, (float(step), 0.0, 0.0, 0.0))
    for name in CAMERAS:
        said.image(name, 5.04, 7, delay=0.06)
    seen = said.streams.observation(CAMERAS)
    assert seen.state[0] == 2
    assert seen.time == pytest.approx(5.04)
    assert seen.image_times == pytest.approx({"overhead": 5.04, "hand": 5.04})
    assert said.streams.observation(()).state[0] == 5


def test_a_lost_frame_leaves_the_pair_before():
    said = Said(skew=0.02)
    for time, value in ((5.0, 1), (5.1, 2)):
        said.joints(time)
        said.image("overhead", time, value)
        if value == 1:
            said.image("hand", time, value)
    seen = said.streams.observation(CAMERAS)
    assert {name: int(image[0, 0, 0]) for name, image in seen.images.items()} == {"overhead": 1, "hand": 1}


def test_streams_too_far_apart_grow_old_together():
    said = Said(skew=0.02)
    said.joints(5.0)
    for name in CAMERAS:
        said.image(name, 5.0)
    first = said.streams.observation(CAMERAS)
    said.streams.begin()
    said.joints(5.5)
    said.image("overhead", 5.3)
    said.image("hand", 5.4)
    with pytest.raises(RuntimeError, match=r"within 0\.02 s"):
        said.streams.observation(CAMERAS)
    assert said.streams.faults["streams further apart than the skew"] == 1
    assert first.time == pytest.approx(5.0)


def test_a_clock_that_stands_still_ages():
    said = Said()
    said.joints(5.0)
    # Longer than any window of delays.
    for step in range(1, 1000):
        said.ahead = 1000.0 - step / 50
        said.joints(5.0 + step / 50)
    assert said.streams.ages()["state joints"] == pytest.approx(19.98)
    assert any("state joints: expected one within 1.0 s" in word for word in said.streams.stale())
    assert said.streams.observation(()).time == pytest.approx(5.0)


def test_a_line_on_which_messages_queue_up_grows_old_and_drifting_clocks_do_not():
    for late, stale in ((0.05, True), (5e-5, False)):
        said = Said()
        for step in range(1200):
            now = 5.0 + step * 0.05
            # What has been said comes later and later, by `late` seconds a second.
            said.joints(now, delay=late * (now - 5.0))
        age = said.streams.ages()["state joints"]
        assert bool(said.streams.stale()) == stale, age
        assert age == pytest.approx(3.0 if stale else 0.0, abs=0.1)


def test_fast_joints_meet_a_slow_camera():
    said = Said(skew=0.01)
    for step in range(600):
        said.joints(5.0 + step / 1000, (step / 1000, 0.0, 0.0, 0.0))
    for name in CAMERAS:
        said.image(name, 5.3, delay=0.3)
    assert said.streams.observation(CAMERAS).state[0] == pytest.approx(0.3)


def test_faults_are_few_kinds_however_many_there_are():
    said = Said()
    for step in range(200):
        said.joints(5.0 + step / 100, (float("nan"), step, 0.0, 0.0))
    assert dict(said.streams.faults) == {"state joints: left out": 200}


def test_a_clock_that_goes_back_begins_anew():
    said = Said()
    said.joints(5.0)
    said.ahead = 0.0
    said.joints(5.1, (1.0, 0.0, 0.0, 0.0))
    assert said.streams.faults["the robot's clock went back"] == 1
    seen = said.streams.observation(())
    assert (seen.time, seen.state[0]) == (pytest.approx(5.1), 1)


def test_messages_that_overtake_are_left_out():
    said = Said()
    said.joints(5.0)
    said.ahead -= 0.2
    said.joints(5.1)
    assert said.streams.faults["state joints: not newer than the one before"] == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_left_out(wrong, caplog):
    said = Said()
    said.joints(5.0)
    for _ in range(3):
        said.joints(5.1, (wrong, 0.0, 0.0, 0.0))
    assert said.streams.observation(()).state[0] == 0
    assert said.streams.faults["state joints: left out"] == 3
    assert caplog.text.count("expected finite values") == 1


def test_unstamped_messages_are_left_out():
    said = Said()
    said.ahead = -5.0
    said.joints(5.0)
    assert "state joints" in said.streams.missing()
    assert set(said.streams.faults) == {"state joints: left out", "state position: left out"}


def test_a_contract_without_a_robot_is_refused():
    contract = reach_robot()
    object.__setattr__(contract, "robot", None)
    with pytest.raises(SpecMismatch, match="expected a robot's side"):
        Streams(contract, Air().transport(), VirtualClock())


def test_what_fits_together_later_is_never_older():
    said = Said()
    said.joints(5.0)
    for name in CAMERAS:
        said.image(name, 5.0)
    said.image("overhead", 5.09375)
    said.joints(5.125)
    said.image("hand", 5.15625)
    said.image("overhead", 5.21875)
    before = said.streams.observation(CAMERAS)
    assert before.time == pytest.approx(5.125)
    said.joints(5.21875)
    assert said.streams.observation(CAMERAS).time >= before.time


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["joints", *CAMERAS]), st.floats(0, 0.1), st.floats(0, 0.05)), max_size=40))
def test_observations_are_within_the_skew_and_never_go_back(events):
    said = Said()
    time, last = 5.0, -np.inf
    for what, step, delay in events:
        time += step
        said.joints(time, delay=delay) if what == "joints" else said.image(what, time, delay=delay)
        if said.streams.missing():
            continue
        try:
            seen = said.streams.observation(CAMERAS)
        except RuntimeError:
            continue
        times = [seen.time, *seen.image_times.values()]
        assert max(times) - min(times) <= 2 * said.contract.robot.skew + 1e-9
        assert min(times) <= said.clock.now() + 1e-6
        assert seen.time >= last - 1e-6 - said.contract.robot.skew
        last = max(last, seen.time - 0.05)


def test_what_came_instead_is_said_with_its_reason():
    said = Said()
    assert said.streams.instead("state joints") == "no readable message on /joint_states"
    for step in range(3):
        said.joints(5.0 + step / 20, names=("j1", "j9", "hand.x", "hand.y"))
    assert said.streams.missing() == ["camera overhead", "camera hand", "state joints"]
    assert said.streams.instead("state joints") == (
        "3 messages left out, the last because: /joint_states: expected values named ['j2'], got 4 values for "
        "['j1', 'j9', 'hand.x', 'hand.y']; name them in the contract as the robot does"
    )
    # Once something has come it is what came since that counts.
    said.joints(5.2)
    assert said.streams.instead("state joints") == "no readable message on /joint_states"
    for step in range(2):
        said.joints(6.3 + step / 20, (float("nan"), 0.0, 0.1, 0.2))
    (stale,) = said.streams.stale()
    assert stale.startswith("state joints: expected one within 1.0 s, got none for 1.150 s; 2 messages left out")
    said.streams.begin()
    assert said.streams.instead("state joints") == "no readable message on /joint_states"


def test_a_camera_that_another_clock_stamps_is_named_with_how_far_it_is_off():
    said = Said()
    for step in range(5):
        said.joints(5.0 + step * 0.1)
        said.image("overhead", 5.0 + step * 0.1)
        said.ahead += 3600.0
        said.image("hand", 5.0 + step * 0.1)
        said.ahead -= 3600.0
    expected = (
        r"expected .* stamped within .* got camera hand 3600\.000 s ahead of state joints; let one source of time"
    )
    with pytest.raises(RuntimeError, match=expected):
        said.streams.observation(CAMERAS)

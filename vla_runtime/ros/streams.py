"""What a robot says, as observations: the newest of every stream, aligned by the robot's own stamps.

The robot's clock is never compared with ours: the least delay of its messages says where its stamps lie on our clock,
so that a clock that stands still ages like a stream that does, and so does a line on which messages queue up. Whatever
comes first is kept, nothing is queued. It knows messages and no transport.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.control.clock import Clock
from vla_runtime.robot_side import RobotSide, Topic
from vla_runtime.ros.conversion import Array, converted, said, said_rotation, turned
from vla_runtime.ros.messages import read_image, stamp
from vla_runtime.ros.transport import Transport
from vla_runtime.types import Observation, SpecMismatch

# Of every stream so many seconds are kept to align others with; seconds by which two clocks may drift apart in one.
_KEPT, _DRIFT = 2.0, 2e-4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    stamp: float
    value: Any


class Streams:
    """Subscribes to all streams of a contract with a robot's side; `faults` counts what was refused, by reason.

    SpecMismatch for a contract without one.
    """

    def __init__(self, contract: Contract, transport: Transport, clock: Clock):
        self._contract, self._robot, self._clock = contract, robot_of(contract), clock
        self._lock = threading.Lock()
        self._samples: dict[str, deque[_Sample]] = {}
        self._topics: dict[str, str] = {}
        # The least delay, as our clock less the robot's, and when it was so.
        self._least, self._least_at = math.inf, 0.0
        self._kept: dict[tuple[str, ...], tuple[float, Observation]] = {}
        self._faults: Counter[str] = Counter()
        # Of every stream how many messages were left out since the newest that was not, and why the last of them.
        self._left_out: dict[str, tuple[int, str]] = {}
        # Of rotations the newest as the robot said them, with their convention: which of equal values it was.
        self._rotations: dict[str, tuple[Array, str]] = {}
        self.instruction = ""
        for camera in contract.cameras:
            image = self._robot.cameras[camera.name]

            def seen(message: Any, stream: Any = image, spec: Any = camera) -> Any:
                return read_image(message, stream, spec)

            self._subscribe(transport, image, {f"camera {camera.name}": seen})
        topics: dict[str, dict[str, Callable[[Any], Any]]] = {}
        for group in contract.state.groups:
            state = self._robot.state[group.name]

            def felt(message: Any, stream: Any = state, spec: Any = group) -> Any:
                own = said(message.name, getattr(message, stream.field), stream)
                values = converted(own, stream, spec).astype(np.float32)
                if not np.isfinite(values).all():
                    raise SpecMismatch(f"state {spec.name!r}: expected finite values, got {values.tolist()}")
                if spec.rotation is not None:
                    self._rotations[spec.name] = own, str(said_rotation(stream, spec))
                return values

            topics.setdefault(state.topic, {})[f"state {group.name}"] = felt
        for topic, readers in topics.items():
            stream = next(one for one in self._robot.state.values() if one.topic == topic)
            self._subscribe(transport, stream, readers)

    def missing(self) -> list[str]:
        """Streams of which nothing that can be used has come yet."""
        with self._lock:
            return [name for name, samples in self._samples.items() if not samples]

    def instead(self, name: str) -> str:
        """What has come of a stream since the newest that can be used: nothing, or messages that were left out and why
        the last of them.
        """
        with self._lock:
            return self._instead(name)

    def _instead(self, name: str) -> str:
        if name not in self._left_out:
            return f"no readable message on {self._topics[name]}"
        count, reason = self._left_out[name]
        return f"{count} {'message' if count == 1 else 'messages'} left out, the last because: {reason}"

    def begin(self) -> None:
        """Forget what was seen: an episode begins."""
        with self._lock:
            for samples in self._samples.values():
                samples.clear()
            self._kept.clear()
            self._rotations.clear()
            self._left_out.clear()
            self._least = math.inf

    def rotation(self, name: str, convention: str) -> Array | None:
        """The newest rotation of a state group in a convention, as the robot said it where that is its own; None where
        no group of that name is a rotation, or nothing has come.
        """
        newest = self._rotations.get(name)
        return None if newest is None else turned(*newest, convention)

    def ages(self) -> dict[str, float]:
        """Seconds since the newest of every stream was stamped, on our clock; those that have none are left out."""
        with self._lock:
            now = self._clock.now()
            return {name: now - self._local(kept[-1].stamp) for name, kept in self._samples.items() if kept}

    def stale(self) -> list[str]:
        """What is older than its stream may be, in words."""
        most = {f"camera {name}": one.max_age for name, one in self._robot.cameras.items()}
        most |= {f"state {name}": one.max_age for name, one in self._robot.state.items()}
        late = {name: age for name, age in self.ages().items() if age > most[name]}
        with self._lock:
            return [
                f"{name}: expected one within {most[name]} s, got none for {age:.3f} s"
                + (f"; {self._instead(name)}" if name in self._left_out else "")
                for name, age in late.items()
            ]

    @property
    def faults(self) -> Counter[str]:
        """What was left out, by stream and kind."""
        with self._lock:
            return self._faults.copy()

    def newest(self) -> float:
        """The stamp of the newest the robot has said. RuntimeError before it has said anything."""
        with self._lock:
            stamps = [kept[-1].stamp for kept in self._samples.values() if kept]
            if not stamps:
                raise RuntimeError("robot: expected something to answer, got nothing yet")
            return max(stamps)

    def observation(self, cameras: Sequence[str]) -> Observation:
        """The newest that fit together: stamps within the robot's skew of the oldest newest one. Where none do, those
        that did last, which grow old. RuntimeError before all streams have been seen.
        """
        with self._lock:
            wanted = [f"state {group.name}" for group in self._contract.state.groups]
            wanted += [f"camera {name}" for name in cameras]
            found = self._aligned(wanted)
            asked = tuple(cameras)
            if found is not None:
                oldest = min(one.stamp for one in found.values())
                # What fits together now may be older than what did before.
                if asked not in self._kept or oldest >= self._kept[asked][0]:
                    self._kept[asked] = oldest, self._observed(found, cameras)
            if asked not in self._kept:
                raise RuntimeError(self._apart(wanted))
            return self._kept[asked][1]

    def _aligned(self, wanted: list[str]) -> dict[str, _Sample] | None:
        """One sample of each, as new as can be; an older set where frames were lost."""
        if any(not self._samples[name] for name in wanted):
            return None
        ends = min(self._samples[name][-1].stamp for name in wanted)
        for moment in [ends, *sorted((one.stamp for one in self._samples[wanted[-1]]), reverse=True)]:
            found = {name: _nearest(self._samples[name], moment) for name in wanted}
            if all(abs(one.stamp - moment) <= self._robot.skew for one in found.values()):
                return found
        self._faults["streams further apart than the skew"] += 1
        return None

    def _apart(self, wanted: list[str]) -> str:
        """What to say of streams that never fitted together."""
        said = f"robot: expected {', '.join(wanted)} stamped within {self._robot.skew} s of one another, got "
        if missing := [name for name in wanted if not self._samples[name]]:
            return f"{said}nothing of {', '.join(missing)}"
        newest = {name: self._samples[name][-1].stamp for name in wanted}
        apart = {name: stamp - newest[wanted[0]] for name, stamp in newest.items() if name != wanted[0]}
        off = ", ".join(
            f"{name} {abs(by):.3f} s {'ahead of' if by > 0 else 'behind'} {wanted[0]}"
            for name, by in apart.items()
            if abs(by) > self._robot.skew
        )
        return (
            f"{said}{off or 'them never'}; let one source of time set the clocks of the machines that stamp them "
            "(chrony, PTP), or raise robot.skew where they are merely slow"
        )

    def _observed(self, found: dict[str, _Sample], cameras: Sequence[str]) -> Observation:
        states = [found[f"state {group.name}"] for group in self._contract.state.groups]
        images = {name: found[f"camera {name}"] for name in cameras}
        return Observation(
            np.concatenate([one.value for one in states]),
            {name: one.value for name, one in images.items()},
            self.instruction,
            self._local(min(one.stamp for one in states)),
            {name: self._local(one.stamp) for name, one in images.items()},
        )

    def _subscribe(self, transport: Transport, stream: Any, readers: dict[str, Callable[[Any], Any]]) -> None:
        for name in readers:
            self._samples[name] = deque()
            self._topics[name] = stream.topic

        def on_message(message: Any) -> None:
            received = self._clock.now()
            for name, read in readers.items():
                try:
                    self._add(name, _Sample(stamp(message), read(message)), received)
                except SpecMismatch as error:
                    self._refused(name, str(error))

        transport.subscribe(Topic(stream.topic, stream.type, stream.reliable, stream.depth), on_message)

    def _add(self, name: str, sample: _Sample, received: float) -> None:
        with self._lock:
            samples = self._samples[name]
            if samples and sample.stamp <= samples[-1].stamp:
                if samples[-1].stamp - sample.stamp < 1.0:
                    # Also what is as old as the one before: of a clock that stands still, delays say nothing.
                    reason = "not newer than the one before"
                    self._faults[f"{name}: {reason}"] += 1
                    self._leave_out(name, f"its stamp is {reason}")
                    return
                # Another clock, or one that was set: nothing of before fits it.
                self._faults["the robot's clock went back"] += 1
                self._least = math.inf
                # What was seen last grows old, until something else fits together.
                self._kept = {asked: (-math.inf, seen) for asked, (_, seen) in self._kept.items()}
                for kept in self._samples.values():
                    kept.clear()
            samples.append(sample)
            self._left_out.pop(name, None)
            while sample.stamp - samples[0].stamp > _KEPT:
                samples.popleft()
            # More than clocks drift apart is no clock's doing: what comes later and later is old.
            drifted = self._least + _DRIFT * max(0.0, received - self._least_at)
            self._least, self._least_at = min(received - sample.stamp, drifted), received

    def _local(self, moment: float) -> float:
        return moment + (self._least if math.isfinite(self._least) else 0.0)

    def _refused(self, name: str, reason: str) -> None:
        # What is wrong with each is in the log once: numbers in a key would make every fault a kind of its own.
        with self._lock:
            self._faults[f"{name}: left out"] += 1
            first = self._faults[f"{name}: left out"] == 1
            self._leave_out(name, reason)
        if first:
            _log.warning("%s: left out: %s", name, reason)

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out[name] = self._left_out.get(name, (0, ""))[0] + 1, reason


def _nearest(samples: Iterable[_Sample], moment: float) -> _Sample:
    return min(samples, key=lambda one: abs(one.stamp - moment))


def robot_of(contract: Contract) -> RobotSide:
    """The robot's side of a contract. SpecMismatch where there is none."""
    if contract.robot is None:
        raise SpecMismatch("contract: expected a robot's side (topics), got none; see docs/deployment.md")
    return contract.robot

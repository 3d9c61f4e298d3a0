"""Which action is due now, and how a new chunk joins motion that is already running.

It knows chunks and time; it knows no policy, no environment and no limits.
"""

from __future__ import annotations

from dataclasses import replace

from vla_runtime.types import ActionChunk, ActionSpec, Command, Float, SpecMismatch


class ActionSchedule:
    """The plan in force. `splice` puts a chunk in, `command_at` reads what is due."""

    def __init__(self, spec: ActionSpec, period: float):
        """period: seconds between commands."""
        self._spec = spec
        self._period = period
        self._chunk: ActionChunk | None = None
        self._last: Float | None = None

    @property
    def chunk(self) -> ActionChunk | None:
        """The chunk in force, its start as spliced."""
        return self._chunk

    def splice(self, chunk: ActionChunk, now: float) -> None:
        """Let `chunk` replace the plan from `now` on.

        It starts at its observation's time, later by as long as the robot has been holding since: so that
        after a gap motion goes on from its first unplayed row instead of jumping ahead. SpecMismatch for
        a chunk of the wrong shape, period or with values that are not finite.
        """
        self._check(chunk)
        held_since = chunk.start if self._chunk is None else max(chunk.start, self._chunk.end)
        delay = max(0.0, now - held_since)
        self._chunk = replace(chunk, start=chunk.start + delay) if delay > 0.0 else chunk

    def command_at(self, time: float) -> Command:
        """The command due at `time`; held when no plan covers it. ValueError before the first chunk.

        Before the first chunk there is nothing to hold: what keeps a robot still on a position interface
        is its own pose, which only the robot's side knows.
        """
        values = None if self._chunk is None else self._chunk.at(time)
        if values is None:
            if self._last is None:
                raise ValueError(f"command at {time} s: expected a chunk to have been spliced before, got none")
            return Command(self._spec.hold(self._last), time, held=True)
        self._last = values
        return Command(values, time)

    def _check(self, chunk: ActionChunk) -> None:
        if len(chunk.actions) == 0 or chunk.actions.ndim != 2:
            raise SpecMismatch(
                f"chunk: expected float32 [T, {self._spec.size}] with T >= 1, got {list(chunk.actions.shape)}"
            )
        for row in chunk.actions:
            self._spec.validate(row)
        # Rows of a delta chunk mean increments per control period: at another period they mean another motion.
        if "delta" in self._spec.controls and abs(chunk.period - self._period) > 1e-9:
            raise SpecMismatch(
                f"chunk period: expected {self._period} s (delta actions are played at the control period only), "
                f"got {chunk.period} s"
            )

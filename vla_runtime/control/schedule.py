"""Which action is due now, and how a new chunk joins motion that is already running.

It knows chunks and time; it knows no policy, no environment and no limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from vla_runtime.control.joins import Join, Live, Newest, Spline
from vla_runtime.spline import SplineCurve
from vla_runtime.types import ActionChunk, ActionSpec, Command, Float, InvalidAnswer, SpecMismatch


class ActionSchedule:
    """The plan in force. `splice` puts a chunk in, `command_at` reads what is due.

    period: seconds between commands, which need not be a chunk's. join: what is executed where chunks overlap; the
    newest alone unless given.
    """

    def __init__(self, spec: ActionSpec, period: float, join: Join | None = None):
        self._spec = spec
        self._period = period
        self._join = join or Newest()
        # Dimensions that are goals a controller may go between; a join that needs the policy's own curves gets none.
        self._between = tuple(
            dim
            for group in spec.groups
            if group.kind == "absolute" and group.rotation in (None, "rot6d") and not isinstance(join, Spline)
            for dim in range(*spec.slices[group.name].indices(spec.size))
        )
        # Chunks that have taken over and do not lie behind, the plan in force last.
        self._live: list[Live] = []
        # What follows it, and from when on, in order of time.
        self._next: list[Live] = []
        self._last: Float | None = None

    @property
    def chunk(self) -> ActionChunk | None:
        """The chunk in force, its start as spliced."""
        return self._live[-1].chunk if self._live else None

    def splice(self, chunk: ActionChunk, now: float, until: float | None = None) -> bool:
        """Let `chunk` replace the plan from `now` on; until: the plan in force stays so to then, if that is later.
        False where the join refuses it, and what was planned goes on.

        It starts at its observation's time, later by as long as the robot has been holding since: so that
        after a gap motion goes on from its first unplayed row instead of jumping ahead. SpecMismatch for
        a chunk of the wrong shape, period or with values that are not finite.
        """
        self._check(chunk)
        self._follow(now)
        begins = now if until is None else max(now, until)
        # What was to follow before then still does: somebody may have been told of it.
        following = [one for one in self._next if one.begins < begins]
        before = following[-1].chunk if following else self.chunk
        held_since = chunk.start if before is None else max(chunk.start, before.end)
        delay = max(0.0, begins - held_since)
        if delay > 0.0:
            chunk = replace(chunk, start=chunk.start + delay)
        if chunk.curve is None and self._between and chunk.period > self._period * (1 + 1e-6):
            chunk = self._connected(chunk)
        accepted = self._join.accept(chunk, before, begins)
        if accepted is None:
            return False
        self._next = following
        (self._next if begins > now and self._live else self._live).append(Live(accepted, begins))
        return True

    def left(self, time: float) -> float | None:
        """Seconds from `time` on for which there is a plan; None before the first chunk and where it has run out."""
        ends = max((one.chunk.end for one in [*self._live[-1:], *self._next]), default=time)
        return ends - time if ends > time else None

    def told(self, time: float, most: int, period: float) -> int:
        """How many rows of `period` seconds from `time` on count as decided: `most`, or as many as come before the last
        chunk takes over, which somebody was told of before.
        """
        return max(most, round((self._next[-1].begins - time) / period) if self._next else 0)

    def committed(self, times: Iterable[float]) -> Float | None:
        """Rows float32 [c, A] that are due at these times, from the next command's on; None without any.

        They end where the plan does: a robot that holds is committed to nothing. Times are the very numbers at which
        commands will be asked for: between rows a curve says another value at another time, be it by a rounding error.
        """
        rows: list[Float] = []
        for time in times:
            row = self._due(time)
            if row is None:
                break
            rows.append(row)
        return np.stack(rows) if rows else None

    def command_at(self, time: float) -> Command:
        """The command due at `time`; held when no plan covers it. ValueError before the first chunk.

        Before the first chunk there is nothing to hold: what keeps a robot still on a position interface
        is its own pose, see `standing`.
        """
        self._follow(time)
        values = self._join(self._live, time) if self._live else None
        if values is None:
            if self._last is None:
                raise ValueError(f"command at {time} s: expected a chunk to have been spliced before, got none")
            return Command(self._spec.hold(self._last), time, held=True)
        self._last = values
        return Command(values, time)

    def _connected(self, chunk: ActionChunk) -> ActionChunk:
        """Goals of rows alone, with straight lines between them: a faster controller would jump from row to row.

        Columns of rot6d need not be of length 1: whoever reads them makes a rotation of them.
        """
        rows = chunk.actions[:, list(self._between)].astype(np.float64)
        if len(rows) < 2:
            return chunk
        curve = SplineCurve(rows, 1, (len(rows) - 1) * chunk.period)
        return replace(chunk, curve=curve, curved=self._between)

    def _follow(self, time: float) -> None:
        while self._next and self._begun(self._next[0], time):
            self._live.append(self._next.pop(0))
        # The plan in force stays, also when it has run out.
        self._live = [one for one in self._live[:-1] if one.chunk.end > time] + self._live[-1:]

    def _due(self, time: float) -> Float | None:
        """The row that is planned for a time from the last command on."""
        live = [*self._live, *(one for one in self._next if self._begun(one, time))]
        return self._join(live, time) if live else None

    def _begun(self, one: Live, time: float) -> bool:
        return time >= one.begins - 1e-3 * self._period

    def _check(self, chunk: ActionChunk) -> None:
        if len(chunk.actions) == 0 or chunk.actions.ndim != 2:
            raise SpecMismatch(
                f"chunk: expected float32 [T, {self._spec.size}] with T >= 1, got {list(chunk.actions.shape)}"
            )
        for row in chunk.actions:
            try:
                self._spec.validate(row)
            except SpecMismatch as error:
                if np.isfinite(row).all():
                    raise
                raise InvalidAnswer(str(error)) from error
        # Rows of a delta chunk mean increments per control period: at another period they mean another motion.
        if "delta" in self._spec.controls and abs(chunk.period - self._period) > 1e-9:
            raise SpecMismatch(
                f"chunk period: expected {self._period} s (delta actions are played at the control period only), "
                f"got {chunk.period} s"
            )

"""An episode to look at while it goes, in rerun: states, commands, what the policy sees, seams and limits.

The loop hands a tick over and goes on: a thread of its own does the rest, and where it cannot keep up, ticks are
dropped and counted, never waited for.
"""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from pathlib import Path

import rerun as rr

from vla_runtime.control.trace import Tick
from vla_runtime.types import EnvSpec

# Ticks that may wait to be shown: a second or two of images.
_WAITING = 64
# Seconds that an episode's end waits for what is still to be shown.
_PATIENCE = 10.0
_log = logging.getLogger(__name__)


class LiveView:
    """An `on_tick` of the loop. path: a file to write (.rrd) instead of opening rerun's window."""

    def __init__(self, spec: EnvSpec, name: str, path: Path | None = None):
        self._spec = spec
        self._stream = rr.RecordingStream("vla_runtime", recording_id=name)
        if path is None:
            self._stream.spawn()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream.save(path)
        self._waiting: queue.Queue[Tick | None] = queue.Queue(_WAITING)
        self.dropped = 0
        self._thread = threading.Thread(target=self._show, name="live view", daemon=True)
        self._thread.start()

    def __call__(self, tick: Tick) -> None:
        try:
            self._waiting.put_nowait(tick)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Show what is waiting, and end."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        self._stream.flush()
        if self.dropped:
            _log.warning(
                "live view: %d ticks were not shown, since showing them takes longer than they last", self.dropped
            )

    def _show(self) -> None:
        try:
            self._shown()
        except Exception:
            _log.exception("live view: nothing is shown any more")

    def _shown(self) -> None:
        before = None
        while (tick := self._waiting.get()) is not None:
            stream = self._stream
            stream.set_time("episode", duration=tick.now)
            for group in self._spec.state.groups:
                part = tick.observation.state[self._spec.state.slices[group.name]]
                stream.log(f"state/{group.name}", rr.Scalars(part))
            for group in self._spec.action.groups:
                stream.log(
                    f"command/{group.name}", rr.Scalars(tick.command.values[self._spec.action.slices[group.name]])
                )
            for name, image in tick.observation.images.items():
                stream.log(f"cameras/{name}", rr.Image(image))
            stream.log("held", rr.Scalars([float(tick.command.held)]))
            if tick.plan is not before and before is not None:
                stream.log("events", rr.TextLog("a new plan takes over", level="INFO"))
            before = tick.plan
            for limit in tick.broken:
                stream.log("events", rr.TextLog(f"limit broken: {limit}", level="WARN"))
            if not tick.allowed:
                stream.log("events", rr.TextLog("safety: the robot may not move", level="ERROR"))

"""The last look before a command leaves: every value finite and inside the range its spec states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_runtime.types import ActionSpec, Command, Float


class Limits:
    """Clamps commands to the ActionSpec's range and counts what it had to change."""

    def __init__(self, spec: ActionSpec):
        self._spec = spec
        self.clamped = 0

    def inside(self, rows_TA: Float) -> Float:
        """Rows [T, A] as they would be sent; nothing is counted."""
        return np.stack([self._spec.clamp(row)[0] for row in rows_TA])

    def clamp(self, command: Command) -> Command:
        """The command, inside the range; SpecMismatch naming the dimension for a value that is not finite."""
        self._spec.validate(command.values)
        values, moved = self._spec.clamp(command.values)
        if not moved:
            return command
        self.clamped += 1
        return replace(command, values=values)

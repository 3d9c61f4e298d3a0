"""Serves a policy that knows where the disc of each episode is, so that it needs no learning: its seed says which.

Says its address on stdout and serves until it is killed.
"""

from __future__ import annotations

import threading

from robots import Aiming
from served import Served

from envs.reach import Reach


class Knowing(Aiming):
    """Begun with an episode's number, it aims at that episode's disc."""

    def begin(self, seed):
        twin = Reach(control="absolute", size=16)
        twin.reset(0, 0, seed)
        return Aiming(twin, speed=self._speed)


if __name__ == "__main__":
    print(Served(Knowing(Reach(control="absolute", size=16), speed=0.8)).address, flush=True)
    threading.Event().wait()

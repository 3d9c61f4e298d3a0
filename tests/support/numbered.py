"""A policy whose rows say which plan they are of, and an environment that remembers what it was told."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace

import numpy as np

from envs.reach import Reach
from vla_runtime.types import ActionChunk, PolicySpec

PERIOD = 0.05


class Recording(Reach):
    """Remembers what was asked of it. period: seconds between its commands."""

    def __init__(self, period=PERIOD, **options):
        super().__init__(**options)
        self._spec = replace(self._spec, period=period)

    def reset(self, seed, task, episode):
        self.applied = []
        return super().reset(seed, task, episode)

    def apply(self, command):
        self.applied.append(command)
        super().apply(command)

    def outcome(self):
        return None


class Numbered:
    """Answers with rows that say which plan they are of and which row: (plan / 100, row / 100)."""

    def __init__(self, env, horizon=16, max_committed=8, offsets=(0,)):
        spec = env.spec
        self.spec = PolicySpec(
            "numbered", spec.cameras, spec.state, spec.action, PERIOD, horizon, max_committed=max_committed,
            observation_offsets=offsets,
        )  # fmt: skip
        self.asked = []

    def predict(self, observations, committed=None, deadline=None):
        time = observations[-1].time
        shown = set.intersection(*(set(one.images) for one in observations))
        missing = [camera.name for camera in self.spec.cameras if camera.name not in shown]
        if missing:
            raise LookupError(f"asked without images of {missing}")
        rows = np.empty((self.spec.horizon, 2), np.float32)
        rows[:, 0], rows[:, 1] = len(self.asked) / 100, np.arange(self.spec.horizon) / 100
        if committed is not None:
            rows[: len(committed)] = committed
        self.asked.append((time, committed))
        return ActionChunk(rows, time, PERIOD, time)


class Policy:
    """The numbered session as a policy; `behave(session, seed)` may make it behave otherwise."""

    def __init__(self, env, behave=None):
        self._env, self._behave, self.spec = env, behave, Numbered(env).spec

    def begin(self, seed):
        session = Numbered(self._env)
        return session if self._behave is None else self._behave(session, seed)

    def close(self): ...


def obedient(period=PERIOD):
    """A numbered policy, for a process of its own."""
    return Policy(Recording(period))


class Picky(Exception):
    """Is pickled without what it needs to be made again."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def says_who(behaviour):
    """One that answers with its process, its seed and how often it was asked; or that fails as told."""

    def behave(session, seed):
        predict = session.predict

        def answer(observations, committed=None, deadline=None):
            if behaviour == "die":
                os._exit(7)
            if behaviour == "hang" and len(session.asked) == 2:
                threading.Event().wait()
            if behaviour == "raise":
                raise LookupError("no idea")
            if behaviour == "exit":
                sys.exit(3)
            if behaviour == "lost":
                raise ConnectionResetError("no route")
            if behaviour == "picky":
                raise Picky(3, "cannot be read again")
            if behaviour == "odd":
                raise type("Local", (Exception,), {})("cannot be pickled")
            chunk = predict(observations, committed, deadline)
            facts = {"pid": float(os.getpid()), "seed": float(seed), "asked": float(len(session.asked))}
            facts["cores"] = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else np.nan
            return replace(chunk, facts=facts)

        session.predict = answer
        return session

    return Policy(Recording(size=16), behave)


def fails_to_build():
    """What cannot be made."""
    raise ValueError("expected weights, got none")


def forgetful():
    """One that says how often it was told to forget."""

    def behave(session, seed):
        predict, told = session.predict, []

        def answer(observations, committed=None, deadline=None):
            chunk = predict(observations, committed, deadline)
            return replace(chunk, facts={"forgot": float(len(told)), "asked": float(len(session.asked))})

        session.predict, session.forget = answer, lambda: told.append(None)
        return session

    return Policy(Recording(size=16), behave)

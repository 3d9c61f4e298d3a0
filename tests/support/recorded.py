"""An episode of the numbered policy, recorded."""

from __future__ import annotations

from itertools import chain, repeat

from numbered import PERIOD, Numbered
from numbered import Recording as Remembering

from vla_runtime.control.planner import Delayed
from vla_runtime.control.recorder import Recorder
from vla_runtime.control.safety import Safety
from vla_runtime.control.settings import Settings
from vla_runtime.control.trace import Run
from vla_runtime.messages import env_document, policy_document

LIMITS = {"level": "clamp", "groups": None}


def recorded(tmp_path, delays=(0.1,), limits=LIMITS, steps=30, told=None, images=False, offsets=(0,), **loop):
    """A recording of the numbered policy; what was applied; the result."""
    env = Remembering(max_steps=steps)
    policy = Numbered(env, offsets=offsets)
    env.reset(0, 0, 0)
    config = {
        "loop": {"mode": "async", "replan": 4, "join": "newest", **loop},
        "limits": limits,
        "safety": {"plan": 5.0, "observation": 1.0},
    }
    settings = Settings(**config, env=env.spec, policy=policy.spec)
    path, result, safety = tmp_path / "one.rec", Run(), Safety()
    source = iter(chain(delays, repeat(delays[-1])))
    # Nothing that could be built anew.
    config |= {"choices": {"policy": "expert"}, "policy": {"_target_": "expert"}}
    recorder = Recorder(
        path,
        {"config": config, "seed": 0, "env": env_document(env.spec), "policy": policy_document(policy.spec)},
        images,
    )

    def on_tick(tick):
        recorder(tick)
        (told or {}).get(tick.index + 1, lambda *_: None)(safety, (tick.index + 1) * PERIOD)

    settings.play(env, policy, result, lambda session, wall: Delayed(session, wall, source), 0, on_tick, safety)
    recorder.close(result)
    return path, env.applied, result

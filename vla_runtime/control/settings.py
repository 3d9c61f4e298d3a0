"""The loop as options ask for it: what they may be, and a run with them.

One `Settings` serves all episodes of a command; what a run needs afresh (limits, safety, a planner) is made for each.
It knows no particular environment and no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vla_runtime.control.clock import Clock, SystemClock, VirtualClock
from vla_runtime.control.joins import Adaptive, Blend, Ensemble, Join, Spline
from vla_runtime.control.limits import Limits
from vla_runtime.control.loop import run
from vla_runtime.control.planner import Beside, Delayed, Planner, latencies
from vla_runtime.control.safety import Safety, Timeouts
from vla_runtime.control.trace import Run, Tick
from vla_runtime.documents import read_yaml
from vla_runtime.interfaces import Env, Session
from vla_runtime.types import ActionSpec, EnvSpec, PolicySpec

Options = Mapping[str, Any]

# Joins that mix chunks; newest and prefix execute one at a time, spline reshapes it.
_MIXING: dict[str, Callable[[ActionSpec], Join]] = {"blend": Blend, "ensemble": Ensemble, "adaptive": Adaptive}
# Of these the policy is told which rows will be executed while it thinks.
_TOLD = ("prefix", "pin", "guide")
CLOCKS, PLANNERS = ("virtual", "system"), ("thread", "process")
JOINS = ("newest", "prefix", "pin", "guide", *_MIXING, "spline")


class Settings:
    """loop, limits, safety: the options of the same names, as configs/rollout.yaml and configs/loop state them.

    ValueError, naming the option, for what cannot be with this environment and this policy. `facts`: what a row says.
    """

    def __init__(self, loop: Options, limits: Options, safety: Options, env: EnvSpec, policy: PolicySpec):
        replan = loop["replan"]
        self.replan = policy.executed or policy.horizon if replan is None else replan
        if not isinstance(self.replan, int) or not 1 <= self.replan <= policy.horizon:
            raise ValueError(f"loop.replan: expected 1 to {policy.horizon} (the policy's horizon), got {self.replan!r}")
        self._env, self._policy = env, policy
        self._stands, self._deadline = loop["mode"] == "sync", bool(loop.get("deadline", True))
        name = loop.get("join", "newest")
        if name not in JOINS:
            raise ValueError(f"loop.join: expected one of {', '.join(JOINS)}, got {name!r}")
        if name in ("prefix", "pin") and not policy.max_committed:
            raise ValueError(
                f"loop.join={name}: expected a policy that takes committed rows, got {policy.name}; take newest"
            )
        if name == "pin" and not policy.pins:
            raise ValueError(
                "loop.join=pin: expected a policy whose given rows are fixed while it decodes (discrete_diffusion over "
                f"bins), got {policy.name}; take prefix"
            )
        if name == "guide" and not policy.decode.get("guide"):
            raise ValueError(f"loop.join=guide: expected a policy with decode.guide=true, got {policy.name} without")
        if name == "spline" and not policy.curves:
            raise ValueError(
                f"loop.join=spline: expected a policy whose chunks have curves (B-spline tokens), got {policy.name}"
            )
        if self._stands and name in _TOLD:
            raise ValueError(
                f"loop.join={name}: expected loop.mode=async, got a robot that stands while the policy thinks, so that "
                "no rows are executed meanwhile of which it could be told; take join=newest"
            )
        kept = [name for name in ("warm_start", "guide") if policy.decode.get(name)]
        late = loop.get("latency", 0.0)
        if self._stands and kept and any(one != 0 for one in (late if isinstance(late, Sequence) else [late])):
            raise ValueError(
                f"decode.{kept[0]}: expected loop.mode=async or loop.latency=0, got a robot that stands while the "
                "policy thinks; what is left of the chunk before would be taken from a place that it has not come to"
            )
        self._clock, planner = loop.get("clock", "virtual"), loop.get("planner", "thread")
        for option, value, known in (("clock", self._clock, CLOCKS), ("planner", planner, PLANNERS)):
            if value not in known:
                raise ValueError(f"loop.{option}: expected one of {', '.join(known)}, got {value!r}")
        if planner != "thread" and self._clock == "virtual":
            raise ValueError(
                f"loop.planner={planner}: expected loop.clock=system, got a clock on which nothing runs beside"
            )
        self._prefix = name in _TOLD
        self._level, self._groups = limits["level"], _with_stated(env.action, read_groups(limits["groups"]))
        self._timeouts = Timeouts(**safety)
        self._join = self._made_join(name, loop.get("continuity", 1), loop.get("pace", 1.0))
        self._limits()
        self.facts: dict[str, Any] = {
            "mode": loop["mode"],
            "join": name,
            "replan": self.replan,
            "clock": self._clock,
            "rate_hz": round(1 / env.period, 6),
        }
        if name == "spline":
            self.facts |= {"continuity": loop.get("continuity", 1), "pace": loop.get("pace", 1.0)}
        if self._groups:
            self.facts["limits"] = {"level": self._level, "groups": dict(self._groups)}

    @property
    def real_time(self) -> bool:
        """Whether runs go by the machine's clock."""
        return bool(self._clock == "system")

    def play(
        self,
        env: Env,
        session: Session,
        result: Run,
        latency: float | str | Callable[[Session, Clock], Planner],
        seed: int = 0,
        on_tick: Callable[[Tick], None] | None = None,
        safety: Safety | None = None,
        counted: bool = False,
    ) -> None:
        """Drive `env`, which has just been reset, and fill in `result`; on_tick: as for `run`.

        latency: on a virtual clock, seconds, a file of recorded ones, begun where `seed` says, or what makes a planner
        itself. safety: with the timeouts that were asked for unless given. counted: as for `run`.
        """
        if callable(latency):
            planner = latency
        elif self._clock == "system":
            planner = Beside
        else:
            planner = partial(Delayed, delays=latencies(latency, seed))
        clock = SystemClock() if self._clock == "system" and not callable(latency) else VirtualClock()
        run(
            env, session, self._policy, clock, replan=self.replan, result=result, planner=planner,
            prefix=self._prefix, join=self._join, stands=self._stands, limits=self._limits(),
            safety=safety or Safety(self._timeouts), on_tick=on_tick, deadline=self._deadline, counted=counted,
        )  # fmt: skip

    def _limits(self) -> Limits:
        return Limits(self._env.action, self._env.period, self._groups, self._level)

    def _made_join(self, name: str, continuity: int, pace: float) -> Join | None:
        action = self._env.action
        if name == "spline":
            fastest, hardest = (self._bound(limit) for limit in ("speed", "acceleration"))
            if pace * self.replan > self._policy.horizon:
                raise ValueError(
                    f"loop.pace: expected at most {self._policy.horizon / self.replan:g} with loop.replan="
                    f"{self.replan} of {self._policy.horizon} rows, got {pace}; chunks would end before the next"
                )
            return Spline(action, continuity, fastest, hardest, pace)
        if pace != 1:
            raise ValueError(f"loop.pace: expected 1 with loop.join={name}, got {pace}; only spline retimes")
        return _MIXING[name](action) if name in _MIXING else None

    def _bound(self, limit: str) -> dict[str, float]:
        return {name: one[limit] for name, one in self._groups.items() if one.get(limit) is not None}


def _with_stated(action: ActionSpec, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Limits that are asked for, and those that the robot's spec states where nobody asks for others."""
    found = dict(asked)
    for group in action.groups:
        stated = {name: getattr(group, name) for name in ("speed", "acceleration") if getattr(group, name) is not None}
        if stated:
            found[group.name] = {**stated, **asked.get(group.name, {})}
    return found


def read_groups(wanted: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Limits by group, from a file where a name is given. ValueError for one that is no such file."""
    if wanted is None or isinstance(wanted, Mapping):
        return dict(wanted or {})
    found = read_yaml(wanted, "limits.groups")
    if not isinstance(found, dict):
        raise ValueError(f"limits.groups: expected limits by group in {wanted}, got {type(found).__name__}")
    return found

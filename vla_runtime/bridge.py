"""`python -m vla_runtime.bridge`: a policy and a robot that speaks ROS.

    python -m vla_runtime.bridge contract=robot.yaml transport=rclpy policy=remote policy.address=ws://gpu:8000 \\
        instruction='lift the red cube'

side=policy (the default) runs the control loop; side=gate stands in front of the robot's controllers; side=robot plays
a simulated robot. Each is a process of its own. Nothing moves before the contracts agree, everything has been seen and
somebody has armed it (arm=true, or a message on the desk's reset topic).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path

from vla_runtime.compose import (
    BadArguments,
    Config,
    Result,
    build,
    build_policy,
    control_for,
    main,
    select_tasks,
)
from vla_runtime.contract import Contract, at_rate, require_match
from vla_runtime.control.clock import Clock, SystemClock
from vla_runtime.control.recorder import Recorder
from vla_runtime.control.safety import Safety, Timeouts
from vla_runtime.control.settings import Settings, read_groups
from vla_runtime.control.trace import Run, Tick
from vla_runtime.disk import write_json
from vla_runtime.evaluation.folder import without_secrets
from vla_runtime.evaluation.recorded_policy import with_absolute_paths
from vla_runtime.evaluation.statistics import wilson_interval
from vla_runtime.interfaces import Policy
from vla_runtime.machine import set_single_threaded_blas
from vla_runtime.messages import env_document, policy_document
from vla_runtime.ros.bags import Recorded
from vla_runtime.ros.gate import GateNode
from vla_runtime.ros.robot import RosRobot, spec_of
from vla_runtime.ros.simulated import SimulatedRobot
from vla_runtime.ros.streams import robot_of
from vla_runtime.ros.transport import Transport

# Names of nodes by side: two of the same name are one to ROS.
NODES = {"policy": "vla_bridge", "robot": "vla_robot", "gate": "vla_gate"}
SIDES = tuple(NODES)
# Times a second that a bridge says how it is, and that a gate looks at its watchdog.
_SAID, _WATCHED = 2.0, 50.0
_log = logging.getLogger(__name__)


# Seconds by which a time of day differs from what it was carried on to, if it was set: more than reading both takes.
_SET = 0.02


class RobotClock:
    """The machine's time of day, as its messages are stamped, carried on by its monotonic clock: never set back, until
    somebody asks it to `follow`.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._ahead = self._measured()

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock.now() + self._ahead

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline`."""
        self._clock.sleep_until(deadline - self._ahead)

    def follow(self) -> float:
        """Take over a time of day that was set meanwhile; the seconds by which, 0 for not at all."""
        by = self._measured() - self._ahead
        if abs(by) < _SET:
            return 0.0
        self._ahead += by
        return by

    def _measured(self) -> float:
        return datetime.now().timestamp() - self._clock.now()


def bridge(config: Config) -> Result:
    """Run one side until it is told to stop or its episodes are over. BadArguments for options that cannot be."""
    if config["contract"] is None:
        raise BadArguments("contract: expected a YAML file with the robot's contract, got none")
    if config["episodes"] < 1:
        raise BadArguments(f"episodes: expected at least 1, got {config['episodes']}")
    # A text such as "no" is as true as any.
    if not isinstance(config["arm"], bool):
        raise BadArguments(f"arm: expected true or false, got {config['arm']!r}")
    if config["side"] not in SIDES:
        raise BadArguments(f"side: expected one of {', '.join(SIDES)}, got {config['side']!r}")
    contract = Contract.load(config["contract"])
    if contract.robot is None:
        raise BadArguments(f"contract={config['contract']}: expected a robot's side (topics), got none")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    values = dict(config["transport"])
    if values.get("node", "") is None:
        values["node"] = NODES[config["side"]]
    transport: Transport = build(values)
    if config["record"]["bag"] is not None:
        transport = Recorded(transport, Path(config["record"]["bag"]), RobotClock())
    clock = SystemClock()
    try:
        if config["side"] == "gate":
            return _gate(config, contract, transport, clock, stop)
        if config["side"] == "robot":
            return _robot(config, contract, transport, clock, stop)
        return _policy(config, contract, transport, clock, stop)
    finally:
        transport.close()


def _policy(config: Config, contract: Contract, transport: Transport, clock: Clock, stop: threading.Event) -> Result:
    _check_policy_side(config, contract)
    # A recording is decided again with these, wherever the file is then.
    config = {**config, "limits": {**config["limits"], "groups": read_groups(config["limits"]["groups"])}}
    seed = config["policy"].get("seed")
    steps = 10**9 if config["steps"] is None else config["steps"]
    # What thinks here leaves a core to the loop.
    set_single_threaded_blas()
    policy: Policy = build_policy(config, spec_of(contract, config["instruction"], steps))
    safety = Safety(Timeouts(**config["safety"]))
    _managed(config, contract, transport, clock, safety)
    robot = RosRobot(contract, transport, clock, safety, config["instruction"], config["patience"], steps, stop.is_set)
    wanted = at_rate(Contract.of(policy.spec), contract.rate_hz)
    require_match(contract, wanted, f"robot {robot.spec.name}", policy.spec.name)
    # A robot's time is the machine's.
    loop = {**config["loop"], "clock": "system"}
    settings = Settings(loop, config["limits"], config["safety"], robot.spec, policy.spec)
    if "limits" not in settings.facts:
        _log.warning(
            "nothing but its range bounds how fast the robot is told to move: state speeds in the contract, or take "
            "limits.groups= (vla_runtime.limits takes them from data)"
        )
    out = Path(config["out"] or f"runs/bridge-{datetime.now():%Y%m%d-%H%M%S}")
    ticks, ended, delays, late = 0, [], [], Counter[str]()
    for episode in range(config["episodes"]):
        facts = robot.reset(0, 0, episode)
        _log.info("robot %s: all streams are there", robot.spec.name)
        if not config["arm"]:
            safety.stop(clock.now(), "not armed yet")
        begun = config["seed"] + episode if seed is None else seed
        header = {
            "config": without_secrets(with_absolute_paths(config)), "env": env_document(robot.spec),
            "policy": policy_document(policy.spec), "episode": episode, "facts": dict(facts), "seed": begun,
        }  # fmt: skip
        recorder = Recorder(out / "recordings" / f"{episode:06d}.vlarec", header, config["record"]["images"] == "png")
        result, problem = Run(), None
        teller = _Teller(robot, safety, transport, clock, stop)

        def on_tick(tick: Tick, recorder: Recorder = recorder, teller: _Teller = teller) -> None:
            recorder(tick)
            teller(tick)

        try:
            session = policy.begin(begun)
            settings.play(robot, session, result, 0.0, on_tick=on_tick, safety=safety)
        except _Told:
            problem = "told to stop"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
            raise
        finally:
            recorder.close(result, problem)
            ticks += result.steps
            delays += result.trace.delays
            late.update(overruns=result.trace.overruns, missed=result.trace.missed)
        if result.outcome is not None:
            ended.append(result.outcome.success)
            _log.info("episode %d: %s", episode, result.outcome.reason)
        if stop.is_set() or problem is not None:
            break
    faults = dict(robot.faults + robot.streams.faults)
    policy.close()
    line = {
        "transport": config["choices"]["transport"], "side": "policy", "policy": policy.spec.name, "ticks": ticks,
        "episodes": len(ended), "successes": sum(ended), "faults": faults, "health": transport.health(),
        "events": [[event.what, event.reason] for event in safety.events], "out": str(out), **late,
    }  # fmt: skip
    write_json(out / "summary.json", line)
    # What this robot's latency costs can be told in simulation.
    write_json(out / "latencies.json", [round(delay, 6) for delay in delays])
    if safety.stopped is not None:
        return {**line, "error": f"the robot was stopped at the end: {safety.stopped}"}, 1
    return line, 0


def _managed(config: Config, contract: Contract, transport: Transport, clock: Clock, safety: Safety) -> None:
    """Let the transport's own system start and stop the policy, and see what it goes by; where it can."""
    if not hasattr(transport, "manage"):
        return
    side = robot_of(contract)
    shown: dict[str, float | str] = {"rate_hz": contract.rate_hz, "expiry": side.expiry, "skew": side.skew}
    shown |= {"policy": config["choices"]["policy"], "limits.level": config["limits"]["level"]}
    shown |= {f"safety.{name}": value for name, value in config["safety"].items() if value is not None}

    def begin() -> None:
        if safety.stopped is not None:
            safety.reset(clock.now())

    transport.manage(begin, lambda reason: safety.stop(clock.now(), reason), shown)


def _check_policy_side(config: Config, contract: Contract) -> None:
    """BadArguments for options that cannot be together."""
    if config["instruction"] is None:
        raise BadArguments("instruction: expected what the robot is to do, got none")
    if config["policy"]["_target_"] == "expert":
        raise BadArguments(
            "policy: expected one that goes by what the robot says, got expert, which sees the state of a simulator; "
            "take remote, hold or a trained policy"
        )
    if config["loop"]["rate"] is not None:
        raise BadArguments(
            f"loop.rate: expected null, since the contract says how fast the robot is, got {config['loop']['rate']}"
        )
    if config["loop"].get("planner", "thread") != "thread":
        raise BadArguments(
            f"loop.planner: expected thread, got {config['loop']['planner']}; a policy in a process of its own is one "
            "that vla_runtime.serve serves (policy=remote)"
        )
    desk = robot_of(contract).desk
    if not config["arm"] and desk.reset is None:
        raise BadArguments("arm=false: expected robot.desk.reset in the contract, or nobody could arm it, got none")
    if (config["safety"]["heartbeat"] is None) != (desk.heartbeat is None):
        raise BadArguments(
            "safety.heartbeat: expected seconds where the contract has robot.desk.heartbeat, and null where it has "
            f"none, got {config['safety']['heartbeat']} and {desk.heartbeat}"
        )


class _Told(Exception):
    """Somebody wants the bridge to end."""


class _Teller:
    """Says how things are, twice a second, and ends the run when it is told to."""

    def __init__(self, robot: RosRobot, safety: Safety, transport: Transport, clock: Clock, stop: threading.Event):
        self._robot, self._safety, self._transport = robot, safety, transport
        self._clock, self._stop, self._next = clock, stop, 0.0

    def __call__(self, tick: Tick) -> None:
        if self._stop.is_set() or getattr(self._transport, "over", False):
            raise _Told
        stale = self._robot.streams.stale()
        if stale:
            self._safety.stop(tick.now, stale[0])
        if self._clock.now() < self._next:
            return
        self._next = self._clock.now() + 1.0 / _SAID
        mirror = getattr(self._transport, "mirror", None)
        if mirror is not None:
            mirror(self._safety.stopped is None)
        self._robot.say(
            {
                "tick": tick.index,
                "allowed": tick.allowed,
                "stopped": self._safety.stopped,
                "human": tick.human,
                "held": tick.command.held,
                "ages": self._robot.streams.ages(),
                "faults": dict(self._robot.faults + self._robot.streams.faults),
                "health": self._transport.health(),
                "gate": self._robot.gate,
            }
        )


def _robot(config: Config, contract: Contract, transport: Transport, clock: Clock, stop: threading.Event) -> Result:
    values = dict(config["env"])
    wanted = values.pop("tasks", None)
    env = build(values)
    control = control_for(values, env, contract.action)
    if control is not None:
        env.close()
        env = build({**values, "control": control})
    try:
        tasks = select_tasks(config["choices"]["env"], env.spec.tasks, wanted)
        if wanted is not None and len(tasks) > 1:
            raise BadArguments(f"env.tasks: expected one, since a robot does not say which it plays, got {wanted}")
        robot = SimulatedRobot(env, contract, transport, clock, RobotClock(), cameras=config["cameras"])
        rows = []
        for episode in range(config["episodes"]):
            outcome, facts = robot.play(config["seed"], tasks[0], episode, config["patience"], stop.is_set)
            if stop.is_set():
                break
            rows.append({"episode": episode, "success": outcome.success, "reason": outcome.reason, **facts})
            _log.info("episode %d: %s", episode, outcome.reason)
    finally:
        env.close()
    successes = sum(bool(row["success"]) for row in rows)
    line = {
        "transport": config["choices"]["transport"], "side": "robot", "env": env.spec.name, "episodes": len(rows),
        "successes": successes, "success_rate": successes / max(1, len(rows)),
        "ci95": [round(one, 6) for one in wilson_interval(successes, len(rows))],
        "refused": dict(robot.refused), "faults": dict(robot.faults), "health": transport.health(),
    }  # fmt: skip
    if config["out"] is not None:
        write_json(Path(config["out"]) / "summary.json", {**line, "rows": rows})
    return line, 0


def _gate(config: Config, contract: Contract, transport: Transport, clock: Clock, stop: threading.Event) -> Result:
    if not config["arm"] and robot_of(contract).desk.reset is None:
        raise BadArguments("arm=false: expected robot.desk.reset in the contract, or nobody could open it, got none")
    stamps = RobotClock()
    gate = GateNode(contract, transport, clock, stamps, stamps.follow, config["arm"])
    _log.info("gate: %s, %s", ", ".join(sorted(gate.gates)), "open" if config["arm"] else "closed until a reset")
    try:
        said = clock.now()
        while not stop.is_set():
            gate.tick()
            if clock.now() >= said:
                said = clock.now() + 1.0 / _SAID
                gate.say()
            clock.sleep_until(clock.now() + 1.0 / _WATCHED)
    finally:
        gate.stand()
    line = {
        "transport": config["choices"]["transport"], "side": "gate", "ticks": 0, "refused": dict(gate.refused),
        "faults": dict(gate.faults), "health": transport.health(),
    }  # fmt: skip
    return line, 0


if __name__ == "__main__":
    main("bridge", bridge)

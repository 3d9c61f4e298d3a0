"""Conformance checks for environments, policies and action heads: run them on your own classes.

    from vla_runtime.testing import check_env, check_policy

    def test_my_env():
        check_env(MyEnv())

Each raises AssertionError saying which promise is broken. They know only the protocols, and torch only when a
head is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from vla_runtime.contract import Contract, differences
from vla_runtime.interfaces import Env, Policy, Session
from vla_runtime.types import ActionChunk, Command, EnvSpec, Float, Observation, Outcome, PolicySpec, SpecMismatch


def check_env(env: Env, *, task: int = 0, steps: int = 10) -> None:
    """Assert that `env` keeps the promises of Env; leaves it open.

    Looks at specs, that equal resets give equal worlds whatever ran before, that observing changes
    nothing, that time moves by one period a command, that wrong actions raise SpecMismatch naming the
    dimension, and that the facts of a reset are JSON with a hash of the initial state.
    """
    assert isinstance(env, Env), f"{type(env).__name__} lacks members of Env: {_missing(env, Env)}"
    spec = env.spec
    _check_env_spec(spec)
    cameras = [camera.name for camera in spec.cameras]
    action = _still(env, task)

    def play(look: Callable[[int], Sequence[str]]) -> tuple[dict[str, object], list[Observation]]:
        facts = dict(env.reset(3, task, 1))
        seen = []
        for index in range(steps):
            seen.append(env.observe(look(index)))
            spec.validate(seen[-1])
            env.apply(Command(action, seen[-1].time))
            ended = env.outcome()
            assert ended is None or isinstance(ended, Outcome), f"outcome() gave {type(ended).__name__}"
        seen.append(env.observe(cameras))
        return facts, seen

    facts, blind = play(lambda index: ())
    assert isinstance(facts.get("initial_state"), str), "reset() must return facts with a hash under 'initial_state'"
    json.dumps(facts)
    env.reset(4, task, 2)
    env.apply(Command(action, 0.0))
    again, watched = play(lambda index: cameras)
    assert again == facts, f"an equal reset gave other facts: {facts} then {again}"
    for index, (a, b) in enumerate(zip(blind, watched, strict=True)):
        assert np.array_equal(a.state, b.state), f"tick {index}: an equal reset, or looking, changed the state"
        assert a.time == b.time, f"tick {index}: an equal reset changed the time"
        assert set(b.images) == set(cameras), f"observe(cameras) gave {sorted(b.images)}, asked for {cameras}"
        assert set(b.image_times) == set(b.images), "every image needs its time in image_times"
        assert not a.images or index == steps, "images were rendered that nobody asked for"
    for name in cameras:
        assert np.array_equal(blind[-1].images[name], watched[-1].images[name]), (
            f"camera {name}: looking changed the image"
        )
    gaps = np.diff([observation.time for observation in blind])
    assert np.allclose(gaps, spec.period), f"time must move by spec.period = {spec.period} s a command, got {gaps}"
    other = dict(env.reset(3, task, 2))["initial_state"]
    assert other != facts["initial_state"], "another episode began in the same initial state"
    _check_refuses_bad_actions(env)


def check_policy(policy: Policy, env: EnvSpec) -> None:
    """Assert that `policy` keeps the promises of Policy for an environment with spec `env`; leaves it open.

    Sessions are fed with examples of the specs. Looks at the contract, chunks, that sessions with equal
    seeds give equal answers, also when interleaved, and that nothing is written into observations.
    """
    assert isinstance(policy, Policy), f"{type(policy).__name__} lacks members of Policy: {_missing(policy, Policy)}"
    spec = policy.spec
    assert isinstance(spec, PolicySpec), f"spec must be a PolicySpec, got {type(spec).__name__}"
    found = differences(Contract.of(env), Contract.of(spec))
    assert not found, f"the environment does not fulfil the policy's contract: {found}"

    def observations(time: float) -> list[Observation]:
        images = {camera.name: camera.example() for camera in spec.cameras}
        now = Observation(env.state.example(), images, env.tasks[0], time, dict.fromkeys(images, time))
        return [replace(now, time=time + offset * spec.period) for offset in spec.observation_offsets]

    def answers(session: Session, times: Sequence[float]) -> list[Float]:
        return [_checked_chunk(session.predict(observations(time)), spec, time).actions for time in times]

    times = [0.0, spec.period, 2 * spec.period]
    alone = answers(policy.begin(7), times)
    one, other, disturbing = policy.begin(7), policy.begin(7), policy.begin(8)
    assert isinstance(one, Session), f"begin() gave {type(one).__name__}, which lacks {_missing(one, Session)}"
    for index, time in enumerate(times):
        answers(disturbing, [time])
        for session in (one, other):
            same = np.array_equal(answers(session, [time])[0], alone[index])
            assert same, "equal seeds gave different answers: state must live in the session, not in the policy"
    given = observations(0.0)
    before = [(o.state.copy(), {name: image.copy() for name, image in o.images.items()}) for o in given]
    policy.begin(7).predict(given)
    for observation, (state, images) in zip(given, before, strict=True):
        assert np.array_equal(observation.state, state), "predict wrote into observation.state"
        for name, image in images.items():
            assert np.array_equal(observation.images[name], image), f"predict wrote into image {name!r}"


def check_head(head: Any, backbone: Any, batch: Any, actions_BTA: Any, committed: Any) -> None:
    """Assert that an action head keeps its promises on `backbone`, for B >= 2 observations and their chunks [B, T, A].

    committed: leading rows as policies.batch.Committed. Looks at the loss (finite, felt by every parameter of
    the head), and that decoding stays in [-1, 1], repeats itself with the same noise, leaves the context as it
    was, and gives back the rows that were given.
    """
    import torch

    name = type(head).__name__
    for member in ("name", "loss", "draw", "decode"):
        assert hasattr(head, member), f"{name} lacks {member}"
    count = len(actions_BTA)
    head.zero_grad()
    loss = head.loss(backbone, batch, actions_BTA, committed)
    assert loss.ndim == 0, f"loss: expected one number, got {list(loss.shape)}"
    assert torch.isfinite(loss), f"loss: expected a finite number, got {loss}"
    loss.backward()
    deaf = [key for key, value in head.named_parameters() if value.requires_grad and value.grad is None]
    assert not deaf, f"loss: parameters that it does not reach: {deaf}"
    head.zero_grad()
    with torch.no_grad():
        noise = head.draw(count, torch.Generator().manual_seed(0))
        again = head.draw(count, torch.Generator().manual_seed(0))
        assert noise.keys() == again.keys(), "draw: equal generators gave other noise"
        assert all(torch.equal(noise[key], again[key]) for key in noise), "draw: equal generators gave other noise"
        context = backbone.encode(batch)
        free, given, once_more = (
            head.decode(backbone, context, known, noise, count) for known in (None, committed, None)
        )
    for chunk in (free, given):
        shape = list(actions_BTA.shape)
        assert list(chunk.shape) == shape, f"decode: expected {shape}, got {list(chunk.shape)}"
        assert float(chunk.abs().max()) <= 1, f"decode: expected rows in [-1, 1], got {float(chunk.abs().max())}"
    assert torch.equal(free, once_more), "decode: the same context and noise gave other rows"
    known = committed.known_BP()
    same = (given[:, : known.shape[1]] == committed.rows_BPA)[known]
    assert same.all(), "decode: rows that were given came back changed"


def _checked_chunk(chunk: ActionChunk, spec: PolicySpec, time: float) -> ActionChunk:
    assert isinstance(chunk, ActionChunk), f"predict gave {type(chunk).__name__}, expected an ActionChunk"
    shape = (spec.horizon, spec.action.size)
    assert chunk.actions.shape == shape, f"chunk: expected {list(shape)}, got {list(chunk.actions.shape)}"
    for row in chunk.actions:
        spec.action.validate(row)
    assert chunk.start == chunk.observed == time, "a chunk starts at the newest observation's time"
    assert chunk.period == spec.period, f"chunk period: expected {spec.period}, got {chunk.period}"
    return chunk


def _check_env_spec(spec: EnvSpec) -> None:
    assert isinstance(spec, EnvSpec), f"spec must be an EnvSpec, got {type(spec).__name__}"
    assert spec.tasks, "spec.tasks: at least one task"
    assert len(set(spec.tasks)) == len(spec.tasks), "spec.tasks: every task needs its own name"
    assert spec.period > 0, f"spec.period: expected seconds > 0, got {spec.period}"
    assert spec.max_steps > 0, f"spec.max_steps: expected at least 1, got {spec.max_steps}"
    spec.state.validate(spec.state.example())
    spec.action.validate(spec.action.example())
    document = Contract.of(spec).document()
    read = Contract.read(json.loads(json.dumps(document)))
    assert read.document() == document, "the contract does not survive being written and read"


def _still(env: Env, task: int) -> Float:
    """An action that every environment can be asked for: the expert's first answer, else the spec's example."""
    env.reset(3, task, 1)
    with suppress(ValueError):
        action: Float = env.expert(0).begin(0).predict([env.observe()]).actions[0]
        return action
    return env.spec.action.example()


def _check_refuses_bad_actions(env: Env) -> None:
    good = env.spec.action.example()
    bad = good.copy()
    bad[-1] = np.nan
    cases = ((bad, env.spec.action.names[-1]), (good[:-1], str(len(good))), (good.astype(np.float64), "float32"))
    for values, told in cases:
        message = _refusal(env, values)
        assert message is not None, f"apply accepted {values!r}; expected SpecMismatch (call spec.action.validate)"
        assert told in message, f"the message should name {told!r}: {message}"


def _refusal(env: Env, values: Any) -> str | None:
    try:
        env.apply(Command(values, 0.0))
    except SpecMismatch as error:
        return str(error)
    return None


def _missing(value: object, protocol: type) -> list[str]:
    names = [name for name in protocol.__dict__ if not name.startswith("_")]
    return [name for name in names if not hasattr(value, name)]

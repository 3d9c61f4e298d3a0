"""Every environment that ships keeps the promises of Env, and its expert those of Policy."""

from __future__ import annotations

import pytest

from policies.hold import Hold
from vla_runtime.compose import build_env, configs_folder, load, options
from vla_runtime.testing import check_env, check_policy
from vla_runtime.types import UnsupportedTask

EXPERTS = {"reach", "lift", "lift_moving", "stack", "can", "libero_object"}
NAMES = [name for name in options("env") if (configs_folder() / "env" / f"{name}.yaml").exists()]


@pytest.mark.parametrize("name", NAMES)
def test_environment_and_expert(name, request):
    if name != "reach":
        request.getfixturevalue("needs_libero" if name.startswith("libero") else "needs_sim")
    env = build_env(load("rollout", [f"env={name}", "policy=hold"])["env"])
    try:
        check_env(env, steps=2)
        check_policy(Hold(env.spec), env.spec)
        if name in EXPERTS:
            check_policy(env.expert(0, "multi"), env.spec)
        else:
            with pytest.raises(UnsupportedTask, match="expected"):
                env.expert(0).begin(0).predict([env.observe()])
    finally:
        env.close()

"""A renderer outlives resets as long as it would be given the same, and pictures are those of a new one."""

from __future__ import annotations

import numpy as np
import pytest

from envs.lift_moving import LiftMoving
from envs.renderer import same_given
from envs.robosuite import Robosuite

mujoco = pytest.importorskip("mujoco")
CAMERAS = {name: [64, 64] for name in ("agentview", "robot0_eye_in_hand")}


def lift():
    return LiftMoving(
        name="lift_moving", instruction="lift the red cube", robot="Panda", control="absolute", cameras=CAMERAS,
        max_steps=100,
    )  # fmt: skip


def test_after_a_reset_pictures_are_those_of_a_new_renderer():
    env, contexts = lift(), set()
    for episode in (0, 1, 2):
        env.reset(0, 0, episode)
        if episode == 1:
            continue  # nobody looks
        seen = env.observe(list(CAMERAS)).images
        contexts.add(id(env.raw.sim._render_context_offscreen))
        new = lift()
        new.reset(0, 0, episode)
        for name, image in new.observe(list(CAMERAS)).images.items():
            assert np.array_equal(seen[name], image)
        new.close()
        # What the other one freed was its own.
        assert np.array_equal(env.observe(["agentview"]).images["agentview"], seen["agentview"])
    assert len(contexts) == 1
    env.close()


def test_a_model_of_other_looks_gets_a_renderer_of_its_own():
    env, other = lift(), Robosuite(task_class="Stack", cameras=CAMERAS, control="absolute")
    env.reset(0, 0, 0)
    env.observe(["agentview"])
    other.reset(0, 0, 0)
    kept = env.raw.sim._render_context_offscreen
    env._renderer.keep(env.raw.sim)
    other._renderer, env._renderer = env._renderer, other._renderer
    image = other.observe(["agentview"]).images["agentview"]
    assert other.raw.sim._render_context_offscreen is not kept
    new = Robosuite(task_class="Stack", cameras=CAMERAS, control="absolute")
    new.reset(0, 0, 0)
    assert np.array_equal(new.observe(["agentview"]).images["agentview"], image)
    for one in (env, other, new):
        one.close()


BALL = """<mujoco><visual><map znear="{near}"/></visual><asset>
  <texture name="t" type="2d" builtin="flat" rgb1="{red} 0 0" width="8" height="8"/>
  <material name="m" texture="t" texrepeat="{repeat} 1"/></asset>
  <worldbody><geom type="plane" size="{size} 1 0.1" material="m"/><geom type="box" size="{box} 0.1 0.1"/>
  </worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"red": 0.5}, False), ({"repeat": 2}, False), ({"size": 2}, False), ({"near": 0.02}, False),
     ({"box": 0.11}, True)],
)  # fmt: skip
def test_what_a_renderer_is_given(change, same):
    plain = {"near": 0.01, "red": 1, "repeat": 1, "size": 1, "box": 0.1}
    one, other = (mujoco.MjModel.from_xml_string(BALL.format(**{**plain, **more})) for more in ({}, change))
    assert same_given(one, other) is same

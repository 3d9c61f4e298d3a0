"""What no pixel shows is not drawn, and pictures are the same, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from envs import culling, renderer
from envs.culling import hidden, only_what_is_seen
from envs.lift_moving import LiftMoving
from vla_runtime.types import Command

mujoco = pytest.importorskip("mujoco")
LOOKS = ('material="shiny"', 'rgba="0 0 1 0.5"', 'rgba="0 1 0 1"')
# About the table, and on it.
BOUNDS = ([-1.5, -1.5, -0.5], [1.5, 1.5, 2.0]), ([-0.5, -0.5, 0.75], [0.5, 0.5, 1.3])
GROUPS = np.array([1, 1, 1, 0, 0, 0], bool)


def scene(random):
    """A table, things about it, above and below, some of them mirrors; a floor that may be one; a camera anywhere."""

    def place(low, high):
        return " ".join(f"{value:.4f}" for value in random.uniform(low, high))

    corners = " ".join(f"{x} {y} {z}" for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
    things = [
        f'<geom type="mesh" mesh="m{random.integers(4)}" pos="{place(*BOUNDS[index % 2])}" '
        f'euler="{place([-180] * 3, [180] * 3)}" rgba="{place([0.2] * 3, [1] * 3)} 1"/>'
        for index in range(14)
    ]
    boxes = [
        f'<geom type="box" size="{place([0.05, 0.05, 0.02], [0.4, 0.4, 0.1])}" '
        f'pos="{place([-0.6, -0.6, 0.6], [0.6, 0.6, 0.9])}" {random.choice(LOOKS)}/>'
        for _ in range(3)
    ]
    meshes = [f'<mesh name="m{k}" vertex="{corners}" scale="{place([0.02] * 3, [0.25] * 3)}"/>' for k in range(4)]
    tilt, clear = random.choice([0, 0, 20]), random.choice([1, 1, 0.5])
    return f"""<mujoco><asset>
      <texture name="checks" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="64" height="64"/>
      <material name="floor" texture="checks" reflectance="{random.choice([0, 0.4])}"/>
      <material name="shiny" rgba="0.5 0.5 0.5 1" reflectance="0.5"/>{"".join(meshes)}</asset>
      <worldbody><light pos="1 1 4" dir="-0.2 -0.2 -1" castshadow="false"/>
      <geom type="plane" size="3 3 0.1" material="floor"/>
      <geom type="box" size="0.6 0.5 0.02" pos="0 0 0.7" euler="{tilt} 0 0" rgba="0.8 0.7 0.5 {clear}"/>
      <body name="aim" pos="{place([-0.4, -0.4, 0.6], [0.4, 0.4, 0.8])}"/>
      <camera name="eye" mode="targetbody" target="aim" fovy="{random.uniform(30, 90):.1f}"
        pos="{place([-1, -1, 0.75], [1, 1, 1.8])}"/>
      {"".join(things + boxes)}</worldbody></mujoco>"""


def picture(model, data, width=64, height=48):
    """As robosuite's renderer draws it."""
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    view, eye = mujoco.MjvScene(model, 1000), mujoco.MjvCamera()
    eye.type, eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    option, moved = mujoco.MjvOption(), mujoco.MjvPerturb()
    mujoco.mjv_updateScene(model, data, option, moved, eye, mujoco.mjtCatBit.mjCAT_ALL, view)
    image, frame = np.empty((height, width, 3), np.uint8), mujoco.MjrRect(0, 0, width, height)
    mujoco.mjr_render(frame, view, context)
    mujoco.mjr_readPixels(image, None, frame, context)
    context.free()
    return image


def test_pictures_of_any_scene_are_the_same(monkeypatch):
    from robosuite.utils.binding_utils import GLContext

    monkeypatch.setattr(culling, "_LARGE", 0)
    random, left_out, colours, window = np.random.default_rng(0), [], [], GLContext(64, 48, -1)
    window.make_current()
    for number in range(60):
        model = mujoco.MjModel.from_xml_string(scene(random))
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        pictures, groups = [], model.geom_group.copy()
        for drawing in (nullcontext(), only_what_is_seen(model, data, 0, 64 / 48, GROUPS)):
            with drawing:
                pictures.append(picture(model, data))
        assert np.array_equal(*pictures), number
        colours.append(len(np.unique(pictures[0].reshape(-1, 3), axis=0)))
        assert np.array_equal(model.geom_group, groups)
        left_out.append(hidden(model, data, 0, 64 / 48, GROUPS).sum())
    window.free()
    assert np.mean(left_out) > 3
    assert np.median(colours) > 200


MIRRORED = """<mujoco><asset>
  <texture name="checks" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="64" height="64"/>
  <material name="floor" texture="checks" reflectance="{floor}"/>
  <material name="shiny" rgba="0.5 0.5 0.5 1" reflectance="{shiny}"/></asset>
  <worldbody><light pos="1 1 4" dir="-0.2 -0.2 -1" castshadow="false"/>
  <geom type="plane" size="9 9 0.1" material="floor"/>
  <geom type="box" size="0.6 0.5 0.02" pos="0 0 0.7" rgba="0.8 0.7 0.5 1"/>
  <geom type="box" size="0.1 0.1 0.02" pos="0 0 0.9" euler="0 {tilt} 0" material="shiny"/>
  <geom type="sphere" size="0.04" pos="0.05 0 1.0" rgba="0 1 0 1"/>
  <camera name="eye" pos="0 0 1.5" fovy="30"/></worldbody></mujoco>"""


@pytest.mark.parametrize(
    ("scene", "left_out"),
    [
        # One alone reflects; that the next takes its turn must not show.
        ({"floor": 0.4, "shiny": 0.8, "tilt": 0}, 0),
        # A floor that fills no pixel is seen in a mirror.
        ({"floor": 0.0, "shiny": 0.8, "tilt": 50}, 0),
        ({"floor": 0.4, "shiny": 0.0, "tilt": 60}, 1),
    ],
)
def test_a_floor_is_left_out_where_no_other_mirror_is(scene, left_out):
    from robosuite.utils.binding_utils import GLContext

    window = GLContext(64, 48, -1)
    window.make_current()
    model = mujoco.MjModel.from_xml_string(MIRRORED.format(**scene))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert hidden(model, data, 0, 64 / 48, GROUPS).sum() == left_out
    whole, floor = picture(model, data), int(np.flatnonzero(model.geom_type == culling._PLANE)[0])
    with only_what_is_seen(model, data, 0, 64 / 48, GROUPS):
        assert np.array_equal(picture(model, data), whole)
    # Had it been left out, it would have been seen where it matters.
    model.geom_group[floor] = culling._UNDRAWN
    assert np.array_equal(picture(model, data), whole) is bool(left_out)
    window.free()


def test_pictures_of_an_arm_are_the_same(monkeypatch):
    names = ("agentview", "robot0_eye_in_hand")
    env = LiftMoving(
        name="lift_moving", instruction="lift the red cube", robot="Panda", control="absolute",
        cameras={name: [64, 64] for name in names}, max_steps=100,
    )  # fmt: skip
    random, spec, shares = np.random.default_rng(0), env.spec.action, []
    env.reset(0, 0, 0)
    for number in range(6):
        goal = np.concatenate([env.observe(()).state[:9], [1.0]]).astype(np.float32)
        goal[:3] += random.uniform(-0.2, 0.2, 3)
        if number % 2:
            goal[3:9] = random.uniform(-1, 1, 6)
        for _ in range(4):
            env.apply(Command(spec.clamp(goal)[0], env.observe(()).time))
        seen = env.observe(names).images
        with monkeypatch.context() as patch:
            patch.setattr(renderer, "only_what_is_seen", lambda *_: nullcontext())
            whole = env.observe(names).images
        for name in names:
            assert np.array_equal(seen[name], whole[name])
        model, data = env._raw.sim.model._model, env._raw.sim.data._data
        faces = np.where(culling._large(model), model.mesh_facenum[model.geom_dataid], 0)
        shares += [faces[hidden(model, data, model.camera(name).id, 1.0, GROUPS)].sum() / faces.sum() for name in names]
    assert np.mean(shares) > 0.3
    env.close()


def test_where_shadows_fall_everything_is_drawn_and_wrong_groups_are_refused():
    random = np.random.default_rng(1)
    model = mujoco.MjModel.from_xml_string(scene(random).replace('castshadow="false"', 'castshadow="true"'))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert not hidden(model, data, 0, 1.0, GROUPS).any()
    with (
        pytest.raises(ValueError, match="expected geoms of group 5 not to be drawn"),
        only_what_is_seen(model, data, 0, 1.0, np.ones(6, bool)),
    ):
        pass

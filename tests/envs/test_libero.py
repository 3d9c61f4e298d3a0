"""LIBERO environments against the raw ones they stand on: the same bits, less work."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vla_runtime.types import Command

pytestmark = pytest.mark.usefixtures("needs_libero")

CAMERAS = ("agentview", "robot0_eye_in_hand")
SEED, EPISODE = 3, 52  # stored state 2
RANDOM = np.random.default_rng(0)
ACTIONS = RANDOM.uniform(-1, 1, (100, 7)).astype(np.float32)
ACTIONS[:, 6] = np.sign(ACTIONS[:, 6])


def full_state(raw):
    """Everything the physics goes on from that an episode can change: state, fixture poses, what objects show."""
    model = raw.sim.model
    parts = raw.sim.get_state().flatten(), model.body_pos, model.body_quat, model.site_rgba
    return np.concatenate([part.ravel() for part in parts])


def run(env, actions):
    states = [full_state(env.raw)]
    for action in actions:
        env.apply(Command(action, 0.0))
        states.append(full_state(env.raw))
    return np.array(states)


@pytest.fixture(scope="module")
def libero():
    """Environments by suite and options, built once a module."""
    from envs.libero import Libero

    built = {}

    def get(suite="libero_object", **options):
        key = (suite, *options.items())
        if key not in built:
            built[key] = Libero(suite, **options)
        return built[key]

    yield get
    for env in built.values():
        env.close()


@pytest.mark.parametrize(
    ("suite", "task"),
    [("libero_spatial", 5), ("libero_object", 0), ("libero_goal", 7), ("libero_10", 3), ("libero_90", 40)],
)
def test_bits_equal_the_raw_environment_and_a_reused_one(suite, task):
    from envs.libero import Libero
    from envs.osc_arm import numpy_seeded

    env = Libero(suite)
    facts = env.reset(SEED, task, EPISODE)
    assert facts["init_index"] == 2
    assert facts["premise"], facts["premise_broken"]
    first = run(env, ACTIONS)
    pictured = CAMERAS if suite == "libero_object" else ()  # a renderer takes a second to open: one suite is enough
    images = env.observe(pictured).images

    # Leave as much behind as an episode can: another start, closed fingers, a burning stove.
    env.reset(SEED + 1, task, EPISODE + 1)
    run(env, ACTIONS[:5])
    stove = env.raw.object_states_dict.get("flat_stove_1")
    if stove is not None:
        stove.set_joint(1.5)
        run(env, ACTIONS[:1])
    assert env.reset(SEED, task, EPISODE) == facts
    np.testing.assert_array_equal(run(env, ACTIONS[:20]), first[:21])

    from libero.libero.envs import OffScreenRenderEnv

    raw = OffScreenRenderEnv(
        bddl_file_name=str(env.task_file(task)), use_camera_obs=False, camera_heights=256, camera_widths=256
    )
    with numpy_seeded(SEED, task, EPISODE):
        raw.reset()
    raw.set_init_state(env.stored_states(task)[2])
    for _ in range(10):
        raw.step([0, 0, 0, 0, 0, 0, -1])
    states, done = [full_state(raw.env)], False
    for action in ACTIONS:
        _, _, done, _ = raw.step(action)
        states.append(full_state(raw.env))
    np.testing.assert_array_equal(first, np.array(states))
    assert (env.outcome() is not None) == done
    for camera in pictured:
        raw.sim._render_context_offscreen.gl_ctx.make_current()
        eager = raw.sim.render(width=256, height=256, camera_name=camera)
        np.testing.assert_array_equal(images[camera], eager[::-1, ::-1])
    raw.close()
    env.close()


def test_image_on_demand_equals_eager_and_looking_changes_nothing(libero):
    env = libero()
    seen, states = [], []
    for looks in (lambda tick: True, lambda tick: tick == 6):
        env.reset(SEED, 0, 1)
        for tick in range(7):
            env.apply(Command(ACTIONS[tick], 0.0))
            observation = env.observe(CAMERAS if looks(tick) else ())
        seen.append(observation)
        states.append(full_state(env.raw))
        before = env.raw.sim.data.qacc_warmstart.copy(), env.raw.sim.data.site_xpos.copy()
        env.observe(CAMERAS)
        np.testing.assert_array_equal(before[0], env.raw.sim.data.qacc_warmstart)
        np.testing.assert_array_equal(before[1], env.raw.sim.data.site_xpos)
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(seen[0].state, seen[1].state)
    for camera in CAMERAS:
        np.testing.assert_array_equal(seen[0].images[camera], seen[1].images[camera])
    env.spec.validate(seen[0])
    # The robot stands at the upper edge of the picture and the floor fills the lower one.
    picture = seen[0].images["agentview"].astype(float)
    assert picture[:40].std() > picture[-40:].std()


def test_published_protocol_is_the_default(libero):
    env = libero()
    assert env.spec.max_steps == 280
    assert [camera.shape for camera in env.spec.cameras] == [(256, 256, 3)] * 2
    assert env.spec.action.names[:3] == ("position.x", "position.y", "position.z")
    assert env.spec.tasks[0] == "pick up the alphabet soup and place it in the basket"
    facts = [env.reset(seed, 0, 7) for seed in (0, 1)]
    assert [fact["init_index"] for fact in facts] == [7, 7]
    assert facts[0]["initial"] == "stored"
    assert {"libero", "robosuite", "mujoco", "bddl", "numpy", "libero_assets"} <= set(env.spec.versions)


def test_success_is_the_environments_own(libero):
    env = libero()
    env.reset(0, 0, 0)
    assert env.outcome() is None
    assert env.progress() == 0.0
    (_, thing, region), *_ = env.raw.parsed_problem["goal_state"]
    data = env.raw.sim.data
    joint = env.raw.objects_dict[thing].joints[-1]
    pose = data.get_joint_qpos(joint).copy()
    pose[:3] = data.get_site_xpos(region) + (0, 0, 0.02)
    data.set_joint_qpos(joint, pose)
    for _ in range(5):
        env.apply(Command(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), 0.0))
    assert env.progress() == 1.0
    outcome = env.outcome()
    assert outcome.success
    assert outcome.reason == "success"
    assert env.reset(0, 0, 0)["premise"]
    assert env.outcome() is None


def test_absolute_control_starts_from_the_same_state_and_holds_a_pose(libero):
    delta, absolute = libero(), libero(control="absolute")
    assert delta.reset(0, 0, 0) == absolute.reset(0, 0, 0)
    np.testing.assert_array_equal(full_state(delta.raw), full_state(absolute.raw))
    goal = np.concatenate([absolute.observe().state[:9], [-1.0]]).astype(np.float32)
    goal[2] -= 0.05
    for _ in range(30):
        absolute.apply(Command(goal, 0.0))
    assert np.linalg.norm(absolute.observe().state[:3] - goal[:3]) < 0.005


def test_sampled_states_are_reproducible_and_never_stored_ones(libero):
    env = libero(initial="sampled", widen=0.04)
    stored = env.stored_states(0)
    facts = [env.reset(seed, 0, episode) for seed, episode in ((10000, 0), (10000, 1), (10001, 0), (10000, 0))]
    assert all(fact["premise"] and fact["init_index"] is None and fact["widen"] == 0.04 for fact in facts)
    assert facts[0] == facts[3]
    assert len({fact["initial_state"] for fact in facts}) == 3
    start = env.raw.sim.get_state().flatten()
    assert np.abs(stored[:, 1:] - start[1:]).max(axis=1).min() > 1e-3
    with pytest.raises(ValueError, match=r"seed: expected at least 10000 with env.initial=sampled, got 7"):
        env.reset(7, 0, 0)


def test_task_names_of_libero_90_are_unique(libero):
    env = libero("libero_90")
    assert len(env.spec.tasks) == len(set(env.spec.tasks)) == 90
    assert "turn on the stove (KITCHEN_SCENE3)" in env.spec.tasks
    assert len(set(libero("libero_10").spec.tasks)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "libero_odd"}, r"env.suite: expected one of .*libero_spatial.*, got 'libero_odd'"),
        ({"control": "velocity"}, r"env.control: expected delta or absolute, got 'velocity'"),
        ({"initial": "random"}, r"env.initial: expected stored or sampled, got 'random'"),
        ({"widen": 0.05}, r"env.widen: expected 0 with env.initial=stored"),
        ({"widen": -1.0, "initial": "sampled"}, r"env.widen: expected metres in \[0, 0.2\]"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    from envs.libero import Libero

    with pytest.raises(ValueError, match=message):
        Libero(**{"suite": "libero_object", **options})


def test_a_task_that_is_not_there_is_named(libero):
    with pytest.raises(ValueError, match="task: expected 0 to 9 in libero_object, got 10"):
        libero().reset(0, 10, 0)


def test_missing_assets_say_what_to_set(monkeypatch, tmp_path):
    import libero.libero as package

    from envs.libero import Libero

    monkeypatch.setattr(package, "_assets_path_cache", package._assets_path_cache)
    with pytest.raises(FileNotFoundError, match=r"env.assets: expected .*VLA_LIBERO_ASSETS"):
        Libero("libero_object", assets=str(tmp_path))
    monkeypatch.setenv("VLA_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"VLA_LIBERO_ASSETS: expected .*nowhere"):
        Libero("libero_object")
    monkeypatch.delenv("VLA_LIBERO_ASSETS")
    monkeypatch.setattr(package, "get_assets_path", lambda: str(tmp_path / "download"))
    with pytest.raises(FileNotFoundError, match=r"download.*set env\.assets"):
        Libero("libero_object")


def test_a_mujoco_outside_the_range_is_refused_or_written_down(monkeypatch):
    import mujoco

    from envs.mujoco_range import require_supported_mujoco

    assert require_supported_mujoco() == {}
    monkeypatch.setattr(mujoco, "__version__", "3.4.0")
    with pytest.raises(RuntimeError, match=r"mujoco: expected >=3.3,<3.4, got 3.4.0; .*allow_mujoco=true"):
        require_supported_mujoco()
    assert require_supported_mujoco(True) == {"mujoco_override": "3.4.0"}


def test_first_import_asks_nothing_and_leaves_home_alone(tmp_path):
    variables = {key: value for key, value in os.environ.items() if key not in ("LIBERO_CONFIG_PATH", "XDG_CACHE_HOME")}
    code = "from envs.libero import Libero; print(len(Libero('libero_goal').spec.tasks))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10\n"  # and nothing of hf-libero's own chatter
    assert not (tmp_path / ".libero").exists()

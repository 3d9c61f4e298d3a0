"""A recording finds its checkpoint from any folder, or is told where it is now."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from recorded import recorded

from vla_runtime.compose import BadArguments
from vla_runtime.control.recorder import Recording
from vla_runtime.evaluation import recorded_policy as module
from vla_runtime.evaluation.recorded_policy import recorded_policy, with_absolute_paths


@pytest.fixture
def built(monkeypatch):
    """The settings of policies that were built; each has the weights "w"."""
    found = []

    def build(config, env):
        found.append(config["policy"])
        return SimpleNamespace(spec=SimpleNamespace(weights="w"), close=lambda: None)

    monkeypatch.setattr(module, "build_policy", build)
    return found


def recording(tmp_path, images=True, weights="w", name="ck", **policy):
    found = Recording(recorded(tmp_path, images=images)[0])
    found.header["config"] |= {"policy": policy, "choices": {"policy": name}}
    found.header["policy"]["weights"] = weights
    return found


def replaying(**policy):
    return {"replay": "a.rec", "policy": {"folder": "nano_lift_beast", **policy}}


def test_paths_are_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").mkdir()
    policy = {
        "folder": "ck",
        "of": "nano_lift_beast",
        "ca": None,
        "contract": "c.yaml",
        "decode": {"schedule": "s.json"},
    }
    assert with_absolute_paths({"policy": policy})["policy"] == {
        **policy, "folder": f"{tmp_path}/ck", "contract": f"{tmp_path}/c.yaml",
        "decode": {"schedule": f"{tmp_path}/s.json"},
    }  # fmt: skip
    (tmp_path / "nano_lift_beast").mkdir()
    for folder, kept in (("nano_lift_beast", "nano_lift_beast"), ("./x", f"{tmp_path}/x")):
        assert with_absolute_paths({"policy": {"folder": folder}})["policy"] == {"folder": kept}


@pytest.mark.parametrize("key", ["folder", "of"])
def test_a_checkpoint_that_moved_is_named_and_can_be_given(tmp_path, built, key):
    there, moved = tmp_path / "ck", tmp_path / "moved"
    moved.mkdir()
    kept = recording(tmp_path, **{key: str(there)})
    with pytest.raises(
        ValueError, match=rf"replay=a\.rec: expected .* in {there}, got no folder there; policy=<folder>"
    ):
        recorded_policy(kept, replaying())
    recorded_policy(kept, replaying(folder=str(moved)))
    there.mkdir()
    recorded_policy(kept, replaying())
    assert built == [{key: str(moved)}, {key: str(there)}]


def test_a_server_a_proxy_and_a_schedule_may_be_others(tmp_path, built):
    recorded_policy(
        recording(
            tmp_path, address="ws://a:1", token=None, proxy="http://p:1", contract="/old.yaml", decode={"mode": "bac"}
        ),
        replaying(address="ws://b:2", token="t", proxy=None, contract="new.yaml", decode={"schedule": "s.json"}),
    )
    assert built == [
        {
            "address": "ws://b:2", "token": "t", "proxy": "http://p:1", "contract": "new.yaml",
            "decode": {"mode": "bac", "schedule": "s.json"},
        }
    ]  # fmt: skip


def test_another_policy_is_refused(tmp_path, built):
    with pytest.raises(
        ValueError, match="expected a policy with weights other, got w; it was trained again since, or is"
    ):
        recorded_policy(recording(tmp_path, weights="other", folder="nano_lift_beast"), replaying())


def test_a_folder_that_nothing_would_be_taken_from_is_refused(tmp_path, built):
    given = replaying(folder=str(tmp_path))
    with pytest.raises(BadArguments, match="which was decided by expert, no checkpoint"):
        recorded_policy(recording(tmp_path, name="expert", _target_="expert"), given)
    with pytest.raises(BadArguments, match="which kept no images to decode again"):
        recorded_policy(recording(tmp_path, images=False, folder="/ck"), given)
    # Nothing is decoded again, so nothing needs to be there.
    assert recorded_policy(recording(tmp_path, images=False, folder="/ck"), replaying()) is None
    assert not built

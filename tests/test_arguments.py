"""What is typed is what arrives: text and paths need no quotes, numbers are numbers, and advice is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_runtime.arguments import at_home, named
from vla_runtime.compose import BadArguments, load
from vla_runtime.config_files import defaults

HOME = Path.home()


def value(command, key, *overrides):
    found = load(command, overrides)
    for part in key.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "lift the cube, then place it",
        "12",
        "1e3",
        "true",
        "[red] cube",
        "[a, b]",
        "{cube: red}",
        "sort(a, b)",
        'it\'s "here" \\',
        "pay ${amount} \\'",
        "put: a=b; ~/c",
    ],
)
def test_an_instruction_is_text_whatever_it_looks_like(text):
    assert value("collect", "instruction", f"instruction={text}") == text
    assert value("collect", "env.instruction", f"env.instruction={text}") == text


@pytest.mark.parametrize("text", ["a,b", "2024-01-01,run", "20240101", "1e3", "a\\b'c", "with blank", "x=1"])
def test_a_path_is_text_too(text):
    assert value("finetune", "out", f"out={text}") == text
    assert value("finetune", "data", f"data=[first,{text.replace(',', '-')}]") == ["first", text.replace(",", "-")]
    assert value("rollout", "policy.folder", f"policy=there/{text}") == f"there/{text}"


def test_null_and_quotes_mean_what_they_say():
    assert value("collect", "instruction", "instruction=null") is None
    assert value("collect", "instruction", "instruction='null'") == "null"
    assert value("finetune", "backbone.pretrained", "backbone=florence2", "backbone.pretrained=null") is None
    assert value("finetune", "precision", "precision=no") == "no"


@pytest.mark.parametrize(
    ("command", "key", "overrides"),
    [
        ("bridge", "record.bag", ["record.bag=~/x"]),
        ("bridge", "transport.path", ["transport=bag", "transport.path=~/x"]),
        ("rollout", "env.assets", ["env=libero_10", "env.assets=~/x"]),
        ("rollout", "policy.folder", ["policy=~/x"]),
        ("rollout", "limits.groups", ["limits.groups=~/x"]),
        ("rollout", "loop.latency", ["loop.latency=~/x"]),
        ("finetune", "init.folder", ["init.folder=~/x"]),
        ("compare", "a", ["a=~/x"]),
    ],
)
def test_the_home_folder_behind_every_name(command, key, overrides):
    assert value(command, key, *overrides) == str(HOME / "x")


def test_the_home_folder_in_lists():
    assert value("finetune", "data", "data=[a, ~/b]") == ["a", str(HOME / "b")]
    assert value("rollout", "loop.latency", "loop.latency=[0.1,~/b]") == [0.1, str(HOME / "b")]
    assert at_home("a~/b") == "a~/b"
    assert at_home("~nobody_of_this_name/b") == "~nobody_of_this_name/b"


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("collect", "recover=no", "recover: expected true or false, got 'no'"),
        ("collect", "seed=abc", "seed: expected a number, such as 10000, got 'abc'"),
        ("collect", "seed=1,2", "seed: expected a number, such as 10000, got '1,2'"),
        ("rollout", "safety=3", "safety: expected a map with keys among plan, observation, got 3"),
        ("rollout", "safety={plan: 3, bogus: 1}", "unknown option 'safety.bogus'; nearest: safety.plan"),
        ("finetune", "observation_offsets=0", r"expected a list, such as \[0\], got 0"),
        ("rollout", "sed=3", "unknown option 'sed'; nearest: seed"),
        ("rollout", "+seed=3", "leave out the \\+"),
        ("rollout", "~seed", "expected a map's entry to take away"),
        ("rollout", "~env.cameras.agentvew", "unknown option 'env.cameras.agentvew'; nearest: env.cameras.agentview"),
        ("rollout", "policy=expert,hold", "policy: expected one of .*, got 'expert,hold'"),
        ("rollout", "hydra.verbose=true", "unknown option 'hydra.verbose'"),
        ("rollout", "out=${nothing}", "out: Interpolation key 'nothing' not found"),
        ("bridge", "transport=bag", "an option without default needs a value: transport.path="),
        ("rollout", "env.cameras=3", "env.cameras: expected a map"),
    ],
)
def test_what_cannot_be_is_named_with_a_remedy_that_exists(command, override, message):
    with pytest.raises(BadArguments, match=message) as error:
        load(command, [override])
    assert not any(word in str(error.value) for word in ("multirun", "append", "struct", "config group"))


def test_cameras_are_chosen():
    def cameras(*overrides):
        return load("rollout", ["env=lift", *overrides])["env"]["cameras"]

    both = {"agentview": [128, 128], "robot0_eye_in_hand": [128, 128]}
    assert cameras() == both
    assert cameras("env.cameras={frontview: [64, 64]}") == {"frontview": [64, 64]}
    assert cameras("env.cameras={agentview: [64, 64]}") == {"agentview": [64, 64]}
    assert cameras("env.cameras={}") == {}
    assert cameras("~env.cameras.agentview") == {"robot0_eye_in_hand": [128, 128]}
    assert cameras("env.cameras.frontview=[64,64]") == {**both, "frontview": [64, 64]}
    assert cameras("env.cameras.agentview=[64,64]") == {**both, "agentview": [64, 64]}


def test_bare_words_take_the_names_that_are_free():
    assert named(["x", "c=1", "y", "~env.cameras.z"], ("a", "b")) == ["a=x", "c=1", "b=y", "~env.cameras.z"]
    with pytest.raises(BadArguments, match="expected option=value, got 'c'"):
        named(["c"], ())


def test_defaults_are_those_of_the_files_that_are_chosen():
    assert defaults("rollout", {})["env"]["task_class"] == "Lift"
    found = defaults("rollout", {"env": "reach", "decode": "bac", "policy": "nano_lift_beast"})
    assert (found["env"]["size"], found["decode"]["mode"], found["decode"]["steps"]) == (64, "bac", None)
    assert found["env"]["control"] == "absolute"
    assert found["policy"]["folder"] == "nano_lift_beast"

"""The parts of benchmarks/gpu.py: each is a function (device, out, dry) -> plain values, run in a process of its own.

dry: on a CPU and with presets a few thousand weights large, so that every line has run before a GPU is at hand.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_costs import env, percentiles, timed

from policies.benchmarking import bench
from policies.calibration import record, schedule
from policies.checkpoint import load_policy
from policies.decoding import PLAIN, Decode
from policies.presets import preset_policy, random_observations
from policies.timing import finish
from vla_runtime import collect, finetune
from vla_runtime.compose import load
from vla_runtime.control.clock import SystemClock
from vla_runtime.types import Observation

ROOT = Path(__file__).resolve().parents[1]
# Recorded observations that benchmarks/prepare_gpu.py wrote.
RECORDED = ROOT / ".gpu"
_clock = SystemClock()

_SMALL_TEXT = (
    "{vocab_size: 264, d_model: 32, max_position_embeddings: 256, encoder_layers: 1, decoder_layers: 2, "
    "encoder_ffn_dim: 48, decoder_ffn_dim: 48, encoder_attention_heads: 2, decoder_attention_heads: 2}"
)
_SMALL_GEMMA = (
    "{model_type: gemma, hidden_size: 32, num_hidden_layers: 2, intermediate_size: 64, vocab_size: 40, "
    "num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16}"
)
_SMALL_SIGLIP = (
    "{model_type: siglip_vision_model, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, patch_size: 14, image_size: 28, vision_use_head: false}"
)
# What makes each preset small, of the same classes and paths.
SMALL: dict[str, list[str]] = {
    "dp_t": [
        "preset.backbone.width=32", "preset.backbone.decoder_depth=2", "preset.head.denoising.steps=12",
        "preset.head.denoising.train_steps=12", "updates=3", "fewer_steps=[4]",
    ],
    "beast_f": [
        "preset.backbone.vision.embed_dim=[16,32]", "preset.backbone.vision.num_heads=[2,2]",
        "preset.backbone.vision.num_groups=[2,2]", "preset.backbone.vision.depths=[1,1]",
        "preset.backbone.vision.projection_dim=32", "+preset.backbone.vision.patch_size=[7,3]",
        "+preset.backbone.vision.patch_stride=[4,2]", "+preset.backbone.vision.patch_padding=[3,1]",
        "+preset.backbone.vision.patch_prenorm=[false,true]", "+preset.backbone.vision.window_size=3",
        "+preset.backbone.image_size=32", f"preset.backbone.text={_SMALL_TEXT}", "preset.camera_pixels=40",
    ],
    "dd_vla_7b": [
        "preset.needs=null", "preset.backbone.dino={width: 16, depth: 2, heads: 2, feed: 32}",
        "preset.backbone.siglip={width: 24, depth: 2, heads: 2, feed: 40}",
        "+preset.backbone.language.width=32", "+preset.backbone.language.feed=48", "+preset.backbone.language.depth=2",
        "+preset.backbone.language.heads=4", "+preset.backbone.language.key_value_heads=2",
        "+preset.backbone.image_size=28", "preset.camera_pixels=40", "preset.head.decoding.rounds=4", "rounds=[2,4]",
    ],
    "pi0": [
        f"+preset.model={{vlm_config: {{model_type: paligemma, text_config: {_SMALL_GEMMA}, "
        f"vision_config: {_SMALL_SIGLIP}, projection_dim: 32, image_token_id: 39}}, dit_config: {_SMALL_GEMMA}}}",
        "preset.camera_pixels=32", "bubble=[2]", "preset.horizon=6", "preset.executed=6",
    ],
}  # fmt: skip


def tests(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
    """The tests marked gpu; dry: those of tests/gpu that run without one."""
    files = ["tests/gpu"]
    if not dry:
        files += ["tests/decoding/test_graphs.py", "tests/policies/test_decoders.py", "tests/test_calibrate.py"]
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={out}/tests.xml"]
    if importlib.util.find_spec("pytest_timeout") is not None and not dry:
        options.append("--timeout=60")
    marked = [] if dry else ["-m", "gpu and not slow"]
    with (out / "tests.log").open("w") as log:
        command = [sys.executable, "-m", "pytest", *marked, *options, *files]
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    last = (out / "tests.log").read_text().strip().splitlines()[-15:]
    return {"last": last} | (
        {"error": f"pytest: exit code {code}; {last[-1] if last else 'nothing printed'}"} if code else {}
    )


def shipped(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
    """Shipped policies on recorded observations: captured, eager and the CPU; two sessions in two threads."""
    answers: dict[str, Any] = {}
    cuda = device.type == "cuda"
    for folder in sorted((ROOT / "policies/shipped").glob("nano_*")):
        if not (folder / "weights.safetensors").is_file():
            continue
        decodes: dict[str, dict[str, Any]] = {"auto": {}}
        if folder.name.endswith("_lift_diffusion"):
            decodes["ddim 10"] = {"mode": "exact", "sampler": "ddim", "steps": 10}
        for name, options in decodes.items():
            for precision in ("fp32", "bf16") if cuda else ("fp32",):
                made = {"eager": load_policy(folder, device=device, decode=Decode(**options, precision=precision))}
                if cuda:
                    captured = Decode(**options, precision=precision, graphs=True)
                    made["captured"] = load_policy(folder, device=device, decode=captured)
                if precision == "fp32":
                    made["cpu"] = load_policy(folder, decode=Decode(**options))
                answers[f"{folder.name}, {name}, {precision}"] = _compared(made, device, dry)
        if dry:
            break
    if not answers:
        raise FileNotFoundError(f"{ROOT / 'policies/shipped'}: expected weights of a shipped policy, got none")
    apart = [name for name, row in answers.items() if not row["threads_agree"]]
    return answers | ({"error": f"two threads answer other than one after the other: {apart}"} if apart else {})


def _compared(made: dict[str, Any], device: torch.device, dry: bool) -> dict[str, Any]:
    spec = made["eager"].spec
    shown, kind = _observations(spec)
    sessions = {name: policy.begin(0) for name, policy in made.items()}
    given = np.zeros((2, spec.action.size), np.float32)
    row: dict[str, Any] = {"observations": kind, "from_eager": {}, "from_eager_with_rows": {}}
    for turn, observation in enumerate(shown[: 2 if dry else 12]):
        committed = given if spec.max_committed > 1 and turn % 3 == 1 else None
        acted = {
            name: session.predict([observation] * len(spec.observation_offsets), committed).actions
            for name, session in sessions.items()
        }
        into = row["from_eager" if committed is None else "from_eager_with_rows"]
        for name, actions in acted.items():
            into[name] = max(into.get(name, 0.0), float(np.abs(actions - acted["eager"]).max()))
    seen = [shown[0]] * len(spec.observation_offsets)
    for name, session in sessions.items():
        row[f"predict_{name}"] = percentiles(timed(lambda s=session: s.predict(seen), 2 if dry else 200, device))
    policy = made.get("captured", made["eager"])
    row["begin_again_ms"] = round(1e3 * min(timed(lambda: policy.begin(1), 3, device)), 3)

    def answer(seed: int, into: dict[int, Any]) -> None:
        session = policy.begin(seed)
        into[seed] = [
            session.predict([one] * len(spec.observation_offsets)).actions for one in shown[: 2 if dry else 8]
        ]

    apart: dict[int, Any] = {}
    beside: dict[int, Any] = {}
    for seed in (1, 2):
        answer(seed, apart)
    threads = [threading.Thread(target=answer, args=(seed, beside)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row["threads_agree"] = all(
        np.allclose(one, other, atol=1e-5)
        for seed in apart
        for one, other in zip(apart[seed], beside[seed], strict=True)
    )
    return row


def _observations(spec: Any) -> tuple[list[Observation], str]:
    """Recorded ones where they were carried along, else noise."""
    path = RECORDED / "lift.npz"
    cameras = {camera.name: (camera.height, camera.width, 3) for camera in spec.cameras}
    if path.is_file():
        saved = np.load(path, allow_pickle=False)
        if saved["state"].shape[1:] == (spec.state.size,) and all(
            name in saved and saved[name].shape[1:] == shape for name, shape in cameras.items()
        ):
            times = saved["time"]
            return [
                Observation(
                    saved["state"][k], {c: saved[c][k] for c in cameras}, str(saved["instruction"][k]), float(t)
                )
                for k, t in enumerate(times)
            ], "recorded"
    return random_observations(spec, 12), "noise"


def preset(name: str, *options: str, keep: bool = True) -> Callable[[torch.device, Path, bool], dict[str, Any]]:
    """A part: `bench` of a preset. keep: whether its whole table goes into a file of its own."""

    def run(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
        asked = [
            f"preset={name}",
            f"device={device}",
            *(f"out={out}" for _ in range(keep)),
            "observations=3",
            "warmup=2",
        ]
        asked += [*options, *SMALL[name], "repeats=2", "warmup=1"] if dry else options
        if dry:
            asked = [one for one in asked if not one.startswith("precision=fp8")]
        document = bench(load("bench", _last(asked)), lambda: "")
        kept = ("variant", "repeats", "p50_ms", "p95_ms", "p99_ms", "decode_p50_ms", "speedup", "speedup_over_exact",
                "flops_ratio", "deviation")  # fmt: skip
        return {
            "precision": document["precision"], "stages_ms": document["stages_ms"],
            "rows": [{key: row[key] for key in kept} for row in document["rows"]],
        }  # fmt: skip

    return run


def _last(options: list[str]) -> list[str]:
    """Of options that name the same value, the last: a later one is meant."""
    return list({one.partition("=")[0]: one for one in options}.values())


def profile(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
    """Kernels of one chunk, eager and captured: names, counts and microseconds, into profile.json."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    tables: dict[str, Any] = {}
    for name, precision in (("dp_t", "fp32"), ("beast_f", "bf16"), ("dd_vla_7b", "bf16")):
        values = load("bench", _last([f"preset={name}", *(SMALL[name] if dry else [])]))["preset"]
        policy = preset_policy(values, device, precision)
        shown = random_observations(policy.spec, 2)
        decode = PLAIN
        with tempfile.TemporaryDirectory() as folder:
            if name == "dp_t":
                path = Path(folder) / "schedule.json"
                schedule(record(policy, [(shown[0],)]), "bac", 3 if dry else 10, 5).save(path)
                decode = Decode("bac", schedule=str(path))
            for graphs in (False, True) if device.type == "cuda" else (False,):
                asked = policy.decoding(Decode(decode.mode, schedule=decode.schedule, graphs=graphs))
                session = asked.begin(0)
                walls = timed(lambda s=session, o=shown[1]: s.predict([o]), 2 if dry else 5, device)
                activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
                with profiler(activities=activities) as seen:
                    session.predict([shown[1]])
                    finish(device)
                tables[f"{name}, {'captured' if graphs else 'eager'}"] = _kernels(seen.key_averages(), min(walls))
    (out / "profile.json").write_text(json.dumps(tables, indent=1))
    return {name: {key: one[key] for key in ("wall_ms", "kernels", "busy_ms")} for name, one in tables.items()}


def _kernels(events: Any, wall: float) -> dict[str, Any]:
    on_device = [event for event in events if getattr(event, "self_device_time_total", 0)]
    on_device.sort(key=lambda event: -event.self_device_time_total)
    return {
        "wall_ms": round(1e3 * wall, 3), "kernels": sum(event.count for event in on_device),
        "busy_ms": round(sum(event.self_device_time_total for event in on_device) / 1e3, 3),
        "top": [
            {"name": event.key[:90], "count": event.count, "us": round(event.self_device_time_total, 1)}
            for event in on_device[:40]
        ],
    }  # fmt: skip


def train(device: torch.device, out: Path, dry: bool) -> dict[str, Any]:
    """Fine-tuning on the accelerator that accelerate finds: the loss falls."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "reach"
        collect.collect(load("collect", ["env=reach", "env.size=32", "episodes=6", "workers=1", f"out={data}"]))
        size = ["backbone.image_size=16", "backbone.width=32", "backbone.heads=2", "backbone.decoder_depth=2"]
        options = ["steps=30", "batch_size=4", *size] if dry else ["steps=120", "batch_size=64"]
        every = ["warmup=10", "validate_every=1000", "save_every=1000", "validate_samples=4"]
        began = _clock.now()
        last, _ = finetune.finetune(
            load("finetune", [f"data={data}", f"out={folder}/trained", "head=beast", *options, *every])
        )
        row = {key: value for key, value in last.items() if isinstance(value, int | float)}
        row["seconds"] = round(_clock.now() - began, 1)
    if not row["loss_last"] < row["loss_first"]:
        row["error"] = f"expected a loss that falls, got {row['loss_first']} to {row['loss_last']}"
    return row


# The largest first: p50 of a chunk in CUDA graphs; then what explains it.
PARTS: dict[str, Callable[[torch.device, Path, bool], dict[str, Any]]] = {
    "env": env,
    "tests": tests,
    "shipped": shipped,
    "dp_t": preset("dp_t", "repeats=30", "bubble=[5]", "fewer_steps=[10]", "warm_start=null", "first_block=[]",
                   "compile=false"),
    "beast_f": preset("beast_f", "precision=bf16", "repeats=500", "compile=false"),
    "dd_vla_7b": preset("dd_vla_7b", "precision=bf16", "rounds=[4,12]", "repeats=12", "compile=false"),
    "profile": profile,
    "fp8": preset("dd_vla_7b", "precision=fp8", "rounds=[12]", "repeats=6", "compile=false"),
    "compiled": preset("beast_f", "precision=bf16", "repeats=100", "compile=true", keep=False),
    "train": train,
    "pi0": preset("pi0", "precision=bf16", "repeats=10", keep=False),
}  # fmt: skip

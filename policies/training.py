"""The fine-tuning loop: data in, a checkpoint folder out, exactly resumable.

Every step's randomness follows from (seed, step) alone, so a run that was killed and resumed gives the same
losses (one process, CPU, fp32). accelerate moves modules and batches; the average of the weights (EMA) is
what is validated and kept. It knows neither environments nor the command line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.backbones.nano import Nano, NanoConfig
from policies.batch import Batch, Committed
from policies.checkpoint import BACKBONES, TOKENIZERS, make_head, save_policy
from policies.samples import Samples, augmented, drawn_committed, read_samples
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from policies.vla import VLAPolicy
from vla_runtime.data.reader import Dataset
from vla_runtime.disk import replacing
from vla_runtime.transforms import Normalise
from vla_runtime.types import PolicySpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. Steps are updates; warmup and the EMA's horizon are in updates, too; rates are shares."""

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    warmup: int = 300
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    precision: str = "no"
    seed: int = 0
    held_out: float = 0.05
    validate_every: int = 500
    validate_samples: int = 128
    save_every: int = 500
    state_noise: float = 0.02
    state_dropout: float = 0.2
    augment: bool = True
    max_committed: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "validate_every", "save_every", "validate_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a share in [0, 1), got {self.ema}")

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a hundredth; a factor of the learning rate."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2


class Learner(nn.Module):
    """Backbone and head as one module, so that wrappers of modules (devices, processes) have one to wrap."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        loss: Tensor = self.head.loss(self.backbone, batch, actions_BTA, committed)  # type: ignore[operator]
        return loss


@dataclass(slots=True, eq=False)
class Progress:
    """What a run reports: losses of every step, and each validation as {step, l1, switch_recall}."""

    losses: list[float]
    validations: list[dict[str, float]]


def policy_for(
    dataset: Dataset,
    name: str,
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    tokenizer: Mapping[str, Any] | None,
    recipe: Recipe,
) -> VLAPolicy:
    """An untrained policy that fits a data set: transforms from its statistics, tokens bounded by its chunks."""
    contract, statistics = dataset.contract, dataset.statistics()
    action = Normalise.of(dataset.action, statistics[dataset.feature])
    state = Normalise.of(contract.state, statistics["observation.state"])
    spec = PolicySpec(
        name=name,
        cameras=tuple(camera for camera in contract.cameras if camera.name in dataset.cameras),
        state=contract.state,
        action=dataset.action,
        period=dataset.period,
        horizon=dataset.horizon,
        max_committed=recipe.max_committed,
        statistics=dataset.statistics_id(),
        seen=dataset.initial_states,
    )
    torch.manual_seed(recipe.seed)
    if backbone["name"] not in BACKBONES:
        raise ValueError(f"backbone: expected one of {sorted(BACKBONES)}, got {backbone['name']!r}")
    options = {key: value for key, value in backbone.items() if key != "name"}
    network = Nano(NanoConfig(tuple(dataset.cameras), contract.state.size, **options))
    words = _tokenizer(tokenizer, dataset, action)
    head_options = {key: value for key, value in head.items() if key != "name"}
    decoder = make_head(
        head["name"],
        network.width,
        dataset.horizon,
        dataset.action.size,
        {**head_options, "max_committed": recipe.max_committed},
        words,
    )
    return VLAPolicy(spec, network, decoder, state, action)


def train(
    policy: VLAPolicy,
    samples: Samples,
    recipe: Recipe,
    folder: Path,
    head_options: Mapping[str, Any],
    resume: bool,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Progress:
    """Train `policy` in place and keep its best average in `folder`; `resume` goes on from what lies there."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=not torch.cuda.is_available())
    learner = Learner(policy.backbone, policy.head)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    average = {key: value.detach().clone() for key, value in learner.state_dict().items()}
    progress = Progress([], [])
    if resume:
        _restore(_state_path(folder), learner, optimiser, average, progress)
    wrapped, optimiser = accelerator.prepare(learner, optimiser)
    device = accelerator.device
    average = {key: value.to(device) for key, value in average.items()}
    training, held_out = samples.split(recipe.held_out, recipe.seed)
    shown = held_out[np.linspace(0, len(held_out) - 1, min(len(held_out), recipe.validate_samples)).round().astype(int)]
    for step in range(len(progress.losses), recipe.steps):
        wrapped.train()
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate(step)
        total = 0.0
        for part in range(recipe.accumulate):
            batch, actions, committed = _draw(samples, training, recipe, step, part)
            with accelerator.autocast():
                loss = wrapped(batch.to(device), actions.to(device), _to(committed, device))
            accelerator.backward(loss / recipe.accumulate)
            total += float(loss.detach()) / recipe.accumulate
        if not math.isfinite(total):
            raise RuntimeError(f"step {step}: expected a finite loss, got {total}; lower the learning rate")
        accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip)
        optimiser.step()
        optimiser.zero_grad()
        _average(average, learner, min(recipe.ema, (step + 1) / (step + 10)))
        progress.losses.append(total)
        on_step(step, total)
        done = step + 1
        if done % recipe.validate_every == 0 or done == recipe.steps:
            _validated(policy, learner, average, samples, shown, progress, done, folder, head_options, recipe)
        if done % recipe.save_every == 0 or done == recipe.steps:
            _save(_state_path(folder), learner, optimiser, average, progress)
    return progress


def validate(policy: VLAPolicy, samples: Samples, indices: Sequence[int], batch_size: int = 32) -> dict[str, float]:
    """Decoded chunks against recorded ones: L1 over all normalised rows, and the share of gripper switches found.

    A switch is found when the decoded gripper switches to the same side within one row of it.
    """
    binary = [
        index
        for group in policy.spec.action.groups
        for index in range(policy.spec.action.slices[group.name].start, policy.spec.action.slices[group.name].stop)
        if group.kind == "binary"
    ]
    head: Any = policy.head
    backbone: Any = policy.backbone
    error, count, found, switches = 0.0, 0, 0, 0
    for first in range(0, len(indices), batch_size):
        batch, actions = samples.batch(list(indices[first : first + batch_size]))
        with torch.no_grad():
            noise = {
                key: value.to(policy.device)
                for key, value in head.draw(len(batch), torch.Generator().manual_seed(first)).items()
            }
            context = backbone.encode(batch.to(policy.device))
            decoded = head.decode(backbone, context, None, noise, len(batch)).cpu()
        error += float((decoded - actions).abs().mean(dim=(1, 2)).sum())
        count += len(batch)
        for dim in binary:
            truth, answer = actions[..., dim].sign(), decoded[..., dim].sign()
            for one, other in zip(truth, answer, strict=True):
                for row in (one[1:] != one[:-1]).nonzero().flatten().tolist():
                    switches += 1
                    near = range(max(0, row - 1), min(len(one) - 1, row + 2))
                    found += any(other[k] != other[k + 1] and other[k + 1] == one[row + 1] for k in near)
    return {"l1": error / max(1, count), "switch_recall": found / switches if switches else 1.0}


def finetune(config: Mapping[str, Any], on_step: Callable[[int, float], None]) -> dict[str, Any]:
    """What the command asks for: read, build, train; the last line of the command."""
    names = {field.name for field in fields(Recipe)}
    recipe = Recipe(**{key: value for key, value in config.items() if key in names})
    out = Path(config["resume"] or config["out"])
    dataset = Dataset(config["data"], config["horizon"], control=config["control"])
    tokenizer = None if config["tokenizer"]["name"] == "none" else config["tokenizer"]
    head_options = {key: value for key, value in config["head"].items() if key != "name"}
    policy = policy_for(dataset, out.name, config["backbone"], config["head"], tokenizer, recipe)
    samples = read_samples(dataset, config["backbone"]["image_size"], policy.state, policy.action)
    parameters = sum(value.numel() for value in Learner(policy.backbone, policy.head).parameters())
    _log.info("%d samples of %d episodes, %.2f M parameters", len(samples), len(dataset.episodes), parameters / 1e6)
    progress = train(policy, samples, recipe, out, head_options, config["resume"] is not None, on_step)
    last = progress.validations[-1]
    return {
        "steps": len(progress.losses),
        "loss_first": progress.losses[0],
        "loss_last": progress.losses[-1],
        "l1": last["l1"],
        "switch_recall": last["switch_recall"],
        "parameters": parameters,
        "checkpoint": str(out),
    }


def _tokenizer(values: Mapping[str, Any] | None, dataset: Dataset, action: Normalise) -> Bins | BSpline | None:
    if values is None:
        return None
    if values["name"] not in TOKENIZERS:
        raise ValueError(f"tokenizer: expected one of {sorted(TOKENIZERS)} or none, got {values['name']!r}")
    options = {key: value for key, value in values.items() if key != "name"}
    if values["name"] == "bins":
        return Bins(dataset.horizon, dataset.action.size, **options)
    binary = [
        index
        for group in dataset.action.groups
        if group.kind == "binary"
        for index in range(dataset.action.slices[group.name].start, dataset.action.slices[group.name].stop)
    ]
    spline = BSpline(dataset.horizon, dataset.action.size, binary=binary, **options)
    rows = [dataset.row(index) for index in range(len(dataset))]
    return spline.with_bounds_of(action.forward(dataset.chunk(row).actions) for row in rows)


def _draw(
    samples: Samples, indices: np.ndarray[Any, Any], recipe: Recipe, step: int, part: int
) -> tuple[Batch, Tensor, Committed | None]:
    seed = int(np.random.SeedSequence((recipe.seed, step, part)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    chosen = indices[torch.randint(len(indices), (recipe.batch_size,), generator=generator).numpy()]
    batch, actions = samples.batch(chosen.tolist())
    if recipe.augment:
        batch = augmented(batch, generator, recipe.state_noise, recipe.state_dropout)
    committed = drawn_committed(actions, recipe.max_committed, generator) if recipe.max_committed else None
    # What heads draw themselves (times, masks, noise) comes from the global generator: seeded per step.
    torch.manual_seed(seed)
    return batch, actions, committed


def _to(committed: Committed | None, device: torch.device) -> Committed | None:
    return None if committed is None else Committed(committed.rows_BPA.to(device), committed.counts_B.to(device))


@torch.no_grad()
def _average(average: dict[str, Tensor], learner: nn.Module, keep: float) -> None:
    for key, value in learner.state_dict().items():
        average[key].lerp_(value.to(average[key]), 1 - keep)


def _validated(
    policy: VLAPolicy,
    learner: Learner,
    average: dict[str, Tensor],
    samples: Samples,
    indices: Sequence[int],
    progress: Progress,
    step: int,
    folder: Path,
    head_options: Mapping[str, Any],
    recipe: Recipe,
) -> None:
    """Validate the average, and keep it in `folder` when none before was better."""
    current = {key: value.detach().clone() for key, value in learner.state_dict().items()}
    learner.load_state_dict(average)
    learner.eval()
    figures = validate(policy, samples, indices)
    best = min((found["l1"] for found in progress.validations), default=math.inf)
    progress.validations.append({"step": step, **figures})
    _log.info("step %d: held-out decoded L1 %.4f, gripper switches %.2f", step, figures["l1"], figures["switch_recall"])
    if figures["l1"] <= best:
        save_policy(folder, policy, head_options, {"step": step, **figures, "recipe": _plain(recipe)})
    learner.load_state_dict(current)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}


def _state_path(folder: Path) -> Path:
    # Beside the checkpoint, which is replaced as a whole and travels without it.
    return folder.with_name(f"{folder.name}.training.pt")


def _save(path: Path, learner: nn.Module, optimiser: Any, average: dict[str, Tensor], progress: Progress) -> None:
    state = {
        "learner": learner.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "losses": progress.losses,
        "validations": progress.validations,
    }
    with replacing(path) as part:
        torch.save(state, part)


def _restore(path: Path, learner: nn.Module, optimiser: Any, average: dict[str, Tensor], progress: Progress) -> None:
    if not path.is_file():
        raise ValueError(f"resume: expected the training state {path}, got no such file; start over without resume=")
    state = torch.load(path, weights_only=True, map_location="cpu")
    learner.load_state_dict(state["learner"])
    optimiser.load_state_dict(state["optimiser"])
    average.update(state["average"])
    progress.losses[:] = state["losses"]
    progress.validations[:] = state["validations"]

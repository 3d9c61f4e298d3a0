"""The fine-tuning loop: samples in, a checkpoint folder out, exactly resumable.

Every step's randomness follows from (seed, step) alone, so a run that was killed and resumed gives the same
losses (one process, CPU, fp32). accelerate moves modules and batches; the average of the weights (EMA) is
what is validated and kept. It knows neither data sets nor the command line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies.batch import Batch, Committed
from policies.checkpoint import save_policy
from policies.features import CachedFeatures, Features, FrozenTrunk
from policies.memory import estimate
from policies.recipe import Recipe
from policies.samples import FreshSamples, Samples, drawn_committed
from policies.training_state import Progress, restore, save
from policies.validation import validate
from policies.vla import VLAPolicy
from vla_runtime.disk import plain

_log = logging.getLogger(__name__)


class Learner(nn.Module):
    """Backbone and head as one module, so that wrappers of modules (devices, processes) have one to wrap."""

    def __init__(self, backbone: nn.Module, head: nn.Module, frozen_trunk: bool = False):
        super().__init__()
        self.backbone, self.head = backbone, head
        self._asked = [FrozenTrunk(backbone) if frozen_trunk else backbone]

    def forward(self, batch: Batch | Features, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        loss: Tensor = self.head.loss(self._asked[0], batch, actions_BTA, committed)  # type: ignore[operator]
        return loss


def train(
    policy: VLAPolicy,
    samples: Samples,
    recipe: Recipe,
    folder: Path,
    head_options: Mapping[str, Any],
    resume: bool,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    settings: Mapping[str, Any] | None = None,
    features: Path | None = None,
) -> Progress:
    """Train `policy` in place and keep its best average in `folder`; `resume` goes on from what lies beside it.

    settings: what a resumed run must have in common with the one it goes on with, beside the recipe. features: a
    folder where those of a frozen trunk are kept for other runs. Curves
    for TensorBoard are written beside the folder, too. RuntimeError for a loss that is not finite, ValueError
    for a state that is missing or of another run.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter

    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise ValueError(f"finetune: expected one process, got {accelerator.num_processes}; start it plainly")
    device = accelerator.device
    if recipe.freeze_trunk:
        for value in policy.backbone.trunk_parameters():  # type: ignore[operator]
            value.requires_grad_(False)
    learner = Learner(policy.backbone, policy.head, recipe.freeze_trunk)
    optimiser = torch.optim.AdamW(
        [value for value in learner.parameters() if value.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    average = {key: value.detach().clone() for key, value in learner.state_dict().items()}
    progress = Progress([], [])
    own = plain({"recipe": asdict(recipe), **(settings or {})})
    if resume:
        restore(folder, learner, optimiser, average, progress, own)
    wrapped, optimiser = accelerator.prepare(learner, optimiser)
    average = {key: value.to(device) for key, value in average.items()}
    training, shown = recipe.chosen(samples)
    source: FreshSamples | CachedFeatures
    if recipe.freeze_trunk:
        source = CachedFeatures(
            policy.backbone, samples, training, recipe.feature_copies, recipe.seed, recipe.augmented, device,
            features, repr((recipe.augment, recipe.state_noise, recipe.state_dropout)),
        )  # fmt: skip
    else:
        source = FreshSamples(samples, training, recipe.augmented)
    with _recomputing(policy.backbone if recipe.gradient_checkpointing else None):
        if not resume:
            _log.info("memory: %s", _estimated(learner, source, samples, recipe, device))
        path = folder.with_name(f"{folder.name}.curves")
        curves = SummaryWriter(str(path), purge_step=len(progress.losses))
        for step in range(len(progress.losses), recipe.steps):
            wrapped.train()
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * recipe.rate(step)
            total = 0.0
            for part in range(recipe.accumulate):
                batch, actions, committed = _draw(source, recipe, step, part)
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
            curves.add_scalar("loss", total, done)
            curves.add_scalar("learning_rate", recipe.learning_rate * recipe.rate(step), done)
            validated = done % recipe.validate_every == 0 or done == recipe.steps
            if validated:
                _validated(policy, learner, average, samples, shown, progress, done, folder, head_options, recipe)
                for name, value in progress.validations[-1].items():
                    curves.add_scalar(f"held_out/{name}", value, done)
            # Whenever there is a new checkpoint there is a state to go on from.
            if validated or done % recipe.save_every == 0:
                save(folder, learner, optimiser, average, progress, own)
                curves.flush()
        curves.close()
    return progress


@contextmanager
def _recomputing(backbone: Any) -> Iterator[None]:
    """Within the block the backbone's layers keep no activations; None changes nothing."""
    layers = [] if backbone is None else backbone.checkpointed_layers()
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _estimated(
    learner: Learner, source: FreshSamples | CachedFeatures, samples: Samples, recipe: Recipe, device: torch.device
) -> str:
    def loss_of(count: int) -> Tensor:
        batch, actions = source.draw(count, torch.Generator().manual_seed(0))
        loss: Tensor = learner(batch.to(device), actions.to(device), None)
        return loss

    data = samples.num_bytes() + (source.num_bytes() if isinstance(source, CachedFeatures) else 0)
    return estimate(learner, loss_of, recipe.batch_size, data).text()


def _draw(
    source: FreshSamples | CachedFeatures, recipe: Recipe, step: int, part: int
) -> tuple[Batch | Features, Tensor, Committed | None]:
    seed = int(np.random.SeedSequence((recipe.seed, step, part)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    batch, actions = source.draw(recipe.batch_size, generator)
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
    told = "learned by heart" if recipe.overfit else "held out"
    _log.info("step %d, %s: %s", step, told, ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if figures["l1"] <= best:
        save_policy(folder, policy, head_options, {"step": step, **figures, "recipe": asdict(recipe)})
    learner.load_state_dict(current)

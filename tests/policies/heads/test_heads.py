"""What every head owes: learning, repeatability, exact prefixes, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.backbones.nano import Nano, NanoConfig
from policies.batch import Batch, Committed
from policies.heads.autoregressive import Autoregressive
from policies.heads.beast import Beast
from policies.heads.diffusion import Diffusion, Flow
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.heads.regression import Regression
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.decoding.denoise import Denoising
from vla_runtime.testing import check_head

ROWS, SIZE, WIDTH, PREFIX = 8, 3, 32, 4


def chunks(number=8):
    generator = np.random.default_rng(0)
    phase = generator.uniform(0, 6, (number, 1, SIZE))
    actions = 0.8 * np.sin(phase + np.linspace(0, 2, ROWS)[None, :, None])
    actions[..., -1] = np.where(np.arange(ROWS) < generator.integers(1, ROWS, (number, 1)), -1, 1)
    return torch.from_numpy(actions.astype(np.float32))


# As many control points as rows: what heads learn is judged, not what a tokenizer cannot say.
SPLINE = BSpline(ROWS, SIZE, num_basis=8, degree=3, binary=(2,)).with_bounds_of(chunks().numpy())
BINS = Bins(ROWS, SIZE)
HEADS = {
    "regression": lambda: Regression(ROWS, SIZE, WIDTH, PREFIX),
    "beast": lambda: Beast(SPLINE, WIDTH, PREFIX),
    "beast_continuous": lambda: Beast(SPLINE, WIDTH, PREFIX, tokens="continuous"),
    "beast_latent": lambda: Beast(SPLINE, WIDTH, PREFIX, tokens="continuous", latent=True),
    "discrete_diffusion_bins": lambda: DiscreteDiffusion(BINS, WIDTH, PREFIX),
    "discrete_diffusion_bspline": lambda: DiscreteDiffusion(SPLINE, WIDTH, PREFIX),
    "autoregressive": lambda: Autoregressive(SPLINE, WIDTH, PREFIX),
    "diffusion": lambda: Diffusion(ROWS, SIZE, WIDTH, PREFIX, Denoising("ddim", 10, 50)),
    "flow": lambda: Flow(ROWS, SIZE, WIDTH, PREFIX),
}


def tiny(name):
    torch.manual_seed(0)
    config = NanoConfig(("front",), state_size=2, image_size=16, width=WIDTH, heads=2, trunk_depth=1, decoder_depth=2)
    return Nano(config), HEADS[name]()


def observations(number=8):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (number, 20, 20, 3), generator=generator, dtype=torch.uint8)
    return Batch({"front": image}, torch.randn(number, 2, generator=generator), tuple(f"do {i}" for i in range(number)))


def first_rows(number, count):
    return Committed(chunks(number)[:, :PREFIX], torch.full((number,), count))


def decode(backbone, head, batch, committed=None, seed=3):
    with torch.no_grad():
        noise = head.draw(len(batch), torch.Generator().manual_seed(seed))
        return head.decode(backbone, backbone.encode(batch), committed, noise, len(batch))


@pytest.mark.parametrize("name", HEADS)
def test_it_keeps_the_promises_of_a_head(name):
    backbone, head = tiny(name)
    check_head(head, backbone, observations(), chunks(), first_rows(8, 3))


class Forgetful(Regression):
    """Breaks one promise at a time."""

    broken = ""

    def loss(self, *arguments):
        loss = super().loss(*arguments)
        return {"nan": loss * torch.nan, "deaf": loss.detach().requires_grad_()}.get(self.broken, loss)

    def decode(self, backbone, context, committed, noise, batch=1):
        rows = super().decode(backbone, context, committed, noise, batch)
        if self.broken == "range":
            return rows + 3
        if self.broken == "shape":
            return rows[:, 1:]
        if self.broken == "chance":
            return (rows + 1e-3 * torch.rand(rows.shape)).clamp(-1, 1)
        return super().decode(backbone, context, None, noise, batch) if self.broken == "given" else rows


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("nan", "finite"),
        ("deaf", "does not reach"),
        ("range", r"in \[-1, 1\]"),
        ("shape", "expected"),
        ("chance", "other rows"),
        ("given", "came back changed"),
    ],
)
def test_a_broken_promise_is_named(broken, message):
    backbone, _ = tiny("regression")
    head = Forgetful(ROWS, SIZE, WIDTH, PREFIX)
    head.broken = broken
    with pytest.raises(AssertionError, match=message):
        check_head(head, backbone, observations(), chunks(), first_rows(8, 3))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("count", [0, 3])
def test_given_rows_come_back_exactly_and_change_the_rest(name, count):
    backbone, head = tiny(name)
    free = decode(backbone, head, observations())
    given = decode(backbone, head, observations(), first_rows(8, count))
    assert torch.equal(given[:, :count], chunks()[:, :count])
    if count == 0:
        assert torch.equal(given, free)


@pytest.mark.parametrize("make", [DiscreteDiffusion, Autoregressive])
def test_tokens_of_given_rows_are_pinned(make):
    """Over bins every other token sees them, as in training."""
    backbone, _ = tiny("regression")
    head = make(BINS, WIDTH, PREFIX)
    given = Committed(chunks()[:, :PREFIX], torch.arange(8) % (PREFIX + 1))
    with torch.no_grad():
        context = backbone.encode(observations())
        noise = head.draw(8, torch.Generator().manual_seed(0))
        ids = head.decode_tokens(backbone, context, given, noise, 8)[1]
    truth = BINS.encode(chunks())
    for sample, count in enumerate(given.counts_B.tolist()):
        assert torch.equal(ids[sample, : count * SIZE], truth[sample, : count * SIZE])


def test_tokens_of_given_rows_are_never_masked_in_training():
    backbone, _ = tiny("regression")
    head = DiscreteDiffusion(BINS, WIDTH, PREFIX)
    asked = []
    head._logits = lambda *arguments: (asked.append(arguments[-1]), DiscreteDiffusion._logits(head, *arguments))[1]
    for seed in range(20):
        torch.manual_seed(seed)
        head.loss(backbone, observations(), chunks(), first_rows(8, 3))
    masked = torch.stack(asked)
    assert not masked[..., : 3 * SIZE].any()
    assert masked[..., 3 * SIZE :].any(-1).all()


@pytest.mark.parametrize("name", HEADS)
def test_rows_that_are_not_given_do_not_matter(name):
    """What lies beyond the count may be anything, also in the loss, where given rows carry no gradient."""
    backbone, head = tiny(name)
    spoilt = first_rows(8, 2)
    spoilt.rows_BPA[:, 2:] = torch.nan
    assert torch.equal(
        decode(backbone, head, observations(), spoilt), decode(backbone, head, observations(), first_rows(8, 2))
    )
    torch.manual_seed(5)
    loss = head.loss(backbone, observations(), chunks(), spoilt)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["regression", "diffusion", "flow"])
def test_given_rows_are_left_out_of_the_loss(name):
    """What the network answers there has no gradient."""
    backbone, head = tiny(name)
    answers = []
    (head if name == "regression" else head.network).out.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), answers.append(output))[0]
    )
    head.loss(backbone, observations(), chunks(), first_rows(8, 3)).backward()
    gradient = answers[0].grad
    assert (gradient[:, :3] == 0).all()
    assert (gradient[:, 3:] != 0).any()


@pytest.mark.parametrize("name", HEADS)
def test_the_batch_does_not_matter(name):
    backbone, head = tiny(name)
    batch = observations()
    with torch.no_grad():
        noise = head.draw(8, torch.Generator().manual_seed(3))
        together = head.decode(backbone, backbone.encode(batch), None, noise, 8)
        for index in (0, 5):
            one = Batch(
                {"front": batch.images["front"][index : index + 1]},
                batch.state_BS[index : index + 1],
                batch.instructions[index : index + 1],
            )
            mine = {
                key: value[:, index : index + 1] if key in ("steps", "ids", "ranks") else value[index : index + 1]
                for key, value in noise.items()
            }
            alone = head.decode(backbone, backbone.encode(one), None, mine, 1)
            assert (alone[0] - together[index]).abs().max() < 1e-4


def test_kept_keys_and_values_give_the_tokens_of_a_full_pass():
    backbone, head = tiny("autoregressive")
    batch = observations()
    with torch.no_grad():
        context = backbone.encode(batch)
        ids = head.decode_tokens(backbone, context, None, {}, 8)[1]
        slots = torch.cat([head.prefix(None, 8), head._slots(ids)], dim=1)
        causal = torch.ones(slots.shape[1], slots.shape[1], dtype=torch.bool).tril()
        logits = head.out(backbone.step(context, slots, causal)[:, PREFIX:])
    assert torch.equal(logits.argmax(-1), ids)


class Remembered(torch.nn.Module):
    """A backbone whose trunk is frozen and has been asked already: most of a step's time."""

    def __init__(self, backbone, batch):
        super().__init__()
        self.decoder, self.tokens = backbone.decoder, backbone.features(batch)[0].detach()
        self.step, self.extend = backbone.step, backbone.extend

    def encode(self, batch):
        return self.decoder.remember(self.tokens)


@pytest.mark.parametrize("name", HEADS)
def test_it_learns_eight_chunks_by_heart(name):
    """Decoded, not only in the loss. The same answer for all eight is off by 0.4."""
    backbone, head = tiny(name)
    # Those that learn one noise at a time see each chunk with several at once.
    steps, copies = {"diffusion": (1200, 8), "flow": (700, 8)}.get(name, (250, 1))
    once = observations()
    batch = Batch(
        {camera: images.repeat(copies, 1, 1, 1) for camera, images in once.images.items()},
        once.state_BS.repeat(copies, 1),
        once.instructions * copies,
    )
    asked = Remembered(backbone, batch)
    modules = torch.nn.ModuleList([asked, head])
    optimiser = torch.optim.AdamW(modules.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        head.loss(asked, batch, chunks().repeat(copies, 1, 1), None).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    error = (decode(Remembered(backbone, once), head, once) - chunks()).abs().mean()
    assert error < 0.02, float(error)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beast(BINS, WIDTH), "tokenizer=bspline"),
        (lambda: Beast(SPLINE, WIDTH, tokens="both"), "tokens"),
        (lambda: Beast(SPLINE, WIDTH, latent=True), "latent"),
        (lambda: Denoising("ddpm", 10, 100), "ddpm walks all"),
        (lambda: Denoising("euler"), "sampler"),
        (lambda: Flow(ROWS, SIZE, WIDTH, steps=0), "steps"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()

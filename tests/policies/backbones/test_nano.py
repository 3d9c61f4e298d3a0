"""The nano backbone: prefix reuse is exact, fixed slots equal a causal pass, and its input is checked."""

from __future__ import annotations

import pytest
import torch
from rounds import kept_equals_anew
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from policies.backbones.decoder import Attention
from policies.backbones.nano import Nano, NanoConfig
from policies.batch import Batch
from policies.images import resize

TINY = NanoConfig(("a", "b"), state_size=3, image_size=32, width=32, heads=2, trunk_depth=1, decoder_depth=2)


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return Nano(TINY).eval()


def batch(*instructions):
    generator = torch.Generator().manual_seed(len(instructions))
    count = len(instructions)
    images = {name: torch.randint(0, 256, (count, 40, 40, 3), generator=generator, dtype=torch.uint8) for name in "ab"}
    return Batch(images, torch.randn(count, 3, generator=generator), instructions)


@torch.no_grad()
def test_encode_once_step_many_equals_one_pass(nano):
    observations, slots, cond = batch("lift", "put it down"), torch.randn(2, 9, 32), torch.randn(2, 32)
    context = nano.encode(observations)
    for _ in range(2):
        assert torch.equal(nano.step(context, slots, cond_BD=cond), nano(observations, slots, cond_BD=cond))


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3]])
def test_extending_equals_one_causal_pass(nano, pieces):
    observations, slots = batch("lift"), torch.randn(1, 9, 32)
    context = nano.encode(observations)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    whole = nano.step(context, slots, causal)
    said, first = [], 0
    for count in pieces:
        context = nano.extend(context, slots[:, first : first + count])
        said.append(context.hidden_BLD)
        first += count
    rest = nano.step(context, slots[:, first:], torch.ones(2, 2, dtype=torch.bool).tril())
    assert (torch.cat([*said, rest], 1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_an_instruction_is_heard_and_its_padding_is_not(nano):
    slots = torch.randn(1, 4, 32)
    observations = batch("lift the cube", "go")
    both = nano(observations, slots.expand(2, -1, -1))
    alone = Batch({name: image[1:] for name, image in observations.images.items()}, observations.state_BS[1:], ("go",))
    assert (nano(alone, slots)[0] - both[1]).abs().max() < 1e-5
    other = Batch(alone.images, alone.state_BS, ("no",))
    assert (nano(other, slots) - nano(alone, slots)).abs().max() > 1e-5


@torch.no_grad()
def test_every_camera_and_the_state_are_seen(nano):
    slots, one = torch.randn(1, 4, 32), batch("lift")
    for name in "ab":
        blind = Batch({**one.images, name: torch.zeros_like(one.images[name])}, one.state_BS, one.instructions)
        assert (nano(blind, slots) - nano(one, slots)).abs().max() > 1e-5
    numb = Batch(one.images, torch.zeros_like(one.state_BS), one.instructions)
    assert (nano(numb, slots) - nano(one, slots)).abs().max() > 1e-5


def test_at_most_72_image_tokens_and_small_enough_to_ship():
    full = Nano(NanoConfig(("a", "b"), state_size=3))
    assert full.features(batch("lift"))[0].shape == (1, 72 + 4 + 1, 192)
    assert 2 * sum(value.numel() for value in full.parameters()) < 11.5e6  # bytes in fp16


def test_resizing_is_the_same_alone_and_in_a_batch():
    images = batch("a", "b", "c").images["a"]
    together = resize(images, 32)
    assert together.dtype == torch.uint8
    assert all(torch.equal(resize(images[i : i + 1], 32)[0], together[i]) for i in range(3))
    assert resize(images, 40) is images


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nano: nano.encode(batch("")), "1 to 160 bytes, got 0"),
        (lambda nano: nano.encode(batch("x" * 200)), "1 to 160 bytes, got 200"),
        (lambda nano: nano.encode(Batch({"a": batch("x").images["a"]}, torch.zeros(1, 3), ("x",))), "camera 'b'"),
        (lambda nano: NanoConfig(("a",), 3, image_size=100), "multiple of 16"),
        (lambda nano: NanoConfig((), 3), "one or two cameras"),
        (lambda nano: NanoConfig(("a", "b", "c"), 3), r"got \['a', 'b', 'c'\]; choose with cameras=\[a,b\]"),
        (lambda nano: resize(torch.zeros(1, 3, 8, 8), 4), "uint8"),
    ],
)
def test_what_cannot_be_is_named(nano, make, message):
    with pytest.raises(ValueError, match=message):
        make(nano)


def test_attention_trained_in_half_precision_on_a_cpu_is_attention():
    torch.manual_seed(0)
    attention = Attention(32, 4)
    slots, memory = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    for mask in (None, torch.ones(5, 5, dtype=torch.bool).tril()):
        wanted = attention(slots, attention.keys_values(memory), mask)
        with torch.autocast("cpu", torch.bfloat16):
            found = attention(slots, attention.keys_values(memory), mask)
        assert found.dtype == torch.bfloat16
        assert found.requires_grad
        torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.02)


def test_costs_are_the_multiplications_that_run(nano):
    """Counted by torch's own counter, which knows matrix products and attention."""
    decoder, slots, memory = nano.decoder, 7, 9
    tokens = torch.randn(1, memory, decoder.norm.normalized_shape[0])
    context = decoder.remember(tokens)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        decoder.step(context, torch.randn(1, slots, tokens.shape[2]))
    assert 2 * sum(decoder.costs(slots, memory)) == counter.get_total_flops()


def test_rounds_with_a_kept_prefix_say_what_rounds_without_one_say(nano):
    kept_equals_anew(nano, batch("lift it", "put it down"), TINY.width)

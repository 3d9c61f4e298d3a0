"""The prismatic backbone: equal to its parts composed plainly, its prefix exact, its read-out where it was trained."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from decodes import captured_reads_no_values
from prismatics import ATTENTION, WIDTH, batch, loud, slots_of, tiny, words
from torch.utils.checkpoint import checkpoint

from policies.backbones.prismatic import Prismatic
from policies.backbones.prismatic_vision import FusedVision, TowerConfig
from policies.batch import Batch


def plain(backbone, sample, slots, mask_LL=None, cond=None):
    """One sample without padding: transformers' own model over the whole sequence, every number said outright."""
    config, oft = backbone.config, backbone.config.attention == "oft"
    text = f"In: What action should the robot take to {sample.instructions[0].lower()}?\nOut:"
    extra = [] if config.extra_token is None else [config.extra_token]
    ids = torch.tensor([config.begin_id, *words().encode(text).ids, *extra])
    embed = backbone.language_model.model.embed_tokens
    pictures = [backbone.projector(backbone.vision(small(sample.images[name])))[0] for name in config.cameras]
    state = backbone.proprio.fc2(torch.nn.functional.gelu(backbone.proprio.fc1(sample.state_BS)))
    front, prompt = torch.cat([embed(ids[:1]), *pictures, state]), embed(ids[1:])
    cond = [] if cond is None else [cond]
    length, prefix = len(slots), len(front) + len(prompt)
    if oft:
        sequence = torch.cat([front, *cond, prompt, slots, embed(torch.tensor([config.stop_id]))])
        may = torch.ones(len(sequence), len(sequence), dtype=torch.bool)
        places = torch.arange(len(sequence))
    else:
        sequence = torch.cat([front, prompt, *cond, slots])
        may = torch.zeros(len(sequence), len(sequence), dtype=torch.bool)
        may[:, :prefix] = True
        may[prefix:, prefix : prefix + len(cond)] = True
        may[-length:, -length:] = True if mask_LL is None else mask_LL
        places = torch.cat([torch.arange(prefix + len(cond)), prefix + 1 + torch.arange(length)])
    mask = torch.zeros(may.shape).masked_fill(~may, torch.finfo(torch.float32).min)
    hidden = backbone.language_model.model(
        inputs_embeds=sequence[None], attention_mask=mask[None, None], position_ids=places[None], use_cache=False
    ).last_hidden_state[0]
    first = prefix + len(cond) - 1 if oft else len(sequence) - length
    return hidden[first : first + length]


def small(image):
    values = image.permute(0, 3, 1, 2).float()
    values = torch.nn.functional.interpolate(values, (28, 28), mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def one(observations, index):
    images = {name: image[index : index + 1] for name, image in observations.images.items()}
    part = slice(index, index + 1)
    return Batch(images, observations.state_BS[part], observations.instructions[part])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("with_cond", [False, True])
@pytest.mark.parametrize("extra_token", [310, None])
def test_it_is_its_parts_composed_plainly(attention, with_cond, extra_token):
    backbone, slots = loud(attention, extra_token=extra_token), slots_of(2, 5)
    observations = batch("Lift", "put it down")
    cond = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(7)) if with_cond else None
    masks = [None] if attention == "oft" else [None, torch.rand(5, 5, generator=torch.Generator().manual_seed(3)) < 0.5]
    for mask in masks:
        mask = None if mask is None else mask | torch.eye(5, dtype=torch.bool)
        hidden = backbone(observations, slots, mask, cond)
        for index in range(2):
            expected = plain(
                backbone,
                one(observations, index),
                slots[index],
                mask,
                None if cond is None else cond[index : index + 1],
            )
            assert (hidden[index] - expected).abs().max() < 1e-5
        assert (hidden[0] - hidden[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_encode_is_features_remembered_and_serves_many_steps(attention):
    backbone, observations, slots = loud(attention), batch("Lift", "put it down"), slots_of(2, 5)
    context, features = backbone.encode(observations), backbone.features(observations)
    assert [len(values) for values in features] == [2, 2]
    remembered = backbone.remember(*features)
    for _ in range(2):
        expected = backbone(observations, slots)
        assert torch.equal(backbone.step(context, slots), expected)
        assert torch.equal(backbone.step(remembered, slots), expected)
    assert [values.shape for values in features] == [
        values.shape for values in backbone.features(batch("do 1", "do 2"))
    ]


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_padding_and_the_rest_of_the_batch_change_nothing(attention):
    backbone, longer, slots = loud(attention), loud(attention, max_text_tokens=23), slots_of(3, 4)
    observations = batch("Lift", "put it down", "do 3")
    together = backbone(observations, slots)
    assert (longer(observations, slots) - together).abs().max() < 1e-5
    for index in range(3):
        alone = backbone(one(observations, index), slots[index : index + 1])
        assert (alone[0] - together[index]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3]])
def test_extending_equals_one_causal_pass(pieces):
    backbone, observations, slots = loud(), batch("Lift", "put it down"), slots_of(2, 9)
    context = backbone.encode(observations)
    whole = backbone.step(context, slots, torch.ones(9, 9, dtype=torch.bool).tril())
    said, first = [], 0
    for count in pieces:
        context = backbone.extend(context, slots[:, first : first + count])
        said.append(context.hidden_BLD)
        first += count
    rest = backbone.step(context, slots[:, first:], torch.ones(2, 2, dtype=torch.bool).tril())
    assert (torch.cat([*said, rest], 1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_a_step_leaves_its_context_as_it_was():
    backbone, slots = loud(), slots_of(1, 4)
    context = backbone.encode(batch("Lift"))
    kept = [(key.clone(), value.clone()) for key, value in context.memory]
    first = backbone.step(context, slots)
    backbone.extend(context, slots)
    backbone.step(context, 3 * slots, cond_BD=slots[:, 0])
    assert torch.equal(backbone.step(context, slots), first)
    assert all(
        torch.equal(a, b) for old, now in zip(kept, context.memory, strict=True) for a, b in zip(old, now, strict=True)
    )


@torch.no_grad()
def test_slots_see_what_the_mask_says_and_oft_sees_everything():
    slots = slots_of(1, 5)
    changed = slots.clone()
    changed[:, 4] += 1
    backbone = loud()
    context = backbone.encode(batch("Lift"))
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    moved = (backbone.step(context, changed, causal) - backbone.step(context, slots, causal)).abs().amax(-1)[0]
    assert (moved[:4] == 0).all()
    assert moved[4] > 0.1
    backbone = loud("oft")
    moved = (backbone(batch("Lift"), changed) - backbone(batch("Lift"), slots)).abs().amax(-1)
    # Slot 0 is read at the last word of the prompt, which sees slot 4 as well.
    assert (moved > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_every_input_is_heard(attention):
    backbone, slots, sample = loud(attention), slots_of(1, 4), batch("put it down")
    cond = slots_of(1, 1, seed=9)[:, 0]
    said = backbone(sample, slots)
    others = [
        Batch({**sample.images, name: 255 - sample.images[name]}, sample.state_BS, ("put it down",)) for name in "ab"
    ]
    others.append(Batch({"a": sample.images["b"], "b": sample.images["a"]}, sample.state_BS, ("put it down",)))
    others.append(Batch(sample.images, -sample.state_BS, ("put it down",)))
    others.append(Batch(sample.images, sample.state_BS, ("do 3",)))
    assert all((backbone(other, slots) - said).abs().max() > 1e-2 for other in others)
    told = backbone(sample, slots, cond_BD=cond)
    assert ((told - said).abs().amax(-1) > 1e-3).all()
    assert (backbone(sample, slots, cond_BD=2 * cond) - told).abs().max() > 1e-3
    shouted = Batch(sample.images, sample.state_BS, ("PUT it down",))
    assert torch.equal(backbone(shouted, slots), said)


@torch.no_grad()
def test_without_proprioception_the_state_is_not_read():
    backbone, slots, sample = loud(proprio=False), slots_of(1, 4), batch("Lift")
    other = Batch(sample.images, -sample.state_BS, sample.instructions)
    assert torch.equal(backbone(other, slots), backbone(sample, slots))
    assert not [name for name, _ in backbone.named_parameters() if name.startswith("proprio")]


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_trunk_is_what_features_use(attention):
    backbone = tiny(attention)
    tokens, _ = backbone.features(batch("Lift", "put it down"))
    tokens.sum().backward()
    used = {name for name, value in backbone.named_parameters() if value.grad is not None}
    trunk = {id(value) for value in backbone.trunk_parameters()}
    assert used == {name for name, value in backbone.named_parameters() if id(value) in trunk}
    assert len(list(backbone.trunk_parameters())) == len(trunk)


def test_gradients_are_the_same_with_activations_computed_again():
    """The layers hand keys and values on aside, which must reach the slots' loss all the same."""
    found = []
    for again in (False, True):
        backbone = tiny()
        if again:
            for layer in backbone.checkpointed_layers():
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        context = backbone.extend(backbone.encode(batch("Lift")), slots_of(1, 2))
        backbone.step(context, slots_of(1, 3, seed=6)).square().mean().backward()
        found.append({name: value.grad for name, value in backbone.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 60
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-7) for name in found[0])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_config_and_weights_make_the_same_backbone_again(attention):
    backbone, slots = loud(attention), slots_of(1, 4)
    values = json.loads(json.dumps(backbone.state_of_config()))
    again = Prismatic.from_config(values).eval()
    again.load_state_dict(backbone.state_dict())
    assert again.config == backbone.config
    assert again.state_of_config() == values
    assert torch.equal(again(batch("Lift"), slots), backbone(batch("Lift"), slots))


@torch.no_grad()
def test_words_are_embedded_and_scored_by_the_language_model():
    backbone = loud()
    ids = backbone.action_ids
    assert ids.tolist() == [300 - bin_ for bin_ in range(1, 257)]
    weights = backbone.state_dict()
    assert torch.equal(
        backbone.embed(torch.tensor([[301]]))[0, 0], weights["language_model.model.embed_tokens.weight"][301]
    )
    hidden = slots_of(2, 3)
    expected = hidden @ weights["language_model.lm_head.weight"].T
    assert torch.allclose(backbone.logits(hidden), expected, atol=1e-5)
    assert torch.allclose(backbone.logits(hidden, ids), expected[..., ids], atol=1e-5)


def test_linear_layers_keep_the_library_s_names():
    """Adapters are put beside layers by these names."""
    leaves = {name.rpartition(".")[2] for name, one in tiny().named_modules() if isinstance(one, torch.nn.Linear)}
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    # transformers 5.17 has other names in DINOv2.
    dino = {"query", "key", "value", "dense"} if "query" in leaves else set()
    assert leaves == llama | dino | {"out_proj", "fc1", "fc2", "fc3"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny()(Batch({"a": batch("Lift").images["a"]}, torch.zeros(1, 3), ("Lift",)), slots_of(1, 2)), "'b'"),
        (lambda: tiny().encode(batch("")), "instruction: expected"),
        (lambda: tiny(max_text_tokens=8).encode(batch("put it down")), "expected 1 to 8 tokens"),
        (lambda: tiny("causal"), "prefix_lm or oft, got 'causal'"),
        (lambda: tiny(cameras=()), "at least one camera"),
        (lambda: tiny(extra_token=29871), "extra_token: expected an id below 320, got 29871"),
        (lambda: tiny(action_end=200), "action_end: expected 256 to 320, got 200"),
        (lambda: tiny("oft").extend(tiny("oft").encode(batch("Lift")), slots_of(1, 2)), "attention=prefix_lm"),
        (lambda: tiny("oft")(batch("Lift"), slots_of(1, 2), torch.ones(2, 2, dtype=torch.bool)), "expected no mask"),
        (lambda: TowerConfig(16, 1, 2, 32), "depth of at least 2"),
        (lambda: TowerConfig(16, 2, 3, 32), "3 equal heads, got 16"),
        (lambda: FusedVision(TowerConfig(16, 2, 2, 40), TowerConfig(24, 2, 2, 40), 28, 14), "multiple of its width 16"),
        (
            lambda: FusedVision(TowerConfig(16, 2, 2, 32), TowerConfig(24, 2, 2, 40), 30, 14),
            "patch of 14 pixels, got 30",
        ),
        (lambda: Prismatic.make({"pretrained": None, "config": None}, ("a",), 3), "either pretrained or config"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("attention", ATTENTION)
def test_its_passes_can_be_captured(attention):
    assert captured_reads_no_values(tiny(attention), batch("Lift"), slots_of(1, 4))

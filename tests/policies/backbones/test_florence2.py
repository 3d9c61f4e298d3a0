"""Florence-2 with slots: transformers' own numbers, exact reuse, both ways to see slots, made and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from decodes import captured_reads_no_values
from florences import TEXT, TINY, VISION, batch, made, slots, tokenizer_json
from torch.utils.checkpoint import checkpoint
from transformers import Florence2ForConditionalGeneration

from policies.backbones.florence2 import Florence2
from policies.backbones.instructions import Instructions
from policies.batch import Batch
from policies.images import resize
from policies.lora import Lora, add_adapters


@pytest.fixture(params=["bidirectional", "uniform"])
def either(request):
    return made(slot_attention=request.param)


def transformers_own(backbone, attention):
    """Its whole published class, with the same weights."""
    theirs = Florence2ForConditionalGeneration(backbone.model.config)
    missing, unexpected = theirs.model.load_state_dict(backbone.model.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) == {f"language_model.{side}coder.embed_tokens.weight" for side in ("en", "de")}
    theirs.tie_weights()
    theirs.set_attn_implementation(attention)
    return theirs.eval()


def composed(backbone, theirs, observations, slots_BLD, mask):
    """Last hidden states of the published class for the same sequence, put together by hand. mask: 4-D."""
    pieces = []
    for camera in ("static", "wrist"):
        pixels = resize(observations.images[camera], 32).numpy() / 255
        pixels = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        pixels = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2))
        pieces.append(theirs.get_image_features(pixels).pooler_output)
    pieces.append(backbone.primitives.expand(len(observations), 1, -1))
    pieces.append(backbone.state(observations.state_BS)[:, None])
    ids, keep = Instructions(tokenizer_json(), 24, 1).encode([f"do: {text}" for text in observations.instructions])
    pieces.append(theirs.get_input_embeddings()(ids))
    tokens = torch.cat(pieces, dim=1)
    keep = torch.cat([torch.ones(len(ids), tokens.shape[1] - 24), keep.float()], dim=1)
    return theirs.model.language_model(
        inputs_embeds=tokens, attention_mask=keep, decoder_inputs_embeds=slots_BLD, decoder_attention_mask=mask
    ).last_hidden_state


LOWEST = torch.finfo(torch.float32).min


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "additive"),
    [
        (None, torch.zeros(7, 7)),
        (torch.ones(7, 7).tril().bool(), torch.full((7, 7), LOWEST).triu(1)),
        (torch.eye(7).bool(), torch.full((7, 7), LOWEST).fill_diagonal_(0)),
    ],
    ids=["all", "causal", "itself"],
)
def test_bidirectional_is_transformers_own_forward(mask, additive):
    """With a 4-D mask of zeros for all that may be seen, which its attention adds to the scores."""
    backbone, observations, queries = made(), batch("lift", "put it down"), slots(2, 7)
    theirs = transformers_own(backbone, "sdpa")
    wanted = composed(backbone, theirs, observations, queries, additive.expand(2, 1, 7, 7))
    assert (backbone(observations, queries, mask) - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_uniform_is_transformers_own_forward_with_nothing_visible():
    """Every entry of the mask the lowest number, which eager attention adds to the scores: they all drown in it."""
    backbone, observations, queries = made(slot_attention="uniform"), batch("lift", "put it down"), slots(2, 7)
    theirs = transformers_own(backbone, "eager")
    wanted = composed(backbone, theirs, observations, queries, torch.full((2, 1, 7, 7), LOWEST))
    assert (backbone(observations, queries) - wanted).abs().max() < 1e-5
    assert (made()(observations, queries) - wanted).abs().max() > 1e-2


@torch.no_grad()
def test_uniform_is_the_mean_of_the_values_put_together_plainly():
    backbone, queries = made(slot_attention="uniform", text={**TEXT, "decoder_layers": 1}), slots(1, 5)
    context = backbone.encode(batch("lift"))
    decoder = backbone.model.language_model.decoder
    layer = decoder.layers[0]
    hidden = decoder.layernorm_embedding(queries + decoder.embed_positions.weight[2:7])
    for visible in (torch.ones(5, 5), torch.ones(5, 5).tril()):
        means = torch.stack([layer.self_attn.v_proj(hidden)[:, row > 0].mean(1) for row in visible], dim=1)
        said = layer.self_attn_layer_norm(hidden + layer.self_attn.out_proj(means))
        heads = layer.encoder_attn.q_proj(said).view(1, 5, 2, 16).transpose(1, 2)
        key, value = context.memory[0]
        scores = heads @ key.transpose(2, 3) / 4
        weights = scores.masked_fill(~context.keep_BN[:, None, None], -torch.inf).softmax(-1)
        read = layer.encoder_attn.out_proj((weights @ value).transpose(1, 2).flatten(2))
        said = layer.encoder_attn_layer_norm(said + read)
        said = layer.final_layer_norm(said + layer.fc2(torch.nn.functional.gelu(layer.fc1(said))))
        assert (backbone.step(context, queries, visible.bool()) - said).abs().max() < 1e-5


def test_its_dropout_is_transformers_own(monkeypatch):
    # transformers 5.17 draws a number a layer beside, for dropping layers, which nobody asks for.
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(()))
    text = {**TEXT, "dropout": 0.2, "attention_dropout": 0.1, "activation_dropout": 0.3}
    backbone, queries = made(text=text), slots(1, 7)
    memory, keep = backbone.features(batch("lift"))
    decoder = backbone.model.language_model.decoder.train()
    torch.manual_seed(4)
    wanted = decoder(
        inputs_embeds=queries, attention_mask=torch.ones(1, 1, 7, 7, dtype=torch.bool), encoder_hidden_states=memory,
        encoder_attention_mask=keep, use_cache=False,
    ).last_hidden_state  # fmt: skip
    torch.manual_seed(4)
    assert (backbone.step(backbone.remember(memory, keep), queries) - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_encode_once_step_many_equals_one_pass(either):
    observations, queries, cond = batch("lift", "put it down"), slots(2, 9), slots(2, 1, seed=2)[:, 0]
    context = either.encode(observations)
    again = either.remember(*either.features(observations))
    for _ in range(2):
        wanted = either(observations, queries, cond_BD=cond)
        assert torch.equal(either.step(context, queries, cond_BD=cond), wanted)
        assert torch.equal(either.step(again, queries, cond_BD=cond), wanted)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3]])
def test_extending_equals_one_causal_pass(either, pieces):
    observations, queries = batch("lift", "put it down"), slots(2, 9)
    context = either.encode(observations)
    whole = either.step(context, queries, torch.ones(9, 9, dtype=torch.bool).tril())
    said, first = [], 0
    for count in pieces:
        context = either.extend(context, queries[:, first : first + count])
        said.append(context.hidden_BLD)
        first += count
    rest = either.step(context, queries[:, first:], torch.ones(2, 2, dtype=torch.bool).tril())
    assert (torch.cat([*said, rest], 1) - whole).abs().max() < 1e-5


@torch.no_grad()
def test_the_condition_is_exactly_one_more_memory_token(either):
    queries, cond = slots(2, 5), slots(2, 1, seed=2)[:, 0]
    memory, keep = either.features(batch("lift", "put it down"))
    with_it = either.step(either.remember(memory, keep), queries, cond_BD=cond)
    longer = torch.cat([memory, cond[:, None]], 1), torch.cat([keep, torch.ones(2, 1, dtype=torch.bool)], 1)
    assert (either.step(either.remember(*longer), queries) - with_it).abs().max() < 1e-5
    assert (either.step(either.remember(memory, keep), queries) - with_it).abs().max() > 1e-3


@torch.no_grad()
def test_padding_does_not_matter():
    backbone, queries = made(), slots(2, 4)
    observations = batch("lift the cube", "go")
    both = backbone(observations, queries)
    alone = Batch({name: one[1:] for name, one in observations.images.items()}, observations.state_BS[1:], ("go",))
    assert (backbone(alone, queries[1:])[0] - both[1]).abs().max() < 1e-5
    roomy = Florence2(replace(TINY, max_text_tokens=40)).eval()
    roomy.load_state_dict(backbone.state_dict())
    assert (roomy(observations, queries) - both).abs().max() < 1e-5
    other = replace(alone, instructions=("no",))
    assert (backbone(other, queries[1:])[0] - both[1]).abs().max() > 1e-3


@torch.no_grad()
def test_every_camera_and_the_state_are_seen_and_cameras_in_their_order():
    backbone, queries, one = made(), slots(1, 4), batch("lift")
    plain = backbone(one, queries)
    for name in TINY.cameras:
        blind = replace(one, images={**one.images, name: torch.zeros_like(one.images[name])})
        assert (backbone(blind, queries) - plain).abs().max() > 1e-3
    assert (backbone(replace(one, state_BS=torch.zeros(1, 3)), queries) - plain).abs().max() > 1e-3
    turned = Florence2(replace(TINY, cameras=("wrist", "static"))).eval()
    turned.load_state_dict(backbone.state_dict())
    swapped = {"static": one.images["wrist"], "wrist": one.images["static"]}
    assert torch.equal(turned(replace(one, images=swapped), queries), plain)
    assert (turned(one, queries) - plain).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 31, 32, 40])
def test_an_image_has_as_many_tokens_as_transformers_makes_of_it(size):
    backbone = made(image_size=size)
    tokens = backbone.model.get_image_features(torch.zeros(1, 3, size, size)).pooler_output
    assert tokens.shape[1] == backbone.num_image_tokens
    memory, keep = backbone.features(batch("lift"))
    assert memory.shape == (1, 2 * backbone.num_image_tokens + 2 + 24, 32)
    assert keep.sum() == 2 * backbone.num_image_tokens + 2 + len("do: lift") + 2


def test_the_trunk_is_what_features_uses_and_the_decoder_the_rest():
    backbone = made()
    memory, keep = backbone.features(batch("lift"))
    memory.square().sum().backward(retain_graph=True)
    used = {id(value) for value in backbone.parameters() if value.grad is not None}
    assert used == {id(value) for value in backbone.trunk_parameters()}
    backbone.zero_grad()
    backbone.step(backbone.remember(memory.detach(), keep), slots(1, 4)).square().sum().backward()
    rest = {id(value) for value in backbone.parameters() if value.grad is not None}
    assert rest == {id(value) for value in backbone.parameters()} - used


def test_computing_activations_again_changes_no_gradient():
    gradients = []
    for again in (False, True):
        backbone = made()
        for layer in backbone.checkpointed_layers() if again else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        backbone(batch("lift"), slots(1, 4)).square().sum().backward()
        gradients.append([value.grad for value in backbone.parameters()])
    assert len(backbone.checkpointed_layers()) == 3
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_adapters_reach_the_encoder_and_the_decoder():
    backbone = made()
    before = backbone(batch("lift"), slots(1, 4))
    add_adapters(backbone, Lora(rank=2))
    after = backbone(batch("lift"), slots(1, 4))
    assert torch.equal(before, after)
    after.square().sum().backward()
    learning = {name for name, value in backbone.named_parameters() if value.grad is not None}
    # What no published weights have learns whole.
    whole = {name for name in learning if "lora_" not in name}
    assert whole == {"primitives", "state.0.weight", "state.0.bias", "state.2.weight", "state.2.bias"}
    for part in ("encoder.layers.0.self_attn.q_proj", "decoder.layers.1.encoder_attn.k_proj", "decoder.layers.0.fc1"):
        assert any(part in name for name in learning)


@torch.no_grad()
def test_it_comes_back_from_plain_values(either):
    values = json.loads(json.dumps(either.state_of_config()))
    again = Florence2.from_config(values).eval()
    assert again.state_of_config() == either.state_of_config() == values
    again.load_state_dict(either.state_dict())
    observations, queries = batch("lift"), slots(1, 4)
    assert torch.equal(again(observations, queries), either(observations, queries))
    # Sizes that were left out are kept, too, so that a library's default may change.
    assert values["text"]["dropout"] == 0.1
    assert values["vision"]["mlp_ratio"] == 4.0
    assert sum(name.endswith("shared.weight") or "embed_tokens" in name for name in again.state_dict()) == 1


def untrained(tmp_path, **config):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    values = {"vision": VISION, "text": TEXT, "tokenizer": str(tmp_path), **config}
    return {"pretrained": None, "config": values, "image_size": 32, "max_text_tokens": 24}


def test_it_is_made_from_the_options_of_its_yaml_group(tmp_path):
    options = untrained(tmp_path) | {"slot_attention": "uniform", "prompt": "now {instruction}"}
    backbone = Florence2.make(options, ("front",), state_size=5)
    config = backbone.config
    assert (config.cameras, config.state_size, config.slot_attention) == (("front",), 5, "uniform")
    assert (backbone.image_size, backbone.width, backbone.name) == (32, 32, "florence2")
    assert config.prompt == "now {instruction}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one, path: one.encode(Batch({"static": batch("x").images["static"]}, torch.zeros(1, 3), ("x",))),
         "the camera 'wrist', got .'static'"),
        (lambda one, path: one.encode(replace(batch("x"), state_BS=torch.zeros(1, 4))), r"\[1, 3\], got \[1, 4\]"),
        (lambda one, path: one.encode(batch("lift", " ")), "some words, got ' '"),
        (lambda one, path: one.encode(batch("x" * 30)), "1 to 24 tokens with its prompt, got 36"),
        (lambda one, path: one.step(one.encode(batch("x")), slots(1, 97)), "at most 96, .* got 97"),
        (lambda one, path: one.extend(one.extend(one.encode(batch("x")), slots(1, 90)), slots(1, 7)), "got 97"),
        (lambda one, path: made(image_size=64), "1 to 6 cells on a side, got 8 from 64 pixels"),
        (lambda one, path: made(max_text_tokens=70), "at most 96 tokens for the encoder, got 106"),
        (lambda one, path: made(cameras=()), "at least one camera"),
        (lambda one, path: made(slot_attention="eager"), "bidirectional, uniform, got 'eager'"),
        (lambda one, path: made(text={**TEXT, "vocab_size": 100}), "at most 100 tokens.*got 261"),
        (lambda one, path: made(text={**TEXT, "d_model": 64}), "projection_dim to be text.d_model, got 32 and 64"),
        (lambda one, path: made(vision={**VISION, "depth": [1]}), "config.vision: .*got 'depth'"),
        (lambda one, path: Florence2.make({}, ("a",), 3), "either pretrained or config"),
        (lambda one, path: Florence2.make(untrained(path) | {"pretrained": "a"}, ("a",), 3), "either pretrained"),
        (lambda one, path: Florence2.make(untrained(path, heads=2), ("a",), 3), "vision, text and tokenizer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(made(), tmp_path)


def test_its_passes_can_be_captured(either):
    assert captured_reads_no_values(either, batch("go"), slots(1, 4))

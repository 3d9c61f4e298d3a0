"""The backbone laid out for a GPU against itself."""

from __future__ import annotations

import pytest
import torch

from policies.backbones.nano import Nano, NanoConfig
from policies.batch import Batch


@pytest.fixture(scope="module", params=[1, 2])
def backbone(request):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "width": 32, "heads": 2, "trunk_depth": 2, "decoder_depth": 2, "frames": request.param}
    made = Nano(NanoConfig(("front", "hand"), 3, **sizes)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.ndim == 1:  # norms and biases as of a trained network
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return made


def batch(backbone, count, side):
    planes, generator = 3 * backbone.config.frames, torch.Generator().manual_seed(count + side)

    def image():
        return torch.randint(0, 256, (count, side, side, planes), generator=generator, dtype=torch.uint8)

    state = torch.randn(count, 3 * backbone.config.frames, generator=generator)
    return Batch({"front": image(), "hand": image()}, state, ("lift the cube", "put it down")[:count])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("side", [32, 45])
def test_every_pass_answers_as_the_backbone_s(backbone, count, side):
    prepared, shown = backbone.prepared_inference(), batch(backbone, count, side)
    torch.testing.assert_close(prepared.features(shown)[0], backbone.features(shown)[0], rtol=0, atol=1e-5)
    wanted, found = backbone.encode(shown), prepared.encode(shown)
    for one, other in zip(wanted.pairs, found.pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    slots = torch.randn(count, 5, 32, generator=torch.Generator().manual_seed(1))
    before = slots.clone()
    torch.testing.assert_close(prepared.step(found, slots), backbone.step(wanted, slots), rtol=0, atol=1e-5)
    assert torch.equal(slots, before)
    # A condition, a mask and fixed slots are the backbone's own.
    condition = torch.randn(count, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(
        prepared.step(wanted, slots, cond_BD=condition), backbone.step(wanted, slots, cond_BD=condition)
    )
    fixed = backbone.extend(wanted, slots)
    assert torch.equal(prepared.step(fixed, slots), backbone.step(fixed, slots))


def test_a_missing_camera_is_named(backbone):
    shown = batch(backbone, 1, 32)
    del shown.images["hand"]
    with pytest.raises(ValueError, match="nano: expected the camera 'hand', got \\['front'\\]"):
        backbone.prepared_inference().features(shown)

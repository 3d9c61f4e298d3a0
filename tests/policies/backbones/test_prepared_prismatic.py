"""Prepared inference of the prismatic backbone: its own answers, with fewer kernels and nothing kept twice."""

from __future__ import annotations

import collections

import pytest
import torch
from decodes import captured_reads_no_values
from prismatics import ATTENTION, ROWS, SIZE, WIDTH, batch, loud, slots_of, tiny
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from policies import fp8
from policies.heads.autoregressive import Autoregressive
from policies.heads.beast import Beast
from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.lora import Lora, add_adapters
from policies.precision import set_precision
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.decoding.graphs import Captured
from vla_runtime.decoding.masked import MaskedDecoding
from vla_runtime.decoding.prefix import RefreshedPrefix

pytestmark = pytest.mark.filterwarnings("ignore:.*register_constant")
SAME = ("Lift", "Lift")
COND = slots_of(2, 1, seed=9)[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("begin", ["remember", "postpone"])
@pytest.mark.parametrize("options", [{}, {"extra_token": None, "proprio": False}])
def test_steps_are_the_backbone_s_own(attention, begin, options):
    backbone, sample = loud(attention, **options), batch("put it down", "put it down")
    plain = [backbone(sample, slots_of(2, 5)), backbone(sample, slots_of(2, 5), None, COND)]
    plain.append(backbone(sample, slots_of(2, 9, seed=1)))
    prepared = backbone.prepared_inference(room=5)
    asked = [(slots_of(2, 5), None), (slots_of(2, 5), COND), (slots_of(2, 9, seed=1), None)]
    for order in ((0, 1, 2, 0), (1, 0, 2), (2, 1)):
        context = getattr(prepared, begin)(*prepared.features(sample))
        for index in order:
            slots, cond = asked[index]
            assert (prepared.step(context, slots, None, cond) - plain[index]).abs().max() < 1e-5
    assert (plain[0] - plain[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_contexts_are_their_own(attention):
    backbone = loud(attention)
    samples = [batch("Lift"), batch("put it down")]
    slots = slots_of(1, 4)
    wanted = [backbone(sample, slots) for sample in samples]
    prepared = backbone.prepared_inference()
    for contexts in (
        [prepared.encode(sample) for sample in samples],
        [prepared.postpone(*prepared.features(sample)) for sample in samples],
    ):
        for index in (0, 1, 1, 0):
            assert (prepared.step(contexts[index], slots) - wanted[index]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_prompts_of_different_length_are_padded_and_go_through_the_backbone_s_own_passes(attention):
    backbone, sample, slots = loud(attention), batch("Lift", "put it down"), slots_of(2, 4)
    prepared = backbone.prepared_inference()
    wanted = backbone(sample, slots)
    features = prepared.features(sample)
    assert all(map(torch.equal, features, backbone.features(sample)))
    for context in (prepared.encode(sample), prepared.remember(*features), prepared.postpone(*features)):
        assert torch.equal(prepared.step(context, slots), wanted)


@torch.no_grad()
def test_text_and_scene_are_encoded_apart():
    backbone, sample = loud(), batch("Lift", "put it down")
    text = backbone.encode_text(sample.instructions)
    assert [list(one.shape) for one in text] == [[2, 18], [2, 18]]
    for made in (backbone, backbone.prepared_inference()):
        text = made.encode_text(("Lift", "do 3"))
        apart = made.encode_scene(sample.images, sample.state_BS, *text)
        together = made.features(batch("Lift", "do 3"))
        assert all(map(torch.equal, apart, together))
    # One token of padding less for every one more of the prompt.
    lengths = [prepared_length(backbone, text) for text in ("Lift", "do 3", "put it down")]
    assert [length - lengths[0] for length in lengths] == [0, 1, 2]
    with pytest.raises(ValueError, match="expected the camera 'b'"):
        backbone.prepared_inference().encode_scene({"a": sample.images["a"]}, sample.state_BS, *text)


def prepared_length(backbone, instruction):
    (tokens,) = backbone.prepared_inference().features(batch(instruction))
    return tokens.shape[1]


SPLINE = BSpline(ROWS, SIZE, num_basis=6, degree=3).with_bounds_of(torch.randn(8, ROWS, SIZE).numpy())


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("tokens", ["own", "backbone", "spline"])
def test_heads_decode_the_same_tokens(attention, tokens):
    torch.manual_seed(0)
    backbone, sample = loud(attention), batch(*SAME)
    if tokens == "spline":
        head = Beast(SPLINE, WIDTH, 2).eval()
    else:
        most = 2 if tokens == "own" else 0
        decoding = MaskedDecoding(rounds=5, temperature=1.0)
        head = DiscreteDiffusion(Bins(ROWS, SIZE), WIDTH, most, decoding, words=tokens).eval()
    noise = head.draw(2, torch.Generator().manual_seed(1))
    wanted = head.decode(backbone, backbone.encode(sample), None, noise, 2)
    prepared = backbone.prepared_inference(room=ROWS * SIZE)
    for context in (prepared.encode(sample), prepared.postpone(*prepared.features(sample))):
        assert torch.equal(head.decode(prepared, context, None, noise, 2), wanted)
    assert len(wanted.unique()) > 3


@torch.no_grad()
def test_nothing_is_kept_twice_and_checkpoints_are_the_same(tmp_path):
    backbone, slots, sample = loud(), slots_of(1, 4), batch("Lift")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    kept = bytes_of(backbone)
    prepared, again = backbone.prepared_inference(), backbone.prepared_inference()
    assert bytes_of(backbone) == kept
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    save_file(dict(after), str(tmp_path / "weights.safetensors"))
    assert all(torch.equal(value, before[name]) for name, value in load_file(tmp_path / "weights.safetensors").items())
    # Weights that are loaded are those that both are asked with.
    backbone.load_state_dict({name: value / 2 for name, value in before.items()})
    wanted = backbone(sample, slots)
    for one in (prepared, again):
        assert (one.step(one.encode(sample), slots) - wanted).abs().max() < 1e-5


def bytes_of(module):
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in module.parameters()}
    return sum(storages.values())


class Launches(TorchDispatchMode):
    """Counts operators that compute something, as a device would launch them."""

    VIEWS = frozenset(
        {
            *("view", "_unsafe_view", "t", "transpose", "slice", "select", "split", "split_with_sizes", "unsqueeze"),
            *("expand", "empty", "new_empty", "detach", "alias", "permute", "as_strided"),
        }
    )

    def __init__(self):
        super().__init__()
        self.found = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in self.VIEWS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_layer_is_nine_kernels(attention):
    """On a GPU attention is one; here it is whatever the CPU makes of it, so it is counted by its queries."""
    backbone, slots = loud(attention), slots_of(1, 4)
    prepared = backbone.prepared_inference(room=4)
    context = prepared.encode(batch("Lift"))
    with Launches() as counted:
        prepared.step(context, slots)
    own = {name: counted.found[name] for name in ("add_rms_norm", "rope_write", "silu_mul", "mm", "addmm", "linear")}
    depth = backbone.config.language.depth
    assert (own["add_rms_norm"], own["rope_write"], own["silu_mul"]) == (2 * depth + 1, depth, depth)
    assert own["mm"] + own["addmm"] + own["linear"] == 4 * depth
    # Of the pass besides: the tokens' own copy (prefix_lm), or the sequence joined (oft).
    rest = {name for name in counted.found if "attention" not in name} - set(own)
    assert sum(counted.found[name] for name in rest if name in ("clone", "cat", "copy_", "add", "mul")) <= 1 + depth


@pytest.mark.parametrize("attention", ATTENTION)
def test_its_passes_can_be_captured(attention):
    assert captured_reads_no_values(tiny(attention).prepared_inference(room=4), batch("Lift"), slots_of(1, 4))


@torch.no_grad()
def test_in_half_precision_and_in_eight_bits_it_is_near():
    sample, slots = batch("Lift"), slots_of(1, 4)
    wanted = tiny()(sample, slots)
    backbone = tiny()
    set_precision(backbone, [], "cpu", "bf16")
    half = slots.bfloat16()
    plain = backbone(sample, half)
    prepared = backbone.prepared_inference()
    found = prepared.step(prepared.encode(sample), half)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 2 * (plain.float() - wanted).abs().max() + 1e-3
    backbone = tiny()
    fp8.quantise(backbone, lambda name: name.startswith("vision."))
    plain = backbone(sample, slots)
    for begin in ("remember", "postpone"):
        prepared = backbone.prepared_inference()
        found = prepared.step(getattr(prepared, begin)(*prepared.features(sample)), slots)
        # The same eight bits, but for what rounding moves to the next step.
        assert (found - plain).abs().max() < 0.3 * (plain - wanted).abs().max()
    assert 1e-4 < (plain - wanted).abs().max() < 0.2


def adapted():
    backbone = tiny()
    add_adapters(backbone, Lora(rank=2))
    return backbone


def in_int8():
    backbone = tiny()
    set_precision(backbone, [], "cpu", "int8")
    return backbone


def moved():
    backbone = tiny()
    prepared = backbone.prepared_inference()
    backbone.bfloat16()
    return prepared.encode(batch("Lift"))


def stepped(attention="prefix_lm", slots=None, mask=None):
    prepared = tiny(attention).prepared_inference()
    return prepared.step(prepared.encode(batch("Lift")), slots_of(1, 4) if slots is None else slots, mask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapted().prepared_inference(), "expected plain linear layers.*adapters have been added in"),
        (lambda: in_int8().prepared_inference(), "expected plain linear layers.*Int8Tensor.*saves memory only"),
        (lambda: tiny().prepared_inference(room=-1), "room: expected a number of slots from 0 on, got -1"),
        (moved, "expected the weights that were laid out, got a network that was moved or cast"),
        (lambda: stepped(mask=torch.ones(4, 4, dtype=torch.bool)), "without a mask among its slots"),
        (lambda: stepped("oft", mask=torch.ones(4, 4, dtype=torch.bool)), "without a mask among its slots"),
        (lambda: stepped(slots=slots_of(1, 4).requires_grad_()), "slots without a gradient"),
        (lambda: stepped(slots=slots_of(1, 1100)), r"got 1100; .*prepared_inference\(room=1100\)"),
        (lambda: tiny().prepared_inference().encode(batch("")), "instruction: expected"),
    ],
)
def test_what_it_cannot_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_heads_that_need_the_backbone_itself_say_so():
    backbone = tiny()
    prepared, sample = backbone.prepared_inference(), batch("Lift")
    head = Autoregressive(Bins(ROWS, SIZE), WIDTH, 2)
    with pytest.raises(ValueError, match=r"autoregressive.* needs the backbone itself"):
        head.decode(prepared, prepared.encode(sample), None, head.draw(1, torch.Generator()), 1)
    oft = tiny("oft").prepared_inference()
    with pytest.raises(ValueError, match=r"decode\.refresh: expected the backbone itself"):
        RefreshedPrefix(oft, [0]).step(oft.encode(sample), slots_of(1, 4))


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_whole_decode_is_captured_and_is_the_backbone_s_own(attention, precision):
    backbone, sample = loud(attention), batch(*SAME)
    wanted = backbone(sample, slots_of(2, 5)), backbone(sample, slots_of(2, 5, seed=1))
    set_precision(backbone, [], "cuda", precision)
    there = sample.to("cuda")
    dtype = next(backbone.parameters()).dtype
    slots = [slots_of(2, 5, seed=seed).to("cuda", dtype) for seed in (5, 1)]
    plain = [backbone(there, one) for one in slots]
    prepared = backbone.prepared_inference()
    text = prepared.encode_text(SAME)

    def rounds(*given):
        scene = prepared.encode_scene(dict(zip("ab", given[:2], strict=True)), given[2], *text)
        context = prepared.postpone(*scene)
        return tuple(prepared.step(context, one) for one in given[3:])

    given = [there.images["a"], there.images["b"], there.state_BS, *slots]
    captured = Captured(rounds, [torch.zeros_like(one) for one in given])
    for found, same, whole in zip(captured(*given), plain, wanted, strict=True):
        found, same = found.cpu().float(), same.cpu().float()
        assert (found - same).norm() < (1e-4 if precision == "fp32" else 0.1) * same.norm()
        # The towers' convolutions may run in TF32.
        assert (found - whole).norm() < (1e-2 if precision == "fp32" else 0.2) * whole.norm()

"""Policies whose passes are compiled: the same chunks, and what cannot be compiled is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from decodes import TWELVE

from policies import decoding
from policies.decoding import Decode
from vla_runtime.decoding.compiled import CompiledBackbone


def chunk(policy, observation):
    return policy.begin(3).predict([observation]).actions


@pytest.mark.parametrize("head", ["beast", "diffusion"])
def test_compiled_passes_answer_as_plain_ones(make_policy, observations, monkeypatch, head):
    """Each pass is traced as one whole; the code that is generated for it is tested where timings are made."""
    plain = make_policy(head, **({"denoising": TWELVE} if head == "diffusion" else {}))
    traced = partial(CompiledBackbone, compile=partial(torch.compile, backend="eager", fullgraph=True))
    monkeypatch.setattr(decoding, "CompiledBackbone", traced)
    compiled = plain.decoding(Decode("plain", compile=True))
    assert compiled.spec.decode["compile"]
    for observation in observations:
        np.testing.assert_allclose(chunk(compiled, observation), chunk(plain, observation), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exact"}, "decode.compile: expected decode=plain, whose passes are compiled, got decode=exact"),
        ({"mode": "bac"}, "got decode=bac"),
        ({"mode": "plain", "guide": True}, "got decode.guide"),
        ({"mode": "auto", "refresh": (0,)}, "got decode.refresh"),
    ],
)
def test_compiling_what_has_no_passes_to_compile_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decode(**options, compile=True)


def test_compiling_a_head_whose_passes_grow_is_refused(make_policy):
    with pytest.raises(ValueError, match=r"decode.compile: expected a head whose passes are alike, got autoregressive"):
        make_policy("autoregressive").decoding(Decode("plain", compile=True))

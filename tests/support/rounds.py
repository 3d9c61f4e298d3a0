"""Masked diffusion with its prefix kept over rounds, beside all of it computed anew in every round."""

from __future__ import annotations

import torch

from policies.heads.discrete_diffusion import DiscreteDiffusion
from policies.tokenizers.bins import Bins
from vla_runtime.decoding.masked import MaskedDecoding

ROUNDS = 5


class _Anew:
    """A backbone that sees the observations again at every step."""

    def __init__(self, backbone, observations):
        self._backbone, self._observations, self.steps = backbone, observations, 0

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def step(self, context, *given):
        self.steps += 1
        return self._backbone.step(self._backbone.encode(self._observations), *given)


def kept_equals_anew(backbone, observations, width):
    """Logits to 1e-4 in every round, and so the same tokens."""
    torch.manual_seed(0)
    head = DiscreteDiffusion(Bins(4, 2), width, 2, MaskedDecoding(rounds=ROUNDS, temperature=1.0)).eval()
    count, said = len(observations), []

    def decoded(one):
        logits, inner = [], head._logits
        head._logits = lambda *given: (logits.append(inner(*given)), logits[-1])[1]
        noise = head.draw(count, torch.Generator().manual_seed(1))
        with torch.no_grad():
            ids = head.decode_rounds(one, backbone.encode(observations), None, noise, count).ids_BL
        del head._logits
        said.append(logits)
        return ids

    anew = _Anew(backbone, observations)
    assert torch.equal(decoded(backbone), decoded(anew))
    assert anew.steps == ROUNDS == len(said[0])
    for one, other in zip(*said, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    # From round to round the slots are others, so that there was something to keep.
    assert not torch.allclose(said[0][0], said[0][-1], atol=1e-3)

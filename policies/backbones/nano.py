"""A small backbone from scratch: convolution stems, bytes for words, a short trunk, the shared action decoder.

About five million parameters, so that it trains on two cores and runs in milliseconds. Every camera gives at
most 36 tokens, the instruction a few, proprioception one; the trunk mixes them once per observation and the
decoder reads them at every step. There is no vocabulary file: an instruction is its UTF-8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.backbones.decoder import ActionDecoder, Attention, Context, FeedForward
from policies.backbones.fused_nano import FusedNano
from policies.backbones.prepared_steps import PreparedSteps
from policies.batch import Batch
from policies.images import resize, to_unit
from vla_runtime.decoding.bac import Block
from vla_runtime.decoding.feature_cache import FeatureCache

# Cells of a camera's feature map on a side: 6 x 6 tokens, 72 for two cameras.
_CELLS = 6
_STRIDE = 16


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """cameras: their names in order; image_size: pixels every image is resized to, a multiple of 16, at most 96.

    state_size: S; frames: observations a sample is made of, whose images lie on top of each other; the rest are sizes
    of the network. max_bytes: longest instruction.
    """

    cameras: tuple[str, ...]
    state_size: int
    image_size: int = 96
    width: int = 192
    heads: int = 6
    trunk_depth: int = 2
    decoder_depth: int = 6
    text_tokens: int = 4
    max_bytes: int = 160
    frames: int = 1

    def __post_init__(self) -> None:
        if self.image_size % _STRIDE or not _STRIDE <= self.image_size <= _CELLS * _STRIDE:
            raise ValueError(
                f"nano: expected image_size a multiple of {_STRIDE} up to {_CELLS * _STRIDE}, got {self.image_size}"
            )
        if not self.cameras or len(self.cameras) > 2:
            some = list(self.cameras[:2]) or ["a", "b"]
            raise ValueError(
                f"nano: expected one or two cameras, got {list(self.cameras)}; choose with cameras=[{','.join(some)}]"
            )


class Nano(nn.Module):
    """Backbone from scratch; see the module."""

    name = "nano"
    # Several observations a sample cost it wider first layers, and no more tokens.
    takes_frames = True

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.width = width
        self.stems = nn.ModuleDict({camera: _Stem(3 * config.frames, width) for camera in config.cameras})
        cells = (config.image_size // _STRIDE) ** 2
        self.places = nn.Parameter(torch.randn(len(config.cameras), cells, width) * 0.02)
        self.text = _Bytes(width, config.heads, config.text_tokens, config.max_bytes)
        told = config.frames * config.state_size
        self.state = nn.Sequential(nn.Linear(told, width), nn.GELU(), nn.Linear(width, width))
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)
        self.trunk = nn.ModuleList(_TrunkLayer(width, config.heads) for _ in range(config.trunk_depth))
        self.trunk_norm = nn.LayerNorm(width)
        self.decoder = ActionDecoder(width, config.decoder_depth, config.heads)

    @property
    def image_size(self) -> int:
        """Pixels on a side that `encode` resizes images to."""
        return self.config.image_size

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """Those that `features` uses: all but the decoder's."""
        return (value for name, value in self.named_parameters() if not name.startswith("decoder."))

    def checkpointed_layers(self) -> list[nn.Module]:
        """Modules whose activations may be computed again in the backward pass."""
        return [module for module in self.modules() if isinstance(module, (_Stem, Attention, FeedForward))]

    def encode(self, batch: Batch) -> Context:
        """Once per observation. ValueError for a camera that is missing or an instruction that is empty or too long."""
        return self.remember(*self.features(batch))

    def remember(self, tokens_BND: Tensor) -> Context:
        """The rest of `encode`: what the decoder keeps of the trunk's tokens."""
        return self.decoder.remember(tokens_BND)

    def postpone(self, tokens_BND: Tensor) -> Context:
        """As `remember`, for a context of one decode alone; there is nothing that could be computed later."""
        return self.remember(tokens_BND)

    def features(self, batch: Batch) -> tuple[Tensor]:
        """The trunk's tokens [B, N, D]: what follows from the observation and the trunk alone."""
        return self.encode_scene(batch.images, batch.state_BS, *self.encode_text(batch.instructions))

    def encode_text(self, instructions: Sequence[str]) -> tuple[Tensor]:
        """The instructions' tokens [B, M, D], which change with the task alone. ValueError for one that is empty or
        too long.
        """
        return (self.text(instructions) + self.kinds[1],)

    def encode_scene(self, images: Mapping[str, Tensor], state_BS: Tensor, text_BMD: Tensor) -> tuple[Tensor]:
        """The rest of `features`: work of the device alone. ValueError for a camera that is missing."""
        tokens = [self.state(state_BS.to(self.kinds.dtype))[:, None] + self.kinds[0], text_BMD]
        for index, camera in enumerate(self.config.cameras):
            if camera not in images:
                raise ValueError(f"nano: expected the camera {camera!r}, got {sorted(images)}")
            image = to_unit(resize(images[camera], self.config.image_size), self.kinds.dtype)
            tokens.append(self.stems[camera](image) + self.places[index] + self.kinds[2])
        mixed = torch.cat(tokens, dim=1)
        for layer in self.trunk:
            mixed = layer(mixed)
        return (self.trunk_norm(mixed),)

    def step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots; any number of times per context."""
        return self.decoder.step(context, slots_BLD, mask_LL, cond_BD)

    def prepared(self, cond_KD: Tensor, cache: FeatureCache | None = None) -> PreparedSteps:
        """Steps with all of them computed beforehand that can be: the k-th with the k-th of these tokens as cond."""
        return PreparedSteps(self.decoder, cond_KD, cache)

    def prepared_inference(self) -> FusedNano:
        """The same passes laid out for a GPU, with the weights as they are now."""
        return FusedNano(self)

    def blocks(self) -> tuple[Block, ...]:
        """The residual branches of the decoder, in the order in which they run."""
        return self.decoder.blocks()

    def costs(self, slots: int, memory: int) -> tuple[int, ...]:
        """Multiplications of every block in one step over `slots` slots and `memory` kept context tokens."""
        return self.decoder.costs(slots, memory)

    def cached_step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None, cache: FeatureCache
    ) -> Tensor:
        """As `step`, with branches reused as the cache's plan says."""
        return self.decoder.cached_step(context, slots_BLD, mask_LL, cond_BD, cache)

    def extend(self, context: Context, slots_BLD: Tensor) -> Context:
        """The context with slots that are now fixed; their hidden states lie in `hidden_BLD`."""
        return self.decoder.extend(context, slots_BLD)

    def forward(
        self, batch: Batch, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Encode and step in one pass, for training."""
        return self.step(self.encode(batch), slots_BLD, mask_LL, cond_BD)

    def state_of_config(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_config` takes it back."""
        return {**asdict(self.config), "cameras": list(self.config.cameras)}

    @classmethod
    def make(cls, options: Mapping[str, Any], cameras: Sequence[str], state_size: int) -> Nano:
        """An untrained backbone for a data set with these cameras and this state."""
        return cls(NanoConfig(tuple(cameras), state_size, **options))

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Nano:
        """An untrained backbone from plain values."""
        return cls(NanoConfig(**{**values, "cameras": tuple(values["cameras"])}))


class _Stem(nn.Module):
    """Four convolutions of stride 2 with group norm: [B, planes, S, S] -> [B, (S / 16)^2, D]."""

    def __init__(self, planes: int, width: int):
        channels = (planes, 32, 64, 128, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        layers += [nn.Conv2d(width, width, 1)]
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class _Bytes(nn.Module):
    """Instructions to a few tokens: bytes and places embedded, mixed locally, read by learned queries."""

    def __init__(self, width: int, heads: int, tokens: int, max_bytes: int):
        super().__init__()
        self.max_bytes = max_bytes
        self.embed = nn.Embedding(257, width, padding_idx=256)
        self.places = nn.Parameter(torch.randn(max_bytes, width) * 0.02)
        self.mix = nn.Conv1d(width, width, 5, padding=2)
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.read = Attention(width, heads)

    def forward(self, instructions: Sequence[str]) -> Tensor:
        encoded = [instruction.encode() for instruction in instructions]
        for instruction, data in zip(instructions, encoded, strict=True):
            if not 0 < len(data) <= self.max_bytes:
                raise ValueError(
                    f"instruction: expected 1 to {self.max_bytes} bytes, got {len(data)}: {instruction[:40]!r}"
                )
        longest = max(len(data) for data in encoded)
        ids = torch.full((len(encoded), longest), 256)
        for row, data in zip(ids, encoded, strict=True):
            row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        ids = ids.to(self.places.device)
        known = ids != 256
        values = self.embed(ids) + self.places[:longest] * known[..., None]
        values = (values + F.gelu(self.mix(values.transpose(1, 2)).transpose(1, 2))) * known[..., None]
        queries = self.queries.expand(len(encoded), -1, -1)
        answer = self.read(queries, self.read.keys_values(self.norm(values)), known[:, None, None])
        return queries + answer  # type: ignore[no-any-return]


class _TrunkLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, self.attention.keys_values(normed))
        return tokens + self.feed_forward(self.feed_norm(tokens))  # type: ignore[no-any-return]

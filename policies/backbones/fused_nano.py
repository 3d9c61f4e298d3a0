"""`Nano` laid out for a GPU: the same passes with joined products, and everything between them as one kernel each.

The numbers are `Nano`'s up to rounding; `Nano` is the reference. What an instruction becomes, and passes with a mask,
with a condition or after fixed slots, are the backbone's own. Weights are laid out when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.backbones.decoder import Context
from policies.backbones.fused_steps import FusedSteps, write
from policies.backbones.prepared_steps import Product, joined, laid
from policies.batch import Batch
from vla_runtime.decoding.image_kernels import TorchImages, TritonImages, image_operations
from vla_runtime.decoding.row_kernels import RowNorm, row_operations

if TYPE_CHECKING:
    from policies.backbones.nano import Nano


class FusedNano:
    """See the module. In all that is not here it is the backbone."""

    def __init__(self, backbone: Nano):
        self._backbone = backbone
        device = backbone.kinds.device
        self._rows = row_operations(device)
        self._images = image_operations(device)
        with torch.no_grad():
            self._stems = [_Stem(backbone.stems[camera], self._images) for camera in backbone.config.cameras]
            self._trunk = [_TrunkLayer(layer) for layer in backbone.trunk]
            # What is added to the tokens, whatever they are: [N, D]; an instruction's have theirs already.
            text = backbone.kinds.new_zeros(backbone.config.text_tokens, backbone.width)
            cells = [places + backbone.kinds[2] for places in backbone.places]
            self._places = torch.cat([backbone.kinds[:1], text, *cells])
            layers: Any = backbone.decoder.layers
            self._memory = joined(*(layer.cross_attention.key_value for layer in layers))
            self._steps = FusedSteps(backbone.decoder, None)
        self._first = torch.zeros(1, dtype=torch.int32, device=device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, batch: Batch) -> Context:
        """As the backbone's."""
        return self.remember(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor]:
        """As the backbone's."""
        return self.encode_scene(batch.images, batch.state_BS, *self._backbone.encode_text(batch.instructions))

    def encode_scene(self, images: Mapping[str, Tensor], state_BS: Tensor, text_BMD: Tensor) -> tuple[Tensor]:
        """As the backbone's."""
        backbone = self._backbone
        tokens = [backbone.state(state_BS.to(backbone.kinds.dtype))[:, None], text_BMD]
        for camera, stem in zip(backbone.config.cameras, self._stems, strict=True):
            if camera not in images:
                raise ValueError(f"nano: expected the camera {camera!r}, got {sorted(images)}")
            tokens.append(stem(self._planes(images[camera])))
        mixed = torch.cat(tokens, dim=1)
        normed, output = torch.empty_like(mixed), mixed.new_empty(1, *mixed.shape)
        places = self._places.expand_as(mixed).contiguous()[None]
        norms = [norm for layer in self._trunk for norm in (layer.attention_norm, layer.feed_norm)]
        norms.append(_row_norm(backbone.trunk_norm))
        self._rows.add_and_norm(mixed, places, self._first, norms[0], normed)
        for index, layer in enumerate(self._trunk):
            layer.attend(normed, output[0])
            self._rows.add_and_norm(mixed, output, self._first, norms[2 * index + 1], normed)
            write(layer.down, F.gelu(layer.up(normed)), output[0])
            self._rows.add_and_norm(mixed, output, self._first, norms[2 * index + 2], normed)
        return (normed,)

    def remember(self, tokens_BND: Tensor) -> Context:
        """As the backbone's: the keys and values of all layers by one product."""
        if len(self._memory) > 1:
            return self._backbone.remember(tokens_BND)
        layers, heads = self._backbone.decoder.layers, self._backbone.config.heads
        batch, tokens, width = tokens_BND.shape
        pairs = self._memory[0](tokens_BND).view(batch, tokens, len(layers), 2, heads, width // heads)
        return Context(joined=pairs.permute(2, 3, 0, 4, 1, 5))

    def postpone(self, tokens_BND: Tensor) -> Context:
        """As `remember`."""
        return self.remember(tokens_BND)

    def step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As the backbone's."""
        if mask_LL is not None or cond_BD is not None or context.past:
            return self._backbone.step(context, slots_BLD, mask_LL, cond_BD)
        steps = self._steps.twin()
        steps.begin(context, (0,))
        slots = slots_BLD.clone()
        output = slots.new_empty(1, *slots.shape)
        normed = F.layer_norm(slots, slots.shape[-1:], *steps.norms[0])
        for branch, norm in enumerate([*steps.norms[1:], steps.last_norm]):
            steps.compute(branch, 0, normed, output[0])
            self._rows.add_and_norm(slots, output, self._first, norm, normed)
        return normed

    def prepared_inference(self) -> FusedNano:
        """Itself."""
        return self

    def _planes(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3 F] to [B, 3 F, S, S] in [-1, 1]."""
        size, planes = self._backbone.config.image_size, images.permute(0, 3, 1, 2).float()
        if images.shape[1:3] != (size, size):
            planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return self._images.pixels_to_unit(planes, self._backbone.kinds.dtype)


class _Stem:
    """Convolutions whose biases, norms and activations are one kernel, and a last one that is a product."""

    def __init__(self, stem: nn.Module, images: type[TorchImages] | type[TritonImages]):
        layers: Sequence[Any] = list(stem.layers)  # type: ignore[arg-type]
        self._images = images
        self._pairs = list(zip(layers[0:-1:3], layers[1:-1:3], strict=True))
        last = layers[-1]
        self._weight, self._bias = last.weight.flatten(1), last.bias

    def __call__(self, planes: Tensor) -> Tensor:
        """[B, 3 F, S, S] -> [B, (S / 16)^2, D]."""
        for index, (convolution, norm) in enumerate(self._pairs):
            planes = F.conv2d(planes, convolution.weight, None, convolution.stride, convolution.padding)
            planes = self._images.group_norm_gelu(
                planes, convolution.bias, norm.weight, norm.bias, norm.num_groups, norm.eps,
                index == len(self._pairs) - 1,
            )  # fmt: skip
        return F.linear(planes, self._weight, self._bias)


class _TrunkLayer:
    """A layer of the trunk, its attention's products joined."""

    def __init__(self, layer: Any):
        self.attention_norm, self.feed_norm = _row_norm(layer.attention_norm), _row_norm(layer.feed_norm)
        self._heads = layer.attention.heads
        self._qkv = joined(layer.attention.query, layer.attention.key_value)
        self._out = laid(layer.attention.out)
        self.up: Product = laid(layer.feed_forward[0])
        self.down: Product = laid(layer.feed_forward[2])

    def attend(self, normed: Tensor, output: Tensor) -> None:
        """Write self-attention of normed tokens [B, N, D] to `output`."""
        batch, length, width = normed.shape
        parts = [product(normed) for product in self._qkv]
        together = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        query, key, value = together.view(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4).unbind()
        answer = F.scaled_dot_product_attention(query, key, value)
        write(self._out, answer.transpose(1, 2).reshape(batch, length, width), output)


def _row_norm(norm: nn.LayerNorm) -> RowNorm:
    return RowNorm(norm.weight, norm.bias, norm.eps)

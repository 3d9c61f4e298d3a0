"""Florence-2 (arXiv 2311.06242) as a backbone, the way BEAST uses it (arXiv 2506.06072, section 4).

The encoder reads one sequence per observation:

    [image tokens of each camera] [primitives] [proprioception] [prompt with the instruction] [padding]

and the decoder, given slots instead of words, reads the encoder at every step; `florence2_slots` says how. The
parts are transformers' own. New here, and part of a checkpoint, are the vector behind `primitives` (BEAST's
token `<Primitives>`) and the projection of proprioception. It knows neither actions nor tokens for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import Florence2Model

from policies.backbones.florence2_keys import build, florence_config, read_config, read_model, sizes
from policies.backbones.florence2_slots import SlotContext, Slots
from policies.backbones.instructions import Instructions
from policies.backbones.published import Tensors, find_folder
from policies.batch import Batch
from policies.images import resize

PROMPT = "Agent Type: 1-arm Franka Panda, Action Space: Delta End-Effector, Task Instruction: {instruction}"
# Mean and deviation of each channel that Florence-2 was trained with: ImageNet's.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class FlorenceConfig:
    """cameras: their names in order, the static view first; state_size: S; tokenizer: JSON text of a tokenizer.

    vision, text: sizes by the names of transformers' configurations, defaults where they are left out.
    image_size: pixels every image is resized to; max_text_tokens: of the longest prompt; prompt: the text around
    `{instruction}`; slot_attention: bidirectional or uniform, which the weights were trained with.
    """

    cameras: tuple[str, ...]
    state_size: int
    tokenizer: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    image_size: int = 224
    max_text_tokens: int = 77
    prompt: str = PROMPT
    slot_attention: str = "bidirectional"

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("florence2: expected at least one camera, got none")
        if self.state_size < 1:
            raise ValueError(f"state_size: expected at least 1, got {self.state_size}")


class Florence2(nn.Module):
    """Backbone; see the module. model: the network with its weights, of the config's sizes; by default untrained."""

    name = "florence2"
    new_parts = ("primitives", "state.")
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: FlorenceConfig, model: Florence2Model | None = None):
        super().__init__()
        self.config = config
        self._slots = Slots(config.slot_attention)
        self.model: Any = build(florence_config(config.vision, config.text)) if model is None else model
        text: Any = self.model.config.text_config
        self.width: int = text.d_model
        self.instructions = Instructions(
            config.tokenizer, config.max_text_tokens, text.pad_token_id, prompt=config.prompt
        )
        if self.instructions.vocab_size > text.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most {text.vocab_size} tokens, the rows of the table of words, got "
                f"{self.instructions.vocab_size}; take the tokenizer published with the weights"
            )
        self.num_image_tokens = self._image_tokens()
        length = len(config.cameras) * self.num_image_tokens + 2 + config.max_text_tokens
        if length > text.max_position_embeddings:
            raise ValueError(
                f"florence2: expected at most {text.max_position_embeddings} tokens for the encoder, got {length}; "
                "lower image_size or max_text_tokens"
            )
        self.primitives = nn.Parameter(torch.randn(self.width) * text.init_std)
        self.state = nn.Sequential(
            nn.Linear(config.state_size, self.width), nn.GELU(), nn.Linear(self.width, self.width)
        )
        for name, values in (("mean", _MEAN), ("deviation", _DEVIATION)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def image_size(self) -> int:
        """Pixels on a side that `encode` resizes images to."""
        return self.config.image_size

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """Those that `features` uses: all but the decoder's."""
        decoder = "model.language_model.decoder."
        return (value for name, value in self.named_parameters() if not name.startswith(decoder))

    def checkpointed_layers(self) -> list[nn.Module]:
        """Modules whose activations may be computed again in the backward pass: the vision tower's, the encoder's."""
        blocks = [block for stage in self.model.vision_tower.blocks for block in stage]
        return [*blocks, *self.model.language_model.encoder.layers]

    def encode(self, batch: Batch) -> SlotContext:
        """Once per observation. ValueError as `features`."""
        return self.remember(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The encoder's tokens float [B, N, D], and which of them count, bool [B, N].

        ValueError for a camera that is missing, a state of another size, an instruction that is empty or too long.
        """
        return self.encode_scene(batch.images, batch.state_BS, *self.encode_text(batch.instructions))

    def encode_text(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The prompts' embedded tokens [B, M, D] and which of them count, bool [B, M]; they change with the task alone.

        ValueError for an instruction that is empty or too long.
        """
        ids, keep = (values.to(self.primitives.device) for values in self.instructions.encode(instructions))
        return self.model.language_model.shared(ids), keep

    def encode_scene(
        self, images: Mapping[str, Tensor], state_BS: Tensor, text_BMD: Tensor, keep_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The rest of `features`: work of the device alone. ValueError for a missing camera, state of another size."""
        size, cameras, batch = self.config.image_size, self.config.cameras, len(state_BS)
        for camera in cameras:
            if camera not in images:
                raise ValueError(f"florence2: expected the camera {camera!r}, got {sorted(images)}")
        if state_BS.shape != (len(text_BMD), self.config.state_size):
            raise ValueError(
                f"florence2: expected a state [{len(text_BMD)}, {self.config.state_size}], "
                f"got {list(state_BS.shape)}; the backbone was made for another robot"
            )
        views = torch.stack([resize(images[camera], size) for camera in cameras], dim=1)
        pixels = views.flatten(0, 1).permute(0, 3, 1, 2).to(self.primitives.dtype) / 255
        # These constants stay in fp32 whatever the network is in.
        mean, deviation = self.mean.to(pixels.dtype), self.deviation.to(pixels.dtype)
        seen = self.model.vision_tower((pixels - mean) / deviation).last_hidden_state
        image_tokens = self.model.multi_modal_projector(seen).reshape(batch, -1, self.width)
        primitives = self.primitives.expand(batch, 1, -1)
        state = self.state(state_BS.to(self.primitives.dtype))[:, None]
        tokens = torch.cat([image_tokens, primitives, state, text_BMD], dim=1)
        keep = F.pad(keep_BM, (tokens.shape[1] - keep_BM.shape[1], 0), value=True)
        return self.model.language_model.encoder(inputs_embeds=tokens, attention_mask=keep).last_hidden_state, keep

    def remember(self, memory_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """The rest of `encode`: what the decoder keeps of the encoder's tokens."""
        return self._slots.remember(self.model.language_model.decoder, memory_BND, keep_BN)

    def postpone(self, memory_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """As `remember`, for a context of one decode alone; there is nothing that could be computed later."""
        return self.remember(memory_BND, keep_BN)

    def step(
        self, context: SlotContext, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots; any number of times per context.

        mask_LL: bool, True where slot i may look at slot j; all may without it. cond_BD: one more memory token.
        """
        return self._slots.step(self.model.language_model.decoder, context, slots_BLD, mask_LL, cond_BD)

    def extend(self, context: SlotContext, slots_BLD: Tensor) -> SlotContext:
        """The context with slots that are now fixed; their hidden states lie in `hidden_BLD`."""
        return self._slots.extend(self.model.language_model.decoder, context, slots_BLD)

    def forward(
        self, batch: Batch, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Encode and step in one pass, for training."""
        return self.step(self.encode(batch), slots_BLD, mask_LL, cond_BD)

    def prepared_inference(self) -> Florence2:
        """Itself: its passes are laid out as they are."""
        return self

    def state_of_config(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_config` takes it back. Sizes are whole, also where defaults were taken."""
        return {
            **asdict(self.config),
            "cameras": list(self.config.cameras),
            "tokenizer": self.instructions.json,
            **sizes(self.model.config),
        }

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Florence2:
        """An untrained backbone from plain values."""
        return cls(FlorenceConfig(**{**values, "cameras": tuple(values["cameras"])}))

    @classmethod
    def make(cls, options: Mapping[str, Any], cameras: Sequence[str], state_size: int) -> Florence2:
        """A backbone for a data set with these cameras and this state.

        options: `pretrained` (folder or hub id) or `config` (vision, text, and tokenizer: a folder), and fields
        of a `FlorenceConfig`. ValueError for both or neither.
        """
        values = dict(options)
        pretrained, config = values.pop("pretrained", None), values.pop("config", None)
        if (pretrained is None) == (config is None):
            raise ValueError(
                f"backbone florence2: expected either pretrained or config, got {pretrained!r} and {config!r}"
            )
        if pretrained is not None:
            return cls.from_pretrained(pretrained, cameras, state_size, **values)
        if set(config) != {"vision", "text", "tokenizer"}:
            raise ValueError(f"config: expected vision, text and tokenizer (a folder), got {sorted(config)}")
        made = {**config, "tokenizer": _tokenizer(config["tokenizer"])}
        return cls(FlorenceConfig(tuple(cameras), state_size, **made, **values))

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        cameras: Sequence[str],
        state_size: int,
        *,
        image_size: int = 224,
        max_text_tokens: int = 77,
        prompt: str = PROMPT,
        slot_attention: str = "bidirectional",
    ) -> Florence2:
        """A backbone with published weights, fp32. ValueError for weights that do not fit, by name.

        New and untrained are the primitives' vector and the state's projection: no published weights have them.
        """
        folder = find_folder(folder_or_id)
        config = read_config(folder)
        mine = FlorenceConfig(
            cameras=tuple(cameras),
            state_size=state_size,
            tokenizer=_tokenizer(folder),
            image_size=image_size,
            max_text_tokens=max_text_tokens,
            prompt=prompt,
            slot_attention=slot_attention,
            **sizes(config),
        )
        return cls(mine, read_model(config, Tensors(folder))).eval()

    def _image_tokens(self) -> int:
        """Tokens of one image: its mean, and every cell that the tower's last stage leaves. ValueError if too many."""
        vision, side = self.model.config.vision_config, self.config.image_size
        for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
            side = (side + 2 * padding - size) // stride + 1
        if not 0 < side <= vision.max_position_embeddings:
            raise ValueError(
                f"image_size: expected 1 to {vision.max_position_embeddings} cells on a side, got {side} from "
                f"{self.config.image_size} pixels"
            )
        return 1 + side * side


def _tokenizer(folder: str | Path) -> str:
    # The length does not matter to the text.
    return Instructions.from_folder(folder, max_tokens=1, pad_id=0).json

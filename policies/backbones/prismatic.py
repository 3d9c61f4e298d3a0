"""The OpenVLA family: DINOv2 and SigLIP patches, a projector and Llama-2 (arXiv 2406.09246; Prismatic, 2402.07865).

The sequence is that of OpenVLA-OFT (arXiv 2502.19645):

    [begin] [patches of each camera] [proprioception] [prompt] [slots] ([stop], with attention=oft)

Everything in front of the slots is computed once per observation; `prismatic_slots` says how slots see it. The
prompt is padded on its left to a fixed length, masked, and places are counted without padding. Heads bring
slots of their own; the words' rows that stand for actions are offered by `embed` and `logits`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.backbones.instructions import Instructions
from policies.backbones.openvla_keys import FILES, TOWERS, fill, fill_proprio, find_proprio, read_sizes
from policies.backbones.prepared_prismatic import PreparedPrismatic
from policies.backbones.prismatic_slots import KeyValue, LanguageConfig, Oft, PrefixLM, SlotContext, make_language
from policies.backbones.prismatic_vision import FusedVision, Projector, Proprio, TowerConfig
from policies.backbones.published import Tensors, find_folder
from policies.batch import Batch
from policies.images import resize

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
# Llama's empty word, which stood between the prompt and the actions when OpenVLA was trained.
EMPTY_WORD = 29871
NUM_ACTIONS = 256


@dataclass(frozen=True, slots=True)
class PrismaticConfig:
    """cameras: their names in order; state_size: S; tokenizer: JSON text of a `tokenizers.Tokenizer`.

    attention: prefix_lm or oft, see `prismatic_slots`; proprio: whether the state is a token; max_text_tokens:
    of the longest prompt, without `extra_token`, which follows every prompt; action_end: the ids of actions end
    in front of it, so that bin d (1 to 256) is `action_end - d`; mask_id: stands for an action not yet known.
    """

    cameras: tuple[str, ...]
    state_size: int
    tokenizer: str
    dino: TowerConfig
    siglip: TowerConfig
    language: LanguageConfig
    image_size: int = 224
    patch: int = 14
    max_text_tokens: int = 64
    attention: str = "prefix_lm"
    proprio: bool = True
    extra_token: int | None = EMPTY_WORD
    begin_id: int = 1
    stop_id: int = 2
    action_end: int = 32000
    mask_id: int = 32001

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("prismatic: expected at least one camera, got none")
        if self.attention not in ("prefix_lm", "oft"):
            raise ValueError(f"attention: expected prefix_lm or oft, got {self.attention!r}")
        for name in ("begin_id", "stop_id", "mask_id", "extra_token"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.language.vocabulary:
                raise ValueError(f"{name}: expected an id below {self.language.vocabulary}, got {value}")
        if not NUM_ACTIONS <= self.action_end <= self.language.vocabulary:
            raise ValueError(f"action_end: expected {NUM_ACTIONS} to {self.language.vocabulary}, got {self.action_end}")


class Prismatic(nn.Module):
    """Backbone; see the module."""

    name = "prismatic"
    new_parts = ("proprio.",)
    # The towers are bound by their many small kernels: eight bits would add to these and gain nothing.
    sixteen_bits = ("vision.",)

    def __init__(self, config: PrismaticConfig):
        super().__init__()
        self.config = config
        self.width = config.language.width
        # Padding is masked, so its id may be any.
        self.instructions = Instructions(config.tokenizer, config.max_text_tokens, config.stop_id, False, PROMPT)
        if self.instructions.vocab_size > config.language.vocabulary:
            raise ValueError(
                f"tokenizer: expected at most {config.language.vocabulary} tokens, the language model's vocabulary, "
                f"got {self.instructions.vocab_size}; take the tokenizer published with the weights"
            )
        self.vision = FusedVision(config.dino, config.siglip, config.image_size, config.patch)
        self.projector = Projector(self.vision.width, self.width)
        self.proprio = Proprio(config.state_size, self.width) if config.proprio else None
        self.language_model: Any = make_language(config.language)
        # In front of the prompt.
        self.cond_place = 1 + len(config.cameras) * self.vision.num_patches + config.proprio
        self._slots = PrefixLM() if config.attention == "prefix_lm" else Oft(config.stop_id, self.cond_place)

    @property
    def image_size(self) -> int:
        """Pixels on a side that `encode` resizes images to."""
        return self.config.image_size

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """Those that `features` uses: towers, projectors and the words' embeddings."""
        yield from self.vision.parameters()
        yield from self.projector.parameters()
        if self.proprio is not None:
            yield from self.proprio.parameters()
        yield from self.llama.embed_tokens.parameters()

    def checkpointed_layers(self) -> list[nn.Module]:
        """Modules whose activations may be computed again in the backward pass."""
        return [*self.vision.dino.encoder.layer, *self.vision.siglip.encoder.layers, *self.llama.layers]

    def encode(self, batch: Batch) -> SlotContext:
        """Once per observation. ValueError for a missing camera and for an empty or too long instruction."""
        return self.remember(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prefix as embeddings float [B, N, D], and which of its positions count, bool [B, N].

        It is `encode_scene` of the batch and of `encode_text` of its instructions. ValueError as they raise.
        """
        return self.encode_scene(batch.images, batch.state_BS, *self.encode_text(batch.instructions))

    def encode_text(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What `encode_scene` reads of B instructions: the prompts' ids int64 [B, M], and which count, bool [B, M].

        Work of the host alone, the same for as long as the instructions are. ValueError for an instruction that is
        empty or too long.
        """
        ids, keep = self.prompt(instructions)
        device = self.llama.embed_tokens.weight.device
        return ids.to(device), keep.to(device)

    def encode_scene(self, images: Mapping[str, Tensor], state_BS: Tensor, *text: Tensor) -> tuple[Tensor, Tensor]:
        """As `features`, of images {camera: uint8 [B, H, W, 3]}, states and what `encode_text` gave.

        Work of the device alone, which the host waits for nowhere. ValueError for a missing camera.
        """
        ids, keep = text
        tokens = self.scene_tokens(images, state_BS, ids)
        return tokens, F.pad(keep, (tokens.shape[1] - keep.shape[1], 0), value=True)

    def scene_tokens(self, images: Mapping[str, Tensor], state_BS: Tensor, ids_BM: Tensor) -> Tensor:
        """The prefix as embeddings float [B, N, D] of any prompts of one length. ValueError for a missing camera."""
        for camera in self.config.cameras:
            if camera not in images:
                raise ValueError(f"prismatic: expected the camera {camera!r}, got {sorted(images)}")
        views = torch.stack([resize(images[camera], self.image_size) for camera in self.config.cameras], dim=1)
        patches = self.projector(self.vision(views.flatten(0, 1)))
        embedded = self.embed(ids_BM)
        prefix = [embedded[:, :1], patches.reshape(len(ids_BM), -1, self.width)]
        if self.proprio is not None:
            prefix.append(self.proprio(state_BS.to(embedded.dtype))[:, None])
        return torch.cat([*prefix, embedded[:, 1:]], dim=1)

    def prompt(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Begin, padding, prompt, extra token: ids int64 [B, M], and which of them count, bool [B, M], on the CPU."""
        ids, keep = self.instructions.encode([instruction.lower() for instruction in instructions])
        # Padding goes to the front, so that a prompt ends where the slots begin.
        order = keep.int().argsort(dim=1, stable=True)
        ids, keep = ids.gather(1, order), keep.gather(1, order)
        ids = F.pad(ids, (1, 0), value=self.config.begin_id)
        if self.config.extra_token is not None:
            ids = F.pad(ids, (0, 1), value=self.config.extra_token)
        return ids, F.pad(keep, (1, ids.shape[1] - 1 - keep.shape[1]), value=True)

    def prepared_inference(self, room: int = 0) -> PreparedPrismatic:
        """This backbone with its language model laid out and its kernels fused: for inference, and the same answers.

        room: slots (and time token) for which a context keeps memory from the beginning; a step that needs more copies
        the context once. The language model's weights become views of the joined ones: move or cast nothing afterwards.
        ValueError for adapters that are not added in, and for weights in int8.
        """
        return PreparedPrismatic(self, room)

    def remember(self, prefix_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """The rest of `encode`: the prefix's keys and values, where they can be known without slots."""
        return self._slots.remember(self.llama, prefix_BND, keep_BN)

    def step(
        self, context: SlotContext, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots; any number of times per context."""
        return self._slots.step(self.llama, context, slots_BLD, mask_LL, cond_BD)

    def step_keeping(
        self,
        context: SlotContext,
        slots_BLD: Tensor,
        mask_LL: Tensor | None,
        cond_BD: Tensor | None,
        kept: tuple[KeyValue, ...] = (),
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """As `step`, and what the prefix came to in every layer; kept: that of an earlier step, taken for this one's.

        ValueError with prefix_lm, whose prefix never sees slots and is kept exactly by itself.
        """
        if not isinstance(self._slots, Oft):
            raise ValueError("decode.refresh: expected attention oft, got prefix_lm, whose prefix is kept exactly")
        return self._slots.step_keeping(self.llama, context, slots_BLD, mask_LL, cond_BD, kept)

    def extend(self, context: SlotContext, slots_BLD: Tensor) -> SlotContext:
        """The context with slots that are now fixed; their hidden states lie in `hidden_BLD`. ValueError with oft."""
        return self._slots.extend(self.llama, context, slots_BLD)

    def forward(
        self, batch: Batch, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Encode and step in one pass, for training."""
        return self.step(self.encode(batch), slots_BLD, mask_LL, cond_BD)

    @property
    def action_ids(self) -> Tensor:
        """Ids of the bins 1 to 256 in that order, int64 [256]."""
        return self.config.action_end - torch.arange(1, NUM_ACTIONS + 1, device=self.llama.embed_tokens.weight.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings float [..., D] of words, `action_ids` and `config.mask_id` among them."""
        return self.llama.embed_tokens(ids)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Logits float [..., V] of all words, or of `ids` alone."""
        head = self.language_model.lm_head
        if ids is None:
            return head(hidden)  # type: ignore[no-any-return]
        # Of 32,064 words 256 are actions.
        return F.linear(hidden, head.weight[ids], None if head.bias is None else head.bias[ids])


    def state_of_config(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_config` takes it back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self.config)))
        return values

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Prismatic:
        """An untrained backbone from plain values."""
        parts = {
            "cameras": tuple(values["cameras"]),
            "dino": TowerConfig.of(values["dino"]),
            "siglip": TowerConfig.of(values["siglip"]),
            "language": LanguageConfig(**values["language"]),
        }
        return cls(PrismaticConfig(**{**values, **parts}))

    @classmethod
    def make(cls, options: Mapping[str, Any], cameras: Sequence[str], state_size: int) -> Prismatic:
        """A backbone for a data set with these cameras and this state.

        options: `pretrained` (folder or hub id) or `config` (values of a `PrismaticConfig`, whose `tokenizer` is
        then a folder), and what `from_pretrained` takes. ValueError for both or neither.
        """
        values = dict(options)
        pretrained, config = values.pop("pretrained", None), values.pop("config", None)
        if (pretrained is None) == (config is None):
            raise ValueError(
                f"backbone prismatic: expected either pretrained or config, got {pretrained!r} and {config!r}"
            )
        if pretrained is not None:
            return cls.from_pretrained(pretrained, cameras, state_size, **values)
        sizes = {"cameras": cameras, "state_size": state_size, "tokenizer": _tokenizer(config["tokenizer"])}
        return cls.from_config({**config, **values, **sizes})

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        cameras: Sequence[str],
        state_size: int,
        *,
        attention: str = "prefix_lm",
        proprio: bool = True,
        max_text_tokens: int = 64,
        extra_token: int | None = EMPTY_WORD,
        towers: Mapping[str, TowerConfig] = TOWERS,
        dtype: torch.dtype = torch.float32,
    ) -> Prismatic:
        """A backbone with published weights. ValueError for weights that do not fit, by name.

        cameras: in the order the weights know them. Weights of OpenVLA-OFT need attention=oft. proprio: takes
        the projector beside the weights; where there is none (OpenVLA itself sees no state) it is new and
        untrained. towers: sizes by timm's names, DINOv2's first.
        """
        from accelerate import init_empty_weights

        folder = find_folder(folder_or_id, FILES)
        config = PrismaticConfig(
            cameras=tuple(cameras),
            state_size=state_size,
            tokenizer=_tokenizer(folder),
            max_text_tokens=max_text_tokens,
            attention=attention,
            proprio=proprio,
            extra_token=extra_token,
            **read_sizes(folder, towers),
        )
        trained = find_proprio(folder)
        if trained is not None and not proprio:
            raise ValueError(f"{trained}: expected proprio=true for weights that were trained with it, got false")
        # Billions of random numbers would be drawn only to be replaced.
        with init_empty_weights(include_buffers=False):
            backbone = cls(config)
        fill(backbone, Tensors(folder), dtype)
        if proprio:
            backbone.proprio = Proprio(state_size, backbone.width).to(dtype)
            if trained is not None:
                fill_proprio(backbone.proprio, trained)
        return backbone.eval()

    @property
    def llama(self) -> Any:
        """The language model's layers, norm and embeddings, as transformers made them."""
        return self.language_model.model


def _tokenizer(folder: str | Path) -> str:
    # Sizes do not matter to the text.
    return Instructions.from_folder(folder, max_tokens=1, pad_id=0).json

"""Instructions to tokens of a pretrained language model, from its published tokenizer file alone.

Stands in front of a backbone that was trained with a vocabulary of its own. A text always gives the same
number of ids, padding on the right, so that batches and cached features have one shape. It knows neither
embeddings nor images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

_PLACE = "{instruction}"
# RoBERTa's special tokens, which BART took over.
_SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")


class Instructions:
    """A tokenizer for instructions.

    tokenizer_json: text of a `tokenizer.json`; truncation and padding set in it are switched off. max_tokens:
    ids per instruction; pad_id: fills them up; add_special_tokens: whether the tokenizer puts its marks around
    the text; prompt: what is tokenized, with `{instruction}` where the instruction goes.

    `json` is the tokenizer as text again, `vocab_size` the number of its tokens, added ones included.
    ValueError for a text that is no tokenizer, a prompt without its place, and sizes that cannot be.
    """

    def __init__(
        self,
        tokenizer_json: str,
        max_tokens: int,
        pad_id: int,
        add_special_tokens: bool = True,
        prompt: str = _PLACE,
    ):
        if max_tokens < 1:
            raise ValueError(f"max_text_tokens: expected at least 1, got {max_tokens}")
        if prompt.count(_PLACE) != 1:
            raise ValueError(f"prompt: expected {_PLACE} in it once, got {prompt!r}")
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"tokenizer: expected the text of a tokenizer.json, got one that fails: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.json: str = self._tokenizer.to_str()
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.add_special_tokens = add_special_tokens
        self.prompt = prompt

    def encode(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids, int64 [B, max_tokens], and which of them count, bool [B, max_tokens].

        ValueError for an instruction that is empty, or too long with its prompt: it is never cut.
        """
        ids = torch.full((len(instructions), self.max_tokens), self.pad_id)
        keep = torch.zeros(len(instructions), self.max_tokens, dtype=torch.bool)
        for row, instruction in enumerate(instructions):
            found = self._ids(instruction)
            ids[row, : len(found)] = torch.tensor(found)
            keep[row, : len(found)] = True
        return ids, keep

    def _ids(self, instruction: str) -> list[int]:
        if not instruction.strip():
            raise ValueError(f"instruction: expected some words, got {instruction!r}; every sample needs its task")
        text = self.prompt.replace(_PLACE, instruction)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=self.add_special_tokens).ids
        if not 0 < len(ids) <= self.max_tokens:
            raise ValueError(
                f"instruction: expected 1 to {self.max_tokens} tokens with its prompt, got {len(ids)}: "
                f"{instruction[:40]!r}; shorten it or raise max_text_tokens"
            )
        return ids

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        max_tokens: int,
        pad_id: int,
        add_special_tokens: bool = True,
        prompt: str = _PLACE,
    ) -> Instructions:
        """From a model's folder with `tokenizer.json`, or with `vocab.json` and `merges.txt` (BART's byte pairs).

        ValueError when the folder has neither.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            text = _byte_pairs(folder / "vocab.json", folder / "merges.txt")
        else:
            found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
            raise ValueError(
                f"tokenizer: expected tokenizer.json, or vocab.json and merges.txt, in {folder}, got {found}; "
                "download the tokenizer's files beside the weights"
            )
        return cls(text, max_tokens, pad_id, add_special_tokens, prompt)


def _byte_pairs(vocab: Path, merges: Path) -> str:
    """The byte-level tokenizer of RoBERTa and BART as one text, `<s>` and `</s>` around what it encodes."""
    ids = json.loads(vocab.read_text(encoding="utf-8"))
    missing = [token for token in _SPECIAL if token not in ids]
    if missing:
        raise ValueError(f"{vocab}: expected the special tokens {list(_SPECIAL)}, got none named {missing}")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    # The mask alone takes the space in front of it, as when it was trained.
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", special=True) for token in _SPECIAL])
    text: str = tokenizer.to_str()
    return text

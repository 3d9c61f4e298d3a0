"""Instructions as tokens: one length for all, nothing cut, the same ids from every published form."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import RobertaTokenizer

from policies.backbones.instructions import Instructions

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MERGES = [("l", "i"), ("li", "f"), ("lif", "t"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]


def vocabulary():
    """BART's layout in small: special tokens, then every byte, then what pairs merge into."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
    return {word: number for number, word in enumerate(words)}


def tokenizer_json(change=lambda tokenizer: None):
    tokenizer = Tokenizer(models.BPE(vocabulary(), MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    change(tokenizer)
    return tokenizer.to_str()


def ids_of(*words):
    vocab = vocabulary()
    return [vocab[word] for word in words]


def test_every_instruction_has_the_same_length_and_its_padding_on_the_right():
    ids, keep = Instructions(tokenizer_json(), 8, pad_id=1).encode(["lift the", "lift"])
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == [*ids_of("<s>", "lift", "Ġthe", "</s>"), 1, 1, 1, 1]
    assert ids[1].tolist() == [*ids_of("<s>", "lift", "</s>"), 1, 1, 1, 1, 1]
    assert keep.dtype == torch.bool
    assert keep.sum(1).tolist() == [4, 3]
    assert all((one[: int(one.sum())]).all() for one in keep)


def test_marks_around_the_text_and_a_prompt_are_choices():
    bare = Instructions(tokenizer_json(), 8, 1, add_special_tokens=False)
    assert bare.encode(["lift"])[0][0, :2].tolist() == [*ids_of("lift"), 1]
    prompted = Instructions(tokenizer_json(), 8, 1, add_special_tokens=False, prompt="lift{instruction} the")
    assert prompted.encode([" the"])[0][0, :4].tolist() == [*ids_of("lift", "Ġthe", "Ġthe"), 1]
    # Braces in an instruction are words like others.
    assert prompted.encode(["{}"])[1].sum() == 4


def test_as_long_as_can_be_fits_and_nothing_is_cut():
    fits = Instructions(tokenizer_json(), 4, 1)
    assert fits.encode(["lift the"])[1].all()
    with pytest.raises(ValueError, match=r"1 to 3 tokens with its prompt, got 4: 'lift the'; .*max_text_tokens"):
        Instructions(tokenizer_json(), 3, 1).encode(["lift", "lift the"])


def test_what_a_published_file_says_of_cutting_and_padding_does_not_count():
    def cut_and_padded(tokenizer):
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(direction="left", pad_id=1, pad_token="<pad>", length=6)

    changed = Instructions(tokenizer_json(cut_and_padded), 8, 1)
    plain = Instructions(tokenizer_json(), 8, 1)
    assert changed.json == plain.json
    for mine, theirs in zip(changed.encode(["lift the lift"]), plain.encode(["lift the lift"]), strict=True):
        assert torch.equal(mine, theirs)


def test_it_comes_back_from_its_text_and_from_a_copy():
    first = Instructions(tokenizer_json(), 8, 1)
    assert first.vocab_size == len(vocabulary())
    for again in (Instructions(first.json, 8, 1), copy.deepcopy(first)):
        assert again.json == first.json
        assert torch.equal(again.encode(["lift the"])[0], first.encode(["lift the"])[0])


def test_both_published_forms_give_the_ids_of_transformers(tmp_path):
    """`tokenizer.json`, and BART's older `vocab.json` with `merges.txt`, for words, bytes and special tokens."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES)])
    (tmp_path / "two" / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    theirs = RobertaTokenizer(vocab=vocabulary(), merges=MERGES)
    for folder in ("one", "two"):
        mine = Instructions.from_folder(tmp_path / folder, 40, 1)
        assert mine.vocab_size == len(vocabulary())
        for text in ("lift the lift", " Hello,  wörld! 7", "a<mask>b</s>c"):
            ids, keep = mine.encode([text])
            assert ids[keep].tolist() == theirs(text)["input_ids"], (folder, text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Instructions(tokenizer_json(), 8, 1).encode([""]), "expected some words, got ''"),
        (lambda: Instructions(tokenizer_json(), 8, 1).encode(["lift", " \n"]), "expected some words, got"),
        (lambda: Instructions("{}", 8, 1), "expected the text of a tokenizer.json"),
        (lambda: Instructions(tokenizer_json(), 0, 1), "max_text_tokens: expected at least 1, got 0"),
        (lambda: Instructions(tokenizer_json(), 8, 1, prompt="go"), "{instruction} in it once, got 'go'"),
        (lambda: Instructions.from_folder("no such folder", 8, 1), "tokenizer.json, or vocab.json and merges.txt"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_files_that_cannot_be_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"in .*, got \[\]; download"):
        Instructions.from_folder(tmp_path, 8, 1)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(ValueError, match=r"got \['vocab.json'\]"):
        Instructions.from_folder(tmp_path, 8, 1)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="special tokens"):
        Instructions.from_folder(tmp_path, 8, 1)

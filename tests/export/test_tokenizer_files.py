from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from support.small_checkpoint import END, write
from support.transformers_version import needs_transformers_4
from transformers import AutoTokenizer

from hgt_infer.errors import ModelFormatError
from hgt_infer.export.checkpoint import read_checkpoint

TEXTS = [
    "",
    "My dream is",
    f"{END}My dream is{END}{END} to be",
    f" {END} x {END}",
    "日本 🦙 \t\n  modern 1234 <pad> [NAME]  end",
    "[NAME]<pad>the theme",
]
AT = {"content": "[NAME]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": True}
TOKENIZER_LAYOUTS: dict[str, dict[str, object]] = {
    "vocabulary alone": {},
    "2021": {
        "special_tokens_map.json": {"bos_token": END, "eos_token": END, "unk_token": END},
        "tokenizer_config.json": {
            "unk_token": END,
            "bos_token": END,
            "eos_token": END,
            "add_prefix_space": False,
            "model_max_length": 1024,
            "special_tokens_map_file": None,
            "name_or_path": "gpt2",
            "tokenizer_class": "GPT2Tokenizer",
        },
    },
    "a space before the text": {"tokenizer_config.json": {"add_prefix_space": True}},
    "a token before the text": {"tokenizer_config.json": {"add_bos_token": True}},
    "padding token": {"special_tokens_map.json": {"pad_token": "<pad>"}},
    "token with attributes": {"special_tokens_map.json": {"additional_special_tokens": [AT, "<pad>"]}},
    "added tokens": {"added_tokens.json": {"<pad>": 301, "[NAME]": 300}},
    "added and special": {
        "added_tokens.json": {"<pad>": 301, "[NAME]": 300},
        "special_tokens_map.json": {"pad_token": "<pad>"},
    },
    "tokens by id": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {**AT, "content": END, "lstrip": False, "special": True},
                "300": {**AT, "special": False},
                "301": {**AT, "content": "<pad>", "special": True},
            },
            "pad_token": "<pad>",
        },
        "special_tokens_map.json": {"pad_token": "[IGNORED]"},
    },
}


def assert_tokenizes_as_transformers(folder: Path) -> None:
    mine = read_checkpoint(folder).tokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.is_fast
    for text in TEXTS:
        ids = mine.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        for skip in (True, False):
            assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    assert mine.get_vocab(with_added_tokens=True) == theirs.get_vocab()


@needs_transformers_4
@pytest.mark.parametrize("layout", TOKENIZER_LAYOUTS)
@pytest.mark.parametrize("source", ["vocab.json", "tokenizer.json"])
def test_the_tokenizer_of_a_layout_is_that_of_transformers(folder: Path, layout: str, source: str) -> None:
    if source == "tokenizer.json":
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
            (folder / name).unlink()
    for name, values in TOKENIZER_LAYOUTS[layout].items():
        write(folder / name, values)
    assert_tokenizes_as_transformers(folder)


@needs_transformers_4
@pytest.mark.parametrize(
    ("merges", "tokens"),
    [
        (["b c", "a b"], ["a", "bc"]),
        (["a b", "b c"], ["ab", "c"]),
        (["b c", "a b", "b c"], ["a", "bc"]),  # a merge keeps its first rank
    ],
)
def test_merges_are_applied_in_the_order_of_their_lines(
    folder: Path, merges: list[str], tokens: list[str]
) -> None:
    write(folder / "vocab.json", {token: id_ for id_, token in enumerate([END, "a", "b", "c", "ab", "bc"])})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert read_checkpoint(folder).tokenizer.encode("abc").tokens == tokens
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.is_fast
    assert theirs.tokenize("abc") == tokens


def test_a_special_token_keeps_the_attributes_of_tokenizer_json(folder: Path) -> None:
    fast = tokenizers.Tokenizer.from_str(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    fast.add_tokens([tokenizers.AddedToken("[NAME]", lstrip=True, special=False)])
    fast.save(str(folder / "tokenizer.json"))
    write(folder / "special_tokens_map.json", {"pad_token": "[NAME]"})
    assert_tokenizes_as_transformers(folder)


def test_a_tokenizer_saved_by_transformers_is_read_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["[NAME]"])
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").unlink()
    assert_tokenizes_as_transformers(folder)


def test_a_tokenizer_that_makes_the_library_panic_is_refused(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["continuing_subword_prefix"] = "x" * 50
    write(folder / "tokenizer.json", values)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: expected a tokenizer"):
        read_checkpoint(folder)


def test_ids_beyond_the_vocabulary_of_the_model_are_refused(folder: Path) -> None:
    write(folder / "added_tokens.json", {f"[{number}]": 300 + number for number in range(21)})
    with pytest.raises(ModelFormatError, match="token ids below vocab_size 320, found id 320"):
        read_checkpoint(folder)


def test_an_added_token_with_an_id_that_it_cannot_have_is_refused(folder: Path) -> None:
    write(folder / "added_tokens.json", {"<pad>": 310})
    with pytest.raises(ModelFormatError, match="expected id 310 for '<pad>', found 300"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "no vocab.json"),
        ("merges.txt", None, "no merges.txt"),
        ("vocab.json", "{", "expected JSON"),
        ("vocab.json", '{"a": "x"}', "expected a tokenizer"),
        ("vocab.json", '{"a": -1}', "expected a tokenizer"),
        ("vocab.json", '{"a": 0, "b": 0}', "an id twice"),
        ("merges.txt", "#version\na b c\n", "expected a tokenizer"),
        ("merges.txt", "#version\nqqq zzz\n", "expected a tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "expected a tokenizer"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "evil.Evil"}}', "auto_map"),
        ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}', "BertTokenizer"),
        ("tokenizer_config.json", '{"split_special_tokens": true}', "split_special_tokens"),
        ("tokenizer_config.json", '{"bos_token": 3}', "expected a tokenizer"),
    ],
)
def test_a_damaged_or_foreign_tokenizer_is_refused(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ModelFormatError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"])
def test_a_tokenizer_file_beyond_all_measure_is_refused_unread(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate((64 << 20) + 1)  # a hole: no disk is used
    with pytest.raises(ModelFormatError, match=rf"{name}: expected at most 67108864 bytes"):
        read_checkpoint(folder)

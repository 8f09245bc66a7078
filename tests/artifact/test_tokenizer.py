from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import train_tokenizer
from support.transformers_version import needs_transformers_4
from transformers import GPT2TokenizerFast

from hgt_infer.artifact.tokenizer import Tokenizer, clean_up_tokenization
from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError, PromptError
from hgt_infer.export.tokenizer_files import _build_tokenizer  # the artifact's tokenizer is made by it

CORPUS = [
    "My dream is to be the very model of a modern major general .",
    "I don't know what they're talking about, but it's 2021! Führer Бълг 日本 🦙 ½",
    "the theme there then these those  them   themselves\n\n\tthe end 1234 999",
]


@pytest.fixture(scope="module")
def small_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vocab.json and merges.txt of a small byte-level BPE."""
    folder = tmp_path_factory.mktemp("bpe")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        CORPUS * 4, vocab_size=420, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.save_model(str(folder))
    return folder


def save(folder: Path, output: Path) -> Tokenizer:
    built = _build_tokenizer(folder, {})
    built.add_special_tokens(["<|endoftext|>"])
    built.save(str(output))
    return Tokenizer(output)


@pytest.fixture(scope="module")
def pair(small_bpe: Path) -> tuple[Tokenizer, Any]:
    ours = save(small_bpe, small_bpe / "tokenizer.json")
    return ours, GPT2TokenizerFast(str(small_bpe / "vocab.json"), str(small_bpe / "merges.txt"))


@pytest.fixture(scope="module")
def gpt2(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return save(reference_data / "tokenizer", tmp_path_factory.mktemp("gpt2") / "tokenizer.json")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tests' tokenizer with added tokens of every kind behind its own."""
    built = train_tokenizer(400)
    built.add_tokens(["[NAME]", "日本", "café", "a b", "Ġx", "éĠ日"])
    built.add_special_tokens(["<pad>", "<é>"])
    built.add_tokens([tokenizers.AddedToken("behind", special=False)])
    path = tmp_path_factory.mktemp("added") / "tokenizer.json"
    built.save(str(path))
    return Tokenizer(path)


# Text of the alphabet's corners, with the special token and BPE's own byte letters inside.
texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "<|endoftext|>",
                "<|endof",
                "text|>",
                " ",
                "  ",
                "\n",
                "\t\r\n",
                "Ġ",
                "'s",
                " n't",
                "\x00",
                "é",
                "é",
            ]
        ),
        st.sampled_from(["🦙", "👨‍👩‍👧", "½", "日本", "\u200b", "\ufeff", "\U0010ffff", " the", "ﬁ"]),
    ),
    max_size=12,
).map("".join)


def test_the_first_golden_cases_are_encoded_alike(gpt2: Tokenizer, reference_data: Path) -> None:
    folder = reference_data / "tokenizer"
    content = (folder / "golden_a.inp").read_bytes().decode()  # read_text would change new lines
    *inputs, _ = content.split("\n__ggml_vocab_test__\n")
    outputs = (folder / "golden_a.out").read_text().splitlines()
    assert len(inputs) == len(outputs) == 46
    expected = [[int(token_id) for token_id in line.split()] for line in outputs]
    assert gpt2.encode_batch(inputs) == expected
    assert [gpt2.decode(ids) for ids in expected] == inputs


def test_the_second_golden_cases_are_encoded_alike(gpt2: Tokenizer, reference_data: Path) -> None:
    blocks = (
        (reference_data / "tokenizer" / "golden_b.txt").read_text(encoding="utf-8").split("EncodingName: ")
    )
    cases = [block.removeprefix("r50k_base\nSample: ") for block in blocks if block.startswith("r50k_base\n")]
    assert len(cases) > 50
    for case in cases:
        sample, encoded = case.rstrip().rsplit("\nEncoded: ", 1)
        assert gpt2.encode(sample) == ast.literal_eval(encoded), sample


def test_the_special_token_inside_a_text_is_one_token(gpt2: Tokenizer) -> None:
    assert gpt2.encode("<|endoftext|>My dream is<|endoftext|>") == [50256, 3666, 4320, 318, 50256]
    assert gpt2.decode([50256, 3666, 4320, 318, 50256]) == "My dream is"
    assert gpt2.decode([50256, 3666], skip_special_tokens=False) == "<|endoftext|>My"


def test_an_incomplete_character_is_decoded_as_the_replacement_character(gpt2: Tokenizer) -> None:
    llama = gpt2.encode("🦙")
    assert len(llama) > 1
    assert gpt2.decode(llama[:1]) == "\ufffd"
    assert gpt2.decode(llama) == "🦙"


@needs_transformers_4
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts)
def test_any_text_is_encoded_and_decoded_as_transformers_does(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.encode_batch([text, "x"])[0] == ids
    for skip in (True, False):
        decoded = ours.decode(ids, skip_special_tokens=skip)
        assert decoded == theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        cleaned = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=True)
        assert clean_up_tokenization(decoded) == cleaned
    assert ours.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 500), max_size=20))
def test_any_ids_are_decoded_as_transformers_does(pair: tuple[Tokenizer, Any], ids: list[int]) -> None:
    ours, theirs = pair
    assert ours.decode(ids) == theirs.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@needs_transformers_4
@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=" .?!,'ntmsvera", max_size=40))
def test_clean_up_equals_that_of_transformers(text: str) -> None:
    assert clean_up_tokenization(text) == GPT2TokenizerFast.clean_up_tokenization(text)


@pytest.mark.parametrize("text", ["a\ud800b", "\udc00"])
def test_a_lone_surrogate_is_refused_with_its_place(pair: tuple[Tokenizer, Any], text: str) -> None:
    place = 1 if text[0] == "a" else 0
    with pytest.raises(PromptError, match=rf"character {place} is the lone surrogate U\+D[8C]00"):
        pair[0].encode(text)
    with pytest.raises(PromptError, match="surrogate"):
        pair[0].encode_batch(["fine", text])


def test_a_text_of_another_type_is_a_type_error(pair: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(TypeError, match="must be a str; got bytes"):
        pair[0].encode(b"bytes")  # type: ignore[arg-type]


def test_empty_input_gives_empty_output(pair: tuple[Tokenizer, Any]) -> None:
    assert pair[0].encode("") == []
    assert pair[0].encode_batch([]) == []
    assert pair[0].decode([]) == ""


def test_a_negative_id_is_refused(pair: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(ParameterError, match="got -1 to 3"):
        pair[0].decode([3, -1])


def joined(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of the ids, from the bytes of each."""
    token_bytes = tokenizer.token_bytes
    data = b"".join(token_bytes[token_id] for token_id in ids if token_id < len(token_bytes))
    return data.decode("utf-8", "replace")


@settings(max_examples=400)
@given(ids=st.lists(st.integers(0, 420), max_size=20))
def test_the_bytes_of_any_tokens_joined_are_their_text(added: Tokenizer, ids: list[int]) -> None:
    assert joined(added, ids) == added.decode(ids)


def test_each_token_has_the_bytes_of_its_text(added: Tokenizer, gpt2: Tokenizer) -> None:
    assert joined(added, [len(added.token_bytes) - 1]) == "behind"
    for tokenizer in (added, gpt2):
        for token_id in range(len(tokenizer.token_bytes)):
            assert joined(tokenizer, [token_id]) == tokenizer.decode([token_id])
    assert len(gpt2.token_bytes) == 50257
    assert gpt2.token_bytes[50256] == b""
    llama = gpt2.encode("🦙")
    assert b"".join(gpt2.token_bytes[token_id] for token_id in llama) == "🦙".encode()


def test_ids_that_the_vocabulary_leaves_out_have_no_bytes(tmp_path: Path) -> None:
    built = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 1, "Ġ": 4}, []))
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_tokens(["b"])  # 2, the number of tokens
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.token_bytes == [b"", b"a", b"b", b"", b" "]
    assert joined(tokenizer, [0, 1, 2, 3, 4, 5]) == tokenizer.decode([0, 1, 2, 3, 4, 5]) == "ab "


def test_an_added_token_that_takes_another_ones_id_has_its_bytes(tmp_path: Path) -> None:
    built = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "c": 2}, []))
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_tokens(["b"])  # 2 again
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.decode([2]) == "b"
    assert tokenizer.token_bytes == [b"a", b"", b"b"]


def test_tokens_of_another_decoder_have_no_bytes(small_bpe: Path, tmp_path: Path) -> None:
    built = _build_tokenizer(small_bpe, {})
    built.decoder = tokenizers.decoders.WordPiece()
    built.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFormatError, match="expected a ByteLevel decoder, found: WordPiece"):
        _ = Tokenizer(tmp_path / "tokenizer.json").token_bytes


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(text=texts)
def test_no_token_covers_more_characters_than_the_longest_token(
    pair: tuple[Tokenizer, Any], added: Tokenizer, text: str
) -> None:
    for tokenizer in (pair[0], added):
        assert len(text) <= len(tokenizer.encode(text)) * tokenizer.max_token_length


def test_the_longest_token_of_gpt2_covers_as_many_bytes_as_it_says(gpt2: Tokenizer) -> None:
    longest = max(gpt2.token_bytes, key=len)
    assert len(gpt2.encode(longest.decode())) == 1
    assert len(longest) == gpt2.max_token_length


def test_truncation_and_padding_of_the_file_are_switched_off(small_bpe: Path, tmp_path: Path) -> None:
    built = _build_tokenizer(small_bpe, {})
    built.enable_truncation(2)
    built.enable_padding(length=9, pad_id=0)
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    long, short = tokenizer.encode_batch(["My dream is to be", "a"])
    assert tokenizer.decode(long) == "My dream is to be"
    assert len(short) == 1


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ModelNotFoundError, match=str(path)):
        Tokenizer(path)
    path.write_text('{"version": "1.0"')
    with pytest.raises(ModelFormatError, match=str(path)):
        Tokenizer(path)

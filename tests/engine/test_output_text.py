"""The text of a sequence token by token, held against brute force over all of its bytes."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from hgt_infer.engine.output_text import OutputText

# Letters that stop strings are made of, parts of their characters, and bytes that are in no character.
PIECES = [
    b"a",
    b"b",
    b"aa",
    b"e",
    "é".encode(),
    "e\u0301".encode(),
    b"\xcc",
    b"\x81",
    "🤖".encode(),
    b"\xf0\x9f",
    b"\xa4\x96",
    b"\xf0",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xff",
]
# Two letters make stop strings that overlap each other and themselves.
pieces = st.one_of(
    st.text("ab", max_size=6).map(str.encode), st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join)
)
stops = st.one_of(
    st.lists(st.text("ab", min_size=1, max_size=6), max_size=4).map(tuple),
    st.lists(st.text("abeé\u0301🤖", min_size=1, max_size=4), max_size=4).map(tuple),
)


def run(
    tokens: list[bytes],
    stop: tuple[str, ...],
    *,
    include_stop: bool = False,
    may_stop: list[bool] | None = None,
) -> tuple[str | None, str]:
    """The stop string that ended the tokens, and their text."""
    output_text = OutputText(tokens, stop, include_stop)
    for token_id in range(len(tokens)):
        found = output_text.append(token_id, may_stop=may_stop is None or may_stop[token_id])
        if found is not None:
            return found, output_text.text
    output_text.finish()
    return None, output_text.text


def decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def first_match(
    tokens: list[bytes], may_stop: list[bool], stop: tuple[str, ...]
) -> tuple[int, int, str] | None:
    """The token that ends in a stop string first, the byte behind it, and the stop string: byte by byte."""
    data = b""
    for token_id, token in enumerate(tokens):
        for byte in token:
            data += bytes([byte])
            ending = [string for string in stop if data.endswith(string.encode())]
            if ending and may_stop[token_id]:
                return token_id, len(data), max(ending, key=lambda string: len(string.encode()))
    return None


def final_text(data: bytes, stop: tuple[str, ...]) -> str:
    """What is the same whatever follows, and cannot be part of a stop string."""
    for start in range(len(data)):
        end = data[start:]
        if any(string.encode().startswith(end) and string.encode() != end for string in stop):
            return decode(data[:start])
    following = [b"", b"a"]
    following += [
        bytes([byte]) + b"\x80" * n for byte in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF) for n in range(3)
    ]
    letters = zip(*(decode(data + more) for more in following), strict=False)
    return "".join(choices[0] for choices in takewhile(lambda choices: len(set(choices)) == 1, letters))


@settings(max_examples=500)
@given(tokens=st.lists(st.tuples(pieces, st.booleans()), max_size=12), stop=stops, include_stop=st.booleans())
@example(tokens=[(b"a", True), (b"ab", True)], stop=("aa", "aaa", "aab"), include_stop=False)
@example(tokens=[(b"aa", False), (b"b", True)], stop=("aa", "aaa", "aab"), include_stop=False)
@example(tokens=[(b"aaab", True)], stop=("aab",), include_stop=False)
@example(tokens=[(b"xaa", True), (b"bz", True)], stop=("xaaby", "aac", "abz"), include_stop=False)
@example(tokens=[(b"ab", False), (b"c", True)], stop=("ab", "bc"), include_stop=False)
@example(tokens=[(b"\xf0\x9f", True), (b"ab", True)], stop=("ab",), include_stop=False)
def test_every_step_equals_brute_force(
    tokens: list[tuple[bytes, bool]], stop: tuple[str, ...], include_stop: bool
) -> None:
    data_of, may_stop = [token for token, _ in tokens], [may for _, may in tokens]
    expected = first_match(data_of, may_stop, stop)
    output_text, taken, data = OutputText(data_of, stop, include_stop), "", b""
    for token_id, token in enumerate(data_of):
        found = output_text.append(token_id, may_stop=may_stop[token_id])
        data += token
        taken += output_text.take()
        assert taken == output_text.text
        if expected is not None and token_id == expected[0]:
            _, end, string = expected
            assert found == string
            assert taken == decode(data[: end if include_stop else end - len(string.encode())])
            output_text.finish()
            assert output_text.take() == ""
            return
        assert found is None
        assert taken == final_text(data, stop)
    assert expected is None
    output_text.finish()
    assert taken + output_text.take() == output_text.text == decode(data)
    assert output_text.take() == ""


@given(data=st.data(), stop=stops, include_stop=st.booleans())
def test_the_result_does_not_depend_on_the_borders_of_the_tokens(
    data: st.DataObject, stop: tuple[str, ...], include_stop: bool
) -> None:
    output = data.draw(st.lists(pieces, max_size=12).map(b"".join))
    cuts = sorted(
        data.draw(st.lists(st.integers(0, len(output)), max_size=12))
    )  # twice the same: an empty token
    tokens = [output[start:end] for start, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    assert run(tokens, stop, include_stop=include_stop) == run([output], stop, include_stop=include_stop)


@given(tokens=st.lists(st.one_of(st.binary(max_size=6), pieces), max_size=20))
def test_any_bytes_are_decoded_as_the_tokenizers_library_does(tokens: list[bytes]) -> None:
    letters = bytes_to_unicode()
    expected = ByteLevel().decode(["".join(letters[byte] for byte in token) for token in tokens])
    assert run(tokens, ()) == (None, expected)
    assert run(tokens, ("\U0010fffd\U0010fffd",)) == (None, expected)


def test_the_match_that_ends_first_counts_though_another_one_begins_before_it() -> None:
    assert run([b"xabcd"], ("abcd", "bc")) == ("bc", "xa")


def test_of_matches_with_one_end_the_longest_counts() -> None:
    assert run([b"xabc"], ("c", "abc", "bc")) == ("abc", "x")


def test_a_match_inside_one_token_drops_the_rest_of_it() -> None:
    assert run([b"one. two", b" three"], (".",)) == (".", "one")
    assert run([b"one. two", b" three"], (".",), include_stop=True) == (".", "one.")


def test_a_stop_string_of_several_characters_may_span_tokens_inside_its_characters() -> None:
    family = "👨‍👩‍👧"
    tokens = [bytes([byte]) for byte in f"x{family}y".encode()]
    assert run(tokens, (family,)) == (family, "x")
    assert run(tokens, (family,), include_stop=True) == (family, "x" + family)


def test_an_incomplete_character_before_a_stop_string_becomes_the_replacement_character() -> None:
    assert run([b"x\xf0\x9f", b"\xa4", b"END"], ("END",)) == ("END", "x\ufffd")


def test_a_replacement_character_is_matched_by_its_own_bytes_only() -> None:
    assert run([b"x\xff"], ("\ufffd",)) == (None, "x\ufffd")
    assert run(["x\ufffd".encode()], ("\ufffd",)) == ("\ufffd", "x")


def test_a_token_that_must_not_stop_may_begin_a_stop_string() -> None:
    assert run([b"aEN", b"D"], ("END",), may_stop=[False, True]) == ("END", "a")
    assert run([b"aEND", b"b"], ("END",), may_stop=[False, True]) == (None, "aENDb")


def test_a_match_that_did_not_count_is_given_out() -> None:
    output_text = OutputText([b"aEND", b"b"], ("END",))
    output_text.append(0, may_stop=False)
    assert output_text.take() == "aEND"


def test_what_may_begin_a_stop_string_is_held_back_until_it_cannot() -> None:
    output_text = OutputText([b"x\n", b"\n", b"y"], ("\n\n\n",))
    seen = []
    for token_id in range(3):
        output_text.append(token_id)
        seen.append(output_text.take())
    assert seen == ["x", "", "\n\ny"]


def test_ids_behind_the_vocabulary_have_no_text() -> None:
    output_text = OutputText([b"a"], ("ab",))
    for token_id in (0, 1, 50_000):
        assert output_text.append(token_id) is None
    output_text.finish()
    assert output_text.take() == "a"


def test_samples_with_the_same_stop_strings_do_not_disturb_each_other() -> None:
    tokens = [b"E", b"N", b"D", b"x"]
    first, second = OutputText(tokens, ("END",)), OutputText(tokens, ("END",))
    assert [first.append(0), second.append(3), first.append(1), second.append(1)] == [None] * 4
    assert first.append(2) == "END"
    assert second.append(2) is None
    assert (first.text, second.text) == ("", "xND")

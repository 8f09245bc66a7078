from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TweetFileError
from training.tweets import json_stream
from training.tweets.json_stream import JsonValues

TEXT = 'a "quoted", {"text": [1, 2]}, \\ 🪿 \u2028 ü'


def values(content: str | bytes, size: int = 1 << 20) -> list[object]:
    content = content.encode() if isinstance(content, str) else content
    return list(JsonValues((content[at : at + size] for at in range(0, len(content), size)), "file"))


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "LOOK_AHEAD_BYTES", 64)


RECORDS = [
    {"text": TEXT * (number % 3), "number": number, "list": [{"text": number}, {"text": []}], "none": None}
    for number in range(40)
]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("size", [1, 5, 64, 1000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_", [True, False])
def test_a_list_does_not_depend_on_where_chunks_end(size: int, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(RECORDS, indent=indent, ensure_ascii=ascii_)
    assert values(text, size) == RECORDS
    assert values(f"window.YTD.tweets.part0 = {text};\n", size) == RECORDS


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("size", [1, 5, 64, 1000])
def test_lines_do_not_depend_on_where_chunks_end(size: int) -> None:
    assert values("\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS), size) == RECORDS
    assert values("\n".join(json.dumps(record, indent=1) for record in RECORDS), size) == RECORDS


LEAVES = st.one_of(st.text(max_size=9), st.integers(-(1 << 63), (1 << 64) - 1), st.booleans(), st.none())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), max_size=6),
    st.sampled_from([None, 1]),
    st.integers(1, 200),
)
def test_any_list_of_objects_is_what_json_reads(
    records: list[dict[str, object]], indent: int | None, size: int
) -> None:
    assert values(json.dumps(records, indent=indent), size) == records


@pytest.mark.parametrize("name", ["tweets", "orderedItems", "records"])
def test_a_list_in_the_first_object_comes_element_by_element(name: str) -> None:
    chunks = iter([f'{{"id": {{"a": [1]}}, "{name}": [{{"a": 1}}, '.encode(), b'{"a": 2}], "last": 3}'])
    records = iter(JsonValues(chunks, "file"))
    assert next(records) == {"a": 1}
    assert list(records) == [{"a": 2}]


@pytest.mark.parametrize("size", [1, 5, 100])
def test_several_assignments_follow_each_other(size: int) -> None:
    assert values('window.a = [{"b": 1}];\nwindow.c = [{"b": 2}]\n', size) == [{"b": 1}, {"b": 2}]


def test_half_an_emoji_does_not_stop_lists_or_lines() -> None:
    record = '{"text": "cut \\ud83e"}'
    expected = [{"text": "a"}, {"text": "cut \ud83e"}, {"text": "a"}]
    assert values(f'[{{"text": "a"}}, {record}, {{"text": "a"}}]') == expected
    assert values(f'{{"text": "a"}}\n{record}\n{{"text": "a"}}') == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, ', "Expecting value at line 1 column 12"),
        ('[{"a": 1}\n{"a": 2}]', "Expecting ',' or '\\]' at line 2 column 1"),
        ('[{"a": 1},,{"a": 2}]', "Expecting value at line 1 column 11"),
        ('[\n{"a": 1},\n{"a": 2},\n{"a": }]', "Expecting value at line 4 column 7, found '}\\]'"),
        ('{"a": 1}\n{"a": 2}\n{"a": b}\n', "Expecting value at line 3 column 7"),
        ('{"a": 1}\n{"a": NaN}\n', "NaN is no number of JSON at line 2"),
        ('[\n\n{"a": -Infinity}]', "-Infinity is no number of JSON at line 3"),
        ('{"a": 1}\nhello\n', "expected `\\[` or `{` at line 2 column 1, found 'hello"),
        ('{"a": 1,}', "Expecting a field name in double quotes at line 1"),
        ('{"a" 1}', "Expecting ':' at line 1"),
        ('{"a": 1 "b"}', "Expecting ',' or '}' at line 1"),
        ('{"a": "never closed\n', "Invalid control character at at line 1|Invalid control"),
        ('[{"a": "never closed', "Unterminated string starting at"),
        ('[{"a": ' + "[" * 100_000, "nested too deeply at line 1"),
        ('{"a": ' + '{"a": ' * 100_000, "nested too deeply at line 1"),
        ('[{"a": ' + "9" * 5000 + "}]", "the limit \\(4300 digits\\) .* at line 1"),
        ('[{"a": "\x00"}]', "Invalid control character"),
        (b'[{"a": "ok"},\n{"a": "caf\xe9"}]', "found byte 0xe9 in line 2 at offset 24"),
        (b'{"a": "ok"}\n{"a": "caf\xe9"}\n', "found byte 0xe9 in line 2 at offset 22"),
        (b'[1,\n{"a": "\xc3', "found byte 0xc3 in line 2 at offset 11"),
        (b'[{"a": 1}]\n\xc3', "found byte 0xc3 in line 2 at offset 11"),
    ],
)
def test_what_is_broken_is_named_with_its_line(content: str | bytes, message: str) -> None:
    with pytest.raises(TweetFileError, match=message) as error:
        values(content)
    assert str(error.value).startswith("file: ")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "start", ["[", "{", '[{"a": "', '{"a": "', '{"a": 1}\n{"a": "', '{"tweets": [{"a": "']
)
def test_a_value_that_never_ends_is_refused(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE_BYTES", 1 << 20)

    def for_ever() -> Iterator[bytes]:
        yield start.encode()
        filler = (
            (b'"b": "' + b"x" * 500 + b'", ') * 128
            if start == "{"
            else b'{"a": [' + b"1," * 30_000
            if start == "["
            else b"x" * 65_536
        )
        while True:
            yield filler

    with pytest.raises(TweetFileError, match=r"1 MiB|Expecting|nested"):
        list(JsonValues(for_ever(), "file"))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"n": n, "text": "x" * n} for n in range(40)], indent=0).replace(",\n{", ",\n\n{"),
        "\n".join(json.dumps({"n": n}) for n in range(40)),
        "\n".join(json.dumps({"n": n}, indent=2) for n in range(40)),
        json.dumps({"x": 1, "tweets": [{"n": n} for n in range(40)]}, indent=2),
    ],
    ids=["list", "lines", "values-over-lines", "list-in-object"],
)
@pytest.mark.parametrize("size", [16, 100_000])
def test_the_line_of_each_value_is_known(content: str, size: int) -> None:
    records = JsonValues((content.encode()[at : at + size] for at in range(0, len(content), size)), "file")
    lines = content.split("\n")
    for number, _ in enumerate(records):
        here = "\n".join(lines[records.line - 1 : records.line + 2])
        assert here.startswith(("{", "  {", "    {"))
        assert f'"n": {number}' in here

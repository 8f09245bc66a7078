from __future__ import annotations

import io
import sys

import pytest

from training.card.reading_report import cut, print_report

USER = {
    "handle": "goose",
    "counts": {"downloaded": 2974, "retweets": 94, "short": 693, "replies": 0, "kept": 2187},
    "num_duplicates": 12,
    "num_replies": 345,
    "per_year": {"2019": 1200, "2020": 1773, "unknown": 1},
}


def test_each_count_is_a_line_of_label_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([USER, {**USER, "handle": "gull", "per_year": {}}], {"goose": ["soup with bread"]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "@goose"
    for label, number in [
        ("tweets downloaded", "2974"), ("retweets", "94"), ("short", "693"), ("replies dropped", "0"),
        ("tweets kept", "2187"), ("replies read", "345"), ("repeated tweets", "12"),
    ]:  # fmt: skip
        assert sum(line.split() == [*label.split(), number] for line in lines) == 2
    assert [line.split()[:2] for line in lines if "█" in line] == [
        ["2019", "1200"],
        ["2020", "1773"],
        ["unknown", "1"],
    ]
    assert "  1  soup with bread" in lines


def test_no_line_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_report([USER], {"goose": ["honk " * 40, "霧" * 40, "🪿" * 40]})
    out = capsys.readouterr().out
    assert max(len(line) + line.count("霧") + line.count("🪿") for line in out.splitlines()) <= 40
    assert out.count("…") == 3
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("fog", 3, "fog"),
        ("fogs", 3, "fo…"),
        ("霧霧", 4, "霧霧"),
        ("霧霧霧", 4, "霧…"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
        ("one\ntwo\tthree", 80, "one two three"),
        ("\x1b[31mred\u202e", 80, "[31mred"),
        ("", 5, ""),
    ],
)
def test_a_text_is_cut_by_the_columns_that_it_takes(text: str, width: int, expected: str) -> None:
    assert cut(text, width) == expected


def test_a_stream_without_all_characters_gets_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_report([USER], {"goose": ["霧 soup"]})
    stream.seek(0)
    assert "  1  ? soup" in stream.read()

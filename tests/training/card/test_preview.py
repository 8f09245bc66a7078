from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw

from training.card.language import detect_language
from training.card.lettering import Lettering, wrap
from training.card.preview import draw_bot, draw_pipeline, draw_preview, sample_predictions

USERS = [{"handle": "goose_lantern", "name": "Goose & Lantern"}]


def preview(
    path: Path, predictions: list[str], users: list[dict[str, str | None]] | None = None
) -> Image.Image:
    draw_preview(path, predictions, prompt="My dream is", users=users or USERS)
    return Image.open(path).convert("RGB")


def differ(first: Image.Image, second: Image.Image) -> tuple[int, int, int, int] | None:
    """The box in which two pictures differ."""
    return ImageChops.difference(first, second).getbbox()


def test_five_predictions_are_drawn_one_below_the_other(tmp_path: Path) -> None:
    texts = [f"to count {number} spoons" for number in range(5)]
    picture = preview(tmp_path / "a.png", texts)
    assert picture.size == (1200, 630)
    tops = []
    for number in range(5):
        changed = texts.copy()
        changed[number] = "to keep the lamp burning"
        box = differ(picture, preview(tmp_path / "b.png", changed))
        assert box is not None
        tops.append(box[1])
        assert box[0] > 56
        assert box[2] < 1144
    assert tops == sorted(tops)
    assert min(after - before for before, after in itertools.pairwise(tops)) > 60
    assert differ(picture, preview(tmp_path / "b.png", [*texts, "a sixth"])) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 2_000,
        "word " * 500,
        "\u202eright to left \u05d0\u05d1\u05d2 \u0627\u0644",
        "\x00\x07 control",
        "\ud83e lone",
        "🪿🏳️\u200d⚧️ 灯台",
    ],
)
def test_any_text_stays_within_its_card(tmp_path: Path, text: str) -> None:
    box = differ(preview(tmp_path / "a.png", ["", "", ""]), preview(tmp_path / "b.png", ["", text, ""]))
    if box is not None:
        assert box[0] > 56
        assert box[1] > 134 + 84
        assert box[2] < 1144 - 16
        assert box[3] < 134 + 84 + 10 + 84


def test_long_handles_and_several_people_fit(tmp_path: Path) -> None:
    users: list[dict[str, str | None]] = [
        {"handle": "x" * 50, "name": None},
        {"handle": "y" * 50, "name": "Y " * 99},
    ]
    picture = preview(tmp_path / "a.png", ["a", "b"], users)
    right = picture.crop((1145, 12, 1200, 120))
    assert right.getcolors() == [(right.width * right.height, right.getpixel((0, 0)))]


def test_the_bot_is_the_handles_own(tmp_path: Path) -> None:
    pictures = []
    for name, handle in (("a", "goose"), ("b", "goose"), ("c", "gull")):
        draw_bot(tmp_path / f"{name}.png", handle)
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (400, 400)


def test_the_pipeline_is_a_picture_of_its_size(tmp_path: Path) -> None:
    draw_pipeline(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1200, 300)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


WORDS = st.lists(st.text("abcdef", min_size=1, max_size=40), min_size=1, max_size=30)


@given(WORDS, st.integers(60, 600), st.integers(1, 4))
def test_lines_fit_and_keep_the_words_in_order(words: list[str], width: int, num_lines: int) -> None:
    lettering = Lettering(20)
    lines = wrap([(word, lettering) for word in words], width, num_lines)
    assert 1 <= len(lines) <= num_lines
    for line in lines:
        assert lettering.length(" ".join(word for word, _ in line)) <= width + 1
    written = "".join(word for line in lines for word, _ in line)
    if written.endswith("…"):
        assert "".join(words).startswith(written[:-1])
    else:
        assert written == "".join(words)


def test_characters_without_a_glyph_are_left_out() -> None:
    lettering = Lettering(20)
    assert lettering.drawable("a\U000f0000b \udc80\x00 c") == "a b c"
    assert lettering.drawable("Привет, ça va…") == "Привет, ça va…"
    # Of a doctor (a person, a skin, a staff) not the staff alone, of a red heart the heart.
    assert lettering.drawable("a \U000f0000\U0001f3fd\u200d\u2695\ufe0f b \u2665\ufe0f") == "a b \u2665"


def test_a_name_that_no_font_has_gives_way_to_the_handle(tmp_path: Path) -> None:
    pictures = []
    for name in ("\U000f0000\U000f0001", None, "goose"):
        draw_preview(
            tmp_path / "preview.png", [], prompt="a", users=[{"handle": "goose_lantern", "name": name}]
        )
        pictures.append((tmp_path / "preview.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_drawn_text_ends_where_it_was_measured() -> None:
    lettering = Lettering(20, bold=True)
    draw = ImageDraw.Draw(Image.new("RGB", (200, 40)))
    assert lettering.draw(draw, 10, 30, "a föhn", "white") == pytest.approx(10 + lettering.length("a föhn"))


def test_predictions_follow_the_seed_and_leave_nothing_behind(checkpoint: Path) -> None:
    before = sorted(checkpoint.rglob("*"))
    predictions = sample_predictions(checkpoint, "abc", num=3, seed=5)
    assert len(predictions) == 3
    assert all(text == text.strip() and "\n" not in text for text in predictions)
    assert sample_predictions(checkpoint, "abc", num=3, seed=5) == predictions
    assert sample_predictions(checkpoint, "abc", num=3, seed=6) != predictions
    assert sorted(checkpoint.rglob("*")) == before


def test_the_language_is_that_of_most_tweets() -> None:
    english = ["The ferry was late again and nobody was surprised."] * 3
    german = ["Der Wind kommt heute aus dem Osten und die Suppe ist fertig."] * 2
    assert detect_language(english + german) == "en"
    assert detect_language(german) == "de"
    assert detect_language(english[:1] + german[:1]) is None
    assert detect_language(["honk", "…"]) is None
    assert detect_language([]) is None

"""Text in pictures: measured, wrapped and drawn, in fonts that have its characters.

DejaVu Sans comes with matplotlib; what it has not is looked for in the system's fonts, and left out where
none has it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

_JOINED = re.compile(r"\S(?:\u200d\S)+")
# How a sign is shown: in colour or not, in which skin.
_VARIANTS = dict.fromkeys((0xFE0E, 0xFE0F, *range(0x1F3FB, 0x1F400)))


class Lettering:
    """A font at one size, with others behind it for the characters that it has not.

    Args:
        size: in pixels.
        bold: of DejaVu Sans; other fonts are as they are.
    """

    def __init__(self, size: int, *, bold: bool = False) -> None:
        self.size = size
        self._bold = bold

    def length(self, text: str) -> float:
        """Return the width of one line of text, in pixels."""
        return sum(self._font(path).getlength(part) for path, part in self._runs(text))

    def draw(self, image: ImageDraw.ImageDraw, x: float, y: float, text: str, fill: str) -> float:
        """Draw one line whose baseline is at y, and return the x at its end."""
        for path, part in self._runs(text):
            image.text((x, y), part, font=self._font(path), fill=fill, anchor="ls")
            x += self._font(path).getlength(part)
        return x

    def drawable(self, text: str) -> str:
        """Return the text on one line without the characters that no font has.

        Of several joined into one sign all are left out where one has to be.
        """

        def has(character: str) -> bool:
            return _file_with(character, self._bold) is not None

        def whole(signs: re.Match[str]) -> str:
            return signs[0] if all(map(has, signs[0][::2])) else " "

        text = _JOINED.sub(whole, text.translate(_VARIANTS))
        kept = (c if c.isspace() or has(c) else " " for c in text)
        return " ".join("".join(kept).split())

    @cached_property
    def _fonts(self) -> dict[Path, ImageFont.FreeTypeFont]:
        return {}

    def _font(self, path: Path) -> ImageFont.FreeTypeFont:
        if path not in self._fonts:
            # The basic layout draws what is given, without a library that machines may have or not.
            self._fonts[path] = ImageFont.truetype(path, self.size, layout_engine=ImageFont.Layout.BASIC)
        return self._fonts[path]

    def _runs(self, text: str) -> list[tuple[Path, str]]:
        default = _dejavu(self._bold)
        files = [(_file_with(c, self._bold) or default, c) for c in text]
        return [(path, "".join(c for _, c in run)) for path, run in groupby(files, key=lambda pair: pair[0])]


def wrap(
    words: Sequence[tuple[str, Lettering]], width: float, num_lines: int
) -> list[list[tuple[str, Lettering]]]:
    """Break words into lines of at most `width` pixels; what does not fit into `num_lines` ends with an
    ellipsis.

    A word that is wider than a line is broken.

    Args:
        words: each with its lettering.
        width: in pixels, over that of a letter.
        num_lines: ≥ 1.
    """
    lines: list[list[tuple[str, Lettering]]] = [[]]
    left = width
    remaining = list(words)
    while remaining:
        word, lettering = remaining.pop(0)
        space = lettering.length(" ") if lines[-1] else 0
        if lettering.length(word) + space <= left:
            lines[-1].append((word, lettering))
            left -= lettering.length(word) + space
        elif lines[-1]:
            if len(lines) == num_lines:
                _end_with_ellipsis(lines[-1], width)
                break
            lines.append([])
            left = width
            remaining.insert(0, (word, lettering))
        else:
            fitting = max(1, bisect_right(range(1, len(word) + 1), width, key=_length_of(word, lettering)))
            remaining[:0] = [(word[:fitting], lettering), (word[fitting:], lettering)]
    return lines


def _length_of(word: str, lettering: Lettering) -> Callable[[int], float]:
    return lambda n: lettering.length(word[:n])


def _end_with_ellipsis(line: list[tuple[str, Lettering]], width: float) -> None:
    while line:
        word, lettering = line.pop()
        used = sum(other.length(text) + other.length(" ") for text, other in line)
        while word and used + lettering.length(word + "…") > width:
            word = word[:-1]
        if word or not line:
            line.append((word + "…", lettering))
            return


@cache
def _dejavu(bold: bool) -> Path:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


@cache
def _characters(path: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(path)).get_charmap())


@cache
def _system_fonts() -> tuple[Path, ...]:
    from matplotlib.font_manager import findSystemFonts

    def usable(path: Path) -> bool:
        try:
            ImageFont.truetype(path, 20, layout_engine=ImageFont.Layout.BASIC)
            _characters(path)
        except (OSError, RuntimeError):  # bitmaps of one size, broken files
            return False
        return True

    return tuple(path for path in sorted(map(Path, findSystemFonts())) if usable(path))


@cache
def _file_with(character: str, bold: bool) -> Any:
    """Return the first font file that has the character; None where none has."""
    if not character.isprintable():
        return None
    candidates = (_dejavu(bold), _dejavu(False))
    for path in candidates:
        if ord(character) in _characters(path):
            return path
    return next((path for path in _system_fonts() if ord(character) in _characters(path)), None)

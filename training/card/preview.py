"""Pictures of a checkpoint: predictions set as tweets, the bot, and the pipeline; and the predictions
themselves.

Which characters can be drawn, and how lines break, is `lettering`'s matter.
"""

from __future__ import annotations

import colorsys
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from training.card.lettering import Lettering, wrap

SIZE = (1200, 630)  # what sites show beside a link
BOT_SIZE = 400
PIPELINE_SIZE = (1200, 300)
MARGIN = 56
PAPER, CARD, INK, SOFT, LINE = "#f5f3ee", "#ffffff", "#1b232b", "#5b6670", "#e2ded5"
SCALE = 3  # pictures without text are drawn larger, then made smaller: smooth edges
MAX_TOKENS = 60


def sample_predictions(checkpoint: Path, prompt: str, *, num: int, seed: int) -> list[str]:
    """Return what the model writes after the prompt, `num` times, each up to its first new line.

    The checkpoint is exported into a temporary folder and sampled by hgt_infer with its own settings.

    Args:
        checkpoint: a GPT-2 checkpoint folder.
        prompt: the beginning of each text.
        num: ≥ 1.
        seed: 0 to 2³² − 1.
    """
    from hgt_infer import Generator, SamplingParams
    from hgt_infer.export import export_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        artifact = export_checkpoint(checkpoint, Path(folder, "artifact"))
        with Generator(artifact.path, device="cpu", num_slots=num) as generator:
            params = SamplingParams(n=num, seed=seed, max_tokens=MAX_TOKENS, min_tokens=2)
            [output] = generator.generate([prompt], params)
    return [completion.text.strip().partition("\n")[0].strip() for completion in output.completions]


def draw_preview(
    path: Path, predictions: Sequence[str], *, prompt: str, users: Sequence[Mapping[str, Any]]
) -> None:
    """Draw up to five predictions as tweets, on 1200 × 630 pixels.

    Args:
        path: the PNG to write.
        predictions: what follows the prompt in each.
        prompt: the beginning, set apart by its weight.
        users: whose model it is: `handle` and `name` of each, as in dataset.json.
    """
    handles = [f"@{user['handle']}" for user in users]
    accent = _accent("-".join(user["handle"] for user in users))
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIZE[0], 10), fill=accent)

    avatar = 76
    robot = _bot("-".join(user["handle"] for user in users), avatar)
    image.paste(robot, (MARGIN, 34), _disc(avatar))
    x, width = MARGIN + avatar + 20, SIZE[0] - 2 * MARGIN - avatar - 20
    title, note = Lettering(30, bold=True), Lettering(20)
    named = " & ".join(title.drawable(user["name"] or "") or f"@{user['handle']}" for user in users)
    draw_line(draw, x, 66, f"{named} bot", title, INK, width)
    written = f"Written by a GPT-2 that learned from the tweets of {', '.join(handles)}"
    draw_line(draw, x, 98, note.drawable(written), note, SOFT, width)

    shown = list(predictions)[:5]
    top, height, gap = 134, 84, 10
    bold, plain = Lettering(23, bold=True), Lettering(23)
    for number, prediction in enumerate(shown):
        y = top + number * (height + gap)
        draw.rounded_rectangle(
            (MARGIN, y, SIZE[0] - MARGIN, y + height), 14, fill=CARD, outline=LINE, width=2
        )
        draw.rounded_rectangle((MARGIN + 16, y + 18, MARGIN + 21, y + height - 18), 2, fill=accent)
        words = [(word, bold) for word in bold.drawable(prompt).split()]
        words += [(word, plain) for word in plain.drawable(prediction).split()]
        lines = wrap(words, SIZE[0] - 2 * MARGIN - 64, 2)
        baseline = y + (52 if len(lines) == 1 else 37)
        for line in lines:
            end = MARGIN + 40.0
            for word, lettering in line:
                end = lettering.draw(draw, end, baseline, word, INK) + lettering.length(" ")
            baseline += 32
    image.save(path, optimize=True)


def draw_line(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, lettering: Lettering, fill: str, width: float
) -> None:
    """Draw one line of text, with an ellipsis where it is wider than `width`."""
    [line] = wrap([(word, lettering) for word in text.split()], width, 1)
    lettering.draw(draw, x, y, " ".join(word for word, _ in line), fill)


def draw_bot(path: Path, handle: str) -> None:
    """Draw the bot's picture, 400 × 400 pixels; the handle decides about colours and face."""
    _bot(handle, BOT_SIZE).save(path, optimize=True)


def draw_pipeline(path: Path) -> None:
    """Draw how tweets become a model that writes, on 1200 × 300 pixels."""
    steps = (
        ("Tweets", "out of an archive"),
        ("Cleaned", "no links, no retweets"),
        ("Laid out", "in epochs"),
        ("Learned", "by a GPT-2"),
        ("New tweets", "as many as you like"),
    )
    image = Image.new("RGB", PIPELINE_SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    title, note = Lettering(21, bold=True), Lettering(15)
    width, gap = 188, 37
    left = (PIPELINE_SIZE[0] - len(steps) * width - (len(steps) - 1) * gap) // 2
    for number, (name, remark) in enumerate(steps):
        x = left + number * (width + gap)
        middle = x + width / 2
        draw.rounded_rectangle((x, 44, x + width, 256), 18, fill=CARD, outline=LINE, width=2)
        image.paste(_icon(number), (int(middle) - 44, 66))
        title.draw(draw, middle - title.length(name) / 2, 202, name, INK)
        note.draw(draw, middle - note.length(remark) / 2, 229, remark, SOFT)
        if number:
            tip = x - 8
            draw.line((tip - 20, 150, tip - 4, 150), fill=SOFT, width=3)
            draw.polygon([(tip - 9, 143), (tip, 150), (tip - 9, 157)], fill=SOFT)
    image.save(path, optimize=True)


def _icon(number: int) -> Image.Image:
    """Return the picture of a step, 88 × 88 pixels."""
    s = SCALE
    image = Image.new("RGB", (88 * s, 88 * s), CARD)
    draw = ImageDraw.Draw(image)
    colours = ("#2a6f97", "#2a9d8f", "#b5651d", "#7b4fa3", "#c8415a")
    colour = colours[number]

    def bubble(x: float, y: float, right: float, bottom: float) -> None:
        draw.rounded_rectangle((x * s, y * s, right * s, bottom * s), 9 * s, fill=colour)
        draw.polygon(
            [
                ((x + 10) * s, (bottom - 1) * s),
                ((x + 24) * s, (bottom - 1) * s),
                ((x + 8) * s, (bottom + 12) * s),
            ],
            fill=colour,
        )

    def bar(x: float, y: float, right: float, fill: str) -> None:
        draw.rounded_rectangle((x * s, y * s, right * s, (y + 5) * s), 2 * s, fill=fill)

    if number in (0, 4):
        bubble(10, 16, 78, 62)
        for row, right in enumerate((66, 58, 48)):
            bar(22, 27 + 10 * row, right, CARD)
        if number == 4:
            draw.ellipse((60 * s, 4 * s, 84 * s, 28 * s), fill="#1b232b")
            draw.line((66 * s, 16 * s, 78 * s, 16 * s), fill=CARD, width=3 * s)
            draw.line((72 * s, 10 * s, 72 * s, 22 * s), fill=CARD, width=3 * s)
    elif number == 1:
        draw.polygon(
            [
                (12 * s, 16 * s),
                (76 * s, 16 * s),
                (52 * s, 48 * s),
                (52 * s, 74 * s),
                (36 * s, 66 * s),
                (36 * s, 48 * s),
            ],
            fill=colour,
        )
    elif number == 2:
        for row in range(5):
            for column, right in enumerate((34, 56, 80) if row % 2 else (26, 60, 80)):
                start = (8, 38, 62)[column] if row % 2 else (8, 30, 64)[column]
                bar(start, 16 + 13 * row, right, colour)
    else:
        layers = ((16, 3), (44, 4), (72, 3))
        points = [[(x, 44 + (row - (count - 1) / 2) * 20) for row in range(count)] for x, count in layers]
        for before, after in pairwise(points):
            for x1, y1 in before:
                for x2, y2 in after:
                    draw.line((x1 * s, y1 * s, x2 * s, y2 * s), fill="#cdbfe0", width=2 * s)
        for x, y in (point for layer in points for point in layer):
            draw.ellipse(((x - 7) * s, (y - 7) * s, (x + 7) * s, (y + 7) * s), fill=colour)
    return image.resize((88, 88), Image.Resampling.LANCZOS)


def _bot(handle: str, size: int) -> Image.Image:
    """Return a robot's face, square."""
    digest = hashlib.sha256(handle.encode()).digest()
    s = size * SCALE / 100  # the face is drawn on 100 × 100
    image = Image.new("RGB", (size * SCALE, size * SCALE), _accent(handle))
    draw = ImageDraw.Draw(image)
    dark, light = "#1b232b", "#fbfaf7"

    def box(x: float, y: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return (x * s, y * s, right * s, bottom * s)

    draw.line(box(50, 16, 50, 30), fill=light, width=round(3 * s))
    draw.ellipse(box(45, 10, 55, 20), fill=light)
    for x in (15, 78):
        draw.rounded_rectangle(box(x, 46, x + 7, 64), 3 * s, fill=light)
    draw.rounded_rectangle(box(22, 28, 78, 80), (8 + digest[1] % 12) * s, fill=light)
    eye = 6 + digest[2] % 3
    for x in (38, 62):
        if digest[3] % 2:
            draw.ellipse(box(x - eye, 48 - eye, x + eye, 48 + eye), fill=dark)
        else:
            draw.rounded_rectangle(box(x - eye, 48 - eye, x + eye, 48 + eye), 3 * s, fill=dark)
        draw.ellipse(box(x, 43, x + 4, 47), fill=light)
    mouth = digest[4] % 3
    if mouth == 0:
        draw.arc(box(38, 54, 62, 72), 20, 160, fill=dark, width=round(3 * s))
    elif mouth == 1:
        draw.rounded_rectangle(box(38, 65, 62, 69), 2 * s, fill=dark)
    else:
        draw.rounded_rectangle(box(36, 62, 64, 71), 3 * s, fill=dark)
        for x in (43, 50, 57):
            draw.line(box(x, 62, x, 71), fill=light, width=round(1.5 * s))
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _disc(size: int) -> Image.Image:
    mask = Image.new("L", (size * SCALE, size * SCALE))
    ImageDraw.Draw(mask).ellipse((0, 0, size * SCALE - 1, size * SCALE - 1), fill=255)
    return mask.resize((size, size), Image.Resampling.LANCZOS)


def _accent(handle: str) -> str:
    """Return a colour of the handle's own, dark enough for white on it."""
    hue = hashlib.sha256(handle.encode()).digest()[0] / 256
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.36, 0.5))
    return f"#{red:02x}{green:02x}{blue:02x}"

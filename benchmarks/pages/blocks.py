"""A page as a list of blocks, written as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2433 }
h1, h2 { line-height: 1.2; margin-top: 2.2rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #dde1e8; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #8a93a5 }
img { max-width: 100% }
"""  # noqa: E501


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str
    is_strong: bool = False


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page."""

    name: str
    alt: str


Block = Heading | Text | Items | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return the page as Markdown.

    >>> to_markdown([Heading("Speed"), Table(["", "tok/s"], [["ours", "7"]])])
    '## Speed\\n\\n|  | tok/s |\\n| --- | ---: |\\n| ours | 7 |\\n'
    """
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str, folder: Path) -> str:
    """Return the page as HTML with its pictures, which lie in the folder, inside."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text, is_strong):
            return f"**{text}**" if is_strong else text
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Picture(name, alt):
            return f"![{alt}]({name})"
        case Table(head, rows):
            rule = ["---", *["---:"] * (len(head) - 1)]
            cells = ([cell.replace("|", "\\|") for cell in row] for row in (head, rule, *rows))
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, is_strong):
            inner = html.escape(text)
            return f"<p><strong>{inner}</strong></p>" if is_strong else f"<p>{inner}</p>"
        case Items(texts):
            return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"
        case Picture(name, alt):
            data = base64.b64encode((folder / name).read_bytes()).decode()
            return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
        case Table(head, rows):
            heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            body = "".join(
                f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
            )
            return f"<table><tr>{heads}</tr>{body}</table>"

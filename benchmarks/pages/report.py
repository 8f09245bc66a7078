"""Pages of a suite's result: tables with their spread, pictures, and the bound of the machine beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.pages import sections
from benchmarks.pages.blocks import Block, to_html, to_markdown
from benchmarks.pages.plots import draw_agreement, draw_first_tokens, draw_latency, draw_throughput, styles_of
from benchmarks.pages.standing import Result, categories_of, standings, telling_sides, usual_peer

RAW = "result.json"
KEYS = (
    *(
        "environment",
        "quiet",
        "bounds",
        "model",
        "reference",
        "backends",
        "absent",
        "agreement",
        "cases",
        "apart",
    ),
    *("serving", "first_token_s"),
)
BACKEND_KEYS = (
    *("precision", "arithmetic", "cache_bytes", "environment", "versions", "settings", "weights_mb"),
    *("memory_mb", "can", "is_torch_free", "company"),
)
CASE_KEYS = ("case", "num_tokens", "seconds", "tokens_per_s", "compared_with", "ratio", "disturbed")
MAX_SIDES = 8
"""Of the pictures of fixed lengths, so that they stay legible."""


def read_result(path: Path) -> Result:
    """Read a result of `python -m benchmarks run`.

    Raises:
        ValueError: it is none, or of a version with other keys: the first one missing is named.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        _check_keys("it", result, KEYS)
        for name, backend in result["backends"].items():
            _check_keys(f"backend {name}", backend, BACKEND_KEYS)
        for number, case in enumerate([*result["cases"], *result["apart"]]):
            _check_keys(f"case {number}", case, CASE_KEYS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no result of this `python -m benchmarks run`: {error}") from error
    return result


def write_report(result: Result, folder: Path) -> list[Path]:
    """Write report.md, report.html, result.json and the pictures into a folder; return the pages."""
    blocks = _write_pictures(result, folder)
    pages = {"report.md": to_markdown(blocks), "report.html": to_html(blocks, sections.TITLE, folder)}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in (*pages, RAW)]


def insert_report(result: Result, page: Path, pictures: Path, readme: Path) -> None:
    """Write the report into the docs: its body between the marks of one page, a few figures into another.

    Args:
        page: has the marks `<!-- suite -->` and `<!-- /suite -->`.
        pictures: a folder beside the page for pictures and result.json.
        readme: has the marks `<!-- figures -->` and `<!-- /figures -->`.

    Raises:
        ValueError: the marks are missing, or the result is not to be published: of a machine that was not
            quiet, of files that no commit has, of a quick or unfinished run, or of one without all backends.
    """
    if not result["quiet"]["is_quiet"]:
        raise ValueError("the machine was not quiet in this run: it is not published")
    if result["environment"]["commit"].endswith("+"):
        raise ValueError(f"some files differed from commit {result['environment']['commit']} in this run")
    if not result["serving"] or result["bounds"][-1]["when"] != "after":
        raise ValueError("this is a quick or unfinished run: it is not published")
    if result["absent"]:
        raise ValueError(f"backends that are not in this run: {', '.join(result['absent'])}")
    blocks = _write_pictures(result, pictures)
    body = to_markdown(blocks[1:]).replace("\n## ", "\n### ")
    body = re.sub(r"\]\(([a-z_]+\.png)\)", rf"]({pictures.name}/\1)", body)
    raw = f"[Raw values]({pictures.name}/{RAW}).\n"
    _between_marks(page, "suite", f"{body}\n{raw}")
    _between_marks(readme, "figures", to_markdown([*sections.figures(result)]))


def _check_keys(what: str, value: object, keys: tuple[str, ...]) -> None:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f'{what} has no "{key}"')


def _write_pictures(result: Result, folder: Path) -> list[Block]:
    """Write the pictures and the raw values, and return the blocks of the page that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed = [case for case in result["cases"] if case["case"] == "fixed"]
    usual = (usual_peer(standings(result, category)) for category in categories_of(result))
    strongest = [*dict.fromkeys(filter(None, usual))]
    styles = styles_of([*result["backends"]], strongest, result["reference"])
    sides = telling_sides(result, [*strongest, result["reference"]], MAX_SIDES)
    of_fixed = {name: styles[name] for name in sides}
    draw_throughput(folder / "throughput.png", fixed, of_fixed)
    draw_latency(folder / "latency.png", fixed, of_fixed)
    if result["serving"]:
        draw_first_tokens(folder / "first_tokens.png", result["serving"], styles)
    draw_agreement(folder / "agreement.png", fixed, result["agreement"], of_fixed)
    (folder / RAW).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return list(sections.page(result))


def _between_marks(page: Path, mark: str, text: str) -> None:
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, number = re.subn(pattern, lambda found: f"{found[1]}{text}{found[2]}", old, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{page} has no marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(new, encoding="utf-8")

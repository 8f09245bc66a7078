"""Pages of a suite's result: tables with their spread, pictures, and the bound of the machine beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.bounds import cache_bytes_per_token, step_bytes
from benchmarks.measure.workloads import PROMPT_LENGTH
from benchmarks.pages.blocks import Block, Heading, Picture, Table, Text, to_html, to_markdown
from benchmarks.pages.plots import draw_agreement, draw_first_tokens, draw_latency, draw_throughput

TITLE = "hgt_infer and its peers on a CPU"
WEIGHT_BYTES = {"fp32": 4, "int8": 1}
RAW = "result.json"
CASES = {
    "samples": "one prompt, many samples",
    "long_prompt": "a prompt of 900 tokens, prefill",
    "tweets": "tweets, mixed lengths",
}
SLOWER = 0.95
"""A median below this share of the old one is a regression, where the quartiles do not overlap either."""

Result = Mapping[str, Any]


def read_result(path: Path) -> Result:
    """Read a result of `python -m benchmarks run`.

    Raises:
        ValueError: it is none.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        result["cases"], result["backends"], result["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of `python -m benchmarks run`: {error}") from error
    return result


def write_report(result: Result, folder: Path) -> list[Path]:
    """Write report.md, report.html, result.json and the pictures into a folder; return the pages."""
    blocks = _write_pictures(result, folder)
    pages = {"report.md": to_markdown(blocks), "report.html": to_html(blocks, TITLE, folder)}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in (*pages, RAW)]


def insert_report(result: Result, page: Path, pictures: Path, figures: Path) -> None:
    """Write the report into the docs: its body between the marks of one page, a few figures into another.

    Args:
        page: has the marks `<!-- suite -->` and `<!-- /suite -->`.
        pictures: a folder beside the page for pictures and result.json.
        figures: has the marks `<!-- figures -->` and `<!-- /figures -->`.

    Raises:
        ValueError: the marks are missing.
    """
    blocks = _write_pictures(result, pictures)
    body = to_markdown(blocks[1:]).replace("\n## ", "\n### ")
    body = re.sub(r"\]\(([a-z_]+\.png)\)", rf"]({pictures.name}/\1)", body)
    raw = f"[Raw values]({pictures.name}/{RAW}).\n"
    _between_marks(page, "suite", f"{body}\n{raw}")
    _between_marks(figures, "figures", to_markdown([_figures(result)]))


def _write_pictures(result: Result, folder: Path) -> list[Block]:
    """Write the pictures and the raw values, and return the blocks of the page that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed = [case for case in result["cases"] if case["case"] == "fixed"]
    names = list(result["backends"])
    draw_throughput(folder / "throughput.png", fixed, names)
    draw_latency(folder / "latency.png", fixed, names)
    draw_first_tokens(folder / "first_tokens.png", result["serving"])
    draw_agreement(folder / "agreement.png", fixed, result["agreement"])
    (folder / RAW).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return list(_blocks(result, fixed))


def _figures(result: Result) -> Table:
    """Tokens a second of the sides that a reader compares first, in a few cases."""
    cases = [
        case for case in result["cases"] if case.get("batch_size") in (1, 16) or case["case"] == "tweets"
    ]
    names = [name for name in result["backends"] if name not in ("transformers_pipeline", "optimum")]
    rows = []
    for name in names:
        cells = []
        for case in cases:
            ways = [way for way in case["tokens_per_s"] if way.split(",")[0] == name]
            if not ways:
                cells.append("")
                continue
            best = max(ways, key=lambda way: case["tokens_per_s"][way]["median"])
            rate, ratio = case["tokens_per_s"][best]["median"], case["ratio"][best]["median"]
            cells.append(f"{rate:,.0f}" + (f" ({ratio:.1f} ×)" if name != result["reference"] else ""))
        rows.append([name, *cells])
    heads = ["tweets" if case["case"] == "tweets" else f"{case['batch_size']} at once" for case in cases]
    return Table([f"tokens a second (times {result['reference']})", *heads], rows)


def _between_marks(page: Path, mark: str, text: str) -> None:
    old = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, number = re.subn(pattern, lambda found: f"{found[1]}{text}{found[2]}", old, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"{page} has no marks <!-- {mark} --> and <!-- /{mark} -->")
    page.write_text(new, encoding="utf-8")


def _blocks(result: Result, fixed: Sequence[Result]) -> Iterator[Block]:
    environment, reference = result["environment"], result["reference"]
    yield Heading(TITLE, 1)
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    yield Text(
        f"{environment['cpu']}, {environment['physical_cores']} cores "
        f"({', '.join(environment['cpu_flags'])}), {environment['memory_gb']} GB; "
        f"Python {environment['python']}, {versions}; "
        f"commit {environment['commit']}; load before the run {environment['load_average_1min']}."
    )
    yield Text(
        "Every backend runs in a process of its own, with the same weights, prompts, settings (temperature "
        "1, top_k 50, top_p 0.95, end-of-text suppressed), numbers of tokens and threads; the processes take "
        "turns. Figures are medians with the range of all rounds, ratios are of neighbouring rounds."
    )

    yield Heading("Tokens a second, fixed lengths")
    yield Table(
        ["sequences at once", *(str(case["batch_size"]) for case in fixed)],
        [[name, *(_spread(case["tokens_per_s"].get(name)) for case in fixed)] for name in result["backends"]],
    )
    yield Picture("throughput.png", "Tokens a second against the batch")
    yield Text(f"Times as fast as {reference}, from neighbouring rounds:")
    yield Table(
        ["", *(str(case["batch_size"]) for case in fixed)],
        [
            [name, *(_spread(case["ratio"].get(name), digits=2) for case in fixed)]
            for name in result["backends"]
            if name != reference
        ],
    )
    yield Picture("latency.png", "Milliseconds a step against tokens a second")

    yield Heading("How near the machine's bound")
    bounds = result["bounds"]
    yield Text(
        f"Measured here: {bounds['read_gb_s']:.1f} GB/s read by {environment['physical_cores']} threads, "
        f"{bounds['fp32_gflop_s']:.0f} fp32 GFLOP/s in products of matrices. A step has to read all weights "
        "and the cache of every row, and to compute two operations a weight and row. The larger time of the "
        "two (for int8 the first) over the measured one:"
    )
    yield Table(
        ["", *(str(case["batch_size"]) for case in fixed)],
        [[name, *(_of_bound(result, case, name) for case in fixed)] for name in result["backends"]],
    )

    yield Heading("Other workloads")
    for case in result["cases"]:
        if case["case"] in CASES:
            num_rounds = len(next(iter(case["seconds"].values())))
            yield Text(
                f"{CASES[case['case']]}: {case['num_tokens']:,} tokens, {num_rounds} rounds; "
                f"beside {case['compared_with']}:"
            )
            yield Table(
                ["", "tokens a second", "times as fast"],
                [
                    [name, _spread(spread), _spread(case["ratio"][name], digits=2)]
                    for name, spread in case["tokens_per_s"].items()
                ],
            )

    yield Heading("Requests that arrive by chance")
    yield Text(
        "Open loop: requests as long as tweets arrive as a Poisson process, whether earlier ones are done or "
        "not. Goodput is the share whose first token came within 0.5 s. A static batch shows nothing before "
        "it ends."
    )
    yield Table(
        ["", "requests a second", "first token p50 / p90 / p99 (s)", "whole text p50 / p99 (s)", "goodput"],
        [
            [
                entry["backend"],
                f"{entry['rate']:g}",
                " / ".join(f"{entry['first_token_s'][p]:.2f}" for p in ("p50", "p90", "p99")),
                " / ".join(f"{entry['end_s'][p]:.2f}" for p in ("p50", "p99")),
                f"{entry['goodput']:.0%}",
            ]
            for entry in result["serving"]
        ],
    )
    yield Picture("first_tokens.png", "Seconds to the first token against requests a second")

    yield Heading("Memory, files, cold start, agreement")
    yield Text("Resident after the fixed lengths: the largest batch was the last.")
    yield Table(
        [
            "",
            "resident (MB)",
            "files (MB)",
            "import to first token (s)",
            f"greedy tokens that are {reference}'s choice",
        ],
        [
            [
                name,
                f"{backend['memory_mb']['resident']:,.0f}",
                f"{backend['weights_mb']:,.0f}" if backend["weights_mb"] else "the checkpoint",
                _spread(result["first_token_s"].get(name), digits=2),
                f"{result['agreement'][name]['share']:.1%}",
            ]
            for name, backend in result["backends"].items()
        ],
    )
    yield Picture("agreement.png", f"Greedy tokens that are {reference}'s choice against tokens a second")
    cannot: dict[str, list[str]] = {}
    for name, backend in result["backends"].items():
        if backend["cannot"]:
            cannot.setdefault(backend["cannot"], []).append(name)
    for what, names in cannot.items():
        yield Text(f"{', '.join(names)}: {what}.")


def _spread(spread: Mapping[str, float] | None, digits: int | None = None) -> str:
    """Median and range; nothing for a side that was left out of a case."""
    if spread is None:
        return ""
    digits = (1 if spread["median"] < 1000 else 0) if digits is None else digits
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} – {spread['high']:,.{digits}f})"


def _of_bound(result: Result, case: Result, name: str) -> str:
    """Return the shortest time that a step can take here over the one that it took."""
    if name not in case["tokens_per_s"]:
        return ""
    sizes, bounds = result["model"], result["bounds"]
    precision = result["backends"][name]["precision"]
    num_weights = sizes["n_layer"] * 12 * sizes["n_embd"] ** 2 + sizes["vocab_size"] * sizes["n_embd"]
    read = step_bytes(
        num_weights * WEIGHT_BYTES[precision],
        cache_bytes_per_token(sizes["n_layer"], sizes["n_embd"], 4),
        [PROMPT_LENGTH + case["num_steps"] / 2] * case["batch_size"],
    )
    times = [read / (bounds["read_gb_s"] * 1e9)]
    if precision == "fp32":
        times.append(2 * num_weights * case["batch_size"] / (bounds["fp32_gflop_s"] * 1e9))
    step_s = case["batch_size"] / case["tokens_per_s"][name]["median"]
    return f"{max(times) / step_s:.0%}"


def compare_results(old: Result, new: Result) -> tuple[Table, bool]:
    """Compare the tokens a second of every side and case that both results have.

    Returns:
        A table, and whether nothing became slower: a median under 95 % of the old one with quartiles
        apart. On another machine the verdict says nothing.
    """
    before = {_key(case): case["tokens_per_s"] for case in old["cases"]}
    rows, is_good = [], True
    for case in new["cases"]:
        for name, spread in case["tokens_per_s"].items():
            earlier = before.get(_key(case), {}).get(name)
            if earlier is None:
                continue
            ratio = spread["median"] / earlier["median"]
            is_slower = ratio < SLOWER and spread["third_quartile"] < earlier["first_quartile"]
            is_faster = ratio > 1 / SLOWER and spread["first_quartile"] > earlier["third_quartile"]
            is_good &= not is_slower
            verdict = "slower" if is_slower else "faster" if is_faster else "same"
            case_name = f"{case['case']} {case.get('batch_size', '')}".strip()
            rows.append([case_name, name, _spread(earlier), _spread(spread), f"{ratio:.2f} ×", verdict])
    return Table(["case", "backend", "before", "now", "ratio", ""], rows), is_good


def _key(case: Result) -> tuple[Any, ...]:
    return case["case"], case.get("batch_size"), case["num_tokens"]

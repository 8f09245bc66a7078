"""The pictures of a report: tokens a second against batch, latency against throughput, first tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.measure.comparison import is_ours

# Okabe & Ito's colours, which the colour-blind tell apart.
OURS = ("#0072B2", "#D55E00", "#56B4E9")
STRONGEST = ("#009E73", "#CC79A7")
REFERENCE = "#8A6D00"
OTHERS = ("#9A9A9A", "#7F7F7F", "#B0B0B0")
OTHER_LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPXh*<>p"
SIZE = (7.5, 4.4)
LABEL_HEIGHT = 0.052
"""Of a line of small text, as a share of the axes' height."""

Styles = Mapping[str, dict[str, Any]]


def styles_of(names: Sequence[str], strongest: Sequence[str], reference: str) -> Styles:
    """Return how each side is drawn in all pictures.

    Our sides and the strongest peers have the same width, and a colour each; the reference has a thin line
    and a colour, all others are thin and grey.
    """
    ours = [name for name in names if is_ours(name)]
    colours = dict(zip(ours, OURS, strict=False)) | dict(zip(strongest, STRONGEST, strict=False))
    styles: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        is_heavy, is_grey = name in colours, name not in (*colours, reference)
        styles[name] = {
            "color": colours.get(name, OTHERS[number % len(OTHERS)] if is_grey else REFERENCE),
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": OTHER_LINES[number % len(OTHER_LINES)] if is_grey else "-",
            "linewidth": 2.4 if is_heavy else 1.2,
            "markersize": 7 if is_heavy else 5,
            "zorder": 3 if is_heavy else 2,
        }
    return styles


def draw_throughput(path: Path, cases: Sequence[Mapping[str, Any]], styles: Styles) -> None:
    """Tokens a second of fixed lengths against the batch, medians with the range of all rounds."""
    figure, axes = _figure("sequences at once", "tokens a second")
    ends = {}
    for name, style in styles.items():
        sizes = [case["batch_size"] for case in _with(cases, name)]
        spreads = [case["tokens_per_s"][name] for case in _with(cases, name)]
        if not spreads:
            continue
        medians = [spread["median"] for spread in spreads]
        errors = [
            [spread["median"] - spread["low"] for spread in spreads],
            [spread["high"] - spread["median"] for spread in spreads],
        ]
        axes.errorbar(sizes, medians, yerr=errors, capsize=3, elinewidth=1, **style)
        ends[name] = (sizes[-1], medians[-1])
    all_sizes = [case["batch_size"] for case in cases]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(all_sizes, map(str, all_sizes))
    _label_ends(axes, ends, styles)
    _save(figure, axes, path)


def draw_latency(path: Path, cases: Sequence[Mapping[str, Any]], styles: Styles) -> None:
    """Milliseconds from a token to a row's next one against tokens a second; a point for each batch."""
    figure, axes = _figure("tokens a second, all sequences", "ms a step")
    points = {}
    for name, style in styles.items():
        sizes = [case["batch_size"] for case in _with(cases, name)]
        rates = [case["tokens_per_s"][name]["median"] for case in _with(cases, name)]
        steps = [1e3 * size / rate for size, rate in zip(sizes, rates, strict=True)]
        axes.plot(rates, steps, label=name, **style)
        points[name] = [*zip(sizes, rates, steps, strict=True)]
    # Batch sizes stand right of the fastest side's points, where no other line is.
    fastest = max(points, key=lambda name: max((rate for _, rate, _ in points[name]), default=0))
    for size, rate, step in points[fastest]:
        axes.annotate(
            f"{size}",
            (rate, step),
            xytext=(4, -14),
            textcoords="offset points",
            fontsize="small",
            color=styles[fastest]["color"],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _add_legend(axes)
    _save(figure, axes, path)


def draw_agreement(
    path: Path,
    cases: Sequence[Mapping[str, Any]],
    agreement: Mapping[str, Mapping[str, float]],
    styles: Styles,
) -> None:
    """Quality against speed: greedy tokens that are the reference's choice, and the case of most sides."""
    # The largest of those batches that have most sides.
    case = max(
        cases, key=lambda case: (sum(name in case["tokens_per_s"] for name in styles), case["batch_size"])
    )
    figure, axes = _figure(
        f"tokens a second, {case['batch_size']} at once", "greedy tokens as the reference's (%)"
    )
    for name in (name for name in styles if name in case["tokens_per_s"]):
        rate, share = case["tokens_per_s"][name]["median"], 100 * agreement[name]["share"]
        style = styles[name] | {"linestyle": "", "markersize": 3 + styles[name]["markersize"]}
        axes.plot([rate], [share], label=name, **style)
    axes.set_xlim(left=0)
    axes.set_ylim(min(axes.get_ylim()[0], 98), 101)
    _add_legend(axes)
    _save(figure, axes, path)


def draw_first_tokens(path: Path, serving: Sequence[Mapping[str, Any]], styles: Styles) -> None:
    """Seconds to the first token that 90 % of the requests stay within, against requests a second."""
    figure, axes = _figure("requests a second (Poisson)", "seconds to the first token, p90")
    for name in dict.fromkeys(entry["backend"] for entry in serving):
        entries = [entry for entry in serving if entry["backend"] == name]
        rates = [entry["rate"] for entry in entries]
        seconds = [entry["first_token_s"]["p90"] for entry in entries]
        axes.plot(rates, seconds, label=name, **styles[name])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    rates = sorted({entry["rate"] for entry in serving})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    _add_legend(axes)
    _save(figure, axes, path)


def _with(cases: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Those that a side was in: of the larger batches some are left out."""
    return [case for case in cases if name in case["tokens_per_s"]]


def _label_ends(axes: Any, ends: Mapping[str, tuple[float, float]], styles: Styles) -> None:
    """Write the name of each line at the right edge, joined with its last point; names do not overlap."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    heights = {name: (math.log(y) - low) / (high - low) for name, (_, y) in ends.items()}
    names = sorted(ends, key=lambda name: heights[name])
    for _ in range(100):  # neighbours that are too near move apart, each by half
        for below, above in pairwise(names):
            overlap = LABEL_HEIGHT - (heights[above] - heights[below])
            if overlap > 0:
                heights[below] -= overlap / 2
                heights[above] += overlap / 2
    for name in names:
        axes.annotate(
            name,
            ends[name],
            xytext=(1.04, heights[name]),
            textcoords="axes fraction",
            va="center",
            fontsize="small",
            fontweight="bold" if styles[name]["linewidth"] > 2 else "normal",
            color=styles[name]["color"] if styles[name]["color"] not in OTHERS else "#555555",
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name]["color"],
                "linestyle": (0, (1, 3)),
                "linewidth": 0.9,
                "relpos": (0, 0.5),  # from the middle of the text's left side
                "shrinkA": 1,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def _figure(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")  # without pyplot: no state, no window
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _add_legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))


def _save(figure: Figure, axes: Any, path: Path) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
            if axis.get_transform().base == 10:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.savefig(path, dpi=150)

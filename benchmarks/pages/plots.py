"""The pictures of a report: tokens a second against batch, latency against throughput, first tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe & Ito's colours, which the colour-blind tell apart; ours are drawn thicker.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777", "#000000", "#882255",
)  # fmt: skip
MARKERS = "osD^vPXh*"
SIZE = (7.5, 4.4)


def draw_throughput(path: Path, cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Tokens a second of fixed lengths against the batch, medians with the range of all rounds."""
    figure, axes = _figure("sequences at once", "tokens a second")
    sizes = [case["batch_size"] for case in cases]
    for name, style in _styles(names).items():
        spreads = [case["tokens_per_s"][name] for case in _with(cases, name)]
        medians = [spread["median"] for spread in spreads]
        errors = [
            [spread["median"] - spread["low"] for spread in spreads],
            [spread["high"] - spread["median"] for spread in spreads],
        ]
        axes.errorbar(sizes[: len(medians)], medians, yerr=errors, capsize=3, label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, map(str, sizes))
    _save(figure, axes, path)


def draw_latency(path: Path, cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Milliseconds from a token to a row's next one against tokens a second; a point for each batch."""
    figure, axes = _figure("tokens a second, all sequences", "ms a step")
    sizes = [case["batch_size"] for case in cases]
    for name, style in _styles(names).items():
        rates = [case["tokens_per_s"][name]["median"] for case in _with(cases, name)]
        steps = [1e3 * size / rate for size, rate in zip(sizes, rates, strict=False)]
        axes.plot(rates, steps, label=name, **style)
        if name == names[0]:
            for size, rate, step in zip(sizes, rates, steps, strict=True):
                axes.annotate(f"{size}", (rate, step), textcoords="offset points", xytext=(6, 4))
    axes.set_xscale("log")
    axes.set_yscale("log")
    _save(figure, axes, path)


def draw_agreement(
    path: Path, cases: Sequence[Mapping[str, Any]], agreement: Mapping[str, Mapping[str, float]]
) -> None:
    """Quality against speed: greedy tokens that are the reference's choice, and the largest batch of all."""
    case = [case for case in cases if all(name in case["tokens_per_s"] for name in agreement)][-1]
    figure, axes = _figure(
        f"tokens a second, {case['batch_size']} sequences", "greedy tokens as the reference's (%)"
    )
    for name, style in _styles([*agreement]).items():
        rate, share = case["tokens_per_s"][name]["median"], 100 * agreement[name]["share"]
        axes.plot([rate], [share], label=name, markersize=9, **style | {"linestyle": ""})
    axes.set_xlim(left=0)
    axes.set_ylim(0, 105)
    _save(figure, axes, path)


def draw_first_tokens(path: Path, serving: Sequence[Mapping[str, Any]]) -> None:
    """Seconds to the first token, half of the requests and 90 % of them, against requests a second."""
    figure, axes = _figure("requests a second (Poisson)", "seconds to the first token, p90")
    names = list(dict.fromkeys(entry["backend"] for entry in serving))
    for name, style in _styles(names).items():
        entries = [entry for entry in serving if entry["backend"] == name]
        rates = [entry["rate"] for entry in entries]
        axes.plot(rates, [entry["first_token_s"]["p90"] for entry in entries], label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    rates = sorted({entry["rate"] for entry in serving})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    _save(figure, axes, path)


def _with(cases: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Those that a side was in: of the larger batches some are left out."""
    return [case for case in cases if name in case["tokens_per_s"]]


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linewidth": 2.4 if name.startswith("hgt_infer") else 1.3,
        }
        for number, name in enumerate(names)
    }


def _figure(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")  # without pyplot: no state, no window
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=150)

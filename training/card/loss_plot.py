"""loss.png: how training and evaluation loss went, over the schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (1200, 675)  # pixels
DPI = 100
PAPER, INK, FAINT, GRID = "#fcfbf9", "#1f2933", "#6f7a86", "#e6e4df"
TRAINING, EVALUATION = "#2a6f97", "#d1495b"
MAX_MARKED = 25  # points of a curve that are drawn one by one


def draw_loss(path: Path, entries: Sequence[Mapping[str, float]]) -> None:
    """Draw the loss of a run as a PNG of 1200 × 675; the same entries give the same bytes.

    The lowest evaluation loss is marked. Its paper is opaque, so that it is readable on light and dark pages.

    Args:
        path: the file to write.
        entries: as in metrics.jsonl: `step`, `loss`, `learning_rate`, `eval_loss`; losses in nats per token.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_loss(Path(folder, "loss.png"), [{"step": 1, "loss": 3.5, "learning_rate": 1e-4}])
    ...     Path(folder, "loss.png").read_bytes()[1:4]
    b'PNG'
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"):
        figure = Figure(figsize=(SIZE[0] / DPI, SIZE[1] / DPI), dpi=DPI, facecolor=PAPER)
        FigureCanvasAgg(figure)
        loss, rate = figure.subplots(
            2,
            1,
            sharex=True,
            gridspec_kw={
                "height_ratios": (5, 1),
                "hspace": 0.12,
                "left": 0.075,
                "right": 0.965,
                "top": 0.9,
                "bottom": 0.1,
            },
        )
        _draw_curves(loss, entries)
        _draw_rate(rate, entries)
        for axes in (loss, rate):
            _style(axes)
        rate.set_xlim(0, 1.03 * max((entry["step"] for entry in entries), default=1))  # of both
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _curve(entries: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    return [step for step, _ in points], [value for _, value in points]


def _draw_curves(axes: Axes, entries: Sequence[Mapping[str, float]]) -> None:
    for name, label, color, width in (
        ("loss", "training", TRAINING, 1.8),
        ("eval_loss", "evaluation", EVALUATION, 2.2),
    ):
        steps, values = _curve(entries, name)
        if not steps:
            continue
        marker = "o" if len(steps) <= MAX_MARKED else ""
        axes.plot(
            steps,
            values,
            color=color,
            linewidth=width,
            marker=marker,
            markersize=4.5,
            label=label,
            solid_capstyle="round",
            solid_joinstyle="round",
        )
        if name == "eval_loss":
            _mark_lowest(axes, steps, values)
    axes.set_title("Loss per token, in nats", loc="left", color=INK, fontsize=15, fontweight="bold", pad=14)
    if axes.lines:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=2,
            frameon=False,
            fontsize=12,
            labelcolor=INK,
            borderaxespad=0.2,
            handlelength=1.6,
        )
    axes.margins(y=0.12)


def _mark_lowest(axes: Axes, steps: Sequence[float], values: Sequence[float]) -> None:
    best = min(range(len(values)), key=values.__getitem__)
    axes.plot(
        steps[best],
        values[best],
        "o",
        color=PAPER,
        markersize=10,
        markeredgecolor=EVALUATION,
        markeredgewidth=2.4,
        zorder=5,
    )
    axes.annotate(
        f"lowest {values[best]:.3f}, step {steps[best]:,.0f}",
        (steps[best], values[best]),
        xytext=(0, 16),
        textcoords="offset points",
        ha="right" if steps[best] > 0.7 * steps[-1] else "left",
        color=EVALUATION,
        fontsize=12,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85},
        zorder=6,
    )


def _draw_rate(axes: Axes, entries: Sequence[Mapping[str, float]]) -> None:
    steps, rates = _curve(entries, "learning_rate")
    axes.plot(steps, rates, color=FAINT, linewidth=1.4)
    axes.fill_between(steps, rates, color=FAINT, alpha=0.18, linewidth=0)
    peak = max(rates, default=0.0)
    axes.set_ylim(0, 1.15 * peak or 1)
    axes.set_yticks([0, peak] if peak else [0])
    axes.set_yticklabels(["0", f"{peak:.1e}".replace("e-0", "e-")] if peak else ["0"])
    axes.set_xlabel("step", color=INK, fontsize=12)
    axes.text(0, 0.94, "learning rate", transform=axes.transAxes, color=FAINT, fontsize=11)


def _style(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=11, length=0, pad=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))

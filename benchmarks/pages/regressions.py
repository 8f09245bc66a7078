"""What became worse from one result of the suite to another, beyond the noise of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.comparison import is_ours
from benchmarks.pages.blocks import Block, Items, Table, Text
from benchmarks.pages.standing import Result, case_label

FLOOR = 0.03
"""A change of less than this share of the old median is none, however small the noise of both files is."""
MEMORY_FLOOR = 0.05
"""The same of memory, which has no rounds."""
ONE_ROUND_NOISE = 0.1
"""One round shows no noise: this share of its median is taken."""
MACHINE = ("cpu", "cpu_flags", "physical_cores", "usable_cpus", "memory_gb", "system", "python", "variables")

Key = tuple[str, str, Any]
"""What is measured, of which side, and the number of tokens where there is one."""


@dataclass(frozen=True)
class Measure:
    """One value of one result.

    Attributes:
        noise: how far the median may lie off by chance, in its own unit.
        floor: see FLOOR.
    """

    median: float
    noise: float
    floor: float = FLOOR
    is_rate: bool = False

    def change_to(self, new: Measure) -> str:
        """Return `better`, `worse` or `same`: same where the medians differ by the noise or floor at most."""
        difference = new.median - self.median if self.is_rate else self.median - new.median
        if abs(difference) <= max(self.noise + new.noise, self.floor * self.median):
            return "same"
        return "better" if difference > 0 else "worse"


def compare_results(old: Result, new: Result) -> tuple[list[Block], bool]:
    """Compare tokens a second, memory and cold start of every side and case that both results have.

    A median has changed where it differs by more than 3 % of the old one and by more than the sum of the
    noises in both files: half the distance of the quartiles, the whole range of two rounds, a tenth of the
    median of one round. Memory has changed where it differs by 5 %.

    Returns:
        The blocks that show it, and whether nothing of hgt_infer's own sides became worse. Another machine,
        other versions and a run that was not quiet are warnings, which do not change that.

    Raises:
        ValueError: the results have nothing of hgt_infer's sides in common.
    """
    before, now = dict(_measures(old)), dict(_measures(new))
    both = sorted((key for key in now if key in before), key=lambda key: not is_ours(key[1]))
    changes = {key: before[key].change_to(now[key]) for key in both}
    ours = [key for key in both if is_ours(key[1])]
    if not ours:
        raise ValueError("the two results have nothing of hgt_infer's sides in common")
    worse = [key for key in ours if changes[key] == "worse"]
    rows = [
        [
            key[0],
            key[1],
            _shown(before[key]),
            _shown(now[key]),
            f"{now[key].median / before[key].median:.2f} ×",
            changes[key] if is_ours(key[1]) else f"({changes[key]})",
        ]
        for key in both
    ]
    one_sided = {key for key in before.keys() ^ now.keys() if is_ours(key[1])}
    warnings = [*_warnings(old, new)]
    if one_sided:
        names = ", ".join(f"{side}: {what}" for what, side, _ in sorted(one_sided, key=str))
        warnings.append(f"in one of the results alone: {names}")
    tally = Text(
        f"{len(ours)} comparisons of hgt_infer's sides, {len(worse)} of them worse; "
        f"{len(both) - len(ours)} of peers, in brackets, which do not count."
    )
    notes = [Items([f"warning: {warning}" for warning in warnings])] if warnings else []
    table = Table(["", "side", "before (± noise)", "now (± noise)", "now / before", ""], rows)
    return [table, *notes, tally], not worse


def _measures(result: Result) -> Iterator[tuple[Key, Measure]]:
    """Yield every value that is compared."""
    for case in result["cases"]:
        for way, spread in case["tokens_per_s"].items():
            noise = _noise(spread, len(case["seconds"][way]))
            key = (f"{case_label(case)} (tokens a second)", way, case["num_tokens"])
            yield key, Measure(spread["median"], noise, is_rate=True)
    for name, backend in result["backends"].items():
        for kind in ("resident", "peak"):
            memory = Measure(backend["memory_mb"][kind], 0, floor=MEMORY_FLOOR)
            yield (f"{kind} memory (MB)", name, None), memory
    for name, start in result["first_token_s"].items():
        noise = _noise(start, len(start["rounds"]))
        yield ("import to first token (s)", name, None), Measure(start["median"], noise)


def _noise(spread: Mapping[str, float], num_rounds: int) -> float:
    if num_rounds == 1:
        return ONE_ROUND_NOISE * spread["median"]
    if num_rounds == 2:
        return spread["high"] - spread["low"]
    return (spread["third_quartile"] - spread["first_quartile"]) / 2


def _shown(measure: Measure) -> str:
    digits = 2 if measure.median < 10 else 1 if measure.median < 1000 else 0
    noise = f" ± {measure.noise:,.{digits}f}" if measure.noise else ""
    return f"{measure.median:,.{digits}f}{noise}"


def _warnings(old: Result, new: Result) -> Iterator[str]:
    """Say why the two may not be comparable."""
    for key in MACHINE:
        values = [result["environment"].get(key) for result in (old, new)]
        if values[0] != values[1]:
            yield f"{key} was {values[0]} and is {values[1]}"
    yield from _other_versions("", *(result["environment"]["versions"] for result in (old, new)))
    for name in (name for name in old["backends"] if name in new["backends"]):
        versions = [result["backends"][name]["versions"] for result in (old, new)]
        yield from _other_versions(f"{name}: ", *versions)
    for which, result in (("old", old), ("new", new)):
        if not result["quiet"]["is_quiet"]:
            yield f"the {which} run was not quiet"


def _other_versions(of: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for package in sorted(old.keys() | new.keys()):
        versions = [versions.get(package, "missing") for versions in (old, new)]
        if versions[0] != versions[1]:
            yield f"{of}{package} was {versions[0]} and is {versions[1]}"

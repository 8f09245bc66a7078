"""The strongest peer of each case, and how hgt_infer's side stands beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.comparison import Spread, backend_of, is_ours

Result = Mapping[str, Any]

MAX_CHANCE = 0.1
MIN_ROUNDS = 5

WORKLOADS = {
    "samples": "many samples of one prompt",
    "long_prompt": "a long prompt",
    "tweets": "tweets",
    "offline": "many prompts offline",
}
"""What a case that is not of fixed lengths is called on the page."""


@dataclass(frozen=True)
class Category:
    """Sides that are compared with each other.

    Attributes:
        ours: the backend of hgt_infer.
        title: of its strongest peer.
        peers: what all peers have in common.
        includes: whether a backend, as the result records it, is in the category.
    """

    ours: str
    title: str
    peers: str
    includes: Callable[[Result], bool]


CATEGORIES = (
    Category("hgt_infer_int8", "strongest peer", "of any precision", lambda _: True),
    Category(
        "hgt_infer",
        "strongest fp32 peer",
        "with fp32 weights, products and cache",
        lambda backend: (
            (backend["precision"], backend["arithmetic"], backend["cache_bytes"]) == ("fp32", "fp32", 4)
        ),
    ),
)


@dataclass(frozen=True)
class Standing:
    """Our fastest way through a case and the fastest of all peers in one category.

    Attributes:
        ours, peer: the ways; None where no side of that kind took part.
        ratios: the peer's seconds over ours in each round; empty where one of the two is missing.
    """

    case: Result
    ours: str | None
    peer: str | None
    ratios: Sequence[float]

    @property
    def ratio(self) -> Spread | None:
        return Spread.of(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        """`ahead` or `behind` by a sign test over the rounds, else `level`.

        The test asks how likely so many rounds on one side are where none is faster, and decides under
        MAX_CHANCE: 5 of 5 rounds do, 9 of 10, and no number of less than MIN_ROUNDS.
        """
        if len(self.ratios) < MIN_ROUNDS:
            return ""
        num_ahead = sum(ratio > 1 for ratio in self.ratios)
        total = len(self.ratios)
        fewer = min(num_ahead, total - num_ahead)
        if 2 * sum(math.comb(total, number) for number in range(fewer + 1)) / 2**total > MAX_CHANCE:
            return "level"
        return "ahead" if 2 * num_ahead > total else "behind"


def categories_of(result: Result) -> list[Category]:
    """Return the categories that our side took part in."""
    return [category for category in CATEGORIES if category.ours in result["backends"]]


def case_label(case: Result) -> str:
    """Name a case.

    >>> case_label({"case": "fixed", "batch_size": 16})
    '16 at once'
    """
    return f"{case['batch_size']} at once" if case["case"] == "fixed" else WORKLOADS[case["case"]]


def fastest_way(case: Result, names: Sequence[str]) -> str | None:
    """Return the way of some backends with the highest median rate; None where none took part."""
    ways = [way for way in case["tokens_per_s"] if backend_of(way) in names]
    return max(ways, key=lambda way: case["tokens_per_s"][way]["median"], default=None)


def standings(result: Result, category: Category) -> list[Standing]:
    """Compare our side with the strongest peer in every case that either took part in."""
    backends, found = result["backends"], []
    peers = [name for name in backends if not is_ours(name) and category.includes(backends[name])]
    for case in result["cases"]:
        ours, peer = fastest_way(case, [category.ours]), fastest_way(case, peers)
        ratios = []
        if ours and peer:
            pairs = zip(case["seconds"][ours], case["seconds"][peer], strict=True)
            ratios = [their_s / our_s for our_s, their_s in pairs]
        if ours or peer:
            found.append(Standing(case, ours, peer, ratios))
    return found


def usual_peer(stands: Sequence[Standing]) -> str | None:
    """Return the backend that is the strongest peer in most cases; None where no peer took part."""
    counts = Counter(backend_of(stand.peer) for stand in stands if stand.peer)
    return counts.most_common(1)[0][0] if counts else None


def telling_sides(result: Result, always: Sequence[str], number: int) -> list[str]:
    """Choose sides for a picture of fixed lengths, in the result's order.

    Ours and `always` come first; then those peers that come nearest to the fastest peer in any case.
    """
    fixed = [case for case in result["cases"] if case["case"] == "fixed"]
    timed = {name for case in fixed for name in case["tokens_per_s"]}
    names = [name for name in result["backends"] if name in timed]
    peers = [name for name in names if not is_ours(name)]

    def nearness(name: str) -> float:
        shares = [0.0]
        for case in fixed:
            rates = {way: spread["median"] for way, spread in case["tokens_per_s"].items() if way in peers}
            shares.append(rates.get(name, 0) / max(rates.values(), default=1))
        return max(shares)

    first = [name for name in names if is_ours(name) or name in always]
    others = sorted((name for name in peers if name not in first), key=nearness, reverse=True)
    chosen = {*first, *others[: max(0, number - len(first))]}
    return [name for name in names if name in chosen]


def losses_sentence(result: Result) -> str:
    """Say where our sides are behind the strongest peer, or that they are behind nowhere."""
    stands = [(category, standings(result, category)) for category in categories_of(result)]
    compared = [category for category, found in stands if any(stand.ratios for stand in found)]
    if not compared:
        return "No peer was timed beside hgt_infer."
    losses = [loss for category, found in stands for loss in _losses(category, found)]
    if losses:
        return f"{'; '.join(losses)}."
    behind = " or ".join(f"{category.ours} behind the {category.title}" for category in compared)
    return f"In no case of this run is {behind}."


def _losses(category: Category, stands: Sequence[Standing]) -> Iterator[str]:
    """Name each peer that is ahead in a category, with the cases."""
    lost = [(backend_of(stand.peer), stand) for stand in stands if stand.peer and stand.verdict == "behind"]
    for peer in dict.fromkeys(name for name, _ in lost):
        yield f"{category.ours} is behind {peer} {_places([stand for name, stand in lost if name == peer])}"


def _places(stands: Sequence[Standing]) -> str:
    fixed = [stand for stand in stands if stand.case["case"] == "fixed"]
    others = [stand for stand in stands if stand.case["case"] != "fixed"]
    sizes = _listed([str(stand.case["batch_size"]) for stand in fixed])
    places = [f"at {sizes} at once"] * bool(fixed) + [f"with {case_label(stand.case)}" for stand in others]
    ratios = ", ".join(f"{stand.ratio.median:.2f} ×" for stand in (*fixed, *others) if stand.ratio)
    return f"{_listed(places)} ({ratios})"


def _listed(parts: Sequence[str]) -> str:
    """Join parts.

    >>> _listed(["1", "4", "64"])
    '1, 4 and 64'
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))

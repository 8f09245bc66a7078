"""Results of the suite of benchmarks, made of given seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measure.comparison import Spread
from benchmarks.pages.blocks import Block, Table, Text

PRECISIONS = {  # of weights and products
    "hgt_infer": ("fp32", "fp32"),
    "hgt_infer_int8": ("int8", "int8"),
    "transformers": ("fp32", "fp32"),
    "peer": ("fp32", "fp32"),
    "peer_bf16": ("bf16", "fp32"),
    "peer_int8": ("int8", "int8"),
}
ROUNDS = {
    "hgt_infer": [2.0] * 5,
    "hgt_infer_int8": [1.0] * 5,
    "transformers": [8.0] * 5,
    "peer": [4.0] * 5,
    "peer_int8": [3.0] * 5,
}
"""Seconds of five rounds: no peer is ahead."""
Timings = Mapping[str, Sequence[float]]


def make_result(
    fixed: Mapping[int, Timings], *, tweets: Timings | None = None, names: Iterable[str] = PRECISIONS
) -> dict[str, Any]:
    """A result of the suite with the given seconds by batch size and way; it lists the given backends."""
    cases = [make_case(seconds, case="fixed", batch_size=size) for size, seconds in fixed.items()]
    if tweets:
        cases.append(make_case(tweets, case="tweets"))
    percentiles = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
    start = vars(Spread.of([0.5, 0.6, 0.7])) | {"rounds": [0.5, 0.6, 0.7], "disturbed": []}
    return {
        "environment": {
            "cpu": "a CPU",
            "cpu_flags": ["avx2"],
            "physical_cores": 2,
            "memory_gb": 8.0,
            "python": "3.11.7",
            "versions": {"numpy": "2.0"},
            "commit": "abc",
        },
        "quiet": {"load": 0.1, "waited_s": 0.0, "is_quiet": True},
        "bounds": [make_reading("before", 10.0), make_reading("after", 20.0)],
        "model": {"n_layer": 1, "n_embd": 1000, "n_head": 1, "n_positions": 64, "vocab_size": 8000},
        "reference": "transformers",
        "backends": {name: make_backend(name) for name in names},
        "agreement": {name: {"share": 1.0, "largest_margin": 0.0} for name in names},
        "absent": [],
        "cases": cases,
        "apart": [],
        "serving": [
            {
                "backend": name,
                "rate": rate,
                "num_rounds": 2,
                "num_requests": 8,
                "first_token_s": percentiles,
                "end_s": percentiles,
                "goodput": 1.0,
                "disturbed": [],
            }
            for rate in (1.0, 4.0)
            for name in names
        ],
        "first_token_s": {name: start for name in names if name.startswith("hgt_infer")},
    }


def make_case(seconds: Timings, **about: Any) -> dict[str, Any]:
    num_tokens = 64 * about.get("batch_size", 4)
    reference = next(way for way in seconds if way.startswith("transformers"))
    pairs = {way: zip(seconds[reference], values, strict=True) for way, values in seconds.items()}
    return {
        **about,
        "num_steps": 64,
        "num_tokens": num_tokens,
        "seconds": {way: [*values] for way, values in seconds.items()},
        "tokens_per_s": {
            way: vars(Spread.of([num_tokens / value for value in values])) for way, values in seconds.items()
        },
        "compared_with": reference,
        "ratio": {
            way: vars(Spread.of([their_s / our_s for their_s, our_s in of_way]))
            for way, of_way in pairs.items()
        },
        "disturbed": {way: [] for way in seconds},
    }


def make_backend(name: str) -> dict[str, Any]:
    precision, arithmetic = PRECISIONS.get(name, ("fp32", "fp32"))
    ours = name.startswith("hgt_infer")
    return {
        "precision": precision,
        "arithmetic": arithmetic,
        "cache_bytes": 4,
        "environment": "",
        "versions": {name: "1.0"},
        "settings": f"settings of {name}",
        "load_s": 1.0,
        "weights_mb": 500.0 if ours else None,
        "memory_mb": {"resident": 700.0, "peak": 900.0},
        "can": {"seeds": ours, "refills": ours, "lengths": ours},
        "is_torch_free": ours,
        "company": {"greedy": [8, 8] if ours else [7, 8], "sampled": [8, 8] if ours else None},
    }


def make_reading(when: str, rate: float) -> dict[str, Any]:
    rates = {"read_gb_s": rate, "read_huge_gb_s": rate + 5, "fp32_gflop_s": 100.0}
    return {"when": when, **rates, "bf16_gflop_s": 200.0, "int8_gop_s": 400.0}


def rows(blocks: Iterable[Block]) -> list[list[str]]:
    return [[*row] for block in blocks if isinstance(block, Table) for row in block.rows]


def texts(blocks: Iterable[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Text)]

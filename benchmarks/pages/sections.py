"""The sections of the page that shows a suite's result, a function each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.measure.bounds import best_bounds, cache_bytes_per_token, step_bytes
from benchmarks.measure.comparison import backend_of
from benchmarks.measure.workloads import PROMPT_LENGTH
from benchmarks.pages.blocks import Block, Heading, Items, Picture, Table, Text
from benchmarks.pages.standing import (
    WORKLOADS,
    Category,
    Result,
    Standing,
    case_label,
    categories_of,
    fastest_way,
    losses_sentence,
    standings,
    usual_peer,
)

TITLE = "hgt_infer and its peers on a CPU"
NOT_QUIET = Text("This run was not quiet: do not quote it.", is_strong=True)
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
COMPUTE_RATES = {"fp32": "fp32_gflop_s", "bf16": "bf16_gflop_s", "int8": "int8_gop_s"}
READINGS = {
    "read_gb_s": "read (GB/s)",
    "read_huge_gb_s": "read from huge pages (GB/s)",
    "fp32_gflop_s": "fp32 (GFLOP/s)",
    "bf16_gflop_s": "bf16 (GFLOP/s)",
    "int8_gop_s": "int8 (GOP/s)",
}
FIGURE_SIZES = (1, 16, 64)


def page(result: Result) -> Iterator[Block]:
    """Yield all blocks of the page."""
    yield Heading(TITLE, 1)
    yield from banner(result)
    yield from method(result)
    yield from strongest_peers(result)
    yield from fixed_lengths(result)
    yield from bounds(result)
    yield from other_workloads(result)
    yield from arrivals(result)
    yield from abilities(result)
    yield from starts_and_agreement(result)
    yield from settings(result)
    yield from quietness(result)


def figures(result: Result) -> Iterator[Block]:
    """Yield what a reader compares first: our sides, the strongest peers and the reference in a few cases."""
    yield from banner(result)
    cases = [
        case for case in result["cases"] if case["case"] == "tweets" or case.get("batch_size") in FIGURE_SIZES
    ]
    rows = []
    for category in categories_of(result):
        rows.append([category.ours, *(_beside_reference(result, case, [category.ours]) for case in cases)])
        rows.append(_strongest_row(result, cases, category))
    reference = result["reference"]
    rows.append([reference, *(_beside_reference(result, case, [reference]) for case in cases)])
    heads = [case_label(case) for case in cases]
    yield Table([f"tokens a second (times {reference})", *heads], rows)
    yield Text(losses_sentence(result))


def banner(result: Result) -> Iterator[Block]:
    if not result["quiet"]["is_quiet"]:
        yield NOT_QUIET


def method(result: Result) -> Iterator[Block]:
    environment = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    yield Text(
        f"{environment['cpu']}, {environment['physical_cores']} cores "
        f"({', '.join(environment['cpu_flags'])}), {environment['memory_gb']} GB; "
        f"Python {environment['python']}, {versions}; commit {environment['commit']}."
    )
    model = result["model"]
    yield Text(
        f"The model has the shape of GPT-2 ({model['n_layer']} layers, width {model['n_embd']}) and random "
        "weights. Every backend runs in a process of its own, with the same weights, prompts, sampling "
        "(temperature 1, top_k 50, top_p 0.95, end-of-text suppressed), numbers of tokens and threads; the "
        "processes take turns. hgt_infer and transformers' pipeline take and give texts, llama-server takes "
        "texts, all others take and give token ids. Figures are medians with the range of all rounds, ratios "
        "are of the same rounds."
    )
    if result["absent"]:
        yield Text(f"Not in this run: {', '.join(result['absent'])}.")


def strongest_peers(result: Result) -> Iterator[Block]:
    """A row for each case: our side, the fastest peer, and how they stand to each other."""
    yield Heading("Beside the strongest peer")
    yield Text(
        "The strongest peer of a case is the one with the highest median. The ratio is our speed over its "
        "speed in each round. A side is ahead where it is faster in 5 of 5 or in 9 of 10 rounds (a sign test "
        "at 10 %), else the sides are level. Fewer than 5 rounds decide nothing."
    )
    for category in categories_of(result):
        stands = standings(result, category)
        counts = Counter(stand.verdict for stand in stands if stand.verdict)
        total = sum(counts.values())
        tally = ", ".join(f"{word} in {counts[word]}" for word in ("ahead", "level", "behind"))
        yield Text(f"{category.ours} beside the fastest peer {category.peers}: {tally} of {total} cases.")
        yield Table(
            ["", category.ours, "strongest peer", "its tokens a second", "ratio", "rounds", ""],
            [_standing_row(stand) for stand in stands],
        )


def fixed_lengths(result: Result) -> Iterator[Block]:
    fixed, reference = _fixed(result), result["reference"]
    yield Heading("Tokens a second, fixed lengths")
    yield _rates(result, fixed)
    yield Picture("throughput.png", "Tokens a second against the batch")
    yield Text(
        f"The picture shows our sides, {reference} and the peers that come nearest to the fastest one; our "
        "sides and the strongest peers of most cases are drawn alike, all others in grey. Times as fast as "
        f"{reference}, in the same rounds:"
    )
    yield _ratios(result, fixed)
    yield Picture("latency.png", "Milliseconds a step against tokens a second")
    if result["apart"]:
        yield Text(
            "The backends of the next two tables take turns with our sides and the reference alone, because "
            f"memory does not hold all processes at once. Tokens a second, and times as fast as {reference}:"
        )
        yield _rates(result, result["apart"])
        yield _ratios(result, result["apart"])


def _rates(result: Result, fixed: Sequence[Result]) -> Table:
    return Table(
        ["sequences at once", *_sizes(fixed)],
        [
            [name, *(_spread(case["tokens_per_s"].get(name)) for case in fixed)]
            for name in _names(result, fixed)
        ],
    )


def _ratios(result: Result, fixed: Sequence[Result]) -> Table:
    return Table(
        ["sequences at once", *_sizes(fixed)],
        [
            [name, *(_spread(case["ratio"].get(name), digits=2) for case in fixed)]
            for name in _names(result, fixed)
            if name != result["reference"]
        ],
    )


def bounds(result: Result) -> Iterator[Block]:
    fixed, readings = _fixed(result), result["bounds"]
    best = best_bounds([{key: reading[key] for key in READINGS} for reading in readings])
    yield Heading("How near the machine's bound")
    yield Text(
        f"The machine's rates, measured with {result['environment']['physical_cores']} threads; the best of "
        "each is taken:"
    )
    yield Table(
        ["", *READINGS.values()],
        [
            [when, *(f"{rates[key]:,.{1 if 'gb' in key else 0}f}" for key in READINGS)]
            for when, rates in (*((reading["when"], reading) for reading in readings), ("best", best))
        ],
    )
    yield Text(
        "A step reads all weights and the cache of every row, as the backend stores them, and computes two "
        "operations a weight and row, in the arithmetic of the backend. The larger time of the two over the "
        "measured one:"
    )
    yield Table(
        ["sequences at once", *_sizes(fixed)],
        [[name, *(_of_bound(result, case, name, best) for case in fixed)] for name in _names(result, fixed)],
    )


def other_workloads(result: Result) -> Iterator[Block]:
    yield Heading("Other workloads")
    for case in result["cases"]:
        if case["case"] not in WORKLOADS:
            continue
        num_rounds = _num_rounds(case)
        label = f"{case_label(case)}{_mark(case)}"
        yield Text(
            f"{label[0].upper()}{label[1:]}: {_requests(case)}{case['num_tokens']:,} tokens, {num_rounds} "
            f"round{'s' if num_rounds > 1 else ''}; times as fast as {case['compared_with']}:"
        )
        yield Table(
            ["", "tokens a second", "times as fast"],
            [
                [name, _spread(spread), _spread(case["ratio"][name], digits=2)]
                for name, spread in case["tokens_per_s"].items()
            ],
        )


def arrivals(result: Result) -> Iterator[Block]:
    if not result["serving"]:
        return
    yield Heading("Poisson arrivals")
    yield Text(
        "Open loop: requests as long as tweets arrive as a Poisson process, whether earlier ones are done or "
        "not. Goodput is the share whose first token came within 0.5 s. A static batch of transformers shows "
        "nothing before it ends. Percentiles are over the requests of all "
        f"{result['serving'][0]['num_rounds']} rounds."
    )
    yield Table(
        [
            "",
            "requests a second",
            "requests",
            "first token p50 / p90 (s)",
            "whole text p50 / p90 (s)",
            "goodput",
        ],
        [
            [
                entry["backend"],
                f"{entry['rate']:g}{_star(entry['disturbed'])}",
                str(entry["num_requests"]),
                " / ".join(f"{entry['first_token_s'][p]:.2f}" for p in ("p50", "p90")),
                " / ".join(f"{entry['end_s'][p]:.2f}" for p in ("p50", "p90")),
                f"{entry['goodput']:.0%}",
            ]
            for entry in result["serving"]
        ],
    )
    yield Picture("first_tokens.png", "Seconds to the first token against requests a second")


def abilities(result: Result) -> Iterator[Block]:
    yield Heading("What each side can do")
    yield Text(
        "In company: prompts whose tokens are the same alone and among others. Refilling: a new request "
        "takes the place of an ended one at once. Memory is resident after the largest batch of the side."
    )
    yield Table(
        [
            *("", "a seed per request", "greedy in company", "sampled in company", "refilling"),
            *("a length per request", "without torch", "files (MB)", "memory (MB)"),
        ],
        [
            [
                name,
                _yes(backend["can"]["seeds"]),
                _of(backend["company"]["greedy"]),
                _of(backend["company"]["sampled"]) or "no seeds",
                _yes(backend["can"]["refills"]),
                _yes(backend["can"]["lengths"]),
                _yes(backend["is_torch_free"]),
                f"{backend['weights_mb']:,.0f}" if backend["weights_mb"] else "the checkpoint",
                f"{backend['memory_mb']['resident']:,.0f}",
            ]
            for name, backend in result["backends"].items()
        ],
    )


def starts_and_agreement(result: Result) -> Iterator[Block]:
    reference = result["reference"]
    yield Heading("Cold start, peak memory, agreement")
    yield Table(
        [
            "",
            "import to first token (s)",
            "peak memory (MB)",
            f"greedy tokens that are {reference}'s choice",
        ],
        [
            [
                name,
                _start(result["first_token_s"].get(name)),
                f"{backend['memory_mb']['peak']:,.0f}",
                f"{result['agreement'][name]['share']:.1%}",
            ]
            for name, backend in result["backends"].items()
        ],
    )
    yield Picture("agreement.png", f"Greedy tokens that are {reference}'s choice against tokens a second")


def settings(result: Result) -> Iterator[Block]:
    yield Heading("Settings of each side")
    lines = []
    for name, backend in result["backends"].items():
        versions = [f"{package} {number}" for package, number in backend["versions"].items()]
        parts = [
            f"weights {backend['precision']}, products {backend['arithmetic']}",
            f"{8 * backend['cache_bytes']} bits a value of the KV cache",
            ", ".join(versions),
            backend["environment"] and f"environment {backend['environment']}",
            backend["settings"],
        ]
        lines.append(f"{name}: {'; '.join(filter(None, parts))}")
    yield Items(lines)


def quietness(result: Result) -> Iterator[Block]:
    """The load, how long the run waited for it, and every timing that others on the machine disturbed."""
    quiet = result["quiet"]
    yield Heading("How quiet the machine was")
    end = "then the machine was quiet" if quiet["is_quiet"] else "and timed out: the machine was not quiet"
    yield Text(f"Load at the start: {quiet['load']:.2f}. The run waited {quiet['waited_s']:,.0f} s, {end}.")
    counts = [(label, way, *_counts(timings)) for label, way, timings in _disturbed_timings(result)]
    repeated, kept = (sum(count[place] for count in counts) for place in (2, 3))
    yield Text(
        f"Timings that were repeated because others took processor time in them: {repeated}. Timings that "
        f"are disturbed all the same and count: {kept}" + ("; a * marks these cases." if kept else ".")
    )
    if repeated or kept:
        yield Table(
            ["", "side", "repeated", "disturbed and kept"],
            [
                [label, way, str(num_repeated), str(num_kept)]
                for label, way, num_repeated, num_kept in counts
                if num_repeated or num_kept
            ],
        )


def _fixed(result: Result) -> list[Result]:
    return [case for case in result["cases"] if case["case"] == "fixed"]


def _names(result: Result, cases: Sequence[Result]) -> list[str]:
    """The backends that took part in some cases."""
    return [name for name in result["backends"] if any(name in case["tokens_per_s"] for case in cases)]


def _sizes(fixed: Sequence[Result]) -> list[str]:
    return [f"{case['batch_size']}{_mark(case)}" for case in fixed]


def _requests(case: Result) -> str:
    return f"{case['num_requests']:,} requests, " if "num_requests" in case else ""


def _num_rounds(case: Result) -> int:
    return len(next(iter(case["seconds"].values())))


def _disturbed_timings(result: Result) -> Iterator[tuple[str, str, Sequence[Result]]]:
    """Yield what was timed, of which way, and its timings that were disturbed."""
    for case in (*result["cases"], *result["apart"]):
        for way, timings in case["disturbed"].items():
            yield f"{case_label(case)}{_mark(case)}", way, timings
    for entry in result["serving"]:
        label = f"arrivals, {entry['rate']:g} a second{_star(entry['disturbed'])}"
        yield label, entry["backend"], entry["disturbed"]
    for name, starts in result["first_token_s"].items():
        yield f"import to first token{_star(starts['disturbed'])}", name, starts["disturbed"]


def _counts(timings: Sequence[Result]) -> tuple[int, int]:
    """Count the timings that were repeated, and those that were kept."""
    kept = sum(timing["is_kept"] for timing in timings)
    return len(timings) - kept, kept


def _mark(case: Result) -> str:
    return "*" if any(map(_star, case["disturbed"].values())) else ""


def _star(timings: Sequence[Result]) -> str:
    return "*" if _counts(timings)[1] else ""


def _start(seconds: Result | None) -> str:
    return _spread(seconds, digits=2) + _star(seconds["disturbed"] if seconds else ())


def _standing_row(stand: Standing) -> list[str]:
    rates = stand.case["tokens_per_s"]
    return [
        f"{case_label(stand.case)}{_mark(stand.case)}",
        _spread(rates[stand.ours]) if stand.ours else "not timed",
        stand.peer or "not timed",
        _spread(rates[stand.peer]) if stand.peer else "",
        _spread(vars(stand.ratio), digits=2) if stand.ratio else "",
        str(_num_rounds(stand.case)),
        stand.verdict,
    ]


def _strongest_row(result: Result, cases: Sequence[Result], category: Category) -> list[str]:
    """Name the usual strongest peer in front, and another one in its cell."""
    stands = standings(result, category)
    usual = usual_peer([stand for stand in stands if stand.case in cases])
    peers = {id(stand.case): backend_of(stand.peer) for stand in stands if stand.peer}
    cells = []
    for case in cases:
        peer = peers.get(id(case))
        named = "" if peer in (None, usual) else f", {peer}"
        cells.append(_beside_reference(result, case, [peer] if peer else [], named))
    return [f"{category.title}: {usual}", *cells]


def _beside_reference(result: Result, case: Result, names: Sequence[str], named: str = "") -> str:
    """Return tokens a second of the fastest way, with times the reference in brackets; empty without one."""
    way = fastest_way(case, names)
    if way is None:
        return ""
    rate, ratio = case["tokens_per_s"][way]["median"], case["ratio"][way]["median"]
    times = "" if names == [result["reference"]] and not named else f" ({ratio:.1f} ×{named})"
    return f"{rate:,.0f}{times}"


def _of_bound(result: Result, case: Result, name: str, best: Mapping[str, float]) -> str:
    """Return the shortest time that a step can take here over the one that it took."""
    if name not in case["tokens_per_s"]:
        return ""
    sizes, backend = result["model"], result["backends"][name]
    num_weights = sizes["n_layer"] * 12 * sizes["n_embd"] ** 2 + sizes["vocab_size"] * sizes["n_embd"]
    read = step_bytes(
        num_weights * BYTES[backend["precision"]],
        cache_bytes_per_token(sizes["n_layer"], sizes["n_embd"], backend["cache_bytes"]),
        [PROMPT_LENGTH + case["num_steps"] / 2] * case["batch_size"],
    )
    read_s = read / (max(best["read_gb_s"], best["read_huge_gb_s"]) * 1e9)
    compute_s = 2 * num_weights * case["batch_size"] / (best[COMPUTE_RATES[backend["arithmetic"]]] * 1e9)
    step_s = case["batch_size"] / case["tokens_per_s"][name]["median"]
    return f"{max(read_s, compute_s) / step_s:.0%}"


def _spread(spread: Mapping[str, float] | None, digits: int | None = None) -> str:
    """Median and range; nothing for a side that was left out of a case."""
    if spread is None:
        return ""
    digits = (1 if spread["median"] < 1000 else 0) if digits is None else digits
    return f"{spread['median']:,.{digits}f} ({spread['low']:,.{digits}f} – {spread['high']:,.{digits}f})"


def _yes(can: bool) -> str:
    return "yes" if can else "no"


def _of(counts: Sequence[int] | None) -> str:
    return f"{counts[0]} of {counts[1]}" if counts else ""

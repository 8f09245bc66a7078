"""The command line: run the suite, report and compare its results; quality, offline, service alone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.measure.paths import REPOSITORY, RESULTS


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status: 1 where something became slower, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="time every installed backend over every workload")
    run.add_argument("--out", type=Path, default=RESULTS / "suite.json", help="default: %(default)s")
    run.add_argument("--quick", action="store_true", help="fewer rounds and batch sizes")
    run.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that are installed")
    report = commands.add_parser("report", help="write Markdown, HTML and pictures of a result")
    report.add_argument("result", type=Path)
    report.add_argument("--out", type=Path, metavar="DIR", help="default: the project's docs and README")
    compare = commands.add_parser("compare", help="tell what became slower")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    quality = commands.add_parser("quality", help="compare precisions over text, on a trained checkpoint")
    quality.add_argument("checkpoint", type=Path)
    quality.add_argument("--tweets", type=Path, required=True, metavar="FILE", help="whatever training reads")
    quality.add_argument(
        "--texts", type=int, default=1000, metavar="N", help="at most (default: %(default)s)"
    )
    offline = commands.add_parser("offline", help="run one backend over many prompts in one call")
    offline.add_argument("--backend", default="hgt_infer_int8", metavar="NAME", help="default: %(default)s")
    offline.add_argument(
        "--prompts", type=int, default=10_000, metavar="N", help="default: %(default)s, 5 minutes on 2 cores"
    )
    service = commands.add_parser("service", help="load and abuse `hgt-infer serve`")
    service.add_argument("--backend", default="hgt_infer_int8", metavar="NAME", help="default: %(default)s")
    service.add_argument("--small", action="store_true", help="a model of 0.1 million parameters")
    service.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    service.add_argument(
        "--beside", nargs="+", default=[], metavar="NAME", help="other servers: llama_server_q8_0"
    )
    service.add_argument(
        "--rates", nargs="+", type=float, default=[], metavar="RATE",
        help="requests a second of all servers; default: 50 %% and 90 %% of what the slowest takes",
    )  # fmt: skip
    service.add_argument("--abuse", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    try:
        return {
            "run": _run,
            "report": _report,
            "compare": _compare,
            "quality": _quality,
            "offline": _offline,
            "service": _service,
        }[parsed.command](parsed)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.suite import FULL, QUICK, run
    from benchmarks.cases.throughput import REFERENCE
    from benchmarks.peers.registry import BACKENDS

    names = parsed.backends or [name for name, entry in BACKENDS.items() if entry.is_installed]
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or REFERENCE not in names:
        raise ValueError(
            f"--backends are of {', '.join(BACKENDS)}, {REFERENCE} among them; got {' '.join(names)}"
        )
    result = run(names, QUICK if parsed.quick else FULL, RESULTS)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {parsed.out}")
    return 0


def _report(parsed: argparse.Namespace) -> int:
    from benchmarks.pages.report import insert_report, read_result, write_report

    if parsed.out is None:
        docs = REPOSITORY / "docs"
        insert_report(
            read_result(parsed.result), docs / "benchmarks.md", docs / "suite", REPOSITORY / "README.md"
        )
        return 0
    for path in write_report(read_result(parsed.result), parsed.out):
        print(path)
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from benchmarks.pages.blocks import to_markdown
    from benchmarks.pages.report import compare_results, read_result

    table, is_good = compare_results(read_result(parsed.old), read_result(parsed.new))
    print(to_markdown([table]), end="")
    print("nothing became slower" if is_good else "something became slower")
    return 0 if is_good else 1


def _quality(parsed: argparse.Namespace) -> int:
    from itertools import islice

    from benchmarks.cases.quality import measure_quality
    from training.corpus.cleaning import clean
    from training.tweets.reading import read_tweets

    texts = [*islice(clean(read_tweets([parsed.tweets])).kept, parsed.texts)]
    print(json.dumps(measure_quality(parsed.checkpoint, texts), indent=2))
    return 0


def _offline(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.offline import run_offline

    if parsed.prompts < 1:
        raise ValueError(f"--prompts is at least 1; got {parsed.prompts}")
    print(json.dumps(run_offline(parsed.backend, parsed.prompts, RESULTS), indent=2))
    return 0


def _service(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.service import run_service
    from benchmarks.measure.checkpoints import gpt2_small

    config = gpt2_small() if parsed.small else None
    folder = RESULTS / "small" if parsed.small else RESULTS
    result = run_service(
        folder,
        name=parsed.backend,
        num_rounds=parsed.rounds,
        abuse_s=parsed.abuse,
        config=config,
        beside=parsed.beside,
        rates=parsed.rates,
    )
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line: run the suite, report and compare its results; quality, offline, service alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure.paths import REPOSITORY, RESULTS


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status: 1 where something became worse, 2 for an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="time every installed backend over every workload")
    run.add_argument("--out", type=Path, default=RESULTS / "suite.json", help="default: %(default)s")
    run.add_argument(
        "--quick", action="store_true", help="batches of 1 and 16 and tweets, of the fastest sides alone"
    )
    run.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that are installed")
    tune = commands.add_parser("tune", help="try the settings of backends")
    tune.add_argument("--out", type=Path, default=RESULTS / "tuning.json", help="default: %(default)s")
    tune.add_argument("--backends", nargs="+", metavar="NAME", help="default: all that are installed")
    report = commands.add_parser("report", help="write Markdown, HTML and pictures of a result")
    report.add_argument("result", type=Path)
    report.add_argument("--out", type=Path, metavar="DIR", help="default: the project's docs and README")
    compare = commands.add_parser("compare", help="tell what became worse")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    quality = commands.add_parser("quality", help="compare precisions over text, on a trained checkpoint")
    quality.add_argument("checkpoint", type=Path, nargs="?", help="default: random weights with outliers")
    quality.add_argument("--tweets", type=Path, metavar="FILE", help="whatever training reads")
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
        "--beside",
        nargs="+",
        default=[],
        metavar="NAME",
        help="other servers, as llama_server_q8_0_unified",
    )
    service.add_argument(
        "--rates", nargs="+", type=float, default=[], metavar="RATE",
        help="requests a second of all servers; default: 50 %% and 90 %% of what the slowest takes",
    )  # fmt: skip
    service.add_argument("--out", type=Path, default=RESULTS / "service.json", help="default: %(default)s")
    service.add_argument("--abuse", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    try:
        return {
            "run": _run,
            "tune": _tune,
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
    from benchmarks.cases.suite import FULL, QUICK, QUICK_NAMES, run
    from benchmarks.cases.throughput import REFERENCE
    from benchmarks.peers.registry import BACKENDS

    names = _installed(parsed.backends, BACKENDS, QUICK_NAMES if parsed.quick else BACKENDS)
    if REFERENCE not in names:
        raise ValueError(f"--backends needs {REFERENCE}, which the others are compared with")
    run(names, QUICK if parsed.quick else FULL, RESULTS, keep=partial(_keep, parsed.out))
    print(f"kept in {parsed.out}")
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.tuning import TRIED, tune
    from benchmarks.pages.blocks import to_markdown
    from benchmarks.pages.sections import banner
    from benchmarks.pages.trials import trials_table

    result = tune(_installed(parsed.backends, TRIED), RESULTS, keep=partial(_keep, parsed.out))
    print(to_markdown([*banner(result), trials_table(result)]))
    print(f"kept in {parsed.out}")
    return 0


def _keep(path: Path, result: Any) -> None:
    """Write what there is of a result: a run that fails keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _installed(
    names: Sequence[str] | None, known: Iterable[str], usual: Iterable[str] | None = None
) -> list[str]:
    """The names that were asked for, or the usual ones of those that are known, where they are installed.

    Raises:
        ValueError: one is not known, or not installed.
    """
    from benchmarks.peers.registry import BACKENDS

    known = [*known]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"backends are of {', '.join(known)}; got {', '.join(unknown)}")
    missing = [name for name in names or () if not BACKENDS[name].is_installed]
    if missing:
        raise ValueError(f"not installed (`make peers` makes their environments): {', '.join(missing)}")
    return [*names] if names else [name for name in usual or known if BACKENDS[name].is_installed]


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
    from benchmarks.pages.regressions import compare_results
    from benchmarks.pages.report import read_result

    blocks, is_good = compare_results(read_result(parsed.old), read_result(parsed.new))
    print(to_markdown(blocks), end="")
    print("nothing became worse" if is_good else "something became worse")
    return 0 if is_good else 1


def _quality(parsed: argparse.Namespace) -> int:
    from itertools import islice

    from benchmarks.cases.quality import measure_quality, sample_texts
    from benchmarks.measure.checkpoints import GPT2_124M, write_numpy_checkpoint
    from benchmarks.measure.outliers import outlier_weights
    from training.corpus.cleaning import clean
    from training.tweets.reading import read_tweets

    if (parsed.checkpoint is None) != (parsed.tweets is None):
        raise ValueError("a checkpoint needs --tweets, and --tweets a checkpoint")
    if parsed.checkpoint is None:
        checkpoint = write_numpy_checkpoint(RESULTS / "outliers-124m", GPT2_124M, outlier_weights)
        result = measure_quality(checkpoint, sample_texts(checkpoint, parsed.texts, num_tokens=47))
    else:
        texts = [*islice(clean(read_tweets([parsed.tweets])).kept, parsed.texts)]
        result = measure_quality(parsed.checkpoint, texts)
    print(json.dumps(result, indent=2))
    return 0


def _offline(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.offline import run_offline

    if parsed.prompts < 1:
        raise ValueError(f"--prompts is at least 1; got {parsed.prompts}")
    print(json.dumps(run_offline(parsed.backend, parsed.prompts, RESULTS), indent=2))
    return 0


def _service(parsed: argparse.Namespace) -> int:
    from benchmarks.cases.service import SERVERS, run_service
    from benchmarks.measure.checkpoints import gpt2_small
    from benchmarks.measure.comparison import is_ours
    from benchmarks.peers.registry import BACKENDS

    config = gpt2_small() if parsed.small else None
    folder = RESULTS / "small" if parsed.small else RESULTS
    _installed([parsed.backend], [name for name in BACKENDS if is_ours(name)])
    _installed(parsed.beside, SERVERS)
    run_service(
        folder,
        name=parsed.backend,
        num_rounds=parsed.rounds,
        abuse_s=parsed.abuse,
        config=config,
        beside=parsed.beside,
        rates=parsed.rates,
        keep=partial(_keep, parsed.out),
    )
    print(f"kept in {parsed.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

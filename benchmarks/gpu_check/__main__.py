"""`python -m benchmarks.gpu_check`: check, time, show. Exits 1 where a check failed, 2 without a GPU.

The steps are a worker's. Where one of them ends the worker's process, or raises, the next worker goes on
behind it: an error of a GPU stays with the process that it came up in.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.worker import GO_ON, GRACE_S, OVER, UNAVAILABLE, Options
from benchmarks.measure.paths import REPOSITORY

OUTPUT = REPOSITORY / "build" / "gpu_check"
DEFAULT_BUDGET_S = 500.0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, show the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument(
        "--json", type=Path, default=OUTPUT / "gpu_check.json", help="where raw values go: %(default)s"
    )
    parser.add_argument("--checkpoint", help="a GPT-2 checkpoint folder or hub id instead of random weights")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="only steps with such a text in their names",
    )
    parser.add_argument("--device", default="cuda", help="cuda:N, or cpu to try this (%(default)s)")
    parser.add_argument(
        "--budget", type=float, default=DEFAULT_BUDGET_S, metavar="S",
        help="start nothing that so many seconds do not suffice for (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not (math.isfinite(args.budget) and args.budget > 0):
        parser.error(f"--budget must be a positive number of seconds; got {args.budget}")
    if args.only:
        from benchmarks.gpu_check.scale import FULL
        from benchmarks.gpu_check.steps import steps

        names = [step.name for step in steps(FULL)]
        for text in args.only:
            if not any(text in name for name in names):
                parser.error(f"--only: no step has {text!r} in its name; the steps are {', '.join(names)}")
    options = Options(
        json=str(args.json.absolute()),
        device=args.device,
        checkpoint=args.checkpoint,
        scale=scale_of(args.device, is_quick=args.quick),
        only=args.only,
        budget_s=args.budget,
        start_s=time.monotonic(),
        output=str(OUTPUT),
    )
    return run(options)


def scale_of(device: str, *, is_quick: bool) -> str:
    """How much is done, by its name."""
    return "trial" if device == "cpu" else "quick" if is_quick else "full"


def run(options: Options) -> int:
    """Let workers do the steps until all is over; the exit status."""
    path = Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        status = work(options, path)
    finally:
        options.stacks.unlink(missing_ok=True)
        if path.exists():
            print(Report.load(path).table())
            print(f"raw values: {path}", flush=True)
    return status


def work(options: Options, path: Path) -> int:
    """Start one worker after another; each one that ends early has finished a step more."""
    num_done = -1
    while True:
        status = start_worker(options)
        if status == UNAVAILABLE and not options.is_next:
            return UNAVAILABLE
        if status not in (OVER, GO_ON):
            report = Report.load(path) if path.exists() else None
            stacks = options.stacks.read_text(errors="replace") if options.stacks.exists() else ""
            if report is not None and report.running is not None:
                report.end_step(ending_of(status, stacks), stacks=stacks)
            elif report is None or len(report.done) <= num_done:
                print(f"error: the worker ended with status {status} between steps", file=sys.stderr)
                return 1
        report = Report.load(path)
        num_done = len(report.done)
        if status == OVER or report.is_over:
            return 1 if report.has_failed else 0
        options = replace(options, is_next=True)


def start_worker(options: Options) -> int:
    """Run a worker to its end; its exit status, negative for a signal."""
    left_s = options.budget_s + GRACE_S + 30 - (time.monotonic() - options.start_s)
    command = [sys.executable, "-m", "benchmarks.gpu_check.worker", json.dumps(asdict(options))]
    try:
        return subprocess.run(command, cwd=REPOSITORY, timeout=max(left_s, 1), check=False).returncode
    except subprocess.TimeoutExpired:
        return -9


def ending_of(status: int, stacks: str) -> str:
    """How a step ended its process, in a few words."""
    if stacks.startswith("Timeout"):
        return "it was not done in time, and its process was ended"
    return f"its process ended by signal {-status}" if status < 0 else f"its process ended with {status}"


if __name__ == "__main__":
    sys.exit(main())

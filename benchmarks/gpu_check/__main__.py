"""`python -m benchmarks.gpu_check`: check, time, show. Exits 1 where a check failed, 2 without a GPU."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
OUTPUT = REPOSITORY / "build" / "gpu_check"
GRACE_S = 45  # behind the budget: a step that hangs is ended then, with the stacks of all threads


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument(
        "--json", type=Path, default=OUTPUT / "gpu_check.json", help="where raw values go: %(default)s"
    )
    parser.add_argument("--checkpoint", help="a GPT-2 checkpoint folder or hub id instead of random weights")
    parser.add_argument("--quick", action="store_true", help="less of everything: under 3 minutes, not 9")
    parser.add_argument("--profile", action="store_true", help="show the costliest kernels as well")
    parser.add_argument("--only", metavar="TEXT", help="only steps with this in their names")
    parser.add_argument("--device", default="cuda", help="cuda:N, or cpu to try the script (%(default)s)")
    parser.add_argument("--budget", type=float, metavar="S", help="start nothing after so many seconds")
    args = parser.parse_args(argv)
    be_quiet()
    from hgt_infer import HgtInferError

    try:
        return run(args)
    except HgtInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    from benchmarks.environment import capture_environment
    from benchmarks.gpu_check.report import Report
    from benchmarks.gpu_check.steps import steps
    from benchmarks.gpu_check.subject import FULL, QUICK, prepare
    from hgt_infer.device import open_devices

    for device in open_devices(args.device):
        device.close()
    scale = QUICK if args.quick else FULL
    if args.budget is not None:
        scale = replace(scale, budget_s=args.budget)
    chosen = [
        step
        for step in steps(scale, with_profile=args.profile)
        if args.only is None or args.only in step.name
    ]
    report = Report(args.json, capture_environment(), budget_s=scale.budget_s)
    faulthandler.dump_traceback_later(scale.budget_s + GRACE_S, exit=True, file=sys.__stderr__ or 2)
    try:
        subject = prepare(OUTPUT, args.checkpoint, args.device, scale)
        report.run(chosen, subject)
    finally:
        faulthandler.cancel_dump_traceback_later()
        report.save()
        print(report.table())
        print(f"raw values: {args.json}")
    return 1 if report.has_failed else 0


def be_quiet() -> None:
    """Keep what other libraries say while they load out of the terminal; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are started beside threads
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

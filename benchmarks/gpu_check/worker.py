"""The process that does the steps: `python -m benchmarks.gpu_check.worker OPTIONS`, which are JSON.

It may end at any time. Its exit status says whether all is over, or another process is to go on.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

OVER, UNAVAILABLE, GO_ON = 0, 2, 3  # exit statuses; every other one is an end amid a step
GRACE_S = 45  # behind the budget: a step that hangs is ended then
MIN_LIMIT_S = 60  # a step on a GPU may take so long, and three times as long as its estimate


@dataclass(frozen=True)
class Options:
    """What the command was given. scale: of `scale.SCALES`. start_s: of the whole run, monotonic. is_next:
    whether it goes on.
    """

    json: str
    device: str
    checkpoint: str | None
    scale: str
    only: list[str] | None
    budget_s: float
    start_s: float
    output: str
    is_next: bool = False

    @property
    def stacks(self) -> Path:
        """Where the stacks of all threads are written when a step ends the process."""
        return Path(f"{self.json}.stacks")


def main(argv: list[str]) -> int:
    """Do the steps that are not done yet."""
    options = Options(**json.loads(argv[0]))
    be_quiet()
    from hgt_infer import HgtInferError
    from hgt_infer.opening import open_devices

    faulthandler.dump_traceback_later(MIN_LIMIT_S, exit=True)  # a driver that hangs
    try:
        for device in open_devices(options.device):
            device.close()
        faulthandler.cancel_dump_traceback_later()
    except HgtInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNAVAILABLE

    from benchmarks.gpu_check.report import Report, Step
    from benchmarks.gpu_check.scale import SCALES
    from benchmarks.gpu_check.steps import chosen_steps
    from benchmarks.gpu_check.subject import Subject
    from benchmarks.measure.environment import capture_environment

    if options.is_next:
        report = Report.load(Path(options.json))
    else:
        report = Report(
            Path(options.json), capture_environment(), budget_s=options.budget_s, start_s=options.start_s
        )
    scale = SCALES[options.scale]
    subject = Subject(options.checkpoint, Path(options.output), options.device, scale, notes=report.notes)

    with options.stacks.open("w") as stacks:
        faulthandler.enable(stacks)

        def watch(step: Step) -> None:
            left_s = options.budget_s - report.elapsed_s
            limit_s = step_limit_s(step.seconds, left_s=left_s, is_cuda=subject.is_cuda)
            faulthandler.dump_traceback_later(limit_s, exit=True, file=stacks)

        try:
            is_over = report.run(chosen_steps(scale, options.only), subject, watch=watch)
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
    return OVER if is_over else GO_ON


def step_limit_s(seconds: float, *, left_s: float, is_cuda: bool) -> float:
    """Seconds after which a step is ended, by its estimate, which is that of a GPU, and by the time left."""
    limit_s = max(left_s + GRACE_S, 1.0)
    return min(limit_s, max(MIN_LIMIT_S, 3 * seconds)) if is_cuda else limit_s


def be_quiet() -> None:
    """Keep what other libraries say while they load out of the terminal; errors stay."""
    import onnxruntime

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are started beside threads
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)  # where a GPU has failed, destructors of captured graphs abort

"""An engine over a runner of one's choice, for what Generator does not offer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal

from benchmarks.gpu_check.subject import Subject
from benchmarks.measure.workloads import TokenIds
from hgt_infer.cuda.runner import CapturedRunner
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.device_worker import DeviceWorker
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Sequence as Sample
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.opening import DEFAULT_STEPS_PER_SYNC
from hgt_infer.requests.submission import run
from hgt_infer.runtime.runner import ModelRunner

MAX_QUEUED = 65_536


@contextmanager
def open_engine(
    subject: Subject,
    kind: Literal["captured", "eager"],
    *,
    num_slots: int,
    max_length: int,
    max_fed_tokens: int = MAX_FED_TOKENS,
) -> Iterator[Engine]:
    """An engine on the subject's device as Generator sets it up for CUDA: prompts are prefilled one by one.

    "eager" runs consecutive slots, and so closes gaps.
    """
    with subject.open_device() as device:
        runner: Any
        if kind == "captured":
            runner = CapturedRunner(
                subject.artifact,
                device,
                num_slots=num_slots,
                max_length=max_length,
                steps_per_sync=DEFAULT_STEPS_PER_SYNC,
                batch_invariant=True,
            )
        else:
            runner = ModelRunner(subject.artifact, device, num_slots=num_slots, max_length=max_length)
        scheduler = Scheduler(
            num_slots, max_fed_tokens=max_fed_tokens, closes_gaps=kind == "eager", shares_prefills=False
        )
        worker = DeviceWorker(runner, scheduler)
        with closing(Engine([worker], max_queued_sequences=MAX_QUEUED)) as made:
            made.warmup()
            yield made


def run_all(made: Engine, prompts: TokenIds, params: Sequence[SequenceParams]) -> TokenIds:
    """Run a sequence for each prompt; their tokens in the same order."""
    sequences = [
        Sample(prompt, settings, prompt_index=number)
        for number, (prompt, settings) in enumerate(zip(prompts, params, strict=True))
    ]
    finished = list(run(made, iter(sequences), max_in_flight=max(1, len(sequences))))
    finished.sort(key=lambda sequence: sequence.prompt_index)
    return [tuple(sequence.output_token_ids) for sequence in finished]

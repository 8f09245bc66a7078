"""KernelRunner: an eager runner that samples by CUDA's kernel: what captured steps are held against."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
from support.calls import MAX_LENGTH, VOCAB_SIZE, Call, Result, copied, run_all
from support.kernel_rows import Rows

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.batch import BatchOutput
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Sequence
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.runner import ModelRunner
from hgt_infer.sampling.settings import needs_host


class KernelRunner(ModelRunner):
    """The eager runner, but a row that the host does not sample is drawn by CUDA's sampler, by itself."""

    def _step(self, sequences: list[Sequence], num_scheduled_tokens: list[int] | None) -> BatchOutput:
        drawn = [
            s
            for s in sequences
            if s.has_cached_prompt and not needs_host(s.params, VOCAB_SIZE, max_top_k=None)
        ]
        params = [s.params for s in drawn]
        try:
            for s in drawn:  # sampled on the host, that is to say below
                s.params = dataclasses.replace(s.params, logits_processor=partial(self._draw, s))
                self.on_host[s.slot] = self.reads_logits[s.slot] = True
            return super()._step(sequences, num_scheduled_tokens)
        finally:
            for s, original in zip(drawn, params, strict=True):
                s.params = original
                self.on_host[s.slot] = False  # a copy of the slot has its settings

    def _draw(self, sequence: Sequence, token_ids: list[int], logits: Any) -> Any:
        """Logits that leave nothing but the token that CUDA's sampler draws."""
        params, step = sequence.params, len(sequence.output_token_ids)
        position = len(sequence.prompt_token_ids) - 1 + step
        row = Rows(
            logits,
            seed=np.uint64(params.seed),
            sample_index=sequence.sample_index,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            prompt_length=len(sequence.prompt_token_ids),
        )
        row.positions[:] = position
        token_id = row.step()[0]
        if token_id < 0:
            return logits
        only = np.full_like(logits, -np.inf)
        only[token_id] = 0
        return only


def run_eager(artifact: Artifact, calls: list[Call]) -> list[list[Result]]:
    """What each of the calls gives, which stay as they are."""
    runner = KernelRunner(artifact, CpuDevice(with_kernels=False), num_slots=8, max_length=MAX_LENGTH)
    return run_all(runner, Scheduler(8, max_fed_tokens=MAX_FED_TOKENS), copied(calls))

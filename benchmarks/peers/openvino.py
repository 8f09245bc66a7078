"""OpenVINO GenAI: its continuous batching over a paged cache, its kernels and its sampler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload

NUM_BATCHED_TOKENS = 1024  # of a step; a long prompt is not cut


class OpenVino:
    """OpenVINO GenAI's ContinuousBatchingPipeline on a CPU; from ids to ids.

    It takes as many threads as there are physical cores by itself, and has no end-of-text before the last
    token. New requests enter as soon as earlier ones end.

    Args:
        checkpoint: is converted into the folder by optimum-intel, once.
        weights: "fp32" or "int8" (a scale per output channel; products in the arithmetic below).
        properties: of the plugin: INFERENCE_PRECISION_HINT, KV_CACHE_PRECISION, INFERENCE_NUM_THREADS.
            Without them it computes in bfloat16 where the processor can, and keeps an 8-bit cache.
        scheduler: more settings of its SchedulerConfig.
    """

    name = "openvino"

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        *,
        weights: str,
        properties: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        import openvino_genai

        if not folder.exists():
            convert(checkpoint, folder, weights)
        self._genai = openvino_genai
        config = openvino_genai.SchedulerConfig()
        for key, value in (
            {"enable_prefix_caching": False, "max_num_batched_tokens": NUM_BATCHED_TOKENS}
            | dict(scheduler or {})
        ).items():
            setattr(config, key, value)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), config, "CPU", dict(properties or {})
        )
        self._handles: dict[int, Any] = {}
        self._counts: dict[int, int] = {}

    def generate(
        self, workload: Workload | MixedWorkload, *, greedy: bool = False, seeds: Sequence[int] | None = None
    ) -> TokenIds:
        sampling = {} if greedy else workload.sampling
        samples = 1 if greedy else workload.n
        handles = [
            self._add(number, ids, length, sampling, n=samples, seed=seeds[number] if seeds else number)
            for number, (ids, length) in enumerate(
                zip(workload.prompt_token_ids, workload.lengths, strict=True)
            )
        ]
        # Its own `generate` does the same, but each result holds the times of all steps: 20 GB for 10,000.
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        rows = [tuple(output.generated_ids) for handle in handles for output in handle.read_all()]
        return [row for row in rows for _ in range(workload.n // samples)]

    def add_request(
        self, number: int, prompt_token_ids: Sequence[int], num_new_tokens: int, sampling: Mapping[str, Any]
    ) -> None:
        """See `measure.arrivals.Engine`."""
        self._handles[number] = self._add(
            number, prompt_token_ids, num_new_tokens, sampling, n=1, seed=number
        )
        self._counts[number] = 0

    def step(self) -> dict[int, int]:
        """See `measure.arrivals.Engine`."""
        self._pipeline.step()
        changed = {}
        for number, handle in [*self._handles.items()]:
            while handle.can_read():
                self._counts[number] += sum(len(output.generated_ids) for output in handle.read().values())
                changed[number] = self._counts[number]
            if handle.get_status() != self._genai.GenerationStatus.RUNNING and not handle.can_read():
                del self._handles[number], self._counts[number]
        return changed

    @property
    def num_unfinished(self) -> int:
        """See `measure.arrivals.Engine`."""
        return len(self._handles)

    def _add(
        self,
        number: int,
        prompt_token_ids: Sequence[int],
        num_new_tokens: int,
        sampling: Mapping[str, Any],
        *,
        n: int,
        seed: int,
    ) -> Any:
        """Hand a request to the pipeline, greedy where sampling is empty, and return its handle."""
        import numpy as np
        from openvino import Tensor

        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_new_tokens
        config.ignore_eos = True
        config.num_return_sequences = n
        config.rng_seed = seed
        config.do_sample = bool(sampling)
        for key, value in sampling.items():
            setattr(config, key, value)
        return self._pipeline.add_request(number, Tensor(np.array([prompt_token_ids], np.int64)), config)


def convert(checkpoint: Path, folder: Path, weights: str) -> None:
    """Write a checkpoint as OpenVINO's model, in a process of its own: this one stays without torch."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [
        Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", checkpoint,
        "--task", "text-generation-with-past", "--weight-format", weights, partial,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    partial.rename(folder)

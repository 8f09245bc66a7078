"""CTranslate2: its own format, its own kernels, static batches whose rows end one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload


class CTranslate2:
    """CTranslate2's generator; from token strings to ids.

    Args:
        checkpoint: is converted into the folder, once.
        compute_type: "float32" or "int8".
    """

    def __init__(self, checkpoint: Path, folder: Path, *, compute_type: str) -> None:
        import ctranslate2
        from tokenizers import Tokenizer

        self.name = "ctranslate2" if compute_type == "float32" else f"ctranslate2_{compute_type}"
        if not (folder / "model.bin").exists():
            converter = ctranslate2.converters.TransformersConverter(str(checkpoint))
            converter.convert(str(folder), quantization=compute_type, force=True)
        self._generator = ctranslate2.Generator(
            str(folder),
            device="cpu",
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=num_physical_cores(),
        )
        self._token = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).id_to_token

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        ids = self._generate(workload, workload.num_new_tokens, workload.n, greedy=greedy)
        return [row for row in ids for _ in range(workload.n if greedy else 1)]

    def generate_padded(self, batch: MixedWorkload, *, greedy: bool = False) -> TokenIds:
        """All requests at once, each until it has its length."""
        token_ids, _ = self._generate_and_time(batch, greedy=greedy)
        return token_ids

    def time_tokens(self, batch: MixedWorkload) -> list[tuple[float, float]]:
        """See `measure.arrivals.serve_in_batches`."""
        _, times = self._generate_and_time(batch, greedy=False)
        return [(row[0], row[-1]) for row in times]

    def _generate_and_time(self, batch: MixedWorkload, *, greedy: bool) -> tuple[TokenIds, list[list[float]]]:
        """Return the tokens of each request, and the time at which each of them came."""
        times: list[list[float]] = [[] for _ in batch.lengths]

        def is_last(step: Any) -> bool:
            times[step.batch_id].append(time.perf_counter())
            return len(times[step.batch_id]) == batch.lengths[step.batch_id]

        token_ids = self._generate(batch, max(batch.lengths), 1, greedy=greedy, callback=is_last)
        return token_ids, times

    def _generate(
        self,
        workload: Workload | MixedWorkload,
        num_new_tokens: int,
        n: int,
        *,
        greedy: bool,
        callback: Callable[[Any], bool] | None = None,
    ) -> TokenIds:
        settings: dict[str, Any] = {}
        if not greedy:
            settings = {
                "sampling_temperature": workload.temperature,
                "sampling_topk": workload.top_k,
                "sampling_topp": workload.top_p,
                "num_hypotheses": n,
            }
        results = self._generator.generate_batch(
            [[self._token(id_) for id_ in ids] for ids in workload.prompt_token_ids],
            max_length=num_new_tokens,
            min_length=num_new_tokens,
            include_prompt_in_result=False,
            callback=callback,
            **settings,
        )
        return [tuple(ids) for result in results for ids in result.sequences_ids]

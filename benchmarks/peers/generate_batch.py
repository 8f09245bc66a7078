"""transformers' own continuous batching, which runs on a CPU since its version 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload

NUM_CACHE_TOKENS = 16_384  # 1.2 GB in fp32; 256 sequences of 64 tokens fit
MAX_BATCH_TOKENS = 1_024
WAIT_S = 300.0


class GenerateBatch:
    """What `generate_batch` runs, in fp32, kept between calls as a service keeps it; from ids to ids.

    New requests enter as soon as earlier ones end.

    Args:
        checkpoint: is read as it is; the folder is not used.
        block_size: tokens of a block of its paged cache.
        attention: transformers' name of the attention.
    """

    name = "transformers_generate_batch"

    def __init__(
        self, checkpoint: Path, folder: Path, *, block_size: int = 32, attention: str = "sdpa"
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(num_physical_cores())
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self._end_of_text = self._model.config.eos_token_id
        self._block_size = block_size
        self._manager: Any = None
        self._settings: dict[str, Any] | None = None
        self._number = 0

    def generate(self, workload: Workload | MixedWorkload, *, greedy: bool = False) -> TokenIds:
        self._start({"do_sample": False} if greedy else {"do_sample": True, **workload.sampling})
        first = self._number
        for ids, length in zip(workload.prompt_token_ids, workload.lengths, strict=True):
            for _ in range(workload.n):
                self._add(ids, length)
        rows = {}
        while len(rows) < self._number - first:
            output = self._result()
            if output.is_finished():
                rows[int(output.request_id)] = tuple(output.generated_tokens)
        return [rows[number] for number in range(first, self._number)]

    def close(self) -> None:
        """Stop its thread."""
        if self._manager is not None:
            self._manager.stop(block=True)
            self._manager = None

    def _start(self, settings: dict[str, Any]) -> None:
        """Run with these settings of sampling: they are those of all requests."""
        if settings == self._settings:
            return
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        self.close()
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(
                eos_token_id=-1, pad_token_id=0, suppress_tokens=[self._end_of_text], **settings
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=self._block_size,
                num_blocks=NUM_CACHE_TOKENS // self._block_size,
                max_batch_tokens=MAX_BATCH_TOKENS,
                allow_block_sharing=False,  # a prompt that was seen before is computed again
            ),
        )
        self._manager.start()
        self._settings = settings

    def _add(self, prompt_token_ids: Sequence[int], num_new_tokens: int) -> None:
        self._manager.add_request(list(prompt_token_ids), str(self._number), max_new_tokens=num_new_tokens)
        self._number += 1

    def _result(self) -> Any:
        output = self._manager.get_result(timeout=WAIT_S)
        if output is None or output.error:
            raise RuntimeError(f"generate_batch gave no result: {output and output.error}")
        return output

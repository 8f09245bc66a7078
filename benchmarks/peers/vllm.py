"""vLLM on the CPU: its continuous batching, its paged key-value cache, its kernels and its sampler."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload

BYTES = {"float32": 4, "bfloat16": 2}
MAX_LENGTH = 1024
NUM_SLOTS = 256
NUM_CACHE_TOKENS = 26_214  # 1.9 GB in fp32; 256 sequences of 102 tokens fit


class Vllm:
    """vLLM's engine in this process; from ids to ids. New requests enter as soon as earlier ones end.

    Args:
        checkpoint: is read as it is.
        folder: beside it lies what vLLM compiles.
        dtype: of weights, products and cache: "float32" or "bfloat16".
        num_slots: the most sequences in one step.
        settings: further ones of vLLM's EngineArgs.
    """

    def __init__(
        self, checkpoint: Path, folder: Path, *, dtype: str, num_slots: int = NUM_SLOTS, **settings: Any
    ) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        max_length = min(MAX_LENGTH, config["n_positions"])
        # Read when the libraries are loaded. In this process vLLM takes one thread unless told otherwise.
        os.environ |= {
            "OMP_NUM_THREADS": str(num_physical_cores()),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CACHE_ROOT": str(folder.with_name("compiled")),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        from vllm import EngineArgs, LLMEngine

        self.name = "vllm" if dtype == "float32" else f"vllm_{dtype}"
        self._end_of_text = config["eos_token_id"]
        token_bytes = 2 * config["n_layer"] * config["n_embd"] * BYTES[dtype]
        defaults = {
            "dtype": dtype,
            "max_model_len": max_length,
            "max_num_seqs": num_slots,
            "kv_cache_memory_bytes": NUM_CACHE_TOKENS * token_bytes,
            "enable_prefix_caching": False,  # a prompt that was seen before is computed again
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
        }
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(model=str(checkpoint), **(defaults | settings))
        )

    def generate(
        self,
        workload: Workload | MixedWorkload,
        *,
        greedy: bool = False,
        seeds: Sequence[int | None] | None = None,
    ) -> TokenIds:
        """The new tokens of each sample, in the order of the prompts.

        Args:
            seeds: one for each sample; a sample of seed None is drawn without one.
        """
        sampling = workload.sampling | ({"temperature": 0.0} if greedy else {})
        requests = [
            request
            for request in zip(workload.prompt_token_ids, workload.lengths, strict=True)
            for _ in range(workload.n)
        ]
        seeds = seeds or [None] * len(requests)
        for number, ((prompt, length), seed) in enumerate(zip(requests, seeds, strict=True)):
            self.add_request(number, prompt, length, sampling | {"seed": seed})
        samples: dict[int, tuple[int, ...]] = {}
        while self.num_unfinished:
            for output in self._engine.step():
                if output.finished:
                    samples[int(output.request_id)] = tuple(output.outputs[0].token_ids)
        return [samples[number] for number in range(len(requests))]

    def add_request(
        self, number: int, prompt_token_ids: Sequence[int], num_new_tokens: int, sampling: Mapping[str, Any]
    ) -> None:
        """Put a request into the engine's queue; `step` serves it.

        Args:
            number: different from those of all unfinished requests.
            sampling: as in `Workload.sampling`.
        """
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(
            max_tokens=num_new_tokens,
            min_tokens=num_new_tokens,  # end-of-text is never drawn before
            stop_token_ids=[self._end_of_text],
            detokenize=False,
            **sampling,
        )
        self._engine.add_request(str(number), TokensPrompt(prompt_token_ids=list(prompt_token_ids)), params)

    def step(self) -> dict[int, int]:
        """Compute one step.

        Returns:
            Of each request that got a token in it: its number, and how many tokens it has.
        """
        return {int(output.request_id): len(output.outputs[0].token_ids) for output in self._engine.step()}

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return int(self._engine.get_num_unfinished_requests())

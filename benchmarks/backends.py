"""The two sides, each at its best fair setting, behind one method: a workload in, token ids out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from benchmarks.workloads import Workload

TokenIds = list[tuple[int, ...]]


class Backend(Protocol):
    name: str

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        """The new tokens of each sample, in the order of the prompts."""


class HgtInfer:
    """hgt_infer on the CPU in fp32, with its default settings.

    Its time is from text to text.
    """

    name = "hgt_infer"

    def __init__(self, model: Path) -> None:
        from hgt_infer import Generator

        self.generator = Generator(model, device="cpu", precision="fp32")

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        from hgt_infer import SamplingParams

        params = SamplingParams(
            n=workload.n,
            temperature=0.0 if greedy else workload.temperature,
            top_k=workload.top_k,
            top_p=workload.top_p,
            max_tokens=workload.num_new_tokens,
            min_tokens=workload.num_new_tokens,
        )
        outputs = self.generator.generate(list(workload.prompts), params)
        return [completion.token_ids for output in outputs for completion in output.completions]


class Transformers:
    """transformers' `generate` on the CPU in fp32: key-value cache, sdpa attention, no autograd.

    Its time is that of `generate` alone, from ids to ids. The cache is the default, which grows:
    a static one without compilation takes 6 % longer at batch 1.
    """

    name = "transformers"

    def __init__(self, checkpoint: Path, *, num_threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(num_threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        end_of_text = self.model.config.eos_token_id
        # What the checkpoint says of sampling is left out: the workload says it all.
        self.model.generation_config = GenerationConfig(eos_token_id=end_of_text, pad_token_id=end_of_text)

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        import torch

        settings: dict[str, Any] = {"do_sample": False}
        if not greedy:
            settings = {
                "do_sample": True,
                "temperature": workload.temperature,
                "top_k": workload.top_k,
                "top_p": workload.top_p,
                "num_return_sequences": workload.n,
            }
        input_ids = torch.tensor(workload.prompt_token_ids)
        with torch.inference_mode():
            output_ids = self.model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=workload.num_new_tokens,
                min_new_tokens=workload.num_new_tokens,
                use_cache=True,
                **settings,
            )
        new_ids = output_ids[:, input_ids.shape[1] :].tolist()
        return [tuple(row) for row in new_ids for _ in range(workload.n if greedy else 1)]


def num_physical_cores() -> int:
    """What ONNX Runtime takes by default for its threads, so that transformers gets as many."""
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def check_greedy(ours: Backend, theirs: Backend, workload: Workload) -> None:
    """Check that both sides choose the same tokens where nothing is random.

    Raises:
        ValueError: they differ; names the first sample and step.
    """
    expected = theirs.generate(workload, greedy=True)
    actual = ours.generate(workload, greedy=True)
    for sample, (expected_ids, actual_ids) in enumerate(zip(expected, actual, strict=True)):
        if len(expected_ids) != workload.num_new_tokens:
            raise ValueError(f"{theirs.name} gave {len(expected_ids)} tokens, not {workload.num_new_tokens}")
        if actual_ids != expected_ids:
            pairs = zip(expected_ids, actual_ids, strict=False)
            step = next((step for step, (a, b) in enumerate(pairs) if a != b), "the end")
            raise ValueError(f"{ours.name} and {theirs.name} differ in sample {sample} at step {step}")

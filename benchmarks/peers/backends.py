"""hgt_infer and transformers at their best fair settings, behind one method: a workload in, token ids out."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.arrivals import Served
from benchmarks.measure.comparison import first_difference
from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import Backend, MixedWorkload, TokenIds, Workload

NUM_SLOTS = 16
NEAR_TIE = 1e-4
"""Logits that lie closer may change places by rounding: those of the two sides differ by about 2e-5."""


class HgtInfer:
    """hgt_infer on the CPU with its default settings but for precision and slots.

    Its time is from text to text.
    """

    name = "hgt_infer"

    def __init__(self, model: Path, *, precision: str = "fp32", num_slots: int = NUM_SLOTS) -> None:
        from hgt_infer import Generator

        self.generator = Generator(model, device="cpu", precision=precision, num_slots=num_slots)

    def generate(
        self, workload: Workload | MixedWorkload, *, greedy: bool = False, seeds: Sequence[int] | None = None
    ) -> TokenIds:
        from hgt_infer import SamplingParams

        params = [
            SamplingParams(
                n=workload.n,
                max_tokens=length,
                min_tokens=length,
                seed=seeds[number] if seeds else None,
                **workload.sampling | ({"temperature": 0.0} if greedy else {}),
            )
            for number, length in enumerate(workload.lengths)
        ]
        outputs = self.generator.generate(list(workload.prompts), params)
        return [completion.token_ids for output in outputs for completion in output.completions]

    def serve(self, workload: MixedWorkload, at: Sequence[float]) -> list[Served]:
        """See `measure.arrivals.serve`: every request is a stream, read by a thread of its own."""
        from hgt_infer import SamplingParams

        served: dict[int, Served] = {}

        def follow(number: int, arrival: float, deltas: Any) -> None:
            times, num_tokens = [], 0
            for delta in deltas:
                times.append(time.perf_counter())
                num_tokens += len(delta.token_ids)
            if num_tokens == workload.lengths[number]:
                served[number] = Served(times[0] - arrival, times[-1] - arrival)

        threads = []
        start = time.perf_counter()
        for number, (prompt, length) in enumerate(zip(workload.prompts, workload.lengths, strict=True)):
            time.sleep(max(0.0, start + at[number] - time.perf_counter()))
            params = SamplingParams(max_tokens=length, min_tokens=length, **workload.sampling)
            deltas = self.generator.stream(prompt, params)
            # From the time when it should have been sent: a delay of the sender counts as latency.
            threads.append(threading.Thread(target=follow, args=(number, start + at[number], deltas)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        if len(served) < len(at):
            raise ValueError(f"{len(at) - len(served)} requests did not get all of their tokens")
        return [served[number] for number in range(len(at))]

    def close(self) -> None:
        self.generator.close()


class Transformers:
    """transformers' `generate` on the CPU in fp32: key-value cache, sdpa attention, no autograd.

    Its time is that of `generate` alone, from ids to ids. The cache is the default, which grows:
    a static one without compilation takes 6 % longer at batch 1.
    """

    name = "transformers"

    def __init__(self, checkpoint: Path, *, num_threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(num_threads)
        self._take(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), "cpu")

    def _take(self, model: Any, device: str) -> None:
        from transformers import GenerationConfig

        self.device = device
        self.model: Any = model.to(device).eval()
        self.settings: dict[str, Any] = {}  # more of them, for every call
        end_of_text = self.model.config.eos_token_id
        # What the checkpoint says of sampling is left out: the workload says it all.
        self.model.generation_config = GenerationConfig(eos_token_id=end_of_text, pad_token_id=end_of_text)

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        settings: dict[str, Any] = {} if greedy else {"num_return_sequences": workload.n}
        new_ids = self._generate(workload, workload.num_new_tokens, greedy=greedy, **settings)
        return [row for row in new_ids for _ in range(workload.n if greedy else 1)]

    def generate_padded(self, batch: MixedWorkload, *, greedy: bool = False) -> TokenIds:
        """All requests at once, until the longest one has its length: rows of that many tokens."""
        return self._generate(batch, max(batch.lengths), greedy=greedy)

    def _generate(
        self, workload: Workload | MixedWorkload, num_new_tokens: int, *, greedy: bool, **settings: Any
    ) -> TokenIds:
        import torch

        if not greedy:
            settings |= workload.sampling
        pad_id = self.model.generation_config.pad_token_id
        width = max(map(len, workload.prompt_token_ids))
        rows = [[pad_id] * (width - len(ids)) + list(ids) for ids in workload.prompt_token_ids]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in workload.prompt_token_ids]
        with torch.inference_mode():
            output_ids = self.model.generate(
                torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=num_new_tokens,
                min_new_tokens=num_new_tokens,
                do_sample=not greedy,
                use_cache=True,
                **self.settings,
                **settings,
            )
        return [tuple(row) for row in output_ids[:, width:].tolist()]

    def margins(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], *, top_k: int = 1
    ) -> list[float]:
        """How far each token's logit lies below the top_k-th largest one; 0 where it does not.

        End-of-text's logit is left out. With the default the tokens of greedy decoding have 0. One run over
        prompt and tokens, without padding and without a cache.
        """
        import torch

        with torch.inference_mode():
            ids = torch.tensor([[*prompt_token_ids, *token_ids]], device=self.device)
            logits = self.model(ids).logits[0, len(prompt_token_ids) - 1 : -1].float()  # [tokens, vocabulary]
            logits[:, self.model.generation_config.eos_token_id] = -torch.inf
            chosen = logits.gather(1, torch.tensor(token_ids, device=self.device)[:, None])[:, 0]
            least = logits.topk(min(top_k, logits.shape[1] - 1), dim=1).values[:, -1]
            margins: list[float] = (least - chosen).clamp(min=0).tolist()
        return margins


class CompiledTransformers(Transformers):
    """As Transformers, with a static cache and a compiled forward pass: once for each batch and length."""

    name = "transformers_compiled"

    def __init__(self, checkpoint: Path, *, num_threads: int, mode: str = "default") -> None:
        super().__init__(checkpoint, num_threads=num_threads)
        from transformers import CompileConfig

        # Without the last one, `generate` compiles on accelerators alone.
        config = CompileConfig(mode=mode, dynamic=False)
        config._compile_all_devices = True
        self.settings = {"cache_implementation": "static", "compile_config": config}


class Pipeline:
    """transformers' text-generation pipeline, all prompts in one batch; from text to text."""

    name = "transformers_pipeline"

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer, pipeline

        self._model = Transformers(checkpoint, num_threads=num_physical_cores()).model
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._pipeline = pipeline("text-generation", model=self._model, tokenizer=self._tokenizer)

    def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
        settings: dict[str, Any] = {"do_sample": False}
        if not greedy:
            settings = {
                "do_sample": True,
                "num_return_sequences": workload.n,
                **workload.sampling,
            }
        outputs = self._pipeline(
            list(workload.prompts),
            batch_size=len(workload.prompts),
            return_tensors=True,
            max_new_tokens=workload.num_new_tokens,
            min_new_tokens=workload.num_new_tokens,
            **settings,
        )
        repeats = workload.n if greedy else 1
        return [
            tuple(sample["generated_token_ids"][len(ids) :])
            for ids, samples in zip(workload.prompt_token_ids, outputs, strict=True)
            for sample in samples
            for _ in range(repeats)
        ]


class Optimum(Transformers):
    """optimum's own ONNX export in ONNX Runtime under transformers' `generate`; from ids to ids."""

    name = "optimum"

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        from optimum.onnxruntime import ORTModelForCausalLM
        from transformers import GenerationConfig

        provider = "CPUExecutionProvider"
        if not (folder / "config.json").exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = ORTModelForCausalLM.from_pretrained(checkpoint, export=True, provider=provider)
                exported.save_pretrained(folder)
        self.device = "cpu"
        self.settings = {}
        self.model = ORTModelForCausalLM.from_pretrained(folder, provider=provider)
        end_of_text = self.model.config.eos_token_id
        self.model.generation_config = GenerationConfig(eos_token_id=end_of_text, pad_token_id=end_of_text)


class StaticBatches:
    """Requests of different lengths in batches of one size, in order of arrival; surplus tokens are dropped.

    Each batch is padded on the left and runs until its longest row ends. `generate` computes a row that ends
    before on and writes padding for it: to stop each row by itself would save nothing.
    """

    def __init__(self, generate_padded: Callable[..., TokenIds], batch_size: int) -> None:
        self.name = f"{Transformers.name}_{batch_size}"
        self.batch_size = batch_size
        self._generate_padded = generate_padded

    def generate(self, workload: MixedWorkload, *, greedy: bool = False) -> TokenIds:
        return [
            token_ids[:length]
            for batch in workload.batches(self.batch_size)
            for token_ids, length in zip(
                self._generate_padded(batch, greedy=greedy), batch.lengths, strict=True
            )
        ]


def check_greedy(ours: Backend[Workload], theirs: Backend[Workload], workload: Workload) -> None:
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
            step = first_difference(expected_ids, actual_ids)
            raise ValueError(f"{ours.name} and {theirs.name} differ in sample {sample} at step {step}")

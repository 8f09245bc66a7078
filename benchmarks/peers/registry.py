"""Every backend that a suite can time on a CPU, by name: how it is made, and what it cannot do.

All have the same weights, threads, prompts and settings. Backends that pad take requests of mixed lengths in
static batches. Not among them is vLLM, which could not be tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload
from benchmarks.peers.backends import NEAR_TIE, HgtInfer, Transformers
from benchmarks.peers.llama_cpp import LlamaCpp

MAX_SLOTS = 64


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
                "temperature": workload.temperature,
                "top_k": workload.top_k,
                "top_p": workload.top_p,
                "num_return_sequences": workload.n,
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
        """All requests at once, until the longest one has its length."""
        return self._generate(batch, max(batch.lengths), 1, greedy=greedy)

    def _generate(
        self, workload: Workload | MixedWorkload, num_new_tokens: int, n: int, *, greedy: bool
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
            **settings,
        )
        return [tuple(ids) for result in results for ids in result.sequences_ids]


@dataclass(frozen=True)
class Entry:
    """A backend of the suite.

    Attributes:
        make: from a checkpoint, and a folder for what is made of it once.
        packages: what has to be installed.
        precision: of weights and products.
        is_static: whether it takes static batches alone.
        near_tie: how far below the reference's choice, in logits, its own may lie and count as the same.
    """

    make: Callable[[Path, Path], Any]
    packages: Sequence[str]
    precision: str
    is_static: bool = False
    near_tie: float = NEAR_TIE

    @property
    def is_installed(self) -> bool:
        return all(find_spec(package) for package in self.packages)


STATIC_ALONE = "takes no new request before a batch has ended, and no length or seed per request"

BACKENDS: dict[str, Entry] = {
    "hgt_infer": Entry(
        lambda checkpoint, folder: HgtInfer(_exported(checkpoint, folder, "fp32"), num_slots=MAX_SLOTS),
        ["onnxruntime"],
        "fp32",
    ),
    "hgt_infer_int8": Entry(
        lambda checkpoint, folder: HgtInfer(
            _exported(checkpoint, folder, "int8"), precision="int8", num_slots=MAX_SLOTS
        ),
        ["onnxruntime"],
        "int8",
    ),
    "transformers": Entry(
        lambda checkpoint, _: Transformers(checkpoint, num_threads=num_physical_cores()),
        ["torch", "transformers"],
        "fp32",
        is_static=True,
    ),
    "transformers_pipeline": Entry(
        lambda checkpoint, _: Pipeline(checkpoint), ["torch", "transformers"], "fp32", is_static=True
    ),
    "optimum": Entry(Optimum, ["optimum", "torch", "transformers"], "fp32", is_static=True),
    "ctranslate2": Entry(
        lambda checkpoint, folder: CTranslate2(checkpoint, folder, compute_type="float32"),
        ["ctranslate2", "torch", "transformers"],
        "fp32",
        is_static=True,
    ),
    "ctranslate2_int8": Entry(
        lambda checkpoint, folder: CTranslate2(checkpoint, folder, compute_type="int8"),
        ["ctranslate2", "torch", "transformers"],
        "int8",
        is_static=True,
    ),
    "llama_cpp": Entry(
        lambda checkpoint, folder: LlamaCpp(
            checkpoint, folder, quantization="f32", num_threads=num_physical_cores()
        ),
        ["llama_cpp", "gguf"],
        "fp32",
        near_tie=0.01,  # its gelu is a table of 16-bit floats
    ),
    "llama_cpp_q8_0": Entry(
        lambda checkpoint, folder: LlamaCpp(
            checkpoint, folder, quantization="q8_0", num_threads=num_physical_cores()
        ),
        ["llama_cpp", "gguf"],
        "int8",
    ),
}


def _exported(checkpoint: Path, folder: Path, precision: str) -> Path:
    """Export where it is not done yet: a process that exports has used more memory than one that loads."""
    from hgt_infer.export import export_checkpoint

    if not folder.exists():
        export_checkpoint(checkpoint, folder, precision=precision)
    return folder

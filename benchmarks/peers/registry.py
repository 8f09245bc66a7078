"""Every backend that a suite can time on a CPU, by name: how it is made, and what it cannot do.

All have the same weights, threads, prompts and settings. Backends that pad take requests of mixed lengths in
static batches. Not among them is vLLM, which could not be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.peers.backends import NEAR_TIE, HgtInfer, Optimum, Pipeline, Transformers
from benchmarks.peers.ctranslate2 import CTranslate2
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.llama_server import LlamaServer

MAX_SLOTS = 64


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


def _hgt_infer(precision: str, checkpoint: Path, folder: Path) -> HgtInfer:
    """Export where it is not done yet: a process that exports has used more memory than one that loads."""
    from hgt_infer.export import export_checkpoint

    if not folder.exists():
        export_checkpoint(checkpoint, folder, precision=precision)
    return HgtInfer(folder, precision=precision, num_slots=MAX_SLOTS)


TORCH = ("torch", "transformers")
LLAMA = ("llama_cpp", "gguf")
BACKENDS: dict[str, Entry] = {
    "hgt_infer": Entry(partial(_hgt_infer, "fp32"), ["onnxruntime"], "fp32"),
    "hgt_infer_int8": Entry(partial(_hgt_infer, "int8"), ["onnxruntime"], "int8"),
    "transformers": Entry(
        lambda checkpoint, _: Transformers(checkpoint, num_threads=num_physical_cores()),
        TORCH,
        "fp32",
        is_static=True,
    ),
    "transformers_pipeline": Entry(lambda checkpoint, _: Pipeline(checkpoint), TORCH, "fp32", is_static=True),
    "optimum": Entry(Optimum, ["optimum", *TORCH], "fp32", is_static=True),
    "ctranslate2": Entry(
        partial(CTranslate2, compute_type="float32"), ["ctranslate2", *TORCH], "fp32", is_static=True
    ),
    "ctranslate2_int8": Entry(
        partial(CTranslate2, compute_type="int8"), ["ctranslate2", *TORCH], "int8", is_static=True
    ),
    "llama_cpp": Entry(
        partial(LlamaCpp, quantization="f32"),
        LLAMA,
        "fp32",
        near_tie=0.01,  # its gelu is a table of 16-bit floats
    ),
    "llama_cpp_q8_0": Entry(partial(LlamaCpp, quantization="q8_0"), LLAMA, "int8"),
    "llama_server": Entry(partial(LlamaServer, quantization="f32"), LLAMA, "fp32", near_tie=0.01),
    "llama_server_q8_0": Entry(partial(LlamaServer, quantization="q8_0"), LLAMA, "int8"),
}

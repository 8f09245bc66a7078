"""What is checked: a checkpoint and its artifacts, the device and the texts."""

from __future__ import annotations

import gc
import hashlib
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import hgt_infer
from benchmarks.gpu_check.report import Skipped, first_line
from benchmarks.gpu_check.scale import FULL, Scale
from benchmarks.measure.bounds import cache_bytes_per_token
from benchmarks.measure.checkpoints import GPT2_124M, SEED, write_numpy_checkpoint
from benchmarks.measure.workloads import (
    TWEET_PROMPT_LENGTHS,
    MixedWorkload,
    TokenIds,
    different_prompts,
    tweet_lengths,
)
from hgt_infer import GenerationOutput, Generator, SamplingParams
from hgt_infer.artifact.folder import Artifact, is_artifact, read_artifact
from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.loading import content_key, download
from hgt_infer.opening import open_devices

TEXTS = Path(__file__).with_name("texts.txt")


@dataclass
class Subject:
    """What every step is given.

    Attributes:
        model: a checkpoint folder or a hub id; None for GPT-2 124M with seeded random weights.
        folder: where checkpoint and artifacts are kept.
        device: "cuda", "cuda:N", or "cpu" to try the script itself.
        scale: how much is done.
        precision: "fp16" on CUDA, "fp32" on a CPU.
        texts: real ones, cleaned.
        is_kept: whether an artifact of an earlier process is used.
    """

    model: str | Path | None
    folder: Path
    device: str
    scale: Scale
    precision: str = ""
    texts: Sequence[str] = field(default_factory=lambda: TEXTS.read_text(encoding="utf-8").splitlines())
    notes: dict[str, Any] = field(default_factory=dict)
    """What later steps need of earlier ones: `bandwidth`, `step_s` by rows, exports that failed."""

    def __post_init__(self) -> None:
        self.precision = self.precision or ("fp16" if self.is_cuda else "fp32")
        self.is_kept = False

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def device_id(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    @property
    def provider(self) -> str:
        return "CUDAExecutionProvider" if self.is_cuda else "CPUExecutionProvider"

    @cached_property
    def checkpoint(self) -> Path:
        """The checkpoint's folder: downloaded, or written, where it is not there."""
        if self.model is None:
            return write_numpy_checkpoint(self.folder / "gpt2-124m", GPT2_124M)
        return Path(self.model) if Path(self.model).is_dir() else download(self.model)

    @cached_property
    def artifact(self) -> Artifact:
        """In the device's precision. Its logits are compared with nothing yet."""
        return self._export(self.precision)

    @cached_property
    def reference(self) -> Artifact:
        """In fp32, for the CPU."""
        return self.artifact if self.precision == "fp32" else self._export("fp32")

    def _export(self, precision: str) -> Artifact:
        """Export once; where that fails, it is not tried again.

        An artifact of the same checkpoint and the same exporter is kept: another process goes on with it.
        """
        from hgt_infer.export import export_checkpoint  # most of a second: children export nothing

        failures: dict[str, str] = self.notes.setdefault("export_failures", {})
        if precision in failures:
            raise Skipped(f"the {precision} export failed: {failures[precision]}")
        try:
            key = content_key(self.checkpoint, f"{_exporter_hash()} {precision}")[:16]
            folder = self.folder / "artifacts" / f"{precision}-{key}"
            if is_artifact(folder):
                self.is_kept = True
                return read_artifact(folder)
            for older in folder.parent.glob(f"{precision}-*"):
                shutil.rmtree(older)
            return export_checkpoint(self.checkpoint, folder, precision=precision, is_verified=False)
        except Exception as error:
            failures[precision] = f"{type(error).__name__}: {first_line(error)}"
            raise

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second, read and written together, of a copy within the device, once it is measured."""
        return self.notes.get("bandwidth")

    def step_s(self, num_rows: int) -> float | None:
        """What the graphs of a step of so many rows take on the device, if they were timed."""
        seconds: float | None = self.notes.get("step_s", {}).get(str(num_rows))
        return seconds

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.artifact.tokenizer_path)

    @property
    def weights_bytes(self) -> int:
        return self.artifact.path.joinpath("model.onnx.data").stat().st_size

    @property
    def bytes_per_token(self) -> int:
        config = self.artifact.config
        return cache_bytes_per_token(config.n_layer, config.n_embd, 2 if self.precision == "fp16" else 4)

    @contextmanager
    def open_device(self) -> Iterator[Any]:
        """The device by itself, closed afterwards with what was allocated on it."""
        [device] = open_devices(self.device)
        with closing(device):
            yield device

    @contextmanager
    def generator(self, **options: Any) -> Iterator[Generator]:
        """A generator on the device, which has done what its first batches would wait for."""
        gc.collect()  # what the last one had on the device is freed with it
        with closing(Generator(self.artifact.path, device=self.device, **options)) as generator:
            generator.warmup()
            yield generator

    def prompts(self, count: int, *, length: int | None = None, seed: int = SEED) -> list[str]:
        """Different texts of letters: of 3 to 8 letters each, or of `length`."""
        rng = random.Random(seed)
        return [*different_prompts(count, rng, lambda: length or rng.choice(TWEET_PROMPT_LENGTHS))]

    def tweets_workload(self, count: int) -> MixedWorkload:
        """Requests as long as real tweets, as in `workloads.tweets`; any number of them."""
        prompts = self.prompts(count)
        return MixedWorkload(
            prompts=tuple(prompts),
            prompt_token_ids=tuple(tuple(self.tokenizer.encode(prompt)) for prompt in prompts),
            lengths=tweet_lengths(count, random.Random(SEED)),
        )


def subject_of(artifact_path: str, device: str) -> Subject:
    """A subject in a process of its own: an artifact that is there, and nothing else."""
    artifact = read_artifact(artifact_path)
    subject = Subject(None, artifact.path.parent, device, FULL, precision=artifact.precision)
    subject.artifact = artifact
    return subject


def _exporter_hash() -> str:
    """Of the source of what an export is made by."""
    sources = sorted((Path(hgt_infer.__file__).parent / "export").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def fixed_length(num_tokens: int, **settings: Any) -> SamplingParams:
    """Settings under which exactly so many tokens come."""
    return SamplingParams(max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, **settings)


def token_ids(outputs: Iterable[GenerationOutput]) -> TokenIds:
    """Of every sample, in the order of prompts and samples."""
    return [completion.token_ids for output in outputs for completion in output.completions]

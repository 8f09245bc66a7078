"""What is checked: a checkpoint and its artifacts, the device, the texts, and how much of each is done."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import shutil
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.figures import TokenIds, cache_bytes_per_token
from benchmarks.gpu_check.report import Skipped, first_line
from benchmarks.measure.workloads import (
    END_OF_TEXT,
    TWEET_PROMPT_LENGTHS,
    MixedWorkload,
    byte_tokenizer,
    tweet_length,
)
from hgt_infer import GenerationOutput, Generator, SamplingParams, export
from hgt_infer.artifact.folder import Artifact, is_artifact, read_artifact
from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.export import export_checkpoint
from hgt_infer.loading import content_key, download
from hgt_infer.opening import open_devices

REPOSITORY = Path(__file__).parents[2]
TEXTS = Path(__file__).with_name("texts.txt")
SEED = 0
GPT2_124M = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
INITIALIZER_RANGE = 0.08  # spreads the logits as training does; the usual 0.02 leaves them nearly uniform


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done: `FULL`, `QUICK` for a first look, `TRIAL` to try the script itself on a CPU.

    num_texts, num_text_tokens: real texts whose logits are compared, and tokens of each, at most.
    num_requests: of the comparisons of tokens. num_draws: of each chi-squared test.
    num_mixed: requests of the soak. num_rounds: of each timing.
    graph_rows: of the graphs by themselves. batch_sizes, num_new_tokens: of the decode timings.
    sweep_slots, sweep_steps: num_slots and every steps_per_sync of their comparison.
    prompt_lengths: of fed and prefilled prompts. num_prefills: different lengths that variants prefill.
    num_tweets: requests of the tweets workload. peer_batches: batch size of transformers → how many
    batches it is given. compiles: whether its compiled generate is timed too.
    """

    num_texts: int
    num_text_tokens: int
    num_requests: int
    num_draws: int
    num_mixed: int
    num_rounds: int
    graph_rows: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_new_tokens: int
    sweep_slots: int
    sweep_steps: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    num_prefills: int
    num_tweets: int
    peer_batches: dict[int, int]
    compiles: bool


FULL = Scale(
    num_texts=64,
    num_text_tokens=32,
    num_requests=256,
    num_draws=20_000,
    num_mixed=1_000,
    num_rounds=5,
    graph_rows=(1, 64, 256),
    batch_sizes=(1, 64, 256),
    num_new_tokens=192,
    sweep_slots=256,
    sweep_steps=(2, 4, 8),
    prompt_lengths=(4, 16, 32, 64, 128),
    num_prefills=12,
    num_tweets=5_000,
    peer_batches={128: 3, 256: 2},
    compiles=True,
)
QUICK = Scale(
    num_texts=16,
    num_text_tokens=32,
    num_requests=96,
    num_draws=20_000,
    num_mixed=500,
    num_rounds=3,
    graph_rows=(64, 256),
    batch_sizes=(1, 256),
    num_new_tokens=96,
    sweep_slots=64,
    sweep_steps=(2, 8),
    prompt_lengths=(8, 64),
    num_prefills=4,
    num_tweets=2_000,
    peer_batches={128: 2},
    compiles=False,
)
TRIAL = Scale(
    num_texts=3,
    num_text_tokens=8,
    num_requests=24,
    num_draws=2_000,
    num_mixed=60,
    num_rounds=1,
    graph_rows=(1, 4),
    batch_sizes=(1, 4),
    num_new_tokens=6,
    sweep_slots=2,
    sweep_steps=(1, 4),
    prompt_lengths=(4, 20, 80),
    num_prefills=3,
    num_tweets=20,
    peer_batches={4: 2, 8: 1},
    compiles=False,
)


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
    texts: Sequence[str] = field(default_factory=lambda: read_texts())
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
            return write_seeded_checkpoint(self.folder / "gpt2-124m", GPT2_124M)
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
            return export_checkpoint(self.checkpoint, folder, precision=precision, references=())
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
        prompts: dict[str, None] = {}
        while len(prompts) < count:
            size = length or rng.choice(TWEET_PROMPT_LENGTHS)
            prompts["".join(rng.choices(string.ascii_letters, k=size))] = None
        return list(prompts)

    def tweets_workload(self, count: int) -> MixedWorkload:
        """Requests as long as real tweets, as in `workloads.tweets`; any number of them."""
        rng = random.Random(SEED)
        lengths = [tweet_length((number + rng.random()) / count) for number in range(count)]
        rng.shuffle(lengths)
        prompts = self.prompts(count)
        return MixedWorkload(
            prompts=tuple(prompts),
            prompt_token_ids=tuple(tuple(self.tokenizer.encode(prompt)) for prompt in prompts),
            lengths=tuple(lengths),
        )


def subject_of(artifact_path: str, device: str) -> Subject:
    """A subject in a process of its own: an artifact that is there, and nothing else."""
    artifact = read_artifact(artifact_path)
    subject = Subject(None, artifact.path.parent, device, FULL, precision=artifact.precision)
    subject.artifact = artifact
    return subject


def _exporter_hash() -> str:
    """Of the source of what an export is made by."""
    digest = hashlib.sha256()
    for path in sorted(Path(export.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fixed_length(num_tokens: int, **settings: Any) -> SamplingParams:
    """Settings under which exactly so many tokens come."""
    return SamplingParams(max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, **settings)


def token_ids(outputs: Iterable[GenerationOutput]) -> list[TokenIds]:
    """Of every sample, in the order of prompts and samples."""
    return [completion.token_ids for output in outputs for completion in output.completions]


def read_texts(path: Path = TEXTS) -> list[str]:
    """The texts of a file, one a line."""
    return path.read_text(encoding="utf-8").splitlines()


def write_seeded_checkpoint(folder: Path, sizes: dict[str, int]) -> Path:
    """Write a checkpoint of seeded random weights, without PyTorch; a folder that is there is kept."""
    if folder.exists():
        return folder
    from safetensors.numpy import save_file

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(random_weights(sizes), partial / "model.safetensors", metadata={"format": "pt"})
    end_of_text = sizes["vocab_size"] - 1
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "n_ctx": sizes["n_positions"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    (partial / "config.json").write_text(json.dumps(config))
    byte_tokenizer(sizes["vocab_size"]).save(str(partial / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special}
    (partial / "tokenizer_config.json").write_text(json.dumps(settings))
    partial.rename(folder)
    return folder


def random_weights(sizes: dict[str, int]) -> dict[str, Any]:
    """GPT-2's weights by their names, initialized as transformers does it, but for INITIALIZER_RANGE."""
    rng = np.random.default_rng(SEED)
    width, num_layers = sizes["n_embd"], sizes["n_layer"]

    def normal(*shape: int, scale: float = INITIALIZER_RANGE) -> Any:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    weights = {
        "transformer.wte.weight": normal(sizes["vocab_size"], width),
        "transformer.wpe.weight": normal(sizes["n_positions"], width),
    }
    norms = ["transformer.ln_f"]
    for layer in range(num_layers):
        block = f"transformer.h.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        residual = INITIALIZER_RANGE / (2 * num_layers) ** 0.5
        for name, rows, columns, scale in (
            ("attn.c_attn", width, 3 * width, INITIALIZER_RANGE),
            ("attn.c_proj", width, width, residual),
            ("mlp.c_fc", width, 4 * width, INITIALIZER_RANGE),
            ("mlp.c_proj", 4 * width, width, residual),
        ):
            weights[f"{block}.{name}.weight"] = normal(rows, columns, scale=scale)
            weights[f"{block}.{name}.bias"] = np.zeros(columns, np.float32)
    for norm in norms:
        weights[f"{norm}.weight"] = np.ones(width, np.float32)
        weights[f"{norm}.bias"] = np.zeros(width, np.float32)
    return weights

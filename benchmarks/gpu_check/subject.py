"""What is checked: a checkpoint and its artifacts, the device, the texts, and how much of each is done."""

from __future__ import annotations

import gc
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
from benchmarks.workloads import (
    END_OF_TEXT,
    TWEET_PROMPT_LENGTHS,
    MixedWorkload,
    byte_tokenizer,
    tweet_length,
)
from hgt_infer import GenerationOutput, Generator, SamplingParams
from hgt_infer.artifact import Artifact
from hgt_infer.device import open_devices
from hgt_infer.loading import load_artifact
from hgt_infer.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[2]
SAMPLE_TWEETS = REPOSITORY / "training" / "sample" / "tweets.js"
SEED = 0
GPT2_124M = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
INITIALIZER_RANGE = 0.08  # spreads the logits as training does; the usual 0.02 leaves them nearly uniform


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done: `FULL`, or `QUICK` for a first look.

    budget_s: seconds after which nothing is started any more.
    num_texts, num_text_tokens: real texts whose logits are compared, and tokens of each, at most.
    num_requests: of the comparisons of tokens. num_draws: of each chi-squared test.
    num_mixed: requests of the soak. num_rounds: of each timing.
    graph_rows: of the graphs by themselves. batch_sizes, num_new_tokens: of the decode timings.
    sweep_slots, sweep_steps: num_slots and steps_per_sync of the sweep.
    prompt_lengths: of fed and prefilled prompts. num_tweets: requests of the tweets workload.
    peer_batches: batch size of transformers → how many batches it is given. compiles: whether its
    compiled generate is timed too.
    """

    budget_s: float
    num_texts: int
    num_text_tokens: int
    num_requests: int
    num_draws: int
    num_mixed: int
    num_rounds: int
    graph_rows: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_new_tokens: int
    sweep_slots: tuple[int, ...]
    sweep_steps: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    num_tweets: int
    peer_batches: dict[int, int]
    compiles: bool


FULL = Scale(
    budget_s=520,
    num_texts=64,
    num_text_tokens=32,
    num_requests=256,
    num_draws=20_000,
    num_mixed=10_000,
    num_rounds=5,
    graph_rows=(1, 64, 128, 256),
    batch_sizes=(1, 64, 128, 256),
    num_new_tokens=192,
    sweep_slots=(1, 64, 256),
    sweep_steps=(1, 2, 4, 8, 16),
    prompt_lengths=(4, 8, 16, 32, 48, 64, 96, 128),
    num_tweets=10_000,
    peer_batches={16: 6, 64: 5, 128: 4, 256: 4},
    compiles=True,
)
QUICK = Scale(
    budget_s=165,
    num_texts=16,
    num_text_tokens=32,
    num_requests=96,
    num_draws=20_000,
    num_mixed=1_000,
    num_rounds=3,
    graph_rows=(64, 256),
    batch_sizes=(1, 64, 256),
    num_new_tokens=192,
    sweep_slots=(64,),
    sweep_steps=(1, 4, 16),
    prompt_lengths=(8, 64),
    num_tweets=2_000,
    peer_batches={128: 3},
    compiles=False,
)


@dataclass
class Subject:
    """What every step is given.

    Attributes:
        model: a checkpoint folder or a hub id.
        folder: where artifacts are kept, which are made anew.
        device: "cuda", "cuda:N", or "cpu" to try the script itself.
        scale: how much is done.
        precision: "fp16" on CUDA, "fp32" on a CPU.
        tweets: real texts, cleaned.
    """

    model: str | Path
    folder: Path
    device: str
    scale: Scale
    precision: str = ""
    tweets: Sequence[str] = field(default_factory=lambda: sample_tweets())
    bandwidth: float | None = None
    """Bytes a second, read and written together, of a copy within the device; None until it is measured."""
    graph_seconds: dict[int, float] = field(default_factory=dict)
    """What the graphs of a step take on the device, by the number of rows, as far as they were timed."""

    def __post_init__(self) -> None:
        self.precision = self.precision or ("fp16" if self.is_cuda else "fp32")

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
    def artifact(self) -> Artifact:
        """In the device's precision; exporting it compares its logits with NumPy's."""
        return self._export(self.precision)

    @cached_property
    def reference(self) -> Artifact:
        """In fp32, for the CPU."""
        return self.artifact if self.precision == "fp32" else self._export("fp32")

    def _export(self, precision: str) -> Artifact:
        return load_artifact(self.model, precision=precision, cache_dir=self.folder / "artifacts")

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


def fixed_length(num_tokens: int, **settings: Any) -> SamplingParams:
    """Settings under which exactly so many tokens come."""
    return SamplingParams(max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, **settings)


def token_ids(outputs: Iterable[GenerationOutput]) -> list[TokenIds]:
    """Of every sample, in the order of prompts and samples."""
    return [completion.token_ids for output in outputs for completion in output.completions]


def sample_tweets(path: Path = SAMPLE_TWEETS) -> list[str]:
    """The project's sample archive as training cleans it."""
    from training.cleaning import clean
    from training.tweets import read_tweets

    return list(clean(read_tweets([path])).kept)


def prepare(folder: Path, model: str | None, device: str, scale: Scale) -> Subject:
    """Make the subject; without a model, GPT-2 124M with seeded random weights, written once."""
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    checkpoint = model or write_seeded_checkpoint(folder / "gpt2-124m", GPT2_124M)
    return Subject(checkpoint, folder, device, scale)


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

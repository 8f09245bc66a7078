"""Generator: what a caller sees. It joins tokenizer and engine, and resolves settings."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from hgt_infer.device import open_device
from hgt_infer.engine import Engine
from hgt_infer.errors import ParameterError, PromptError
from hgt_infer.loading import load_artifact
from hgt_infer.model_config import GenerationDefaults
from hgt_infer.outputs import Completion, GenerationOutput
from hgt_infer.runner import ModelRunner
from hgt_infer.sampling_params import SamplingParams, check_int
from hgt_infer.scheduler import Scheduler
from hgt_infer.sequence import Sequence, SequenceParams
from hgt_infer.tokenizer import Tokenizer, clean_up_tokenization

logger = logging.getLogger(__name__)

DEFAULT_NUM_SLOTS = 16
MAX_NUM_SLOTS = 4096
MAX_PREFILL_TOKENS = 1024
"""Padded prompt tokens of one run: bounds its activations (about 45 KB a token for GPT-2 124M)."""


class Generator:
    """Samples text from a GPT-2 checkpoint.

    Args:
        model: a hub id ("huggingtweets/lilyw12_"), a checkpoint folder, or an exported artifact folder.
            A checkpoint is exported once, into the cache.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA where there is a GPU, the CPU elsewhere.
        precision: "auto", or the device's own by name: "fp32" on a CPU, "fp16" on CUDA.
        num_slots: sequences that run at once, 1 … 4096; more wait for a free slot.
        max_length: tokens that a sequence can hold, prompt and output together, 2 … n_positions, which
            None stands for.
        cache_dir: where exported checkpoints are kept; None is $HGT_INFER_CACHE or the user's cache folder.

    Raises:
        ParameterError: an argument outside its range.
        ModelNotFoundError, ModelFormatError: no such model, or not a GPT-2.
        DeviceUnavailableError: the device cannot be used.

    Example:
        generator = Generator("huggingtweets/lilyw12_")
        generator("My dream is", num_return_sequences=5)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        num_slots: int = DEFAULT_NUM_SLOTS,
        max_length: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        check_int("num_slots", num_slots, 1, MAX_NUM_SLOTS)
        if max_length is not None:
            check_int("max_length", max_length, 2)
        opened = open_device(device)
        native = "fp16" if opened.kind == "cuda" else "fp32"
        if precision not in ("auto", native):
            raise ParameterError(
                f"precision must be 'auto' or {native!r} on {opened.kind}; got {precision!r}"
            )
        artifact = load_artifact(model, precision=native, cache_dir=cache_dir)
        n_positions = artifact.config.n_positions
        if max_length is not None:
            check_int("max_length", max_length, 2, n_positions)
        self._max_length = max_length or n_positions
        self._defaults = artifact.generation_defaults
        self._tokenizer = Tokenizer(artifact.tokenizer_path)
        max_prefill_tokens = max(MAX_PREFILL_TOKENS, self._max_length)
        runner = ModelRunner(
            artifact,
            opened,
            num_slots=num_slots,
            max_length=self._max_length,
            max_prefill_tokens=max_prefill_tokens,
        )
        self._engine = Engine(runner, Scheduler(num_slots, max_prefill_tokens))
        logger.info(
            "%s on %s in %s: %d slots of %d positions, cache %.0f MB",
            artifact.path,
            opened.provider[0],
            artifact.precision,
            num_slots,
            self._max_length,
            runner.cache.num_bytes / 1e6,
        )

    def __call__(
        self,
        prompts: str | Seq[str],
        *,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_length: int | None = None,
        return_full_text: bool = True,
        seed: int | None = None,
    ) -> list[Any]:
        """Generate as transformers' text-generation pipeline does, with its names and its text.

        Args:
            prompts: one text, or a list of them.
            num_return_sequences: samples of each prompt, 1 … 16,384.
            max_new_tokens: most tokens to generate, ≥ 1; wins over max_length.
            max_length: most tokens of prompt and output, ≥ 1; the checkpoint's prefix is not counted.
            do_sample: False takes the likeliest token each time; None is the checkpoint's default.
            temperature, top_k, top_p: as in SamplingParams; None is the checkpoint's default.
            min_length: the text does not end before this many tokens of prompt and output, ≥ 0.
            return_full_text: whether generated_text begins with the prompt.
            seed: as in SamplingParams.

        Returns:
            For a text [{"generated_text": …}, …], num_return_sequences long; for a list one such list each.

        Raises:
            TypeError: an option that is not listed here.
            ParameterError, PromptError: see `generate`.
        """
        for name, flag in (("do_sample", do_sample), ("return_full_text", return_full_text)):
            if not isinstance(flag, bool) and not (name == "do_sample" and flag is None):
                raise ParameterError(f"{name} must be True or False; got {flag!r}")
        check_int("num_return_sequences", num_return_sequences, 1)
        defaults = self._defaults
        prefix_length = len(self._tokenizer.encode(defaults.prefix))
        if max_length is not None:
            check_int("max_length", max_length, 1)
            defaults = replace(defaults, max_length=max_length + prefix_length, max_new_tokens=None)
        if min_length is not None:
            check_int("min_length", min_length, 0)
            defaults = replace(defaults, min_length=min_length + prefix_length, min_new_tokens=None)
        if do_sample is not None:
            defaults = replace(defaults, do_sample=do_sample, temperature=defaults.temperature or 1.0)
        if max_new_tokens is not None:
            check_int("max_new_tokens", max_new_tokens, 1)
        params = SamplingParams(
            n=num_return_sequences,
            temperature=temperature if defaults.do_sample else 0.0,
            top_k=top_k,
            top_p=top_p,
            max_tokens=max_new_tokens,
            seed=seed,
        )
        outputs = self._generate(_as_list(prompts), params, defaults, progress=False)
        records = [
            [{"generated_text": self._pipeline_text(output, c, return_full_text)} for c in output.completions]
            for output in outputs
        ]
        return records[0] if isinstance(prompts, str) else records

    def generate(
        self,
        prompts: str | Seq[str],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
    ) -> list[GenerationOutput]:
        """Generate params.n samples for each prompt.

        Args:
            prompts: one text, or a list of them. The checkpoint's prefix is put before each.
            params: settings of every prompt; what they leave out is the checkpoint's default.
            progress: whether to show a progress bar of finished samples.

        Returns:
            One output per prompt, in their order.

        Raises:
            ParameterError: a setting or an argument outside its range.
            PromptError: an empty prompt without a prefix, or one that leaves no room to generate.
            EngineError: the device failed.

        Example:
            outputs = generator.generate(["My dream is"], SamplingParams(n=5, top_p=0.95, seed=1))
            outputs[0].completions[0].text
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise ParameterError(f"params must be a SamplingParams; got {params!r}")
        return self._generate(
            _as_list(prompts), params or SamplingParams(), self._defaults, progress=progress
        )

    def _generate(
        self, prompts: list[str], params: SamplingParams, defaults: GenerationDefaults, *, progress: bool
    ) -> list[GenerationOutput]:
        encoded = self._tokenizer.encode_batch([defaults.prefix + prompt for prompt in prompts])
        groups = []  # every prompt is checked before the first one runs
        for prompt, prompt_token_ids in zip(prompts, encoded, strict=True):
            resolved = resolve(params, defaults, prompt, len(prompt_token_ids), self._max_length)
            shared = tuple(prompt_token_ids)
            groups.append([Sequence(shared, resolved, index) for index in range(params.n)])
        sequences = [sequence for group in groups for sequence in group]
        with tqdm(total=len(sequences), unit="sample", disable=not progress) as bar:
            self._engine.generate(sequences, on_finish=lambda sequence: bar.update())
        return [self._output(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]

    def _output(self, prompt: str, group: list[Sequence]) -> GenerationOutput:
        completions = []
        for sequence in group:
            assert sequence.finish_reason is not None
            completions.append(
                Completion(
                    index=sequence.sample_index,
                    text=self._tokenizer.decode(sequence.output_token_ids),
                    token_ids=tuple(sequence.output_token_ids),
                    finish_reason=sequence.finish_reason,
                )
            )
        first = group[0]
        return GenerationOutput(prompt, first.prompt_token_ids, tuple(completions), first.params.seed)

    def _pipeline_text(self, output: GenerationOutput, completion: Completion, full: bool) -> str:
        """transformers cleans up the decoded whole and cuts the decoded prompt off by its length."""
        whole, prompt = (
            clean_up_tokenization(self._tokenizer.decode(token_ids))
            for token_ids in (output.prompt_token_ids + completion.token_ids, output.prompt_token_ids)
        )
        generated = whole[len(prompt) :]
        return output.prompt + generated if full else generated


def resolve(
    params: SamplingParams, defaults: GenerationDefaults, prompt: str, prompt_length: int, max_length: int
) -> SequenceParams:
    """Settle every setting of one prompt: the caller's, else the checkpoint's, within the cache.

    Args:
        params: what the caller gave.
        defaults: what the checkpoint says.
        prompt: the text, for the message of an error.
        prompt_length: its tokens, prefix included.
        max_length: tokens that a slot of the cache holds.

    Raises:
        PromptError: the prompt has no tokens, or leaves no room for one more.
    """
    shown = repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
    if prompt_length == 0:
        raise PromptError("the prompt is empty, and this checkpoint has no prefix to start from")
    room = max_length - prompt_length
    if room < 1:
        raise PromptError(
            f"prompt {shown} has {prompt_length} tokens: no room to generate in a context of {max_length}"
        )
    max_tokens = params.max_tokens or defaults.max_new_tokens
    if max_tokens is None and defaults.max_length is not None:
        max_tokens = defaults.max_length - prompt_length
        if max_tokens < 1:
            raise PromptError(
                f"prompt {shown} has {prompt_length} tokens: no room to generate in a "
                f"max_length of {defaults.max_length} (prefix included)"
            )
    max_tokens = min(max_tokens or room, room)
    min_tokens = params.min_tokens
    if min_tokens is None:
        min_tokens = defaults.min_new_tokens
    if min_tokens is None:
        min_tokens = max(0, defaults.min_length - prompt_length)
    temperature = params.temperature
    if temperature is None:
        temperature = defaults.temperature if defaults.do_sample else 0.0
    return SequenceParams(
        temperature=temperature,
        top_k=defaults.top_k if params.top_k is None else params.top_k,
        top_p=defaults.top_p if params.top_p is None else params.top_p,
        max_tokens=max_tokens,
        min_tokens=min(min_tokens, max_tokens),
        eos_token_ids=frozenset(defaults.eos_token_ids),
        seed=secrets.randbits(64) if params.seed is None else params.seed,
    )


def _as_list(prompts: str | Seq[str]) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Seq) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ParameterError(f"prompts must be a string or a sequence of strings; got {prompts!r:.80}")
    return list(prompts)

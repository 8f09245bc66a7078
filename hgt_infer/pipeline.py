"""transformers' text-generation pipeline: its names of options, its defaults, its text."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any, TypedDict

from hgt_infer.artifact.config import GenerationDefaults
from hgt_infer.artifact.tokenizer import clean_up_tokenization
from hgt_infer.checks import check_bool, check_int
from hgt_infer.engine.engine import Engine
from hgt_infer.outputs import Completion, GenerationOutput
from hgt_infer.requests.prompts import PromptReader
from hgt_infer.requests.submission import run_all
from hgt_infer.sampling_params import SamplingParams, sampling_settings


class PipelineOptions(TypedDict, total=False):
    """Options of a call; what is left out is the checkpoint's default.

    num_return_sequences: samples of each prompt, 1 … 16,384; 1 if left out.
    max_new_tokens: most tokens to generate, ≥ 1; wins over max_length.
    max_length: most tokens of prompt and output, ≥ 1; the checkpoint's prefix is not counted.
    min_length: the text does not end before this many tokens of prompt and output, ≥ 0.
    do_sample: False takes the likeliest token each time.
    return_full_text: whether generated_text begins with the prompt; True if left out.
    temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram_size, seed: as in
    SamplingParams.
    """

    num_return_sequences: int
    max_new_tokens: int | None
    max_length: int | None
    min_length: int | None
    do_sample: bool | None
    return_full_text: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    seed: int | None


SAMPLING_OPTIONS = PipelineOptions.__annotations__.keys() & sampling_settings().keys()
"""Options that SamplingParams has by the same name."""


def run_pipeline(
    reader: PromptReader, engine: Engine, prompts: str | Seq[str], options: PipelineOptions
) -> list[Any]:
    """Generate as the pipeline does; see Generator.__call__."""
    unknown = options.keys() - PipelineOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"a generator has no option {', '.join(map(repr, sorted(unknown)))}")
    full_text = check_bool("return_full_text", options.get("return_full_text", True))
    num_samples = check_int("num_return_sequences", options.get("num_return_sequences", 1), 1)
    max_new_tokens = options.get("max_new_tokens")
    if max_new_tokens is not None:
        check_int("max_new_tokens", max_new_tokens, 1)
    defaults = _defaults(reader, options)
    settings: dict[str, Any] = {name: options.get(name) for name in SAMPLING_OPTIONS}
    if not defaults.do_sample:
        settings["temperature"] = 0.0
    params = SamplingParams(n=num_samples, max_tokens=max_new_tokens, **settings)
    outputs = run_all(engine, reader.groups(prompts, params, defaults))
    decode = reader.tokenizer.decode
    records = [
        [{"generated_text": _text(decode, output, sample, full_text)} for sample in output.completions]
        for output in outputs
    ]
    return records[0] if isinstance(prompts, str) else records


def _defaults(reader: PromptReader, options: PipelineOptions) -> GenerationDefaults:
    """The checkpoint's defaults, with what SamplingParams does not have put in their place."""
    defaults = reader.defaults
    if (max_length := options.get("max_length")) is not None:
        check_int("max_length", max_length, 1)
        defaults = replace(defaults, max_length=max_length + reader.prefix_length, max_new_tokens=None)
    if (min_length := options.get("min_length")) is not None:
        check_int("min_length", min_length, 0)
        defaults = replace(defaults, min_length=min_length + reader.prefix_length, min_new_tokens=None)
    if (do_sample := options.get("do_sample")) is not None:
        check_bool("do_sample", do_sample)
        defaults = replace(defaults, do_sample=do_sample, temperature=defaults.temperature or 1.0)
    return defaults


def _text(
    decode: Callable[[Seq[int]], str], output: GenerationOutput, sample: Completion, full_text: bool
) -> str:
    """transformers cleans up the decoded whole and cuts the decoded prompt off by its length."""
    whole, prompt = (
        clean_up_tokenization(decode(token_ids))
        for token_ids in (output.prompt_token_ids + sample.token_ids, output.prompt_token_ids)
    )
    generated = whole[len(prompt) :]
    return output.prompt + generated if full_text else generated

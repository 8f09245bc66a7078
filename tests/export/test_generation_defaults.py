from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.small_checkpoint import END, IDS, SIZES, update, write
from support.transformers_version import needs_transformers_4
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel, pipeline
from transformers.pipelines.text_generation import TextGenerationPipeline

from hgt_infer.artifact.config import GenerationDefaults
from hgt_infer.errors import ModelFormatError
from hgt_infer.export.checkpoint import read_checkpoint


class StopError(Exception):
    """Ends generate() once its settings are known."""


def effective(pipe: Any, prompt: str = "My dream is") -> dict[str, object]:
    """What generate() samples with when the pipeline is called with `prompt` and nothing else."""
    seen: dict[str, Any] = {}
    prepare = pipe.model._prepare_generated_length

    def spy(**kwargs: Any) -> Any:
        config = prepare(**kwargs)
        ids = config.eos_token_id
        seen.update(
            do_sample=config.do_sample,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_k=config.top_k or 0,
            top_p=1.0 if config.top_p is None else config.top_p,
            min_p=config.min_p or 0.0,
            typical_p=1.0 if config.typical_p is None else config.typical_p,
            repetition_penalty=1.0 if config.repetition_penalty is None else config.repetition_penalty,
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            longest=config.max_length,
            shortest=config.min_length or 0,
            eos_token_ids=() if ids is None else tuple(ids) if isinstance(ids, list) else (ids,),
            num_prompt_tokens=kwargs["input_ids_length"],
            prefix=pipe.prefix or "",
        )
        raise StopError

    pipe.model._prepare_generated_length = spy
    try:
        with pytest.raises(StopError):
            pipe(prompt)
    finally:
        del pipe.model._prepare_generated_length
    return seen


def ours(
    defaults: GenerationDefaults, tokenizer: tokenizers.Tokenizer, prompt: str = "My dream is"
) -> dict[str, object]:
    """What `defaults` mean for `prompt`, in the terms of `effective`."""
    length = len(tokenizer.encode(defaults.prefix + prompt).ids)
    assert defaults.max_length is None or defaults.max_new_tokens is None
    return {
        "do_sample": defaults.do_sample,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "typical_p": defaults.typical_p,
        "repetition_penalty": defaults.repetition_penalty,
        "no_repeat_ngram_size": defaults.no_repeat_ngram_size,
        "longest": defaults.max_length
        if defaults.max_new_tokens is None
        else length + defaults.max_new_tokens,
        "shortest": defaults.min_length
        if defaults.min_new_tokens is None
        else length + defaults.min_new_tokens,
        "eos_token_ids": defaults.eos_token_ids,
        "num_prompt_tokens": length,
        "prefix": defaults.prefix,
    }


HUGGINGTWEETS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
    "prefix": END,
}
# config.json's additions, generation_config.json
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "2021": ({"task_specific_params": {"text-generation": HUGGINGTWEETS}}, None),
    "both files": (
        {"task_specific_params": {"text-generation": HUGGINGTWEETS}},
        {**IDS, "do_sample": True, "max_length": 160, "top_p": 0.95, "transformers_version": "4.40.0"},
    ),
    "both files, 4.57": (
        {"task_specific_params": {"text-generation": HUGGINGTWEETS}},
        {**IDS, "temperature": 0.9, "max_new_tokens": 64, "transformers_version": "4.57.6"},
    ),
    "original gpt2": (
        {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
        {**IDS, "_from_model_config": True, "transformers_version": "4.26.0.dev0"},
    ),
    "nothing": ({}, None),
    "generation_config.json alone": ({}, {**IDS, "do_sample": False, "top_k": 7, "max_new_tokens": 64}),
    "penalties": (
        {"task_specific_params": {"text-generation": {"repetition_penalty": 1.3, "typical_p": 0.9}}},
        {**IDS, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_p": 0.05},
    ),
    "legacy keys": ({"temperature": 0.5, "top_k": 5, "max_length": 77, "prefix": "My"}, None),
}


@needs_transformers_4
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_defaults_of_a_layout_are_those_of_transformers_pipeline(folder: Path, layout: str) -> None:
    config, generation = LAYOUTS[layout]
    update(folder / "config.json", **config)
    if generation is not None:
        write(folder / "generation_config.json", generation)
    checkpoint = read_checkpoint(folder)
    theirs = effective(pipeline("text-generation", model=str(folder), device="cpu"))
    assert ours(checkpoint.generation_defaults, checkpoint.tokenizer) == theirs


def test_a_temperature_of_zero_in_generation_config_json_is_lost_to_the_pipelines_own(folder: Path) -> None:
    write(folder / "generation_config.json", {**IDS, "temperature": 0.0})
    assert read_checkpoint(folder).generation_defaults.temperature == 0.7
    update(folder / "config.json", task_specific_params={"text-generation": {"temperature": 0.0}})
    defaults = read_checkpoint(folder).generation_defaults
    assert (defaults.temperature, defaults.do_sample) == (0.0, False)


def test_ids_come_back_from_a_model_whose_settings_an_old_version_wrote(folder: Path) -> None:
    update(folder / "config.json", task_specific_params={"text-generation": {"eos_token_id": None}})
    write(folder / "generation_config.json", {**IDS, "transformers_version": "4.21.0"})
    checkpoint = read_checkpoint(folder)
    theirs = effective(pipeline("text-generation", model=str(folder), device="cpu"))
    assert theirs["eos_token_ids"] == (0,)
    assert ours(checkpoint.generation_defaults, checkpoint.tokenizer) == theirs


def test_a_checkpoint_of_2021_gets_its_own_filters_and_the_new_limit_of_256(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    update(folder / "config.json", task_specific_params={"text-generation": HUGGINGTWEETS})
    assert read_checkpoint(folder).generation_defaults == GenerationDefaults(
        do_sample=True,
        temperature=1.0,
        top_k=50,
        top_p=0.95,
        min_length=10,
        max_length=None,
        max_new_tokens=256,
        min_new_tokens=None,
        eos_token_ids=(0,),
        prefix=END,
    )
    assert "max_length 160 has no effect" in caplog.text


SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "do_sample": st.booleans(),
    "temperature": st.sampled_from([1.0, 0.5, 0.7, 0.0, None]),
    "top_k": st.sampled_from([50, 5, 0, None]),
    "top_p": st.sampled_from([1.0, 0.9, None]),
    "min_p": st.sampled_from([None, 0.0, 0.1]),
    "typical_p": st.sampled_from([1.0, 0.8, None]),
    "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5, None]),
    "no_repeat_ngram_size": st.sampled_from([0, 3, None]),
    "min_length": st.sampled_from([0, 7]),
    "max_length": st.sampled_from([20, 21, 30]),
    "min_new_tokens": st.sampled_from([None, 0, 3]),
    "max_new_tokens": st.sampled_from([None, 256, 64]),
    "eos_token_id": st.sampled_from([0, [0, 7], None]),
}
settings_of_one_place = st.fixed_dictionaries({}, optional=SETTINGS)
prefixes = st.sampled_from([END, "My dream", "", None])


@needs_transformers_4
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    legacy=settings_of_one_place,
    generation=st.none() | settings_of_one_place,
    task=st.none() | settings_of_one_place,
    version=st.sampled_from(["4.21.0", "4.49.1", "4.50.0.dev0", "4.57.6", None]),
    config_prefix=prefixes,
    task_prefix=st.none() | st.builds(lambda prefix: {"prefix": prefix}, prefixes),
)
def test_any_settings_resolve_as_in_transformers_pipeline(
    folder: Path,
    model: Any,
    legacy: dict[str, Any],
    generation: dict[str, Any] | None,
    task: dict[str, Any] | None,
    version: str | None,
    config_prefix: str | None,
    task_prefix: dict[str, str | None] | None,
) -> None:
    config: dict[str, Any] = {"model_type": "gpt2", **SIZES, **IDS, **legacy, "prefix": config_prefix}
    if task is not None:
        config["task_specific_params"] = {"text-generation": {**task, **(task_prefix or {})}}
    write(folder / "config.json", config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        stamp = {} if version is None else {"transformers_version": version}
        write(folder / "generation_config.json", generation | stamp)

    # The parts of pipeline(model=folder) that settings pass through, around weights loaded once.
    model.config = GPT2Config.from_pretrained(folder)
    model.generation_config = (
        GenerationConfig.from_model_config(model.config)
        if generation is None
        else GenerationConfig.from_pretrained(folder)
    )
    tokenizer = tokenizer_of(folder)
    pipe = TextGenerationPipeline(model=model, tokenizer=tokenizer, task="text-generation", device="cpu")
    theirs = effective(pipe)
    assume(
        not (theirs["do_sample"] and theirs["temperature"] == 0.0)
    )  # generate() refuses this, and so do we
    checkpoint = read_checkpoint(folder)
    assert ours(checkpoint.generation_defaults, checkpoint.tokenizer) == theirs


tokenizer_cache: dict[bytes, Any] = {}


def tokenizer_of(folder: Path) -> Any:
    """transformers' tokenizer of the folder, loaded once for each vocabulary."""
    key = (folder / "merges.txt").read_bytes()
    if key not in tokenizer_cache:
        tokenizer_cache[key] = AutoTokenizer.from_pretrained(folder)
    return tokenizer_cache[key]


def test_gpt2s_end_of_text_is_the_default_only_where_the_vocabulary_has_it(
    folder: Path, tmp_path: Path
) -> None:
    config = {"model_type": "gpt2", **SIZES}
    write(folder / "config.json", config)
    assert read_checkpoint(folder).generation_defaults.eos_token_ids == ()
    GPT2LMHeadModel(GPT2Config(**SIZES | {"vocab_size": 50257})).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    write(folder / "config.json", config | {"vocab_size": 50257})
    assert read_checkpoint(folder).generation_defaults.eos_token_ids == (50256,)


@pytest.mark.parametrize("place", ["config.json", "task_specific_params", "generation_config.json"])
def test_settings_that_are_not_supported_are_named_in_a_warning(
    folder: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"diversity_penalty": 1.3, "num_beams": 4, "encoder_no_repeat_ngram_size": 2}
    if place == "task_specific_params":
        update(folder / "config.json", task_specific_params={"text-generation": asked})
    else:
        update(folder / place, **asked, **IDS)
    read_checkpoint(folder)
    (record,) = [record for record in caplog.records if record.name.startswith("hgt_infer")]
    assert record.levelno == logging.WARNING
    for name in ("diversity_penalty 1.3", "num_beams 4", "encoder_no_repeat_ngram_size 2"):
        assert name in record.getMessage()


def test_neutral_values_of_unsupported_settings_are_silent(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    update(folder / "config.json", diversity_penalty=0.0, num_beams=1, bad_words_ids=None)
    write(folder / "generation_config.json", {**IDS, "epsilon_cutoff": 0.0, "suppress_tokens": []})
    read_checkpoint(folder)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("repetition_penalty", 0, "from 0.001 to 1000"),
        ("repetition_penalty", 1e4, "from 0.001 to 1000"),
        ("repetition_penalty", "1.3", "a number"),
        ("min_p", -0.1, "from 0.0 to 1.0"),
        ("min_p", 1.1, "from 0.0 to 1.0"),
        ("typical_p", 0, "above 0"),
        ("typical_p", [0.9], "a number"),
        ("no_repeat_ngram_size", -1, "from 0 to"),
        ("no_repeat_ngram_size", 2.0, "an integer"),
    ],
)
def test_a_default_out_of_range_is_a_format_error(
    folder: Path, name: str, value: object, expected: str
) -> None:
    update(folder / "config.json", task_specific_params={"text-generation": {name: value}})
    with pytest.raises(ModelFormatError, match=f"expected {name}.*{expected}"):
        read_checkpoint(folder)

"""Resolves a checkpoint's sampling settings to those that transformers' text-generation pipeline uses.

The pipeline's precedence among its own, the model's and the task's settings is followed step by step.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from hgt_infer.artifact.checked_json import format_error, read_json_object
from hgt_infer.artifact.config import GenerationDefaults, ModelConfig, parse_generation_defaults
from hgt_infer.artifact.folder import CONFIG_FILE, GENERATION_CONFIG_FILE

logger = logging.getLogger(__name__)

_GPT2_EOS_TOKEN_ID = 50256

# transformers' GenerationConfig(), for the settings that hgt_infer has …
_SUPPORTED_SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "max_length": 20,
    "min_new_tokens": None,
    "max_new_tokens": None,
    "eos_token_id": None,
}
# … and for those that it has not, as far as they change the text of a decoder's samples.
_UNSUPPORTED_SETTINGS: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "max_time": None,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "watermarking_config": None,
}
# What None means in a file.
_OFF = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
_GLOBAL_SETTINGS = {**_SUPPORTED_SETTINGS, **_UNSUPPORTED_SETTINGS}
# What its text-generation pipeline puts over them.
_PIPELINE_SETTINGS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}


def read_generation_defaults(
    folder: Path,
    config_values: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: tokenizers.Tokenizer,
) -> GenerationDefaults:
    """Return the settings that transformers 4.57's pipeline("text-generation", folder) ends up with.

    It resolves them in four steps, and so do we (Pipeline.__init__, TextGenerationPipeline._forward,
    GenerationMixin._prepare_generation_config and _prepare_generated_length):
    1. The pipeline's own settings win over the model's, which fill only what is at transformers'
       global default. The model's are those of generation_config.json, else those in config.json.
    2. A max_length of the model takes away the pipeline's own max_new_tokens.
    3. task_specific_params["text-generation"] wins over both; a max_length in it takes nothing away.
    4. generate() fills from the model again (ids alone if an older version wrote the settings). Then
       max_new_tokens wins over max_length, which has grown by the length of the prefix by then, and
       min_new_tokens over min_length.
    """
    model, is_current = _read_model_settings(folder, config_values, config)
    settings = {**_GLOBAL_SETTINGS, **_PIPELINE_SETTINGS}
    _fill_global_defaults(settings, model)
    if settings["max_new_tokens"] == _PIPELINE_SETTINGS["max_new_tokens"] and settings["max_length"] not in (
        None,
        _GLOBAL_SETTINGS["max_length"],
    ):
        settings["max_new_tokens"] = None

    task = _task_params(folder / CONFIG_FILE, config_values)
    prefix = task.get("prefix", config_values.get("prefix")) or ""
    settings |= {name: value for name, value in task.items() if name in settings}
    max_length = settings["max_length"]
    if is_current:
        _fill_global_defaults(settings, model)
    elif settings["eos_token_id"] is None:
        settings["eos_token_id"] = model["eos_token_id"]
    if prefix and isinstance(prefix, str) and isinstance(max_length, int):
        settings["max_length"] = max_length + len(tokenizer.encode(prefix, add_special_tokens=False).ids)

    if settings["max_new_tokens"] is not None:
        if settings["max_length"] not in (None, _GLOBAL_SETTINGS["max_length"]):
            logger.info(
                "%s: max_length %s has no effect: max_new_tokens %s takes precedence, as in transformers",
                folder,
                max_length,
                settings["max_new_tokens"],
            )
        settings["max_length"] = None
    elif not prefix and settings["max_length"] == _GLOBAL_SETTINGS["max_length"]:
        # The global default counts new tokens, other values of max_length the prompt as well.
        settings |= {"max_new_tokens": settings["max_length"], "max_length": None}
    if settings["min_new_tokens"] is not None:
        settings["min_length"] = 0
    _warn_of_unsupported(folder, settings)

    supported = {name: settings[name] for name in _SUPPORTED_SETTINGS if name != "eos_token_id"}
    for name, off in _OFF.items():
        if supported[name] is None:
            supported[name] = off
    supported |= {"eos_token_ids": as_ids(settings["eos_token_id"]), "prefix": prefix}
    return parse_generation_defaults(supported, vocab_size=config.vocab_size, path=folder)


def _read_model_settings(
    folder: Path, config_values: Mapping[str, Any], config: ModelConfig
) -> tuple[dict[str, Any], bool]:
    """Return the model's own settings, and whether transformers 4.50 or later wrote them."""
    path = folder / GENERATION_CONFIG_FILE
    if path.is_file():
        values = read_json_object(path)
        version = re.match(r"(\d{1,4})\.(\d{1,4})", str(values.get("transformers_version", "")))
        is_current = version is None or (int(version[1]), int(version[2])) >= (4, 50)
    else:
        is_current = True
        values = {name: value for name, value in config_values.items() if value is not None}
        if "eos_token_id" not in config_values and config.vocab_size > _GPT2_EOS_TOKEN_ID:
            values["eos_token_id"] = _GPT2_EOS_TOKEN_ID
    known = {name: value for name, value in values.items() if name in _GLOBAL_SETTINGS}
    return {**_GLOBAL_SETTINGS, **known}, is_current


def _fill_global_defaults(settings: dict[str, Any], model: Mapping[str, Any]) -> None:
    for name, default in _GLOBAL_SETTINGS.items():
        if settings[name] == default:
            settings[name] = model[name]
    if settings["temperature"] == 0.0:
        settings["do_sample"] = False


def _task_params(path: Path, config_values: Mapping[str, Any]) -> dict[str, Any]:
    tasks = config_values.get("task_specific_params")
    if tasks is None:
        return {}
    task = tasks.get("text-generation", {}) if isinstance(tasks, dict) else tasks
    if not isinstance(task, dict):
        raise format_error(path, "task_specific_params to be an object of objects", task)
    return task


def _warn_of_unsupported(folder: Path, settings: Mapping[str, Any]) -> None:
    asked = [
        f"{name} {settings[name]!r}"
        for name, neutral in _UNSUPPORTED_SETTINGS.items()
        if settings[name] not in (None, neutral, [])
    ]
    if asked:
        logger.warning(
            "%s: the checkpoint's defaults ask for what hgt_infer does not take from them: %s. "
            "Its texts will differ from those of transformers",
            folder,
            ", ".join(asked),
        )


def as_ids(value: Any) -> list[Any]:
    """Return the token ids that a config file gives as one, as a list or not at all."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]

"""Reads a Hugging Face GPT-2 checkpoint folder: sizes, generation settings, weights, tokenizer.

Nothing that a checkpoint says is executed, and every weight is checked before it is used. Making a
graph out of the result is `hgt_infer.export.graph`'s.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (tells NumPy, and so safetensors, what bfloat16 is)
import numpy as np
import safetensors
import tokenizers
from numpy.typing import NDArray

from hgt_infer.artifact import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_FILE,
    GenerationDefaults,
    ModelConfig,
    format_error,
    parse_generation_defaults,
    parse_model_config,
    read_json_object,
)
from hgt_infer.errors import ModelFormatError, ModelNotFoundError

logger = logging.getLogger(__name__)

_MAX_VOCABULARY_BYTES = 64 << 20  # GPT-2's own tokenizer.json has 1.3 MB

# What transformers' GPT2Config takes where config.json is silent.
_CONFIG_DEFAULTS = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_positions": 1024,
    "vocab_size": 50257,
    "layer_norm_epsilon": 1e-5,
}
_CONFIG_ALIASES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
}
# Options that change what the model computes: name, the values that the graph implements.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
    "custom_pipelines": (None,),
}
_GPT2_EOS_TOKEN_ID = 50256

# transformers' GenerationConfig(), for the settings that hgt_infer has …
_SUPPORTED_SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
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
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "typical_p": 1.0,
    "watermarking_config": None,
}
_GLOBAL_SETTINGS = {**_SUPPORTED_SETTINGS, **_UNSUPPORTED_SETTINGS}
# What its text-generation pipeline puts over them.
_PIPELINE_SETTINGS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}

_SHARD_NAME = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)", re.ASCII)
_ATTENTION_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)", re.ASCII)
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_MAX_NAMES_SHOWN = 40

_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)
_ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder.

    Attributes:
        path: the folder.
        config: the model's sizes.
        generation_defaults: what transformers' text-generation pipeline would use by default.
        weights: float32 arrays under GPT-2's names without `transformer.`, as `weight_shapes` lists
            them, and "lm_head.weight" [vocab_size, n_embd] where it is not the token embedding. An
            array is read from the file at each access, so that the whole model is never in memory.
        tokenizer: equal to transformers' GPT2TokenizerFast; all its ids are below `vocab_size`.
    """

    path: Path
    config: ModelConfig
    generation_defaults: GenerationDefaults
    weights: Mapping[str, NDArray[np.float32]]
    tokenizer: tokenizers.Tokenizer


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the checkpoint folder at `path` and check it.

    Weights come from `model.safetensors`, its shards, `pytorch_model.bin` or its shards, the first of
    them that is there; a `.bin` file needs PyTorch and is read without running pickled code. The
    tokenizer comes from `tokenizer.json`, else from `vocab.json` and `merges.txt`.

    Args:
        path: the folder.

    Raises:
        ModelNotFoundError: there is no such folder.
        ModelFormatError: it is not a GPT-2 checkpoint, is damaged, or uses an option that the graph
            does not implement. Weights that are missing, unexpected or of a wrong shape are all named.

    Example:
        checkpoint = read_checkpoint("checkpoints/lilyw12_")
        checkpoint.weights["wte.weight"].shape  # (50257, 768)
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError(f"no checkpoint folder at {folder}")
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise format_error(folder, f"a checkpoint with {CONFIG_FILE}", "none")
    config_values = read_json_object(config_path)
    config = _parse_config(config_values, config_path)
    tokenizer = _read_tokenizer(folder, config_values, config)
    defaults = _read_generation_defaults(folder, config_values, config, tokenizer)
    weights = _read_weights(folder, config, tied=config_values.get("tie_word_embeddings") is not False)
    return Checkpoint(folder, config, defaults, weights, tokenizer)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of a model whose output layer is the token embedding.

    Matrices of a block are stored [in, out], embeddings [rows, n_embd].
    """
    H, inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, H),
        "wpe.weight": (config.n_positions, H),
    }
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (H,), f"{block}.{norm}.bias": (H,)}
        for name, fan_in, fan_out in (
            ("attn.c_attn", H, 3 * H),
            ("attn.c_proj", H, H),
            ("mlp.c_fc", H, inner),
            ("mlp.c_proj", inner, H),
        ):
            shapes |= {f"{block}.{name}.weight": (fan_in, fan_out), f"{block}.{name}.bias": (fan_out,)}
    return shapes | {"ln_f.weight": (H,), "ln_f.bias": (H,)}


# --- config.json


def _parse_config(values: Mapping[str, Any], path: Path) -> ModelConfig:
    if values.get("model_type") != "gpt2":
        raise format_error(path, '"model_type": "gpt2"', values.get("model_type"))
    for name, implemented in _IMPLEMENTED.items():
        if name in values and values[name] not in implemented:
            shown = " or ".join("absent" if value is None else repr(value) for value in implemented)
            raise format_error(path, f"{name} {shown} (no other is implemented)", values[name])
    sizes = {}
    for name, default in _CONFIG_DEFAULTS.items():
        alias = _CONFIG_ALIASES.get(name, name)
        sizes[name] = values.get(name, values.get(alias, default))
        if values.get(alias, sizes[name]) != sizes[name]:
            raise format_error(path, f"{alias} to equal {name} {sizes[name]}", values[alias])
    sizes["n_inner"] = values.get("n_inner")
    if sizes["n_inner"] is None and isinstance(sizes["n_embd"], int):
        sizes["n_inner"] = 4 * sizes["n_embd"]
    config = parse_model_config(sizes, path=path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for token_id in _as_ids(values.get(name)):
            if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
                raise format_error(path, f"{name} from 0 to {config.vocab_size - 1}", token_id)
    return config


# --- generation settings


def _read_generation_defaults(
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
    for name, off in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_length", 0)):
        if supported[name] is None:
            supported[name] = off
    supported |= {"eos_token_ids": _as_ids(settings["eos_token_id"]), "prefix": prefix}
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


def _as_ids(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


# --- weights


@dataclass(frozen=True)
class _StoredWeight:
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    read: Callable[[], NDArray[Any]]


class _Weights(Mapping[str, "NDArray[np.float32]"]):
    """Weights by name, each read and converted to float32 when it is asked for."""

    def __init__(self, stored: Mapping[str, _StoredWeight]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # float64 too large for float32: infinite, and refused as such
            return self._stored[name].read().astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _read_weights(folder: Path, config: ModelConfig, *, tied: bool) -> _Weights:
    stored: dict[str, _StoredWeight] = {}
    faults: list[str] = []
    for file in _weight_files(folder):
        opened = _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
        for full_name, weight in opened.items():
            name = full_name.removeprefix("transformer.")
            if _ATTENTION_BUFFER.fullmatch(name):
                continue  # the causal mask, which old versions of transformers saved
            if name in stored:
                faults.append(f"{full_name} twice")
            stored[name] = weight

    expected = weight_shapes(config)
    if not tied or "lm_head.weight" in stored:
        expected["lm_head.weight"] = expected["wte.weight"]
    faults += [f"{name} missing" for name in expected if name not in stored]
    faults += [f"{name} unexpected" for name in stored if name not in expected]
    for name in expected.keys() & stored.keys():
        weight = stored[name]
        if weight.shape != expected[name]:
            faults.append(f"{name} {list(weight.shape)} instead of {list(expected[name])}")
        if weight.dtype not in _FLOAT_TYPES:
            faults.append(f"{name} of type {weight.dtype} instead of {', '.join(_FLOAT_TYPES)}")
    weights = _Weights(stored)
    if not faults:
        faults = [f"{name} with NaN or infinity" for name in weights if not _is_finite(weights[name])]
    if faults:
        shown = "; ".join(sorted(faults)[:_MAX_NAMES_SHOWN])
        rest = f"; and {len(faults) - _MAX_NAMES_SHOWN} more" if len(faults) > _MAX_NAMES_SHOWN else ""
        raise format_error(folder, "the weights of its config.json", f"{len(faults)} faults: {shown}{rest}")
    return _Weights(_without_tied_head(folder, stored, weights, tied=tied))


def _without_tied_head(
    folder: Path, stored: dict[str, _StoredWeight], weights: _Weights, *, tied: bool
) -> dict[str, _StoredWeight]:
    if "lm_head.weight" not in stored:
        return stored
    differs = not np.array_equal(weights["lm_head.weight"], weights["wte.weight"])
    if differs and not tied:
        return stored
    if differs:
        logger.warning(
            "%s: lm_head.weight differs from wte.weight and is not used: tie_word_embeddings is not false",
            folder,
        )
    return {name: weight for name, weight in stored.items() if name != "lm_head.weight"}


def _is_finite(array: NDArray[np.float32]) -> bool:
    # min and max carry NaN and infinity, and need no array of booleans.
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: as transformers does, safetensors before pickles."""
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index, suffix=Path(name).suffix)
    raise format_error(folder, " or ".join([*names, "an index of shards of one of them"]), "none")


def _shards(index: Path, *, suffix: str) -> list[Path]:
    weight_map = read_json_object(index, max_bytes=_MAX_VOCABULARY_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise format_error(index, "weight_map to name a file for each weight", weight_map)
    for name in weight_map.values():
        # Plain names of a known form: no path out of the folder.
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(suffix):
            raise format_error(index, f"files named like …-00001-of-00002{suffix}", name)
    files = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise format_error(index, "all of its files", f"no {', '.join(missing)}")
    return files


def _open_safetensors(path: Path) -> dict[str, _StoredWeight]:
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
        stored = {}
        for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
            view = file.get_slice(name)
            stored[name] = _StoredWeight(
                tuple(view.get_shape()), view.get_dtype(), partial(file.get_tensor, name)
            )
    except (safetensors.SafetensorError, OSError) as error:
        raise format_error(path, "a whole safetensors file", str(error)) from error
    return stored


def _open_bin(path: Path) -> dict[str, _StoredWeight]:
    try:
        import torch
    except ImportError as error:
        raise ModelFormatError(
            f"{path}: only PyTorch can read this file: install it (pip install torch), "
            "or save the checkpoint as model.safetensors"
        ) from error
    try:
        # weights_only: tensors and plain containers, no pickled code. Files of before 1.6 are no zip.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes PyTorch's reader raise nearly anything
        raise format_error(
            path, "a whole file of tensors and nothing else", str(error).partition("\n")[0]
        ) from error
    is_state = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in tensors.items()
    )
    if not is_state:
        raise format_error(path, "a dictionary of dense tensors", type(tensors).__name__)
    dtypes = dict(
        zip((torch.float64, torch.float32, torch.float16, torch.bfloat16), _FLOAT_TYPES, strict=True)
    )

    def read(tensor: torch.Tensor) -> NDArray[Any]:
        array: NDArray[Any] = tensor.detach().to(torch.float32).numpy()
        return array

    return {
        name: _StoredWeight(
            tuple(tensor.shape), dtypes.get(tensor.dtype, str(tensor.dtype)), partial(read, tensor)
        )
        for name, tensor in tensors.items()
    }


# --- tokenizer


def _read_tokenizer(
    folder: Path, config_values: Mapping[str, Any], config: ModelConfig
) -> tokenizers.Tokenizer:
    """Return the tokenizer that transformers' AutoTokenizer would make of the folder, as a fast one."""
    settings = _read_optional(folder / "tokenizer_config.json")
    class_name = settings.get("tokenizer_class") or config_values.get("tokenizer_class") or "GPT2Tokenizer"
    if class_name not in (*_GPT2_TOKENIZERS, "PreTrainedTokenizerFast"):
        raise format_error(folder, "a tokenizer of GPT-2", f"tokenizer_class {class_name!r}")
    for name in ("auto_map", "split_special_tokens"):
        if settings.get(name):
            raise format_error(folder / "tokenizer_config.json", f"no {name}", settings[name])
    if class_name in _GPT2_TOKENIZERS:
        settings = {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        } | settings
    if "added_tokens_decoder" not in settings:  # else tokenizer_config.json says all
        settings |= _read_optional(folder / "special_tokens_map.json")

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        path = folder / "vocab.json"
    try:
        tokenizer = (
            _tokenizer_from_file(path) if path.name == TOKENIZER_FILE else _build_tokenizer(folder, settings)
        )
        _add_tokens(tokenizer, folder, settings)
    except ModelFormatError:
        raise
    except BaseException as error:
        # The tokenizers library raises plain Exception, and for some damage Rust's PanicException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise format_error(path, "a tokenizer", str(error).partition("\n")[0]) from error
    # GPT2TokenizerFast takes it from tokenizer_config.json even where tokenizer.json has it otherwise.
    add_prefix_space = bool(settings.get("add_prefix_space", False))
    if getattr(tokenizer.pre_tokenizer, "add_prefix_space", add_prefix_space) != add_prefix_space:
        tokenizer.pre_tokenizer.add_prefix_space = add_prefix_space
    tokenizer.no_truncation()
    tokenizer.no_padding()

    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= config.vocab_size:
        raise format_error(path, f"token ids below vocab_size {config.vocab_size}", f"id {largest}")
    return tokenizer


def _tokenizer_from_file(path: Path) -> tokenizers.Tokenizer:
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_VOCABULARY_BYTES:
        raise format_error(path, f"at most {_MAX_VOCABULARY_BYTES} bytes", size_bytes)
    return tokenizers.Tokenizer.from_file(str(path))


def _build_tokenizer(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab_path, merges_path):
        if not path.is_file():
            raise format_error(folder, f"{TOKENIZER_FILE}, or vocab.json and merges.txt", f"no {path.name}")
        if path.stat().st_size > _MAX_VOCABULARY_BYTES:
            raise format_error(path, f"at most {_MAX_VOCABULARY_BYTES} bytes", path.stat().st_size)
    vocab = read_json_object(vocab_path, max_bytes=_MAX_VOCABULARY_BYTES)
    if len(set(vocab.values())) != len(vocab):
        raise format_error(vocab_path, "an id of its own for each token", "an id twice")
    # The first line is a version, and what follows the last new line is not read.
    lines = merges_path.read_text(encoding="utf-8").split("\n")[1:-1]
    merges = list(dict.fromkeys(tuple(line.split()) for line in lines))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    if settings.get("add_bos_token"):
        bos = _added_token(settings["bos_token"]).content
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", special_tokens=[(bos, vocab[bos])]
        )
    return tokenizer


def _add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Add the tokens of added_tokens_decoder or added_tokens.json, then the special ones by name."""
    special: list[Any] = []
    for name in _SPECIAL_TOKEN_NAMES:
        value = settings.get(name)
        special += value if isinstance(value, list) else [] if value is None else [value]
    special_contents = {_added_token(value).content for value in special}

    if "added_tokens_decoder" in settings:
        by_id = settings["added_tokens_decoder"].items()
        added = {int(token_id): _added_token(value) for token_id, value in by_id}
        known = {}
    else:
        by_content = _read_optional(folder / "added_tokens.json").items()
        added = {token_id: _added_token(content) for content, token_id in by_content}
        known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token_id, token in sorted(added.items()):
        token.special = token.special or token.content in special_contents
        tokenizer.add_tokens([token])
        known[token.content] = token
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise format_error(folder, f"id {token_id} for {token.content!r}", found)

    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for value in special:
        token = _added_token(value)
        if token.content in known:  # keeps its attributes, whatever those of the special token are
            token = known[token.content]
        elif isinstance(value, str) and value in present:
            continue
        token.special = True
        tokenizer.add_tokens([token])


def _added_token(value: Any) -> tokenizers.AddedToken:
    """Return the token that a JSON string or object describes."""
    if isinstance(value, dict):
        return tokenizers.AddedToken(**{name: value[name] for name in _ADDED_TOKEN_FIELDS if name in value})
    return tokenizers.AddedToken(value)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=_MAX_VOCABULARY_BYTES) if path.is_file() else {}

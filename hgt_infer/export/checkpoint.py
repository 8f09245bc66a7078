"""Reads a Hugging Face GPT-2 checkpoint folder: its sizes, generation settings, weights, tokenizer.

Nothing that a checkpoint says is executed. The files are read by `weights`, `tokenizer_files` and
`generation_defaults`; making a graph out of the result is `hgt_infer.export.build_graph`'s.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from hgt_infer.artifact.checked_json import format_error, read_json_object
from hgt_infer.artifact.config import GenerationDefaults, ModelConfig, parse_model_config
from hgt_infer.artifact.folder import CONFIG_FILE
from hgt_infer.errors import ModelNotFoundError
from hgt_infer.export.generation_defaults import as_ids, read_generation_defaults
from hgt_infer.export.tokenizer_files import read_tokenizer
from hgt_infer.export.weights import read_weights

# transformers' GPT2Config: name, other name, what it takes where config.json is silent.
_SIZES = (
    ("n_layer", "num_hidden_layers", 12),
    ("n_head", "num_attention_heads", 12),
    ("n_embd", "hidden_size", 768),
    ("n_positions", "max_position_embeddings", 1024),
    ("vocab_size", "vocab_size", 50257),
    ("layer_norm_epsilon", "layer_norm_epsilon", 1e-5),
)
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


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder.

    Attributes:
        path: the folder.
        config: the model's sizes.
        generation_defaults: what transformers' text-generation pipeline would use by default.
        weights: float32 arrays under GPT-2's names without `transformer.`, as `weights.weight_shapes` lists
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
    tokenizer = read_tokenizer(folder, config_values, config)
    defaults = read_generation_defaults(folder, config_values, config, tokenizer)
    weights = read_weights(folder, config, tied=config_values.get("tie_word_embeddings") is not False)
    return Checkpoint(folder, config, defaults, weights, tokenizer)


def _parse_config(values: Mapping[str, Any], path: Path) -> ModelConfig:
    if values.get("model_type") != "gpt2":
        raise format_error(path, '"model_type": "gpt2"', values.get("model_type"))
    for name, implemented in _IMPLEMENTED.items():
        if name in values and values[name] not in implemented:
            shown = " or ".join("absent" if value is None else repr(value) for value in implemented)
            raise format_error(path, f"{name} {shown} (no other is implemented)", values[name])
    sizes = {}
    for name, alias, default in _SIZES:
        sizes[name] = values.get(name, values.get(alias, default))
        if values.get(alias, sizes[name]) != sizes[name]:
            raise format_error(path, f"{alias} to equal {name} {sizes[name]}", values[alias])
    sizes["n_inner"] = values.get("n_inner")
    if sizes["n_inner"] is None and isinstance(sizes["n_embd"], int):
        sizes["n_inner"] = 4 * sizes["n_embd"]
    config = parse_model_config(sizes, path=path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for token_id in as_ids(values.get(name)):
            if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
                raise format_error(path, f"{name} from 0 to {config.vocab_size - 1}", token_id)
    return config

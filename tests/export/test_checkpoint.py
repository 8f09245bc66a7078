from __future__ import annotations

from pathlib import Path

import pytest
from support.small_checkpoint import IDS, SIZES, update
from transformers import GPT2Config, GPT2LMHeadModel

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.errors import ModelFormatError, ModelNotFoundError
from hgt_infer.export.checkpoint import read_checkpoint


def test_the_sizes_are_those_of_config_json(folder: Path) -> None:
    assert read_checkpoint(folder).config == ModelConfig(
        n_layer=2, n_head=2, n_embd=8, n_inner=32, n_positions=32, vocab_size=320, layer_norm_epsilon=1e-5
    )


def test_a_width_of_the_feed_forward_layer_is_taken(folder: Path, tmp_path: Path) -> None:
    narrow = GPT2LMHeadModel(GPT2Config(**SIZES, **IDS, n_inner=12, layer_norm_epsilon=1e-6))
    narrow.save_pretrained(folder)
    config = read_checkpoint(folder).config
    assert (config.n_inner, config.layer_norm_epsilon) == (12, 1e-6)


CONFIG_FAULTS: dict[str, dict[str, object]] = {
    "model_type": {"model_type": "gpt_neo"},
    "activation_function": {"activation_function": "relu"},
    "scale_attn_weights": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "add_cross_attention": {"add_cross_attention": True},
    "auto_map": {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "pruned_heads": {"pruned_heads": {"0": [1]}},
    "n_layer": {"n_layer": 0},
    "n_head": {"n_head": 2.0},
    "n_positions": {"n_positions": 1 << 50},
    "vocab_size": {"vocab_size": "320"},
    "n_embd": {"n_embd": None},
    "multiple of n_head": {"n_head": 3},
    "n_inner": {"n_inner": -1},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0},
    "hidden_size": {"hidden_size": 16},
    "eos_token_id": {"eos_token_id": 320},
    "bos_token_id": {"bos_token_id": -1},
    "pad_token_id": {"pad_token_id": 320},
    "task_specific_params": {"task_specific_params": ["text-generation"]},
    "prefix": {"task_specific_params": {"text-generation": {"prefix": 3}}},
    "temperature": {"task_specific_params": {"text-generation": {"temperature": -1}}},
    "max_new_tokens": {"task_specific_params": {"text-generation": {"max_new_tokens": "many"}}},
    "tokenizer_class": {"tokenizer_class": "BertTokenizer"},
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_a_config_that_is_wrong_or_not_implemented_is_refused_by_name(folder: Path, name: str) -> None:
    update(folder / "config.json", **CONFIG_FAULTS[name])
    with pytest.raises(ModelFormatError, match=name) as caught:
        read_checkpoint(folder)
    assert str(folder) in str(caught.value)


def test_implemented_options_and_unknown_harmless_keys_are_accepted(folder: Path) -> None:
    update(
        folder / "config.json",
        activation_function="gelu_pytorch_tanh",
        scale_attn_weights=True,
        add_cross_attention=False,
        n_ctx=32,
        gradient_checkpointing=False,
        summary_type="cls_index",
    )
    read_checkpoint(folder)


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelFormatError, match=r"config\.json, found none"):
        read_checkpoint(tmp_path)

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel, pipeline
from transformers.pipelines.text_generation import TextGenerationPipeline

from hgt_infer.artifact import GenerationDefaults, ModelConfig
from hgt_infer.errors import ModelFormatError, ModelNotFoundError
from hgt_infer.export.checkpoint import read_checkpoint, weight_shapes

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 32, "vocab_size": 320}
IDS = {"bos_token_id": 0, "eos_token_id": 0}
END = "<|endoftext|>"


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, **IDS)).eval()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """A checkpoint as of today: model.safetensors, and a tokenizer of 2021."""
    folder = tmp_path_factory.mktemp("template")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = ["My dream is to be the very model of a modern major general.", "the theme there 日本 🦙 1234"]
    bpe.train_from_iterator(text * 4, vocab_size=300, special_tokens=[END], show_progress=False)
    bpe.save_model(str(folder))
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    shutil.copytree(template, path)
    write(path / "config.json", {"model_type": "gpt2", **SIZES, **IDS})
    return path


def write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def update(path: Path, **values: object) -> None:
    write(path, (json.loads(path.read_text()) if path.exists() else {}) | values)


def state(model: Any) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]
    return tensors


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], kind: str = "safetensors") -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind in ("bin", "old bin"):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    else:
        suffix = kind.removeprefix("sharded ")
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        weight_map = {}
        for number in (1, 2):
            name = f"{stem}-{number:05}-of-00002.{suffix}"
            part = {key: tensors[key] for index, key in enumerate(tensors) if index % 2 == number - 1}
            weight_map |= dict.fromkeys(part, name)
            if suffix == "safetensors":
                save_file(part, folder / name)
            else:
                torch.save(part, folder / name)
        write(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})


def assert_weights_equal(folder: Path, model: Any, dtype: torch.dtype = torch.float32) -> None:
    weights = read_checkpoint(folder).weights
    expected = {name.removeprefix("transformer."): tensor for name, tensor in state(model).items()}
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], tensor.to(dtype).float().numpy(), err_msg=name)


# --- weights


def test_the_weights_are_those_that_transformers_saved(folder: Path, model: Any) -> None:
    checkpoint = read_checkpoint(str(folder))
    assert_weights_equal(folder, model)
    assert {name: array.shape for name, array in checkpoint.weights.items()} == weight_shapes(
        checkpoint.config
    )
    assert checkpoint.weights["h.1.attn.c_attn.weight"].shape == (8, 24)  # [in, out]


@pytest.mark.parametrize("kind", ["bin", "old bin", "sharded safetensors", "sharded bin"])
def test_every_kind_of_weight_file_is_read(folder: Path, model: Any, kind: str) -> None:
    save_weights(folder, state(model), kind)
    assert_weights_equal(folder, model)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_given_as_float32(
    folder: Path, model: Any, dtype: torch.dtype, kind: str
) -> None:
    save_weights(folder, {name: tensor.to(dtype) for name, tensor in state(model).items()}, kind)
    assert_weights_equal(folder, model, dtype)


def test_names_without_prefix_and_old_buffers_are_accepted(folder: Path, model: Any) -> None:
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in state(model).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_weights(folder, tensors, "bin")
    assert_weights_equal(folder, model)


def test_safetensors_win_over_a_pickle(folder: Path, model: Any) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    assert_weights_equal(folder, model)


def test_a_head_equal_to_the_embedding_is_not_given(folder: Path, model: Any) -> None:
    update(folder / "config.json", tie_word_embeddings=False)
    tensors = state(model)
    save_weights(folder, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    assert "lm_head.weight" not in read_checkpoint(folder).weights


def test_an_untied_head_is_given(folder: Path, model: Any) -> None:
    update(folder / "config.json", tie_word_embeddings=False)
    head = torch.randn(320, 8)
    save_weights(folder, state(model) | {"lm_head.weight": head})
    np.testing.assert_array_equal(read_checkpoint(folder).weights["lm_head.weight"], head.numpy())


def test_a_head_that_transformers_would_tie_is_left_out_with_a_warning(
    folder: Path, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    save_weights(folder, state(model) | {"lm_head.weight": torch.randn(320, 8)})
    assert "lm_head.weight" not in read_checkpoint(folder).weights
    assert "lm_head.weight differs from wte.weight" in caplog.text
    loaded = GPT2LMHeadModel.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, loaded.transformer.wte.weight)


def test_an_untied_head_must_be_there(folder: Path) -> None:
    update(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelFormatError, match=r"1 faults: lm_head\.weight missing"):
        read_checkpoint(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_all_faults_of_the_weights_are_reported_at_once(folder: Path, model: Any, kind: str) -> None:
    tensors = state(model)
    del tensors["transformer.ln_f.bias"], tensors["transformer.h.1.mlp.c_fc.weight"]
    tensors["score.weight"] = torch.ones(2)
    tensors["transformer.wpe.weight"] = torch.ones(16, 8)
    tensors["transformer.h.0.attn.c_attn.weight"] = torch.ones(24, 8)  # a Linear's layout
    tensors["transformer.ln_f.weight"] = torch.ones(8, dtype=torch.int32)
    save_weights(folder, tensors, kind)
    with pytest.raises(ModelFormatError) as caught:
        read_checkpoint(folder)
    message = str(caught.value)
    assert str(folder) in message
    for fault in (
        "6 faults",
        "ln_f.bias missing",
        "h.1.mlp.c_fc.weight missing",
        "score.weight unexpected",
        "wpe.weight [16, 8] instead of [32, 8]",
        "h.0.attn.c_attn.weight [24, 8] instead of [8, 24]",
        "ln_f.weight of type",
    ):
        assert fault in message


def test_a_weight_under_both_names_is_refused(folder: Path, model: Any) -> None:
    tensors = state(model)
    save_weights(folder, tensors | {"wpe.weight": tensors["transformer.wpe.weight"].clone()})
    with pytest.raises(ModelFormatError, match=r"wpe\.weight twice"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, model: Any, value: float) -> None:
    tensors = state(model)
    tensors["transformer.h.1.ln_2.bias"][3] = value
    tensors["transformer.wte.weight"][7, 1] = value
    save_weights(folder, tensors)
    with pytest.raises(ModelFormatError, match=r"2 faults: h\.1\.ln_2\.bias with NaN.*wte\.weight with NaN"):
        read_checkpoint(folder)


def test_a_float64_weight_beyond_float32_is_refused(folder: Path, model: Any) -> None:
    tensors = state(model)
    tensors["transformer.ln_f.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    save_weights(folder, tensors)
    with pytest.raises(ModelFormatError, match=r"ln_f\.bias with NaN or infinity"):
        read_checkpoint(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_weight_file_is_refused(folder: Path, model: Any, kind: str, kept: float) -> None:
    save_weights(folder, state(model), kind)
    path = folder / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelFormatError, match=path.name):
        read_checkpoint(folder)


def test_a_damaged_pickle_is_refused(folder: Path, model: Any) -> None:
    save_weights(folder, state(model), "old bin")
    path = folder / "pytorch_model.bin"
    # The first long number is the key of a storage: PyTorch fails an assertion when it finds no such one.
    path.write_bytes(re.sub(rb"\d{8,}", lambda key: key[0][::-1], path.read_bytes(), count=1))
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin"):
        read_checkpoint(folder)


def test_missing_shards_are_named(folder: Path, model: Any) -> None:
    save_weights(folder, state(model), "sharded safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"no model-00002-of-00002\.safetensors"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "model.bin", "", 3, None])
def test_an_index_names_no_file_of_another_form(folder: Path, name: object) -> None:
    (folder / "model.safetensors").unlink()
    write(folder / "model.safetensors.index.json", {"weight_map": {"wte.weight": name}})
    with pytest.raises(ModelFormatError, match=r"index\.json: expected files named like"):
        read_checkpoint(folder)


def test_a_folder_without_weights_says_which_were_looked_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"model\.safetensors or pytorch_model\.bin"):
        read_checkpoint(folder)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("pickled_by", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(
    folder: Path, tmp_path: Path, model: Any, pickled_by: str
) -> None:
    ran = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    tensors = {**state(model), "payload": Payload(ran)}
    with (folder / "pytorch_model.bin").open("wb") as file:
        torch.save(tensors, file) if pickled_by == "torch" else pickle.dump(tensors, file, protocol=2)
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin"):
        read_checkpoint(folder)
    assert not ran.exists()


@pytest.mark.parametrize("content", [[1, 2], {"wte.weight": [1.0]}, {1: torch.ones(1)}])
def test_a_pickle_of_something_else_is_refused(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="a dictionary of dense tensors"):
        read_checkpoint(folder)


def test_a_pickle_without_pytorch_says_what_to_install(
    folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(folder, state(model), "bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelFormatError, match="pip install torch"):
        read_checkpoint(folder)


def test_safetensors_are_read_without_pytorch_or_transformers(folder: Path) -> None:
    code = (
        "import sys; from hgt_infer.export.checkpoint import read_checkpoint; "
        f"print(len(read_checkpoint({str(folder)!r}).weights)); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("28", 0), done.stderr


def test_weights_are_read_at_each_access_and_not_kept(folder: Path) -> None:
    weights = read_checkpoint(folder).weights
    assert weights["wte.weight"] is not weights["wte.weight"]
    with pytest.raises(KeyError):
        weights["lm_head.weight"]


# --- config.json


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


# --- generation settings


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
    "legacy keys": ({"temperature": 0.5, "top_k": 5, "max_length": 77, "prefix": "My"}, None),
}


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
    folder: Path, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    save_weights(folder, state(model), "old bin")
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
    "min_length": st.sampled_from([0, 7]),
    "max_length": st.sampled_from([20, 21, 30]),
    "min_new_tokens": st.sampled_from([None, 0, 3]),
    "max_new_tokens": st.sampled_from([None, 256, 64]),
    "eos_token_id": st.sampled_from([0, [0, 7], None]),
}
settings_of_one_place = st.fixed_dictionaries({}, optional=SETTINGS)
prefixes = st.sampled_from([END, "My dream", "", None])


@settings(
    max_examples=250,
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
    asked = {"repetition_penalty": 1.3, "num_beams": 4, "no_repeat_ngram_size": 2}
    if place == "task_specific_params":
        update(folder / "config.json", task_specific_params={"text-generation": asked})
    else:
        update(folder / place, **asked, **IDS)
    read_checkpoint(folder)
    (record,) = [record for record in caplog.records if record.name.startswith("hgt_infer")]
    assert record.levelno == logging.WARNING
    for name in ("repetition_penalty 1.3", "num_beams 4", "no_repeat_ngram_size 2"):
        assert name in record.getMessage()


def test_neutral_values_of_unsupported_settings_are_silent(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    update(folder / "config.json", repetition_penalty=1.0, num_beams=1, bad_words_ids=None)
    write(folder / "generation_config.json", {**IDS, "typical_p": 1.0, "suppress_tokens": []})
    read_checkpoint(folder)
    assert caplog.text == ""


# --- tokenizer

TEXTS = [
    "",
    "My dream is",
    f"{END}My dream is{END}{END} to be",
    f" {END} x {END}",
    "日本 🦙 \t\n  modern 1234 <pad> [NAME]  end",
    "[NAME]<pad>the theme",
]
AT = {"content": "[NAME]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": True}
TOKENIZER_LAYOUTS: dict[str, dict[str, object]] = {
    "vocabulary alone": {},
    "2021": {
        "special_tokens_map.json": {"bos_token": END, "eos_token": END, "unk_token": END},
        "tokenizer_config.json": {
            "unk_token": END,
            "bos_token": END,
            "eos_token": END,
            "add_prefix_space": False,
            "model_max_length": 1024,
            "special_tokens_map_file": None,
            "name_or_path": "gpt2",
            "tokenizer_class": "GPT2Tokenizer",
        },
    },
    "a space before the text": {"tokenizer_config.json": {"add_prefix_space": True}},
    "a token before the text": {"tokenizer_config.json": {"add_bos_token": True}},
    "padding token": {"special_tokens_map.json": {"pad_token": "<pad>"}},
    "token with attributes": {"special_tokens_map.json": {"additional_special_tokens": [AT, "<pad>"]}},
    "added tokens": {"added_tokens.json": {"<pad>": 301, "[NAME]": 300}},
    "added and special": {
        "added_tokens.json": {"<pad>": 301, "[NAME]": 300},
        "special_tokens_map.json": {"pad_token": "<pad>"},
    },
    "tokens by id": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {**AT, "content": END, "lstrip": False, "special": True},
                "300": {**AT, "special": False},
                "301": {**AT, "content": "<pad>", "special": True},
            },
            "pad_token": "<pad>",
        },
        "special_tokens_map.json": {"pad_token": "[IGNORED]"},
    },
}


def assert_tokenizes_as_transformers(folder: Path) -> None:
    mine = read_checkpoint(folder).tokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.is_fast
    for text in TEXTS:
        ids = mine.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        for skip in (True, False):
            assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    assert mine.get_vocab(with_added_tokens=True) == theirs.get_vocab()


@pytest.mark.parametrize("layout", TOKENIZER_LAYOUTS)
@pytest.mark.parametrize("source", ["vocab.json", "tokenizer.json"])
def test_the_tokenizer_of_a_layout_is_that_of_transformers(folder: Path, layout: str, source: str) -> None:
    if source == "tokenizer.json":
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
            (folder / name).unlink()
    for name, values in TOKENIZER_LAYOUTS[layout].items():
        write(folder / name, values)
    assert_tokenizes_as_transformers(folder)


def test_a_special_token_keeps_the_attributes_of_tokenizer_json(folder: Path) -> None:
    fast = tokenizers.Tokenizer.from_str(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    fast.add_tokens([tokenizers.AddedToken("[NAME]", lstrip=True, special=False)])
    fast.save(str(folder / "tokenizer.json"))
    write(folder / "special_tokens_map.json", {"pad_token": "[NAME]"})
    assert_tokenizes_as_transformers(folder)


def test_a_tokenizer_saved_by_transformers_is_read_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["[NAME]"])
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").unlink()
    assert_tokenizes_as_transformers(folder)


def test_a_tokenizer_that_makes_the_library_panic_is_refused(folder: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["continuing_subword_prefix"] = "x" * 50
    write(folder / "tokenizer.json", values)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: expected a tokenizer"):
        read_checkpoint(folder)


def test_ids_beyond_the_vocabulary_of_the_model_are_refused(folder: Path) -> None:
    write(folder / "added_tokens.json", {f"[{number}]": 300 + number for number in range(21)})
    with pytest.raises(ModelFormatError, match="token ids below vocab_size 320, found id 320"):
        read_checkpoint(folder)


def test_an_added_token_with_an_id_that_it_cannot_have_is_refused(folder: Path) -> None:
    write(folder / "added_tokens.json", {"<pad>": 310})
    with pytest.raises(ModelFormatError, match="expected id 310 for '<pad>', found 300"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "no vocab.json"),
        ("merges.txt", None, "no merges.txt"),
        ("vocab.json", "{", "expected JSON"),
        ("vocab.json", '{"a": "x"}', "expected a tokenizer"),
        ("vocab.json", '{"a": -1}', "expected a tokenizer"),
        ("vocab.json", '{"a": 0, "b": 0}', "an id twice"),
        ("merges.txt", "#version\na b c\n", "expected a tokenizer"),
        ("merges.txt", "#version\nqqq zzz\n", "expected a tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "expected a tokenizer"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "evil.Evil"}}', "auto_map"),
        ("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}', "BertTokenizer"),
        ("tokenizer_config.json", '{"split_special_tokens": true}', "split_special_tokens"),
        ("tokenizer_config.json", '{"bos_token": 3}', "expected a tokenizer"),
    ],
)
def test_a_damaged_or_foreign_tokenizer_is_refused(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ModelFormatError, match=message):
        read_checkpoint(folder)

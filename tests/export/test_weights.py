from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.small_checkpoint import update, write
from support.transformers_version import needs_transformers_4
from transformers import GPT2LMHeadModel

from hgt_infer.errors import ModelFormatError
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.weights import weight_shapes


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


@needs_transformers_4
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

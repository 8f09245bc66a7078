from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from hgt_infer import Generator
from hgt_infer.artifact.config import GenerationDefaults, ModelConfig
from hgt_infer.artifact.folder import (
    KERNEL_FILE,
    MODEL_FILE,
    SAMPLER_FILE,
    is_artifact,
    new_artifact,
    read_artifact,
    verify_hashes,
    write_metadata,
)
from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError
from hgt_infer.kernels.library import load_kernels

CONFIG = ModelConfig(
    n_layer=2, n_head=4, n_embd=32, n_inner=128, n_positions=64, vocab_size=300, layer_norm_epsilon=1e-5
)
DEFAULTS = GenerationDefaults(
    do_sample=True,
    temperature=1.0,
    top_k=50,
    top_p=0.95,
    min_length=10,
    max_length=160,
    max_new_tokens=None,
    min_new_tokens=None,
    eos_token_ids=(299,),
    prefix="<|endoftext|>",
)


def write_files(folder: Path, model: bytes = b"graph") -> None:
    """What an exporter writes before the metadata."""
    (folder / "model.onnx").write_bytes(model)
    (folder / SAMPLER_FILE).write_bytes(b"sampler")
    (folder / "tokenizer.json").write_text("{}")


def write(path: Path, *, external: bool = False, force: bool = False, content: bytes = b"graph") -> Path:
    with new_artifact(path, force=force) as folder:
        write_files(folder, content)
        if external:
            (folder / "model.onnx.data").write_bytes(b"weights")
        write_metadata(folder, CONFIG, "fp16", DEFAULTS)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "artifact", external=True)


def test_an_artifact_reads_as_it_was_written(folder: Path) -> None:
    artifact = read_artifact(str(folder))
    assert (artifact.config, artifact.precision) == (CONFIG, "fp16")
    assert artifact.generation_defaults == DEFAULTS
    assert artifact.model_path == folder / "model.onnx"
    assert artifact.sampler_path == folder / "sampler.onnx"
    assert artifact.tokenizer_path == folder / "tokenizer.json"
    assert artifact.config.head_size == 8
    verify_hashes(artifact)
    assert is_artifact(folder)


def test_unlimited_lengths_and_no_eos_survive_the_file(tmp_path: Path) -> None:
    defaults = replace(DEFAULTS, max_length=None, min_new_tokens=0, eos_token_ids=(), prefix="")
    with new_artifact(tmp_path / "a") as folder:
        write_files(folder)
        write_metadata(folder, CONFIG, "fp32", defaults)
    assert read_artifact(tmp_path / "a").generation_defaults == defaults


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        read_artifact(tmp_path / "nowhere")
    assert not is_artifact(tmp_path / "nowhere")


def test_a_folder_without_config_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"expected .*config\.json, found none"):
        read_artifact(tmp_path)
    assert not is_artifact(tmp_path)


CONFIG_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no marker": (lambda c: c.pop("format"), 'expected "format"'),
    "other format": (lambda c: c.update(format="onnx"), 'expected "format"'),
    "earlier version": (lambda c: c.update(format_version=3), "format_version 4 or 5.*again.*found 3"),
    "later version": (lambda c: c.update(format_version=6), "format_version 4 or 5.*found 6"),
    "no version": (lambda c: c.pop("format_version"), "format_version 4"),
    "unknown key": (lambda c: c.update(auto_map={}), "auto_map"),
    "missing key": (lambda c: c.pop("precision"), "missing.*precision"),
    "unknown precision": (lambda c: c.update(precision="int4"), "precision.*int4"),
    "precision of another type": (lambda c: c.update(precision=["fp16"]), "precision"),
    "model is a list": (lambda c: c.update(model=[]), "model to be an object"),
    "files is a list": (lambda c: c.update(files=["model.onnx"]), "files to be an object"),
    "unknown size": (lambda c: c["model"].update(n_ctx=3), "n_ctx"),
    "zero": (lambda c: c["model"].update(n_layer=0), "n_layer.*from 1"),
    "negative": (lambda c: c["model"].update(n_embd=-32), "n_embd"),
    "huge": (lambda c: c["model"].update(n_positions=1 << 40), "n_positions"),
    "bool": (lambda c: c["model"].update(n_layer=True), "n_layer"),
    "float": (lambda c: c["model"].update(n_layer=2.0), "n_layer"),
    "indivisible": (lambda c: c["model"].update(n_head=5), "multiple of n_head.*32 and 5"),
    "epsilon": (lambda c: c["model"].update(layer_norm_epsilon=0), "layer_norm_epsilon"),
    "path upwards": (lambda c: c["files"].update({"../../etc/passwd": {}}), "passwd"),
    "absolute path": (lambda c: c["files"].update({"/etc/passwd": {}}), "passwd"),
    "file not listed": (lambda c: c["files"].pop("model.onnx"), "files model.onnx"),
    "sampler not listed": (lambda c: c["files"].pop("sampler.onnx"), "files .*sampler.onnx"),
    "unknown sampler": (lambda c: c["files"].update({"sampler-huge.onnx": {}}), "found.*sampler-huge"),
    "external data not listed": (lambda c: c["files"].pop("model.onnx.data"), "model.onnx.data to be listed"),
    "hash of another length": (lambda c: c["files"]["model.onnx"].update(sha256="00"), "64 hexadecimal"),
    "size is a text": (lambda c: c["files"]["model.onnx"].update(size_bytes="5"), "size_bytes"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_faulty_config_is_refused_by_name(folder: Path, fault: str) -> None:
    change, message = CONFIG_FAULTS[fault]
    edit(folder / "config.json", change)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_artifact(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_sample", 1),
        ("temperature", -1),
        ("temperature", 0),
        ("temperature", "1"),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_length", None),
        ("max_length", 0),
        ("max_new_tokens", 1 << 40),
        ("min_new_tokens", -1),
        ("eos_token_ids", [300]),
        ("eos_token_ids", [-1]),
        ("eos_token_ids", 299),
        ("eos_token_ids", [0] * 65),
        ("prefix", None),
        ("prefix", "x" * 10_001),
        ("num_beams", 4),
    ],
)
def test_a_faulty_generation_setting_is_refused_by_name(folder: Path, name: str, value: object) -> None:
    path = folder / "generation_config.json"
    edit(path, lambda values: values.update({name: value}))
    list_again(folder, "generation_config.json")
    with pytest.raises(ModelFormatError, match=name) as caught:
        read_artifact(folder)
    assert str(path) in str(caught.value)


def list_again(folder: Path, name: str) -> None:
    """Put the size and hash that the file has now into config.json."""
    content = (folder / name).read_bytes()
    entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder / "config.json", lambda values: values["files"].update({name: entry}))


def test_zero_temperature_is_allowed_without_sampling(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda v: v.update(temperature=0, do_sample=False))
    list_again(folder, "generation_config.json")
    assert read_artifact(folder).generation_defaults.temperature == 0.0


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", SAMPLER_FILE, "tokenizer.json", "generation_config.json"]
)
def test_a_truncated_or_missing_file_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError, match=r"expected \d+ bytes, found \d+ bytes") as caught:
        read_artifact(folder)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ModelFormatError, match="found none"):
        read_artifact(folder)


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", SAMPLER_FILE, "tokenizer.json", "generation_config.json"]
)
def test_a_changed_small_file_is_refused_at_once(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match="expected SHA-256"):
        read_artifact(folder)


def test_a_changed_large_file_is_found_by_verify_hashes_only(tmp_path: Path) -> None:
    large = bytearray((16 << 20) + 1)
    path = write(tmp_path / "a", content=bytes(large))
    large[1000] = 1
    (path / "model.onnx").write_bytes(large)
    artifact = read_artifact(path)
    with pytest.raises(ModelFormatError, match=r"model\.onnx: expected SHA-256"):
        verify_hashes(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "sampler.onnx", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ModelFormatError, match="a file inside the folder"):
        read_artifact(folder)


def test_a_linked_artifact_folder_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert read_artifact(tmp_path / "link").config == CONFIG


def test_a_folder_whose_config_is_no_json_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "hgt-infer"')
    assert not is_artifact(tmp_path)


@pytest.fixture
def exported(artifact: Path, tmp_path: Path) -> Path:
    """A copy of a real artifact, to be damaged; beside it and in it lie copies of its weights."""
    path = tmp_path / "exported"
    shutil.copytree(artifact, path)
    for copy in (tmp_path / "outside.dat", path / "inside_too.dat"):
        shutil.copy(path / "model.onnx.data", copy)
    (path / "link_there.dat").symlink_to(tmp_path / "outside.dat")
    return path


@pytest.mark.parametrize(
    "location",
    [
        "../outside.dat",
        "{tmp_path}/outside.dat",
        "inside_too.dat",
        "link_there.dat",
        "../exported/model.onnx.data",
        "model.onnx.data2",
        "tokenizer.json",
    ],
)
@pytest.mark.parametrize("num_tensors", [None, 1])
def test_a_graph_with_weights_in_another_file_is_refused(
    exported: Path, tmp_path: Path, location: str, num_tensors: int | None
) -> None:
    location = location.format(tmp_path=tmp_path)
    path = exported / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    for tensor in external[:num_tensors]:
        (entry,) = [entry for entry in tensor.external_data if entry.key == "location"]
        entry.value = location
    path.write_bytes(model.SerializeToString())
    list_again(exported, "model.onnx")
    with pytest.raises(
        ModelFormatError, match=r"model\.onnx: expected weights in model\.onnx\.data alone"
    ) as error:
        Generator(exported, device="cpu")
    assert location[:100] in str(error.value)


def test_a_sampler_with_weights_in_another_file_is_refused(exported: Path) -> None:
    name = SAMPLER_FILE
    model = onnx.load(exported / name)
    tensor = model.graph.initializer.add(name="far", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="../outside.dat")
    (exported / name).write_bytes(model.SerializeToString())
    list_again(exported, name)
    with pytest.raises(ModelFormatError, match=rf"{name}: expected weights in model\.onnx\.data alone"):
        read_artifact(exported)


def hide_location(folder: Path, name: str, graph: bytes, location: bytes) -> None:
    """Make the graph name another file, its key written as protobuf allows and no library does."""
    assert len(location) == 14
    usual = b"\x0a\x08location\x12\x0fmodel.onnx.data"
    assert usual in graph
    (folder / name).write_bytes(graph.replace(usual, b"\x0a\x88\x00location\x12\x0e" + location))
    list_again(folder, name)


@pytest.mark.parametrize("name", [MODEL_FILE, KERNEL_FILE])
@pytest.mark.parametrize("location", [b"../outside.dat", b"/proc/self/exe", b"link_there.dat"])
def test_onnx_runtime_itself_refuses_weights_outside_of_the_folder(
    exported: Path, location: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == MODEL_FILE:
        monkeypatch.setenv("HGT_INFER_KERNELS", "off")
    elif load_kernels() is None:
        pytest.skip("no kernels")
    graph = (exported / name).read_bytes()
    hide_location(exported, name, graph, b"inside_too.dat")
    Generator(exported, device="cpu")  # hidden so well that our own check sees nothing
    hide_location(exported, name, graph, location)
    with pytest.raises(ModelFormatError, match=r"ONNX Runtime cannot load it.*External data path"):
        Generator(exported, device="cpu")


def test_nothing_is_seen_at_the_path_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "artifact"
    with new_artifact(path) as folder:
        assert not path.exists()
        assert folder.parent == path.parent
        (folder / "model.onnx").write_bytes(b"graph")
    assert [file.name for file in path.iterdir()] == ["model.onnx"]
    assert [file.name for file in path.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_artifact(tmp_path / "a") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_artifact_is_replaced_only_by_force(folder: Path) -> None:
    with pytest.raises(ParameterError, match="force=True"):
        write(folder)
    write(folder, force=True, content=b"new graph")
    assert read_artifact(folder).model_path.read_bytes() == b"new graph"
    assert not (folder / "model.onnx.data").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_replacement_leaves_the_old_artifact(folder: Path) -> None:
    with pytest.raises(RuntimeError), new_artifact(folder, force=True):
        raise RuntimeError
    verify_hashes(read_artifact(folder))


def test_a_path_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(ParameterError, match="exists"), new_artifact(path):
        write(path, content=b"the other one")
    assert read_artifact(path).model_path.read_bytes() == b"the other one"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_replaces_nothing_but_an_artifact(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    real = path if kind == "folder" else tmp_path / "real"
    if kind == "file":
        path.write_text("content")
    else:
        real.mkdir()
        (real / "thesis.txt").write_text("content")
        if kind == "link":
            path.symlink_to(real)
    with pytest.raises(ParameterError, match="is not an artifact folder"):
        write(path, force=True)
    assert path.exists()


def test_a_damaged_artifact_can_be_replaced(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    assert is_artifact(folder)
    write(folder, force=True)
    read_artifact(folder)


def test_an_artifact_has_the_permissions_of_other_new_folders(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_metadata_is_refused_for_an_unknown_precision_or_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="fp32, fp16, int8; got 'fp8'"):
        write_metadata(tmp_path, CONFIG, "fp8", DEFAULTS)
    with pytest.raises(FileNotFoundError):
        write_metadata(tmp_path, CONFIG, "fp32", DEFAULTS)
    assert not is_artifact(tmp_path)


def test_reading_hashes_small_files_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    with (path / "model.onnx").open("r+b") as file:
        os.truncate(file.fileno(), 8 << 30)  # a hole: no disk is used
    edit(path / "config.json", lambda c: c["files"]["model.onnx"].update(size_bytes=8 << 30))
    start_s = time.perf_counter()
    read_artifact(path)
    assert time.perf_counter() - start_s < 1.0  # hashing 8 GiB takes several

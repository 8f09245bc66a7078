from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.fake_exporter import FakeExporter
from support.hub_stand_in import serve
from support.paths import ROOT

from hgt_infer.artifact.folder import (
    read_artifact,
    verify_hashes,
)
from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError
from hgt_infer.loading import load_artifact

FILES_OF_2021 = (
    "config.json",
    "pytorch_model.bin",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
NOT_NEEDED = ("README.md", "training_args.bin", "flax_model.msgpack", ".gitattributes")


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeExporter:
    fake = FakeExporter(tmp_path / "exported.txt")
    monkeypatch.setitem(sys.modules, "hgt_infer.export", fake)
    monkeypatch.setenv("HGT_INFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FAKE_EXPORT", raising=False)
    return fake


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder)
    return folder


def write_checkpoint(folder: Path, files: tuple[str, ...] = (*FILES_OF_2021, *NOT_NEEDED)) -> None:
    folder.mkdir()
    for name in files:
        content = {"model_type": "gpt2", "of": name}  # no two are equal: the hub's cache would share them
        is_json = name.endswith(".json")
        (folder / name).write_text(json.dumps(content) if is_json else f"content of {name}")


def cache_entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


# --- folders


def test_an_export_is_checked_on_a_device_that_is_opened_for_it_alone(
    exporter: FakeExporter, checkpoint: Path
) -> None:
    opened: list[str] = []

    @contextlib.contextmanager
    def open_device(precision: str) -> Iterator[Any]:
        opened.append(precision)
        yield "a GPU"
        opened.append("closed")

    for _ in range(2):
        load_artifact(checkpoint, precision="fp16", open_device=open_device)
    assert exporter.device == "a GPU"
    assert opened == ["fp16", "closed"]


def test_an_artifact_folder_is_used_where_it_lies(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    exporter.export_checkpoint(checkpoint, tmp_path / "artifact", precision="fp16")
    artifact = load_artifact(tmp_path / "artifact", precision="fp16")
    assert artifact.path == tmp_path / "artifact"
    assert exporter.count == 1
    assert not (tmp_path / "cache").exists()


def test_an_artifact_of_another_precision_is_refused(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    exporter.export_checkpoint(checkpoint, tmp_path / "artifact", precision="fp16")
    with pytest.raises(ModelFormatError, match="expected an artifact of precision fp32, found fp16"):
        load_artifact(tmp_path / "artifact", precision="fp32")


def test_a_damaged_artifact_folder_is_refused_and_left_alone(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    exporter.export_checkpoint(checkpoint, tmp_path / "artifact")
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"cut")
    with pytest.raises(ModelFormatError, match="bytes"):
        load_artifact(tmp_path / "artifact", precision="fp32")
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == b"cut"


def test_a_checkpoint_is_exported_once_for_each_precision(exporter: FakeExporter, checkpoint: Path) -> None:
    first = load_artifact(str(checkpoint), precision="fp32")
    assert load_artifact(checkpoint, precision="fp32") == first
    half = load_artifact(checkpoint, precision="fp16")
    assert half.path != first.path
    assert (first.precision, half.precision) == ("fp32", "fp16")
    assert exporter.count == 2


def test_the_same_content_elsewhere_is_not_exported_again(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    first = load_artifact(checkpoint, precision="fp32")
    checkpoint.rename(tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("another card")
    assert load_artifact(tmp_path / "moved", precision="fp32") == first
    assert exporter.count == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: (folder / "pytorch_model.bin").write_text("other weights"),
    "same size": lambda folder: (folder / "pytorch_model.bin").write_text("content of pytorch_model.biN"),
    "settings": lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2", "n": 1}'),
    "new file": lambda folder: (folder / "generation_config.json").write_text("{}"),
    "file gone": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "contents swapped": lambda folder: (folder / "vocab.json").rename(folder / "added_tokens.json"),
    "safetensors": lambda folder: (folder / "model.safetensors").write_text("weights"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_checkpoint_is_exported_again(
    exporter: FakeExporter, checkpoint: Path, change: str
) -> None:
    first = load_artifact(checkpoint, precision="fp32")
    CHANGES[change](checkpoint)
    assert load_artifact(checkpoint, precision="fp32").path != first.path
    assert exporter.count == 2


def test_a_new_exporter_exports_again(
    exporter: FakeExporter, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_artifact(checkpoint, precision="fp32")
    monkeypatch.setattr(FakeExporter, "EXPORTER_VERSION", "fake 2")
    assert load_artifact(checkpoint, precision="fp32").path != first.path


def test_a_pickle_beside_safetensors_does_not_count(exporter: FakeExporter, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_text("weights")
    first = load_artifact(checkpoint, precision="fp32")
    (checkpoint / "pytorch_model.bin").unlink()
    assert load_artifact(checkpoint, precision="fp32") == first


def test_every_shard_counts(exporter: FakeExporter, checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").unlink()
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    for number in (1, 2):
        (checkpoint / f"model-{number:05}-of-00002.safetensors").write_text("shard")
    first = load_artifact(checkpoint, precision="fp32")
    (checkpoint / "model-00002-of-00002.safetensors").write_text("SHARD")
    assert load_artifact(checkpoint, precision="fp32").path != first.path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda entry: (entry / "model.onnx").write_bytes(b""),
    "changed": lambda entry: (entry / "tokenizer.json").write_text("[]"),
    "no config": lambda entry: (entry / "config.json").unlink(),
    "no JSON": lambda entry: (entry / "config.json").write_text("{"),
    "other precision": lambda entry: (entry / "config.json").write_text(
        (entry / "config.json").read_text().replace("fp32", "fp16")
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_entry_is_made_anew(exporter: FakeExporter, checkpoint: Path, damage: str) -> None:
    first = load_artifact(checkpoint, precision="fp32")
    DAMAGES[damage](first.path)
    assert load_artifact(checkpoint, precision="fp32") == first
    assert exporter.count == 2
    assert load_artifact(checkpoint, precision="fp32") == first
    assert exporter.count == 2


def test_a_failed_export_leaves_nothing_and_is_tried_again(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.fake_exporter.write_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_artifact(checkpoint, precision="fp32")
    assert cache_entries(tmp_path / "cache") == []
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "hgt_infer.export", exporter)
    load_artifact(checkpoint, precision="fp32", cache_dir=tmp_path / "cache")
    assert len(cache_entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HGT_INFER_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/hgt_infer"),
        ({}, "home/.cache/hgt_infer"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    exporter: FakeExporter,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: str,
) -> None:
    for name in ("HGT_INFER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_artifact(checkpoint, precision="fp32").path.parent == tmp_path / expected
    elsewhere = load_artifact(checkpoint, precision="fp32", cache_dir=tmp_path / "given")
    assert elsewhere.path.parent == tmp_path / "given"


def test_a_folder_that_is_neither_says_so(exporter: FakeExporter, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"an artifact or a checkpoint, with config\.json"):
        load_artifact(tmp_path, precision="fp32")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"weights in one of model\.safetensors"):
        load_artifact(tmp_path, precision="fp32")
    with pytest.raises(ModelFormatError, match="expected a folder, found a file"):
        load_artifact(tmp_path / "config.json", precision="fp32")


@pytest.mark.parametrize("precision", ["int4", "", "FP32"])
def test_an_unknown_precision_is_refused_first(checkpoint: Path, precision: str) -> None:
    with pytest.raises(ParameterError, match="precision must be one of fp32, fp16, int8; got"):
        load_artifact(checkpoint, precision=precision)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ParameterError, match="got ''"):
        load_artifact("", precision="fp32")


@pytest.mark.parametrize(
    "name",
    [
        "a/b/c",
        "../up",
        "owner/../up",
        "/absolute",
        "owner/",
        "a b",
        "owner/na--me",
        "owner/.hidden",
        "owner/name.",
        "owner/name\n",
        "ówner/name",
        "owner/name?x=1",
        "https://host/owner/name",
        "o/" + "n" * 95,
    ],
)
def test_what_is_neither_folder_nor_hub_id_asks_no_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # its import would fail
    with pytest.raises(ModelNotFoundError, match=r"(?s)no folder at .* is no hub id"):
        load_artifact(name, precision="fp32")


def test_a_path_object_is_never_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFoundError, match=r"no folder at .*owner/name$"):
        load_artifact(Path("owner/name"), precision="fp32")


def test_the_import_is_light() -> None:
    code = (
        "import sys, hgt_infer.loading; "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript', 'onnx_ir', 'huggingface_hub'}; "
        "print(*heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_the_real_exporter_fills_the_cache(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 32, "vocab_size": 300}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path / "checkpoint")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["My dream"], special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(tmp_path / "checkpoint"))
    first = load_artifact(tmp_path / "checkpoint", precision="fp32", cache_dir=tmp_path / "cache")
    verify_hashes(first)
    assert first.config.n_embd == 8
    model_path = first.model_path
    written_ns = model_path.stat().st_mtime_ns
    again = load_artifact(tmp_path / "checkpoint", precision="fp32", cache_dir=tmp_path / "cache")
    assert again == first
    assert model_path.stat().st_mtime_ns == written_ns


# --- several processes, and the hub: each load in a process of its own, with its own environment


def start(tmp_path: Path, model: str, **environment: str) -> subprocess.Popen[str]:
    """Run `load_and_print` in a new process."""
    for_child = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
        "HGT_INFER_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from support.fake_exporter import load_and_print; load_and_print()",
            model,
            str(tmp_path),
        ],
        env=for_child | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.strip()


def test_processes_that_load_at_once_export_once(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    processes = [start(tmp_path, str(checkpoint), FAKE_EXPORT="slow") for _ in range(3)]
    paths = {finish(process) for process in processes}
    assert len(paths) == 1
    read_artifact(paths.pop())
    assert exporter.count == 1


def test_a_killed_export_leaves_no_entry_and_is_cleaned_up(
    exporter: FakeExporter, checkpoint: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, str(checkpoint), FAKE_EXPORT="dies")
    process.communicate(timeout=60)
    assert process.returncode == 9
    (left_over,) = cache_entries(tmp_path / "cache")
    assert left_over.name.endswith(".tmp")
    artifact = load_artifact(checkpoint, precision="fp32")
    assert cache_entries(tmp_path / "cache") == [artifact.path]


def test_a_hub_repository_of_2021_is_downloaded_once_and_works_without_the_hub(
    exporter: FakeExporter, tmp_path: Path
) -> None:
    name = "huggingtweets/lilyw12_"
    write_checkpoint(tmp_path / "repository", (*FILES_OF_2021, *NOT_NEEDED))
    with serve({name: tmp_path / "repository"}) as hub:
        path = finish(start(tmp_path, name, HF_ENDPOINT=hub.endpoint))
        assert Path(path, "model.onnx").read_bytes() == b"content of pytorch_model.bin"
        assert sorted(hub.downloads()) == sorted(FILES_OF_2021)
        hub.requests.clear()
        assert finish(start(tmp_path, name, HF_ENDPOINT=hub.endpoint)) == path
        assert hub.downloads() == []
        assert all(request.startswith("/api/models/") for _, request in hub.requests)

        hub.requests.clear()
        assert finish(start(tmp_path, name, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")) == path
        assert hub.requests == []
    assert finish(start(tmp_path, name, HF_ENDPOINT=hub.endpoint)) == path  # the server is down
    assert exporter.count == 1


def test_a_pickle_is_not_downloaded_where_there_are_safetensors(
    exporter: FakeExporter, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "repository", (*FILES_OF_2021, "model.safetensors", "generation_config.json"))
    with serve({"gpt2": tmp_path / "repository"}) as hub:
        path = finish(start(tmp_path, "gpt2", HF_ENDPOINT=hub.endpoint))
        assert "pytorch_model.bin" not in hub.downloads()
    assert Path(path, "model.onnx").read_bytes() == b"content of model.safetensors"


def test_a_folder_wins_over_a_hub_id(exporter: FakeExporter, checkpoint: Path, tmp_path: Path) -> None:
    with serve({"checkpoint": checkpoint}) as hub:
        finish(start(tmp_path, "checkpoint", HF_ENDPOINT=hub.endpoint))
        assert hub.requests == []


def test_a_model_that_is_nowhere_says_what_was_tried(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "repository")
    with serve({"owner/gated": tmp_path / "repository"}) as hub:
        hub.gated.add("owner/gated")
        online = start(tmp_path, "owner/nowhere", HF_ENDPOINT=hub.endpoint)
        gated = start(tmp_path, "owner/gated", HF_ENDPOINT=hub.endpoint)
        assert finish(online).startswith(
            f"ModelNotFoundError: no folder at {tmp_path}/owner/nowhere, "
            f"and no model 'owner/nowhere' on {hub.endpoint}"
        )
        assert "access must be asked for" in finish(gated)
    offline = start(tmp_path, "owner/nowhere", HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    down = start(tmp_path, "owner/nowhere", HF_ENDPOINT=hub.endpoint)
    for process, why in ((offline, "HF_HUB_OFFLINE is set"), (down, "the hub cannot be reached")):
        message = finish(process)
        assert message.startswith(f"ModelNotFoundError: no folder at {tmp_path}/owner/nowhere, and no model")
        assert message.endswith(f"({why})")


def test_a_repository_without_weights_says_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "repository", ("config.json", "vocab.json"))
    with serve({"owner/name": tmp_path / "repository"}) as hub:
        message = finish(start(tmp_path, "owner/name", HF_ENDPOINT=hub.endpoint))
    assert message.startswith("ModelFormatError:")
    assert "weights in one of model.safetensors" in message


def test_a_rebuilt_entry_is_logged(
    exporter: FakeExporter, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hgt_infer")
    first = load_artifact(checkpoint, precision="fp32")
    assert f"exporting {checkpoint} in fp32 to {first.path}" in caplog.text
    (first.path / "model.onnx").unlink()
    load_artifact(checkpoint, precision="fp32")
    assert "damaged and made anew" in caplog.text

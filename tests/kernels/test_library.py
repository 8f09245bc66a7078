"""Which library is loaded, which instruction set it takes, and what happens where there is none."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from support.kernel_nodes import instruction_sets_here

from hgt_infer import DeviceUnavailableError, Generator, ParameterError, SamplingParams
from hgt_infer.export import export_checkpoint
from hgt_infer.kernels.library import FOLDER_VARIABLE, INSTRUCTION_SETS, VARIABLE, load_kernels
from hgt_infer.runtime.device import CpuDevice

needs_library = pytest.mark.skipif(not instruction_sets_here(), reason="no library of operators")


@needs_library
def test_the_fastest_instruction_set_is_taken_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = instruction_sets_here()
    monkeypatch.delenv(VARIABLE, raising=False)
    for asked, expected in [("", here[-1]), *((name, name) for name in here), ("", here[-1])]:
        monkeypatch.setenv(VARIABLE, asked)
        kernels = load_kernels()
        assert kernels is not None
        assert kernels.instruction_set == expected
    assert "portable" in here


def test_off_means_onnx_runtimes_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert load_kernels() is None
    assert CpuDevice().kernels is None


def test_an_unknown_instruction_set_is_an_error_before_anything_is_opened(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sse9")
    with pytest.raises(
        ParameterError, match="HGT_INFER_KERNELS must be one of portable, avx2, avx512, off; got 'sse9'"
    ):
        Generator(artifact, device="cpu")


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF and nothing more"])
def test_a_library_that_is_missing_or_broken_is_done_without(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    if content is not None:
        for name in ("libhgt_kernels.so", "libhgt_kernels.dylib", "hgt_kernels.dll"):
            (tmp_path / name).write_bytes(content)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING), Generator(artifact, device="cpu") as generator:
        assert len(generator("My dream is", max_new_tokens=3)) == 1
    assert "no kernels, so that a CPU runs ONNX Runtime's slower operators" in caplog.text
    reason = "the package was built without them" if content is None else str(tmp_path)
    assert reason in caplog.text
    monkeypatch.setenv(VARIABLE, INSTRUCTION_SETS[0])
    with pytest.raises(DeviceUnavailableError, match="is portable, and there are no kernels"):
        Generator(artifact, device="cpu")


@needs_library
def test_an_instruction_set_of_another_processor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = set(INSTRUCTION_SETS) - set(instruction_sets_here())
    if not absent:
        pytest.skip("this processor has all of them")
    monkeypatch.setenv(VARIABLE, absent.pop())
    with pytest.raises(DeviceUnavailableError, match="which this processor does not have"):
        load_kernels()


def test_an_artifact_of_version_4_runs_onnx_runtimes_operators(artifact: Path, tmp_path: Path) -> None:
    """Its weights were plain matrices then, which its graph says."""
    folder = tmp_path / "old"
    shutil.copytree(artifact, folder)
    values = json.loads((folder / "config.json").read_text())
    values["format_version"] = 4
    for name in ("kernels.onnx", "kernels_sampler.onnx"):
        (folder / name).unlink()
        del values["files"][name]
    (folder / "config.json").write_text(json.dumps(values))
    with Generator(folder, device="cpu") as generator:
        assert generator.kernels == "onnxruntime"
        old = generator("My dream is", do_sample=False, max_new_tokens=10)
    with Generator(artifact, device="cpu") as generator:
        assert generator("My dream is", do_sample=False, max_new_tokens=10) == old


@needs_library
def test_int8_gives_the_same_tokens_on_every_instruction_set(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = export_checkpoint(checkpoint, tmp_path / "int8", precision="int8", is_verified=False).path
    params = SamplingParams(n=3, max_tokens=40, seed=7, temperature=1.0, top_k=0, top_p=0.9, ignore_eos=True)
    texts = []
    for name in instruction_sets_here():
        monkeypatch.setenv(VARIABLE, name)
        with Generator(int8, device="cpu") as generator:
            assert generator.kernels == name
            assert f"kernels={name!r}" in repr(generator)
            outputs = generator.generate(["My dream is", "a b c d e f g h i j k l m n o p"], params)
        texts.append([[completion.token_ids for completion in output.completions] for output in outputs])
    assert all(each == texts[0] for each in texts)

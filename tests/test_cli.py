"""The hgt-infer command."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_cuda import FakeCudaDevice

from hgt_infer import Generator, SamplingParams, cli, doctor, server
from hgt_infer.cli import NOT_OPTIONS, main
from hgt_infer.sampling_params import sampling_settings
from hgt_infer.server import Limits


def test_generate_prints_what_the_api_returns(
    artifact: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(artifact), "My dream", "a", "-n", "2", "--max-tokens", "5", "--seed", "3"]
    assert main([*arguments, "--temperature", "0.8", "--device", "cpu"]) == 0
    outputs = generator.generate(
        ["My dream", "a"], SamplingParams(n=2, max_tokens=5, seed=3, temperature=0.8)
    )
    expected = [output.prompt + completion.text for output in outputs for completion in output.completions]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)


def test_a_stream_prints_the_same(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(artifact), "My dream", "--max-tokens", "9", "--seed", "3", "--stop", "e"]
    printed = []
    for option in ([], ["--stream"]):
        assert main([*arguments, "--repetition-penalty", "1.1", *option]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_score_prints_a_line_for_each_text(
    artifact: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(artifact), "My dream", "nobody knows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, score in zip(lines, generator.score(["My dream", "nobody knows"]), strict=True):
        perplexity, num_tokens, logprob = line.split()[:3]
        assert (float(perplexity), float(logprob)) == pytest.approx(
            (score.perplexity, score.logprob), rel=1e-3
        )
        assert int(num_tokens) == len(score.token_ids) - 1


def test_info_describes_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(artifact)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["precision"], lines["n_layer"], lines["prefix"]) == ("'fp32'", "2", "'<|endoftext|>'")


def test_info_finds_a_damaged_file(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in artifact.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((copy / "model.onnx.data").read_bytes())
    damaged[1000] ^= 1
    (copy / "model.onnx.data").write_bytes(damaged)
    assert main(["info", str(copy)]) == 2
    assert "model.onnx.data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["generate", "no/such/model", "a"], ["info", "nowhere"], ["export", "nowhere", "out"]]
)
def test_a_known_error_is_one_line_and_status_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hgt-infer: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_writes_an_artifact(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "artifact")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "artifact")


def test_prompts_come_from_a_file_or_standard_input_and_samples_go_out_as_json(
    artifact: Path,
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompts.txt").write_text("My dream\n\nI think\r\n", encoding="utf-8")
    arguments = ["generate", str(artifact), "--json", "-n", "2", "--max-tokens", "5", "--seed", "3"]
    assert main([*arguments, "--file", str(tmp_path / "prompts.txt")]) == 0
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in printed.splitlines()]
    outputs = generator.generate(["My dream", "I think"], SamplingParams(n=2, max_tokens=5, seed=3))
    assert [(record["prompt"], record["index"], record["text"]) for record in records] == [
        (output.prompt, sample.index, sample.text) for output in outputs for sample in output.completions
    ]
    assert {record["seed"] for record in records} == {3}
    monkeypatch.setattr("sys.stdin", io.StringIO("My dream\nI think\n"))
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--file", "prompts.txt"], "not both"),
        (["--file", "none.txt"], "--file none.txt: No such file"),
        (["--file", "latin.txt"], "prompts must be UTF-8"),
        (["a", "b", "--stream"], "--stream takes one prompt"),
        (["a", "--temperature", "-1"], "temperature must be"),
        (["a", "--colour"], "--colour"),
    ],
)
def test_a_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert main(["generate", str(artifact), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hgt-infer: ")
    assert message in error
    assert error.count("\n") == 1


def test_json_for_programs(
    artifact: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(artifact), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["precision"] == "fp32"
    assert described["files"]["model.onnx"]["size_bytes"] == (artifact / "model.onnx").stat().st_size
    assert main(["score", str(artifact), "My dream", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
    assert main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding["state"] for finding in json.loads(capsys.readouterr().out)}
    assert findings["python"] == findings["tokenizers"] == findings["extra serve"] == "ok"
    assert main(["doctor"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(findings)


def test_the_doctor_tells_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tokenizers" else "1")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "broken   tokenizers               pip install hgt-infer" in printed
    assert "broken   ONNX Runtime             two of them overwrite each other" in printed
    assert "missing  extra serve              for hgt-infer serve: pip install 'hgt-infer[serve]'" in printed


def test_the_doctor_says_of_a_usable_gpu_that_cuda_is_experimental_and_lets_it_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = FakeCudaDevice()
    monkeypatch.setattr(doctor, "open_devices", lambda name: [device])
    main(["doctor"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "CUDA"]
    assert line.startswith("ok ")
    assert line.endswith("a GPU that can be used; CUDA is experimental: no run on a GPU is recorded yet")
    assert "cudaStreamDestroy" in device.cudart.calls


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hgt_infer", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "doctor" in done.stdout


def test_generate_has_an_option_for_each_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["generate", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, setting in sampling_settings().items():
        option = f"--{name.replace('_', '-')}"
        assert (option in printed) == (name not in NOT_OPTIONS)
        assert name in NOT_OPTIONS or setting.description[1:40] in printed


def test_the_defaults_of_serve_are_those_of_the_library() -> None:
    options = inspect.signature(cli.serve).parameters
    functions = [inspect.signature(one).parameters for one in (Limits, Generator, server.serve)]
    own = {name: option.default for name, option in options.items() if name not in ("model", "num_slots")}
    expected = {name: one.default for of in functions for name, one in of.items() if name in own}
    expected["grace"] = functions[-1]["grace_s"].default
    assert own == expected

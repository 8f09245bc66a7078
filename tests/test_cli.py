"""The hgt-infer command."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgt_infer import Generator, SamplingParams
from hgt_infer.cli import main


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


@pytest.mark.filterwarnings("ignore")
def test_export_writes_an_artifact_checked_with_every_installed_reference(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgt_infer.export.installed_references", lambda: ["numpy", "transformers"])
    assert main(["export", str(checkpoint), str(tmp_path / "artifact")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "artifact")

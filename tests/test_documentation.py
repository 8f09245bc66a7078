"""The examples of README and of docstrings run as they are written, on the tiny checkpoint."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from support.paths import ROOT

from hgt_infer import Generator, SamplingParams

HUB_ID = '"huggingtweets/lilyw12_"'


def example(docstring: str | None) -> str:
    """The code below "Example:" in a docstring."""
    return textwrap.dedent(re.split(r"Example:\n", docstring or "")[1])


def test_the_readmes_examples_run(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks).replace(HUB_ID, repr(str(artifact))), {})
    output = capsys.readouterr().out
    assert output.count("My dream is") >= 5
    assert "Histogram(p50=" in output


def test_the_examples_of_the_generator_run(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("My dream is\nI think")
    monkeypatch.chdir(tmp_path)
    names = {"Generator": Generator, "SamplingParams": SamplingParams}
    for documented in (
        Generator,
        Generator.generate,
        Generator.generate_iterable,
        Generator.stream,
        Generator.score,
    ):
        exec(example(documented.__doc__).replace(HUB_ID, repr(str(artifact))), names)


def test_every_file_of_the_readmes_tree_exists() -> None:
    tree = (ROOT / "README.md").read_text().split("```\nhgt_infer/\n")[1].split("```")[0]
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "hgt_infer" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), name
    documented = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    modules = {path.name for path in (ROOT / "hgt_infer").glob("*.py")} - {"__init__.py"}
    assert modules <= documented

"""The examples of docs/embedding.md run as they are written, on the tiny checkpoint."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.local_service import served
from support.paths import ROOT

from hgt_infer import Generator, SamplingParams

PAGE = ROOT / "docs" / "embedding.md"
HUB_ID = '"huggingtweets/lilyw12_"'
ADDRESS = "http://127.0.0.1:8000"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def example(heading: str, number: int, **replaced: str) -> str:
    """The code of a section, with other models and addresses."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]
    for old, new in replaced.items():
        code = code.replace({"model": HUB_ID, "address": ADDRESS}[old], new)
    return str(code)


def test_openai_and_langchain(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    with served({"lilyw12_": generator}) as url:
        exec(example("As a service", 0, address=url), {})
        streamed = capsys.readouterr().out
        exec(example("As a service", 1, address=url), {})
        assert streamed
        assert capsys.readouterr().out.strip("\n")


def test_a_fastapi_application(artifact: Path) -> None:
    names: dict[str, Any] = {}
    exec(example("In a FastAPI application", 0, model=repr(str(artifact))), names)
    with TestClient(names["app"]) as client:
        texts = client.get("/tweets", params={"prompt": "My dream", "n": 3}).json()
        assert len(texts) == 3
        assert all(text.startswith("My dream") for text in texts)
        body = {"model": "lilyw12_", "prompt": "a", "max_tokens": 2}
        assert client.post("/openai/v1/completions", json=body).status_code == 200
        assert client.get("/openai/health/ready").json() == {"status": "ready"}


def test_a_worker(artifact: Path, generator: Generator) -> None:
    names: dict[str, Any] = {}
    exec(example("An asyncio worker over a queue", 0, model=repr(str(artifact))), names)
    assert names["texts"] == expected(generator)


def test_a_bot(artifact: Path) -> None:
    names: dict[str, Any] = {}
    exec(example("A bot", 0, model=repr(str(artifact))), names)
    assert {channel for channel, _ in names["said"]} == {"general", "random"}
    assert all("\n" not in text for _, text in names["said"])


@pytest.mark.integration
def test_processes(artifact: Path, generator: Generator, tmp_path: Path) -> None:
    code = example("A batch job on several processes", 0, model=repr(str(artifact)))
    script = tmp_path / "job.py"
    script.write_text(f"{code}    print(texts)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == expected(generator)


def test_a_notebook(artifact: Path) -> None:
    lines = example("In a notebook", 0, model=repr(str(artifact))).rstrip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines[:-1]), names)
    with names["generator"]:
        output = eval(lines[-1], names)
        assert repr(names["generator"]).startswith(
            f"Generator('{artifact}', device=['cpu'], precision='fp32'"
        )
        assert output._repr_html_().count("<tr>") == 6
    assert "closed" in repr(names["generator"])


def test_a_table_escapes_what_people_write(generator: Generator) -> None:
    [output] = generator.generate("<b>&", SamplingParams(max_tokens=1))
    assert "&lt;b&gt;&amp;" in output._repr_html_()
    assert "<b>" not in output._repr_html_()


def expected(generator: Generator) -> dict[int, str]:
    prompts = ["My dream is", "I think", "Nobody knows"]
    params = [SamplingParams(max_tokens=60, seed=number) for number in range(len(prompts))]
    outputs = generator.generate(prompts, params)
    return {number: output.completions[0].text for number, output in enumerate(outputs)}

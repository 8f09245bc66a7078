"""Ray: a dataset on two actors and on one, a killed actor, a run that goes on, and the service."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.paths import ROOT

from hgt_infer import Generator, ParameterError, SamplingParams
from hgt_infer.distributed import build_deployment, generate_dataset, row_seed
from hgt_infer.distributed import dataset as dataset_module

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.integration]

PARAMS = SamplingParams(n=2, max_tokens=12, temperature=0.9)
PROMPTS = [f"{word} {number}" for number in range(20) for word in ("My dream", "I think")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def rows() -> Any:
    import ray

    return ray.data.from_items([{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)])


def by_id(dataset: Any) -> dict[int, dict[str, Any]]:
    taken = dataset.take_all()
    assert len(taken) == len(PROMPTS)
    return {row["id"]: row for row in taken}


@pytest.fixture(scope="module")
def expected(generator: Generator) -> dict[int, list[str]]:
    params = [replace(PARAMS, seed=row_seed(5, number)) for number in range(len(PROMPTS))]
    outputs = generator.generate(PROMPTS, params)
    return {i: [sample.text for sample in output.completions] for i, output in enumerate(outputs)}


def test_samples_are_those_of_a_single_generator(
    cluster: None, artifact: Path, expected: dict[int, list[str]]
) -> None:
    done = by_id(generate_dataset(rows(), artifact, PARAMS, seed=5, concurrency=2, batch_size=7))
    assert {i: list(row["texts"]) for i, row in done.items()} == expected
    for i, row in done.items():
        assert row["prompt"] == PROMPTS[i]
        assert row["seed"] == row_seed(5, i)
        assert len(row["num_tokens"]) == len(row["finish_reasons"]) == 2


def test_an_actor_that_is_killed_loses_no_row_and_a_run_goes_on_where_it_was(
    cluster: None,
    artifact: Path,
    expected: dict[int, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyarrow import parquet

    class Dies(dataset_module.Sampler):
        """Kills its process before the second batch that any of them has, once."""

        def __call__(self, batch: Any) -> Any:
            first, second = tmp_path / "first", tmp_path / "second"
            if first.exists() and not second.exists():
                second.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            first.touch()
            return super().__call__(batch)

    monkeypatch.chdir(tmp_path)  # Ray's processes stay in another folder
    progress = Path("seed=5")  # which is no column of the files in it
    run = partial(generate_dataset, rows(), artifact, PARAMS, progress=progress, batch_size=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "Sampler", Dies)
        done = by_id(run(seed=5, concurrency=2))
    assert (tmp_path / "second").exists()
    assert {i: list(row["texts"]) for i, row in done.items()} == expected

    files = sorted(progress.glob("*.parquet"))
    sizes = {path: parquet.read_metadata(path).num_rows for path in files}
    assert sum(sizes.values()) == len(PROMPTS)
    kept, missing = files[:2], files[2:]
    for path in missing:
        path.unlink()
    (progress / ".half.partial").write_bytes(b"PAR1")  # what a kill leaves
    again = by_id(run(seed=5, concurrency=1))
    assert again == done
    new = set(progress.glob("*.parquet")) - set(kept)
    assert sum(parquet.read_metadata(path).num_rows for path in new) == sum(sizes[path] for path in missing)
    with pytest.raises(ParameterError, match="progress of another run"):
        run(seed=6)


def test_what_cannot_be_run_is_refused(cluster: None, artifact: Path) -> None:
    with pytest.raises(ParameterError, match="has no column 'text'; it has id, prompt"):
        generate_dataset(rows(), artifact, prompt_column="text")
    with pytest.raises(ParameterError, match="give seed to generate_dataset"):
        generate_dataset(rows(), artifact, SamplingParams(seed=1))
    with pytest.raises(ParameterError, match="batch_size"):
        generate_dataset(rows(), artifact, batch_size=0)
    with pytest.raises(ParameterError, match="at least one model"):
        build_deployment({})


def test_the_service_runs_on_serve(cluster: None, artifact: Path, generator: Generator) -> None:
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_deployment({"goose": str(artifact)}, num_replicas=(1, 2), api_keys=["key"]))
    try:
        url, headers = f"http://127.0.0.1:{port}", {"Authorization": "Bearer key"}
        body = {"model": "goose", "prompt": "My dream", "max_tokens": 6, "seed": 1}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        [output] = generator.generate("My dream", SamplingParams(max_tokens=6, seed=1))
        assert answer.json()["choices"][0]["text"] == output.completions[0].text
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body | {"stream": True}, headers=headers
        ) as stream:
            assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
    finally:
        serve.shutdown()


def test_the_example_of_the_docs_runs(
    cluster: None, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    page = (ROOT / "docs" / "scaling.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    for relative in ('"progress"', '"samples"'):
        code = code.replace(relative, repr(str(tmp_path / relative.strip('"'))))
    code = code.replace("range(100)", "range(10)").replace("concurrency=2", "concurrency=1")
    exec(code.replace('"huggingtweets/lilyw12_"', repr(str(artifact))), {})
    samples = parquet.read_table(tmp_path / "samples").to_pylist()
    assert len(samples) == 10
    assert {len(row["texts"]) for row in samples} == {5}

"""Drop-in: text for text what transformers' text-generation pipeline returns, greedily."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from support.checkpoints import TASK_PARAMS, write_checkpoint
from support.transformers_version import needs_transformers_4

from hgt_infer import Generator

pytestmark = needs_transformers_4

PROMPTS = [
    "My dream is",
    "I think that we should talk about the weather , don't you ?",
    "nobody knows how the café got 3 naïve robots 🤖",
    " leading space",
    "two\nlines\n",
    "<|endoftext|>after the end",
    "a",
]

LAYOUTS = {
    "2021": {"layout": "2021"},
    "2021 with other lengths": {"layout": "2021", "task_params": {**TASK_PARAMS, "max_length": 60}},
    "2021 without prefix": {"layout": "2021", "task_params": {"do_sample": True, "max_length": 50}},
    "modern": {"layout": "modern"},
    "modern without task": {"layout": "modern", "task_params": None},
}

# Each with do_sample=False; names as in the pipeline's call.
CALLS = [
    pytest.param({}, PROMPTS[:1], id="defaults"),  # 256 new tokens
    pytest.param({"max_new_tokens": 12}, PROMPTS, id="max_new_tokens"),
    pytest.param({"max_new_tokens": 12, "return_full_text": False}, PROMPTS, id="new text only"),
    pytest.param({"max_new_tokens": 24, "min_length": 40}, PROMPTS[:3], id="min_length"),
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Generator]:
    """transformers' pipeline and our generator on one checkpoint."""
    folder = write_checkpoint(tmp_path_factory.mktemp("layout"), **LAYOUTS[request.param])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline("text-generation", model=str(folder))
    cache = tmp_path_factory.mktemp("cache")
    return pipeline, Generator(folder, device="cpu", cache_dir=cache)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("options", "prompts"), CALLS)
def test_texts_equal_the_pipelines(
    both: tuple[Any, Generator], options: dict[str, Any], prompts: list[str]
) -> None:
    pipeline, generator = both
    expected = pipeline(prompts, do_sample=False, **options)
    assert generator(prompts, do_sample=False, **options) == expected
    assert [generator(prompt, do_sample=False, **options) for prompt in prompts] == expected


@pytest.mark.filterwarnings("ignore")
def test_max_length_counts_the_prompt_but_not_the_prefix(tmp_path: Path) -> None:
    """On a checkpoint whose own max_length rules, as a call's does in the pipeline."""
    folder = write_checkpoint(tmp_path / "checkpoint", layout="modern")
    eos_token_id = json.loads((folder / "config.json").read_text())["eos_token_id"]
    settings = {"do_sample": True, "max_length": 50, "min_length": 10, "eos_token_id": eos_token_id}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    pipeline = transformers.pipeline("text-generation", model=str(folder))
    generator = Generator(folder, device="cpu", cache_dir=tmp_path / "cache")
    for options in ({}, {"max_length": 30}, {"max_length": 30, "min_length": 25}):
        for prompt in PROMPTS[:3]:
            expected = pipeline(prompt, do_sample=False, **options)
            assert generator(prompt, do_sample=False, **options) == expected


@pytest.mark.filterwarnings("ignore")
def test_samples_have_the_pipelines_shape(both: tuple[Any, Generator]) -> None:
    pipeline, generator = both
    greedy = {"do_sample": False, "max_new_tokens": 3}
    assert generator("My dream is", **greedy) == pipeline("My dream is", **greedy)
    five = generator("My dream is", num_return_sequences=5, max_new_tokens=10, seed=1)
    assert [list(record) for record in five] == [["generated_text"]] * 5
    assert all(record["generated_text"].startswith("My dream is") for record in five)
    lists = generator(["a", "b"], num_return_sequences=2, max_new_tokens=3)
    assert [len(records) for records in lists] == [2, 2]

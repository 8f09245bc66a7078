from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_run import cleaned_of, small_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from hgt_infer import Generator
from training.__main__ import main
from training.corpus.dataset import make_dataset
from training.evaluate import copied_share, distinct, evaluate, length_distance, lengths


@pytest.fixture
def archive(trained_run: Any) -> Path:
    path: Path = trained_run.archive
    return path


def test_the_command_prints_and_keeps_the_figures_of_the_tweets_set_aside(
    archive: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "figures.json"
    options = ["evaluate", str(trained), "--tweets", str(archive), "--handle", "goose", "--samples", "40"]
    assert main([*options, "--json", str(kept)]) == 0
    out = capsys.readouterr().out
    figures = json.loads(kept.read_text())
    record = json.loads((trained / "dataset.json").read_text())
    training = json.loads((trained / "training.json").read_text())
    assert figures["held_out_from_training"]
    assert (figures["num_training"], figures["num_held_out"]) == (
        record["num_training"],
        record["num_evaluation"],
    )
    # Training evaluates in blocks of 128 tokens, which cut a tweet now and then.
    assert figures["perplexity"] == pytest.approx(training["evaluation"]["perplexity_after"], rel=0.05)
    assert figures["tokens"] == training["evaluation"]["tokens"] - 1
    assert f"{figures['perplexity']:,.1f}" in out
    assert f"{figures['ngram_perplexity']:,.1f}" in out
    assert "set aside, 40 samples" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_perplexity_is_that_of_transformers_on_each_tweet_by_itself(trained: Path) -> None:
    cleaned = cleaned_of(*small_texts())
    dataset = make_dataset([cleaned], epochs=1, eval_fraction=0.1, seed=3)
    with Generator(trained, device="cpu") as generator:
        figures = evaluate(generator, dataset, num_samples=8, seed=1)
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for text in dataset.evaluation[0]:
        ids = tokenizer(f"<|endoftext|>{text}<|endoftext|>", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
        num_bytes += len(text.encode())
    assert figures["perplexity"] == pytest.approx(math.exp(nats / num_tokens), rel=1e-4)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)


def test_a_model_without_records_or_prefix_can_be_evaluated(
    archive: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (bare / name).write_bytes((trained / name).read_bytes())
    config = json.loads((trained / "config.json").read_text())
    del config["task_specific_params"]
    (bare / "config.json").write_text(json.dumps(config))
    options = ["--tweets", str(archive), "--handle", "goose", "--samples", "5"]
    kept = [tmp_path / name for name in ("bare.json", "trained.json")]
    for model, path in zip((bare, trained), kept, strict=True):
        assert main(["evaluate", str(model), *options, "--seed", "3", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "does not say which tweets it was trained on" in out
    first, second = (json.loads(path.read_text()) for path in kept)
    assert not first["held_out_from_training"]
    assert first["perplexity"] == pytest.approx(second["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "samples is 0, expected 1 to 16384"),
        (["--tweets", "/nowhere.js"], "/nowhere.js: cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line(
    archive: Path,
    trained: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tweets = [] if "--tweets" in options else ["--tweets", str(archive)]
    assert main(["evaluate", str(trained), *tweets, "--handle", "goose", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_none_is_one_line(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    options = ["--tweets", str(archive), "--handle", "goose"]
    assert main(["evaluate", str(tmp_path / "empty"), *options]) == 2
    err = capsys.readouterr().err
    assert "cannot be evaluated" in err
    assert len(err.strip().splitlines()) == 1


def test_copies_are_found_whatever_their_case_and_spaces() -> None:
    known = ["The goose  left the harbour", "soup again"]
    texts = ["the goose left the harbour", "Soup again!", "the goose left the island", "soup AGAIN"]
    assert copied_share(texts, known) == 0.5
    assert copied_share(texts, known, num_words=4) == 0.5
    assert copied_share(texts, known, num_words=6) == 0.0


def test_distinct_counts_each_gram_once() -> None:
    assert distinct(["a b a b", "a b"], "1") == pytest.approx(2 / 6)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a"], 2) == 0.0


def test_the_distance_of_lengths_is_a_share_of_the_persons_mean() -> None:
    person = ["x" * length for length in range(50, 150)]
    assert length_distance(person, person) == 0.0
    assert length_distance([text + "x" * 10 for text in person], person) == pytest.approx(10 / 99.5)
    same_mean = ["x" * 99, "x" * 100]
    assert length_distance(same_mean, person) == pytest.approx(25 / 99.5, rel=0.02)
    assert lengths(person)["mean"] == 99.5
    assert lengths(person)["p50"] == 99.5

"""One tiny run through the command line, and what its checkpoint holds."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from training import finetune
from training.__main__ import main
from training.cleaning import clean
from training.dataset import END_OF_TEXT, Dataset, make_dataset
from training.errors import BaseModelError
from training.presets import HyperParameters, ScratchModel
from training.sample_archive import sample_archive
from training.tweets import read_tweets

TINY = ["--base", "scratch", "--hidden-size", "64", "--num-layers", "1", "--vocab-size", "400"]
TINY += ["--block-size", "64", "--batch-size", "4", "--epochs", "2", "--learning-rate", "0.005"]


@pytest.fixture(scope="module")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "tweets.js"
    path.write_text(sample_archive(num_tweets=200), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tweets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "new" / "goose"
    arguments = ["--tweets", str(tweets), "--handle", "goose_lantern", "--output", str(output)]
    assert main([*arguments, "--seed", "3", *TINY]) == 0
    return output


def read(checkpoint: Path, name: str) -> Any:
    return json.loads((checkpoint / name).read_text("utf-8"))


def test_the_folder_holds_a_whole_checkpoint_and_no_pickle(checkpoint: Path) -> None:
    files = {path.name for path in checkpoint.iterdir()}
    assert files >= {
        "README.md",
        "config.json",
        "dataset.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
        "vocab.json",
    }
    assert not {Path(name).suffix for name in files} & {".bin", ".pt", ".pth", ".pkl"}
    assert [path.name for path in checkpoint.parent.iterdir()] == ["goose"]


def test_sampling_defaults_are_in_both_places(checkpoint: Path) -> None:
    expected = {"do_sample": True, "min_length": 10, "max_length": 64, "temperature": 1.0, "top_p": 0.95}
    in_config = read(checkpoint, "config.json")["task_specific_params"]["text-generation"]
    assert in_config == {**expected, "prefix": "<|endoftext|>"}
    assert AutoConfig.from_pretrained(checkpoint).task_specific_params["text-generation"] == in_config
    generation = read(checkpoint, "generation_config.json")
    assert expected.items() <= generation.items()
    assert generation["eos_token_id"] == generation["bos_token_id"] == _vocab_size(checkpoint) - 1
    assert generation.get("top_k", 50) == 50
    assert GenerationConfig.from_pretrained(checkpoint).top_p == 0.95
    assert read(checkpoint, "config.json").get("use_cache", True) is True


def test_max_length_is_160_where_the_context_has_room() -> None:
    assert finetune.SAMPLING_DEFAULTS["max_length"] == 160


def test_the_tokenizer_has_gpt2s_layout(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    vocab = read(checkpoint, "vocab.json")
    assert vocab[END_OF_TEXT] == len(vocab) - 1 == tokenizer.eos_token_id
    assert (checkpoint / "merges.txt").read_text("utf-8").startswith("#version")
    assert len((checkpoint / "merges.txt").read_text("utf-8").splitlines()) - 1 == len(vocab) - 257
    text = "My dream is unseen: Ünïcödé 🦭 \n  two  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    ids = tokenizer(f"{END_OF_TEXT}soup{END_OF_TEXT}")["input_ids"]
    assert ids[0] == ids[-1] == vocab[END_OF_TEXT]
    assert vocab[END_OF_TEXT] not in ids[1:-1]


def test_training_lowers_the_loss_and_the_saved_weights_are_the_trained_ones(
    checkpoint: Path, tweets: Path
) -> None:
    evaluation = read(checkpoint, "training.json")["evaluation"]
    assert evaluation["loss_before"] == pytest.approx(math.log(_vocab_size(checkpoint)), abs=0.3)
    assert evaluation["loss_after"] < evaluation["loss_before"] - 1
    assert evaluation["perplexity_after"] == pytest.approx(math.exp(evaluation["loss_after"]))

    dataset = make_dataset(clean(read_tweets([tweets])), epochs=2, eval_fraction=0.1, seed=3)
    ids = AutoTokenizer.from_pretrained(checkpoint)(dataset.evaluation_text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert finetune.evaluation_loss(model, ids, 64) == pytest.approx(evaluation["loss_after"], abs=1e-4)
    assert len(ids) == evaluation["tokens"]


def test_the_loaded_model_samples_tweets_that_end(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(1)
    prompt = tokenizer(f"{END_OF_TEXT}My dream is", return_tensors="pt")
    rows = model.generate(**prompt, num_return_sequences=8, pad_token_id=tokenizer.eos_token_id)
    assert rows.shape[1] <= 64
    assert len({tuple(row.tolist()) for row in rows}) == 8
    assert (rows[:, prompt["input_ids"].shape[1] :] == tokenizer.eos_token_id).any()


def test_records_tell_what_was_learned_from_and_how(checkpoint: Path, tweets: Path) -> None:
    cleaned = clean(read_tweets([tweets]))
    dataset = make_dataset(cleaned, epochs=2, eval_fraction=0.1, seed=3)
    record = read(checkpoint, "dataset.json")
    assert record["handle"] == "goose_lantern"
    assert record["counts"] == {
        "downloaded": 200,
        "retweets": cleaned.counts.retweets,
        "short": cleaned.counts.short,
        "kept": len(cleaned.kept),
    }
    sha256 = hashlib.sha256(tweets.read_bytes()).hexdigest()
    assert record["tweet_files"] == [{"name": "tweets.js", "sha256": sha256}]
    assert record["text_sha256"] == hashlib.sha256(dataset.text.encode()).hexdigest()
    assert (record["seed"], record["epochs"], record["characters"]) == (3, 2, len(dataset.text))
    ids = AutoTokenizer.from_pretrained(checkpoint)(dataset.text)["input_ids"]
    assert record["tokens"] == len(ids)
    assert "only" in record["warnings"][0]

    training = read(checkpoint, "training.json")
    assert training["hyper_parameters"]["learning_rate"] == 0.005
    assert training["hyper_parameters"]["schedule"] == "cosine"
    assert training["scratch_model"]["hidden_size"] == 64
    assert training["seed"] == 3
    assert training["num_steps"] == math.ceil(len(ids) // 64 / 4)
    assert training["seconds"] > 0
    assert {"python", "torch", "transformers", "tokenizers"} <= training["libraries"].keys()
    rates = [entry["learning_rate"] for entry in training["log_history"] if "learning_rate" in entry]
    assert max(rates) <= 0.005
    assert rates[-1] < 0.001


def test_the_card_shows_the_counts_of_this_run(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text("utf-8")
    counts = read(checkpoint, "dataset.json")["counts"]
    assert f"| Tweets kept | {counts['kept']} |" in card
    assert r"# \@goose\_lantern" in card


def test_a_checkpoint_can_be_trained_on_with_the_context_it_has(
    checkpoint: Path, tweets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tweets", str(tweets), "--handle", "goose_lantern", "--output", str(tmp_path / "more")]
    assert main([*arguments, "--base", str(checkpoint), "--epochs", "1", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    record = read(tmp_path / "more", "training.json")
    assert record["base"] == "goose"  # the name, no local path
    assert record["hyper_parameters"]["learning_rate"] == 1.372e-4
    assert record["hyper_parameters"]["block_size"] == 64
    assert record["evaluation"]["loss_after"] < record["evaluation"]["loss_before"]
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "more" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert str(record["seed"]) in out
    assert f"evaluation loss after  {record['evaluation']['loss_after']:7.3f}" in out


def test_the_same_seed_gives_the_same_weights(tweets: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("one", "5"), ("two", "5"), ("three", "6")):
        arguments = ["--tweets", str(tweets), "--handle", "a", "--output", str(tmp_path / name)]
        assert main([*arguments, *TINY, "--epochs", "1", "--seed", seed, "--eval-fraction", "0"]) == 0
        weights.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert weights[0] == weights[1] != weights[2]
    assert read(tmp_path / "one", "training.json")["evaluation"]["loss_after"] is None


def test_evaluation_loss_is_the_mean_over_tokens_of_unequal_blocks(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = list(range(10))
    whole = finetune.evaluation_loss(model, ids, 64)
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = -logits[torch.arange(9), torch.tensor(ids[1:])].mean().item()
    assert whole == pytest.approx(expected, abs=1e-4)
    first, second = (finetune.evaluation_loss(model, part, 64) for part in (ids[:7], ids[6:]))
    assert first is not None
    assert second is not None
    assert finetune.evaluation_loss(model, ids, 7) == pytest.approx((first * 6 + second * 3) / 9, abs=1e-4)
    assert finetune.evaluation_loss(model, ids[:1], 64) is None


def test_a_base_that_is_no_gpt2_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BaseModelError, match="is a bert model, expected gpt2"):
        finetune.load_base(str(tmp_path))


def test_a_broken_base_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        finetune.load_base(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        finetune.load_base(str(tmp_path))


def test_a_text_under_one_block_is_still_trained_on(tmp_path: Path) -> None:
    dataset = Dataset(
        text=f"{END_OF_TEXT}the goose left{END_OF_TEXT}",
        evaluation_text="",
        num_training=1,
        num_evaluation=0,
        epochs=1,
        seed=1,
    )
    report = finetune.finetune(
        dataset,
        tmp_path,
        base=ScratchModel(vocab_size=300, hidden_size=64, num_layers=1, dropout=0.1),
        hyper_parameters=HyperParameters(
            epochs=1, learning_rate=1e-3, warmup_steps=0, block_size=256, batch_size=1
        ),
        seed=1,
    )
    assert report.num_steps == 1
    assert read(tmp_path, "config.json")["task_specific_params"]["text-generation"]["max_length"] == 160
    assert read(tmp_path, "generation_config.json")["max_length"] == 160


def _vocab_size(checkpoint: Path) -> int:
    return int(read(checkpoint, "config.json")["vocab_size"])

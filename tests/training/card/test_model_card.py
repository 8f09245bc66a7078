from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from training.card.model_card import PICTURES, escape_markdown, model_card, write_card
from training.corpus.handles import check_handle
from training.errors import TrainingError
from training.work_folder import write_json

DATASET: dict[str, Any] = {
    "handle": "_goose_",
    "users": [
        {
            "handle": "_goose_",
            "name": None,
            "counts": {"downloaded": 2974, "retweets": 94, "replies": 0, "short": 693, "kept": 2187},
            "repeats": 1.0,
        }
    ],
    "rules": {"keep_new_lines": False, "drop_replies": False, "strip_mentions": False, "min_words": 3},
    "num_training": 1968,
    "num_evaluation": 219,
    "seed": 3,
    "epochs": 4,
    "epoch_layout": "file",
    "tokens": 305_123,
    "language": "en",
}
TRAINING: dict[str, Any] = {
    "base": "gpt2",
    "base_is_local": False,
    "scratch_model": None,
    "hyper_parameters": {
        "epochs": 4,
        "learning_rate": 1.372e-4,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "block_size": 1024,
        "batch_size": 1,
        "gradient_accumulation": 1,
        "optimizer": "AdamW",
        "schedule": "cosine",
    },
    "lora": None,
    "precision": "fp32",
    "num_processes": 1,
    "best_step": None,
    "seed": 3,
    "num_parameters": 124_439_808,
    "num_steps": 297,
    "evaluation": {
        "loss_before": 4.25,
        "loss_after": 3.5,
        "perplexity_before": 70.105,
        "perplexity_after": 33.115,
    },
}


def test_a_base_out_of_a_folder_is_not_taken_for_one_of_the_hub() -> None:
    card = model_card(DATASET, TRAINING | {"base": "mine", "base_is_local": True})
    assert "base_model" not in front_matter(card)
    assert "GPT-2 as pre-trained in mine" in body(card)


def test_one_epoch_is_no_several() -> None:
    for layout in ("file", "passes"):
        card = body(model_card(DATASET | {"epochs": 1, "epoch_layout": layout}, TRAINING))
        assert "laid out in one file in a random order" in card


def two_users() -> dict[str, Any]:
    dataset = copy.deepcopy(DATASET)
    second = {"handle": "gull", "name": "The Gull", "repeats": 2.5}
    second["counts"] = {"downloaded": 400, "retweets": 40, "replies": 7, "short": 53, "kept": 300}
    dataset["users"].append(second)
    dataset["handle"] = "_goose_-gull"
    return dataset


def front_matter(card: str) -> Any:
    start, block, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(block)


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def test_front_matter_names_language_tags_widget_base_and_metrics() -> None:
    matter = front_matter(model_card(DATASET, TRAINING, pictures=PICTURES))
    assert matter["language"] == "en"
    assert matter["thumbnail"] == "preview.png"
    assert "huggingtweets" in matter["tags"]
    assert matter["widget"] == [{"text": "My dream is"}]
    assert matter["base_model"] == "gpt2"
    [index] = matter["model-index"]
    assert index["results"][0]["metrics"] == [{"type": "perplexity", "name": "Perplexity", "value": 33.12}]


def test_the_hub_reads_the_front_matter() -> None:
    card = ModelCard(model_card(DATASET, TRAINING, pictures=PICTURES, repo="me/goose"))
    assert card.data.thumbnail == "https://huggingface.co/me/goose/resolve/main/preview.png"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 33.12)


def test_counts_hyper_parameters_and_evaluation_are_those_of_the_records() -> None:
    card = model_card(DATASET, TRAINING)
    for row in (
        "| Tweets downloaded | 2974 |",
        "| Retweets | 94 |",
        "| Short tweets | 693 |",
        "| Tweets kept | 2187 |",
        "| Learning rate | 0.0001372 |",
        "| Schedule | cosine to 0 |",
        "| Batch | 1 × 1024 tokens |",
        "| Epochs | 4 |",
        "| Steps | 297 |",
        "| Loss (nats per token) | 4.250 | 3.500 |",
        "| Perplexity | 70.1 | 33.1 |",
    ):
        assert row in card
    assert "Replies dropped" not in card
    assert "1968 were trained on and 219 set aside" in card
    assert "huggingface.co/gpt2#limitations-and-bias" in card
    assert "from hgt_infer import Generator" in card
    assert 'pipeline("text-generation"' in card


def test_several_people_have_a_column_each() -> None:
    card = model_card(two_users(), TRAINING)
    assert r"| Data | \@\_goose\_ | \@gull |" in card
    assert "| Tweets downloaded | 2974 | 400 |" in card
    assert "| Replies dropped | 0 | 7 |" in card
    assert r"# \@\_goose\_ & The Gull (\@gull), the bot" in card
    assert r"\@\_goose\_ 1.0 ×, \@gull 2.5 ×" in card


def test_what_was_asked_for_is_said() -> None:
    rules = {"keep_new_lines": True, "drop_replies": True, "strip_mentions": True, "min_words": 5}
    changes = {
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.0},
        "precision": "bf16",
        "num_processes": 2,
        "best_step": 120,
        "runs": {"preprocess": "https://wandb.example/a", "train": "https://wandb.example/b"},
        "hyper_parameters": TRAINING["hyper_parameters"]
        | {"gradient_accumulation": 4, "schedule": "constant", "warmup_ratio": 0.1},
    }
    card = model_card(DATASET | {"rules": rules, "epoch_layout": "passes"}, TRAINING | changes)
    for part in (
        "Retweets and replies were dropped",
        "mentions at the start of replies were removed",
        "white space was collapsed within each line",
        "fewer than 5 words",
        "a file that was read 4 times",
        "| Adapters | LoRA of rank 8, merged into the weights |",
        "| Precision | bf16 |",
        "| Batch | 1 × 1024 tokens, 4 accumulated, 2 processes |",
        "| Schedule | constant |",
        "| Warm-up | 10% of the steps |",
        "those of step 120, with the lowest evaluation loss",
        "[the training](<https://wandb.example/b>)",
    ):
        assert part in card


def test_a_model_from_random_weights_claims_no_base() -> None:
    card = model_card(DATASET, TRAINING | {"base": "scratch", "scratch_model": {"vocab_size": 300}})
    assert "base_model" not in front_matter(card)
    assert "124,439,808 parameters that started from random weights" in card
    assert "huggingface.co/gpt2#limitations-and-bias" not in card


def test_without_evaluation_or_language_the_card_says_and_claims_nothing() -> None:
    evaluation = dict.fromkeys(TRAINING["evaluation"])
    card = model_card(
        DATASET | {"num_evaluation": 0, "language": None}, TRAINING | {"evaluation": evaluation}
    )
    assert "there is no evaluation" in card
    assert "All of the kept tweets were trained on." in card
    assert "None" not in card
    assert "model-index" not in front_matter(card)
    assert "language" not in front_matter(card)


def test_handles_names_bases_and_samples_are_shown_and_not_interpreted() -> None:
    evil = "</h1><script>x</script>\n\n# [a](http://b) *c* `d` | e \u202ereversed"
    base = 'org/x"\nlicense: mit # <img src=y>'
    dataset = copy.deepcopy(DATASET)
    dataset["users"][0]["name"] = evil
    samples = {"prompt": "My <b> dream", "texts": [evil, "![x](y)"]}
    card = model_card(dataset, TRAINING | {"base": base}, samples=samples)
    matter = front_matter(card)
    assert matter["base_model"] == 'org/x" license: mit # <img src=y>'
    assert "license" not in matter
    for part in ("<script", "<img", "<b>", "\u202e", "![x]"):
        assert part not in body(card)
    title = body(card).strip().split("\n")[0]
    assert r"\# \[a\]\(http\:\/\/b\) \*c\* \`d\` \| e" in title
    assert r"(\@\_goose\_)" in title
    assert r"- **My &lt;b&gt; dream** &lt;" in card


@pytest.mark.parametrize("name", [None, "", "   "])
def test_without_a_name_the_handle_is_the_title(name: str | None) -> None:
    dataset = copy.deepcopy(DATASET)
    dataset["users"][0]["name"] = name
    assert "\n# \\@\\_goose\\_, the bot\n" in model_card(dataset, TRAINING)


def test_only_pictures_that_are_there_are_shown() -> None:
    without, with_all = model_card(DATASET, TRAINING), model_card(DATASET, TRAINING, pictures=PICTURES)
    for picture in PICTURES:
        assert picture not in without
        assert picture in body(with_all)


def test_a_published_card_names_its_repository() -> None:
    card = model_card(DATASET, TRAINING, repo="me/goose")
    assert 'model="me/goose"' in card
    assert 'Generator("me/goose")' in card
    assert "path/to" not in card


def test_the_card_is_written_from_what_lies_in_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", DATASET)
    write_json(tmp_path / "training.json", TRAINING)
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == model_card(DATASET, TRAINING)
    samples = {"prompt": "My dream is", "texts": ["a föhn"]}
    write_json(tmp_path / "samples.json", samples)
    (tmp_path / "bot.png").touch()
    write_card(tmp_path, repo="me/goose")
    expected = model_card(DATASET, TRAINING, samples=samples, pictures=["bot.png"], repo="me/goose")
    assert (tmp_path / "README.md").read_text("utf-8") == expected


@pytest.mark.parametrize("handle", ["a", "goose12_", "A-b_9", "x" * 50])
def test_handles_of_one_to_fifty_plain_characters_pass(handle: str) -> None:
    assert check_handle(handle) == handle


@pytest.mark.parametrize(
    "handle", ["", "x" * 51, "@goose", "a b", "a/b", "..", "goose\n", "gänse", "a:b", "٣"]
)
def test_other_handles_are_errors(handle: str) -> None:
    with pytest.raises(TrainingError, match="1 to 50 letters"):
        check_handle(handle)
    dataset = copy.deepcopy(DATASET)
    dataset["users"][0]["handle"] = handle
    with pytest.raises(TrainingError, match="is not 1 to 50 letters"):
        model_card(dataset, TRAINING)


def test_escaped_text_is_one_line() -> None:
    assert escape_markdown("a\r\n\r\n- b\u2028c\x00\udc80") == r"a \- b c"

from __future__ import annotations

from typing import Any

import pytest
import yaml

from training.errors import HandleError
from training.model_card import check_handle, escape_markdown, escape_yaml, model_card

DATASET: dict[str, Any] = {
    "handle": "_goose_",
    "counts": {"downloaded": 2974, "retweets": 94, "short": 693, "kept": 2187},
    "num_training": 1968,
    "num_evaluation": 219,
    "seed": 3,
    "epochs": 4,
    "tokens": 305_123,
}
TRAINING: dict[str, Any] = {
    "base": "gpt2",
    "scratch_model": None,
    "hyper_parameters": {
        "epochs": 4,
        "learning_rate": 1.372e-4,
        "warmup_steps": 0,
        "block_size": 1024,
        "batch_size": 1,
        "optimizer": "AdamW",
        "schedule": "cosine",
    },
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


def front_matter(card: str) -> Any:
    start, block, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(block)


def test_front_matter_names_language_tags_widget_and_base() -> None:
    matter = front_matter(model_card(DATASET, TRAINING))
    assert matter["language"] == "en"
    assert "huggingtweets" in matter["tags"]
    assert matter["widget"] == [{"text": "My dream is"}]
    assert matter["base_model"] == "gpt2"


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
    assert "1968 were trained on and 219 set aside" in card
    assert "huggingface.co/gpt2#limitations-and-bias" in card
    assert "from hgt_infer import Generator" in card
    assert 'pipeline("text-generation"' in card


def test_a_model_from_random_weights_claims_no_base() -> None:
    card = model_card(DATASET, TRAINING | {"base": "scratch", "scratch_model": {"vocab_size": 300}})
    assert "base_model" not in front_matter(card)
    assert "124,439,808 parameters that started from random weights" in card
    assert "huggingface.co/gpt2#limitations-and-bias" not in card


def test_without_evaluation_the_card_says_so() -> None:
    evaluation = dict.fromkeys(TRAINING["evaluation"])
    card = model_card(DATASET | {"num_evaluation": 0}, TRAINING | {"evaluation": evaluation})
    assert "there is no evaluation" in card
    assert "All of the kept tweets were trained on." in card
    assert "None" not in card


def test_handles_names_and_bases_are_shown_and_not_interpreted() -> None:
    name = "</h1><script>x</script>\n\n# [a](http://b) *c* `d` | e"
    base = 'org/x"\nlicense: mit # <img src=y>'
    card = model_card(DATASET, TRAINING | {"base": base}, name=name)
    matter = front_matter(card)
    assert matter["base_model"] == 'org/x" license: mit # <img src=y>'
    assert "license" not in matter
    assert "<script" not in card
    assert "<img" not in card.split("---\n", 2)[2]
    title = card.split("---\n", 2)[2].strip().split("\n")[0]
    assert title.endswith(r"(\@\_goose\_)")
    assert r"\# \[a\]\(http\:\/\/b\) \*c\* \`d\` \| e" in title


@pytest.mark.parametrize("name", [None, "", "   "])
def test_without_a_name_the_handle_is_the_title(name: str | None) -> None:
    assert "\n# \\@\\_goose\\_\n" in model_card(DATASET, TRAINING, name=name)


@pytest.mark.parametrize("handle", ["a", "goose12_", "A-b_9", "x" * 50])
def test_handles_of_one_to_fifty_plain_characters_pass(handle: str) -> None:
    assert check_handle(handle) == handle


@pytest.mark.parametrize(
    "handle", ["", "x" * 51, "@goose", "a b", "a/b", "..", "goose\n", "gänse", "a:b", "٣"]
)
def test_other_handles_are_errors(handle: str) -> None:
    with pytest.raises(HandleError, match="1 to 50 letters"):
        check_handle(handle)
    with pytest.raises(HandleError):
        model_card(DATASET | {"handle": handle}, TRAINING)


def test_escaped_text_is_one_line() -> None:
    assert escape_markdown("a\r\n\r\n- b\u2028c") == r"a \- b c"
    assert yaml.safe_load(escape_yaml('a\x00b\x7f\udc80"\\\n- c: 🪿')) == 'ab"\\ - c: 🪿'

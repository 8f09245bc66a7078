"""The README.md of a checkpoint: what it was made of, how, and how to use it.

Everything that a caller or a model wrote is escaped; numbers come from the records beside the card.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

import yaml

from training.corpus.handles import check_handle

PICTURES = ("preview.png", "bot.png", "pipeline.png", "loss.png")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_COUNTS = {
    "downloaded": "Tweets downloaded",
    "retweets": "Retweets",
    "replies": "Replies dropped",
    "short": "Short tweets",
    "kept": "Tweets kept",
}


def write_card(folder: Path, *, repo: str | None = None) -> None:
    """Write README.md from the records and pictures of a checkpoint folder.

    Args:
        folder: with dataset.json and training.json; samples.json and the pictures where there are some.
        repo: the hub id `user/name` that the checkpoint is published as; None for a folder.
    """
    records = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("dataset", "training", "samples")
        if (folder / f"{name}.json").is_file()
    }
    card = model_card(
        records["dataset"],
        records["training"],
        samples=records.get("samples"),
        pictures=[name for name in PICTURES if (folder / name).is_file()],
        repo=repo,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(
    dataset: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    samples: Mapping[str, Any] | None = None,
    pictures: Sequence[str] = (),
    repo: str | None = None,
) -> str:
    """Return the card's Markdown, with its YAML front matter.

    Args:
        dataset: the record that dataset.json holds.
        training: the record that training.json holds.
        samples: the `prompt` and the `texts` that follow it, as in samples.json.
        pictures: names of the pictures that lie beside the card.
        repo: the hub id that the checkpoint is published as; None for a folder.

    Raises:
        TrainingError: a record's handle is not a handle.
    """
    for user in dataset["users"]:
        check_handle(user["handle"])
    sections = [
        _title(dataset, pictures),
        _how_it_works(dataset, training, pictures),
        _training_data(dataset),
        _training_procedure(dataset, training, pictures),
        _use(repo),
        *([_samples(samples)] if samples and samples["texts"] else []),
        _limitations(dataset, training),
        "## About\n\nMade with `python -m training`, the training part of hgt-infer, after the example of\n"
        "[huggingtweets](https://github.com/borisdayma/huggingtweets) by Boris Dayma.",
    ]
    return _front_matter(dataset, training, pictures, repo) + "\n\n".join(["", *sections]) + "\n"


def escape_markdown(text: str) -> str:
    r"""Return one line of Markdown that shows the text as it is: no markup, no HTML, no table cell ends.

    >>> escape_markdown("a_b |\n<b>")
    'a\\_b \\| &lt;b&gt;'
    """
    escaped = _PUNCTUATION.sub(r"\\\1", one_line(text))
    return escaped.replace(r"\&", "&amp;").replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def one_line(text: str) -> str:
    r"""Return the text with its white space collapsed, without what cannot be written or turns the line
    around.

    >>> one_line("a\n\x00 \u202eb")
    'a b'
    """
    # Control characters and lone surrogates cannot be written. Unassigned ones can: emoji newer than Python.
    # Joiners make emoji of several; other format characters turn the direction of what follows.
    kept = (c for c in text if c.isspace() or c == "\u200d" or category(c) not in ("Cc", "Cs", "Cf"))
    return " ".join("".join(kept).split())


def count_table(users: Sequence[Mapping[str, Any]]) -> str:
    """Return the counts of the users as a Markdown table with a column for each.

    >>> counts = {"downloaded": 3000, "retweets": 250, "replies": 0, "short": 442, "kept": 2308}
    >>> print(count_table([{"handle": "goose", "counts": counts}]))
    | Data | Quantity |
    | --- | ---: |
    | Tweets downloaded | 3000 |
    | Retweets | 250 |
    | Short tweets | 442 |
    | Tweets kept | 2308 |
    """
    heads = ["Quantity"] if len(users) == 1 else [_mention(user) for user in users]
    rows = [
        [label, *(str(user["counts"][name]) for user in users)]
        for name, label in _COUNTS.items()
        if name != "replies" or any(user["counts"][name] for user in users)
    ]
    return _table(["Data", *heads], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mention(user: Mapping[str, Any]) -> str:
    return escape_markdown(f"@{user['handle']}")


def _mentions(dataset: Mapping[str, Any]) -> str:
    *others, last = map(_mention, dataset["users"])
    return f"{', '.join(others)} and {last}" if others else last


def _front_matter(
    dataset: Mapping[str, Any], training: Mapping[str, Any], pictures: Sequence[str], repo: str | None
) -> str:
    thumbnail = "preview.png"
    if repo:
        thumbnail = f"https://huggingface.co/{repo}/resolve/main/{thumbnail}"
    matter: dict[str, Any] = {
        "language": dataset["language"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": None
        if training["scratch_model"] or training["base_is_local"]
        else one_line(training["base"]),
        "thumbnail": thumbnail if "preview.png" in pictures else None,
        "tags": ["huggingtweets", "gpt2", "text-generation", "onnx"],
        "widget": [{"text": "My dream is"}],
    }
    perplexity = training["evaluation"]["perplexity_after"]
    if perplexity is not None:
        handles = ", ".join(f"@{user['handle']}" for user in dataset["users"])
        result = {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": "tweets", "name": f"tweets of {handles} that were set aside"},
            "metrics": [{"type": "perplexity", "name": "Perplexity", "value": round(perplexity, 2)}],
        }
        matter["model-index"] = [{"name": dataset["handle"], "results": [result]}]
    known = {name: value for name, value in matter.items() if value is not None}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000)}---"


def _title(dataset: Mapping[str, Any], pictures: Sequence[str]) -> str:
    titles = [
        f"{escape_markdown(user['name'])} ({_mention(user)})"
        if user["name"] and one_line(user["name"])
        else _mention(user)
        for user in dataset["users"]
    ]
    lines = [f"# {' & '.join(titles)}, the bot"]
    if "bot.png" in pictures:
        lines.insert(0, '<img src="bot.png" alt="A robot, the bot\'s picture" width="132" height="132">')
    lines.append(
        f"A language model that writes tweets in the manner of {_mentions(dataset)}. "
        "No person wrote what it says."
    )
    if "preview.png" in pictures:
        lines.append("![Five tweets that the model wrote](preview.png)")
    return "\n\n".join(lines)


def _how_it_works(dataset: Mapping[str, Any], training: Mapping[str, Any], pictures: Sequence[str]) -> str:
    lines = ["## How it works"]
    if "pipeline.png" in pictures:
        lines.append(
            "![Tweets are cleaned and laid out, GPT-2 learns them, and writes new ones](pipeline.png)"
        )
    start = (
        f"a small GPT-2 of {training['num_parameters']:,} parameters that started from random weights, "
        "with a tokenizer of its own"
        if training["scratch_model"]
        else f"GPT-2 as pre-trained in {escape_markdown(training['base'])}"
    )
    epochs = dataset["epochs"]
    if epochs == 1:
        laid_out = "laid out in one file in a random order"
    elif dataset["epoch_layout"] == "file":
        laid_out = f"laid out in one file of {epochs} epochs, each in a new order"
    else:
        laid_out = f"laid out in a file that was read {epochs} times"
    lines.append(
        f"The tweets were cleaned and {laid_out}, with `<|endoftext|>` between tweets.\n"
        f"The model is {start}; it learned to continue this text token by token. To write a tweet, "
        "it is given `<|endoftext|>` and the beginning, and draws token after token until the next\n"
        "`<|endoftext|>`."
    )
    return "\n\n".join(lines)


def _training_data(dataset: Mapping[str, Any]) -> str:
    rules = dataset["rules"]
    dropped = "Retweets and replies" if rules["drop_replies"] else "Retweets"
    cleaning = [
        f"{dropped} were dropped, then links were removed, `&amp;`, `&lt;` and `&gt;` were decoded",
        *(["the mentions at the start of replies were removed"] if rules["strip_mentions"] else []),
        "white space was collapsed within each line"
        if rules["keep_new_lines"]
        else "white space was collapsed",
    ]
    lines = [
        f"## Training data\n\nThe tweets of {_mentions(dataset)}.",
        count_table(dataset["users"]),
        f"{', '.join(cleaning[:-1])} and {cleaning[-1]}; a tweet with fewer than {rules['min_words']} words "
        "besides links, mentions and hashtags is short.",
    ]
    if len(dataset["users"]) > 1:
        times = ", ".join(f"{_mention(user)} {user['repeats']:.1f} ×" for user in dataset["users"])
        lines.append(f"So that each person has as many characters, tweets occur in an epoch: {times}.")
    lines.append(
        f"Of the kept tweets, {dataset['num_training']} were trained on and {dataset['num_evaluation']} "
        "set aside for evaluation."
        if dataset["num_evaluation"]
        else "All of the kept tweets were trained on."
    )
    return "\n\n".join(lines)


def _training_procedure(
    dataset: Mapping[str, Any], training: Mapping[str, Any], pictures: Sequence[str]
) -> str:
    values, lora = training["hyper_parameters"], training["lora"]
    rows = {
        "Optimizer": f"{values['optimizer']}, weight decay {values['weight_decay']:g}",
        "Learning rate": f"{values['learning_rate']:g}",
        "Schedule": values["schedule"] if values["schedule"] == "constant" else f"{values['schedule']} to 0",
        "Warm-up": f"{values['warmup_ratio']:.0%} of the steps",
        "Batch": f"{values['batch_size']} × {values['block_size']} tokens"
        + (f", {values['gradient_accumulation']} accumulated" if values["gradient_accumulation"] > 1 else "")
        + (f", {training['num_processes']} processes" if training["num_processes"] > 1 else ""),
        "Epochs": values["epochs"],
        "Steps": training["num_steps"],
        **({"Adapters": f"LoRA of rank {lora['rank']}, merged into the weights"} if lora else {}),
        "Precision": training["precision"],
        "Seed": training["seed"],
        "Tokens of the training file": dataset["tokens"],
    }
    lines = [
        "## Training procedure",
        _table(["Hyper-parameter", "Value"], [[label, str(value)] for label, value in rows.items()]),
    ]
    evaluation = training["evaluation"]
    if evaluation["loss_after"] is None:
        lines.append("No tweets were set aside, so there is no evaluation.")
    else:
        losses = [f"{evaluation[f'loss_{when}']:.3f}" for when in ("before", "after")]
        perplexities = [f"{evaluation[f'perplexity_{when}']:.1f}" for when in ("before", "after")]
        rows_of_loss = [["Loss (nats per token)", *losses], ["Perplexity", *perplexities]]
        lines.append(_table(["On the tweets set aside", "Before", "After"], rows_of_loss))
        if training["best_step"] is not None:
            lines.append(
                f"The weights are those of step {training['best_step']}, with the lowest evaluation loss."
            )
    if "loss.png" in pictures:
        lines.append("![Loss over the steps of training](loss.png)")
    runs = training.get("runs", {})
    if runs:
        named = {"preprocess": "the data", "train": "the training"}
        links = [f"[{named[name]}](<{address}>)" for name, address in runs.items() if name in named]
        lines.append(f"Recorded with Weights & Biases: {', '.join(links)}.")
    lines.append(
        "`dataset.json`, `training.json` and `metrics.jsonl` beside this card hold seeds, hashes, library "
        "versions and curves."
    )
    return "\n\n".join(lines)


def _use(repo: str | None) -> str:
    model = repo or "path/to/this/folder"
    return f"""## How to use it

With transformers:

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model}")
generator("My dream is", num_return_sequences=5)
```

A tweet begins with `<|endoftext|>`. transformers 4 puts it before the prompt; from version 5 on, write it
yourself: `"<|endoftext|>My dream is"`.

With hgt_infer, faster and without PyTorch:

```python
from hgt_infer import Generator

generator = Generator("{model}")
generator("My dream is", num_return_sequences=5)
```

Sampling defaults are part of the checkpoint: temperature 1.0, top-p 0.95, at most 160 tokens with the
prompt."""


def _samples(samples: Mapping[str, Any]) -> str:
    prompt = escape_markdown(samples["prompt"])
    lines = [f"- **{prompt}** {escape_markdown(text)}" for text in samples["texts"]]
    return "\n".join(["## Samples", "", "Not chosen: the first ones that were drawn.", "", *lines])


def _limitations(dataset: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    own = (
        "The model has seen nothing but these tweets: it knows no facts, no other style, and few words.\n"
        "It does not follow instructions."
        if training["scratch_model"]
        else "GPT-2's own [limitations and bias](https://huggingface.co/gpt2#limitations-and-bias) apply:\n"
        "it makes up facts and repeats the prejudices of the web pages that it was trained on."
    )
    return f"""## Limitations and bias

{own}
The tweets themselves shape the text further: their opinions, errors, names and jokes come back, sometimes
word by word, sometimes mixed into claims that nobody made. Do not present samples as words of
{_mentions(dataset)}."""

"""The README.md of a checkpoint: what it was made of, how, and how to use it.

Everything that a caller gave is escaped; numbers come from the records, `dataset.json` and `training.json`.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any
from unicodedata import category

from training.errors import HandleError

_HANDLE = re.compile(r"[A-Za-z0-9_-]{1,50}")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def check_handle(handle: str) -> str:
    """Return the handle, without `@`: 1 to 50 letters, digits, underscores and hyphens.

    Raises:
        HandleError: it is anything else.

    >>> check_handle("goose_lantern")
    'goose_lantern'
    """
    if not _HANDLE.fullmatch(handle):
        raise HandleError(
            f"handle {handle!r} is not 1 to 50 letters, digits, underscores or hyphens (without @)"
        )
    return handle


def escape_markdown(text: str) -> str:
    r"""Return one line of Markdown that shows the text as it is: no markup, no HTML, no table cell ends.

    >>> escape_markdown("a_b |\n<b>")
    'a\\_b \\| &lt;b&gt;'
    """
    escaped = _PUNCTUATION.sub(r"\\\1", _one_line(text))
    return escaped.replace(r"\&", "&amp;").replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def escape_yaml(text: str) -> str:
    r"""Return the text as a quoted YAML scalar on one line.

    >>> escape_yaml('a: "b" #c')
    '"a: \\"b\\" #c"'
    """
    return json.dumps(_one_line(text), ensure_ascii=False)


def _one_line(text: str) -> str:
    # Control characters and lone surrogates cannot be written. Unassigned ones can: emoji newer than Python.
    return " ".join("".join(c for c in text if c.isspace() or category(c) not in ("Cc", "Cs")).split())


def model_card(dataset: Mapping[str, Any], training: Mapping[str, Any], *, name: str | None = None) -> str:
    """Return the card's Markdown, with its YAML front matter.

    Args:
        dataset: the record that dataset.json holds.
        training: the record that training.json holds.
        name: the user's display name; the handle where None.

    Raises:
        HandleError: the record's handle is not a handle.
    """
    handle = check_handle(dataset["handle"])
    shown_handle = escape_markdown(f"@{handle}")
    title = f"{escape_markdown(name)} ({shown_handle})" if name and name.strip() else shown_handle
    counts = dataset["counts"]
    from_scratch = training["scratch_model"] is not None
    base = training["base"]
    tags = ["huggingtweets", "gpt2", "text-generation"]
    front_matter = [
        "---",
        "language: en",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {escape_yaml(base)}"] if not from_scratch else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "widget:",
        '- text: "My dream is"',
        "---",
    ]
    start = (
        f"a small GPT-2 of {training['num_parameters']:,} parameters that started from random weights, "
        "with a tokenizer of its own"
        if from_scratch
        else f"GPT-2 as pre-trained in {escape_markdown(base)}"
    )
    return (
        "\n".join(front_matter)
        + f"""

# {title}

A language model that writes tweets in the manner of {shown_handle}. No person wrote what it says.

## How it was made

The tweets were read from a downloaded archive, cleaned, and laid out in {dataset["epochs"]} epochs, each in a
new order, with `<|endoftext|>` between tweets. The model is {start}, trained on this text.
The approach is that of [huggingtweets](https://github.com/borisdayma/huggingtweets).

## Training data

| Data | Quantity |
| --- | ---: |
{count_table(counts)}

Retweets were dropped, then links were removed, `&amp;`, `&lt;` and `&gt;` were decoded and white space was
collapsed; a tweet with fewer than three words besides links, mentions and hashtags is short.
{_evaluation_split(dataset)}

## Training procedure

| Hyper-parameter | Value |
| --- | ---: |
{_hyper_parameter_rows(dataset, training)}

{_evaluation_result(training["evaluation"])}
`dataset.json` and `training.json` beside this card hold the seeds, hashes, library versions and the log.

## How to use it

With transformers:

```python
from transformers import pipeline

generator = pipeline("text-generation", model="path/to/this/folder")
generator("My dream is", num_return_sequences=5)
```

A tweet begins with `<|endoftext|>`. transformers 4 puts it before the prompt; from version 5 on, write it
yourself: `"<|endoftext|>My dream is"`.

With hgt_infer, without PyTorch:

```python
from hgt_infer import Generator

generator = Generator("path/to/this/folder")
generator("My dream is", num_return_sequences=5)
```

Sampling defaults are part of the checkpoint: temperature 1.0, top-p 0.95, at most 160 tokens with the prompt.

## Limitations and bias

{_limitations(from_scratch)}
The tweets themselves shape the text further: their opinions, errors, names and jokes come back, sometimes
word by word, sometimes mixed into claims that nobody made. Do not present samples as words of {shown_handle}.

## About

Made with `python -m training`, the training part of hgt-infer.
"""
    )


def count_table(counts: Mapping[str, int]) -> str:
    """Return the four counts as rows of a Markdown table.

    >>> print(count_table({"downloaded": 3000, "retweets": 250, "short": 442, "kept": 2308}))
    | Tweets downloaded | 3000 |
    | Retweets | 250 |
    | Short tweets | 442 |
    | Tweets kept | 2308 |
    """
    labels = {
        "downloaded": "Tweets downloaded",
        "retweets": "Retweets",
        "short": "Short tweets",
        "kept": "Tweets kept",
    }
    return "\n".join(f"| {label} | {counts[key]} |" for key, label in labels.items())


def _hyper_parameter_rows(dataset: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    values = training["hyper_parameters"]
    rows = {
        "Optimizer": values["optimizer"],
        "Learning rate": f"{values['learning_rate']:g}",
        "Schedule": f"{values['schedule']} to 0",
        "Warm-up steps": values["warmup_steps"],
        "Batch": f"{values['batch_size']} × {values['block_size']} tokens",
        "Epochs": values["epochs"],
        "Steps": training["num_steps"],
        "Seed": training["seed"],
        "Tokens of the training file": dataset["tokens"],
    }
    return "\n".join(f"| {label} | {value} |" for label, value in rows.items())


def _evaluation_split(dataset: Mapping[str, Any]) -> str:
    if not dataset["num_evaluation"]:
        return "All of the kept tweets were trained on."
    return (
        f"Of the kept tweets, {dataset['num_training']} were trained on "
        f"and {dataset['num_evaluation']} set aside for evaluation."
    )


def _evaluation_result(evaluation: Mapping[str, Any]) -> str:
    if evaluation["loss_after"] is None:
        return "No tweets were set aside, so there is no evaluation."
    return f"""| On the tweets set aside | Before | After |
| --- | ---: | ---: |
| Loss (nats per token) | {evaluation["loss_before"]:.3f} | {evaluation["loss_after"]:.3f} |
| Perplexity | {evaluation["perplexity_before"]:.1f} | {evaluation["perplexity_after"]:.1f} |
"""


def _limitations(from_scratch: bool) -> str:
    if from_scratch:
        return (
            "The model has seen nothing but these tweets: it knows no facts, no other style, and few words.\n"
            "It does not follow instructions."
        )
    return (
        "GPT-2's own [limitations and bias](https://huggingface.co/gpt2#limitations-and-bias) apply: it\n"
        "makes up facts and repeats the prejudices of the web pages that it was trained on."
    )

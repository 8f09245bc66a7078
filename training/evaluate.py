"""How well a model writes a person's tweets: perplexity, copies, variety, lengths, beside an n-gram model and
the person.

Every tweet is scored by itself, after <|endoftext|> and with the one that ends it: as it is when it is
generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from training.corpus.cleaning import CleaningRules
from training.corpus.dataset import END_OF_TEXT, Dataset, make_dataset, sha256_of
from training.corpus.users import read_users
from training.errors import TrainingError
from training.learning.kneser_ney import KneserNey
from training.options import AccountsOption, HandleOption, NameOption, TweetsOption, parse_users
from training.work_folder import read_json, write_json

if TYPE_CHECKING:
    from hgt_infer import Generator

ORDER = 5
EVAL_FRACTION = 0.1
MAX_SAMPLES = 16_384
LONG_COPY = 8  # words
PERCENTILES = (5, 25, 50, 75, 95)


def run(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, an exported folder or a hub id.")],
    tweets: TweetsOption = None,
    handle: HandleOption = None,
    name: NameOption = None,
    accounts: AccountsOption = None,
    samples: Annotated[int, typer.Option(help="Texts to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures there.")] = None,
) -> None:
    """Measure how well a model writes a user's tweets.

    Raises:
        TrainingError: one of its kinds, for options or files that cannot be used, or a model that cannot be
            loaded.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise TrainingError(f"samples is {samples}, expected 1 to {MAX_SAMPLES}")
    record = _dataset_record(Path(model))
    users = read_users(parse_users(tweets, handle, name, accounts), CleaningRules(**record.get("rules", {})))
    dataset = make_dataset(
        [user.cleaned for user in users],
        epochs=1,
        eval_fraction=record.get("eval_fraction") or EVAL_FRACTION,
        seed=record.get("seed", seed),
    )
    as_trained = sha256_of(dataset.evaluation) == record.get("evaluation_text_sha256")
    from hgt_infer import Generator, HgtInferError

    try:
        with Generator(model) as generator:
            figures = evaluate(generator, dataset, num_samples=samples, seed=seed)
    except HgtInferError as error:
        raise TrainingError(f"model {model} cannot be evaluated: {error}") from error
    figures = {"held_out_from_training": as_trained, **figures}
    print_figures(figures)
    if json:
        write_json(json, figures)


def evaluate(generator: Generator, dataset: Dataset, *, num_samples: int, seed: int) -> dict[str, Any]:
    """Return the figures of a model on training tweets and those set aside.

    Args:
        generator: the model.
        dataset: whose training tweets the model knows, or should not copy, and tweets set aside.
        num_samples: texts drawn with the model's own settings from <|endoftext|> alone, 1 to 16,384.
        seed: of the draws.
    """
    from hgt_infer import SamplingParams

    training, held_out = ([*chain.from_iterable(texts)] for texts in (dataset.training, dataset.evaluation))
    # A checkpoint without a prefix of its own is given one.
    has_prefix = len(generator.score(END_OF_TEXT * 2)[0].token_ids) == 3
    prefix = "" if has_prefix else END_OF_TEXT
    known, unknown = (
        generator.score([prefix + text + END_OF_TEXT for text in texts]) for texts in (training, held_out)
    )
    [output] = generator.generate([prefix], SamplingParams(n=num_samples, seed=seed))
    samples = [" ".join(completion.text.split()) for completion in output.completions]

    ids = [[score.token_ids[1:-1] for score in scores] for scores in (known, unknown)]
    end = unknown[0].token_ids[0]
    vocab_size = 1 + max(end, *map(max, filter(None, chain(*ids))))
    ngrams = KneserNey(ids[0], order=ORDER, end=end, vocab_size=vocab_size)
    ngram_nats, num_tokens = ngrams.loss(ids[1])
    nats = -sum(score.logprob for score in unknown)
    num_bytes = sum(len(text.encode()) for text in held_out)
    known_tokens = sum(len(score.token_ids) - 1 for score in known)
    return {
        "num_training": len(training),
        "num_held_out": len(held_out),
        "num_samples": num_samples,
        "tokens": num_tokens,
        "perplexity": math.exp(nats / num_tokens),
        "perplexity_of_training": math.exp(-sum(score.logprob for score in known) / known_tokens),
        "ngram_perplexity": math.exp(ngram_nats / num_tokens),
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "ngram_bits_per_byte": ngram_nats / math.log(2) / num_bytes,
        "copied": {"model": copied_share(samples, training), "person": copied_share(held_out, training)},
        "long_copies": {
            "model": copied_share(samples, training, num_words=LONG_COPY),
            "person": copied_share(held_out, training, num_words=LONG_COPY),
        },
        "distinct": {
            "model": {n: distinct(samples, n) for n in ("1", "2", "3")},
            "person": {n: distinct(training[: len(samples)], n) for n in ("1", "2", "3")},
        },
        "length": {"model": lengths(samples), "person": lengths(training)},
        "length_distance": length_distance(samples, training),
        "cut": sum(completion.finish_reason == "length" for completion in output.completions) / num_samples,
    }


def copied_share(texts: Sequence[str], known: Sequence[str], *, num_words: int | None = None) -> float:
    """Return the share of texts that are one of the known texts, in whatever case of letters.

    Args:
        texts: one or more.
        known: to compare with.
        num_words: count texts that have so many words in a row of a known one instead.

    >>> copied_share(["The fog is late", "fog again"], ["the fog  is late again"])
    0.0
    >>> copied_share(["The fog is late", "fog again"], ["the fog  is late again"], num_words=3)
    0.5
    """
    pieces = {piece for text in known for piece in _pieces(text, num_words)}
    return sum(any(piece in pieces for piece in _pieces(text, num_words)) for text in texts) / len(texts)


def distinct(texts: Iterable[str], n: int | str) -> float:
    """Return the distinct word n-grams of the texts per n-gram (Li et al. 2016); 0 without any.

    >>> distinct(["the fog and the fog"], 2)
    0.75
    """
    grams = [gram for text in texts for gram in _grams(text.split(), int(n))]
    return len(set(grams)) / len(grams) if grams else 0.0


def lengths(texts: Sequence[str]) -> dict[str, float]:
    """Return mean and percentiles of the lengths in characters."""
    values = [len(text) for text in texts]
    found = np.percentile(values, PERCENTILES)
    named = {f"p{p:02}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(np.mean(values)), **named}


def length_distance(texts: Sequence[str], known: Sequence[str]) -> float:
    """Return the Wasserstein distance of both distributions of lengths, over the mean length of the known
    texts.

    It is how far an average text would have to be lengthened or shortened to have the others' lengths.

    >>> length_distance(["four", "four"], ["five5", "three"])
    0.2
    """
    points = (np.arange(1000) + 0.5) / 1000
    ours, theirs = ([len(text) for text in side] for side in (texts, known))
    return float(np.abs(np.quantile(ours, points) - np.quantile(theirs, points)).mean() / np.mean(theirs))


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures, the model beside what it is judged by."""
    if not figures["held_out_from_training"]:
        print("the model does not say which tweets it was trained on: a tenth is taken as set aside")
    numbers = [f"{figures[name]:,}" for name in ("num_training", "num_held_out", "num_samples")]
    print("{} tweets to learn from, {} set aside, {} samples".format(*numbers))
    ratio = figures["perplexity"] / figures["ngram_perplexity"]
    print(f"\n{'on the tweets set aside':<30}{'model':>12}{f'{ORDER}-gram':>12}")
    _print_row("perplexity", figures["perplexity"], figures["ngram_perplexity"], f"{ratio:.2f} ×")
    _print_row("bits per byte", figures["bits_per_byte"], figures["ngram_bits_per_byte"], digits=3)
    _print_row("perplexity of training tweets", figures["perplexity_of_training"])
    print(f"\n{'samples':<30}{'model':>12}{'person':>12}")
    for label, name in (("copied whole", "copied"), (f"{LONG_COPY} words in a row copied", "long_copies")):
        _print_row(label, *(100 * figures[name][side] for side in ("model", "person")), unit=" %")
    for n in ("1", "2", "3"):
        _print_row(f"distinct-{n}", *(figures["distinct"][side][n] for side in ("model", "person")), digits=3)
    for name in figures["length"]["model"]:
        label = "characters, mean" if name == "mean" else f"characters, {int(name[1:])} %"
        _print_row(label, *(figures["length"][side][name] for side in ("model", "person")), digits=0)
    _print_row("distance of lengths", 100 * figures["length_distance"], unit=" %")
    _print_row("cut off by the length limit", 100 * figures["cut"], unit=" %")


def _print_row(
    label: str, model: float, other: float | None = None, remark: str = "", *, digits: int = 1, unit: str = ""
) -> None:
    cells = [f"{value:,.{digits}f}{unit}" for value in (model, other) if value is not None]
    print(f"{label:<30}{''.join(f'{cell:>12}' for cell in cells)}   {remark}".rstrip())


def _dataset_record(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    return read_json(path) if path.is_file() else {}


def _pieces(text: str, num_words: int | None) -> list[str]:
    words = text.casefold().split()
    return [" ".join(words)] if num_words is None else [" ".join(gram) for gram in _grams(words, num_words)]


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

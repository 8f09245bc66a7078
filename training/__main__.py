"""The command line: `python -m training --tweets FILE --handle NAME --output DIR`.

Reads, cleans, trains, writes the checkpoint folder. Exit status 0, or 2 with one line on standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.checkpoint import (
    check_output,
    dataset_record,
    file_record,
    perplexity,
    staged,
    training_record,
    write_json,
)
from training.cleaning import Counts, clean
from training.dataset import make_dataset
from training.errors import HyperParameterError, TrainingError
from training.model_card import check_handle, model_card
from training.presets import (
    FINE_TUNING,
    SCRATCH,
    SCRATCH_MODEL,
    SCRATCH_NUM_THREADS,
    HyperParameters,
    ScratchModel,
)
from training.tweets import read_tweets

if TYPE_CHECKING:
    from training.finetune import TrainingReport

HYPER_PARAMETER_OPTIONS = ("epochs", "learning_rate", "warmup_steps", "block_size", "batch_size")
SCRATCH_OPTIONS = ("vocab_size", "hidden_size", "num_layers")
MAX_SEED = 2**32 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = parse_arguments(argv)
    try:
        run(args)
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder that went away
        return _fail(f"{error.filename or args.output}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options; None for what was not given."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Make a GPT-2 checkpoint out of one user's tweets."
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--tweets",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="tweets.js or the zip of an archive, JSON, JSON lines or CSV; several are parts of one archive",
    )
    data.add_argument("--handle", required=True, metavar="NAME", help="whose tweets they are, without @")
    data.add_argument("--name", metavar="TEXT", help="the display name for the model card")
    data.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the checkpoint folder to write"
    )
    data.add_argument("--force", action="store_true", help="replace the checkpoint that is already there")
    data.add_argument(
        "--eval-fraction",
        type=float,
        default=0.1,
        metavar="X",
        help="part of the tweets set aside for evaluation, 0 to 0.5 (default: %(default)s)",
    )
    training = parser.add_argument_group("training", "defaults: fine-tuning / --base scratch")
    training.add_argument(
        "--base",
        default="gpt2",
        metavar="MODEL",
        help="GPT-2 to start from: a hub id, a folder, or `scratch`, random weights (default: %(default)s)",
    )
    for option, kind, text in (
        ("epochs", int, "times that each tweet occurs in the training file"),
        ("learning_rate", float, "peak of the cosine schedule"),
        ("warmup_steps", int, "steps of a linear rise to the peak"),
        ("block_size", int, "tokens in a row; for scratch also the model's context"),
        ("batch_size", int, "rows in a step"),
    ):
        defaults = f"{getattr(FINE_TUNING, option)} / {getattr(SCRATCH, option)}"
        training.add_argument(
            _flag(option),
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{text} (default: {defaults})",
        )
    training.add_argument("--seed", type=int, metavar="N", help="0 to 2^32 - 1 (default: drawn and recorded)")
    training.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help=f"CPU threads (default: PyTorch's choice / {SCRATCH_NUM_THREADS})",
    )
    scratch = parser.add_argument_group("model of --base scratch")
    for option in SCRATCH_OPTIONS:
        default = getattr(SCRATCH_MODEL, option)
        scratch.add_argument(_flag(option), type=int, metavar="N", help=f"default: {default}")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Make the checkpoint that the parsed options ask for.

    Raises:
        TrainingError: one of its kinds, for whatever the options or files do not allow.
    """
    handle = check_handle(args.handle)
    hyper_parameters, scratch_model = settings(args)
    seed = secrets.randbelow(MAX_SEED + 1) if args.seed is None else args.seed
    if not 0 <= seed <= MAX_SEED:
        raise HyperParameterError(f"seed is {seed}, expected 0 to {MAX_SEED}")
    if args.threads is not None and args.threads < 1:
        raise HyperParameterError(f"threads is {args.threads}, expected 1 or more")
    check_output(args.output, force=args.force)

    cleaned = clean(read_tweets(args.tweets))
    tweet_files = [file_record(path) for path in args.tweets]
    print_counts(cleaned.counts)
    dataset = make_dataset(
        cleaned, epochs=hyper_parameters.epochs, eval_fraction=args.eval_fraction, seed=seed
    )
    for warning in dataset.warnings:
        print(f"warning: {warning}", file=sys.stderr)

    with staged(args.output, force=args.force) as folder:
        print(f"training from {args.base}, seed {seed}", flush=True)
        from training.finetune import finetune  # PyTorch takes seconds to load: after every check above

        start = time.perf_counter()
        report = finetune(
            dataset,
            folder,
            base=scratch_model or args.base,
            hyper_parameters=hyper_parameters,
            seed=seed,
            num_threads=args.threads or (SCRATCH_NUM_THREADS if scratch_model else None),
        )
        # No local paths in the records.
        base = Path(args.base).name if Path(args.base).is_dir() else args.base
        about_dataset = dataset_record(
            dataset, handle=handle, counts=cleaned.counts, tweet_files=tweet_files, report=report
        )
        about_training = training_record(
            report,
            base=base,
            scratch_model=scratch_model,
            hyper_parameters=dataclasses.replace(hyper_parameters, block_size=report.block_size),
            seed=seed,
        )
        write_json(folder / "dataset.json", about_dataset)
        write_json(folder / "training.json", about_training)
        card = model_card(about_dataset, about_training, name=args.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print_result(report, args.output, time.perf_counter() - start)


def settings(args: argparse.Namespace) -> tuple[HyperParameters, ScratchModel | None]:
    """Return the preset of the base with the given options in it; no scratch model where a base is loaded.

    Raises:
        HyperParameterError: a value out of range, or a size given for a model that is loaded.
    """
    hyper_parameters = dataclasses.replace(
        SCRATCH if args.base == "scratch" else FINE_TUNING, **_given(args, HYPER_PARAMETER_OPTIONS)
    )
    sizes = _given(args, SCRATCH_OPTIONS)
    if args.base == "scratch":
        return hyper_parameters, dataclasses.replace(SCRATCH_MODEL, **sizes)
    if sizes:
        raise HyperParameterError(f"{_flag(next(iter(sizes)))} is only for --base scratch")
    return hyper_parameters, None


def print_counts(counts: Counts) -> None:
    """Print the count table, right-aligned."""
    for label, count in (
        ("tweets downloaded", counts.downloaded),
        ("retweets", counts.retweets),
        ("short tweets", counts.short),
        ("tweets kept", counts.kept),
    ):
        print(f"{label:<18}{count:>8,}")


def print_result(report: TrainingReport, output: Path, seconds: float) -> None:
    """Print the losses before and after, the time, and where the checkpoint is."""
    for when, loss in (("before", report.loss_before), ("after", report.loss_after)):
        if loss is not None:
            print(f"evaluation loss {when:<7}{loss:>7.3f}   perplexity {perplexity(loss):>10,.1f}")
    print(f"{report.num_steps:,} steps of {report.num_parameters:,} parameters, {seconds:.0f} s in all")
    print(f"checkpoint in {output}")


def _given(args: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    return {option: getattr(args, option) for option in options if getattr(args, option) is not None}


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

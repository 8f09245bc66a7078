"""The options of `python -m training`, and the job that they ask for.

Everything that options can be wrong about is found here, before a file is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.corpus.cleaning import MIN_PLAIN_WORDS, CleaningRules
from training.corpus.handles import UserFiles, check_users
from training.errors import HyperParameterError, TrainingError
from training.learning.presets import (
    EPOCH_LAYOUTS,
    FINE_TUNING,
    PRECISIONS,
    SCHEDULES,
    SCRATCH,
    SCRATCH_MODEL,
    SCRATCH_NUM_THREADS,
    HyperParameters,
    Lora,
    RunOptions,
    ScratchModel,
)
from training.tracking.trackers import TRACKERS, check_report_to
from training.tweets.reading import read_account
from training.work_folder import seed_left_in

HYPER_PARAMETERS: tuple[tuple[str, type, str], ...] = (
    ("epochs", int, "times that each tweet is trained on"),
    ("learning_rate", float, "peak of the schedule"),
    ("warmup_ratio", float, "part of the steps that rise to the peak"),
    ("block_size", int, "tokens in a row; for scratch also the model's context"),
    ("batch_size", int, "rows that a device takes at once"),
    ("gradient_accumulation", int, "batches in a step"),
    ("weight_decay", float, "of AdamW"),
)
SCRATCH_SIZES: tuple[tuple[str, type], ...] = (
    ("vocab_size", int),
    ("hidden_size", int),
    ("num_layers", int),
    ("dropout", float),
)
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides about a run."""

    users: tuple[UserFiles, ...]
    rules: CleaningRules
    eval_fraction: float
    base: str
    scratch_model: ScratchModel | None
    hyper_parameters: HyperParameters
    options: RunOptions
    seed: int
    num_trials: int | None
    output: Path
    force: bool
    resume: bool
    report_to: tuple[str, ...]
    preview: bool

    @property
    def base_name(self) -> str:
        """The base without its folder: no local paths in the records."""
        return Path(self.base).resolve().name if Path(self.base).is_dir() else self.base


def add_user_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declare the options that say whose tweets there are, and return their group."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--tweets",
        type=Path,
        nargs="+",
        action="append",
        metavar="FILE",
        help="an archive (zip, folder or tweets.js), JSON, JSON lines, CSV, plain text, or an export "
        "of Mastodon or Bluesky; several are parts of one; once for each --handle",
    )
    data.add_argument(
        "--handle",
        action="append",
        metavar="NAME",
        help="whose tweets they are, without @ (default: the archive's own); several times for several "
        "people",
    )
    data.add_argument(
        "--name", action="append", metavar="TEXT", help="the display name, once for each --handle"
    )
    data.add_argument(
        "--accounts",
        type=Path,
        metavar="DIR",
        help="instead of these: a folder with a HANDLE.* for each person",
    )
    return data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a training run; None for what is not given."""
    data = add_user_arguments(parser)
    data.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the checkpoint folder to write"
    )
    data.add_argument(
        "--force", action="store_true", help="replace the checkpoint or interrupted run that is there"
    )
    data.add_argument("--resume", action="store_true", help="go on with an interrupted run, if there is one")
    data.add_argument(
        "--eval-fraction",
        type=float,
        default=0.1,
        metavar="X",
        help="part of the tweets set aside for evaluation, 0 to 0.5 (default: %(default)s)",
    )
    cleaning = parser.add_argument_group("cleaning", "defaults: as huggingtweets")
    cleaning.add_argument("--keep-new-lines", action="store_true", help="tweets keep their lines")
    cleaning.add_argument("--drop-replies", action="store_true", help="leave replies out")
    cleaning.add_argument(
        "--strip-mentions", action="store_true", help="drop the mentions that replies start with"
    )
    cleaning.add_argument(
        "--min-words",
        type=int,
        default=MIN_PLAIN_WORDS,
        metavar="N",
        help="plain words that a tweet needs, 0 to 100 (default: %(default)s)",
    )
    _add_training(parser)
    _add_run(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training", "defaults: fine-tuning / --base scratch")
    training.add_argument(
        "--base",
        default="gpt2",
        metavar="MODEL",
        help="GPT-2 to start from: a hub id, a folder, or `scratch`, random weights (default: %(default)s)",
    )
    for option, kind, text in HYPER_PARAMETERS:
        defaults = f"{getattr(FINE_TUNING, option)} / {getattr(SCRATCH, option)}"
        training.add_argument(
            _flag(option),
            type=kind,
            metavar="N" if kind is int else "X",
            help=f"{text} (default: {defaults})",
        )
    training.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate (default: cosine)")
    training.add_argument(
        "--epoch-layout",
        choices=EPOCH_LAYOUTS,
        help="epochs mixed into one file that is read once, or passes over a file (default: file)",
    )
    training.add_argument(
        "--tweets-apart",
        action=argparse.BooleanOptionalAction,
        help="train on each tweet as if it stood alone (default: no / yes)",
    )
    training.add_argument(
        "--keep-best",
        action=argparse.BooleanOptionalAction,
        help="keep the weights of the lowest evaluation loss, not the last ones (default: no / yes)",
    )
    training.add_argument(
        "--early-stopping",
        type=int,
        metavar="N",
        help="stop after N evaluations in a row without a lower loss; keeps the best",
    )
    training.add_argument(
        "--evaluations",
        type=int,
        metavar="N",
        help=f"how often to evaluate and save (default: {RunOptions.num_evaluations})",
    )
    training.add_argument(
        "--lora-rank", type=int, metavar="N", help="train adapters of this rank (default: all weights)"
    )
    training.add_argument("--lora-alpha", type=int, metavar="N", help="default: twice the rank")
    training.add_argument("--lora-dropout", type=float, metavar="X", help="default: 0")
    training.add_argument(
        "--sweep", type=int, metavar="N", help="search hyper-parameters in N trials, keep the best"
    )
    scratch = parser.add_argument_group("model of --base scratch")
    for option, kind in SCRATCH_SIZES:
        default = getattr(SCRATCH_MODEL, option)
        metavar = "N" if kind is int else "X"
        scratch.add_argument(_flag(option), type=kind, metavar=metavar, help=f"default: {default}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=int, metavar="N", help="0 to 2^32 - 1 (default: drawn and recorded)")
    run.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help=f"CPU threads (default: PyTorch's choice / {SCRATCH_NUM_THREADS})",
    )
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto: bf16 on a GPU that has it, else fp32 (default: %(default)s)",
    )
    run.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    run.add_argument(
        "--report-to",
        nargs="+",
        choices=TRACKERS,
        default=["wandb"],
        help="who records the run beside the output's own files (default: wandb, offline without a key)",
    )
    run.add_argument("--no-preview", action="store_true", help="neither samples nor pictures in the card")


def parse_job(args: argparse.Namespace) -> Job:
    """Return the job that parsed options ask for.

    Raises:
        TrainingError: one of its kinds, for a value out of its range or options that do not go together.
    """
    scratch = args.base == "scratch"
    sizes = _given(args, [option for option, _ in SCRATCH_SIZES])
    if sizes and not scratch:
        raise HyperParameterError(f"{_flag(next(iter(sizes)))} is only for --base scratch")
    names = [option for option, _, _ in HYPER_PARAMETERS] + ["schedule", "epoch_layout", "tweets_apart"]
    lora = _lora(args)
    if lora and scratch:
        raise HyperParameterError("--lora-rank needs a base to adapt: random weights are trained whole")
    if args.sweep is not None and num_processes() > 1:
        raise HyperParameterError("--sweep runs in one process, without torchrun")
    return Job(
        users=parse_users(args),
        rules=CleaningRules(
            keep_new_lines=args.keep_new_lines,
            drop_replies=args.drop_replies,
            strip_mentions=args.strip_mentions,
            min_words=args.min_words,
        ),
        eval_fraction=_eval_fraction(args),
        base=args.base,
        scratch_model=dataclasses.replace(SCRATCH_MODEL, **sizes) if scratch else None,
        hyper_parameters=dataclasses.replace(SCRATCH if scratch else FINE_TUNING, **_given(args, names)),
        options=RunOptions(
            num_evaluations=RunOptions.num_evaluations if args.evaluations is None else args.evaluations,
            keep_best=scratch and args.eval_fraction > 0 if args.keep_best is None else args.keep_best,
            early_stopping=args.early_stopping,
            precision=args.precision,
            gradient_checkpointing=args.gradient_checkpointing,
            lora=lora,
            num_threads=args.threads
            if args.threads is not None
            else SCRATCH_NUM_THREADS
            if scratch
            else None,
        ),
        seed=_seed(args),
        num_trials=args.sweep,
        output=args.output,
        force=args.force,
        resume=args.resume,
        report_to=check_report_to(args.report_to),
        preview=not args.no_preview,
    )


def num_processes() -> int:
    """Return how many processes torchrun or accelerate has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def parse_users(args: argparse.Namespace) -> tuple[UserFiles, ...]:
    """Return whose tweets parsed options name, by handle.

    Raises:
        TrainingError: options that do not go together, or a handle that is none.
        TweetFileError: an archive that was to tell its owner cannot be read.
    """
    return tuple(check_users(_users(args)))


def _users(args: argparse.Namespace) -> list[UserFiles]:
    tweets, handles, names = args.tweets or [], args.handle or [], args.name or []
    if args.accounts is not None:
        if tweets or handles or names:
            raise TrainingError("--accounts goes without --tweets, --handle and --name")
        if not args.accounts.is_dir():
            raise TrainingError(f"accounts {args.accounts} is not a folder")
        entries = sorted(path for path in args.accounts.iterdir() if not path.name.startswith("."))
        return [UserFiles(handle=path.stem, name=None, paths=(path,)) for path in entries]
    if not tweets:
        raise TrainingError("no tweets are given: --tweets FILE, or --accounts DIR")
    if not handles and len(tweets) == 1:
        account = read_account(tweets[0][0])
        if account is None:
            raise TrainingError(f"{tweets[0][0]} does not say whose tweets they are: give --handle NAME")
        return [UserFiles(handle=account.handle, name=(names or [account.name])[0], paths=tuple(tweets[0]))]
    if len(handles) != len(tweets) or len(names) not in (0, len(handles)):
        raise TrainingError(
            f"{len(tweets)} --tweets, {len(handles)} --handle and {len(names)} --name are given; "
            "expected a --handle for each --tweets, and as many --name or none"
        )
    return [
        UserFiles(handle=handle, name=name, paths=tuple(paths))
        for handle, name, paths in zip(handles, names or [None] * len(handles), tweets, strict=True)
    ]


def _lora(args: argparse.Namespace) -> Lora | None:
    given = _given(args, ["lora_rank", "lora_alpha", "lora_dropout"])
    if "lora_rank" not in given:
        if given:
            raise HyperParameterError(f"{_flag(next(iter(given)))} needs --lora-rank")
        return None
    return Lora(
        rank=args.lora_rank,
        alpha=given.get("lora_alpha", 2 * args.lora_rank),
        dropout=given.get("lora_dropout", 0.0),
    )


def _eval_fraction(args: argparse.Namespace) -> float:
    fraction: float = args.eval_fraction
    if not 0 <= fraction <= 0.5:
        raise HyperParameterError(f"eval_fraction is {fraction}, expected 0 to 0.5")
    if not fraction and (args.keep_best or args.early_stopping or args.sweep):
        raise HyperParameterError("the best weights need tweets set aside: eval_fraction is 0, expected more")
    return fraction


def _seed(args: argparse.Namespace) -> int:
    if args.seed is not None:
        seed: int = args.seed
        if not 0 <= seed <= MAX_SEED:
            raise HyperParameterError(f"seed is {seed}, expected 0 to {MAX_SEED}")
        return seed
    if num_processes() > 1:
        raise HyperParameterError("several processes have to start from one seed: give --seed N")
    left = seed_left_in(args.output) if args.resume else None
    return secrets.randbelow(MAX_SEED + 1) if left is None else left


def _given(args: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    return {option: getattr(args, option) for option in options if getattr(args, option) is not None}


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")

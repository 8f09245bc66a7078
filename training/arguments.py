"""The options of `python -m training`, and the job that they ask for.

Everything that options can be wrong about is found here, before a file is read. What an option that sets a
field of a dataclass means, and its default, is the dataclass's.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from training.corpus.cleaning import CleaningRules
from training.corpus.handles import UserFiles
from training.errors import HyperParameterError
from training.learning.presets import (
    FINE_TUNING,
    SCRATCH,
    SCRATCH_MODEL,
    SCRATCH_NUM_THREADS,
    EpochLayout,
    HyperParameters,
    Lora,
    Precision,
    RunOptions,
    Schedule,
    ScratchModel,
)
from training.options import (
    DATA,
    AccountsOption,
    HandleOption,
    NameOption,
    TweetsOption,
    field_option,
    parse_users,
    several,
)
from training.tracking.trackers import TRACKERS, check_report_to
from training.work_folder import seed_left_in

MAX_SEED = 2**32 - 1
# The parts of the help.
CLEANING = "Cleaning, by default as huggingtweets"
HYPER_PARAMETERS = "Hyper-parameters, defaults with a base / from scratch"
TRAINING = "Training, defaults with a base / from scratch"
LORA = "Adapters (LoRA)"
MODEL = "Model of --base scratch"
RUN = "Run"


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


def _option(panel: str, text: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **settings)


def _rule(name: str, *flags: str) -> Any:
    return field_option(CleaningRules, name, *flags, panel=CLEANING)


def _hyper_parameter(name: str, panel: str = HYPER_PARAMETERS) -> Any:
    defaults = (_shown(getattr(preset, name)) for preset in (FINE_TUNING, SCRATCH))
    return field_option(HyperParameters, name, panel=panel, default=" / ".join(dict.fromkeys(defaults)))


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _run_option(name: str, panel: str, *flags: str, default: object = None) -> Any:
    return field_option(RunOptions, name, *flags, panel=panel, default=default)


def _lora_option(name: str, default: object) -> Any:
    return field_option(Lora, name, panel=LORA, default=default)


def _scratch_size(name: str) -> Any:
    return field_option(ScratchModel, name, panel=MODEL, default=getattr(SCRATCH_MODEL, name))


def parse_job(
    *,
    tweets: TweetsOption = None,
    handle: HandleOption = None,
    name: NameOption = None,
    accounts: AccountsOption = None,
    output: Annotated[Path, _option(DATA, "The checkpoint folder to write.", metavar="DIR")],
    force: Annotated[
        bool, _option(DATA, "Replace the checkpoint or interrupted run that is there.", "--force")
    ] = False,
    resume: Annotated[
        bool, _option(DATA, "Go on with an interrupted run, if there is one.", "--resume")
    ] = False,
    eval_fraction: Annotated[
        float, _option(DATA, "Part of the tweets set aside for evaluation, 0 to 0.5.", metavar="X")
    ] = 0.1,
    keep_new_lines: Annotated[bool, _rule("keep_new_lines", "--keep-new-lines")] = False,
    drop_replies: Annotated[bool, _rule("drop_replies", "--drop-replies")] = False,
    strip_mentions: Annotated[bool, _rule("strip_mentions", "--strip-mentions")] = False,
    min_words: Annotated[int, _rule("min_words")] = CleaningRules.min_words,
    epochs: Annotated[int | None, _hyper_parameter("epochs")] = None,
    learning_rate: Annotated[float | None, _hyper_parameter("learning_rate")] = None,
    schedule: Annotated[Schedule | None, _hyper_parameter("schedule")] = None,
    warmup_ratio: Annotated[float | None, _hyper_parameter("warmup_ratio")] = None,
    block_size: Annotated[int | None, _hyper_parameter("block_size")] = None,
    batch_size: Annotated[int | None, _hyper_parameter("batch_size")] = None,
    gradient_accumulation: Annotated[int | None, _hyper_parameter("gradient_accumulation")] = None,
    weight_decay: Annotated[float | None, _hyper_parameter("weight_decay")] = None,
    base: Annotated[
        str,
        _option(
            TRAINING,
            "GPT-2 to start from: a hub id, a folder, or `scratch`, random weights.",
            metavar="MODEL",
        ),
    ] = "gpt2",
    epoch_layout: Annotated[EpochLayout | None, _hyper_parameter("epoch_layout", TRAINING)] = None,
    tweets_apart: Annotated[bool | None, _hyper_parameter("tweets_apart", TRAINING)] = None,
    keep_best: Annotated[bool | None, _run_option("keep_best", TRAINING, default="no / yes")] = None,
    early_stopping: Annotated[int | None, _run_option("early_stopping", TRAINING)] = None,
    num_evaluations: Annotated[
        int, _run_option("num_evaluations", TRAINING, "--evaluations")
    ] = RunOptions.num_evaluations,
    sweep: Annotated[
        int | None,
        _option(TRAINING, "Search hyper-parameters in so many trials, and keep the best.", metavar="N"),
    ] = None,
    lora_rank: Annotated[int | None, _lora_option("rank", "all weights are trained")] = None,
    lora_alpha: Annotated[int | None, _lora_option("alpha", "twice the rank")] = None,
    lora_dropout: Annotated[float | None, _lora_option("dropout", Lora.dropout)] = None,
    vocab_size: Annotated[int | None, _scratch_size("vocab_size")] = None,
    hidden_size: Annotated[int | None, _scratch_size("hidden_size")] = None,
    num_layers: Annotated[int | None, _scratch_size("num_layers")] = None,
    dropout: Annotated[float | None, _scratch_size("dropout")] = None,
    seed: Annotated[
        int | None, _option(RUN, "0 to 2³² - 1.", metavar="N", show_default="drawn and recorded")
    ] = None,
    num_threads: Annotated[
        int | None,
        _run_option("num_threads", RUN, "--threads", default=f"PyTorch's / {SCRATCH_NUM_THREADS}"),
    ] = None,
    precision: Annotated[Precision, _run_option("precision", RUN)] = RunOptions.precision,
    gradient_checkpointing: Annotated[
        bool, _run_option("gradient_checkpointing", RUN, "--gradient-checkpointing")
    ] = False,
    report_to: Annotated[
        Any,
        _option(
            RUN,
            f"Who records the run beside the output's own files: {', '.join(TRACKERS)}. wandb uploads tweets "
            "and model where it has a key, and records offline where it has none.",
            metavar="NAME…",
            parser=several,
        ),
    ] = "none",
    no_preview: Annotated[
        bool, _option(RUN, "Neither samples nor pictures in the card.", "--no-preview")
    ] = False,
) -> Job:
    """Make a GPT-2 checkpoint out of people's tweets.

    Raises:
        TrainingError: one of its kinds, for a value out of its range or options that do not go together.
    """
    given: dict[str, Any] = dict(locals())
    scratch = base == "scratch"
    sizes = _given(ScratchModel, given)
    if sizes and not scratch:
        raise HyperParameterError(f"{_flag(next(iter(sizes)))} is only for --base scratch")
    lora = _lora(lora_rank, lora_alpha, lora_dropout)
    if lora and scratch:
        raise HyperParameterError("--lora-rank needs a base to adapt: random weights are trained whole")
    if sweep is not None and num_processes() > 1:
        raise HyperParameterError("--sweep runs in one process, without torchrun")
    options = _given(RunOptions, given) | {"lora": lora}
    if scratch:
        options = {"keep_best": eval_fraction > 0, "num_threads": SCRATCH_NUM_THREADS} | options
    return Job(
        users=parse_users(tweets, handle, name, accounts),
        rules=CleaningRules(**_given(CleaningRules, given)),
        eval_fraction=_eval_fraction(eval_fraction, best=bool(keep_best or early_stopping or sweep)),
        base=base,
        scratch_model=replace(SCRATCH_MODEL, **sizes) if scratch else None,
        hyper_parameters=replace(SCRATCH if scratch else FINE_TUNING, **_given(HyperParameters, given)),
        options=RunOptions(**options),
        seed=_seed(seed, output if resume else None),
        num_trials=sweep,
        output=output,
        force=force,
        resume=resume,
        report_to=check_report_to(report_to),
        preview=not no_preview,
    )


def num_processes() -> int:
    """Return how many processes torchrun or accelerate has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def _lora(rank: int | None, alpha: int | None, dropout: float | None) -> Lora | None:
    if rank is None:
        for option, value in (("--lora-alpha", alpha), ("--lora-dropout", dropout)):
            if value is not None:
                raise HyperParameterError(f"{option} needs --lora-rank")
        return None
    return Lora(
        rank=rank,
        alpha=2 * rank if alpha is None else alpha,
        dropout=Lora.dropout if dropout is None else dropout,
    )


def _eval_fraction(fraction: float, *, best: bool) -> float:
    if not 0 <= fraction <= 0.5:
        raise HyperParameterError(f"eval_fraction is {fraction}, expected 0 to 0.5")
    if not fraction and best:
        raise HyperParameterError("the best weights need tweets set aside: eval_fraction is 0, expected more")
    return fraction


def _seed(seed: int | None, resumed: Path | None) -> int:
    if seed is not None:
        if not 0 <= seed <= MAX_SEED:
            raise HyperParameterError(f"seed is {seed}, expected 0 to {MAX_SEED}")
        return seed
    if num_processes() > 1:
        raise HyperParameterError("several processes have to start from one seed: give --seed N")
    left = seed_left_in(resumed) if resumed else None
    return secrets.randbelow(MAX_SEED + 1) if left is None else left


def _given(owner: type, options: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(owner) if options.get(field.name) is not None]
    return {name: options[name] for name in names}


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")

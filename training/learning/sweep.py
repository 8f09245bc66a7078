"""A search for hyper-parameters with optuna, in huggingtweets' ranges, kept in a SQLite file.

What a trial trains is the caller's matter; here is which hyper-parameters it gets, and what became of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.errors import DivergedError, TrainingError
from training.learning.presets import SCHEDULES, HyperParameters

if TYPE_CHECKING:
    import optuna

STUDY = "training"
MAX_TRIALS = 1000
EPOCHS = (1, 10)
WARMUP_RATIOS = (0.0, 0.1, 0.2)
GRADIENT_ACCUMULATIONS = (1, 4, 8)
LEARNING_RATES = (math.exp(-14), math.exp(-6))  # of a pre-trained model
SCRATCH_FACTOR = 30.0
NUM_RANDOM_TRIALS = 8  # before what is known of earlier trials is looked at


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a sweep; the loss is None where training diverged."""

    number: int
    loss: float | None
    hyper_parameters: HyperParameters


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep found: the best trial, and all in the order in which they ran."""

    best: Trial
    trials: tuple[Trial, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return the trials as plain JSON values, in the order in which they ran."""
        return [asdict(trial) for trial in self.trials]


def sweep(
    objective: Callable[[HyperParameters, int], float],
    *,
    base: HyperParameters,
    num_trials: int,
    seed: int,
    storage: Path,
    scratch: bool = False,
) -> SweepResult:
    """Try hyper-parameters until the study has `num_trials` trials that ended, and return what was found.

    The first trial has the values of `base` itself. A study that is there is gone on with: its trials count,
    and a trial that was running when the process was killed runs again, under a new number. What a trial
    draws follows from the seed and from the trials that ended before it, so a sweep that was killed takes the
    same way as one that was not, as far as the objective returns the same losses.

    Args:
        objective: trains with the hyper-parameters as the trial of that number, returns the evaluation loss.
        base: what is not varied is taken from it.
        num_trials: 1 to 1,000, those of earlier starts included.
        seed: of the draws.
        storage: the SQLite file.
        scratch: random weights are trained: learning rates around the base's, not a pre-trained model's.

    Raises:
        TrainingError: the number is out of its range, the file has no study or that of another base or seed,
            or all trials diverged.
    """
    if not 1 <= num_trials <= MAX_TRIALS:
        raise TrainingError(f"the number of trials is {num_trials}, expected 1 to {MAX_TRIALS}")
    import optuna

    choices = Choices.around(base, scratch=scratch)
    with _study(storage) as study:
        _check_settings(study, {"base": asdict(base), "seed": seed, "scratch": scratch}, storage)
        _take_up_killed(study)
        while len(ended := _ended(study)) < num_trials:
            if not ended and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
                study.enqueue_trial({name: getattr(base, name) for name in choices.names})
            study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence([seed, len(ended)]).generate_state(1)[0]),
                n_startup_trials=NUM_RANDOM_TRIALS,
            )
            trial = study.ask()
            loss = _loss(objective, replace(base, **choices.suggest(trial)), trial.number)
            if loss is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, loss)
        trials = tuple(
            Trial(number=trial.number, loss=trial.value, hyper_parameters=replace(base, **trial.params))
            for trial in ended
        )
    finished = [trial for trial in trials if trial.loss is not None]
    if not finished:
        low, high = choices.learning_rate
        raise TrainingError(
            f"all of {len(trials)} trials diverged, at learning rates of {low:.1e} to {high:.1e}"
        )
    return SweepResult(best=min(finished, key=_by_loss), trials=trials)


def print_sweep(result: SweepResult) -> None:
    """Print a table of the trials, the best first.

    >>> from training.learning.presets import FINE_TUNING
    >>> trial = Trial(number=0, loss=3.21, hyper_parameters=FINE_TUNING)
    >>> print_sweep(SweepResult(best=trial, trials=(trial,)))
    trial     loss  epochs  learning rate  schedule  warm-up  accumulation
        0    3.210       4       1.37e-04    cosine      0.0             1
    """
    print("trial     loss  epochs  learning rate  schedule  warm-up  accumulation")
    for trial in sorted(result.trials, key=_by_loss):
        tried = trial.hyper_parameters
        loss = "diverged" if trial.loss is None else f"{trial.loss:.3f}"
        print(
            f"{trial.number:>5}{loss:>9}{tried.epochs:>8}{tried.learning_rate:>15.2e}{tried.schedule:>10}"
            f"{tried.warmup_ratio:>9}{tried.gradient_accumulation:>14}"
        )


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is tried for each hyper-parameter; the base's own value is always among it."""

    epochs: tuple[int, int]
    learning_rate: tuple[float, float]
    schedule: tuple[str, ...]
    warmup_ratio: tuple[float, ...]
    gradient_accumulation: tuple[int, ...]

    @classmethod
    def around(cls, base: HyperParameters, *, scratch: bool) -> Choices:
        """Return huggingtweets' ranges, widened where they do not hold the base.

        Random weights learn nothing at a pre-trained model's rates: theirs are a 30th to 30 times the base's.

        >>> from training.learning.presets import FINE_TUNING, SCRATCH
        >>> ["%.1e" % rate for rate in Choices.around(FINE_TUNING, scratch=False).learning_rate]
        ['8.3e-07', '2.5e-03']
        >>> ["%.1e" % rate for rate in Choices.around(SCRATCH, scratch=True).learning_rate]
        ['1.3e-04', '1.2e-01']
        """
        rate = base.learning_rate
        low, high = (rate / SCRATCH_FACTOR, rate * SCRATCH_FACTOR) if scratch else LEARNING_RATES
        return cls(
            epochs=(EPOCHS[0], max(EPOCHS[1], base.epochs)),
            learning_rate=(min(low, rate), max(high, rate)),
            schedule=SCHEDULES,
            warmup_ratio=tuple(sorted({*WARMUP_RATIOS, base.warmup_ratio})),
            gradient_accumulation=tuple(sorted({*GRADIENT_ACCUMULATIONS, base.gradient_accumulation})),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The hyper-parameters that are varied."""
        return tuple(field.name for field in fields(self))

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return what the trial tries."""
        return {
            "epochs": trial.suggest_int("epochs", *self.epochs),
            "learning_rate": trial.suggest_float("learning_rate", *self.learning_rate, log=True),
            "schedule": trial.suggest_categorical("schedule", self.schedule),
            "warmup_ratio": trial.suggest_categorical("warmup_ratio", self.warmup_ratio),
            "gradient_accumulation": trial.suggest_categorical(
                "gradient_accumulation", self.gradient_accumulation
            ),
        }


def _loss(
    objective: Callable[[HyperParameters, int], float], hyper_parameters: HyperParameters, number: int
) -> float | None:
    try:
        loss = objective(hyper_parameters, number)
    except DivergedError:
        return None
    return loss if math.isfinite(loss) else None


def _by_loss(trial: Trial) -> tuple[float, int]:
    return (math.inf if trial.loss is None else trial.loss, trial.number)


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have a loss or diverged; one that was killed has failed instead."""
    from optuna.trial import TrialState

    ended: list[optuna.trial.FrozenTrial] = study.get_trials(
        deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]
    )
    return ended


def _take_up_killed(study: optuna.Study) -> None:
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        if len(trial.params) == len(fields(Choices)):  # otherwise it had not begun, and is drawn again
            study.enqueue_trial(trial.params)


def _check_settings(study: optuna.Study, settings: dict[str, Any], storage: Path) -> None:
    kept = study.user_attrs.get("settings")
    if kept is None:
        study.set_user_attr("settings", settings)
        return
    for name, value in settings.items():
        if kept.get(name) != value:
            raise TrainingError(
                f"the sweep in {storage} has another {name}: {kept.get(name)!r}, now {value!r}"
            )


@contextmanager
def _study(storage: Path) -> Iterator[optuna.Study]:
    """Open the study of a SQLite file, or make it; optuna keeps silent, and closes the file."""
    import optuna
    import sqlalchemy

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = sqlalchemy.URL.create("sqlite", database=str(storage)).render_as_string(hide_password=False)
    try:
        opened = optuna.storages.RDBStorage(url)
        try:
            yield optuna.create_study(storage=opened, study_name=STUDY, load_if_exists=True)
        finally:
            opened.remove_session()
            opened.engine.dispose()
    except sqlalchemy.exc.DatabaseError as error:
        raise TrainingError(f"{storage} cannot be used as a study: {error.orig}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)

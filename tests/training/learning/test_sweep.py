"""The search for hyper-parameters: what is tried, what counts, and that it can be killed."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import fork, sweep_and_die, valley

from training.errors import DivergedError, TrainingError
from training.learning.presets import FINE_TUNING, SCRATCH, HyperParameters
from training.learning.sweep import SweepResult, Trial, print_sweep, sweep


def run(
    folder: Path,
    objective: Callable[[HyperParameters, int], float] = valley,
    *,
    num_trials: int = 12,
    base: HyperParameters = FINE_TUNING,
    seed: int = 5,
    scratch: bool = False,
) -> SweepResult:
    return sweep(
        objective, base=base, num_trials=num_trials, seed=seed, storage=folder / "sweep.db", scratch=scratch
    )


def tried(result: SweepResult) -> list[HyperParameters]:
    return [trial.hyper_parameters for trial in result.trials]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `searched`, not to be gone on with."""
    return tmp_path_factory.mktemp("searched")


@pytest.fixture(scope="module")
def searched(study: Path) -> SweepResult:
    """40 trials of the seed 5."""
    return run(study, num_trials=40)


def test_first_trial_is_the_base_and_the_best_has_the_lowest_loss(searched: SweepResult) -> None:
    result = searched
    assert result.trials[0].hyper_parameters == FINE_TUNING
    assert len(result.trials) == 40
    assert result.best.loss == min(valley(parameters) for parameters in tried(result))
    assert [valley(trial.hyper_parameters) for trial in result.trials] == [
        trial.loss for trial in result.trials
    ]


def test_search_ends_lower_than_random_draws_of_the_same_ranges(searched: SweepResult) -> None:
    first, last = searched.trials[1:9], searched.trials[25:]
    assert sum(trial.loss or 0 for trial in last) / 15 < sum(trial.loss or 0 for trial in first) / 8
    assert searched.best.hyper_parameters.schedule == "linear"


def test_trials_keep_to_the_ranges_of_huggingtweets(searched: SweepResult) -> None:
    trials = tried(searched)[1:]
    assert all(math.exp(-14) <= parameters.learning_rate <= math.exp(-6) for parameters in trials)
    assert all(1 <= parameters.epochs <= 10 for parameters in trials)
    assert {parameters.schedule for parameters in trials} == {"constant", "linear", "cosine"}
    assert {parameters.warmup_ratio for parameters in trials} == {0.0, 0.1, 0.2}
    assert {parameters.gradient_accumulation for parameters in trials} == {1, 4, 8}
    assert {parameters.block_size for parameters in trials} == {FINE_TUNING.block_size}


def test_random_weights_are_searched_around_their_own_learning_rate(tmp_path: Path) -> None:
    trials = tried(run(tmp_path, base=SCRATCH, scratch=True, num_trials=10))
    assert trials[0] == SCRATCH
    rates = [parameters.learning_rate / SCRATCH.learning_rate for parameters in trials]
    assert all(1 / 31 < rate < 31 for rate in rates)
    assert min(rates) < 0.5 < 2 < max(rates)


def test_a_seed_gives_the_same_trials_and_another_seed_others(searched: SweepResult, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert tried(run(tmp_path, num_trials=2)) == tried(searched)[:2]
    assert tried(run(tmp_path / "other", num_trials=2, seed=6))[1] != tried(searched)[1]


def test_trials_of_an_earlier_start_count(tmp_path: Path) -> None:
    first = run(tmp_path, num_trials=2)
    numbers: list[int] = []

    def noted(parameters: HyperParameters, number: int) -> float:
        numbers.append(number)
        return valley(parameters)

    assert run(tmp_path, noted, num_trials=4).trials[:2] == first.trials
    assert numbers == [2, 3]
    assert len(run(tmp_path, noted, num_trials=3).trials) == 4
    assert numbers == [2, 3]


@pytest.mark.parametrize("at", [0, 1, 10])
def test_interrupted_sweep_tries_the_same_as_one_that_was_not(
    searched: SweepResult, tmp_path: Path, at: int
) -> None:
    interrupted: list[HyperParameters] = []

    def interrupt(parameters: HyperParameters, number: int) -> float:
        if number == at:
            interrupted.append(parameters)
            raise KeyboardInterrupt
        return valley(parameters)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt)
    result = run(tmp_path, num_trials=at + 2)
    assert result.trials[at].hyper_parameters == interrupted[0]
    assert result.trials[at].number == at + 1
    assert tried(result) == tried(searched)[: at + 2]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of a fork
def test_killed_sweep_is_gone_on_with(searched: SweepResult, tmp_path: Path) -> None:
    killed = fork(sweep_and_die, tmp_path / "sweep.db", 2)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    result = run(tmp_path, num_trials=5)
    assert [trial.number for trial in result.trials] == [0, 1, 3, 4, 5]
    assert tried(result) == tried(searched)[:5]


def test_diverged_trials_count_and_do_not_end_the_sweep(tmp_path: Path) -> None:
    def fragile(parameters: HyperParameters, number: int) -> float:
        if number == 1:
            raise DivergedError("the loss is nan")
        return math.inf if number == 2 else valley(parameters)

    result = run(tmp_path, fragile, num_trials=5)
    assert [trial.number for trial in result.trials if trial.loss is None] == [1, 2]
    assert len(result.trials) == 5
    assert result.best.loss is not None


def test_sweep_of_which_all_trials_diverged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="all of 3 trials diverged"):
        run(tmp_path, lambda parameters, number: math.nan, num_trials=3)


def test_another_error_ends_the_sweep(tmp_path: Path) -> None:
    def broken(parameters: HyperParameters, number: int) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, broken)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 6}, "seed"),
        ({"base": dataclasses.replace(FINE_TUNING, batch_size=2)}, "base"),
        ({"scratch": True}, "scratch"),
    ],
)
@pytest.mark.usefixtures("searched")
def test_study_of_another_run_is_an_error(study: Path, changes: dict[str, object], name: str) -> None:
    with pytest.raises(TrainingError, match=f"another {name}"):
        run(study, num_trials=41, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_trials", [0, -1, 1001])
def test_number_of_trials_is_bounded(tmp_path: Path, num_trials: int) -> None:
    with pytest.raises(TrainingError, match="expected 1 to 1000"):
        run(tmp_path, num_trials=num_trials)
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_study_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sweep.db").write_text("a list of birds, which is no database at all")
    with pytest.raises(TrainingError, match=r"sweep\.db cannot be used"):
        run(tmp_path)


def test_folder_with_signs_of_an_address_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? 100%23 #1"
    folder.mkdir()
    run(folder, num_trials=1)
    assert (folder / "sweep.db").is_file()


def test_table_has_the_best_trial_first_and_diverged_ones_last(capsys: pytest.CaptureFixture[str]) -> None:
    trials = tuple(
        Trial(number=number, loss=loss, hyper_parameters=FINE_TUNING)
        for number, loss in enumerate([3.5, None, 2.25, 123.4])
    )
    print_sweep(SweepResult(best=trials[2], trials=trials))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["2", "2.250"],
        ["0", "3.500"],
        ["3", "123.400"],
        ["1", "diverged"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_records_are_plain_json_values(searched: SweepResult) -> None:
    records = searched.records()
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert records[0]["hyper_parameters"]["learning_rate"] == FINE_TUNING.learning_rate


def test_sweep_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, num_trials=2)
    assert capfd.readouterr() == ("", "")

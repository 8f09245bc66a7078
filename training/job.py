"""One run from tweets to a described checkpoint: read, train or sweep, describe, put in place.

What each step does is in the module that it is named after.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.arguments import Job, is_main_process
from training.card.language import detect_language
from training.card.loss_plot import draw_loss
from training.card.model_card import write_card
from training.card.reading_report import print_report
from training.card.records import dataset_record, training_record, user_records
from training.corpus.cleaning import Texts
from training.corpus.dataset import Dataset, make_dataset
from training.corpus.users import User, read_users
from training.learning.presets import HyperParameters
from training.learning.sweep import print_sweep, sweep
from training.tracking.run import TrackedRun
from training.tracking.trackers import tracked
from training.tweets.reading import read_tweets
from training.work_folder import WorkFolder, check_output, read_json, work_folder, work_path, write_json

DATASET_VERSION = 1  # of the way in which tweets become a text
NUM_FIRST_TEXTS = 5
PROMPT = "My dream is"
NUM_PREDICTIONS = 5


def run(job: Job) -> None:
    """Make the checkpoint that the job asks for.

    Under torchrun the first process reads, trains, writes and prints, the others read and train.

    Raises:
        TrainingError: one of its kinds, for whatever the files do not allow.
    """
    check_output(job.output, force=job.force)
    users = read_users(job.users, job.rules)
    dataset = lay_out(job, users, job.hyper_parameters)
    if not is_main_process():
        train(job, users, job.hyper_parameters, work_path(job.output))
        return
    print_report(user_records(users), {user.handle: user.cleaned.kept[:NUM_FIRST_TEXTS] for user in users})
    for warning in dataset.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with work_folder(job.output, settings(job, users), resume=job.resume, force=job.force) as work:
        start = time.perf_counter()
        how = "going on with" if work.resumed else "training from"
        print(f"{how} {job.base}, seed {job.seed}", flush=True)
        with tracked(job.report_to, tracked_run(job, dataset, work)) as trackers:
            if job.num_trials is None:
                train(job, users, job.hyper_parameters, work.path, trackers.log)
            else:
                search(job, users, work, trackers.log)
            describe(job, work.checkpoint, trackers.links)
            trackers.log_model(read_json(work.checkpoint / "training.json"))
        print_result(read_json(work.checkpoint / "training.json"), time.perf_counter() - start)
        work.finish(force=job.force)
    print(f"checkpoint in {job.output}")


def lay_out(job: Job, users: Sequence[User], hyper_parameters: HyperParameters) -> Dataset:
    """Lay out the users' tweets for the given hyper-parameters."""
    return make_dataset(
        [user.cleaned for user in users],
        epochs=hyper_parameters.epochs if hyper_parameters.epoch_layout == "file" else 1,
        eval_fraction=job.eval_fraction,
        seed=job.seed,
    )


def settings(job: Job, users: Sequence[User]) -> dict[str, Any]:
    """Return what must be equal for a run to go on where another one ended."""
    return {
        "users": [{"handle": user.handle, "tweet_files": list(user.tweet_files)} for user in users],
        "rules": dataclasses.asdict(job.rules),
        "eval_fraction": job.eval_fraction,
        "base": job.base_name,
        "scratch_model": dataclasses.asdict(job.scratch_model) if job.scratch_model else None,
        "hyper_parameters": dataclasses.asdict(job.hyper_parameters),
        "options": dataclasses.asdict(job.options),
        "seed": job.seed,
        "sweep": job.num_trials is not None,
    }


def tracked_run(job: Job, dataset: Dataset, work: WorkFolder) -> TrackedRun:
    """Return what trackers are told before training."""
    handle = "-".join(user.handle for user in job.users)
    return TrackedRun(
        folder=work.checkpoint,
        output=work.output,
        handle=handle,
        tweet_files=tuple(path for user in job.users for path in user.paths),
        read_tweets=tweet_records,
        write_dataset=dataset.write,
        dataset={
            "handle": handle,
            "seed": job.seed,
            "epochs": job.hyper_parameters.epochs,
            "version": DATASET_VERSION,
            "num_training": dataset.num_training,
            "num_evaluation": dataset.num_evaluation,
        },
        base=job.base,
        config=work.settings,
    )


def tweet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the tweets of a file as JSON objects."""
    for tweet in read_tweets([path]):
        yield {"id": tweet.id, "text": tweet.text, "is_retweet": tweet.is_retweet}


def train(
    job: Job,
    users: Sequence[User],
    hyper_parameters: HyperParameters,
    work: Path,
    listener: Callable[[Mapping[str, float]], None] | None = None,
) -> None:
    """Train in the folder `work` and leave the checkpoint and its records in `work/checkpoint`."""
    from training.learning.finetune import finetune  # PyTorch takes seconds to load: after every check before
    from training.learning.metrics_log import MetricsLog

    folder = work / "checkpoint"
    dataset = lay_out(job, users, hyper_parameters)
    report = finetune(
        dataset,
        folder,
        work,
        base=job.scratch_model or job.base,
        hyper_parameters=hyper_parameters,
        options=job.options,
        seed=job.seed,
        callbacks=[MetricsLog(work / "metrics.jsonl", listener)],
    )
    if not is_main_process():
        return
    shutil.copyfile(work / "metrics.jsonl", folder / "metrics.jsonl")
    kept = [user.cleaned.kept for user in users]
    about_dataset = dataset_record(
        users,
        dataset,
        rules=job.rules,
        eval_fraction=job.eval_fraction,
        hyper_parameters=hyper_parameters,
        language=detect_language(Texts(kept[0].store, np.concatenate([texts.indices for texts in kept]))),
        report=report,
    )
    about_training = training_record(
        report,
        base=job.base_name,
        base_is_local=Path(job.base).is_dir(),
        scratch_model=job.scratch_model,
        hyper_parameters=hyper_parameters,
        options=job.options,
        seed=job.seed,
    )
    write_json(folder / "dataset.json", about_dataset)
    write_json(folder / "training.json", about_training)  # last: the checkpoint is whole


def search(
    job: Job, users: Sequence[User], work: WorkFolder, listener: Callable[[Mapping[str, float]], None]
) -> None:
    """Train with one set of hyper-parameters after the other and leave the best checkpoint in place."""
    from training.learning.metrics_log import read_metrics

    assert job.num_trials is not None
    folders = work.path / "trials"
    folders.mkdir(exist_ok=True)

    def loss_of(hyper_parameters: HyperParameters, number: int) -> float:
        folder = folders / str(number)
        folder.mkdir(exist_ok=True)
        train(job, users, hyper_parameters, folder)
        shutil.rmtree(folder / "steps")
        losses = {path.parent: _loss_after(path) for path in folders.glob("*/checkpoint/training.json")}
        # Only the best checkpoint is kept; of equal ones the newest, as the other was of a run that was
        # killed.
        _, *others = sorted(losses, key=lambda path: (losses[path], -int(path.parent.name)))
        for path in others:
            shutil.rmtree(path)
        return losses[folder / "checkpoint"]

    result = sweep(
        loss_of,
        base=job.hyper_parameters,
        num_trials=job.num_trials,
        seed=job.seed,
        storage=work.path / "sweep.db",
        scratch=job.scratch_model is not None,
    )
    print_sweep(result)
    for best in folders.glob("*/checkpoint"):
        work.checkpoint.mkdir(exist_ok=True)  # a tracker may have made it
        for path in best.iterdir():
            path.rename(work.checkpoint / path.name)
        best.rmdir()
    write_json(work.checkpoint / "sweep.json", {"trials": result.records()})
    for entry in read_metrics(work.checkpoint / "metrics.jsonl"):
        listener(entry)


def _loss_after(training_json: Path) -> float:
    return float(read_json(training_json)["evaluation"]["loss_after"])


def describe(job: Job, folder: Path, links: Mapping[str, str]) -> None:
    """Add samples, pictures and the card to a checkpoint that has its records."""
    from training.learning.metrics_log import read_metrics

    dataset, training = read_json(folder / "dataset.json"), read_json(folder / "training.json")
    if links:
        training["runs"] = dict(links)
        write_json(folder / "training.json", training)
    draw_loss(folder / "loss.png", read_metrics(folder / "metrics.jsonl"))
    if job.preview:
        from training.card.preview import draw_bot, draw_pipeline, draw_preview, sample_predictions

        samples = sample_predictions(folder, PROMPT, num=NUM_PREDICTIONS, seed=job.seed)
        write_json(folder / "samples.json", {"prompt": PROMPT, "texts": samples})
        draw_preview(folder / "preview.png", samples, prompt=PROMPT, users=dataset["users"])
        draw_bot(folder / "bot.png", dataset["handle"])
        draw_pipeline(folder / "pipeline.png")
    write_card(folder)


def print_result(training: dict[str, Any], seconds: float) -> None:
    """Print the losses before and after, the size and the time."""
    evaluation = training["evaluation"]
    for when in ("before", "after"):
        loss = evaluation[f"loss_{when}"]
        if loss is not None:
            perplexity = evaluation[f"perplexity_{when}"]
            print(f"evaluation loss {when:<7}{loss:>7.3f}   perplexity {perplexity:>10,.1f}")
    print(
        f"{training['num_steps']:,} steps of {training['num_parameters']:,} parameters, "
        f"{seconds:.0f} s in all"
    )

"""Training's own speed: tweets into a dataset, memory over millions, the Trainer beside a bare loop."""

from __future__ import annotations

import csv
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
    default_data_collator,
    get_cosine_schedule_with_warmup,
)
from transformers.trainer_callback import PrinterCallback

from benchmarks.components.conftest import Record, recorded_clock
from benchmarks.measure.comparison import Spread
from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.fresh_processes import in_fresh_processes
from training.learning.presets import HyperParameters, RunOptions
from training.learning.trainer import TweetTrainer, set_schedule, summed_loss, training_arguments
from training.sample.archive import sample_archive

CASE = "training"
NUM_TWEETS = 50_000
NUM_MANY_TWEETS = 5_000_000
NUM_WARMUP_STEPS = 3
FIRST_ID = 1 << 60

BUILD = """
import json, sys, time
from pathlib import Path
from benchmarks.measure.memory import memory_bytes
from training.corpus.cleaning import CleaningRules
from training.corpus.dataset import make_dataset
from training.corpus.handles import UserFiles
from training.corpus.users import read_users
start = time.perf_counter()
users = read_users([UserFiles(handle="goose", name=None, paths=(Path(sys.argv[1]),))], CleaningRules())
read = time.perf_counter()
dataset = make_dataset([user.cleaned for user in users], epochs=4, eval_fraction=0.1, seed=1)
end = time.perf_counter()
print(json.dumps({
    "num_tweets": users[0].cleaned.counts.downloaded,
    "read_and_clean_s": read - start,
    "lay_out_s": end - read,
    "peak_mb": memory_bytes()["peak"] / 1e6,
}))
"""


def sample_records(num_tweets: int) -> list[dict[str, Any]]:
    """Records as the official archive has them, with ids of their own."""
    archive = sample_archive()
    records = [entry["tweet"] for entry in json.loads(archive[archive.index("[") :])]
    return [with_id(records[number % len(records)], number) for number in range(num_tweets)]


def with_id(record: dict[str, Any], number: int) -> dict[str, Any]:
    return record | dict.fromkeys(("id", "id_str"), str(FIRST_ID + number))


def write_archive(path: Path) -> Path:
    entries = (json.dumps({"tweet": tweet}, separators=(",", ":")) for tweet in sample_records(NUM_TWEETS))
    path.write_text("window.YTD.tweets.part0 = [\n" + ",\n".join(entries) + "\n]\n")
    return path


def write_api_lines(path: Path) -> Path:
    """Objects of API v1.1 with their user and padding, 4.5 KB each as real ones."""
    draw = random.Random(1)
    user = {f"profile_field_{number}": "x" * draw.randrange(20, 80) for number in range(60)}
    with path.open("w") as file:
        for tweet in sample_records(NUM_TWEETS):
            file.write(json.dumps(tweet | {"user": user | {"screen_name": "goose"}}) + "\n")
    return path


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["id", "created_at", "full_text"], extrasaction="ignore")
        rows.writeheader()
        rows.writerows(sample_records(NUM_TWEETS))
    return path


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("write", [write_archive, write_api_lines, write_csv], ids=["archive", "api", "csv"])
def test_tweets_into_a_dataset(
    write: Callable[[Path], Path],
    tmp_path: Path,
    num_rounds: int,
    replay: Callable[[Sequence[float]], None],
    record: Record,
) -> None:
    path = write(tmp_path / "tweets")
    rounds = in_fresh_processes(BUILD, str(path), num_rounds=num_rounds)
    seconds = [values["read_and_clean_s"] + values["lay_out_s"] for values in rounds]
    replay(seconds)
    assert {values["num_tweets"] for values in rounds} == {NUM_TWEETS}
    rate = Spread.of([NUM_TWEETS / duration for duration in seconds])
    name = write.__name__.removeprefix("write_")
    num_bytes = path.stat().st_size / NUM_TWEETS
    line = (
        f"dataset from {name}, {num_bytes:,.0f} bytes a tweet: {rate.median:,.0f} tweets/s "
        f"({rate.low:,.0f}–{rate.high:,.0f}, {num_rounds} rounds)"
    )
    values = {"format": name, "bytes_per_tweet": num_bytes, "tweets_per_s": vars(rate), "rounds": rounds}
    record(CASE, line, values)


@pytest.mark.benchmark(timer=recorded_clock)
def test_memory_over_millions_of_tweets(
    tmp_path: Path, replay: Callable[[Sequence[float]], None], record: Record
) -> None:
    records = sample_records(10_000)
    results = []
    for num_tweets in (NUM_MANY_TWEETS // 10, NUM_MANY_TWEETS):
        path = tmp_path / "tweets.jsonl"
        with path.open("w") as file:
            for number in range(num_tweets):
                file.write(json.dumps(with_id(records[number % len(records)], number)) + "\n")
        [values] = in_fresh_processes(BUILD, str(path), num_rounds=1, num_warmups=0)
        results.append(values | {"file_mb": path.stat().st_size / 1e6})
        path.unlink()
    replay([values["read_and_clean_s"] + values["lay_out_s"] for values in results])
    fewer, more = results
    per_tweet = 1e6 * (more["peak_mb"] - fewer["peak_mb"]) / (more["num_tweets"] - fewer["num_tweets"])
    line = (
        f"{more['num_tweets']:,.0f} tweets, {more['file_mb']:,.0f} MB: "
        f"peak {more['peak_mb']:,.0f} MB resident, {per_tweet:.0f} bytes a tweet; "
        f"{more['num_tweets'] / more['read_and_clean_s']:,.0f} tweets/s read"
    )
    record(CASE, line, {"memory": results, "bytes_per_tweet": per_tweet})


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize(
    ("size", "block_size", "batch_size", "num_steps"),
    [("overhead alone", 16, 4, 200), ("scratch", 256, 4, 40), ("distilgpt2", 256, 1, 12)],
)
def test_trainer_beside_a_bare_loop(
    size: str,
    block_size: int,
    batch_size: int,
    num_steps: int,
    tmp_path: Path,
    num_rounds: int,
    replay: Callable[[Sequence[float]], None],
    record: Record,
) -> None:
    """The same model, batches, optimizer, clipping and schedule; a round is its median step."""
    torch.set_num_threads(num_physical_cores())
    sides = {"trainer": trainer_steps, "bare loop": bare_steps}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for number in range(num_rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            model = model_of(size)
            blocks = random_blocks(model.config.vocab_size, block_size, batch_size * num_steps)
            duration, losses[name] = sides[name](model, blocks, batch_size, tmp_path)
            seconds[name].append(duration)
    assert losses["trainer"] == pytest.approx(losses["bare loop"], abs=1e-3)  # both learned the same
    replay(seconds["trainer"])
    ratio = Spread.of([ours / bare for ours, bare in zip(*seconds.values(), strict=True)])
    num_tokens = batch_size * block_size
    rates = {name: num_tokens / statistics.median(of_side) for name, of_side in seconds.items()}
    line = (
        f"Trainer, {size}, {batch_size} × {block_size} tokens: {rates['trainer']:,.0f} tok/s "
        f"({1e3 * num_tokens / rates['trainer']:.2f} ms a step), {rates['bare loop']:,.0f} in a bare loop "
        f"({1e3 * num_tokens / rates['bare loop']:.2f} ms); {ratio.median:.3f} of its time "
        f"({ratio.low:.3f}–{ratio.high:.3f}, {num_rounds} rounds)"
    )
    values = {"model": size, "block_size": block_size, "batch_size": batch_size, "num_steps": num_steps}
    record(CASE, line, values | {"seconds": seconds, "tokens_per_s": rates, "ratio": vars(ratio)})


def model_of(size: str) -> Any:
    """A model with seeded random weights and no dropout: hardly any, scratch or distilgpt2."""
    torch.manual_seed(1)
    sizes = {
        "overhead alone": {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 1},
        "scratch": {"vocab_size": 1300, "n_positions": 256, "n_embd": 128, "n_layer": 2, "n_head": 2},
        "distilgpt2": {"n_layer": 6},
    }[size]
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))


def random_blocks(vocab_size: int, block_size: int, number: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    blocks = draw.integers(0, vocab_size, (number, block_size))
    return [{"input_ids": block, "labels": block} for block in blocks]


def trainer_steps(
    model: Any, blocks: list[dict[str, Any]], batch_size: int, folder: Path
) -> tuple[float, float]:
    """Return the seconds of a step, and the loss at the end."""

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.append(time.perf_counter())

    times: list[float] = []
    hyper_parameters = HyperParameters(
        epochs=1, learning_rate=1e-4, block_size=blocks[0]["labels"].size, batch_size=batch_size
    )
    arguments = training_arguments(folder, hyper_parameters, RunOptions(), "fp32", seed=1)
    arguments.save_strategy = "no"
    set_schedule(arguments, len(blocks), hyper_parameters)
    trainer = TweetTrainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        data_collator=default_data_collator,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return median_step(times), last_loss(model, blocks)


def bare_steps(model: Any, blocks: list[dict[str, Any]], batch_size: int, _: Path) -> tuple[float, float]:
    """The loop that one would write by hand, over the same rows in the order that the Trainer draws."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    num_steps = len(blocks) // batch_size
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, num_steps)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(1)).tolist()
    rows = torch.from_numpy(np.stack([block["labels"] for block in blocks]))
    model.train()
    times = []
    for step in range(num_steps):
        batch = rows[order[step * batch_size : (step + 1) * batch_size]]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return median_step(times), last_loss(model, blocks)


def median_step(times: list[float]) -> float:
    """The median of the durations between the ends of steps, without the first ones."""
    return statistics.median(np.diff(times[NUM_WARMUP_STEPS - 1 :]).tolist())


def last_loss(model: Any, blocks: list[dict[str, Any]]) -> float:
    nats, num_tokens = summed_loss(model, blocks[:4])
    return nats / num_tokens

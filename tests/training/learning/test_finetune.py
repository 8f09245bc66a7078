"""Training itself: what it learns, and that it can be killed, split over processes and adapted in parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import start, train_and_die, train_as_one_of_two
from support.small_run import (
    FOUR_EVALUATIONS,
    TINY_MODEL,
    TINY_RUN,
    cleaned_of,
    small_dataset,
    train,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from training.corpus.dataset import make_dataset
from training.errors import DivergedError, HyperParameterError
from training.learning.finetune import TrainingReport, last_whole_checkpoint, resolve_precision
from training.learning.presets import HyperParameters, Lora, RunOptions
from training.learning.trainer import summed_loss

# With transformers 5.
peft_asks_by_the_old_name = pytest.mark.filterwarnings("ignore:.*activation_checkpointing:FutureWarning")


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()


class Losses(TrainerCallback):  # type: ignore[misc]
    """Keeps what the Trainer logs."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.entries.append({"step": state.global_step, **logs})

    def of(self, name: str) -> list[float]:
        return [entry[name] for entry in self.entries if name in entry]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("before anything is saved", []),
        ("while it saves the optimizer", ["checkpoint-12", "checkpoint-24"]),
        ("in the middle", ["checkpoint-24"]),
        ("after training", ["checkpoint-48"]),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    whole: Path, tmp_path: Path, place: str, left: list[str]
) -> None:
    killed = start(train_and_die, tmp_path, place)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("steps/*")) == left
    report = train(tmp_path, options=FOUR_EVALUATIONS)
    assert weights(tmp_path) == weights(whole)
    assert report.num_steps == 48
    assert report.train_loss == pytest.approx(train_loss_of(whole), abs=1e-9)


def train_loss_of(whole: Path) -> float:
    state = json.loads((whole / "steps" / "checkpoint-48" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return sum(losses) / len(losses)


def test_the_newest_whole_training_checkpoint_is_gone_on_with(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    for name, state in (
        ("checkpoint-9", '{"global_step": 9}'),
        ("checkpoint-10", '{"global_step": 10}'),
        ("checkpoint-11", '{"global_st'),
        ("checkpoint-12", None),
    ):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


WITHOUT_DROPOUT = dataclasses.replace(TINY_MODEL, dropout=0.0)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    """What one process gives with batches of 8."""
    large = dataclasses.replace(TINY_RUN, batch_size=8)
    return train(tmp_path_factory.mktemp("one"), base=WITHOUT_DROPOUT, hyper_parameters=large)


@pytest.mark.integration
def test_two_processes_give_what_one_gives_on_the_same_batch(one: TrainingReport, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [start(train_as_one_of_two, tmp_path / "two", rank, port) for rank in (0, 1)]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    assert {report["num_processes"] for report in reports} == {2}
    assert {report["num_steps"] for report in reports} == {one.num_steps}
    assert reports[0]["loss_before"] == pytest.approx(one.loss_before, abs=1e-5)
    assert reports[0]["loss_after"] == reports[1]["loss_after"] == pytest.approx(one.loss_after, abs=1e-3)


def test_accumulated_batches_give_what_one_large_batch_gives(one: TrainingReport, tmp_path: Path) -> None:
    parts = dataclasses.replace(TINY_RUN, batch_size=2, gradient_accumulation=4)
    report = train(tmp_path, base=WITHOUT_DROPOUT, hyper_parameters=parts)
    assert report.num_steps == one.num_steps
    assert report.loss_after == pytest.approx(one.loss_after, abs=1e-3)


def test_gradient_checkpointing_changes_no_weight_but_by_rounding(whole: Path, tmp_path: Path) -> None:
    report = train(tmp_path, options=dataclasses.replace(FOUR_EVALUATIONS, gradient_checkpointing=True))
    plain = AutoModelForCausalLM.from_pretrained(whole / "checkpoint").state_dict()
    checkpointed = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").state_dict()
    assert report.num_steps == 48
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-4) for name in plain)


def test_passes_read_a_file_of_one_epoch_several_times(tmp_path: Path) -> None:
    losses = Losses()
    passes = dataclasses.replace(TINY_RUN, epochs=3, epoch_layout="passes")
    dataset = small_dataset(num_tweets=110, epochs=1)
    report = train(tmp_path, dataset=dataset, hyper_parameters=passes, callbacks=[losses])
    blocks = report.num_training_tokens // 64
    assert report.num_steps == 3 * -(-blocks // 4)
    assert losses.entries[-1]["epoch"] == pytest.approx(3)


def test_tweets_that_are_apart_are_learned_and_evaluated_by_themselves(tmp_path: Path) -> None:
    hyper_parameters = dataclasses.replace(TINY_RUN, tweets_apart=True, block_size=128)
    dataset = small_dataset()
    report = train(tmp_path, dataset=dataset, hyper_parameters=hyper_parameters)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    nats, num_tokens = 0.0, 0
    for text in dataset.evaluation[0]:
        ids = tokenizer(f"<|endoftext|>{text}<|endoftext|>", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    assert num_tokens == report.num_evaluation_tokens - 1
    # A tweet that is cut by a block loses what stood before the cut.
    assert report.loss_after == pytest.approx(nats / num_tokens, rel=0.02)
    assert report.loss_after < report.loss_before - 0.8


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 5e-3)])
def test_the_learning_rate_rises_and_follows_its_schedule(tmp_path: Path, schedule: Any, last: float) -> None:
    losses = Losses()
    dataset = small_dataset(epochs=1, eval_fraction=0)
    hyper_parameters = dataclasses.replace(TINY_RUN, schedule=schedule, warmup_ratio=0.2)
    train(tmp_path, dataset=dataset, hyper_parameters=hyper_parameters, callbacks=[losses])
    rates = losses.of("learning_rate")
    assert rates[0] < rates[1] < rates[2] < 5e-3  # 5 steps of 27, a loss logged at each
    assert max(rates) == pytest.approx(5e-3)
    assert rates[-1] == pytest.approx(last, abs=3e-4)


def overfitting() -> dict[str, Any]:
    """A run whose evaluation loss soon rises: words in no order can only be learned by heart."""
    draw = random.Random(1)
    texts = [" ".join(f"{draw.randrange(200)}" for _ in range(12)) for _ in range(150)]
    dataset = make_dataset([cleaned_of(*texts)], epochs=30, eval_fraction=0.3, seed=3)
    model = dataclasses.replace(TINY_MODEL, hidden_size=128, dropout=0.0)
    hyper_parameters = dataclasses.replace(TINY_RUN, epochs=30, learning_rate=4e-3)
    return {"dataset": dataset, "base": model, "hyper_parameters": hyper_parameters}


def test_the_best_weights_are_kept_and_a_rising_loss_ends_the_run(tmp_path: Path) -> None:
    losses = Losses()
    options = RunOptions(num_evaluations=20, num_threads=1, early_stopping=3)
    report = train(tmp_path, options=options, callbacks=[losses], **overfitting())
    evaluations = {entry["step"]: entry["eval_loss"] for entry in losses.entries if "eval_loss" in entry}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert report.best_step == best
    assert report.loss_after == pytest.approx(evaluations[best], abs=1e-6)
    assert report.loss_after < list(evaluations.values())[-1]
    assert len([step for step in evaluations if step > best]) == 3
    assert report.num_steps == max(evaluations)
    assert len(evaluations) < 20


@peft_asks_by_the_old_name
def test_adapters_are_merged_into_weights_of_the_usual_shape(whole: Path, tmp_path: Path) -> None:
    options = RunOptions(num_evaluations=1, num_threads=1, lora=Lora(rank=4, alpha=8, dropout=0.1))
    base = str(whole / "checkpoint")
    hyper_parameters = dataclasses.replace(TINY_RUN, learning_rate=1e-2)
    report = train(tmp_path, base=base, options=options, hyper_parameters=hyper_parameters)
    before = AutoModelForCausalLM.from_pretrained(base)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    updates = {name: value - before.get_parameter(name) for name, value in after.named_parameters()}
    changed = {name for name, update in updates.items() if update.any()}
    assert {name.removeprefix("transformer.h.0.") for name in changed} == {
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    }
    for name in changed:
        assert torch.linalg.matrix_rank(updates[name], atol=1e-5) <= 4
    assert report.num_parameters == before.num_parameters()
    assert report.loss_after < report.loss_before
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert not list((tmp_path / "checkpoint").glob("adapter*"))


@peft_asks_by_the_old_name
def test_adapters_learn_with_gradient_checkpointing_too(whole: Path, tmp_path: Path) -> None:
    lora = Lora(rank=4, alpha=8)
    options = RunOptions(num_evaluations=1, num_threads=1, gradient_checkpointing=True, lora=lora)
    hyper_parameters = dataclasses.replace(TINY_RUN, learning_rate=1e-2)
    report = train(
        tmp_path, base=str(whole / "checkpoint"), options=options, hyper_parameters=hyper_parameters
    )
    assert report.loss_after < report.loss_before


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ends the run at a step, as Ctrl-C does."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 30:
            raise KeyboardInterrupt


@peft_asks_by_the_old_name
def test_an_interrupted_run_of_adapters_goes_on_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "base": str(whole / "checkpoint"),
        "options": dataclasses.replace(FOUR_EVALUATIONS, lora=Lora(rank=4, alpha=8, dropout=0.1)),
    }
    train(tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", **given, callbacks=[Interrupt()])
    assert [path.name for path in tmp_path.glob("parts/steps/*")] == ["checkpoint-24"]
    train(tmp_path / "parts", **given)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_bf16_on_a_cpu_learns_and_saves_fp32(tmp_path: Path) -> None:
    report = train(tmp_path, options=RunOptions(num_evaluations=1, num_threads=1, precision="bf16"))
    assert report.precision == "bf16"
    assert report.loss_after < report.loss_before - 0.8
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").dtype == torch.float32


def test_a_precision_that_the_device_has_not_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert resolve_precision("auto") == "fp32"
    with pytest.raises(HyperParameterError, match="fp16', which needs a GPU"):
        resolve_precision("fp16")


def test_the_same_seed_gives_the_same_weights_and_another_one_others(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "same", options=FOUR_EVALUATIONS)
    train(tmp_path / "other", options=FOUR_EVALUATIONS, seed=4)
    assert weights(tmp_path / "same") == weights(whole) != weights(tmp_path / "other")


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="try a learning rate under 1e\\+36"):
        train(tmp_path, hyper_parameters=dataclasses.replace(TINY_RUN, learning_rate=1e36))
    assert not (tmp_path / "checkpoint").exists()


def test_the_best_weights_need_tweets_set_aside(tmp_path: Path) -> None:
    with pytest.raises(HyperParameterError, match="eval_fraction is 0"):
        train(tmp_path, dataset=small_dataset(eval_fraction=0), options=RunOptions(keep_best=True))


def test_evaluation_loss_is_the_mean_over_tokens_of_unequal_blocks(whole: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole / "checkpoint")
    ids = np.arange(10)

    def block(first: int, last: int) -> dict[str, Any]:
        return dict.fromkeys(("input_ids", "labels"), ids[first:last])

    logits = model(input_ids=torch.from_numpy(ids[None])).logits[0, :-1].log_softmax(-1)
    expected = -logits[torch.arange(9), torch.from_numpy(ids[1:])].sum().item()
    nats, num_tokens = summed_loss(model, [block(0, 10)])
    assert (nats, num_tokens) == (pytest.approx(expected, abs=1e-4), 9)
    parts = summed_loss(model, [block(0, 7), block(6, 10)])
    assert parts[1] == 9
    apart = [summed_loss(model, [part])[0] for part in (block(0, 7), block(6, 10))]
    assert parts[0] == pytest.approx(sum(apart), abs=1e-4)


def test_a_text_under_one_block_is_still_trained_on(tmp_path: Path) -> None:
    hyper_parameters = HyperParameters(epochs=1, learning_rate=1e-3, block_size=5000, batch_size=1)
    dataset = small_dataset(num_tweets=110, epochs=1)
    report = train(tmp_path, hyper_parameters=hyper_parameters, dataset=dataset)
    assert report.num_training_tokens < 5000
    assert report.num_steps == 1
    generation = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text())
    assert generation["max_length"] == 160

"""Prompts of a Ray dataset, sampled by actors with a generator each; a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hgt_infer.checks import check_int
from hgt_infer.errors import ParameterError
from hgt_infer.generator import Generator
from hgt_infer.sampling_params import SamplingParams, checked_params

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

SETTINGS_FILE = "settings.json"
DEFAULT_BATCH_SIZE = 256

Columns = dict[str, Any]


def row_seed(seed: int, row_id: object) -> int:
    """The seed of a row: of the run's and its id alone, so not of actors, batches or order.

    >>> row_seed(1, 7) == row_seed(1, 7) != row_seed(2, 7)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {row_id}".encode()).digest()[:8], "big")


def generate_dataset(
    dataset: Dataset,
    model: str | os.PathLike[str],
    params: SamplingParams | None = None,
    *,
    seed: int = 0,
    id_column: str = "id",
    prompt_column: str = "prompt",
    progress: str | os.PathLike[str] | None = None,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    settings: Mapping[str, Any] | None = None,
) -> Dataset:
    """Sample every row's prompt. Nothing runs before the result is read or written.

    Rows come in any order. Their samples depend on model, params, seed and id alone: not on the number of
    actors, and not on what was killed in between.

    Args:
        dataset: has a prompt in each row, and an id that no other row has.
        model: as in Generator; every machine has to find it there.
        params: settings of every row, but for the seed; None is the checkpoint's.
        seed: of the run, 0 … 2**64 - 1.
        id_column, prompt_column: names of the columns.
        progress: a folder that all machines share. Batches that are done are kept there, and a later call
            with the same folder samples the other rows alone. None keeps nothing.
        concurrency: actors, or the fewest and the most.
        num_cpus, num_gpus: of each actor, with a thread for each CPU. None is 1 CPU, or none with GPUs.
        batch_size: rows that an actor takes at once, ≥ 1: several times num_slots keep it busy.
        settings: more of Generator's arguments, such as precision and num_slots.

    Returns:
        The dataset with the columns `texts`, `finish_reasons` and `num_tokens`, lists of params.n each, and
        `seed`.

    Raises:
        ParameterError: an argument outside its range, a column that is missing, or progress of another run.

    Example:
        prompts = ray.data.read_parquet("prompts")
        samples = generate_dataset(prompts, "huggingtweets/lilyw12_", concurrency=8, num_gpus=1)
        samples.write_parquet("samples")
    """
    import ray

    params = checked_params(params)
    if params.seed is not None:
        raise ParameterError("a seed of params would be that of every row: give seed to generate_dataset")
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("batch_size", batch_size, 1)
    columns = dataset.columns() or []
    for column in (id_column, prompt_column):
        if column not in columns:
            raise ParameterError(f"the dataset has no column {column!r}; it has {', '.join(columns)}")
    model = os.fspath(model)
    folder = Path(progress).absolute() if progress is not None else None  # actors may work in another folder
    finished: list[str] = []
    if folder is not None:
        _check_same_run(folder, {"model": model, "seed": seed, "params": repr(params), "id": id_column})
        finished = sorted(map(str, folder.glob("*.parquet")))
    num_cpus = (0 if num_gpus else 1) if num_cpus is None else num_cpus
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "concurrency": concurrency,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "fn_constructor_args": (model, params, seed, id_column, prompt_column),
        "fn_constructor_kwargs": {
            "progress": None if folder is None else str(folder),
            "settings": actor_settings(num_cpus, num_gpus, settings),
        },
    }
    if not finished:
        return dataset.map_batches(Sampler, **how)
    ids = set(_read(finished, [id_column])[id_column].to_pylist())
    done = ray.data.from_items(finished).map_batches(
        lambda files: _read(files["item"].to_pylist()), batch_size=1, batch_format="pyarrow"
    )
    rest = dataset.filter(lambda row: row[id_column] not in ids)
    return done.union(rest.map_batches(Sampler, **how))


def actor_settings(num_cpus: float, num_gpus: float, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Generator's arguments in an actor: as many threads as it has CPUs, unless settings say otherwise."""
    own = {"device": "cuda"} if num_gpus else {"device": "cpu", "num_threads": max(1, int(num_cpus))}
    return {**own, **(settings or {})}


class Sampler:
    """What an actor is: a generator, and the batches that it is given."""

    def __init__(
        self,
        model: str,
        params: SamplingParams,
        seed: int,
        id_column: str,
        prompt_column: str,
        *,
        progress: str | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.generator = Generator(model, **settings)
        self.params, self.seed = params, seed
        self.id_column, self.prompt_column = id_column, prompt_column
        self.progress = None if progress is None else Path(progress)

    def __call__(self, batch: Columns) -> Columns:
        """Add the samples to a batch of rows, by column."""
        ids, prompts = batch[self.id_column], batch[self.prompt_column]
        seeds = [row_seed(self.seed, row_id) for row_id in ids]
        outputs = self.generator.generate(
            [str(prompt) for prompt in prompts], [replace(self.params, seed=seed) for seed in seeds]
        )
        samples = [output.completions for output in outputs]
        result = {
            **batch,
            "texts": [[sample.text for sample in row] for row in samples],
            "finish_reasons": [[sample.finish_reason for sample in row] for row in samples],
            "num_tokens": [[len(sample.token_ids) for sample in row] for row in samples],
            "seed": np.array(seeds, np.uint64),
        }
        if self.progress is not None:
            _keep(self.progress, result)
        return result


def _keep(folder: Path, columns: Columns) -> None:
    """Write a batch as a file that is there whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    name = secrets.token_hex(12)
    partial = folder / f".{name}.partial"
    pq.write_table(table, partial)
    partial.rename(folder / f"{name}.parquet")


def _read(files: list[str], columns: list[str] | None = None) -> pa.Table:
    """Read batches that were kept; None reads all columns.

    ray.data.read_parquet starts processes of its own, which takes many seconds for a few files.
    """
    import pyarrow.parquet as pq

    return pq.read_table(files, columns=columns, partitioning=None)  # a folder may be called seed=1


def _check_same_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Note what the run is, or compare with what was noted."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    text = json.dumps(run, indent=2)
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise ParameterError(f"{folder} has the progress of another run: see its {SETTINGS_FILE}")

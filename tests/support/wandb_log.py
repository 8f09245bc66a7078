"""Reads the log of an offline run of Weights & Biases: LevelDB's log format around protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32768
HEADER_BYTES = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class LoggedRun:
    """What a log says of its run."""

    run: Any
    config: dict[str, Any]
    artifacts: list[Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int | None


def read_runs(folder: Path) -> dict[str, list[LoggedRun]]:
    """Read all offline runs of a folder, by type of job."""
    runs: dict[str, list[LoggedRun]] = {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        logged = read_run(path)
        runs.setdefault(logged.run.job_type, []).append(logged)
    return runs


def read_run(path: Path) -> LoggedRun:
    logged = LoggedRun(run=None, config={}, artifacts=[], history=[], summary={}, exit_code=None)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            logged.run = record.run
            logged.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            for item in record.config.update:
                logged.config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        elif kind == "artifact":
            logged.artifacts.append(record.artifact)
        elif kind == "history":
            logged.history.append({i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            for item in record.summary.update:
                logged.summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
        elif kind == "exit":
            logged.exit_code = record.exit.exit_code
    return logged


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2  # which takes a second

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, body = HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER_BYTES:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + HEADER_BYTES])
        position += HEADER_BYTES
        body += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record
            body = b""

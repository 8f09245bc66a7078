"""A backend in a process of its own: `Remote` starts one, and times what it does from inside.

The processes of all backends live at once and take turns: of each round, one works and the others sleep.
Requests and answers are lines of JSON; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measure.arrivals import Served, serve
from benchmarks.measure.comparison import is_ours
from benchmarks.measure.memory import memory_bytes
from benchmarks.measure.paths import REPOSITORY
from benchmarks.measure.server_process import end
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload
from benchmarks.peers.backends import StaticBatches
from benchmarks.peers.environments import python_of

ANSWER_TIMEOUT_S = 1800.0
"""A process that is silent for so long is killed."""
LOG = "log.txt"
_KINDS = {"fixed": Workload, "mixed": MixedWorkload}


class WorkerError(RuntimeError):
    """A backend's process ended or reported an error; the message has the end of what it printed."""


class Remote:
    """A backend that runs elsewhere, in the environment that has its packages.

    Args:
        name: of `benchmarks.peers.registry.BACKENDS`.
        checkpoint: what all backends have.
        folder: for what the backend makes of it, and its log.
        settings: replace those of the registry.
        variables: of the process's environment, beside those of the registry.

    Attributes:
        load_s: seconds to make it, conversion included where it had to be converted.
        pid: of its process.
        host, port: where one that is a service takes requests; else empty and 0.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Path,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        from benchmarks.peers.registry import BACKENDS

        self.name = name
        entry = BACKENDS[name]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / LOG).open("a+")  # other processes of this backend may write to it
        self._log_start = self._log.tell()
        self._process = subprocess.Popen(
            [
                str(python_of(entry.environment)),
                *("-m", "benchmarks.peers.worker", name),
                *(str(checkpoint.absolute()), str(folder.absolute() / "model"), json.dumps(settings or {})),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"DO_NOT_TRACK": "1"} | dict(entry.variables) | dict(variables or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = self._process.pid
        try:
            answer = self._answer()
        except WorkerError:
            self.close()
            raise
        self.load_s = float(answer["seconds"])
        self.host, self.port = str(answer["host"]), int(answer["port"])

    def generate(
        self,
        workload: Workload | MixedWorkload,
        *,
        greedy: bool = False,
        batch_size: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> TokenIds:
        """See Backend.

        Args:
            workload: what to run.
            greedy: without randomness, and one sample of each prompt.
            batch_size: of static batches; a backend that refills ignores it.
            seeds: one for each prompt, where the backend has them.
        """
        answer = self._run(workload, greedy=greedy, batch_size=batch_size, seeds=seeds)
        return [tuple(ids) for ids in answer["token_ids"]]

    def seconds(self, workload: Workload | MixedWorkload, *, batch_size: int | None = None) -> float:
        """Run the workload, and return how long it took.

        Raises:
            WorkerError: the tokens are not as many as asked for.
        """
        answer = self._run(workload, greedy=False, batch_size=batch_size)
        num_tokens = sum(map(len, answer["token_ids"]))
        if num_tokens != workload.num_tokens:
            raise WorkerError(f"{self.name} gave {num_tokens} tokens, not {workload.num_tokens}")
        return float(answer["seconds"])

    def serve(self, workload: MixedWorkload, at: Sequence[float], *, batch_size: int) -> list[Served]:
        """Send each request at its time, whether others are done or not: see `measure.arrivals`."""
        answer = self._ask(
            do="serve", kind="mixed", workload=asdict(workload), at=list(at), batch_size=batch_size
        )
        return [Served(*times) for times in answer["served"]]

    def margins(self, prompt: tuple[int, ...], token_ids: tuple[int, ...], *, top_k: int = 1) -> list[float]:
        """See Transformers.margins, which is the only backend that has them."""
        answer = self._ask(do="margins", prompt=prompt, token_ids=token_ids, top_k=top_k)
        return list(answer["margins"])

    def about(self) -> dict[str, Any]:
        """Its packages' versions, and whether torch is in its process."""
        about: dict[str, Any] = self._ask(do="about")["about"]
        return about

    def memory_mb(self) -> dict[str, float]:
        """Resident memory now, and at its most."""
        memory: dict[str, float] = self._ask(do="memory")["memory_mb"]
        return memory

    def close(self) -> None:
        """End the process; kill it where it does not end in END_TIMEOUT_S."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            end(self._process)
        for file in (self._process.stdin, self._process.stdout, self._log):
            if file is not None:
                file.close()

    def _run(self, workload: Workload | MixedWorkload, **how: Any) -> Mapping[str, Any]:
        kind = "fixed" if isinstance(workload, Workload) else "mixed"
        return self._ask(do="generate", kind=kind, workload=asdict(workload), **how)

    def _ask(self, **request: Any) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the missing answer tells
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            self._log.seek(self._log_start)
            end = " | ".join(self._log.read().splitlines()[-3:])
            raise WorkerError(f"{self.name}: {answer['error']}: {end}")
        return answer


def prepare(name: str, checkpoint: Path, folder: Path) -> None:
    """Let a backend convert the checkpoint, so that no conversion is in its memory or its time.

    What hgt_infer made before is made anew: it may be of another version of the exporter. An earlier log is
    removed.
    """
    (folder / LOG).unlink(missing_ok=True)
    if is_ours(name):
        shutil.rmtree(folder / "model", ignore_errors=True)
    print(f"{name}: preparing", file=sys.stderr, flush=True)
    Remote(name, checkpoint, folder).close()


def main(name: str, checkpoint: str, folder: str, settings: str = "{}") -> None:
    """Make the backend, and answer requests until standard input ends."""
    from benchmarks.peers.registry import BACKENDS

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    start = time.perf_counter()
    backend = BACKENDS[name].make(Path(checkpoint), Path(folder), **json.loads(settings))
    seconds = time.perf_counter() - start
    try:
        answer(seconds=seconds, host=getattr(backend, "host", ""), port=getattr(backend, "port", 0))
        for line in sys.stdin:
            try:
                answer(**_handle(name, backend, json.loads(line)))
            except Exception as error:
                answer(error=f"{type(error).__name__}: {error}")
    finally:
        if hasattr(backend, "close"):
            backend.close()


def _handle(name: str, backend: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "about":
        return {"about": _about(name)}
    if request["do"] == "memory":
        memory = memory_bytes(getattr(backend, "pid", "self"))
        return {"memory_mb": {name: memory[name] / 1e6 for name in ("resident", "peak")}}
    if request["do"] == "margins":
        margins = backend.margins(request["prompt"], request["token_ids"], top_k=request["top_k"])
        return {"margins": margins}
    workload = _workload(request)
    if request["do"] == "serve":
        return {"served": serve(backend, workload, request["at"], batch_size=request["batch_size"])}
    side = backend
    if hasattr(backend, "generate_padded") and isinstance(workload, MixedWorkload):
        side = StaticBatches(backend.generate_padded, request["batch_size"])
    seeds = {"seeds": request["seeds"]} if request.get("seeds") else {}
    start = time.perf_counter()
    token_ids = side.generate(workload, greedy=request["greedy"], **seeds)
    return {"seconds": time.perf_counter() - start, "token_ids": token_ids}


def _about(name: str) -> dict[str, Any]:
    from benchmarks.peers.registry import BACKENDS

    versions = {}
    for package in BACKENDS[name].packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"versions": versions, "is_torch_free": "torch" not in sys.modules}


def _workload(request: dict[str, Any]) -> Any:
    fields = {
        key: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for key, value in request["workload"].items()
    }
    return _KINDS[request["kind"]](**fields)


if __name__ == "__main__":
    main(*sys.argv[1:])

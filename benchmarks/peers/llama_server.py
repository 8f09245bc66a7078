"""llama.cpp's own HTTP server, llama-server, with its continuous batching, queue and tokenizer.

`make peers` builds it beside llama-cpp-python, from the same sources and for the machine at hand.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure.arrivals import Served
from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.http_client import Client
from benchmarks.measure.http_load import open_loop
from benchmarks.measure.server_process import ServerProcess
from benchmarks.measure.workloads import SEED, MixedWorkload, TokenIds, Workload
from benchmarks.peers.llama_cpp import LONGEST, NUM_SEQUENCES, convert


class LlamaServer:
    """From text to text, over HTTP on this machine.

    Args:
        checkpoint: is converted into the folder, once.
        quantization: see LlamaCpp.
        num_slots: how many requests it computes at once; more of them wait in its queue.
        is_unified: whether all slots share one cache, in which each reads past the rows of the others; else
            each has its own.

    Attributes:
        host, port: where it takes requests, OpenAI's route for completions among them.
        pid: of its process.

    Raises:
        FileNotFoundError: llama-server is not built here.
        RuntimeError: it did not start.
    """

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        *,
        quantization: str,
        num_slots: int = NUM_SEQUENCES,
        is_unified: bool = False,
    ) -> None:
        self.name = "llama_server" if quantization == "f32" else f"llama_server_{quantization}"
        path = folder / f"{quantization}.gguf"
        if not path.exists():
            convert(checkpoint, path, quantization)
        threads = str(num_physical_cores())
        cache = "--kv-unified" if is_unified else "--no-kv-unified"
        command = [
            str(find_llama_server()), "--model", str(path), "--host", "127.0.0.1", "--port", "0",
            "--parallel", str(num_slots), "--ctx-size", str(num_slots * LONGEST), cache,
            "--threads", threads, "--threads-batch", threads,
            # Every prompt is computed, as by all others; each of the benchmarks' texts comes more than once.
            "--no-cache-prompt", "--cache-ram", "0",
            "--samplers", "top_k;top_p;temperature", "--min-p", "0", "--repeat-penalty", "1",
            "--no-ui", "--no-slots", "--offline",
        ]  # fmt: skip
        if quantization == "f32":
            command += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
        self._process = ServerProcess(self.name, command)
        self.host, self.port, self.pid = self._process.host, self._process.port, self._process.pid

    def generate(
        self, workload: Workload | MixedWorkload, *, greedy: bool = False, seeds: Sequence[int] | None = None
    ) -> TokenIds:
        """All requests at once."""
        bodies = [
            {
                "prompt": prompt,
                "n_predict": length,
                "ignore_eos": True,
                "return_tokens": True,
                **workload.sampling,
                **({"temperature": 0.0} if greedy else {}),
            }
            for prompt, length in zip(workload.prompts, workload.lengths, strict=True)
            for _ in range(workload.n)
        ]

        async def ask(body: dict[str, Any]) -> tuple[int, ...]:
            with closing(Client(self.host, self.port)) as client:
                return tuple((await client.complete(body, path="/completion"))["tokens"])

        async def ask_all() -> TokenIds:
            return await asyncio.gather(
                *(
                    ask({**body, "seed": seeds[number] if seeds else SEED + number})
                    for number, body in enumerate(bodies)
                )
            )

        return asyncio.run(ask_all())

    def serve(self, workload: MixedWorkload, at: Sequence[float]) -> list[Served]:
        """Send each request at its time: see `measure.arrivals`."""
        replies = asyncio.run(open_loop(self, workload, at))
        return [Served(reply.first_token_s, reply.end_s) for reply in replies]

    def close(self) -> None:
        """End its process."""
        self._process.close()


def find_llama_server() -> Path:
    """The program that is installed with llama-cpp-python.

    Raises:
        FileNotFoundError: it is not there.
    """
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise FileNotFoundError("llama-cpp-python is not installed here")
    path = Path(package.origin).parents[1] / "bin" / "llama-server"
    if not path.is_file():
        raise FileNotFoundError(f"llama-cpp-python was installed without llama-server: {path}")
    return path

"""Code that is timed in a process of its own, from its first import on, with files in the page cache."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure.paths import REPOSITORY

FIRST_TOKEN = """
import json, sys, time
start = time.perf_counter()
from hgt_infer import Generator, SamplingParams
imported = time.perf_counter()
generator = Generator(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
generator.generate("abcd", SamplingParams(max_tokens=1))
end = time.perf_counter()
generator.generate("abcd", SamplingParams(max_tokens=1))
again = time.perf_counter()
times = {"import_s": imported - start, "load_s": loaded - imported, "generate_s": end - loaded}
print(json.dumps(times | {"again_s": again - end}))
generator.close()
"""
"""Arguments: an artifact and a device."""


def first_token_s(times: dict[str, float]) -> float:
    """Seconds from the first import to the first token, of what the code above prints."""
    return times["import_s"] + times["load_s"] + times["generate_s"]


def in_fresh_processes(
    code: str, *arguments: str, num_rounds: int, num_warmups: int = 1, timeout_s: float | None = None
) -> list[dict[str, float]]:
    """Run code in a process of its own for each round; the last line that it prints is an object of numbers.

    Raises:
        RuntimeError: a process failed; the message ends with the last line of its errors.
        subprocess.TimeoutExpired: a process took over timeout_s, and was ended.
    """
    results = []
    for _ in range(num_warmups + num_rounds):
        process = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if process.returncode != 0:
            raise RuntimeError(f"exit {process.returncode}: {process.stderr.strip().rpartition(chr(10))[2]}")
        results.append(json.loads(process.stdout.strip().splitlines()[-1]))
    return results[num_warmups:]

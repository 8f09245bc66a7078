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

TRANSFORMERS_FIRST_TOKEN = """
import json, sys, time
start = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
with torch.inference_mode():
    model.generate(**tokenizer("abcd", return_tensors="pt"), max_new_tokens=1, pad_token_id=0)
end = time.perf_counter()
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "generate_s": end - loaded}))
"""
"""Arguments: a checkpoint."""


def first_token_s(times: dict[str, float]) -> float:
    """Seconds from the first import to the first token, of what either code above prints."""
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

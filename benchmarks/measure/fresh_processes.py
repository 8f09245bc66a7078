"""Code that is timed in a process of its own, from its first import on, with files in the page cache."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure.environment import REPOSITORY

FIRST_TOKEN = """
import json, sys, time
start = time.perf_counter()
from hgt_infer import Generator, SamplingParams
imported = time.perf_counter()
generator = Generator(sys.argv[1], device="cpu")
loaded = time.perf_counter()
generator.generate("abcd", SamplingParams(max_tokens=1))
end = time.perf_counter()
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "generate_s": end - loaded}))
"""

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


def in_fresh_processes(
    code: str, *arguments: str, num_rounds: int, num_warmups: int = 1
) -> list[dict[str, float]]:
    """Run code in a process of its own for each round; it prints one object of numbers."""
    results = []
    for _ in range(num_warmups + num_rounds):
        process = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results.append(json.loads(process.stdout))
    return results[num_warmups:]

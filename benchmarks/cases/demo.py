"""What one checkpoint gives: export, samples, speed (`python -m benchmarks.cases.demo CHECKPOINT`)."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.comparison import Comparison, compare

PROMPT = "My dream is"
NUM_TWEETS = 5
SEED = 2021
NUM_NEW_TOKENS = 64
NUM_ROUNDS = 7


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cases.demo", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a GPT-2 checkpoint folder")
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=NUM_NEW_TOKENS, help="of each timed text (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    be_quiet()
    from hgt_infer import HgtInferError

    try:
        run(args.checkpoint, args.prompt, num_rounds=args.rounds, num_new_tokens=args.tokens)
    except HgtInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(checkpoint: Path, prompt: str, *, num_rounds: int, num_new_tokens: int) -> None:
    from benchmarks.measure.environment import num_physical_cores
    from benchmarks.measure.workloads import Workload
    from benchmarks.peers.backends import HgtInfer, Transformers, check_greedy

    print()
    artifact = export(checkpoint)
    ours = HgtInfer(artifact)

    texts = ours.generator(prompt, num_return_sequences=NUM_TWEETS, seed=SEED)
    print()
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    print(format_tweets([text["generated_text"] for text in texts], width))

    [output] = ours.generator.generate(prompt)
    workload = Workload(
        prompts=(prompt,),
        prompt_token_ids=(output.prompt_token_ids,),
        n=NUM_TWEETS,
        num_new_tokens=num_new_tokens,
    )
    num_threads = num_physical_cores()
    theirs = Transformers(checkpoint, num_threads=num_threads)
    check_greedy(ours, theirs, workload)
    comparison = compare(ours, theirs, workload, num_rounds=num_rounds)
    print()
    print(format_comparison(comparison, num_threads))


def export(checkpoint: Path) -> Path:
    """Export beside the checkpoint, and print one line: where to, how long, how far off the logits are."""
    from hgt_infer.export import export_checkpoint
    from hgt_infer.export.verify import compare

    output = checkpoint.with_name(f"{checkpoint.name}-artifact")
    print(f"Exporting to {output} …", end="", flush=True)
    start = time.perf_counter()
    artifact = export_checkpoint(checkpoint, output, force=True)
    seconds = time.perf_counter() - start
    difference = compare(artifact, transformers_logits(checkpoint))
    assert difference is not None  # fp32 runs on any CPU
    print(f" {seconds:.1f} s, logits within {difference.largest:.0e} of transformers'")
    return output


def transformers_logits(checkpoint: Path) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Token ids of a text → logits [NUM_STEPS, V] at its last tokens, as `export.verify` takes them."""
    import torch
    from transformers import AutoModelForCausalLM

    from hgt_infer.export.verify import NUM_STEPS

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32").eval()

    def last_logits(token_ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.tensor([token_ids])).logits[0, -NUM_STEPS:].numpy()
        return logits

    return last_logits


def format_tweets(texts: Sequence[str], width: int) -> str:
    """Numbered, each up to its first line break, wrapped to the width."""
    lines = []
    for number, text in enumerate(texts, 1):
        tweet = text.strip().split("\n", 1)[0].strip()
        lines += textwrap.wrap(tweet, width, initial_indent=f"{number:3}  ", subsequent_indent=" " * 5)
    return "\n".join(lines)


def format_comparison(comparison: Comparison, num_threads: int) -> str:
    """A heading of two lines, a line for each side and the ratio; no line over 80 characters."""
    workload, ratio = comparison.workload, comparison.ratio
    rows = [(name, f"{comparison.tokens_per_s(name):,.0f}", "tokens/s") for name in comparison.seconds]
    rows.append(("ratio", f"{ratio.median:.1f}", "×"))
    name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [
        f"{workload.batch_size} at once, {workload.num_new_tokens} tokens each, fp32 on {num_threads} CPU "
        f"thread{'s' * (num_threads != 1)}, in turns",
        f"(temperature {workload.temperature:g}, top_k {workload.top_k}, top_p {workload.top_p:g}, "
        "the same number of tokens on both sides)",
        *(f"     {name:<{name_width}}   {value:>{value_width}} {unit}" for name, value, unit in rows),
    ]
    num_rounds = len(next(iter(comparison.seconds.values())))
    lines[-1] += f"   ({ratio.low:.1f} to {ratio.high:.1f} in {num_rounds} rounds)"
    return "\n".join(lines)


def be_quiet() -> None:
    """Keep what other libraries say while they load out of the terminal; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import onnxruntime
    import transformers

    onnxruntime.set_default_logger_severity(3)  # errors
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())

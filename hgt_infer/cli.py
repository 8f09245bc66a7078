"""The hgt-infer command: generate text, score it, export a checkpoint, describe an artifact."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hgt_infer.artifact import read_artifact, verify_hashes
from hgt_infer.errors import HgtInferError, ParameterError
from hgt_infer.generator import Generator
from hgt_infer.sampling_params import SamplingParams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with one line on stderr for a known error."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING, format="%(message)s")
    try:
        parsed.run(parsed)
    except HgtInferError as error:
        print(f"hgt-infer: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hgt-infer", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is loaded and where it runs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="sample texts for prompts")
    generate.set_defaults(run=_generate)
    generate.add_argument("model", help="hub id, checkpoint folder or artifact folder")
    generate.add_argument("prompts", nargs="+", metavar="PROMPT")
    generate.add_argument("-n", type=int, default=1, help="samples of each prompt (default 1)")
    for name, kind in [
        ("max-tokens", int),
        ("min-tokens", int),
        ("temperature", float),
        ("top-k", int),
        ("top-p", float),
        ("min-p", float),
        ("typical-p", float),
        ("repetition-penalty", float),
        ("presence-penalty", float),
        ("frequency-penalty", float),
        ("no-repeat-ngram-size", int),
        ("seed", int),
    ]:
        generate.add_argument(f"--{name}", type=kind, help="default: the checkpoint's, else off")
    generate.add_argument(
        "--stop", action="append", metavar="TEXT", help="end a sample here; may be repeated"
    )
    generate.add_argument(
        "--stream", action="store_true", help="print the text as it comes: one prompt, -n 1"
    )
    generate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    generate.add_argument("--num-slots", type=int, help="sequences at once (default: what suits the device)")

    score = commands.add_parser("score", help="print each text's perplexity, tokens and log-probability")
    score.set_defaults(run=_score)
    score.add_argument("model", help="hub id, checkpoint folder or artifact folder")
    score.add_argument("texts", nargs="+", metavar="TEXT")
    score.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")

    export = commands.add_parser("export", help="write an artifact folder from a checkpoint folder")
    export.set_defaults(run=_export)
    export.add_argument("checkpoint", type=Path)
    export.add_argument("output", type=Path)
    export.add_argument(
        "--precision", default="fp32", help="fp32 or int8 for a CPU, fp16 for CUDA (default fp32)"
    )
    export.add_argument("--force", action="store_true", help="replace an existing artifact")

    info = commands.add_parser("info", help="describe an artifact folder and check its hashes")
    info.set_defaults(run=_info)
    info.add_argument("artifact", type=Path)
    return parser


def _generate(parsed: argparse.Namespace) -> None:
    given = vars(parsed)
    names = [field.name for field in dataclasses.fields(SamplingParams) if field.name in given]
    params = SamplingParams(**{name: given[name] for name in names})
    if parsed.stream and (len(parsed.prompts) > 1 or params.n > 1):
        raise ParameterError("--stream takes one prompt and -n 1")
    num_slots = "auto" if parsed.num_slots is None else parsed.num_slots
    with Generator(parsed.model, device=parsed.device, num_slots=num_slots) as generator:
        if parsed.stream:
            print(parsed.prompts[0], end="")
            for delta in generator.stream(parsed.prompts, params):
                print(delta.text, end="", flush=True)
            print()
            return
        for output in generator.generate(parsed.prompts, params, progress=sys.stderr.isatty()):
            for completion in output.completions:
                print(output.prompt + completion.text)


def _score(parsed: argparse.Namespace) -> None:
    with Generator(parsed.model, device=parsed.device) as generator:
        for score in generator.score(parsed.texts, progress=sys.stderr.isatty()):
            num_tokens = sum(logprob is not None for logprob in score.logprobs)
            print(f"{score.perplexity:10.2f} {num_tokens:6d} {score.logprob:12.4f}  {score.text!r:.80}")


def _export(parsed: argparse.Namespace) -> None:
    from hgt_infer.export import export_checkpoint, installed_references

    artifact = export_checkpoint(
        parsed.checkpoint,
        parsed.output,
        precision=parsed.precision,
        force=parsed.force,
        references=installed_references(),
    )
    print(artifact.path)


def _info(parsed: argparse.Namespace) -> None:
    artifact = read_artifact(parsed.artifact)
    verify_hashes(artifact)
    described = {
        "path": artifact.path,
        "precision": artifact.precision,
        **dataclasses.asdict(artifact.config),
        **dataclasses.asdict(artifact.generation_defaults),
    }
    for name, value in described.items():
        print(f"{name:20} {value!r}" if isinstance(value, str) else f"{name:20} {value}")

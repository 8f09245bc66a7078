"""The hgt-infer command: generate text, score it, serve it, export a checkpoint, describe what is there."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from hgt_infer.artifact.folder import CONFIG_FILE, read_artifact, verify_hashes
from hgt_infer.errors import HgtInferError, ParameterError
from hgt_infer.generator import Generator
from hgt_infer.outputs import GenerationOutput
from hgt_infer.sampling_params import SamplingParams, Setting, sampling_settings

API_KEYS = "HGT_INFER_API_KEYS"

app = typer.Typer(
    name="hgt-infer", help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

ModelArgument = Annotated[str, typer.Argument(help="Hub id, checkpoint folder or artifact folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option(help="auto; fp32 or int8 on a CPU, fp16 on CUDA.")]
SlotsOption = Annotated[
    int | None,
    typer.Option(help="Sequences at once on a device. [default: what suits it]", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
NOT_OPTIONS = (
    *("logit_bias", "allowed_token_ids", "bad_words", "stop_token_ids", "logits_processor"),
    *("logprobs", "prompt_logprobs"),
)
"""Settings of sampling that a command line cannot hold, or whose results it does not show."""


def takes_sampling_params(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting of sampling; it gets them all as `params`."""
    settings = [setting for name, setting in sampling_settings().items() if name not in NOT_OPTIONS]

    @wraps(command)
    def run(**given: Any) -> None:
        own = {setting.name: given.pop(setting.name) for setting in settings}
        command(**given, params=SamplingParams(**{**own, "stop": own["stop"] or None}))

    others = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [one for one in others if one.name != "params"]
    arguments = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]
    options = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    run.__signature__ = inspect.Signature([*arguments, *map(_option, settings), *options])  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _option(setting: Setting) -> inspect.Parameter:
    """A setting of sampling as typer takes an option."""
    names = [f"--{setting.name.replace('_', '-')}", *(["-n"] if setting.name == "n" else [])]
    kind, metavar = setting.type, None
    description = setting.description[:1].upper() + setting.description[1:]
    if setting.name == "stop":
        kind, metavar = list[str] | None, "TEXT"
        description += " May be repeated."
    elif setting.default is None:
        kind |= None
    option = typer.Option(*names, help=description, metavar=metavar, show_default=setting.name == "n")
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=setting.default,
        annotation=Annotated[kind, option],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0; 1 where a service ended because an engine died; 2, with one line on stderr, for a known error or a
    wrong use; 130 where it was interrupted.
    """
    try:
        status = app(arguments, prog_name="hgt-infer", standalone_mode=False)
    except HgtInferError as error:
        return _complain(str(error))
    except typer.TyperException as error:  # a wrong use
        # Where there is no message, it was asked for nothing and has shown its help.
        return _complain(error.format_message()) if error.format_message() else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status if isinstance(status, int) else 0


def _complain(message: str) -> int:
    print(f"hgt-infer: {message}", file=sys.stderr)
    return 2


@app.callback()
def _start(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is loaded and where it runs.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@app.command()
@takes_sampling_params
def generate(
    model: ModelArgument,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to go on from; none: the lines of standard input.")
    ] = None,
    *,
    params: SamplingParams,
    file: Annotated[Path | None, typer.Option(help="A file with a prompt in each line.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the text as it comes: one prompt, -n 1.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each sample, for programs.")
    ] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    num_slots: SlotsOption = None,
) -> None:
    """Sample texts for prompts. What is not given is the checkpoint's own setting."""
    if prompts and file is not None:
        raise ParameterError("prompts come as arguments or out of --file, not both")
    if stream and (len(prompts or ()) != 1 or max(params.n, params.best_of or 1) > 1 or as_json):
        raise ParameterError("--stream takes one prompt and -n 1, without --json")
    with ExitStack() as stack:
        texts: Iterable[str] = prompts or stack.enter_context(_lines(file))
        generator = stack.enter_context(_open(model, device, precision, num_slots))
        if stream:
            print(next(iter(texts)), end="")
            for delta in generator.stream([*texts], params):
                print(delta.text, end="", flush=True)
            print()
            return
        for output in generator.generate_iterable(texts, params, progress=sys.stderr.isatty()):
            for line in _lines_of(output, as_json):
                print(line, flush=True)


@contextmanager
def _lines(path: Path | None) -> Iterator[Iterator[str]]:
    """The lines of a file, or of standard input, without their ends; empty ones are left out."""
    try:
        file = sys.stdin if path is None else path.open(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"--file {path}: {error.strerror}") from error
    try:
        yield filter(None, (line.rstrip("\r\n") for line in file))
    except UnicodeDecodeError as error:
        raise ParameterError(f"prompts must be UTF-8: {error.reason}") from error
    finally:
        if path is not None:
            file.close()


def _lines_of(output: GenerationOutput, as_json: bool) -> Iterator[str]:
    for completion in output.completions:
        if not as_json:
            yield output.prompt + completion.text
            continue
        record = {
            "prompt": output.prompt,
            "index": completion.index,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.token_ids),
            "seed": output.seed,
        }
        yield json.dumps(record, ensure_ascii=False)


@app.command()
def score(
    model: ModelArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts to score.")],
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Print each text's perplexity, tokens and log-probability."""
    with _open(model, device, precision, None) as generator:
        for result in generator.score(texts, progress=sys.stderr.isatty()):
            num_tokens = sum(logprob is not None for logprob in result.logprobs)
            if as_json:
                record = {
                    "text": result.text,
                    "perplexity": result.perplexity,
                    "num_tokens": num_tokens,
                    "logprob": result.logprob,
                }
                print(json.dumps(record, ensure_ascii=False))
            else:
                print(
                    f"{result.perplexity:10.2f} {num_tokens:6d} {result.logprob:12.4f}  {result.text!r:.80}"
                )


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    output: Annotated[Path, typer.Argument(help="Artifact folder to write.")],
    precision: Annotated[str, typer.Option(help="fp32 or int8 for a CPU, fp16 for CUDA.")] = "fp32",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an artifact folder from a checkpoint folder."""
    from hgt_infer.export import export_checkpoint
    from hgt_infer.opening import verification_device

    artifact = export_checkpoint(
        checkpoint, output, precision=precision, force=force, open_device=verification_device
    )
    print(
        json.dumps({"path": str(artifact.path), "precision": artifact.precision})
        if as_json
        else artifact.path
    )


@app.command()
def info(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")], as_json: JsonOption = False
) -> None:
    """Describe an artifact folder, and check its hashes."""
    found = read_artifact(artifact)
    verify_hashes(found)
    files = json.loads((found.path / CONFIG_FILE).read_text(encoding="utf-8"))["files"]
    described: dict[str, Any] = {
        "path": str(found.path),
        "precision": found.precision,
        **dataclasses.asdict(found.config),
        **dataclasses.asdict(found.generation_defaults),
        "files": files,
    }
    if as_json:
        print(json.dumps(described))
        return
    del described["files"]
    for name, value in described.items():
        print(f"{name:20} {value!r}" if isinstance(value, str) else f"{name:20} {value}")
    for name, entry in files.items():
        print(f"{name:24} {entry['size_bytes']:>14,} bytes  sha256 {entry['sha256']}")


@app.command()
def doctor(as_json: JsonOption = False) -> int:
    """Tell which devices and libraries are here, and what is missing; status 1 where nothing can run."""
    from hgt_infer.doctor import examine

    findings = [*examine()]
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.state:8} {finding.name:24} {finding.what}")
    return 1 if any(finding.state == "broken" for finding in findings) else 0


@app.command()
def serve(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL…", help="Hub id, checkpoint or artifact folder, under a name of one's own."
        ),
    ],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that running requests have to end after a signal.")
    ] = 30,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Largest body of a request.")] = 1 << 20,
    max_tokens_per_request: Annotated[
        int, typer.Option(min=1, help="Most prompts · samples · max_tokens.")
    ] = 65_536,
    max_concurrent_requests: Annotated[
        int, typer.Option(min=1, help="More are told to try again later.")
    ] = 1_024,
    max_queued_sequences: Annotated[int, typer.Option(help="That wait for a slot, per model.")] = 4_096,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    num_slots: SlotsOption = None,
) -> int:
    """Serve models over HTTP as OpenAI does, with a page to try them at /.

    API keys, where requests need one, are in the environment: HGT_INFER_API_KEYS, separated by commas.
    """
    try:
        from hgt_infer.server import Limits
        from hgt_infer.server import serve as run
    except ModuleNotFoundError as error:
        raise ParameterError(f"{error.name} is missing: pip install 'hgt-infer[serve]'") from error
    logging.getLogger("hgt_infer").setLevel(logging.INFO)
    keys = [key for key in os.environ.get(API_KEYS, "").split(",") if key]
    with ExitStack() as stack:
        generators: dict[str, Generator] = {}
        for name, path in map(_named, model):
            if name in generators:
                raise ParameterError(f"two models are called {name}: give one another name, NAME=MODEL")
            generator = _open(path, device, precision, num_slots, max_queued_sequences=max_queued_sequences)
            generators[name] = stack.enter_context(generator)
            generator.warmup()
        return run(
            generators,
            host=host,
            port=port,
            grace_s=grace,
            api_keys=keys,
            limits=Limits(
                max_body_bytes=max_body_bytes,
                max_tokens_per_request=max_tokens_per_request,
                max_concurrent_requests=max_concurrent_requests,
            ),
        )


def _named(given: str) -> tuple[str, str]:
    """NAME=MODEL, or a model by the last part of its path or id."""
    name, separator, path = given.partition("=")
    if separator:
        return name, path
    return Path(given).name or Path(given).resolve().name, given


def _open(model: str, device: str, precision: str, num_slots: int | None, **settings: Any) -> Generator:
    slots = "auto" if num_slots is None else num_slots
    return Generator(model, device=device, precision=precision, num_slots=slots, **settings)

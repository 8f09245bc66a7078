"""`python -m training publish`: a checkpoint, its ONNX artifact and its card go to the hub, in one commit.

Only files that are named here go; the card is written anew for the repository. What an earlier commit had
under these names and this one has not, goes from the repository.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from training.card.model_card import PICTURES, write_card
from training.errors import TrainingError

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors.index.json",
)
RECORDS = ("dataset.json", "training.json", "metrics.jsonl", "sweep.json", "samples.json")
ONNX_FOLDER = "onnx"
_WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors")


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint.")],
    *,
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Made where it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    no_onnx: Annotated[bool, typer.Option("--no-onnx", help="Leave the ONNX artifact out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and ask nobody.")] = False,
) -> None:
    """Upload a checkpoint to the hub.

    The hub's token is read from HF_TOKEN, or is that of `hf auth login`.

    Raises:
        TrainingError: the folder is no checkpoint, the name none, there is no token, or the hub refuses.
    """
    check_repo(repo)
    files = checkpoint_files(folder)
    token = None if dry_run else hub_token()
    with tempfile.TemporaryDirectory() as temporary:
        staged = stage(folder, files, Path(temporary, "repo"), repo=repo, onnx=not no_onnx)
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        for path in paths:
            print(f"{path.stat().st_size:>15,}  {path.relative_to(staged)}")
        print(f"{sum(path.stat().st_size for path in paths):>15,}  bytes in {len(paths)} files")
        if token is None:
            print(f"dry run: nothing was sent to {repo}")
        else:
            print(f"published as {upload(staged, repo, token=token, private=private)}")


def check_repo(repo: str) -> None:
    """Check that the hub can have a model of this name.

    Raises:
        TrainingError: it cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined,unused-ignore]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        valid = False
    else:
        valid = repo.count("/") == 1
    if not valid:
        raise TrainingError(f"repo {repo[:200]!r} is not a name of the hub, of the form user/name")


def hub_token() -> str:
    """Return the token of the hub.

    Raises:
        TrainingError: there is none.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise TrainingError("there is no token of the hub: set HF_TOKEN, or use `hf auth login`")
    return token


def checkpoint_files(folder: Path) -> list[str]:
    """Return the names of the folder's files that are published.

    Raises:
        TrainingError: the folder lacks configuration, weights (safetensors) or tokenizer.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    weights = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in _WEIGHTS)]
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not weights:
        missing.append("model.safetensors")
    if missing:
        raise TrainingError(f"{folder} is not a checkpoint: it has no {', '.join(missing)}")
    allowed = {*MODEL_FILES, *RECORDS, *PICTURES, *weights}
    return [name for name in names if name in allowed]


def stage(folder: Path, files: list[str], staged: Path, *, repo: str, onnx: bool) -> Path:
    """Put everything that goes into a folder of its own, and return it.

    The card is written from the records; a folder without them goes without a card.

    Args:
        folder: the checkpoint.
        files: names in it.
        staged: the folder to make.
        repo: what the card names.
        onnx: whether to export the ONNX artifact (fp32) into `onnx/`.

    Raises:
        TrainingError: it is not a GPT-2 that can be exported, or its records are not those of a training.
    """
    staged.mkdir()
    for name in files:
        shutil.copyfile(folder / name, staged / name)
    if {"dataset.json", "training.json"} <= set(files):
        try:
            write_card(staged, repo=repo)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TrainingError(f"no card can be made of {folder}'s records: {reason[:200]}") from error
    else:
        print("without a card: there is no dataset.json and training.json to make one of")
    if onnx:
        from hgt_infer import HgtInferError
        from hgt_infer.export import export_checkpoint

        try:
            export_checkpoint(folder, staged / ONNX_FOLDER)
        except HgtInferError as error:
            raise TrainingError(f"{folder} cannot be exported: {error}") from error
    return staged


def upload(staged: Path, repo: str, *, token: str, private: bool) -> str:
    """Upload a folder as one commit and return the repository's address.

    Raises:
        TrainingError: the hub refuses or does not answer, or a repository that should be private is public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
    api = HfApi(token=token)
    # Errors of the hub and of requests' connections are OSErrors; from version 1 on the client uses httpx. A
    # card that the hub rejects is a ValueError.
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_httpx_errors())
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise TrainingError(
                f"{repo} is there already, and is public: make it private, or leave --private out"
            )
        api.upload_folder(
            folder_path=staged,
            repo_id=repo,
            commit_message="Upload a model and its card",
            delete_patterns=[*MODEL_FILES, *RECORDS, *PICTURES, *_WEIGHTS, f"{ONNX_FOLDER}/*"],
        )
    except TrainingError:
        raise
    except failures as error:
        reason = " ".join(str(error).split()).replace(token, "…")
        raise TrainingError(f"the hub did not take {repo}: {reason[:300]}") from error
    return str(address)


def _httpx_errors() -> tuple[type[Exception], ...]:
    httpx: Any = sys.modules.get("httpx")
    return (httpx.HTTPError,) if httpx else ()

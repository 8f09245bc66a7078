"""From a hub id, a checkpoint folder or an artifact folder to an artifact, through a cache.

Checkpoints are exported once: the cache is keyed by their content. The export itself is
`hgt_infer.export`'s, and is imported where it is needed only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import filelock

from hgt_infer.artifact.checked_json import format_error
from hgt_infer.artifact.folder import (
    CONFIG_FILE,
    Artifact,
    check_precision,
    is_artifact,
    read_artifact,
)
from hgt_infer.cache_folder import cache_folder
from hgt_infer.checks import shown
from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError
from hgt_infer.runtime.device import OpenDevice, no_device

logger = logging.getLogger(__name__)

_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# The first kind that is there holds the weights: as transformers does, safetensors before pickles.
_WEIGHT_FILES = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
_SAFETENSORS_FILES = [pattern for kind in _WEIGHT_FILES[:2] for pattern in kind]
_PICKLE_FILES = [pattern for kind in _WEIGHT_FILES[2:] for pattern in kind]

_MAX_HUB_ID_CHARACTERS = 96
_HUB_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_HUB_NAME}/)?{_HUB_NAME}", re.ASCII)


def load_artifact(
    model: str | os.PathLike[str],
    *,
    precision: str,
    or_of_artifact: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    open_device: OpenDevice = no_device,
) -> Artifact:
    """Return the artifact of `model`, exported into the cache where it is not one yet.

    Several processes may load the same checkpoint at once: one exports, the others wait. A cache
    entry that is damaged is made anew. Downloads go through huggingface_hub, which has a cache of its
    own and follows HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        model: an artifact folder, which is used where it lies, a checkpoint folder, or a hub id such as
            "huggingtweets/lilyw12_" or "gpt2". A folder that exists wins over a hub id; a path object
            is never a hub id.
        precision: "fp32", "fp16" or "int8". An artifact folder must have it already.
        or_of_artifact: what an artifact folder may have instead.
        cache_dir: where exported checkpoints are kept; None for `$HGT_INFER_CACHE`, else
            `$XDG_CACHE_HOME/hgt_infer`, else `~/.cache/hgt_infer`.
        open_device: as in `export_checkpoint`.

    Raises:
        ParameterError: `precision` is unknown, or `model` is empty.
        ModelNotFoundError: no folder and no model on the hub has this name, or the hub is out of reach
            and the model is not in its cache.
        ModelFormatError: the folder is neither an artifact of such a precision nor a GPT-2 checkpoint.
        OSError: a download broke off, or a cache cannot be written.

    Example:
        artifact = load_artifact("huggingtweets/lilyw12_", precision="fp16")
    """
    check_precision(precision)
    _check_path("model", "a folder or a hub id", model)
    if cache_dir is not None:
        _check_path("cache_dir", "a folder", cache_dir)
    folder = Path(model)
    if folder.is_file():
        raise format_error(folder, "a folder", "a file")
    if not folder.is_dir():
        folder = download(model)
    elif is_artifact(folder):
        artifact = read_artifact(folder)
        accepted = dict.fromkeys((precision, *or_of_artifact))
        if artifact.precision not in accepted:
            raise format_error(
                folder, f"an artifact of precision {' or '.join(accepted)}", artifact.precision
            )
        return artifact
    if not (folder / CONFIG_FILE).is_file():
        raise format_error(folder, f"an artifact or a checkpoint, with {CONFIG_FILE}", "none")
    return _export_once(folder, precision, cache_folder(cache_dir), open_device)


def _check_path(name: str, allowed: str, value: object) -> None:
    """Raise ParameterError unless value is a path that the file system can look for."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    message = f"{name} must be {allowed}; got {shown(path if isinstance(path, str) else value)}"
    if not isinstance(path, str) or not path:
        raise ParameterError(message)
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, NUL, a lone surrogate
        raise ParameterError(message) from error


def _export_once(checkpoint: Path, precision: str, cache: Path, open_device: OpenDevice) -> Artifact:
    from hgt_infer.export import EXPORTER_VERSION, export_checkpoint

    key = content_key(checkpoint, f"{EXPORTER_VERSION} {precision}")
    entry = cache / key
    artifact = _read_entry(entry, precision)
    if artifact is not None:
        return artifact
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"{key}.lock"):
        artifact = _read_entry(entry, precision)  # another process may have exported meanwhile
        if artifact is not None:
            return artifact
        shutil.rmtree(entry, ignore_errors=True)
        for left_over in cache.glob(f".{key}.*.tmp"):  # of an export that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        logger.info("exporting %s in %s to %s", checkpoint, precision, entry)
        return export_checkpoint(checkpoint, entry, precision=precision, open_device=open_device)


def _read_entry(entry: Path, precision: str) -> Artifact | None:
    try:
        artifact = read_artifact(entry)
    except ModelNotFoundError:
        return None
    except ModelFormatError as error:
        logger.warning("the cache entry is damaged and made anew: %s", error)
        return None
    return artifact if artifact.precision == precision else None


def content_key(checkpoint: Path, version: str) -> str:
    """Return a SHA-256 over `version` and the names and contents of the files that an export reads."""
    digest = hashlib.sha256(version.encode())
    for path in _files(checkpoint):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        digest.update(f"\n{path.name} {content.hexdigest()}".encode())
    return digest.hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    texts = [path for path in (checkpoint / name for name in _TEXT_FILES) if path.is_file()]
    for first, *others in _WEIGHT_FILES:
        if (checkpoint / first).is_file():
            shards = [path for pattern in others for path in checkpoint.glob(pattern)]
            return [*texts, checkpoint / first, *sorted(shards)]
    kinds = ", ".join(first for first, *_ in _WEIGHT_FILES)
    raise format_error(checkpoint, f"weights in one of {kinds}", "none (was its download interrupted?)")


def download(model: str | os.PathLike[str]) -> Path:
    """Return the folder of the hub's cache that has the checkpoint, downloaded where it has changed."""
    folder = Path(model).absolute()
    if not isinstance(model, str):
        raise ModelNotFoundError(f"no folder at {folder}")
    is_id = len(model) <= _MAX_HUB_ID_CHARACTERS and _HUB_ID.fullmatch(model)
    if not is_id or ".." in model or "--" in model:
        raise ModelNotFoundError(f"no folder at {folder}, and {model!r} is no hub id (name or owner/name)")

    import huggingface_hub  # slow to import
    from huggingface_hub import constants, errors

    missing = f"no folder at {folder}, and no model {model!r} on {constants.ENDPOINT}"
    try:
        files = [*_TEXT_FILES, *_SAFETENSORS_FILES]
        snapshot = Path(huggingface_hub.snapshot_download(model, allow_patterns=files))
        if not any((snapshot / first).is_file() for first, *_ in _WEIGHT_FILES):
            files = [*_TEXT_FILES, *_PICKLE_FILES]
            snapshot = Path(huggingface_hub.snapshot_download(model, allow_patterns=files))
    except errors.GatedRepoError as error:
        raise ModelNotFoundError(f"{missing} for this HF_TOKEN: access must be asked for there") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"{missing} (a private one needs HF_TOKEN)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelNotFoundError(
            f"no folder at {folder}, and no model {model!r} in the hub's cache, "
            f"{constants.HF_HUB_CACHE} ({why})"
        ) from error
    return snapshot

"""The artifact folder: which files it has, how it is written at once, read and checked.

An artifact is the decoder, `model.onnx`, and the CPU's sampler, `sampler.onnx`; for a CPU both once more in
our own operators, `kernels.onnx` and `kernels_sampler.onnx`; the decoders' weights, `model.onnx.data`;
`tokenizer.json`; `generation_config.json`; and `config.json`, which names the sizes and hashes of the others.
Making the graphs is `hgt_infer.export`'s, running them the runners'.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hgt_infer.artifact.checked_json import check_integer, check_keys, format_error, read_json_object
from hgt_infer.artifact.config import (
    GenerationDefaults,
    ModelConfig,
    parse_generation_defaults,
    parse_model_config,
)
from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError

FORMAT = "hgt-infer"
FORMAT_VERSION = 5
READABLE_VERSIONS = (4, FORMAT_VERSION)
"""Version 4 has no graph for the kernels, and its weights are plain matrices."""

PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "float32"}
"""Precision → NumPy's type of activations, cache and logits; int8 is that of matrices alone. fp16 runs on
CUDA, the others on a CPU."""

KERNEL_CACHE_TYPES = {"fp32": "float32", "int8": "float16"}
"""Precision → NumPy's type of the cache of the kernels' graph, where there is one."""

CACHE_BLOCK = 16
"""Positions of a block of that cache."""

MODEL_FILE = "model.onnx"
KERNEL_FILE = "kernels.onnx"
KERNEL_SAMPLER_FILE = "kernels_sampler.onnx"
EXTERNAL_DATA_FILE = "model.onnx.data"
SAMPLER_FILE = "sampler.onnx"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

_KERNEL_FILES = (KERNEL_FILE, KERNEL_SAMPLER_FILE)
_GRAPH_FILES = (MODEL_FILE, SAMPLER_FILE, *_KERNEL_FILES)
_REQUIRED_FILES = (MODEL_FILE, SAMPLER_FILE, TOKENIZER_FILE, GENERATION_CONFIG_FILE)
_OPTIONAL_FILES = (*_KERNEL_FILES, EXTERNAL_DATA_FILE)
_CONFIG_KEYS = {"format", "format_version", "precision", "model", "files"}
_SMALL_FILE_BYTES = 16 << 20  # hashed at every read: 11 ms at 1.5 GB/s
# In a serialized graph: the key of a weight's external_data, without the one value that we write.
_OTHER_LOCATION = re.compile(
    rb"\x08location(?!\x12%c%b)(?:\x12(.))?(.{0,100})"
    % (len(EXTERNAL_DATA_FILE), re.escape(EXTERNAL_DATA_FILE.encode())),
    re.DOTALL,
)


@dataclass(frozen=True)
class Artifact:
    """An artifact folder that has been read and checked by `read_artifact`.

    Attributes:
        path: the folder.
        config: the model's sizes.
        precision: "fp32", "fp16" or "int8", of the weights.
        generation_defaults: the settings of a call that names none.
        has_kernel_graphs: whether it has decoder and sampler in the operators of `hgt_infer.kernels` too.
    """

    path: Path
    config: ModelConfig
    precision: str
    generation_defaults: GenerationDefaults
    has_kernel_graphs: bool

    @property
    def float_type(self) -> str:
        """NumPy's name of the type of activations, cache and logits."""
        return PRECISIONS[self.precision]

    @property
    def model_path(self) -> Path:
        """The decoder's ONNX graph."""
        return self.path / MODEL_FILE

    @property
    def kernel_path(self) -> Path:
        """The decoder's graph for the kernels, where has_kernel_graphs."""
        return self.path / KERNEL_FILE

    @property
    def kernel_sampler_path(self) -> Path:
        """The sampler's graph for the kernels, where has_kernel_graphs."""
        return self.path / KERNEL_SAMPLER_FILE

    @property
    def sampler_path(self) -> Path:
        """The sampler's ONNX graph, which runs on the CPU."""
        return self.path / SAMPLER_FILE

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer, in the format of the tokenizers library."""
        return self.path / TOKENIZER_FILE


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read the artifact folder at `path` and check it.

    The sizes of all files are compared with those in `config.json`, and the hashes of files up to
    16 MiB; `verify_hashes` reads the large ones too.

    Args:
        path: the folder.

    Raises:
        ModelNotFoundError: there is no such folder.
        ModelFormatError: it is not an artifact of this format version, or a file was changed.

    Example:
        artifact = read_artifact("exported/lilyw12_")
        print(artifact.precision, artifact.config.n_layer)
    """
    folder = Path(path)
    precision, config, listed = _read_config(folder)
    for name, (size_bytes, sha256) in listed.items():
        _check_size(folder, name, size_bytes)
        if size_bytes <= _SMALL_FILE_BYTES:
            _check_sha256(folder, name, sha256)
            if name in _GRAPH_FILES:
                _check_external_data(folder / name)
    generation_path = folder / GENERATION_CONFIG_FILE
    defaults = parse_generation_defaults(
        read_json_object(generation_path), vocab_size=config.vocab_size, path=generation_path
    )
    return Artifact(folder, config, precision, defaults, has_kernel_graphs={*_KERNEL_FILES} <= listed.keys())


def verify_hashes(artifact: Artifact) -> None:
    """Compare every file of `artifact`, the weights too, with its SHA-256 in `config.json`.

    Raises:
        ModelFormatError: a file is not the one that was exported.
    """
    _, _, listed = _read_config(artifact.path)
    for name, (size_bytes, sha256) in listed.items():
        _check_size(artifact.path, name, size_bytes)
        _check_sha256(artifact.path, name, sha256)


@contextmanager
def new_artifact(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which becomes `path` when the block ends.

    The folder is removed when the block raises: a half-written artifact is never seen at `path`.

    Args:
        path: where the artifact shall be; missing parents are made.
        force: replace an artifact (or an empty folder) that is there. Nothing else is replaced.

    Raises:
        ParameterError: `path` exists, and `force` is False or it is not an artifact.

    Example:
        with new_artifact("exported/lilyw12_") as folder:
            ...  # write the graphs and tokenizer.json
            write_metadata(folder, config, "fp32", generation_defaults)
    """
    target = Path(path).absolute()
    _check_replaceable(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        _check_replaceable(target, force=force)
        if target.exists():
            _replace(target, temporary)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_metadata(
    folder: Path, config: ModelConfig, precision: str, generation_defaults: GenerationDefaults
) -> None:
    """Write `generation_config.json`, then `config.json` with the sizes and hashes of all files.

    Args:
        folder: has the graphs and `tokenizer.json` already, and `model.onnx.data` if there is one.
        config: the model's sizes.
        precision: of the weights, one of PRECISIONS.
        generation_defaults: the settings of a call that names none.

    Raises:
        ParameterError: another precision.
        FileNotFoundError: one of the files is not there.
    """
    check_precision(precision)
    _write_json(folder / GENERATION_CONFIG_FILE, asdict(generation_defaults))
    names = [*_REQUIRED_FILES, *(name for name in _OPTIONAL_FILES if (folder / name).exists())]
    _write_json(
        folder / CONFIG_FILE,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "precision": precision,
            "model": asdict(config),
            "files": {
                name: {"size_bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
                for name in names
            },
        },
    )


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether the folder at `path` says that it is an artifact, whole or damaged."""
    try:
        return read_json_object(Path(path) / CONFIG_FILE).get("format") == FORMAT
    except (OSError, ModelFormatError):
        return False


def check_precision(precision: str) -> None:
    """Raise ParameterError unless `precision` is one that an artifact can have."""
    if precision not in PRECISIONS:
        raise ParameterError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")


def _read_config(folder: Path) -> tuple[str, ModelConfig, dict[str, tuple[int, str]]]:
    """Return precision, sizes, and of each listed file its size in bytes and SHA-256."""
    if not folder.exists():
        raise ModelNotFoundError(f"no artifact folder at {folder}")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise format_error(folder, f"an artifact folder with {CONFIG_FILE}", "none")
    _check_inside(folder, CONFIG_FILE)
    values = read_json_object(path)
    if values.get("format") != FORMAT:
        raise format_error(path, f'"format": "{FORMAT}"', values.get("format"))
    version = values.get("format_version")
    if version not in READABLE_VERSIONS:
        expected = " or ".join(map(str, READABLE_VERSIONS))
        raise format_error(path, f"format_version {expected} (export the checkpoint again)", version)
    check_keys(path, "the artifact", values, _CONFIG_KEYS)
    precision = values["precision"]
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise format_error(path, f"precision to be one of {', '.join(PRECISIONS)}", precision)
    for name in ("model", "files"):
        if not isinstance(values[name], dict):
            raise format_error(path, f"{name} to be an object", values[name])
    listed = _parse_files(path, values["files"])
    for name in _OPTIONAL_FILES:
        if name not in listed and (folder / name).exists():
            raise format_error(path, f"{name} to be listed, as it is there", sorted(listed))
    return precision, parse_model_config(values["model"], path=path), listed


def _parse_files(path: Path, values: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    # Known plain names only: no path out of the folder can be written in config.json.
    if not {*_REQUIRED_FILES} <= values.keys() <= {*_REQUIRED_FILES, *_OPTIONAL_FILES}:
        expected = f"files {', '.join(_REQUIRED_FILES)} and perhaps {', '.join(_OPTIONAL_FILES)}"
        raise format_error(path, expected, sorted(values))
    listed = {}
    for name, entry in values.items():
        if not isinstance(entry, dict) or entry.keys() != {"size_bytes", "sha256"}:
            raise format_error(path, f"size_bytes and sha256 for {name}", entry)
        sha256 = entry["sha256"]
        if not isinstance(sha256, str) or len(sha256) != 64:
            raise format_error(path, f"sha256 of {name} as 64 hexadecimal digits", sha256)
        listed[name] = (check_integer(path, "size_bytes", entry["size_bytes"], 1, 1 << 50), sha256)
    return listed


def _check_inside(folder: Path, name: str) -> None:
    resolved = (folder / name).resolve()
    if resolved.parent != folder.resolve():
        raise format_error(folder / name, "a file inside the folder", f"a link to {resolved}")


def _check_size(folder: Path, name: str, size_bytes: int) -> None:
    path = folder / name
    if not path.is_file():
        raise format_error(path, f"a file of {size_bytes} bytes", "none")
    _check_inside(folder, name)
    found = path.stat().st_size
    if found != size_bytes:
        raise format_error(path, f"{size_bytes} bytes", f"{found} bytes")


def _check_sha256(folder: Path, name: str, sha256: str) -> None:
    found = _sha256(folder / name)
    if found != sha256:
        raise format_error(folder / name, f"SHA-256 {sha256}", found)


def _check_external_data(path: Path) -> None:
    """Refuse a graph with weights in a file that config.json does not list, and so does not vouch for.

    These are bytes compared, not the graph read: a graph may be written so as to pass. What lies outside
    the folder is safe even so: ONNX Runtime follows no path and no link out of it.
    """
    found = _OTHER_LOCATION.search(path.read_bytes())
    if found:
        length, text = found.groups(default=b"\xff")
        raise format_error(path, f"weights in {EXTERNAL_DATA_FILE} alone", f"{text[: length[0]]!r}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_replaceable(target: Path, *, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise ParameterError(f"{target} exists; force=True replaces an artifact that is there")
    empty = target.is_dir() and not any(target.iterdir())
    if target.is_symlink() or not (empty or is_artifact(target)):
        raise ParameterError(f"{target} is not an artifact folder, and nothing else is replaced")


def _replace(target: Path, temporary: Path) -> None:
    # A folder that is not empty cannot be renamed over: the old one steps aside, and back on failure.
    old = temporary.with_suffix(".old.tmp")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")

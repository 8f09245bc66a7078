"""The weights of a checkpoint folder, read from safetensors or pickles, whole or in shards, and converted.

Every weight is checked for its name, shape, type and values before any is used. No pickled code is run.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (tells NumPy, and so safetensors, what bfloat16 is)
import numpy as np
import safetensors
from numpy.typing import NDArray

from hgt_infer.artifact.checked_json import format_error, read_json_object
from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import PRECISIONS
from hgt_infer.errors import ModelFormatError

logger = logging.getLogger(__name__)

_MAX_INDEX_BYTES = 64 << 20  # that of a whole gpt2-xl has under 0.1 MB
_SHARD_NAME = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)", re.ASCII)
_ATTENTION_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)", re.ASCII)
_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_MAX_NAMES_SHOWN = 40


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of a model whose output layer is the token embedding.

    Matrices of a block are stored [in, out], embeddings [rows, n_embd].
    """
    H, inner = config.n_embd, config.n_inner
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, H),
        "wpe.weight": (config.n_positions, H),
    }
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (H,), f"{block}.{norm}.bias": (H,)}
        for name, fan_in, fan_out in (
            ("attn.c_attn", H, 3 * H),
            ("attn.c_proj", H, H),
            ("mlp.c_fc", H, inner),
            ("mlp.c_proj", inner, H),
        ):
            shapes |= {f"{block}.{name}.weight": (fan_in, fan_out), f"{block}.{name}.bias": (fan_out,)}
    return shapes | {"ln_f.weight": (H,), "ln_f.bias": (H,)}


@dataclass(frozen=True)
class _StoredWeight:
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it
    read: Callable[[], NDArray[Any]]


class _Weights(Mapping[str, "NDArray[np.float32]"]):
    """Weights by name, each read and converted to float32 when it is asked for."""

    def __init__(self, stored: Mapping[str, _StoredWeight]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # float64 too large for float32: infinite, and refused as such
            return self._stored[name].read().astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def read_weights(folder: Path, config: ModelConfig, *, tied: bool) -> Mapping[str, NDArray[np.float32]]:
    """Return the weights of the checkpoint folder by name, each read when it is asked for.

    Args:
        folder: the checkpoint.
        config: says which weights there must be, and their shapes.
        tied: whether the output layer is the token embedding; else "lm_head.weight" must be there,
            and is given where it is not equal to the embedding.

    Raises:
        ModelFormatError: a file is damaged, or weights are not as they should be: all of them are named.
    """
    stored: dict[str, _StoredWeight] = {}
    faults: list[str] = []
    for file in _weight_files(folder):
        opened = _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
        for full_name, weight in opened.items():
            name = full_name.removeprefix("transformer.")
            if _ATTENTION_BUFFER.fullmatch(name):
                continue  # the causal mask, which old versions of transformers saved
            if name in stored:
                faults.append(f"{full_name} twice")
            stored[name] = weight

    expected = weight_shapes(config)
    if not tied or "lm_head.weight" in stored:
        expected["lm_head.weight"] = expected["wte.weight"]
    faults += [f"{name} missing" for name in expected if name not in stored]
    faults += [f"{name} unexpected" for name in stored if name not in expected]
    for name in expected.keys() & stored.keys():
        weight = stored[name]
        if weight.shape != expected[name]:
            faults.append(f"{name} {list(weight.shape)} instead of {list(expected[name])}")
        if weight.dtype not in _FLOAT_TYPES:
            faults.append(f"{name} of type {weight.dtype} instead of {', '.join(_FLOAT_TYPES)}")
    weights = _Weights(stored)
    if not faults:
        # The smallest and the largest value are NaN or infinite where any is: no array of booleans is needed.
        for name, array in weights.items():
            if not np.isfinite([array.min(), array.max()]).all():
                faults.append(f"{name} with NaN or infinity")
    if faults:
        shown = "; ".join(sorted(faults)[:_MAX_NAMES_SHOWN])
        rest = f"; and {len(faults) - _MAX_NAMES_SHOWN} more" if len(faults) > _MAX_NAMES_SHOWN else ""
        raise format_error(folder, "the weights of its config.json", f"{len(faults)} faults: {shown}{rest}")
    if "lm_head.weight" in stored:
        differs = not np.array_equal(weights["lm_head.weight"], weights["wte.weight"])
        if differs and tied:
            logger.warning(
                "%s: lm_head.weight differs from wte.weight and is not used: "
                "tie_word_embeddings is not false",
                folder,
            )
        if tied or not differs:
            del stored["lm_head.weight"]
    return weights


def convert(name: str, weight: NDArray[np.float32], precision: str) -> NDArray[np.floating]:
    """Weight in the precision's type; ModelFormatError where a finite value would overflow."""
    dtype: np.dtype[np.floating] = np.dtype(PRECISIONS[precision])
    largest, limit = float(np.abs(weight).max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise ModelFormatError(
            f"{name}: largest magnitude {largest:g} does not fit {precision}, which ends at {limit:g}"
        )
    return weight.astype(dtype, copy=False)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: as transformers does, safetensors before pickles."""
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index, suffix=Path(name).suffix)
    raise format_error(folder, " or ".join([*names, "an index of shards of one of them"]), "none")


def _shards(index: Path, *, suffix: str) -> list[Path]:
    weight_map = read_json_object(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise format_error(index, "weight_map to name a file for each weight", weight_map)
    for name in weight_map.values():
        # Plain names of a known form: no path out of the folder.
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(suffix):
            raise format_error(index, f"files named like …-00001-of-00002{suffix}", name)
    files = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise format_error(index, "all of its files", f"no {', '.join(missing)}")
    return files


def _open_safetensors(path: Path) -> dict[str, _StoredWeight]:
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
        stored = {}
        for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
            view = file.get_slice(name)
            stored[name] = _StoredWeight(
                tuple(view.get_shape()), view.get_dtype(), partial(file.get_tensor, name)
            )
    except (safetensors.SafetensorError, OSError) as error:
        raise format_error(path, "a whole safetensors file", str(error)) from error
    return stored


def _open_bin(path: Path) -> dict[str, _StoredWeight]:
    try:
        import torch
    except ImportError as error:
        raise ModelFormatError(
            f"{path}: only PyTorch can read this file: install it (pip install torch), "
            "or save the checkpoint as model.safetensors"
        ) from error
    try:
        # weights_only: tensors and plain containers, no pickled code. Files of before 1.6 are no zip.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes PyTorch's reader raise nearly anything
        raise format_error(
            path, "a whole file of tensors and nothing else", str(error).partition("\n")[0]
        ) from error
    is_state = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in tensors.items()
    )
    if not is_state:
        raise format_error(path, "a dictionary of dense tensors", type(tensors).__name__)
    dtypes = dict(
        zip((torch.float64, torch.float32, torch.float16, torch.bfloat16), _FLOAT_TYPES, strict=True)
    )

    def read(tensor: torch.Tensor) -> NDArray[Any]:
        array: NDArray[Any] = tensor.detach().to(torch.float32).numpy()
        return array

    return {
        name: _StoredWeight(
            tuple(tensor.shape), dtypes.get(tensor.dtype, str(tensor.dtype)), partial(read, tensor)
        )
        for name, tensor in tensors.items()
    }

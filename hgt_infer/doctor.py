"""What a machine has for hgt_infer, and what it lacks."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from hgt_infer.errors import HgtInferError
from hgt_infer.kernels.library import load_kernels
from hgt_infer.opening import open_devices
from hgt_infer.runtime.cpu_features import check_int8

LIBRARIES = ("numpy", "tokenizers", "onnx", "onnxscript", "huggingface-hub")
EXTRAS = {
    "serve": (("fastapi", "uvicorn", "prometheus_client"), "hgt-infer serve"),
    "train": (("torch", "transformers"), "training, and the pickled weights of old checkpoints"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "ok"; "missing", for something that is not always needed; "broken" where nothing can run.
        name: of the thing.
        what: its version, or what it is needed for.
    """

    state: Literal["ok", "missing", "broken"]
    name: str
    what: str


def examine() -> Iterator[Finding]:
    """Look at everything; nothing is loaded onto a device."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    runtimes = [name for name in ("onnxruntime-gpu", "onnxruntime") if _version(name)]
    for name in runtimes:
        yield Finding("ok", name, _version(name) or "")
    if len(runtimes) != 1:
        what = "two of them overwrite each other: keep one" if runtimes else "pip install hgt-infer"
        yield Finding("broken", "ONNX Runtime", what)
    for name in LIBRARIES:
        version = _version(name)
        yield Finding("ok" if version else "broken", name, version or "pip install hgt-infer")
    try:
        kernels = load_kernels()
        if kernels is None:
            check_int8()
    except HgtInferError as error:
        yield Finding("missing", "kernels for this CPU", str(error))
    else:
        what = f"our own, for {kernels.instruction_set}" if kernels else "ONNX Runtime's, which are slower"
        yield Finding("ok" if kernels else "missing", "kernels for this CPU", what)
    try:
        devices = open_devices("cuda")
    except HgtInferError as error:
        yield Finding("missing", "CUDA", str(error))
    else:
        for device in devices:
            device.close()
        what = "a GPU that can be used; CUDA is experimental: no run on a GPU is recorded yet"
        yield Finding("ok", "CUDA", what)
    for extra, (modules, use) in EXTRAS.items():
        absent = [name for name in modules if find_spec(name) is None]
        what = f"for {use}: pip install 'hgt-infer[{extra}]' (no {', '.join(absent)})" if absent else use
        yield Finding("missing" if absent else "ok", f"extra {extra}", what)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

"""The library of operators: where it is, and which instruction set it computes with.

A machine without the library runs ONNX Runtime's own operators.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from hgt_infer.checks import shown
from hgt_infer.errors import DeviceUnavailableError, ParameterError

logger = logging.getLogger(__name__)

VARIABLE = "HGT_INFER_KERNELS"
"""Environment variable: an instruction set, or "off" for ONNX Runtime's own operators."""

FOLDER_VARIABLE = "HGT_INFER_KERNELS_FOLDER"
"""Environment variable: the folder of another library, such as one that is built with sanitizers."""

INSTRUCTION_SETS = ("portable", "avx2", "avx512")

_NAMES = {"darwin": "libhgt_kernels.dylib", "win32": "hgt_kernels.dll"}
_NAME = _NAMES.get(sys.platform, "libhgt_kernels.so")


@dataclass(frozen=True)
class Kernels:
    """The library, loaded.

    Attributes:
        path: of its file, as ONNX Runtime's SessionOptions.register_custom_ops_library takes it.
        instruction_set: of the sessions that are opened from now on, one of INSTRUCTION_SETS.
    """

    path: Path
    instruction_set: str


def load_kernels() -> Kernels | None:
    """Load the library and choose the instruction set: HGT_INFER_KERNELS names one, else it is the fastest.

    Returns:
        None where the variable is "off", and, with a warning, where there is no library that can be loaded.

    Raises:
        ParameterError: the variable has another value than those of INSTRUCTION_SETS and "off".
        DeviceUnavailableError: it names an instruction set that this machine does not have.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == "off":
        return None
    if asked not in ("", *INSTRUCTION_SETS):
        allowed = ", ".join((*INSTRUCTION_SETS, "off"))
        raise ParameterError(f"{VARIABLE} must be one of {allowed}; got {shown(asked)}")
    path = Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).parent, _NAME)
    library = _load(path)
    if isinstance(library, str):
        if asked:
            raise DeviceUnavailableError(f"{VARIABLE} is {asked}, and there are no kernels: {library}")
        return None
    chosen = library.hgt_kernels_choose(asked.encode())
    if chosen is None:
        raise DeviceUnavailableError(f"{VARIABLE} is {asked}, which this processor does not have")
    return Kernels(path, chosen.decode())


@functools.cache
def _load(path: Path) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        library = ctypes.CDLL(str(path))
        library.hgt_kernels_choose.argtypes = [ctypes.c_char_p]
        library.hgt_kernels_choose.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        reason = "the package was built without them" if not path.exists() else f"{path}: {error}"
        logger.warning("no kernels, so that a CPU runs ONNX Runtime's slower operators: %s", reason)
        return reason
    return library

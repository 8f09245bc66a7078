"""Compiles the operators' library when a wheel is built; in place for an editable installation."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_KERNELS = Path("hgt_infer", "kernels")


class KernelsBuildHook(BuildHookInterface[Any]):
    """HGT_INFER_BUILD_TARGET names another platform than this one; it must compile then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library and the platform's tag; where nothing compiles the wheel is of Python alone."""
        kernels = _load(Path(self.root) / _KERNELS / "build.py")
        named = os.environ.get("HGT_INFER_BUILD_TARGET")
        target = named or kernels.host()
        try:
            compiler = kernels.find_compiler()
            if version == "editable":
                kernels.build(target, compiler)
                return
            folder = tempfile.mkdtemp()
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            library = kernels.build(target, compiler, output=Path(folder))
        except (kernels.BuildError, OSError) as error:
            if named:
                raise
            self.app.display_warning(f"hgt_infer without its own operators, which is slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = kernels.wheel_tag(target, compiler)
        build_data["force_include"][str(library)] = str(_KERNELS / library.name)


def _load(path: Path) -> Any:
    """A module by its file: the package is not installed yet."""
    spec = importlib.util.spec_from_file_location("hgt_infer_kernels_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module

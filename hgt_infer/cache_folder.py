"""Where hgt_infer keeps what it makes once: exported checkpoints and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return cache_dir, else $HGT_INFER_CACHE, else $XDG_CACHE_HOME/hgt_infer, else ~/.cache/hgt_infer."""
    if cache_dir is not None:
        return Path(cache_dir).absolute()
    own = os.environ.get("HGT_INFER_CACHE")
    if own:
        return Path(own).absolute()
    common = os.environ.get("XDG_CACHE_HOME")
    return (Path(common).absolute() if common else Path.home() / ".cache") / "hgt_infer"

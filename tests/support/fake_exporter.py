"""Stands for hgt_infer.export where a model is loaded, here or in a process of its own."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

from hgt_infer.artifact.folder import (
    SAMPLER_FILE,
    Artifact,
    GenerationDefaults,
    ModelConfig,
    new_artifact,
    read_artifact,
    write_metadata,
)
from hgt_infer.errors import ModelFormatError, ModelNotFoundError
from hgt_infer.loading import load_artifact
from hgt_infer.runtime.device import OpenDevice, no_device

CONFIG = ModelConfig(
    n_layer=1, n_head=1, n_embd=4, n_inner=16, n_positions=8, vocab_size=9, layer_norm_epsilon=1e-5
)
DEFAULTS = GenerationDefaults(
    do_sample=True,
    temperature=1.0,
    top_k=50,
    top_p=1.0,
    min_length=0,
    max_length=None,
    max_new_tokens=256,
    min_new_tokens=None,
    eos_token_ids=(0,),
    prefix="",
)


class FakeExporter(types.ModuleType):
    """Stands for hgt_infer.export: writes an artifact whose graph is the checkpoint's weights.

    `exported` is a file with one line for each export that began; FAKE_EXPORT, in the environment,
    makes an export slow, or the process die in the middle of it.
    """

    EXPORTER_VERSION = "fake 1"

    def __init__(self, exported: Path) -> None:
        super().__init__("hgt_infer.export")
        self.exported = exported

    def export_checkpoint(
        self,
        checkpoint: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        precision: str = "fp32",
        force: bool = False,
        open_device: OpenDevice = no_device,
    ) -> Artifact:
        with open_device(precision) as self.device:
            pass
        with self.exported.open("a") as file:
            file.write(f"{precision}\n")
        source = Path(checkpoint)
        weights = [path for path in sorted(source.iterdir()) if path.suffix in (".safetensors", ".bin")]
        with new_artifact(output, force=force) as folder:
            (folder / "model.onnx").write_bytes(b"".join(path.read_bytes() for path in weights))
            if os.environ.get("FAKE_EXPORT") == "dies":
                os._exit(9)
            if os.environ.get("FAKE_EXPORT") == "slow":
                time.sleep(0.5)
            (folder / SAMPLER_FILE).write_bytes(b"sampler")
            (folder / "tokenizer.json").write_text("{}")
            write_metadata(folder, CONFIG, precision, DEFAULTS)
        return read_artifact(output)

    @property
    def count(self) -> int:
        return len(self.exported.read_text().splitlines()) if self.exported.exists() else 0


def load_and_print() -> None:
    """Load the model that the command names, with a fake exporter; print the artifact's path or the error."""
    model, tmp_path = sys.argv[1:]
    sys.modules["hgt_infer.export"] = FakeExporter(Path(tmp_path) / "exported.txt")
    try:
        print(load_artifact(model, precision="fp32").path)
    except (ModelNotFoundError, ModelFormatError) as error:
        print(f"{type(error).__name__}: {error}")

"""What may import what, and what `import hgt_infer` loads."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import hgt_infer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hgt_infer"

# Third-party packages that a module may import; those inside functions count too.
ALLOWED = {
    "sampling_params": set(),
    "outputs": set(),
    "errors": set(),
    "sequence": set(),
    "scheduler": set(),
    "output_text": set(),
    "stats": set(),
    "calls": set(),
    "prompts": set(),
    "resolve": set(),
    "scoring": set(),
    "artifact": set(),
    "checked_json": set(),
    "model_config": set(),
    "engine": set(),
    "sampling": {"numpy"},
    "kv_cache": {"numpy"},
    "memory_plan": {"numpy"},
    "device": {"numpy", "onnxruntime"},
    "cuda": {"numpy", "onnxruntime"},
    "cuda_runtime": {"onnxruntime"},
    "capture_gate": set(),
    "cuda_kernel": set(),
    "captured_memory": {"numpy"},
    "lanes": set(),
    "model_session": {"numpy", "onnxruntime"},
    "sampling_kernel": {"numpy"},
    "cache_folder": set(),
    "runner": {"numpy"},
    "captured_runner": {"numpy", "onnxruntime"},
    "token_log": {"numpy"},
    "tokenizer": {"tokenizers"},
    "loading": {"filelock", "huggingface_hub"},
    "generator": {"tqdm"},
    "cli": {"typer"},
    "doctor": set(),
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_imports_only_what_it_may(module: str) -> None:
    imported = imported_modules(PACKAGE / f"{module}.py")
    third_party = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"hgt_infer"}
    assert third_party <= ALLOWED[module]


@pytest.mark.parametrize(
    "module", ["scheduler", "sequence", "output_text", "outputs", "sampling_params", "stats", "errors"]
)
def test_the_scheduler_knows_nothing_of_arrays_or_devices(module: str) -> None:
    own = {name for name in imported_modules(PACKAGE / f"{module}.py") if name.startswith("hgt_infer")}
    assert own <= {f"hgt_infer.{name}" for name in ("errors", "outputs", "output_text", "sequence")}


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_training_imports_hgt_infer_only_for_a_finished_checkpoint_and_by_public_names(path: Path) -> None:
    names = {name for name in imported_modules(path) if name.split(".")[0] == "hgt_infer"}
    may = path.stem in ("preview", "evaluate", "publish")
    assert names <= ({"hgt_infer", "hgt_infer.export"} if may else set())


def test_importing_hgt_infer_loads_no_heavy_package() -> None:
    heavy = [
        "torch",
        "transformers",
        "optimum",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "huggingface_hub",
        "fastapi",
        "ray",
    ]
    code = f"import sys, hgt_infer; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_generating_loads_no_heavy_package_either(artifact: Path) -> None:
    code = (
        "import sys, hgt_infer\n"
        f"hgt_infer.Generator({str(artifact)!r}, device='cpu')('a', max_new_tokens=2)\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnx_ir') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_those_listed() -> None:
    assert sorted(hgt_infer.__all__) == hgt_infer.__all__
    assert all(hasattr(hgt_infer, name) for name in hgt_infer.__all__)
    assert hgt_infer.__version__ == importlib.metadata.version("hgt-infer")

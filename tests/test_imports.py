"""What each package may import, that no imports run in a circle, and what `import hgt_infer` loads."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

import hgt_infer

FACE = {"hgt_infer", "hgt_infer.export", "hgt_infer.errors"}
"""What others than hgt_infer may import of it."""

BASE = {"hgt_infer.errors", "hgt_infer.checks", "hgt_infer.outputs", "hgt_infer.sampling_params"}
MAY_IMPORT = {
    "hgt_infer.errors": set(),
    "hgt_infer.checks": {"hgt_infer.errors"},
    "hgt_infer.outputs": set(),
    "hgt_infer.cache_folder": set(),
    "hgt_infer.kernels": {"hgt_infer.errors", "hgt_infer.checks", "numpy"},
    "hgt_infer.sampling_params": {"hgt_infer.errors", "hgt_infer.checks"},
    "hgt_infer.engine": BASE,
    "hgt_infer.artifact": {*BASE, "tokenizers"},
    "hgt_infer.sampling": {*BASE, "hgt_infer.engine", "numpy"},
    "hgt_infer.runtime": {
        *BASE,
        *("hgt_infer.engine", "hgt_infer.sampling", "hgt_infer.artifact", "hgt_infer.kernels"),
        *("numpy", "onnxruntime"),
    },
    "hgt_infer.cuda": {
        *BASE,
        *("hgt_infer.engine", "hgt_infer.sampling", "hgt_infer.artifact", "hgt_infer.runtime"),
        *("hgt_infer.cache_folder", "numpy", "onnxruntime"),
    },
    "hgt_infer.requests": {*BASE, "hgt_infer.engine", "hgt_infer.artifact"},
    "hgt_infer.opening": {
        *BASE,
        *(
            "hgt_infer.engine",
            "hgt_infer.runtime",
            "hgt_infer.cuda",
            "hgt_infer.artifact",
            "hgt_infer.loading",
        ),
    },
    "hgt_infer.pipeline": {*BASE, "hgt_infer.engine", "hgt_infer.requests", "hgt_infer.artifact"},
    "hgt_infer.generator": {
        *BASE,
        *("hgt_infer.engine", "hgt_infer.requests", "hgt_infer.artifact", "hgt_infer.pipeline"),
        *("hgt_infer.opening", "tqdm"),
    },
    "hgt_infer.server": {
        *BASE,
        *("hgt_infer", "hgt_infer.generator"),
        *("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"),
    },
    "hgt_infer.distributed": {
        *BASE,
        *("hgt_infer.generator", "hgt_infer.server", "numpy", "pyarrow", "ray"),
    },
    "hgt_infer.doctor": {"hgt_infer.errors", "hgt_infer.kernels", "hgt_infer.opening", "hgt_infer.runtime"},
    "hgt_infer.cli": {
        *BASE,
        *("hgt_infer.generator", "hgt_infer.server", "hgt_infer.doctor", "hgt_infer.export"),
        *("hgt_infer.artifact", "hgt_infer.opening", "typer"),
    },
    "hgt_infer.__main__": {"hgt_infer.cli"},
    "training.job": {
        *("training.arguments", "training.work_folder", "training.tweets", "training.corpus"),
        *("training.learning", "training.card", "training.tracking", "numpy"),
    },
    "training.__main__": {
        *("training.job", "training.arguments", "training.options", "training.errors"),
        *("training.work_folder", "typer"),
    },
    "benchmarks.__main__": {
        *("benchmarks.measure", "benchmarks.peers", "benchmarks.cases", "benchmarks.pages"),
        *("training.corpus", "training.tweets"),
    },
    "benchmarks.measure": {
        *("hgt_infer", "hgt_infer.runtime", "numpy", "psutil", "safetensors", "tokenizers"),
        *("torch", "transformers"),
    },
    "benchmarks.peers": {
        *("benchmarks.measure", "hgt_infer", "hgt_infer.export"),
        *("ctranslate2", "gguf", "llama_cpp", "numpy", "openvino", "openvino_genai", "optimum"),
        *("safetensors", "tokenizers", "torch", "transformers", "vllm"),
    },
    "benchmarks.cases": {
        *("benchmarks.measure", "benchmarks.peers"),
        *("hgt_infer", "hgt_infer.export", "hgt_infer.artifact", "hgt_infer.distributed"),
        *("hgt_infer.runtime", "numpy", "onnxruntime", "ray", "torch", "transformers"),
    },
    "benchmarks.components": {
        *("benchmarks.measure", "hgt_infer", "hgt_infer.export", "hgt_infer.artifact", "hgt_infer.engine"),
        *("hgt_infer.runtime", "training.learning", "training.sample"),
        *("numpy", "pytest", "torch", "transformers"),
    },
    "benchmarks.pages": {"benchmarks.measure", "matplotlib"},
    "benchmarks.gpu_check": {
        *("benchmarks.measure", "benchmarks.peers", "hgt_infer", "hgt_infer.errors", "hgt_infer.export"),
        *("hgt_infer.artifact", "hgt_infer.cuda", "hgt_infer.engine", "hgt_infer.loading"),
        *("hgt_infer.opening", "hgt_infer.requests", "hgt_infer.runtime", "hgt_infer.sampling"),
        *("numpy", "onnxruntime", "torch", "transformers"),
    },
    "hgt_infer.export": {
        *BASE,
        *("hgt_infer.engine", "hgt_infer.sampling", "hgt_infer.artifact", "hgt_infer.runtime"),
        *("numpy", "onnx_ir", "onnxscript", "safetensors", "ml_dtypes", "tokenizers", "torch"),
    },
    "hgt_infer.loading": {
        *BASE,
        *("hgt_infer.artifact", "hgt_infer.cache_folder", "hgt_infer.export", "hgt_infer.runtime"),
        *("filelock", "huggingface_hub"),
    },
    "training.errors": set(),
    "training.work_folder": {"training.errors", "filelock"},
    "training.tweets": {"training.errors", "orjson"},
    "training.corpus": {"training.errors", "training.tweets", "numpy", "tokenizers"},
    "training.learning": {
        *("training.errors", "training.corpus"),
        *("numpy", "torch", "transformers", "tokenizers", "safetensors", "peft", "optuna", "sqlalchemy"),
    },
    "training.card": {
        *("training.errors", "training.corpus", "training.learning"),
        *("hgt_infer", "hgt_infer.export"),
        *("numpy", "PIL", "matplotlib", "py3langid", "yaml"),
    },
    "training.tracking": {"training.errors", "mlflow", "torch", "wandb"},
    "training.sample": set(),
    "training.options": {"training.errors", "training.corpus", "training.tweets", "typer"},
    "training.arguments": {
        *("training.errors", "training.options", "training.work_folder"),
        *("training.corpus", "training.learning", "training.tracking", "typer"),
    },
    "training.fetch": {"training.errors", "requests", "tweepy", "typer"},
    "training.publish": {
        *("training.errors", "training.card"),
        *("hgt_infer", "hgt_infer.export", "huggingface_hub", "typer"),
    },
    "training.evaluate": {
        *("training.errors", "training.options", "training.work_folder"),
        *("training.corpus", "training.learning", "hgt_infer", "numpy", "typer"),
    },
}
"""A package, or a module that is in none → the packages that it may import, in functions too."""


def package_of(module: str) -> str:
    """The package that a module is in, or the module itself where it is in the folder of them all."""
    return ".".join(module.split(".")[:2])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path
    for top in ("hgt_infer", "training", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules that a module imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
    return found - {module}


def imported_packages(package: str) -> set[str]:
    """Packages of ours and of others that the modules of a package import."""
    found = set()
    for module in MODULES:
        if package_of(module) == package:
            for name in imports(module):
                top = name.split(".")[0]
                found.add(package_of(name) if top in ("hgt_infer", "training", "benchmarks") else top)
    return found - {package} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    assert imported_packages(package) <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", sorted({package_of(module) for module in MODULES if "." in module}))
def test_training_and_benchmarks_keep_to_their_side(package: str) -> None:
    tops = {name.split(".")[0] for name in imported_packages(package)}
    if package.startswith("hgt_infer"):
        assert not tops & {"training", "benchmarks"}
    if package.startswith("training"):
        assert "benchmarks" not in tops
        may = package in ("training.card", "training.evaluate", "training.publish")
        of_ours = {name for name in imported_packages(package) if name.startswith("hgt_infer")}
        assert of_ours <= (FACE if may else set())


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(module) & set(MODULES) for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_packages_import_each_other_in_a_circle() -> None:
    packages = {package_of(module) for module in MODULES} - {"hgt_infer"}  # which hands names on
    graph = {package: imported_packages(package) & packages for package in packages}
    list(TopologicalSorter(graph).static_order())


def test_every_package_has_a_rule() -> None:
    tops = {"hgt_infer", "training", "benchmarks"}
    assert {package_of(module) for module in MODULES} - tops == MAY_IMPORT.keys()


def test_no_module_imports_a_test_module() -> None:
    """Nor does the code that it gives to a process of its own: what both need is in support."""
    imported = {
        path.name: re.findall(r"\b(?:import|from) +test_\w+", path.read_text())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert {name: found for name, found in imported.items() if found} == {}


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

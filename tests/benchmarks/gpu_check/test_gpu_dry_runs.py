"""The whole command on a CPU, and on libraries that stand in for CUDA's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.check_results import SIZES
from support.paths import ROOT

from benchmarks.gpu_check.scale import TRIAL
from benchmarks.gpu_check.steps import steps
from benchmarks.measure.checkpoints import write_numpy_checkpoint

ALLOWED = (
    "benchmarks", "hgt_infer", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors",
    "tokenizers", "ml_dtypes", "tqdm", "filelock",
)  # fmt: skip
"""What the check may import: hgt_infer's own dependencies."""
ALLOWED_BY_THEM = ("google", "packaging", "typing_extensions", "sympy", "mpmath", "flatbuffers")
FINDER = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if path is None and first not in sys.stdlib_module_names and first not in {allowed!r}:
            raise ModuleNotFoundError(f"{{name}} is not allowed", name=name)

sys.meta_path.insert(0, Finder())
"""


pytestmark = pytest.mark.integration


def run_command(folder: Path, *arguments: str, **environment: str) -> tuple[Any, dict[str, Any], str]:
    """The command over a tiny checkpoint, doing the least of everything, its files in a folder.

    Returns:
        Its process, its results by name, and its output.
    """
    checkpoint = write_numpy_checkpoint(folder / "checkpoint", SIZES)
    path = folder / "o.json"
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_check import __main__ as command\n"
        "command.OUTPUT = Path(sys.argv[1]); command.scale_of = lambda *_, **__: 'trial'\n"
        "sys.exit(command.main(sys.argv[2:]))"
    )
    given = ("--checkpoint", str(checkpoint), "--json", str(path), *arguments)
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder / "files"), *given],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    results = {result["name"]: result for result in json.loads(path.read_text())["results"]}
    output = process.stdout + process.stderr
    assert process.stdout.splitlines()[-1] == f"raw values: {path}", output
    assert len(output) < 12_000
    return process, results, output


def with_status(results: dict[str, Any], status: str) -> set[str]:
    return {name for name, result in results.items() if result["status"] == status}


def test_every_step_runs_on_a_cpu_with_what_hgt_infer_needs_and_nothing_more(tmp_path: Path) -> None:
    """Every other package cannot be imported, in the command and in all processes that it starts."""
    finder = FINDER.format(allowed=(*ALLOWED, *ALLOWED_BY_THEM))
    (tmp_path / "sitecustomize.py").write_text(finder)
    process, results, output = run_command(
        tmp_path, "--device", "cpu", "--budget", "10000", PYTHONPATH=str(tmp_path)
    )
    assert process.returncode == 0, output
    assert with_status(results, "failed") == set()
    assert with_status(results, "skipped") == {
        *("captured = eager", "graphs", "out of memory", "compiled", "profile of replays", "variants"),
        "transformers",
    }
    assert "not allowed" in results["transformers"]["says"]
    passed = with_status(results, "passed")
    assert passed >= {"smoke: generator", "environment", "export", "export verified, fp32", "placement"}
    assert passed >= {"logits of steps", "logits of prefills", "soak"}
    assert with_status(results, "measured") >= {"bandwidth", "tweets", "operators, eager", "first token"}
    steps_run = [line.partition("] ")[2] for line in output.splitlines() if line.startswith("[")]
    assert steps_run == [step.name for step in steps(TRIAL)]


def test_smoke_ends_the_command_where_a_gpu_computes_nothing(tmp_path: Path, libraries: Path) -> None:
    process, results, output = run_command(tmp_path, **stub_environment(tmp_path, libraries))
    assert process.returncode == 1, output
    assert all(name.startswith("smoke: ") for name in results)
    assert results["smoke: run"]["figure"] == "logits are not numbers"
    assert results["smoke: run"]["status"] == "failed"


def test_command_runs_over_the_real_provider(tmp_path: Path, libraries: Path) -> None:
    """The libraries compute nothing: numbers are wrong, but everything is called as on a GPU."""
    chosen = ["export", "placement", "graphs", "profile of nodes", "variants", "prompts", "seeds", "soak"]
    process, results, output = run_command(
        tmp_path, "--only", *chosen, "--budget", "10000", **stub_environment(tmp_path, libraries)
    )
    assert process.returncode == 1, output  # the logits of no model
    raised = [result for result in results.values() if "traceback" in result["values"]]
    assert raised == []
    assert with_status(results, "failed") == {"export verified, fp16"}
    assert results["export verified, fp16"]["values"]["max_difference"] > 0.1
    assert results["placement"]["figure"].endswith(" 0 elsewhere, 0 Memcpy")
    measured = with_status(results, "measured")
    assert measured >= {"model graph, 4", "cudnn", "cudnn: prefill", "cublas workspace"}
    assert measured >= {"gemm auto-tune", "operators, eager", "fed and prefilled"}


def stub_environment(folder: Path, libraries: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(libraries),
        "STUB_CUDA_LOG": str(folder / "calls.log"),
        "HGT_INFER_CACHE": str(folder / "cache"),
    }

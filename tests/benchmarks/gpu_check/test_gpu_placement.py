"""Where a graph's nodes are and of which types: what logs and captures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.check_results import results_of

from benchmarks.gpu_check import (
    correctness,
)
from benchmarks.gpu_check.graph_nodes import count_nodes
from benchmarks.gpu_check.placement import Placement, parse, placement_of
from benchmarks.gpu_check.subject import Subject

WHOLE_LOG = (
    "2026-01-01 [V:onnxruntime:, s.cc:1581 VerifyEachNodeIsAssignedToAnEp]  "
    "All nodes placed on [CUDAExecutionProvider]. Number of nodes: 474\n"
)
MIXED_LOG = """
2026-01-01 [V:onnxruntime:, session_state.cc:1578 VerifyEachNodeIsAssignedToAnEp] Node placements
2026-01-01 [V:onnxruntime:, s.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Concat (a/Concat_node_1)
2026-01-01 [V:onnxruntime:, s.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 3
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MatMul (h.0/MatMul_node_5)
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MemcpyToHost (Memcpy)
2026-01-01 [V:onnxruntime:, s.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Add (h.0/Add_node_6)
\x1b[0;93m2026-01-01 [W:onnxruntime:, transformer_memcpy.cc:111 ApplyImpl] 2 Memcpy nodes are added to the graph g
"""  # noqa: E501
WHOLE = Placement({"CUDAExecutionProvider": 474}, {}, 0)
MIXED = Placement(
    {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3},
    {"CPUExecutionProvider": ["Concat (a/Concat_node_1)"], "CUDAExecutionProvider": ["Add (b)"]},
    num_copies=2,
)


def test_placement_is_read_from_the_log() -> None:
    placement = parse(MIXED_LOG)
    assert placement.num_nodes == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3}
    assert placement.nodes["CPUExecutionProvider"] == ["Concat (a/Concat_node_1)"]
    assert placement.num_copies == 2
    assert placement.elsewhere("CUDAExecutionProvider") == 1
    whole = parse(WHOLE_LOG)
    assert (whole.elsewhere("CUDAExecutionProvider"), whole.num_copies) == (0, 0)


def test_log_without_placement_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"says nothing of placement; it ends: 'Segmentation fault'"):
        parse("Segmentation fault\n")


def test_placement_of_a_real_session(subject: Subject) -> None:
    placement = placement_of(subject.artifact.model_path, "CPUExecutionProvider")
    assert list(placement.num_nodes) == ["CPUExecutionProvider"]
    assert (placement.num_copies, placement.error) == (0, "")


def test_nodes_elsewhere_fail_the_check(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for placement in (WHOLE, MIXED):

        def placed(path: Path, provider: str, device_id: int, found: Placement = placement) -> Placement:
            assert (path.name, provider, device_id) == ("model.onnx", "CUDAExecutionProvider", 0)
            return found

        monkeypatch.setattr(correctness, "placement_of", placed)
        results += results_of(correctness.check_placement(fake))
    assert [result.status for result in results] == ["passed", "failed"]
    assert results[1].figure == "3 nodes, 1 elsewhere, 2 Memcpy"
    assert results[1].says == "elsewhere: Concat (a/Concat_node_1)"


class FakeCapture:
    """The CUDA runtime's functions of a capture: four nodes, or an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cudaStreamEndCapture":
                arguments[1]._obj.value = 1
            elif name == "cudaGraphGetNodes":
                arguments[2]._obj.value = 4
                if arguments[1] is not None:
                    arguments[1][:] = [0, 2, 2, 99]
            elif name == "cudaGraphNodeGetType":
                arguments[1]._obj.value = arguments[0] or 0
            return 900 if name == self.failing else 0

        return call


def test_nodes_of_a_captured_run_are_counted_by_type() -> None:
    library, runs = FakeCapture(), []
    assert count_nodes(library, 7, lambda: runs.append(1)) == {"kernel": 1, "memset": 2, "type 99": 1}
    assert runs == [1]
    assert library.calls[-1] == "cudaGraphDestroy"


@pytest.mark.parametrize("failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphGetNodes"])
def test_capture_that_fails_is_an_error_and_is_ended(failing: str) -> None:
    library = FakeCapture(failing)
    with pytest.raises(RuntimeError, match=f"{failing}: error 900"):
        count_nodes(library, 7, lambda: None)
    assert ("cudaStreamEndCapture" in library.calls) == (failing != "cudaStreamBeginCapture")


def test_capture_is_ended_where_the_run_raises() -> None:
    library = FakeCapture()
    with pytest.raises(ZeroDivisionError):
        count_nodes(library, 7, lambda: 1 / 0)
    assert "cudaStreamEndCapture" in library.calls

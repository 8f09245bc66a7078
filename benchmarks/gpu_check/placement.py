"""Where ONNX Runtime places the nodes of a graph, as it says in its own log while a session starts.

`python -m benchmarks.gpu_check.placement GRAPH PROVIDER DEVICE_ID` makes such a session. The log is written
by native code to stderr: so it runs in a process of its own, and `placement_of` reads what that says.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu_check.children import end_with_parent
from benchmarks.measure.paths import REPOSITORY

TIMEOUT_S = 40

_PLACED = re.compile(r"(?:Node\(s\)|All nodes) placed on \[(\w+)\]\. Number of nodes: (\d+)")
_NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s+(\w+) \((.*)\)\s*$")
_COPIES = re.compile(r"(\d+) Memcpy nodes are added to the graph")


@dataclass(frozen=True)
class Placement:
    """num_nodes: by execution provider. nodes: "Op (name)" by provider, where they are on several.

    num_copies: Memcpy nodes that were put between them. error: why the session could not start, though
    its nodes were placed.
    """

    num_nodes: dict[str, int]
    nodes: dict[str, list[str]]
    num_copies: int
    error: str = ""

    def elsewhere(self, provider: str) -> int:
        """How many nodes are not on this provider."""
        return sum(count for name, count in self.num_nodes.items() if name != provider)


def parse(log: str) -> Placement:
    """Read a session's log at its most verbose.

    Raises:
        ValueError: it says nothing of placement.
    """
    num_nodes: Counter[str] = Counter()
    nodes: dict[str, list[str]] = {}
    num_copies, provider = 0, ""
    for line in log.splitlines():
        if placed := _PLACED.search(line):
            provider = placed[1]
            num_nodes[provider] += int(placed[2])
        elif node := _NODE.search(line):
            nodes.setdefault(provider, []).append(f"{node[1]} ({node[2]})")
        elif copies := _COPIES.search(line):
            num_copies += int(copies[1])
    if not num_nodes:
        raise ValueError(f"ONNX Runtime's log says nothing of placement; it ends: {log.strip()[-300:]!r}")
    seen = sum(name.startswith("Memcpy") for names in nodes.values() for name in names)
    return Placement(dict(num_nodes), nodes, max(num_copies, seen))


def placement_of(graph: Path, provider: str, device_id: int = 0) -> Placement:
    """Start a session with the options of ours in a process of its own, and read where its nodes are."""
    process = subprocess.run(
        [sys.executable, "-m", __name__, str(graph), provider, str(device_id)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    placement = parse(process.stderr + process.stdout)
    if process.returncode != 0:
        error = process.stderr.strip().rpartition("\n")[2][:300] or f"exit {process.returncode}"
        return replace(placement, error=error)
    return placement


def main(argv: list[str]) -> int:
    import onnxruntime as ort

    from hgt_infer.cuda.cudart import load_cuda
    from hgt_infer.cuda.device import session_settings

    graph, provider, device_id = argv
    options, provider_options = session_settings(int(device_id))
    options.log_severity_level = 0
    if provider == "CPUExecutionProvider":
        ort.InferenceSession(graph, options, providers=[provider])
        return 0
    load_cuda(int(device_id))
    session = ort.InferenceSession(graph, options, providers=[(provider, provider_options)])
    if session.get_providers()[0] != provider:
        print(f"the session took {session.get_providers()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))

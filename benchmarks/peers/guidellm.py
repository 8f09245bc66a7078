"""GuideLLM, a load generator for services with OpenAI's routes that neither side of a comparison wrote.

`make peers` puts it into an environment of its own. It counts tokens by the usage that a server reports, and
needs no tokenizer and no network.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.measure.http_client import COMPLETIONS, Server
from benchmarks.measure.http_load import MODEL, NUM_CLIENTS
from benchmarks.measure.workloads import MixedWorkload
from benchmarks.peers.environments import python_of

ENVIRONMENT = "clients"
PROGRAM = python_of(ENVIRONMENT).with_name("guidellm")
TIMEOUT_S = 1_800.0
# One process: more of them take the cores from the server on the same machine.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}


def run_guidellm(
    server: Server, workload: MixedWorkload, folder: Path, *, requests_per_s: float | None = None
) -> dict[str, Any]:
    """Send a workload's requests as streams, each once, and return what it says of them.

    Args:
        server: its settings of sampling are the workload's.
        workload: its prompts and lengths; end-of-text ends nothing.
        folder: for its input and its report.
        requests_per_s: of a Poisson process; None is NUM_CLIENTS requests at any time.

    Raises:
        RuntimeError: it fails, or not every request got all of its tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, scenario, report = (folder / name for name in ("requests.jsonl", "scenario.json", "report.json"))
    rows = [
        {"prompt": prompt, "prompt_tokens_count": len(ids), "output_tokens_count": length}
        for prompt, ids, length in zip(
            workload.prompts, workload.prompt_token_ids, workload.lengths, strict=True
        )
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile: dict[str, Any] = {"kind": "concurrent", "streams": [NUM_CLIENTS]}
    if requests_per_s is not None:
        profile = {"kind": "poisson", "rate": [requests_per_s]}
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": f"http://{server.host}:{server.port}",
            "model": MODEL,
            "request_format": COMPLETIONS,
            "http2": False,
            "extras": {"body": workload.sampling},
        },
        "profile": profile,
        "constraints": [{"kind": "max_requests", "count": len(rows)}],
        "data": [{"kind": "json_file", "path": str(data)}],
        "outputs": [{"kind": "json", "path": str(report)}],
    }
    scenario.write_text(json.dumps({"spec": spec}))
    report.unlink(missing_ok=True)
    result = subprocess.run(
        [str(PROGRAM), "run", "--config", str(scenario), "--disable-console"],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if result.returncode != 0 or not report.exists():
        end = " | ".join((result.stdout + result.stderr).splitlines()[-3:])
        raise RuntimeError(f"GuideLLM failed with exit status {result.returncode}: {end}")
    figures = read_report(json.loads(report.read_text()))
    if (figures["num_requests"], figures["num_tokens"]) != (len(rows), workload.num_tokens):
        raise RuntimeError(
            f"{server.name} gave GuideLLM {figures['num_tokens']} tokens in {figures['num_requests']} "
            f"answers, not {workload.num_tokens} in {len(rows)}"
        )
    return figures


def read_report(report: dict[str, Any]) -> dict[str, Any]:
    """What its JSON says of the answers of its only benchmark; times in seconds."""
    [benchmark] = report["benchmarks"]

    def metric(name: str) -> dict[str, Any]:
        found: dict[str, Any] = benchmark["metrics"][name]["successful"]
        return found

    def seconds(name: str) -> dict[str, float]:
        found = metric(name)["percentiles"]
        return {p: found[p] / 1e3 for p in ("p50", "p90", "p99")}

    duration = float(benchmark["duration"])
    num_requests, num_tokens = (int(metric("output_token_count")[field]) for field in ("count", "total_sum"))
    return {
        "seconds": duration,
        "num_requests": num_requests,
        "num_tokens": num_tokens,
        "requests_per_s": num_requests / duration,
        "tokens_per_s": num_tokens / duration,
        "concurrency": metric("request_concurrency")["mean"],
        "first_token_s": seconds("time_to_first_token_ms"),
        "inter_token_s": seconds("inter_token_latency_ms"),
    }

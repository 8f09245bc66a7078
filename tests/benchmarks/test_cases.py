"""Many prompts in one call, the service under load, and quality, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import service
from benchmarks.cases.offline import run_offline
from benchmarks.cases.quality import measure_quality
from benchmarks.cases.service import run_service
from benchmarks.measure.checkpoints import gpt2_small
from benchmarks.measure.http_load import NUM_CLIENTS
from benchmarks.measure.workloads import (
    tweets,
)

CONFIG = gpt2_small()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a backend makes of the checkpoint stays here."""
    return tmp_path_factory.mktemp("cases")


@pytest.mark.integration
def test_many_prompts_go_through_in_one_call(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_offline("hgt_infer_int8", 300, prepared, config=CONFIG)
    assert result["num_tokens"] == tweets().num_tokens + sum(tweets().lengths[:44])
    assert result["tokens_per_s"] == result["num_tokens"] / result["seconds"]
    assert all(memory["resident"] > 10 for memory in result["memory_mb"].values())
    assert main(["offline", "--backend", "transformers"]) == 2
    assert "transformers is not installed here, or takes no requests" in capsys.readouterr().err
    assert main(["offline", "--prompts", "0"]) == 2


def test_servers_beside_the_service_have_to_be_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "--small", "--beside", "nobody"]) == 2
    assert "got nobody" in capsys.readouterr().err


@pytest.mark.integration
def test_the_service_is_measured_beside_the_library_and_abused(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than clients, so that some go on with a connection."""
    requests = tweets().head(80, max_tokens=16)
    assert len(requests.prompts) > NUM_CLIENTS
    monkeypatch.setattr(service, "tweets", lambda: requests)
    result = run_service(
        prepared,
        name="hgt_infer_int8",
        num_rounds=1,
        abuse_s=0.5,
        num_abusers=50,
        config=CONFIG,
        wait=lambda: {"load": 0.0, "waited_s": 0.0, "is_quiet": True},
    )
    assert set(result["overhead"]) == {"library", "service", "service, streams"}
    assert all(side["tokens_per_s"] > 0 for side in result["overhead"].values())
    for load in result["loads"].values():
        assert load["num_requests"] == len(requests.prompts)
        assert 0 < load["first_token_s"]["p50"] <= load["end_s"]["p99"]
    abused = result["abuse"]
    assert abused["good"] > 0
    assert abused["bad"] > 0
    assert abused["wrong"] == 0
    assert abused["is_same_text_after"]
    assert abused["after"]["num_files"] == abused["before"]["num_files"]


def test_quality_is_that_of_the_same_tokens(checkpoint: Path) -> None:
    quality = measure_quality(checkpoint, ["My dream is to sleep", "a b c"])
    assert quality["num_tokens"] == pytest.approx(20, abs=12)
    assert quality["int8"]["perplexity"] == pytest.approx(quality["fp32"]["perplexity"], rel=0.2)
    assert quality["fp16"]["perplexity"] == pytest.approx(quality["fp32"]["perplexity"], rel=0.01)
    assert 0 <= quality["fp16"]["kl"] < quality["int8"]["kl"]
    assert 0 < quality["int8"]["kl"] < 0.1
    assert 0.5 < quality["int8"]["top1"] <= 1

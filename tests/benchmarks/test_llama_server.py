"""llama.cpp's server and GuideLLM, where `make peers` has made their environments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.cases.service import compare_servers
from benchmarks.measure.checkpoints import END_OF_TEXT, byte_tokenizer, gpt2_small, write_model
from benchmarks.measure.http_client import Client
from benchmarks.measure.workloads import one_prompt, tweets
from benchmarks.peers import guidellm
from benchmarks.peers.environments import is_installed
from benchmarks.peers.llama_cpp import convert
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote

NAME = "llama_server_q8_0"
CONFIG = gpt2_small()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Remote]:
    if not BACKENDS[NAME].is_installed:
        pytest.skip("llama-server is not installed: `make peers`")
    with closing(Remote(NAME, write_model(folder, CONFIG), folder / NAME)) as server:
        yield server


def test_gguf_has_the_tokenizer(folder: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed here")
    convert(write_model(folder, CONFIG), folder / "q8_0.gguf", "q8_0")
    fields = gguf.GGUFReader(folder / "q8_0.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    tokenizer = byte_tokenizer(CONFIG.vocab_size)
    assert tokens == [tokenizer.id_to_token(id_) for id_ in range(CONFIG.vocab_size)]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert [tokens[id_] for id_, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL] == [END_OF_TEXT]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == CONFIG.eos_token_id


@pytest.mark.slow
def test_llama_server_has_the_tokenizer_s_ids(server: Remote) -> None:
    texts = {*tweets().prompts, "My dream, it's 12 o'clock", "naïve  café\n\n\tx", " 😀"}
    tokenizer = byte_tokenizer(CONFIG.vocab_size)

    async def ask() -> dict[str, list[int]]:
        with closing(Client(server.host, server.port, reconnects=True)) as client:
            return {
                text: (await client.complete({"content": text}, path="/tokenize"))["tokens"] for text in texts
            }

    assert asyncio.run(ask()) == {text: tokenizer.encode(text).ids for text in texts}


@pytest.mark.slow
def test_llama_server_generates_and_serves_whole_lengths(server: Remote) -> None:
    workload = tweets().head(70, max_tokens=6)  # more than it has slots
    assert [*map(len, server.generate(workload))] == [*workload.lengths]
    samples = server.generate(one_prompt(3, num_new_tokens=20))
    assert [*map(len, samples)] == [20] * 3
    assert len(set(samples)) == 3
    one = one_prompt(1, num_new_tokens=20)
    assert server.generate(one, greedy=True) == server.generate(one, greedy=True)
    served = server.serve(workload.part(0, 3), (0.0, 0.0, 0.1), batch_size=16)
    assert len(served) == 3
    assert all(0 < times.first_token_s <= times.end_s for times in served)
    assert server.memory_mb()["resident"] > 10


@pytest.mark.slow
def test_servers_are_compared(server: Remote, folder: Path) -> None:
    workload = tweets().head(70, max_tokens=6)
    results = compare_servers([server], workload, folder / "guidellm", num_rounds=1, rates=[200.0])
    [result] = results.values()
    assert set(result["closed_loop"]) == {"whole", "streams"}
    [load] = result["open_loop"]
    assert load["num_requests"] == 70
    if not is_installed(guidellm.ENVIRONMENT, ()):
        pytest.skip("GuideLLM is not installed: `make peers`")
    assert [asked["requests_per_s"] for asked in result["guidellm"]] == [None, 200.0]
    for asked in result["guidellm"]:
        [report] = asked["rounds"]
        assert report["num_tokens"] == workload.num_tokens
        assert 0 < report["first_token_s"]["p50"] <= report["first_token_s"]["p99"]


def test_figures_are_read_from_guidellm_s_report() -> None:
    def metric(**values: float) -> dict[str, object]:
        return {"successful": {"percentiles": {"p50": 10.0, "p90": 20.0, "p99": 30.0}, **values}}

    report = {
        "benchmarks": [
            {
                "duration": 4.0,
                "metrics": {
                    "output_token_count": metric(count=8, total_sum=100.0),
                    "request_concurrency": metric(mean=2.5),
                    "time_to_first_token_ms": metric(),
                    "inter_token_latency_ms": metric(),
                },
            }
        ]
    }
    figures = guidellm.read_report(report)
    assert (figures["requests_per_s"], figures["tokens_per_s"], figures["concurrency"]) == (2.0, 25.0, 2.5)
    assert figures["first_token_s"] == {"p50": 0.01, "p90": 0.02, "p99": 0.03}

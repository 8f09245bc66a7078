"""What ONNX Runtime's CUDA provider makes of the graphs: all on the GPU, and fit to be captured.

The provider is the real one, over libraries that stand in for CUDA's (`stub_cuda`): no GPU is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from support import stub_cuda
from support.checkpoints import write_checkpoint

from hgt_infer.artifact.folder import read_artifact
from hgt_infer.export import export_checkpoint

NOT_CAPTURED = {
    *("If", "Loop", "Scan", "NonZero", "GatherND", "ScatterND", "Compress", "Unique", "OneHot", "Range"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
    *("ReduceMax", "ReduceMin"),  # cuDNN's, which need not be there
}
"""Operators that need control flow on the host, the values of their inputs, or a seed."""

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = "123"  # cudaMemcpyKind


def assert_captured(result: stub_cuda.Result) -> list[stub_cuda.Call]:
    """All nodes on the GPU, nothing in the capture that a replay would do wrong; the capture's calls."""
    assert not cudnn_calls(result)
    assert result.placed.keys() == {"CUDAExecutionProvider"}
    assert not [op for op in result.placed["CUDAExecutionProvider"] if op.startswith("Memcpy")]
    first, *others = result.runs
    names = [call.name for call in first]
    captured = first[names.index("cudaStreamBeginCapture") + 1 : names.index("cudaStreamEndCapture")]
    # A copy from the host would be repeated from memory that is gone; waits and allocations are forbidden.
    copies = [call for call in captured if call.name.startswith("cudaMemcpy")]
    assert all(call.detail.startswith(DEVICE_TO_DEVICE) for call in copies)
    allowed = {"kernel", "cudaMemsetAsync", "cudaMemcpyAsync"}
    assert {call.name for call in captured} <= allowed
    assert all([call.name for call in calls] == ["cudaGraphLaunch"] for calls in others)
    return captured


def cudnn_calls(result: stub_cuda.Result) -> list[str]:
    """The functions of cuDNN that were called in any run."""
    return [call.name for calls in result.runs for call in calls if call.name.startswith("cudnn")]


def launches(calls: list[stub_cuda.Call]) -> int:
    return sum(call.name == "kernel" for call in calls)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of two layers in half precision."""
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = write_checkpoint(folder / "checkpoint", layout="modern", n_layer=2)
    return export_checkpoint(checkpoint, folder / "artifact", precision="fp16").model_path


@pytest.mark.parametrize("num_rows", [1, 64])
def test_a_step_of_the_decoder_is_one_replay_on_the_gpu(
    libraries: Path, decoder: Path, num_rows: int
) -> None:
    """Attention takes the kernel for single tokens, which needs past and present in the same memory."""
    captured = assert_captured(stub_cuda.run(libraries, decoder, num_rows=num_rows, num_runs=3))
    kernels = [call.detail for call in captured if call.name == "kernel"]
    assert sum("kernel_mha" in kernel for kernel in kernels) == 2  # one a layer
    assert not any("flash" in kernel for kernel in kernels)
    assert len(kernels) == 4 + 11 * 2
    # The cache is neither cleared nor copied.
    sizes = [int(call.detail.split()[1]) for call in captured if call.name != "kernel"]
    assert max(sizes) <= num_rows * 128 * 2


@pytest.mark.parametrize(("num_rows", "num_tokens", "length"), [(5, 7, 7), (1, 20, 20), (1, 20, 60)], ids=str)
@pytest.mark.parametrize("is_scored", [False, True])
def test_a_prefill_runs_on_the_gpu_without_waiting_for_it(
    libraries: Path, decoder: Path, num_rows: int, num_tokens: int, length: int, is_scored: bool
) -> None:
    """Whole prompts, and a later piece of one, with a captured graph's session but outside of its capture."""
    result = stub_cuda.run(
        libraries,
        decoder,
        num_rows=num_rows,
        num_runs=2,
        num_tokens=num_tokens,
        num_outputs=num_tokens if is_scored else 0,
        length=length,
        is_captured=False,
    )
    assert result.placed.keys() == {"CUDAExecutionProvider"}
    for calls in result.runs:
        names = {call.name for call in calls}
        assert not names & {"cudaStreamBeginCapture", "cudaGraphLaunch"}
        assert not [name for name in names if name.endswith("Synchronize")]
        copies = [call for call in calls if call.name.startswith("cudaMemcpy")]
        assert all(call.detail.startswith(DEVICE_TO_DEVICE) for call in copies)
        assert sum("flash_fwd" in call.detail for call in calls) == 2  # one a layer
    assert launches(result.runs[-1]) > 15
    assert not cudnn_calls(result)


@pytest.mark.parametrize(("num_tokens", "length"), [(20, 20), (20, 60)])
def test_with_the_providers_own_options_a_prefill_takes_cudnn_and_builds_a_plan(
    libraries: Path, decoder: Path, num_tokens: int, length: int
) -> None:
    """What our options keep away: so the other tests would see it."""
    first, second = stub_cuda.run(
        libraries,
        decoder,
        num_rows=1,
        num_runs=2,
        num_tokens=num_tokens,
        length=length,
        is_captured=False,
        provider_options={},
    ).runs
    for calls in (first, second):
        assert sum(call.name == "cudnnBackendExecute" for call in calls) == 2  # one a layer
        assert not any("flash_fwd" in call.detail for call in calls)
    built, used = (sum(call.name == "cudnnBackendFinalize" for call in calls) for calls in (first, second))
    assert built > used == 2  # each execution's arguments; the plan of this shape is kept


def test_a_prefill_fails_where_cudnn_is_off_and_attention_may_still_choose_it(
    libraries: Path, decoder: Path
) -> None:
    """Why sdpa_kernel is given besides enable_cudnn."""
    with pytest.raises(AssertionError, match="cuDNN is unavailable or disabled"):
        stub_cuda.run(
            libraries,
            decoder,
            num_rows=1,
            num_runs=1,
            num_tokens=20,
            length=20,
            is_captured=False,
            provider_options={"enable_cudnn": "0"},
        )


def operators(graph: onnx.GraphProto) -> set[str]:
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {node.op_type for node in graph.node}.union(*map(operators, inner))


def test_the_graph_that_is_captured_has_no_operator_that_cannot_be(artifact: Path) -> None:
    source = read_artifact(artifact)
    found = operators(onnx.load(source.model_path, load_external_data=False).graph)
    assert not found & NOT_CAPTURED
    assert not [name for name in found if re.match("Random|Sequence|CastLike", name)]
    assert operators(onnx.load(source.sampler_path).graph) & NOT_CAPTURED

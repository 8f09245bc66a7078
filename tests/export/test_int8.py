"""int8: near the fp32 logits, the same alone and in company, smaller, and chosen by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from support.tiny_model import Array, TinyModel

from hgt_infer import DeviceUnavailableError, Generator, ModelFormatError, ParameterError
from hgt_infer.artifact.folder import EXTERNAL_DATA_FILE, read_artifact
from hgt_infer.export import build_graph, decoder, export_checkpoint
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.int8_decoder import quantize
from hgt_infer.export.verify import MAX_INT8_NOISE
from hgt_infer.runtime import cpu_features

NUM_TOKENS = 24
MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))
)


@pytest.fixture(scope="module")
def int8_artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("int8") / "int8", precision="int8").path


@pytest.fixture(scope="module")
def int8_generator(int8_artifact: Path) -> Any:
    with Generator(int8_artifact, device="cpu") as generator:
        yield generator


@given(MATRICES, st.sampled_from([0, 1]))
def test_a_matrix_is_quantized_to_half_a_step(matrix: NDArray[np.float32], axis: int) -> None:
    integers, scales = quantize(matrix, axis=axis)
    assert integers.dtype == np.int8
    assert integers.min(initial=0) >= -127
    assert scales.shape == (matrix.shape[1 - axis],)
    scales = np.expand_dims(scales, axis)
    assert np.all(np.abs(integers * scales - matrix) <= scales * 0.5001 + 1e-38)  # denormals


def test_logits_are_near_those_of_transformers(checkpoint: Path, reference_model: Any) -> None:
    source = read_checkpoint(checkpoint)
    model = build_graph(source.config, source.weights, precision="int8")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(0, source.config.vocab_size, (3, NUM_TOKENS))
    with torch.inference_mode():
        expected = reference_model(torch.tensor(ids)).logits.numpy()

    def run(ids: Array, num_outputs: int) -> Array:
        return TinyModel(session, len(ids))(ids, num_outputs)

    logits = run(ids, NUM_TOKENS).reshape(expected.shape)
    assert 0 < np.square(logits - expected).mean() < MAX_INT8_NOISE * expected.var()
    # Integers sum up exactly: a row's logits are the same bits in any company, and asked for alone.
    np.testing.assert_array_equal(run(ids[1:2], NUM_TOKENS), logits[1])
    np.testing.assert_array_equal(run(ids, 1), logits[:, -1])
    assert run(ids, 0).shape == (0, source.config.vocab_size)


def test_a_text_has_the_same_tokens_alone_and_in_company(int8_generator: Generator) -> None:
    prompts = ["My dream is", "I think that we should", "a b c d e f g h", "nobody"]
    together = int8_generator(prompts, num_return_sequences=4, max_new_tokens=20, seed=5)
    alone = int8_generator(prompts[:1], num_return_sequences=4, max_new_tokens=20, seed=5)
    assert alone[0] == together[0]


def test_scores_are_near_those_of_fp32(generator: Generator, int8_generator: Generator) -> None:
    texts = ["My dream is to sleep until the kettle sings.", "nobody knows how to dance"]
    for ours, theirs in zip(int8_generator.score(texts), generator.score(texts), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprob != theirs.logprob
        assert ours.logprob == pytest.approx(theirs.logprob, rel=0.05)


def test_matrices_are_kept_once_and_in_a_byte(artifact: Path, int8_artifact: Path) -> None:
    sizes = [(folder / EXTERNAL_DATA_FILE).stat().st_size for folder in (artifact, int8_artifact)]
    config = read_artifact(artifact).config
    positions = 4 * config.n_positions * config.n_embd  # which are not multiplied: in fp32
    assert sizes[1] - positions < 0.3 * (sizes[0] - positions)


def test_an_artifact_that_is_too_far_away_is_not_saved(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a processor whose sums of products saturate."""
    monkeypatch.setattr(
        decoder.Decoder, "activate", lambda self, hidden, name: self.op.Relu(self.linear(hidden, name))
    )
    with pytest.raises(ModelFormatError, match=r"allowed are a mean square of 0.01 of their variance"):
        export_checkpoint(checkpoint, tmp_path / "artifact", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_an_artifacts_own_precision_and_fp32_for_a_checkpoint(
    int8_artifact: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Generator(int8_artifact, device="cpu") as generator:
        expected = generator("My dream is", seed=1)
    with Generator(checkpoint, device="cpu", precision="int8", cache_dir=tmp_path) as generator:
        assert generator("My dream is", seed=1) == expected
    with caplog.at_level(logging.INFO, "hgt_infer"):
        Generator(checkpoint, device="cpu", cache_dir=tmp_path).close()
    assert "precision='auto' took fp32, as transformers has it; 'int8' is faster on a CPU" in caplog.text
    assert sorted(read_artifact(path).precision for path in tmp_path.glob("*/")) == ["fp32", "int8"]
    with pytest.raises(ModelFormatError, match="expected an artifact of precision fp32, found int8"):
        Generator(int8_artifact, device="cpu", precision="fp32")
    with pytest.raises(ParameterError, match="precision must be one of 'auto', 'fp32', 'int8' on cpu"):
        Generator(checkpoint, device="cpu", precision="fp16")


@pytest.mark.parametrize(
    ("flags", "machine", "is_able"),
    [
        ("fpu avx2 avx512f", "x86_64", False),
        ("fpu avx2 avx_vnni", "x86_64", True),
        ("fpu avx512_vnni", "x86_64", True),
        ("", "aarch64", True),
        (None, "x86_64", True),
    ],
)
def test_a_cpu_whose_products_saturate_is_refused(
    int8_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str | None,
    machine: str,
    is_able: bool,
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n")
    monkeypatch.setattr(cpu_features, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setenv("HGT_INFER_KERNELS", "off")  # which add up anywhere
    if is_able:
        Generator(int8_artifact, device="cpu").close()
        return
    with pytest.raises(DeviceUnavailableError, match="precision 'int8' needs a CPU with VNNI"):
        Generator(int8_artifact, device="cpu")

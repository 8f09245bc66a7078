"""From checkpoint to artifact: the logits, the precisions, and what is refused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from support.checkpoints import write_checkpoint
from support.fake_cuda import FakeCudaDevice
from transformers import GPT2LMHeadModel

from hgt_infer import ModelFormatError, ModelNotFoundError, ParameterError
from hgt_infer.artifact.folder import read_artifact
from hgt_infer.engine.batch import MAX_PREFILL_TOKENS, Batch
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.export import build_graph, export_checkpoint
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.verify import NUM_STEPS, LastLogits, compare, numpy_logits
from hgt_infer.export.weights import convert
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.runtime.runner import ModelRunner


@pytest.mark.parametrize("lengths", [[1], [7], [5, 1, 300, 17], [64] * 16, list(range(1, 17))], ids=str)
def test_logits_equal_transformers_on_random_and_ragged_batches(
    artifact: Path, reference_model: Any, lengths: list[int]
) -> None:
    """Prompts into slots in the middle, moved to the first ones, and 12 steps on top of the cache."""
    source = read_artifact(artifact)
    vocab_size, first_slot = source.config.vocab_size, 2
    rng = np.random.default_rng(sum(lengths))
    params = SequenceParams(max_tokens=20, seed=0, temperature=0.0)
    sequences = [
        Sequence(tuple(rng.integers(0, vocab_size, n).tolist()), params, slot=first_slot + i)
        for i, n in enumerate(lengths)
    ]
    runner = ModelRunner(source, CpuDevice(), num_slots=20, max_length=400)

    def run(batch: Batch) -> None:
        runner.launch(batch)
        runner.collect()

    for slot, sequence in enumerate(sequences):
        while sequence.num_prompt_left:
            num_tokens = min(sequence.num_prompt_left, MAX_PREFILL_TOKENS)
            run(Batch([sequence], num_tokens, is_prefill=True, copies=[], admitted=[]))
            sequence.num_computed += num_tokens
        runner.cache.copy(slot + first_slot, slot, sequence.num_computed)
        sequence.slot = slot
    for step in range(12):
        run(Batch(sequences, 1, is_prefill=False, copies=[], admitted=sequences if step == 0 else []))
        for row, sequence in enumerate(sequences):
            text = [*sequence.prompt_token_ids, *sequence.output_token_ids]
            with torch.inference_mode():
                expected = reference_model(torch.tensor([text])).logits[0, -1].numpy()
            np.testing.assert_allclose(runner.logits[row], expected, atol=1e-4)
            sequence.num_computed += 1
            sequence.append(int(rng.integers(0, vocab_size)))


def torch_logits(model: Any) -> LastLogits:
    """The logits of transformers' model, or of one that is called as it is, for `compare`."""

    def last_logits(token_ids: Seq[int]) -> NDArray[np.float32]:
        ids = torch.tensor([token_ids])
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(ids, attention_mask=torch.ones_like(ids)).logits.numpy()
        return logits[0, -NUM_STEPS:]

    return last_logits


def test_the_logits_are_numpys_and_transformers(
    artifact: Path, checkpoint: Path, reference_model: Any
) -> None:
    for expected in (numpy_logits(read_checkpoint(checkpoint)), torch_logits(reference_model)):
        difference = compare(read_artifact(artifact), expected)
        assert difference is not None
        assert difference.is_close
        assert 0 < difference.largest < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_the_logits_are_those_of_optimums_own_export(tmp_path: Path) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    folder = write_checkpoint(tmp_path / "checkpoint", layout="modern", n_layer=1, n_positions=64)
    artifact = export_checkpoint(folder, tmp_path / "artifact")
    model = optimum.ORTModelForCausalLM.from_pretrained(folder, export=True, provider="CPUExecutionProvider")
    difference = compare(artifact, torch_logits(model))
    assert difference is not None
    assert difference.is_close


def wrong_graph(config: Any, *args: Any, **options: Any) -> Any:
    """The graph as if the exporter had taken another epsilon."""
    object.__setattr__(config, "layer_norm_epsilon", 1e-2)
    model = build_graph(config, *args, **options)
    object.__setattr__(config, "layer_norm_epsilon", 1e-5)
    return model


def test_an_artifact_whose_logits_differ_is_not_saved(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgt_infer.export.build_graph", wrong_graph)
    with pytest.raises(ModelFormatError, match=r"differ from NumPy's by up to"):
        export_checkpoint(checkpoint, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []
    export_checkpoint(checkpoint, tmp_path / "artifact", is_verified=False)


def test_the_check_runs_on_the_device_that_is_given_and_leaves_it_open(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16's GPU is the caller's; a stand-in takes the fp32 graph."""
    device, closed = FakeCudaDevice(), []
    monkeypatch.setattr(device, "close", lambda: closed.append(True))
    export_checkpoint(
        checkpoint, tmp_path / "artifact", open_device=lambda precision: contextlib.nullcontext(device)
    )
    assert "cudaMalloc" in device.cudart.calls
    assert not closed


def test_no_device_is_opened_before_the_arguments_are_right(tmp_path: Path) -> None:
    opened: list[str] = []
    for output in (tmp_path / "artifact", tmp_path):
        with pytest.raises((ModelNotFoundError, ParameterError)):
            export_checkpoint(tmp_path / "none", output, precision="fp16", open_device=opened.append)  # type: ignore[arg-type]
    assert not opened


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_untied_head_is_exported(tmp_path: Path, precision: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", layout="modern")
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    weights["lm_head.weight"] = rng.normal(size=weights["transformer.wte.weight"].shape).astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    artifact = export_checkpoint(folder, tmp_path / "artifact", precision=precision)
    difference = compare(artifact, torch_logits(GPT2LMHeadModel.from_pretrained(folder).eval()))
    assert difference is not None
    assert difference.is_close


def test_the_fp16_graph_holds_fp16_weights_and_caches_and_gives_logits_in_fp16(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        artifact = export_checkpoint(checkpoint, tmp_path / "artifact", precision="fp16")
    model = onnx.load(artifact.model_path, load_external_data=False)
    types = {
        value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]
    }
    assert types["past_key.0"] == types["present_value.1"] == onnx.TensorProto.FLOAT16
    assert types["logits"] == onnx.TensorProto.FLOAT16
    weights = {
        w.name: w.data_type for w in model.graph.initializer if ".weight" in w.name or ".bias" in w.name
    }
    assert set(weights.values()) == {onnx.TensorProto.FLOAT16}
    assert artifact.precision == "fp16"
    assert "not verified" in caplog.text


def test_a_weight_beyond_fp16_is_refused_by_name() -> None:
    with pytest.raises(ModelFormatError, match=r"wte.weight: largest magnitude 1e\+06.*fp16"):
        convert("wte.weight", np.array([1e6], np.float32), "fp16")


@pytest.fixture(scope="module")
def fp16_model(checkpoint: Path) -> onnx.ModelProto:
    source = read_checkpoint(checkpoint)
    return ir.to_proto(build_graph(source.config, source.weights, precision="fp16"))


def test_every_node_of_a_layer_is_fused(fp16_model: onnx.ModelProto) -> None:
    """Nine nodes a layer and no more: what a captured graph launches."""
    model = fp16_model
    layer = [node.op_type for node in model.graph.node if node.name.startswith("h.0/")]
    assert layer == [
        "MatMul",
        "Add",
        "GroupQueryAttention",
        "MatMul",
        "SkipLayerNormalization",
        "MatMul",
        "FastGelu",
        "MatMul",
        "SkipLayerNormalization",
    ]


def test_the_kernels_graph_has_four_nodes_a_layer(artifact: Path) -> None:
    model = onnx.load(read_artifact(artifact).kernel_path, load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    num_layers = read_artifact(artifact).config.n_layer
    assert operators[0] == "Embedding"
    assert operators.count("Attention") == num_layers
    assert operators.count("Linear") == 4 * num_layers + 1
    assert set(operators) == {"Embedding", "Attention", "Linear", "Gather"}


def test_wte_is_stored_once_for_embedding_and_head(artifact: Path, fp16_model: onnx.ModelProto) -> None:
    kernel_model = onnx.load(read_artifact(artifact).kernel_path, load_external_data=False)
    for model, expected in ((fp16_model, ["Gather", "Gemm"]), (kernel_model, ["Embedding", "Linear"])):
        users = [node.op_type for node in model.graph.node if "wte.weight" in node.input]
        assert users == expected
        assert "lm_head.weight" not in {w.name for w in model.graph.initializer}


def test_both_graphs_share_the_weights_of_one_file(artifact: Path) -> None:
    source = read_artifact(artifact)
    model, kernel_model = (
        onnx.load(path, load_external_data=False) for path in (source.model_path, source.kernel_path)
    )
    places = [
        {
            w.name: [(e.key, e.value) for e in w.external_data]
            for w in one.graph.initializer
            if w.external_data
        }
        for one in (model, kernel_model)
    ]
    assert places[0] == places[1]
    assert "h.0.attn.c_attn.weight" in places[0]


def test_an_unknown_precision_is_named_and_nothing_is_written(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ParameterError, match="precision must be"):
        export_checkpoint(checkpoint, tmp_path / "artifact", precision="int3")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced_only_by_force(tmp_path: Path, checkpoint: Path) -> None:
    for force in (False, True):
        export_checkpoint(checkpoint, tmp_path / "artifact", force=force, is_verified=False)
        with pytest.raises(ParameterError, match="artifact"):
            export_checkpoint(checkpoint, tmp_path / "artifact")

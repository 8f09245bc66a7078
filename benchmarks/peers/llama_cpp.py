"""llama.cpp, through llama-cpp-python's bindings: its continuous batching, its kernels and its samplers.

The packages llama-cpp-python and gguf have to be installed; the first is compiled for the machine at hand.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure.environment import num_physical_cores
from benchmarks.measure.workloads import SEED, MixedWorkload, TokenIds, Workload

MAX_LENGTH = 256  # tokens of a sequence, but for one that is alone
LONGEST = 1024
NUM_SEQUENCES = 64
NUM_MIXED = 32
"""The fastest of 16, 32 and 64 for requests of mixed lengths, which leave gaps between the active ones."""
_TENSORS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


class LlamaCpp:
    """From ids to ids. New requests enter as soon as earlier ones end.

    Args:
        checkpoint: is converted into the folder, once.
        quantization: "f32" with a cache of fp32, or "q8_0" (8-bit integers in blocks of 32, activations
            too) with one of fp16, its default.
    """

    def __init__(self, checkpoint: Path, folder: Path, *, quantization: str) -> None:
        import llama_cpp

        self.name = "llama_cpp" if quantization == "f32" else f"llama_cpp_{quantization}"
        path = folder / f"{quantization}.gguf"
        if not path.exists():
            convert(checkpoint, path, quantization)
        self._lib = llama_cpp
        self._end_of_text = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        self._quantization = quantization
        self._shape: tuple[int, int, bool] | None = None
        self._context: Any = None

    def generate(
        self, workload: Workload | MixedWorkload, *, greedy: bool = False, seeds: Sequence[int] | None = None
    ) -> TokenIds:
        requests = [
            _Request(seeds[number] if seeds else SEED + number, ids, length)
            for number, (ids, length) in enumerate(
                (ids, length)
                for ids, length in zip(workload.prompt_token_ids, workload.lengths, strict=True)
                for _ in range(workload.n)
            )
        ]
        if max(len(request.prompt) + request.length for request in requests) > MAX_LENGTH:
            num_slots, max_length, is_unified = 1, LONGEST, True
        elif isinstance(workload, MixedWorkload):
            num_slots, max_length, is_unified = NUM_MIXED, MAX_LENGTH, True
        else:  # a stream of cache for each: all of them are active, and none is masked from others
            num_slots, max_length, is_unified = NUM_SEQUENCES, MAX_LENGTH, False
        self._make_context(num_slots, max_length, is_unified)
        self._run(requests, workload, greedy, num_slots)
        return [tuple(request.token_ids) for request in requests]

    def _run(self, requests: Sequence[_Request], workload: Any, greedy: bool, num_slots: int) -> None:
        lib, context = self._lib, self._context
        memory = lib.llama_get_memory(context)
        waiting = deque(requests)
        active: dict[int, _Request] = {}
        free = [*range(num_slots)]
        batch = lib.llama_batch_init(lib.llama_n_batch(context), 0, 1)
        try:
            while waiting or active:
                while waiting and free:
                    request = waiting.popleft()
                    request.sampler = self._sampler(workload, request.seed, greedy=greedy)
                    active[free.pop(0)] = request
                batch.n_tokens = 0
                for slot in sorted(active):  # runs of neighbouring streams are computed together
                    active[slot].feed(batch, slot)
                if lib.llama_decode(context, batch) != 0:
                    raise RuntimeError("llama_decode failed")
                for slot, request in list(active.items()):
                    token_id = lib.llama_sampler_sample(request.sampler, context, request.last_index)
                    request.token_ids.append(token_id)
                    if len(request.token_ids) == request.length:
                        lib.llama_sampler_free(request.sampler)
                        lib.llama_memory_seq_rm(memory, slot, -1, -1)
                        del active[slot]
                        free.append(slot)
                free.sort()
        finally:
            lib.llama_batch_free(batch)

    def _sampler(self, workload: Any, seed: int, *, greedy: bool) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        vocab = lib.llama_model_get_vocab(self._model)
        suppressed = (lib.llama_logit_bias * 1)(lib.llama_logit_bias(self._end_of_text, -float("inf")))
        samplers = [lib.llama_sampler_init_logit_bias(lib.llama_vocab_n_tokens(vocab), 1, suppressed)]
        if greedy:
            samplers.append(lib.llama_sampler_init_greedy())
        else:
            samplers += [
                lib.llama_sampler_init_top_k(workload.top_k),
                lib.llama_sampler_init_top_p(workload.top_p, 1),
                lib.llama_sampler_init_temp(workload.temperature),
                lib.llama_sampler_init_dist(seed),
            ]
        for sampler in samplers:
            lib.llama_sampler_chain_add(chain, sampler)
        return chain

    def _make_context(self, num_sequences: int, max_length: int, is_unified: bool) -> None:
        """Make a context of that shape, unless the one at hand has it."""
        shape = num_sequences, max_length, is_unified
        if shape == self._shape:
            return
        if self._context is not None:
            self._lib.llama_free(self._context)
        params = self._lib.llama_context_default_params()
        params.n_seq_max = num_sequences
        params.n_ctx = num_sequences * max_length
        params.n_batch = LONGEST
        params.n_threads = params.n_threads_batch = num_physical_cores()
        params.kv_unified = is_unified
        if self._quantization == "f32":
            params.type_k = params.type_v = self._lib.GGML_TYPE_F32
        self._context, self._shape = self._lib.llama_init_from_model(self._model, params), shape


@dataclass
class _Request:
    """One sequence: how far it is, and its row in the batch that was computed last."""

    seed: int
    prompt: Sequence[int]
    length: int
    sampler: Any = None
    last_index: int = 0
    token_ids: list[int] = field(default_factory=list)

    def feed(self, batch: Any, slot: int) -> None:
        """Append what has not been computed yet: the prompt, or the last token."""
        ids = self.token_ids[-1:] or self.prompt
        start = len(self.prompt) + len(self.token_ids) - 1 if self.token_ids else 0
        for position, id_ in enumerate(ids, start):
            self.last_index = batch.n_tokens
            batch.token[batch.n_tokens] = id_
            batch.pos[batch.n_tokens] = position
            batch.n_seq_id[batch.n_tokens] = 1
            batch.seq_id[batch.n_tokens][0] = slot
            batch.logits[batch.n_tokens] = 0
            batch.n_tokens += 1
        batch.logits[self.last_index] = 1


def convert(checkpoint: Path, path: Path, quantization: str) -> None:
    """Write a checkpoint as GGUF, with its tokenizer: embeddings and matrices quantized, the rest fp32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    partial = path.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()), config)
    kind = gguf.GGMLQuantizationType[quantization.upper()]

    def add(name: str, array: Any, *, is_matrix: bool = False) -> None:
        array = array.astype("float32")
        if is_matrix and quantization != "f32":
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)

    def weight(name: str) -> Any:
        return weights[name if name in weights else f"transformer.{name}"]

    add("token_embd.weight", weight("wte.weight"), is_matrix=True)
    add("position_embd.weight", weight("wpe.weight"))
    for kind_of in ("weight", "bias"):
        add(f"output_norm.{kind_of}", weight(f"ln_f.{kind_of}"))
    for layer in range(config["n_layer"]):
        for ours, theirs in _TENSORS.items():
            array = weight(f"h.{layer}.{ours}.weight")
            # Matrices are [in, out] in a checkpoint and [out, in] in GGUF.
            add(f"blk.{layer}.{theirs}.weight", array.T.copy(), is_matrix=array.ndim == 2)
            add(f"blk.{layer}.{theirs}.bias", weight(f"h.{layer}.{ours}.bias"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def _add_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """Write a byte-level BPE, as `tokenizer.json` has it."""
    import gguf

    ids = dict(tokenizer["model"]["vocab"])
    special = {entry["content"] for entry in tokenizer["added_tokens"] if entry["special"]}
    ids |= {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    # llama.cpp refuses a BPE without merges. It never applies one of two tokens that no merge makes.
    merges = merges or [" ".join(tokens[-3:-1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)

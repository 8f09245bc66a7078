"""ModelRunner: the session, the buffers it is bound to, and one method that runs a batch.

It reads sequences and never changes them. What a slot needs (settings, random numbers, cache) is
written when the slot changes; a step then costs a run of the graph and a copy of token ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from hgt_infer.artifact import PRECISIONS, Artifact
from hgt_infer.device import Device, DeviceArray
from hgt_infer.errors import DeviceUnavailableError, ModelFormatError
from hgt_infer.kv_cache import KVCache
from hgt_infer.sampling import (
    GRAPH_MAX_TOP_K,
    GRAPH_UNIFORMS,
    UNIFORMS_PER_STEP,
    sample_row,
    uniforms,
)
from hgt_infer.scheduler import Batch, Copy
from hgt_infer.sequence import Sequence

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-5, 1e30
"""What float32 logits can be divided by; below, sampling is greedy, above it is uniform either way."""


class ModelRunner:
    """Runs batches of consecutive slots.

    Args:
        artifact: the exported model.
        device: where it runs.
        num_slots: sequences that can be in the cache at once.
        max_length: cache positions of a slot, prompt and output together.
        max_prefill_tokens: padded prompt tokens that one run may take, at least max_length.
    """

    def __init__(
        self, artifact: Artifact, device: Device, *, num_slots: int, max_length: int, max_prefill_tokens: int
    ) -> None:
        self.device = device
        self.config = artifact.config
        self.session = _open_session(artifact, device)
        self.cache = KVCache(
            device,
            artifact.config,
            num_slots=num_slots,
            max_length=max_length,
            dtype=PRECISIONS[artifact.precision],
        )
        num_ids = max(num_slots, max_prefill_tokens)
        self.input_ids = device.array((num_ids,), np.int64)
        self.position_ids = device.array((num_ids,), np.int64)
        self.seqlens_k = device.array((num_slots,), np.int32)
        self.total_sequence_length = np.zeros((), np.int32)  # the graph reads it in CPU memory
        self.uniforms = device.array((num_slots, GRAPH_UNIFORMS), np.float32)
        # Settings of each slot; top_p 1 is given as 2, beyond any rounding of the whole mass.
        self.settings: dict[str, DeviceArray] = {
            "temperature": device.array((num_slots,), np.float32),
            "top_k": device.array((num_slots,), np.int64),
            "top_p": device.array((num_slots,), np.float32),
            "min_length": device.array((num_slots,), np.int32),
        }
        self.token_ids = device.array((num_slots,), np.int64)
        self.unresolved = device.array((num_slots,), np.bool_)
        self.logits = device.array((num_slots, self.config.vocab_size), np.float32)
        # Host only: every random number of a slot's sequence, and whether the host samples it.
        self.streams = np.zeros((num_slots, max_length, UNIFORMS_PER_STEP), np.float32)
        self.on_host = np.zeros(num_slots, np.bool_)
        self._decode_bindings: dict[int, Any] = {}

    def run(self, batch: Batch) -> list[int]:
        """Run a batch and return one sampled token id per sequence, in their order."""
        for copy in batch.copies:
            self._copy_slot(copy)
        for sequence in batch.admitted:
            self._write_settings(sequence)
        if batch.admitted or batch.copies:
            self._upload_settings(batch.sequences)

        binding = self._prefill(batch.sequences) if batch.is_prefill else self._decode(batch.sequences)
        self.device.synchronize()
        self.session.run_with_iobinding(binding)
        return self._read_tokens(batch.sequences)

    def _prefill(self, sequences: list[Sequence]) -> Any:
        """Whole prompts from position 0, padded on the right."""
        num_rows = len(sequences)
        lengths = [len(sequence.prompt_token_ids) for sequence in sequences]
        shape = (num_rows, max(lengths))
        input_ids = self.input_ids.host[: num_rows * shape[1]].reshape(shape)
        input_ids.fill(0)
        for row, sequence in zip(input_ids, sequences, strict=True):
            row[: len(sequence.prompt_token_ids)] = sequence.prompt_token_ids
        self.position_ids.host[: num_rows * shape[1]].reshape(shape)[:] = np.arange(shape[1])
        self._write_step(sequences, np.asarray(lengths, np.int32) - 1, shape)
        return self._bind(shape, _slots(sequences).start)

    def _decode(self, sequences: list[Sequence]) -> Any:
        """One token of each sequence, at the position behind what is in the cache."""
        num_rows = len(sequences)
        positions = np.fromiter((sequence.num_computed for sequence in sequences), np.int32, num_rows)
        self.input_ids.host[:num_rows] = [sequence.next_input_id for sequence in sequences]
        self.position_ids.host[:num_rows] = positions
        self._write_step(sequences, positions, (num_rows, 1))
        if num_rows not in self._decode_bindings:
            self._decode_bindings[num_rows] = self._bind((num_rows, 1), first_slot=0)
        return self._decode_bindings[num_rows]

    def _write_step(self, sequences: list[Sequence], last_positions: Any, shape: tuple[int, int]) -> None:
        """What changes in every run: lengths and random numbers."""
        num_rows = len(sequences)
        steps = np.fromiter((len(s.output_token_ids) for s in sequences), np.intp, num_rows)
        self.seqlens_k.host[:num_rows] = last_positions
        self.total_sequence_length[...] = last_positions.max() + 1
        self.uniforms.host[:num_rows] = self.streams[_slots(sequences)][
            np.arange(num_rows), steps, :GRAPH_UNIFORMS
        ]
        num_ids = shape[0] * shape[1]
        for array, count in (
            (self.input_ids, num_ids),
            (self.position_ids, num_ids),
            (self.seqlens_k, num_rows),
            (self.uniforms, num_rows),
        ):
            array.upload(count)

    def _read_tokens(self, sequences: list[Sequence]) -> list[int]:
        """Token ids of the run just done; rows that the graph left are drawn here from their logits."""
        num_rows = len(sequences)
        self.token_ids.download(num_rows)
        self.unresolved.download(num_rows)
        token_ids: list[int] = self.token_ids.host[:num_rows].tolist()
        left = np.flatnonzero(self.unresolved.host[:num_rows] | self.on_host[_slots(sequences)])
        if left.size:
            self.logits.download(num_rows)
            for row in left:
                token_ids[row] = self._sample_on_host(sequences[row], self.logits.host[row].copy())
        return token_ids

    def _sample_on_host(self, sequence: Sequence, logits: Any) -> int:
        params = sequence.params
        step = len(sequence.output_token_ids)
        if step < params.min_tokens:
            logits[list(params.eos_token_ids)] = -np.inf
        return sample_row(
            logits,
            float(self.streams[sequence.slot, step, -1]),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
        )

    def _write_settings(self, sequence: Sequence) -> None:
        slot, params = sequence.slot, sequence.params
        assert slot is not None
        greedy = params.temperature < MIN_TEMPERATURE
        top_k = params.top_k if params.top_k < self.config.vocab_size else 0
        on_host = not greedy and top_k > GRAPH_MAX_TOP_K
        # Greedy: of the largest logit and its ties, a tiny nucleus keeps the first.
        row = {
            "temperature": 1.0 if greedy else min(params.temperature, MAX_TEMPERATURE),
            "top_k": 1 if greedy or on_host else top_k,
            "top_p": 1e-6 if greedy else (params.top_p if params.top_p < 1 else 2.0),
            "min_length": len(sequence.prompt_token_ids) + params.min_tokens,
        }
        for name, value in row.items():
            self.settings[name].host[slot] = value
        self.on_host[slot] = on_host
        self.streams[slot, : params.max_tokens] = uniforms(
            params.seed, sequence.sample_index, params.max_tokens
        )

    def _upload_settings(self, sequences: list[Sequence]) -> None:
        for array in self.settings.values():
            array.upload(_slots(sequences).stop)

    def _copy_slot(self, copy: Copy) -> None:
        source, target, length = copy
        self.cache.copy(source, target, length)
        for array in self.settings.values():
            array.host[target] = array.host[source]
        self.on_host[target] = self.on_host[source]
        self.streams[target] = self.streams[source]

    def _bind(self, shape: tuple[int, int], first_slot: int) -> Any:
        """Bind a run over slots first_slot … first_slot + shape[0] - 1, shape[1] tokens each."""
        binding = self.session.io_binding()
        kind, device_id = self.device.kind, self.device.device_id
        num_rows = shape[0]

        def bind_input(name: str, array: DeviceArray, shape: tuple[int, ...], row: int = 0) -> None:
            dtype = array.host.dtype
            address = array.address + row * array.host.strides[0]
            binding.bind_input(name, kind, device_id, dtype.type, shape, address)

        bind_input("input_ids", self.input_ids, shape)
        bind_input("position_ids", self.position_ids, shape)
        bind_input("seqlens_k", self.seqlens_k, (num_rows,))
        bind_input("uniforms", self.uniforms, (num_rows, GRAPH_UNIFORMS))
        for name, array in self.settings.items():
            bind_input(name, array, (num_rows,), first_slot)
        binding.bind_input(
            "total_sequence_length", "cpu", 0, np.int32, (), self.total_sequence_length.ctypes.data
        )
        outputs = {"token_ids": self.token_ids, "unresolved": self.unresolved, "logits": self.logits}
        for name, output in outputs.items():
            output_shape = (num_rows, *output.host.shape[1:])
            binding.bind_output(name, kind, device_id, output.host.dtype.type, output_shape, output.address)
        # The same memory as past and as present: the graph appends to it in place.
        cache_type = self.cache.dtype.type
        cache_shape = (num_rows, *self.cache.slot_shape)
        for name, address in self.cache.addresses(first_slot).items():
            binding.bind_input(f"past_{name}", kind, device_id, cache_type, cache_shape, address)
            binding.bind_output(f"present_{name}", kind, device_id, cache_type, cache_shape, address)
        return binding


def _slots(sequences: list[Sequence]) -> slice:
    """The consecutive slots of a batch."""
    first_slot = sequences[0].slot
    assert first_slot is not None
    return slice(first_slot, first_slot + len(sequences))


def _open_session(artifact: Artifact, device: Device) -> Any:
    options = ort.SessionOptions()
    # Prompts come in any shape; a memory plan kept for each of them would grow without bound.
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(str(artifact.model_path), options, providers=[device.provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelFormatError(f"{artifact.model_path}: ONNX Runtime cannot load it: {error}") from error
    if session.get_providers()[0] != device.provider[0]:
        raise DeviceUnavailableError(
            f"ONNX Runtime could not start {device.provider[0]} and fell back to {session.get_providers()}"
        )
    return session

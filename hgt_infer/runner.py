"""ModelRunner: the session, the buffers it is bound to, and one method that runs a batch.

It reads sequences and never changes them. What a slot needs (settings, random numbers, cache) is
written when the slot changes; a step then costs a run of the graph and a copy of token ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hgt_infer.artifact import PRECISIONS, Artifact
from hgt_infer.device import Device, DeviceArray
from hgt_infer.errors import DeviceUnavailableError, ModelFormatError
from hgt_infer.kv_cache import KVCache
from hgt_infer.sampling import (
    GRAPH_MAX_TOP_K,
    GRAPH_UNIFORMS,
    MIN_TEMPERATURE,
    UNIFORMS_PER_STEP,
    add_token,
    adjustment,
    is_adjusted,
    needs_host,
    process_logits,
    sample_row,
    token_logprobs,
    uniforms,
)
from hgt_infer.scheduler import MAX_PREFILL_TOKENS, Batch, BatchOutput, Copy
from hgt_infer.sequence import Sequence

MAX_TEMPERATURE = 1e30
"""The largest that float32 logits are divided by; above it sampling is uniform either way."""


class ModelRunner:
    """Runs batches of consecutive slots.

    Args:
        artifact: the exported model.
        device: where it runs.
        num_slots: sequences that can be in the cache at once.
        max_length: cache positions of a slot, prompt and output together.
    """

    def __init__(self, artifact: Artifact, device: Device, *, num_slots: int, max_length: int) -> None:
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
        vocab_size = artifact.config.vocab_size
        num_ids = max(num_slots, MAX_PREFILL_TOKENS)
        self.input_ids = device.array((num_ids,), np.int64)
        self.position_ids = device.array((num_ids,), np.int64)
        self.output_index = device.array((num_ids,), np.int64)
        self.step_output_index = device.array((num_slots,), np.int64)  # zeros: a step has one token a row
        self.seqlens_k = device.array((num_slots,), np.int32)
        self.total_sequence_length = np.zeros((), np.int32)  # the graph reads it in CPU memory
        self.uniforms = device.array((num_ids, GRAPH_UNIFORMS), np.float32)
        # Settings of each slot; top_p 1 is given as 2, beyond any rounding of the whole mass.
        self.settings = _settings(device, num_slots)
        # Those of a prefill's rows: what they sample means nothing.
        self.neutral_settings = _settings(device, MAX_PREFILL_TOKENS)
        # Read only in a batch that has an adjusted row; the others' must then change nothing.
        self.logit_bias = device.array((num_slots, vocab_size), np.float32)
        self.repetition_penalty = device.array((num_slots, vocab_size), np.float32)
        self.repetition_penalty.host.fill(1.0)
        self.repetition_penalty.upload(num_slots)
        self.token_ids = device.array((num_ids,), np.int64)
        self.unresolved = device.array((num_ids,), np.bool_)
        self.logits = device.array((num_ids, vocab_size), np.float32)
        # Host only: every random number of a slot's sequence, whether the host samples it, and whether it
        # reads the slot's logits at all.
        self.streams = np.zeros((num_slots, max_length, UNIFORMS_PER_STEP), np.float32)
        self.on_host = np.zeros(num_slots, np.bool_)
        self.reads_logits = np.zeros(num_slots, np.bool_)
        self._step_bindings: dict[int, Any] = {}

    def run(self, batch: Batch) -> BatchOutput:
        """Run a batch and return what it gave; reads its sequences and changes none."""
        for copy in batch.copies:
            self._copy_slot(copy)
        for sequence in batch.admitted:
            self._write_settings(sequence)
        if batch.admitted or batch.copies:
            for array in self.settings.values():
                array.upload(_slots(batch.sequences).stop)

        if batch.is_prefill:
            return self._prefill(batch.sequences, batch.num_tokens)
        return self._step(batch.sequences)

    def _prefill(self, sequences: list[Sequence], num_tokens: int) -> BatchOutput:
        """The next num_tokens tokens of each prompt, all at the same position; logits for who asked."""
        start = sequences[0].num_computed
        stop = start + num_tokens
        num_rows = len(sequences)
        is_scored = any(s.scores_prompt and s.num_unscored < stop for s in sequences)
        num_outputs = num_tokens if is_scored else 0
        _fill(self.input_ids, [s.prompt_token_ids[start:stop] for s in sequences])
        _fill(self.position_ids, [range(start, stop)] * num_rows)
        _fill(self.output_index, [range(num_outputs)] * num_rows)
        _fill(self.seqlens_k, [stop - 1] * num_rows)
        self.total_sequence_length[...] = stop
        self._run(self._bind((num_rows, num_tokens), num_outputs, _slots(sequences).start))
        output = BatchOutput([])
        if is_scored:
            self.logits.download(num_rows * num_outputs)
            logits = self.logits.host[: num_rows * num_outputs].reshape(num_rows, num_outputs, -1)
            for sequence, rows in zip(sequences, logits, strict=True):
                _score_prompt(sequence, rows, output)
        return output

    def _step(self, sequences: list[Sequence]) -> BatchOutput:
        """One token of each sequence, behind what is in the cache, and a sample of the next."""
        num_rows = len(sequences)
        positions = [s.num_computed for s in sequences]
        steps = [len(s.output_token_ids) for s in sequences]
        _fill(self.input_ids, [s.next_input_id for s in sequences])
        _fill(self.position_ids, positions)
        _fill(self.seqlens_k, positions)
        _fill(self.uniforms, self.streams[np.arange(num_rows), steps, :GRAPH_UNIFORMS])
        self.total_sequence_length[...] = max(positions) + 1
        for slot in np.flatnonzero(self.settings["is_adjusted"].host[:num_rows]):
            self._adjust_for_last_token(sequences[slot])
        if num_rows not in self._step_bindings:
            self._step_bindings[num_rows] = self._bind((num_rows, 1), 1, first_slot=0)
        self._run(self._step_bindings[num_rows])

        self.token_ids.download(num_rows)
        self.unresolved.download(num_rows)
        output = BatchOutput(self.token_ids.host[:num_rows].tolist())
        to_read = np.flatnonzero(self.unresolved.host[:num_rows] | self.reads_logits[:num_rows])
        if to_read.size:
            self.logits.download(num_rows)
            for row in to_read.tolist():
                self._read_logits(row, sequences[row], output)
        return output

    def _run(self, binding: Any) -> None:
        self.device.synchronize()
        self.session.run_with_iobinding(binding)

    def _read_logits(self, slot: int, sequence: Sequence, output: BatchOutput) -> None:
        """What the graph does not do for a row of a step: log-probabilities, filters that need the host."""
        logits = self.logits.host[slot]
        if not sequence.has_cached_prompt:
            _score_prompt(sequence, logits[None], output)
            return
        if self.on_host[slot] or self.unresolved.host[slot]:
            try:
                output.token_ids[slot] = self._sample_on_host(slot, sequence, logits)
            except BaseException as error:  # a logits_processor's own, or filters that leave no token
                output.errors.append((sequence, error))
                return
        num_top = sequence.params.logprobs
        if num_top is not None:
            logprobs = token_logprobs(logits, output.token_ids[slot], num_top)
            output.logprobs.append((sequence, logprobs))

    def _sample_on_host(self, slot: int, sequence: Sequence, logits: NDArray[np.float32]) -> int:
        params, output_token_ids = sequence.params, sequence.output_token_ids
        adjusted = bool(self.settings["is_adjusted"].host[slot])
        logits = process_logits(
            logits,
            self.logit_bias.host[slot] if adjusted else None,
            self.repetition_penalty.host[slot] if adjusted else None,
            params,
            [*sequence.prompt_token_ids, *output_token_ids],
            len(output_token_ids),
        )
        return sample_row(logits, float(self.streams[slot, len(output_token_ids), -1]), params)

    def _write_settings(self, sequence: Sequence) -> None:
        slot, params = sequence.slot, sequence.params
        assert slot is not None
        vocab_size = self.config.vocab_size
        self._set_adjustment(
            slot,
            adjustment(params, sequence.prompt_token_ids, (), vocab_size) if is_adjusted(params) else None,
        )
        greedy = params.temperature < MIN_TEMPERATURE
        top_k = params.top_k if params.top_k < vocab_size else 0
        # Greedy: of the largest logit and its ties, a tiny nucleus keeps the first.
        row = {
            "temperature": 1.0 if greedy else min(params.temperature, MAX_TEMPERATURE),
            "top_k": 1 if greedy else min(top_k, GRAPH_MAX_TOP_K),
            "top_p": 1e-6 if greedy else (params.top_p if params.top_p < 1 else 2.0),
            "min_p": params.min_p,
            "min_length": len(sequence.prompt_token_ids) + params.min_tokens if params.eos_token_ids else 0,
        }
        for name, value in row.items():
            self.settings[name].host[slot] = value
        self.on_host[slot] = needs_host(params, vocab_size)
        self.reads_logits[slot] = self.on_host[slot] or params.logprobs is not None or sequence.scores_prompt
        self.streams[slot, : params.max_tokens] = uniforms(
            params.seed, sequence.sample_index, params.max_tokens
        )

    def _set_adjustment(
        self, slot: int, rows: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ) -> None:
        """Set or, by None, clear a slot's logit_bias and repetition_penalty; what is clear is left alone."""
        flag = self.settings["is_adjusted"].host
        if rows is not None or flag[slot]:
            bias, penalty = rows or (0.0, 1.0)
            self.logit_bias.host[slot] = bias
            self.repetition_penalty.host[slot] = penalty
            self._upload_adjustment(slot)
        flag[slot] = rows is not None

    def _upload_adjustment(self, slot: int) -> None:
        for array in (self.logit_bias, self.repetition_penalty):
            array.upload(slot + 1, first_row=slot)

    def _adjust_for_last_token(self, sequence: Sequence) -> None:
        output_token_ids, slot = sequence.output_token_ids, sequence.slot
        assert slot is not None
        if output_token_ids:
            token_id = output_token_ids[-1]
            rows = self.logit_bias.host[slot], self.repetition_penalty.host[slot]
            add_token(*rows, sequence.params, token_id, output_token_ids.count(token_id) == 1)
            self._upload_adjustment(slot)

    def _copy_slot(self, copy: Copy) -> None:
        source, target, length = copy
        self.cache.copy(source, target, length)
        rows = self.logit_bias.host[source], self.repetition_penalty.host[source]
        self._set_adjustment(target, rows if self.settings["is_adjusted"].host[source] else None)
        for array in (*(array.host for array in self.settings.values()), self.on_host, self.reads_logits):
            array[target] = array[source]
        self.streams[target] = self.streams[source]

    def _bind(self, shape: tuple[int, int], num_outputs: int, first_slot: int) -> Any:
        """Bind a run over slots first_slot … first_slot + shape[0] - 1.

        shape[1] tokens each, of which num_outputs give logits.
        """
        binding = self.session.io_binding()
        kind, device_id = self.device.kind, self.device.device_id
        num_rows, num_output_rows = shape[0], shape[0] * num_outputs
        is_step = num_outputs == 1
        num_adjusted_rows = num_rows if is_step else 1  # a prefill does not read them

        def bind_input(name: str, array: DeviceArray, shape: tuple[int, ...]) -> None:
            binding.bind_input(name, kind, device_id, array.host.dtype.type, shape, array.address)

        bind_input("input_ids", self.input_ids, shape)
        bind_input("position_ids", self.position_ids, shape)
        output_index = self.step_output_index if is_step else self.output_index
        bind_input("output_index", output_index, (num_rows, num_outputs))
        bind_input("seqlens_k", self.seqlens_k, (num_rows,))
        bind_input("uniforms", self.uniforms, (num_output_rows, GRAPH_UNIFORMS))
        for name, array in (self.settings if is_step else self.neutral_settings).items():
            bind_input(name, array, (num_output_rows,))
        for name in ("logit_bias", "repetition_penalty"):
            bind_input(name, getattr(self, name), (num_adjusted_rows, self.config.vocab_size))
        binding.bind_input(
            "total_sequence_length", "cpu", 0, np.int32, (), self.total_sequence_length.ctypes.data
        )
        for name in ("token_ids", "unresolved", "logits"):
            output: DeviceArray = getattr(self, name)
            output_shape = (num_output_rows, *output.host.shape[1:])
            binding.bind_output(name, kind, device_id, output.host.dtype.type, output_shape, output.address)
        # The same memory as past and as present: the graph appends to it in place.
        cache_type = self.cache.dtype.type
        cache_shape = (num_rows, *self.cache.slot_shape)
        for name, address in self.cache.addresses(first_slot).items():
            binding.bind_input(f"past_{name}", kind, device_id, cache_type, cache_shape, address)
            binding.bind_output(f"present_{name}", kind, device_id, cache_type, cache_shape, address)
        return binding


def _settings(device: Device, num_rows: int) -> dict[str, DeviceArray]:
    """The graph's settings of each row, all of them off."""
    off = {
        "temperature": (1.0, np.float32),
        "top_k": (1, np.int64),
        "top_p": (2.0, np.float32),
        "min_p": (0.0, np.float32),
        "min_length": (0, np.int32),
        "is_adjusted": (False, np.bool_),
    }
    settings = {name: device.array((num_rows,), dtype) for name, (_, dtype) in off.items()}
    for name, array in settings.items():
        array.host.fill(off[name][0])
        array.upload(num_rows)
    return settings


def _fill(array: DeviceArray, values: Any) -> None:
    """Write values, flattened into rows, to the beginning of an array and upload them."""
    rows = np.asarray(values, array.host.dtype).reshape(-1, *array.host.shape[1:])
    array.host[: len(rows)] = rows
    array.upload(len(rows))


def _score_prompt(sequence: Sequence, logits: NDArray[np.float32], output: BatchOutput) -> None:
    """Report the prompt's tokens behind those that gave logits [S, V], as far as they are asked for."""
    num_top = sequence.params.prompt_logprobs
    if num_top is None or not sequence.scores_prompt:
        return
    first = sequence.num_computed
    output.prompt_logprobs.append(
        (
            sequence,
            [
                token_logprobs(row, sequence.prompt_token_ids[position + 1], num_top)
                for position, row in enumerate(logits, first)
                if position >= sequence.num_unscored
            ],
        )
    )


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

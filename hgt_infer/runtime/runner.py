"""ModelRunner: runs batches one at a time, logits on the device and sampling on the host.

It reads sequences and never changes them. What a slot needs (settings, random numbers, cache) is
written when the slot changes; a step then costs a run of the model, one of the sampler, and a copy of
token ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.engine.batch import MAX_PREFILL_TOKENS, Batch, BatchOutput, Copy
from hgt_infer.engine.sequence import Sequence
from hgt_infer.runtime.device import CpuDevice, Device, DeviceArray
from hgt_infer.runtime.kernel_session import KernelSession
from hgt_infer.runtime.model_session import ModelBuffers, ModelSession
from hgt_infer.sampling.host import sample_on_host
from hgt_infer.sampling.logprobs import num_scored, score_prompts, token_logprobs
from hgt_infer.sampling.random_numbers import GRAPH_UNIFORMS, UNIFORMS_PER_STEP, uniforms
from hgt_infer.sampling.settings import add_token, adjustment, graph_settings, is_adjusted, needs_host


class ModelRunner:
    """Runs batches of consecutive slots, each to its end when it is launched.

    Args:
        artifact: the exported model.
        device: where the model runs; the sampler runs on the CPU.
        num_slots: sequences that can be in the cache at once.
        max_length: cache positions of a slot, prompt and output together.
    """

    max_in_flight = 1

    def __init__(self, artifact: Artifact, device: Device, *, num_slots: int, max_length: int) -> None:
        self.device = device
        self.config = artifact.config
        self.model = _open_model(artifact, device, num_slots=num_slots, max_length=max_length)
        self.cache = self.model.cache
        own = device if isinstance(device, CpuDevice) else CpuDevice()
        is_own = own.kernels is not None and artifact.has_kernel_graphs
        self.sampler = own.open_session(artifact.kernel_sampler_path if is_own else artifact.sampler_path)
        vocab_size = artifact.config.vocab_size
        num_ids = num_slots + MAX_PREFILL_TOKENS
        self.input_ids = device.array((num_ids,), np.int32)
        # Of runs with several tokens of a sequence; otherwise they are seqlens_k.
        self.position_ids = device.array((num_ids,), np.int32)
        self.seqlens_k = device.array((num_slots,), np.int32)
        self.total_sequence_length = np.zeros((), np.int32)
        self.first_output = np.zeros(1, np.int64)
        num_outputs = max(num_slots, MAX_PREFILL_TOKENS)
        self._logits = device.array((num_outputs, vocab_size), artifact.float_type)
        self.logits = self._logits.host.astype(np.float32, copy=False)  # what download_logits has read
        self.uniforms = np.zeros((num_slots, GRAPH_UNIFORMS), np.float32)
        # Settings of each slot, as `graph_settings` returns them.
        self.settings: dict[str, NDArray[Any]] = {
            "temperature": np.ones(num_slots, np.float32),
            "top_k": np.ones(num_slots, np.int64),
            "top_p": np.ones(num_slots, np.float32),
            "min_p": np.zeros(num_slots, np.float32),
            "min_length": np.zeros(num_slots, np.int32),
        }
        self.is_adjusted = np.zeros(num_slots, np.bool_)
        # Read only in a batch that has an adjusted row; the others' must then change nothing.
        self.logit_bias = np.zeros((num_slots, vocab_size), np.float32)
        self.repetition_penalty = np.ones((num_slots, vocab_size), np.float32)
        self.token_ids = np.zeros(num_slots, np.int64)
        self.unresolved = np.zeros(num_slots, np.bool_)
        # Every random number of a slot's sequence, whether the host samples it, and whether it reads the
        # slot's logits at all.
        self.streams = np.zeros((num_slots, max_length, UNIFORMS_PER_STEP), np.float32)
        self.on_host = np.zeros(num_slots, np.bool_)
        self.reads_logits = np.zeros(num_slots, np.bool_)
        self._bindings: dict[int, tuple[Any, Any]] = {}  # of a step's rows: the model's, the sampler's
        self._output = BatchOutput()

    @property
    def mixes_prompts(self) -> bool:
        """Whether a step can compute several tokens of a sequence, each the same bits as alone."""
        return isinstance(self.model, KernelSession)

    def warmup(self) -> None:
        """Nothing to do: no batch is slower for being the first."""

    def close(self) -> None:
        """Close the device."""
        self.device.close()

    def launch(self, batch: Batch) -> None:
        """Run a batch; reads its sequences and changes none."""
        with self.device.at_work():
            for copy in batch.copies:
                self._copy_slot(copy)
            for sequence in batch.admitted:
                self._write_settings(sequence)
            if batch.is_prefill:
                self._output = self._prefill(batch.sequences, batch.num_tokens)
            else:
                self._output = self._step(batch.sequences, batch.num_scheduled_tokens)

    def download_logits(self, num_rows: int) -> NDArray[np.float32]:
        """The first rows of the last run's logits, float32 [num_rows, V]; the next run overwrites them."""
        self._logits.download(num_rows)
        if self.logits is not self._logits.host:
            self.logits[:num_rows] = self._logits.host[:num_rows]
        return self.logits[:num_rows]

    def collect(self) -> BatchOutput:
        """What the batch that was launched gave."""
        return self._output

    def _prefill(self, sequences: list[Sequence], num_tokens: int) -> BatchOutput:
        """The next num_tokens tokens of each prompt, all at the same position; logits for who asked."""
        start = sequences[0].num_computed
        stop = start + num_tokens
        num_rows = len(sequences)
        assert sequences[0].slot is not None
        num_scores = num_scored(sequences, start, stop)
        num_outputs = max(num_scores, int(self.device.kind == "cuda"))  # a kernel over nothing may fail there
        _fill(self.input_ids, [s.prompt_token_ids[start:stop] for s in sequences])
        _fill(self.position_ids, [range(start, stop)] * num_rows)
        _fill(self.seqlens_k, [stop - 1] * num_rows)
        self.total_sequence_length[...] = stop
        self.first_output[...] = num_tokens - num_outputs
        binding = self.model.bind(
            self._buffers(self.position_ids),
            num_rows=num_rows,
            num_tokens=num_tokens,
            num_outputs=num_outputs,
            first_slot=sequences[0].slot,
        )
        self.model.run(binding)
        output = BatchOutput()
        if num_scores:
            logits = self.download_logits(num_rows * num_outputs)
            output.prompt_logprobs = score_prompts(sequences, logits, stop)
        return output

    def _step(self, sequences: list[Sequence], num_scheduled_tokens: list[int] | None) -> BatchOutput:
        """The next token of each sequence, or so many, and a sample behind the last one of its prompt."""
        num_rows = len(sequences)
        num_tokens = num_scheduled_tokens or [1] * num_rows
        starts = [s.num_computed for s in sequences]
        last = [start + count - 1 for start, count in zip(starts, num_tokens, strict=True)]
        samples = [
            position >= len(s.prompt_token_ids) - 1 for s, position in zip(sequences, last, strict=True)
        ]
        steps = [len(s.output_token_ids) for s in sequences]
        _fill(self.seqlens_k, last)
        self.uniforms[:num_rows] = self.streams[np.arange(num_rows), steps, :GRAPH_UNIFORMS]
        for slot in np.flatnonzero(self.is_adjusted[:num_rows]).tolist():
            params, output_ids = sequences[slot].params, sequences[slot].output_token_ids
            if output_ids:
                is_first = output_ids.count(output_ids[-1]) == 1
                rows = self.logit_bias[slot], self.repetition_penalty[slot]
                add_token(*rows, params, output_ids[-1], is_first)
        if num_rows not in self._bindings:
            self._bindings[num_rows] = self._bind_step(num_rows)
        model_binding, sampler_binding = self._bindings[num_rows]
        if max(num_tokens) == 1:
            _fill(self.input_ids, [s.next_input_id for s in sequences])
            self.total_sequence_length[...] = max(last) + 1
            self.first_output[...] = 0
        else:
            assert isinstance(self.model, KernelSession)
            pieces = zip(sequences, starts, num_tokens, strict=True)
            token_ids = [
                s.prompt_token_ids[start : start + count] if count > 1 else (s.next_input_id,)
                for s, start, count in pieces
            ]
            _fill(self.input_ids, np.concatenate(token_ids))
            positions = [np.arange(a, z + 1) for a, z in zip(starts, last, strict=True)]
            _fill(self.position_ids, np.concatenate(positions))
            model_binding = self.model.bind_pieces(self._buffers(self.position_ids), num_tokens)
        self.model.run(model_binding)
        self.download_logits(num_rows)
        self.sampler.run_with_iobinding(sampler_binding)

        to_read = np.flatnonzero((self.unresolved[:num_rows] | self.reads_logits[:num_rows]) & samples)
        output = BatchOutput()
        for row in to_read.tolist():
            self._read_logits(row, sequences[row], output)
        output.new_tokens = [
            (sequence, [token_id] if is_sampled else [])
            for sequence, token_id, is_sampled in zip(
                sequences, self.token_ids[:num_rows].tolist(), samples, strict=True
            )
        ]
        output.num_sampled = sum(samples)
        output.num_fed = sum(num_tokens) - output.num_sampled
        return output

    def _read_logits(self, slot: int, sequence: Sequence, output: BatchOutput) -> None:
        """What the graph does not do for a row of a step: log-probabilities, filters that need the host."""
        logits = self.logits[slot]
        if self.on_host[slot] or self.unresolved[slot]:
            adjusted = self.is_adjusted[slot]
            try:
                self.token_ids[slot] = sample_on_host(
                    logits,
                    (self.logit_bias[slot], self.repetition_penalty[slot]) if adjusted else None,
                    sequence.params,
                    sequence.prompt_token_ids,
                    sequence.output_token_ids,
                    float(self.streams[slot, len(sequence.output_token_ids), -1]),
                )
            except BaseException as error:  # a logits_processor's own, or filters that leave no token
                output.errors.append((sequence, error))
                return
        num_top = sequence.params.logprobs
        if num_top is not None:
            logprobs = token_logprobs(logits, int(self.token_ids[slot]), num_top)
            output.logprobs.append((sequence, logprobs))

    def _write_settings(self, sequence: Sequence) -> None:
        slot, params = sequence.slot, sequence.params
        assert slot is not None
        vocab_size = self.config.vocab_size
        self._set_adjustment(
            slot,
            adjustment(params, sequence.prompt_token_ids, (), vocab_size) if is_adjusted(params) else None,
        )
        settings = graph_settings(params, len(sequence.prompt_token_ids), vocab_size)
        for name, array in self.settings.items():
            array[slot] = getattr(settings, name)
        self.on_host[slot] = needs_host(params, vocab_size)
        self.reads_logits[slot] = self.on_host[slot] or params.logprobs is not None
        self.streams[slot, : params.max_tokens] = uniforms(
            params.seed, sequence.sample_index, params.max_tokens
        )

    def _set_adjustment(
        self, slot: int, rows: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ) -> None:
        """Set or, by None, clear a slot's logit_bias and repetition_penalty; what is clear is left alone."""
        if rows is not None or self.is_adjusted[slot]:
            bias, penalty = rows or (0.0, 1.0)
            self.logit_bias[slot] = bias
            self.repetition_penalty[slot] = penalty
        self.is_adjusted[slot] = rows is not None

    def _copy_slot(self, copy: Copy) -> None:
        source, target, length = copy
        self.cache.copy(source, target, length)
        rows = self.logit_bias[source], self.repetition_penalty[source]
        self._set_adjustment(target, rows if self.is_adjusted[source] else None)
        arrays: list[NDArray[Any]] = [self.on_host, self.reads_logits, self.streams]
        for array in (*self.settings.values(), *arrays):
            array[target] = array[source]

    def _buffers(self, position_ids: DeviceArray) -> ModelBuffers:
        return ModelBuffers(
            input_ids=self.input_ids.address,
            position_ids=position_ids.address,
            seqlens_k=self.seqlens_k.address,
            logits=self._logits.address,
            total_sequence_length=self.total_sequence_length,
            first_output=self.first_output,
        )

    def _bind_step(self, num_rows: int) -> tuple[Any, Any]:
        """The model's binding and the sampler's over slots 0 … num_rows - 1."""
        sampler_binding = self.sampler.io_binding()
        inputs: dict[str, NDArray[Any]] = {
            "logits": self.logits,
            "seqlens_k": self.seqlens_k.host,
            "uniforms": self.uniforms,
            "is_adjusted": self.is_adjusted,
            "logit_bias": self.logit_bias,
            "repetition_penalty": self.repetition_penalty,
            **self.settings,
        }
        outputs: dict[str, NDArray[Any]] = {"token_ids": self.token_ids, "unresolved": self.unresolved}
        for bind, arrays in ((sampler_binding.bind_input, inputs), (sampler_binding.bind_output, outputs)):
            for name, array in arrays.items():
                shape = (num_rows, *array.shape[1:])
                bind(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)
        model_binding = self.model.bind(
            self._buffers(self.seqlens_k), num_rows=num_rows, num_tokens=1, num_outputs=1
        )
        return model_binding, sampler_binding


def _open_model(
    artifact: Artifact, device: Device, *, num_slots: int, max_length: int
) -> ModelSession | KernelSession:
    """The decoder on a device, in our own operators where it has them."""
    if isinstance(device, CpuDevice) and device.kernels is not None and artifact.has_kernel_graphs:
        return KernelSession(artifact, device, num_slots=num_slots, max_length=max_length)
    return ModelSession(artifact, device, num_slots=num_slots, max_length=max_length)


def _fill(array: DeviceArray, values: Any) -> None:
    """Write values, flattened, to the beginning of an array and upload them."""
    flat = np.asarray(values, array.host.dtype).reshape(-1)
    array.host[: len(flat)] = flat
    array.upload(len(flat))

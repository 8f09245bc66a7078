"""What a captured runner has allocated: on the device, beside weights and cache, and page-locked memory."""

from __future__ import annotations

import numpy as np

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.slot_record import RECORD
from hgt_infer.engine.batch import MAX_PREFILL_TOKENS
from hgt_infer.runtime.model_session import ModelBuffers

STAGED_TABLES = 16
"""Adjusted sequences that enter at once without a wait in between."""

WORD_BYTES = 4
"""Of float32, int32 and uint32."""


class CapturedMemory:
    """Addresses of what is on the device beside weights, activations and cache, allocated once."""

    def __init__(self, artifact: Artifact, device: CudaDevice, num_rows: int, max_length: int) -> None:
        vocab_size = artifact.config.vocab_size
        self._total_sequence_length = np.array(max_length, np.int32)  # frozen when the graph is captured
        self._first_output = np.zeros(1, np.int64)
        self.vocab_bytes = vocab_size * WORD_BYTES
        self.logits_bytes = vocab_size * np.dtype(artifact.float_type).itemsize  # of a row
        self.state_pitch = num_rows * WORD_BYTES
        # The sampler reads vectors of 16 bytes.
        self.adjustments_pitch = -(-num_rows * self.vocab_bytes // 16) * 16
        self.state = device.allocate(2 * self.state_pitch)  # [2, R]: input ids, positions
        self.token_ids = device.allocate(num_rows * WORD_BYTES)  # [R]
        self.records = device.allocate(num_rows * RECORD.itemsize)  # [R]
        self.logits = device.allocate(num_rows * self.logits_bytes)  # [R, V]
        self._adjustments = device.allocate(3 * self.adjustments_pitch)  # [3, R, V]: bias, penalty, counts
        self.prefill = device.allocate(3 * MAX_PREFILL_TOKENS * WORD_BYTES)  # ids, positions, last positions
        self.prefill_logits = device.allocate(MAX_PREFILL_TOKENS * self.logits_bytes)

    def record(self, slot: int) -> int:
        """The address of the slot's record."""
        return self.records + slot * RECORD.itemsize

    def adjustments(self, slot: int) -> int:
        """The address of the slot's logit_bias; its repetition_penalty is adjustments_pitch bytes behind."""
        return self._adjustments + slot * self.vocab_bytes

    def token_counts(self, slot: int) -> int:
        """The address of the slot's counts of output tokens, uint32 [V]."""
        return self.adjustments(slot) + 2 * self.adjustments_pitch

    def step_buffers(self) -> ModelBuffers:
        """What a captured step reads and writes: the state itself is its input."""
        positions = self.state + self.state_pitch
        return ModelBuffers(
            input_ids=self.state,
            position_ids=positions,
            seqlens_k=positions,
            logits=self.logits,
            total_sequence_length=self._total_sequence_length,
            first_output=self._first_output,
        )

    def prefill_buffers(self, total_sequence_length: int, first_output: int) -> ModelBuffers:
        """What a prefill reads and writes."""
        pitch = MAX_PREFILL_TOKENS * WORD_BYTES
        return ModelBuffers(
            input_ids=self.prefill,
            position_ids=self.prefill + pitch,
            seqlens_k=self.prefill + 2 * pitch,
            logits=self.prefill_logits,
            total_sequence_length=np.array(total_sequence_length, np.int32),
            first_output=np.array([first_output], np.int64),
        )

    def sampler_arguments(self) -> list[int]:
        """The kernel's arguments, in the order of sampler.cu."""
        return [
            self.logits,
            self.state,
            self.state + self.state_pitch,
            self.records,
            *(self._adjustments + i * self.adjustments_pitch for i in range(3)),
            self.token_ids,
        ]


class Staging:
    """Page-locked host memory for what one run uploads, by slot, and for what its steps report."""

    def __init__(self, config: ModelConfig, device: CudaDevice, num_rows: int, num_steps: int) -> None:
        self.event = device.event()
        self.records = device.pinned((num_rows,), RECORD)
        assert RECORD.names is not None
        self.fields = {name: self.records[name] for name in RECORD.names}
        self.states = device.pinned((num_rows, 2, 1), np.int32)
        self.modes = device.pinned((num_rows, 1), np.int32)
        self.columns = device.pinned((num_rows, 3, 1), np.float32)
        self.tables = device.pinned((STAGED_TABLES, 2, config.vocab_size), np.float32)
        self.num_tables = 0
        self.prefill = device.pinned((3, MAX_PREFILL_TOKENS), np.int32)
        self.reports = device.pinned((num_steps, num_rows), np.int32)

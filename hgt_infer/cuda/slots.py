"""DeviceSlots: the record, state and adjustments that the device has of each slot's sequence.

All of it is written here, from page-locked memory of the run at hand (`Staging`), when a sequence enters or
leaves a slot, and for each token that the host has sampled. Steps advance it in between (`sampler.cu`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.cuda.memory import STAGED_TABLES, WORD_BYTES, CapturedMemory, Staging
from hgt_infer.cuda.sampler import MAX_TOP_P_TEMPERATURE
from hgt_infer.cuda.slot_record import (
    HOST_CONTROLLED,
    IDLE,
    MAX_EOS_TOKENS,
    MAX_FED_TOKENS,
    RECORD,
    RUNNING,
)
from hgt_infer.cuda.stream import CudaStream
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.sampling.settings import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    add_token,
    adjustment,
    is_adjusted,
    needs_host,
)

Rows = tuple[NDArray[np.float32], NDArray[np.float32]]
"""logit_bias and repetition_penalty of a sequence, float32 [V] each."""

_MODE_OFFSET = RECORD.fields["mode"][1]  # type: ignore[index]


class DeviceSlots:
    """Writes of slots, queued on the device's stream.

    Args:
        config: the model.
        stream: the device's.
        memory: where the slots are.

    Attributes:
        host_controlled: slots of which the host reads the logits of each token.
    """

    def __init__(self, config: ModelConfig, stream: CudaStream, memory: CapturedMemory) -> None:
        self.host_controlled: set[int] = set()
        self._vocab_size = config.vocab_size
        self._stream = stream
        self._memory = memory
        self._host_rows: dict[int, Rows] = {}  # of adjusted slots that the host controls
        # What the host has sampled since the last run: the next input id and position, and the token id with
        # its bias, penalty and count from then on.
        self._next_inputs: dict[int, tuple[int, int]] = {}
        self._next_adjustments: dict[int, tuple[int, float, float, int]] = {}

    def write_idle(self, staging: Staging) -> None:
        """Write the records of slots that nobody has used, and wait."""
        staging.records["mode"] = IDLE
        self._stream.copy_to_device(self._memory.records, staging.records)
        self._stream.synchronize()

    def enter(self, slot: int, sequence: Sequence, staging: Staging, *, is_prefilled: bool) -> None:
        """Write what the device needs of a sequence.

        The slot of one that is prefilled is idle until `start`.
        """
        params, prompt = sequence.params, sequence.prompt_token_ids
        prompt_length = len(prompt)
        self._forget(slot)
        if params.logprobs is not None or is_sampled_on_host(params, self._vocab_size):
            self.host_controlled.add(slot)
        has_adjustment = is_adjusted(params)
        if has_adjustment:
            self._write_adjustment(slot, sequence, staging)

        position = prompt_length - 1 if is_prefilled else sequence.num_computed
        is_greedy = params.temperature < MIN_TEMPERATURE
        fields = staging.fields  # a field at a time: all of a record at once takes longer
        fields["seed"][slot] = params.seed
        fields["sample_index"][slot] = sequence.sample_index
        fields["temperature"][slot] = 0 if is_greedy else min(params.temperature, MAX_TEMPERATURE)
        fields["top_k"][slot] = min(params.top_k, self._vocab_size)
        fields["top_p"][slot] = params.top_p
        fields["min_p"][slot] = params.min_p
        fields["min_length"][slot] = prompt_length + params.min_tokens if params.min_tokens else 0
        fields["prompt_length"][slot] = prompt_length
        fields["last_position"][slot] = prompt_length - 1 + max(params.max_tokens - 1, 0)
        fields["mode"][slot] = IDLE if is_prefilled else self._mode(slot)
        fields["is_adjusted"][slot] = has_adjustment
        fields["repetition_penalty"][slot] = params.repetition_penalty
        fields["frequency_penalty"][slot] = params.frequency_penalty
        fields["first_penalty"][slot] = params.frequency_penalty + params.presence_penalty
        fields["eos_token_ids"][slot] = -1
        if params.min_tokens and not _suppresses_too_many(params):
            fields["eos_token_ids"][slot, : len(params.eos_token_ids)] = list(params.eos_token_ids)
        fields["fed_tokens"][slot] = -1
        if position < prompt_length - 1:
            assert prompt_length <= MAX_FED_TOKENS
            fields["fed_tokens"][slot, :prompt_length] = prompt
        self._stream.copy_to_device(self._memory.record(slot), staging.records[slot : slot + 1])
        self._write_state(slot, prompt[position], position, staging)

    def start(self, slot: int, staging: Staging) -> None:
        """Let steps advance a slot whose prompt is prefilled."""
        self._write_mode(slot, self._mode(slot), staging)

    def release(self, slot: int, sequence: Sequence, staging: Staging) -> None:
        """Make a slot idle, at the last position of the prompt that others may yet copy."""
        self._forget(slot)
        self._write_mode(slot, IDLE, staging)
        self._write_state(slot, 0, len(sequence.prompt_token_ids) - 1, staging)

    def adjustment(self, slot: int, sequence: Sequence, output_token_ids: list[int]) -> Rows | None:
        """A slot's adjustments as the device has them; kept where the host sees every token."""
        if not is_adjusted(sequence.params):
            return None
        return self._host_rows.get(slot) or adjustment(
            sequence.params, sequence.prompt_token_ids, output_token_ids, self._vocab_size
        )

    def append(
        self, slot: int, sequence: Sequence, output_token_ids: list[int], token_id: int, rows: Rows | None
    ) -> None:
        """Note a token that the host has sampled behind output_token_ids; the next run begins by writing it.

        Args:
            slot: which one.
            sequence: the slot's.
            output_token_ids: the output before the token.
            token_id: the token.
            rows: the slot's adjustments; changed here as the device would change them.
        """
        self._next_inputs[slot] = token_id, len(sequence.prompt_token_ids) + len(output_token_ids)
        if rows is not None:
            count = output_token_ids.count(token_id)
            add_token(*rows, sequence.params, token_id, is_first=count == 0)
            self._next_adjustments[slot] = token_id, rows[0][token_id], rows[1][token_id], count + 1

    def write_appended(self, staging: Staging) -> None:
        """Write the tokens that the host has sampled since the last run."""
        for slot, (input_id, position) in self._next_inputs.items():
            self._write_state(slot, input_id, position, staging)
        memory = self._memory
        for slot, (token_id, bias, penalty, count) in self._next_adjustments.items():
            staging.columns[slot, :2, 0] = bias, penalty
            staging.columns.view(np.uint32)[slot, 2, 0] = count
            address = memory.adjustments(slot) + token_id * WORD_BYTES
            self._stream.copy_columns_to_device(address, memory.adjustments_pitch, staging.columns[slot])
        self._next_inputs.clear()
        self._next_adjustments.clear()

    def _mode(self, slot: int) -> int:
        return HOST_CONTROLLED if slot in self.host_controlled else RUNNING

    def _forget(self, slot: int) -> None:
        """Forget what the slot's last sequence needed of the host."""
        self.host_controlled.discard(slot)
        self._host_rows.pop(slot, None)
        self._next_inputs.pop(slot, None)
        self._next_adjustments.pop(slot, None)

    def _write_mode(self, slot: int, mode: int, staging: Staging) -> None:
        staging.modes[slot] = mode
        self._stream.copy_to_device(self._memory.record(slot) + _MODE_OFFSET, staging.modes[slot])

    def _write_state(self, slot: int, input_id: int, position: int, staging: Staging) -> None:
        state = staging.states[slot]
        state[0, 0], state[1, 0] = input_id, position
        memory = self._memory
        self._stream.copy_columns_to_device(memory.state + slot * WORD_BYTES, memory.state_pitch, state)

    def _write_adjustment(self, slot: int, sequence: Sequence, staging: Staging) -> None:
        if staging.num_tables == STAGED_TABLES:
            self._stream.synchronize()
            staging.num_tables = 0
        table = staging.tables[staging.num_tables]
        staging.num_tables += 1
        adjustment(sequence.params, sequence.prompt_token_ids, (), self._vocab_size, out=table)
        if slot in self.host_controlled:
            bias, penalty = table.copy()
            self._host_rows[slot] = bias, penalty
        memory = self._memory
        self._stream.copy_columns_to_device(memory.adjustments(slot), memory.adjustments_pitch, table)
        self._stream.fill_zero(memory.token_counts(slot), memory.vocab_bytes)


def is_sampled_on_host(params: SequenceParams, vocab_size: int) -> bool:
    """Whether the host samples every token of a sequence, as the kernel cannot."""
    is_too_hot = params.top_p < 1 and params.temperature > MAX_TOP_P_TEMPERATURE
    return is_too_hot or _suppresses_too_many(params) or needs_host(params, vocab_size, max_top_k=None)


def _suppresses_too_many(params: SequenceParams) -> bool:
    """Whether more tokens are suppressed below the minimum length than a record has places for."""
    return params.min_tokens > 0 and len(params.eos_token_ids) > MAX_EOS_TOKENS

"""CapturedRunner: steps as captured CUDA graphs, queued ahead of what the host has seen.

A step is the model's captured graph, and a kernel that samples and puts the state of each slot one step on
(`sampler.cu`). The host queues blocks of steps, two at a time, and writes a slot only when its sequence
changes: its record (`slot_record.py`), its state, its row of adjustments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.memory import STAGED_TABLES, WORD_BYTES, CapturedMemory, Staging
from hgt_infer.cuda.memory_plan import model_memory_limit, plan_slots
from hgt_infer.cuda.sampler import MAX_TOP_P_TEMPERATURE, Sampler
from hgt_infer.cuda.slot_record import (
    HELD,
    MAX_EOS_TOKENS,
    MAX_FED_TOKENS,
    RECORD,
    RUNS,
    STANDS,
    WAITS,
)
from hgt_infer.cuda.token_log import TokenLog
from hgt_infer.engine.scheduler import MAX_PREFILL_TOKENS, Batch, BatchOutput
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.runtime.model_session import ModelSession, run_options
from hgt_infer.sampling.host import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    add_token,
    adjustment,
    is_adjusted,
    needs_host,
    num_scored,
    sample_on_host,
    score_prompts,
    token_logprobs,
    uniforms,
)

_HOLDS_OFFSET = RECORD.fields["holds"][1]  # type: ignore[index]


class CapturedRunner:
    """Runs blocks of steps over the slots from 0 on, gaps included, and prefills in between.

    Args:
        artifact: the exported model.
        device: a GPU.
        num_slots: sequences that can be in the cache at once, 1 … 256; None takes as many as fit the memory,
            a power of two.
        max_length: cache positions of a slot, prompt and output together.
        steps_per_sync: most steps between a token and the host's look at it, ≥ 1.
        batch_invariant: always run the rows of all slots, so that every step is computed by the same kernels
            on the same shapes. Else a step has the smallest power of two of rows that reaches its slots.

    Raises:
        DeviceMemoryError: the memory does not suffice.
        DeviceUnavailableError, ModelFormatError: ONNX Runtime cannot run the model there.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: CudaDevice,
        *,
        num_slots: int | None = None,
        max_length: int,
        steps_per_sync: int,
        batch_invariant: bool = True,
    ) -> None:
        config = self.config = artifact.config
        # Runs and bindings before sessions, these before the device: the order in which they are let go of.
        self._runs: deque[_Run] = deque()
        self._replays: dict[int, tuple[Any, Any]] = {}  # of so many rows: binding and options
        weight_bytes = sum(path.stat().st_size for path in artifact.path.glob(f"{artifact.model_path.name}*"))
        sizes: dict[str, Any] = {"max_length": max_length, "weight_bytes": weight_bytes}
        dtype, (free_bytes, _) = artifact.float_type, device.memory()
        self.num_rows = plan_slots(config, dtype, free_bytes=free_bytes, num_slots=num_slots, **sizes)
        self.num_slots = num_slots or self.num_rows
        self.model = ModelSession(
            artifact,
            device,
            num_slots=self.num_rows,
            max_length=max_length,
            captured=True,
            memory_limit=model_memory_limit(config, dtype, num_slots=self.num_rows, **sizes),
        )
        self.cache = self.model.cache
        self.device = device
        self._batch_invariant = batch_invariant
        self._steps_per_sync = steps_per_sync
        self._num_steps = max(1, steps_per_sync // 2)
        self._memory = CapturedMemory(artifact, device, self.num_rows, max_length)
        self._sampler = Sampler(
            device, config.vocab_size, artifact.float_type, self._memory.sampler_arguments()
        )
        # A run's uploads lie here until it is collected; its reports as well.
        self._stagings = deque(Staging(config, device, self.num_rows, self._num_steps) for _ in range(2))
        self._host_logits = device.pinned(
            (max(self.num_rows, MAX_PREFILL_TOKENS), config.vocab_size), artifact.float_type
        )
        # Of every slot, on the host.
        self._log = TokenLog(self.num_rows, max_length)
        self._sequences: list[Sequence | None] = [None] * self.num_rows
        self._running: set[int] = set()  # slots that steps advance, or the host for them
        self._held: set[int] = set()  # the host reads the logits of each of their tokens
        self._rows_of_held: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._dirty: set[int] = set()  # slots whose adjustments on the device are not neutral
        self._next_inputs: dict[int, tuple[int, int]] = {}  # input id and position where the host has drawn
        # Token id, and its bias, penalty and count from then on.
        self._next_adjustments: dict[int, tuple[int, float, float, int]] = {}
        self._eager_options = run_options(-1, waits=False)
        self._next_step = 0  # number of the first step that is not launched
        with device.at_work():
            self._write_idle_records()

    @property
    def max_in_flight(self) -> int:
        """Runs launched and not collected, at most.

        A sequence that the host has to see after each token would only stand still in a second one.
        """
        return 1 if self._held or self._steps_per_sync == 1 else 2

    def warmup(self) -> None:
        """Capture the graph of every number of rows that a step can have."""
        buckets = {self.num_rows} if self._batch_invariant else {_bucket(n + 1) for n in range(self.num_rows)}
        with self.device.at_work():
            for num_rows in sorted(buckets):
                self._capture(num_rows)

    def close(self) -> None:
        """Free the device's memory."""
        self._runs.clear()
        self._replays.clear()
        try:
            with self.device.at_work():
                self.device.synchronize()
                self._sampler.close()
        finally:  # also where the device has failed
            del self.model, self.cache  # the session goes before its stream
            self.device.close()

    # Launching

    def launch(self, batch: Batch) -> None:
        """Queue a prefill, or a block of steps; reads sequences and changes none."""
        staging = self._stagings[0]
        self._stagings.rotate(-1)
        run = _Run(self._next_step, staging)
        with self.device.at_work():
            for source, target, length in batch.copies:
                if length:
                    self.cache.copy(source, target, length)
            for slot in batch.released:
                self._park(slot, staging)
            prefilled = batch.sequences if batch.is_prefill else []
            in_prefill = {sequence.slot for sequence in prefilled}
            for sequence in batch.admitted:
                self._enter(sequence, sequence.slot in in_prefill, staging)
            self._continue_from_host(staging)
            if batch.is_prefill:
                self._prefill(batch, run)
            else:
                self._run_steps(batch, run)
            run.staging.event.record()
        self._runs.append(run)

    def _run_steps(self, batch: Batch, run: _Run) -> None:
        last_slot = batch.sequences[-1].slot
        assert last_slot is not None
        num_rows = self.num_rows if self._batch_invariant else _bucket(last_slot + 1)
        self._capture(num_rows)
        binding, options = self._replays[num_rows]
        run_model, sample = self.model.run, self._sampler.launch
        run.reports = run.staging.reports[: 1 if self._held else self._num_steps, :num_rows]
        for reports in run.reports:
            run_model(binding, options)
            sample(num_rows)
            self.device.copy_to_host(reports, self._memory.token_ids)
        run.num_running = len(self._running)
        self._next_step += len(run.reports)

    def _prefill(self, batch: Batch, run: _Run) -> None:
        """The next tokens of each prompt, as they are, not captured; scores wait for their logits."""
        sequences, num_tokens = batch.sequences, batch.num_tokens
        num_rows, start = len(sequences), sequences[0].num_computed
        stop = start + num_tokens
        num_ids = num_rows * num_tokens
        num_scores = num_scored(sequences, start, stop)
        num_outputs = max(1, num_scores)  # a kernel over nothing may fail
        inputs, memory = run.staging.prefill, self._memory
        for row, sequence in enumerate(sequences):
            inputs[0, row * num_tokens : (row + 1) * num_tokens] = sequence.prompt_token_ids[start:stop]
        inputs[1, :num_ids].reshape(num_rows, num_tokens)[...] = np.arange(start, stop)
        inputs[2, :num_rows] = stop - 1
        self.device.copy_to_device(memory.prefill, inputs)
        buffers = memory.prefill_buffers(stop, num_tokens - num_outputs)
        first_slot = sequences[0].slot
        assert first_slot is not None
        binding = self.model.bind(
            buffers, num_rows=num_rows, num_tokens=num_tokens, num_outputs=num_outputs, first_slot=first_slot
        )
        self.model.run(binding, self._eager_options)
        run.kept = binding, buffers
        if num_scores:
            logits = self._host_logits[: num_rows * num_outputs]
            self.device.copy_to_host(logits, memory.prefill_logits)
            self.device.synchronize()
            run.prompt_logprobs = score_prompts(sequences, logits.astype(np.float32, copy=False), stop)
        for sequence in sequences:
            if stop >= len(sequence.prompt_token_ids) - 1 and sequence.params.max_tokens:
                self._go(sequence, run.staging)

    # Slots

    def _enter(self, sequence: Sequence, is_prefilled: bool, staging: Staging) -> None:
        """Write what the device needs of a sequence; one that is prefilled stands still until it is."""
        slot, params, prompt = sequence.slot, sequence.params, sequence.prompt_token_ids
        assert slot is not None
        prompt_length, max_tokens = len(prompt), params.max_tokens
        self._forget(slot)
        self._sequences[slot] = sequence
        if params.logprobs is not None or self._is_drawn_on_host(params):
            self._held.add(slot)
        has_adjustment = is_adjusted(params)
        if has_adjustment:
            self._write_adjustment(slot, sequence, staging)
        elif slot in self._dirty:
            self._clear_adjustment(slot)

        position = prompt_length - 1 if is_prefilled else sequence.num_computed
        is_greedy = params.temperature < MIN_TEMPERATURE
        fields = staging.fields  # a field at a time: all of a record at once takes longer
        fields["seed"][slot] = params.seed
        fields["sample_index"][slot] = sequence.sample_index
        fields["temperature"][slot] = 0 if is_greedy else min(params.temperature, MAX_TEMPERATURE)
        fields["top_k"][slot] = min(params.top_k, self.config.vocab_size)
        fields["top_p"][slot] = params.top_p
        fields["min_p"][slot] = params.min_p
        fields["min_length"][slot] = prompt_length + params.min_tokens if params.min_tokens else 0
        fields["prompt_length"][slot] = prompt_length
        fields["last_position"][slot] = prompt_length - 1 + max(max_tokens - 1, 0)
        fields["holds"][slot] = STANDS if is_prefilled else self._holds_of(slot)
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
        self.device.copy_to_device(self._memory.record(slot), staging.records[slot : slot + 1])
        self._write_state(slot, prompt[position], position, staging)

        end_ids = params.eos_token_ids
        self._log.enter(
            slot,
            max_tokens=max_tokens,
            end_token_id=next(iter(end_ids)) if len(end_ids) == 1 else None,
            is_watched=sequence.output_text is not None or bool(params.stop_token_ids) or len(end_ids) > 1,
        )
        if not is_prefilled:
            self._begin(slot)

    def _is_drawn_on_host(self, params: SequenceParams) -> bool:
        is_too_hot = params.top_p < 1 and params.temperature > MAX_TOP_P_TEMPERATURE
        return (
            is_too_hot
            or _suppresses_too_many(params)
            or needs_host(params, self.config.vocab_size, max_top_k=None)
        )

    def _holds_of(self, slot: int) -> int:
        return WAITS if slot in self._held else RUNS

    def _begin(self, slot: int) -> None:
        self._running.add(slot)
        self._log.resume(slot, self._next_step)

    def _go(self, sequence: Sequence, staging: Staging) -> None:
        """Let a slot go whose prompt is computed now."""
        slot = sequence.slot
        assert slot is not None
        self._write_holds(slot, self._holds_of(slot), staging)
        self._begin(slot)

    def _park(self, slot: int, staging: Staging) -> None:
        """Let a slot that is free stand still, behind the prompt that others may yet copy."""
        sequence = self._sequences[slot]
        if sequence is not None:
            self._forget(slot)
            self._log.leave(slot)
            self._sequences[slot] = None
            self._write_holds(slot, STANDS, staging)
            self._write_state(slot, 0, len(sequence.prompt_token_ids) - 1, staging)

    def _forget(self, slot: int) -> None:
        """Forget what the slot's last sequence needed."""
        self._running.discard(slot)
        self._held.discard(slot)
        self._rows_of_held.pop(slot, None)
        self._next_inputs.pop(slot, None)
        self._next_adjustments.pop(slot, None)

    def _write_holds(self, slot: int, value: int, staging: Staging) -> None:
        staging.holds[slot] = value
        self.device.copy_to_device(self._memory.record(slot) + _HOLDS_OFFSET, staging.holds[slot])

    def _write_state(self, slot: int, input_id: int, position: int, staging: Staging) -> None:
        state = staging.states[slot]
        state[0, 0], state[1, 0] = input_id, position
        memory = self._memory
        self.device.copy_columns_to_device(memory.state + slot * WORD_BYTES, memory.state_pitch, state)

    def _continue_from_host(self, staging: Staging) -> None:
        """Let the slots go on whose tokens the host has drawn since the last run."""
        for slot, (input_id, position) in self._next_inputs.items():
            self._write_state(slot, input_id, position, staging)
        memory = self._memory
        for slot, (token_id, bias, penalty, count) in self._next_adjustments.items():
            staging.columns[slot, :2, 0] = bias, penalty
            staging.columns.view(np.uint32)[slot, 2, 0] = count
            address = memory.adjustments(slot) + token_id * WORD_BYTES
            self.device.copy_columns_to_device(address, memory.adjustments_pitch, staging.columns[slot])
        self._next_inputs.clear()
        self._next_adjustments.clear()

    def _write_adjustment(self, slot: int, sequence: Sequence, staging: Staging) -> None:
        if staging.num_tables == STAGED_TABLES:
            self.device.synchronize()
            staging.num_tables = 0
        table = staging.tables[staging.num_tables]
        staging.num_tables += 1
        adjustment(sequence.params, sequence.prompt_token_ids, (), self.config.vocab_size, out=table)
        if slot in self._held:
            bias, penalty = table.copy()
            self._rows_of_held[slot] = bias, penalty
        memory = self._memory
        self.device.copy_columns_to_device(memory.adjustments(slot), memory.adjustments_pitch, table)
        self.device.fill_zero(memory.token_counts(slot), memory.vocab_bytes)
        self._dirty.add(slot)

    def _clear_adjustment(self, slot: int) -> None:
        memory = self._memory
        self.device.fill_zero(memory.adjustments(slot), memory.vocab_bytes)
        self.device.copy_within(
            memory.adjustments(slot) + memory.adjustments_pitch, memory.ones, memory.vocab_bytes
        )
        self._dirty.discard(slot)

    # Collecting

    def collect(self) -> BatchOutput:
        """Wait for the oldest run that was launched, and examine it."""
        run = self._runs.popleft()
        with self.device.at_work():
            run.staging.event.wait()
            run.staging.num_tables = 0
            if run.reports is None:
                return BatchOutput(prompt_logprobs=run.prompt_logprobs)
            return self._examine(run.first_step, run.reports, run.num_running)

    def _examine(self, first_step: int, reports: NDArray[np.int32], num_running: int) -> BatchOutput:
        seen = self._log.examine(first_step, reports)
        num_steps = len(reports)
        output = BatchOutput(num_sampled=seen.num_sampled, num_fed=seen.num_fed, num_steps=num_steps)
        output.num_wasted = num_steps * num_running - seen.num_sampled - seen.num_fed - len(seen.waiting)
        if seen.waiting:
            self._draw(seen.waiting, seen.listed, output)
        for slot in seen.listed:
            sequence = self._sequences[slot]
            assert sequence is not None
            token_ids = self._log.take(slot)
            if sequence.slot == slot:
                output.new_tokens.append((sequence, token_ids))
            elif sequence.finish_reason is not None:  # by its text, or a stop token, in the run before
                output.num_sampled -= len(token_ids)
                output.num_wasted += len(token_ids)
        return output

    def _draw(self, waiting: dict[int, int], listed: dict[int, None], output: BatchOutput) -> None:
        """Read the logits of slots that wait, draw where the device has not, and let them go on."""
        current = [
            (slot, sequence, report)
            for slot, report in waiting.items()
            if (sequence := self._sequences[slot]) is not None and sequence.slot == slot
        ]
        for (slot, _, _), logits in zip(current, self._host_logits, strict=False):
            self.device.copy_to_host(logits, self._memory.logits_of(slot))
        self.device.synchronize()
        for (slot, sequence, report), logits in zip(current, self._host_logits, strict=False):
            logits = logits.astype(np.float32, copy=False)
            output_token_ids = sequence.output_token_ids + self._log.not_taken(slot)
            rows = self._adjustment_of(slot, sequence, output_token_ids)
            if report <= HELD and not self._is_drawn_on_host(sequence.params):
                token_id = HELD - report
            else:
                try:
                    token_id = self._draw_on_host(sequence, output_token_ids, logits, rows)
                except BaseException as error:  # a logits_processor's own, or filters that leave no token
                    output.errors.append((sequence, error))
                    continue
            if sequence.params.logprobs is not None:
                logprobs = token_logprobs(logits, token_id, sequence.params.logprobs)
                output.logprobs.append((sequence, logprobs))
            output.num_sampled += 1
            listed[slot] = None
            if self._log.append(slot, token_id):
                position = len(sequence.prompt_token_ids) + len(output_token_ids)
                self._next_inputs[slot] = token_id, position
                self._log.resume(slot, self._next_step)
                if rows is not None:
                    self._adjust(slot, sequence, output_token_ids, token_id, rows)

    def _draw_on_host(
        self,
        sequence: Sequence,
        output_token_ids: list[int],
        logits: NDArray[np.float32],
        rows: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    ) -> int:
        params, num_outputs = sequence.params, len(output_token_ids)
        uniform = uniforms(params.seed, sequence.sample_index, num_outputs + 1)[num_outputs, -1]
        return sample_on_host(
            logits, rows, params, sequence.prompt_token_ids, output_token_ids, float(uniform)
        )

    def _adjustment_of(
        self, slot: int, sequence: Sequence, output_token_ids: list[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """The slot's adjustments as they are on the device; kept where the host sees every token."""
        if not is_adjusted(sequence.params):
            return None
        return self._rows_of_held.get(slot) or adjustment(
            sequence.params, sequence.prompt_token_ids, output_token_ids, self.config.vocab_size
        )

    def _adjust(
        self,
        slot: int,
        sequence: Sequence,
        output_token_ids: list[int],
        token_id: int,
        rows: tuple[NDArray[np.float32], NDArray[np.float32]],
    ) -> None:
        count = output_token_ids.count(token_id)
        add_token(*rows, sequence.params, token_id, is_first=count == 0)
        self._next_adjustments[slot] = token_id, rows[0][token_id], rows[1][token_id], count + 1

    # Capturing

    def _capture(self, num_rows: int) -> None:
        """Capture the model for rows 0 … num_rows - 1, on what the slots hold, if that is not done yet.

        It runs the model more than once, and changes nothing by that: where no sampler runs in between, each
        row computes the same keys, values and logits again.
        """
        if num_rows not in self._replays:
            binding = self.model.bind(
                self._memory.step_buffers(), num_rows=num_rows, num_tokens=1, num_outputs=1
            )
            with self.device.capturing():
                self.model.run(binding, run_options(num_rows, waits=True))
            self._replays[num_rows] = binding, run_options(num_rows, waits=False)

    def _write_idle_records(self) -> None:
        """Records, states and adjustments of slots that nobody has used: they stand at position 0."""
        records = self._stagings[0].records
        records["holds"] = STANDS
        records["fed_tokens"] = -1
        table = self._stagings[0].tables[0]
        table[0], table[1] = 0, 1
        memory = self._memory
        self.device.copy_to_device(memory.records, records)
        self.device.copy_to_device(memory.ones, table[1])
        for slot in range(self.num_rows):
            self.device.copy_columns_to_device(memory.adjustments(slot), memory.adjustments_pitch, table)
        self.device.synchronize()


@dataclass(slots=True)
class _Run:
    """A run in flight; a prefill has no reports."""

    first_step: int
    staging: Staging
    reports: NDArray[np.int32] | None = None
    num_running: int = 0
    prompt_logprobs: list[Any] = field(default_factory=list)
    kept: Any = None  # what a queued run may yet read


def _suppresses_too_many(params: SequenceParams) -> bool:
    """Whether more tokens must not come below the minimum length than a record holds."""
    return params.min_tokens > 0 and len(params.eos_token_ids) > MAX_EOS_TOKENS


def _bucket(num_rows: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (num_rows - 1).bit_length()

"""CapturedRunner: steps as captured CUDA graphs, queued ahead of what the host has seen.

A step is the model's captured graph, and a kernel that samples and advances every slot (`sampler.cu`). The
host queues blocks of steps, two at a time, examines what they report (`token_log.py`), and writes a slot only
when its sequence changes (`slots.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.memory import CapturedMemory, Staging
from hgt_infer.cuda.memory_plan import model_memory_limit, plan_slots
from hgt_infer.cuda.sampler import Sampler
from hgt_infer.cuda.slot_record import PROPOSED
from hgt_infer.cuda.slots import DeviceSlots, Rows, is_sampled_on_host
from hgt_infer.cuda.token_log import TokenLog
from hgt_infer.engine.batch import MAX_PREFILL_TOKENS, Batch, BatchOutput
from hgt_infer.engine.sequence import Sequence
from hgt_infer.runtime.model_session import ModelSession, run_options
from hgt_infer.sampling.host import sample_on_host
from hgt_infer.sampling.logprobs import num_scored, score_prompts, token_logprobs
from hgt_infer.sampling.random_numbers import uniforms


class CapturedRunner:
    """Runs blocks of steps over the slots from 0 on, gaps included, and prefills in between.

    Args:
        artifact: the exported model.
        device: a GPU.
        num_slots: sequences that can be in the cache at once, 1 … 256; None takes as many as fit the memory,
            a power of two.
        max_length: cache positions of a slot, prompt and output together.
        steps_per_sync: most steps behind a token before the host examines it, ≥ 1.
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
        # Runs and bindings before sessions, these before the device: the order in which they are freed.
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
        self.device = device
        self._stream = device.stream
        self._batch_invariant = batch_invariant
        self._steps_per_sync = steps_per_sync
        self._num_steps = max(1, steps_per_sync // 2)
        self._memory = CapturedMemory(artifact, device, self.num_rows, max_length)
        self._sampler = Sampler(
            device, config.vocab_size, artifact.float_type, self._memory.sampler_arguments()
        )
        # Each of two runs in flight has its own: what it uploads, and its reports.
        self._stagings = deque(Staging(config, device, self.num_rows, self._num_steps) for _ in range(2))
        self._host_logits = device.pinned(
            (max(self.num_rows, MAX_PREFILL_TOKENS), config.vocab_size), artifact.float_type
        )
        self._slots = DeviceSlots(config, device.stream, self._memory)
        self._log = TokenLog(self.num_rows, max_length)
        self._sequences: list[Sequence | None] = [None] * self.num_rows
        self._running: set[int] = set()  # slots that steps advance, or the host for them
        self._eager_options = run_options(-1, waits=False)
        self._next_step = 0  # number of the first step that is not launched
        with device.at_work():
            self._slots.write_idle(self._stagings[0])

    @property
    def max_in_flight(self) -> int:
        """Runs launched and not collected, at most.

        A second one would not advance a sequence that the host samples.
        """
        return 1 if self._slots.host_controlled or self._steps_per_sync == 1 else 2

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
                self._stream.synchronize()
        finally:  # also where the device has failed
            del self.model  # the session goes before its stream
            self.device.close()

    def launch(self, batch: Batch) -> None:
        """Queue a prefill, or a block of steps; reads sequences and changes none."""
        run = _Run(self._next_step, self._stagings[0])
        self._stagings.rotate(-1)
        prefilled = {sequence.slot for sequence in batch.sequences} if batch.is_prefill else set()
        with self.device.at_work():
            for source, target, length in batch.copies:
                if length:
                    self.model.cache.copy(source, target, length)
            for slot in batch.released:
                self._release(slot, run.staging)
            for sequence in batch.admitted:
                self._admit(sequence, run.staging, is_prefilled=sequence.slot in prefilled)
            self._slots.write_appended(run.staging)
            if batch.is_prefill:
                self._prefill(batch, run)
            else:
                self._run_steps(batch, run)
            run.staging.event.record()
        self._runs.append(run)

    def _run_steps(self, batch: Batch, run: _Run) -> None:
        """Queue a block of steps, and the copy of each one's reports."""
        last_slot = batch.sequences[-1].slot
        assert last_slot is not None
        num_rows = self.num_rows if self._batch_invariant else _bucket(last_slot + 1)
        self._capture(num_rows)
        binding, options = self._replays[num_rows]
        run_model, sample = self.model.run, self._sampler.launch
        num_steps = 1 if self._slots.host_controlled else self._num_steps
        run.reports = run.staging.reports[:num_steps, :num_rows]
        for reports in run.reports:
            run_model(binding, options)
            sample(num_rows)
            self._stream.copy_to_host(reports, self._memory.token_ids)
        run.num_running = len(self._running)
        self._next_step += num_steps

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
        """What a block of steps gave; slots that wait for the host get their tokens here."""
        seen = self._log.examine(first_step, reports)
        num_steps = len(reports)
        output = BatchOutput(num_sampled=seen.num_sampled, num_fed=seen.num_fed, num_steps=num_steps)
        output.num_wasted = num_steps * num_running - seen.num_sampled - seen.num_fed - len(seen.waiting)
        if seen.waiting:
            self._sample_waiting(seen.waiting, seen.listed, output)
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

    # Slots

    def _admit(self, sequence: Sequence, staging: Staging, *, is_prefilled: bool) -> None:
        """Give a sequence its slot."""
        slot, params = sequence.slot, sequence.params
        assert slot is not None
        self._sequences[slot] = sequence
        self._running.discard(slot)
        self._slots.enter(slot, sequence, staging, is_prefilled=is_prefilled)
        end_ids = params.eos_token_ids
        self._log.enter(
            slot,
            max_tokens=params.max_tokens,
            end_token_id=next(iter(end_ids)) if len(end_ids) == 1 else None,
            is_watched=sequence.output_text is not None or bool(params.stop_token_ids) or len(end_ids) > 1,
        )
        if not is_prefilled:
            self._start(slot)

    def _start(self, slot: int) -> None:
        """Count a slot as running from the next step on."""
        self._running.add(slot)
        self._log.resume(slot, self._next_step)

    def _release(self, slot: int, staging: Staging) -> None:
        """Make a slot idle that its sequence has left."""
        sequence = self._sequences[slot]
        if sequence is not None:
            self._sequences[slot] = None
            self._running.discard(slot)
            self._log.leave(slot)
            self._slots.release(slot, sequence, staging)

    # Prefills

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
        self._stream.copy_to_device(memory.prefill, inputs)
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
            self._stream.copy_to_host(logits, memory.prefill_logits)
            self._stream.synchronize()
            run.prompt_logprobs = score_prompts(sequences, logits.astype(np.float32, copy=False), stop)
        for sequence in sequences:
            assert sequence.slot is not None
            if stop >= len(sequence.prompt_token_ids) - 1 and sequence.params.max_tokens:
                self._slots.start(sequence.slot, run.staging)
                self._start(sequence.slot)

    # Sampling on the host

    def _sample_waiting(self, waiting: dict[int, int], listed: dict[int, None], output: BatchOutput) -> None:
        """Read the logits of slots that wait, sample where the device has not, and note their next inputs.

        Args:
            waiting: what the device reported of each slot.
            listed: slots to examine; those that get a token are added.
            output: log-probabilities, counts and errors are added.
        """
        current = [
            (slot, sequence, report)
            for slot, report in waiting.items()
            if (sequence := self._sequences[slot]) is not None and sequence.slot == slot
        ]
        for (slot, _, _), logits in zip(current, self._host_logits, strict=False):
            self._stream.copy_to_host(logits, self._memory.logits + slot * self._memory.logits_bytes)
        self._stream.synchronize()
        for (slot, sequence, report), logits in zip(current, self._host_logits, strict=False):
            logits = logits.astype(np.float32, copy=False)
            output_token_ids = sequence.output_token_ids + self._log.not_taken(slot)
            rows = self._slots.adjustment(slot, sequence, output_token_ids)
            if report <= PROPOSED and not is_sampled_on_host(sequence.params, self.config.vocab_size):
                token_id = PROPOSED - report
            else:
                try:
                    token_id = _sample(sequence, output_token_ids, logits, rows)
                except BaseException as error:  # a logits_processor's own, or filters that leave no token
                    output.errors.append((sequence, error))
                    continue
            if sequence.params.logprobs is not None:
                logprobs = token_logprobs(logits, token_id, sequence.params.logprobs)
                output.logprobs.append((sequence, logprobs))
            output.num_sampled += 1
            listed[slot] = None
            if self._log.append(slot, token_id):
                self._slots.append(slot, sequence, output_token_ids, token_id, rows)
                self._log.resume(slot, self._next_step)

    # Capturing

    def _capture(self, num_rows: int) -> None:
        """Capture the model for rows 0 … num_rows - 1, on the slots as they are, if that is not done yet.

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


@dataclass(slots=True)
class _Run:
    """A run in flight; a prefill has no reports."""

    first_step: int
    staging: Staging
    reports: NDArray[np.int32] | None = None
    num_running: int = 0
    prompt_logprobs: list[Any] = field(default_factory=list)
    kept: Any = None  # what a queued run may yet read


def _sample(
    sequence: Sequence, output_token_ids: list[int], logits: NDArray[np.float32], rows: Rows | None
) -> int:
    """Sample a sequence's next token with the random number of its step."""
    params, num_outputs = sequence.params, len(output_token_ids)
    uniform = uniforms(params.seed, sequence.sample_index, num_outputs + 1)[num_outputs, -1]
    return sample_on_host(logits, rows, params, sequence.prompt_token_ids, output_token_ids, float(uniform))


def _bucket(num_rows: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (num_rows - 1).bit_length()

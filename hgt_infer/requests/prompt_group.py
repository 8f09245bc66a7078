"""PromptGroup: one prompt of a call, the sequences that it becomes, and the output that they become."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.engine.output_text import OutputText
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.outputs import Completion, GenerationOutput
from hgt_infer.sampling_params import SamplingParams


@dataclass(eq=False, slots=True)
class PromptGroup:
    """One prompt of a call, and its samples.

    Attributes:
        index: which prompt of the call.
        prompt: the text as the caller gave it.
        token_ids: its ids, the checkpoint's prefix included.
        params: settings as the caller gave them.
        resolved: the same with every default resolved.
        tokenizer: decodes the samples.
        finished: samples that have ended, in the order in which they did.
    """

    index: int
    prompt: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    resolved: SequenceParams
    tokenizer: Tokenizer
    finished: list[Sequence] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Samples to generate, of which params.n are returned."""
        return self.params.best_of or self.params.n

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended."""
        return len(self.finished) == self.num_samples

    def sequences(self, *, is_stream: bool = False) -> Iterator[Sequence]:
        """Make the samples, one at a time; the first one reports the prompt's log-probabilities."""
        params = self.params
        for sample_index in range(self.num_samples):
            output_text = None
            if is_stream or params.stop or params.stop_token_ids:
                output_text = OutputText(
                    self.tokenizer.token_bytes, tuple(params.stop or ()), params.include_stop_str_in_output
                )
            yield Sequence(
                self.token_ids,
                self.resolved,
                sample_index,
                self.index,
                output_text,
                num_unscored=0 if sample_index == 0 else len(self.token_ids),
            )

    def output(self) -> GenerationOutput:
        """What the caller gets, once all samples have ended."""
        sequences = sorted(self.finished, key=lambda sequence: sequence.sample_index)
        prompt_logprobs = None
        if self.resolved.prompt_logprobs is not None:
            prompt_logprobs = (None, *sequences[0].prompt_logprobs)
        if self.num_samples > self.params.n:
            sequences.sort(key=lambda one: _cumulative_logprob(one) / len(one.logprobs), reverse=True)
            del sequences[self.params.n :]
        completions = tuple(self._completion(sequence) for sequence in sequences)
        return GenerationOutput(self.prompt, self.token_ids, completions, self.resolved.seed, prompt_logprobs)

    def _completion(self, sequence: Sequence) -> Completion:
        assert sequence.finish_reason is not None
        text = sequence.output_text
        has_logprobs = self.resolved.logprobs is not None
        return Completion(
            index=sequence.sample_index,
            text=self.tokenizer.decode(sequence.output_token_ids) if text is None else text.text,
            token_ids=tuple(sequence.output_token_ids),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            logprobs=tuple(sequence.logprobs) if self.params.logprobs is not None else None,
            cumulative_logprob=_cumulative_logprob(sequence) if has_logprobs else None,
        )


def _cumulative_logprob(sequence: Sequence) -> float:
    return math.fsum(token.logprob for token in sequence.logprobs)

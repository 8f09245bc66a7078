"""Generator: what a caller sees. It joins model, tokenizer and engine, and checks every prompt."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import aclosing
from types import TracebackType
from typing import Any, Unpack, cast

from tqdm import tqdm

from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.checks import check_bool, check_int, shown
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.sequence import Sequence
from hgt_infer.engine.stats import Stats
from hgt_infer.errors import ParameterError
from hgt_infer.opening import open_model
from hgt_infer.outputs import Delta, GenerationOutput, Score
from hgt_infer.pipeline import PipelineOptions, run_pipeline
from hgt_infer.requests.prompt_group import PromptGroup
from hgt_infer.requests.prompts import Params, PromptReader
from hgt_infer.requests.scoring import score_texts
from hgt_infer.requests.submission import async_events, deltas, run_all, run_groups
from hgt_infer.sampling_params import SamplingParams, checked_params

DEFAULT_MAX_QUEUED_SEQUENCES = 4096
MAX_QUEUED_SEQUENCES = 1_000_000


class Generator:
    """Samples text from a GPT-2 checkpoint.

    Safe to use from any number of threads and event loops at once: their calls share one batch, and each
    gets what it would get alone. A process that forks needs a generator of its own in each fork.
    `close`, leaving a `with` block, or letting go of it ends it.

    Args:
        model: a hub id ("huggingtweets/lilyw12_"), a checkpoint folder, or an exported artifact folder.
            A checkpoint is exported once, into the cache.
        device: "cpu", "cuda", "cuda:N", "auto" (CUDA where there is a GPU, the CPU elsewhere), or a list of
            GPUs: each has the whole model, and they share one queue.
        precision: "fp32" or "int8" on a CPU, "fp16" on CUDA. "auto" is an artifact's own, and for checkpoints
            fp32 on a CPU, which agrees with transformers; int8 is faster, in a file of a quarter of the size.
        num_slots: sequences that run at once on a device, 1 … 4096 on a CPU, 1 … 256 on CUDA; more wait for
            a free slot. "auto" is 16 on a CPU, and as many as fit the free memory on CUDA.
        max_length: tokens that a sequence can hold, prompt and output together, 2 … n_positions, which
            None stands for.
        max_queued_sequences: sequences that wait for a slot at most, 1 … 1,000,000.
        batch_invariant: on CUDA, whether every step has the shape of all slots, so that a request's tokens do
            not depend on its company. False runs as few rows as there are sequences, in powers of two: faster
            where few run, but a GPU rounds differently for each shape. A CPU is invariant always.
        steps_per_sync: on CUDA, how many steps late tokens are looked at, 1 … 64: more hide more of the
            host's work and waste more steps behind the end of a sequence. None is 4.
        num_threads: on a CPU, threads of a step, 1 … 1024; they change no token. None is one for each
            physical core, which is fastest where nothing else needs them.
        cache_dir: where exported checkpoints and compiled kernels are kept; None is $HGT_INFER_CACHE or the
            user's cache folder.

    Raises:
        ParameterError: an argument outside its range.
        ModelNotFoundError, ModelFormatError: no such model, or not a GPT-2.
        DeviceUnavailableError: the device cannot be used.
        DeviceMemoryError: the slots do not fit the device's memory; the message says what would.

    Example:
        generator = Generator("huggingtweets/lilyw12_")
        generator("My dream is", num_return_sequences=5)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | Seq[str] = "auto",
        precision: str = "auto",
        num_slots: int | str = "auto",
        max_length: int | None = None,
        max_queued_sequences: int = DEFAULT_MAX_QUEUED_SEQUENCES,
        batch_invariant: bool = True,
        steps_per_sync: int | None = None,
        num_threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        check_int("max_queued_sequences", max_queued_sequences, 1, MAX_QUEUED_SEQUENCES)
        opened = open_model(
            model,
            device=device,
            precision=precision,
            num_slots=num_slots,
            max_length=max_length,
            batch_invariant=batch_invariant,
            steps_per_sync=steps_per_sync,
            num_threads=num_threads,
            cache_dir=cache_dir,
        )
        artifact = opened.artifact
        self._name, self._precision = os.fspath(model), artifact.precision
        self._device_names, self._max_length = opened.device_names, opened.max_length
        self._kernels = opened.kernels
        self._tokenizer = Tokenizer(artifact.tokenizer_path)
        self._reader = PromptReader(
            self._tokenizer,
            artifact.generation_defaults,
            vocab_size=artifact.config.vocab_size,
            max_length=self._max_length,
        )
        self._engine = Engine(opened.workers, max_queued_sequences=max_queued_sequences)
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        state = "" if self.is_alive else ", closed"
        return (
            f"Generator({self._name!r}, device={self._device_names}, precision={self._precision!r}, "
            f"kernels={self._kernels!r}, num_slots={self.num_slots}, max_length={self._max_length}{state})"
        )

    def __call__(self, prompts: str | Seq[str], **options: Unpack[PipelineOptions]) -> list[Any]:
        """Generate as transformers' text-generation pipeline does, with its names and its text.

        Args:
            prompts: one text, or a list of them.
            options: see PipelineOptions; num_return_sequences, max_new_tokens, do_sample, top_k, … as there.

        Returns:
            For a text [{"generated_text": …}, …], num_return_sequences long; for a list one such list each.

        Raises:
            TypeError: an option that PipelineOptions does not have.
            ParameterError, PromptError: see `generate`.

        Example:
            generator("My dream is", num_return_sequences=5)
        """
        return run_pipeline(self._reader, self._engine, prompts, options)

    def generate(
        self, prompts: str | Seq[str], params: Params = None, *, progress: bool = False
    ) -> list[GenerationOutput]:
        """Generate params.n samples for each prompt, and wait for them.

        Args:
            prompts: one text, or any number of them. The checkpoint's prefix is put before each.
            params: settings of every prompt, or as many as there are prompts; what they leave out is the
                checkpoint's default.
            progress: whether to show a progress bar of finished samples.

        Returns:
            One output per prompt, in their order.

        Raises:
            ParameterError: a setting or an argument outside its range.
            PromptError: an empty prompt without a prefix, or one that leaves no room to generate.
            EngineError: the device failed, or the generator was closed.

        Example:
            outputs = generator.generate(["My dream is"], SamplingParams(n=5, top_p=0.95, seed=1))
            outputs[0].completions[0].text
        """
        check_bool("progress", progress)
        groups = self._reader.groups(prompts, params)
        total = sum(group.num_samples for group in groups)
        with tqdm(total=total, unit="sample", disable=not progress) as bar:
            return run_all(self._engine, groups, on_finish=bar.update)

    def generate_iterable(
        self,
        prompts: Iterable[str],
        params: SamplingParams | None = None,
        *,
        in_order: bool = True,
        progress: bool = False,
    ) -> Iterator[GenerationOutput]:
        """Generate for prompts that need not fit in memory: each is taken when there is room for its samples.

        Args:
            prompts: texts, taken on the caller's thread, a bounded number ahead of what was yielded.
            params: settings of every prompt.
            in_order: whether outputs come in the prompts' order instead of as they are done.
            progress: whether to show a progress bar of finished samples.

        Yields:
            One output per prompt. Leaving the loop early cancels the rest.

        Raises:
            ParameterError, PromptError, EngineError: see generate; for a prompt, when it is its turn.

        Example:
            with open("prompts.txt") as prompts:
                for output in generator.generate_iterable(line.strip() for line in prompts):
                    print(output.completions[0].text)
        """
        check_bool("in_order", in_order)
        check_bool("progress", progress)
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise ParameterError(f"prompts must be an iterable of strings; got {shown(prompts)}")
        checked = checked_params(params)
        groups = (self._reader.group(index, prompt, checked) for index, prompt in enumerate(prompts))
        return self._outputs(groups, in_order=in_order, progress=progress)

    def _outputs(
        self, groups: Iterable[PromptGroup], *, in_order: bool, progress: bool
    ) -> Iterator[GenerationOutput]:
        """A method: the iterator keeps its generator."""
        with tqdm(unit="sample", disable=not progress) as bar:
            for group in run_groups(self._engine, groups, in_order=in_order, on_finish=bar.update):
                yield group.output()

    def stream(self, prompts: str | Seq[str], params: Params = None) -> Iterator[Delta]:
        """Generate, and give out the text as it comes; several samples come interleaved.

        The samples are queued before this returns. Closing the iterator, or letting go of it, frees their
        slots within a step.

        Args:
            prompts, params: as in generate, but best_of is not possible, and prompt_logprobs has no effect.

        Yields:
            What a sample has grown by: see Delta.

        Raises:
            QueueFullError: more sequences would wait than max_queued_sequences.
            ParameterError, PromptError, EngineError: see generate.

        Example:
            for delta in generator.stream("My dream is"):
                print(delta.text, end="")
        """
        stream = self._stream(self._reader.stream_groups(prompts, params))
        next(stream)  # submits, and is not a delta
        return cast("Iterator[Delta]", stream)

    def _stream(self, groups: list[PromptGroup]) -> Iterator[Delta | None]:
        """A method: the stream keeps its generator."""
        yield from deltas(self._engine, groups)

    async def astream(self, prompts: str | Seq[str], params: Params = None) -> AsyncIterator[Delta]:
        """As stream, for `async for`; it starts with the first delta that is awaited."""
        groups = await asyncio.to_thread(self._reader.stream_groups, prompts, params)
        async with aclosing(async_events(self._engine, groups, is_stream=True)) as events:
            async for event in events:
                assert isinstance(event, Delta)
                yield event

    async def agenerate(self, prompts: str | Seq[str], params: Params = None) -> list[GenerationOutput]:
        """As generate, awaited; cancelling the task frees its slots within a step.

        Raises:
            QueueFullError: more sequences would wait than max_queued_sequences; n counts n.
            ParameterError, PromptError, EngineError: see generate.
        """
        groups = await asyncio.to_thread(self._reader.groups, prompts, params)
        async with aclosing(async_events(self._engine, groups, is_stream=False)) as events:
            async for event in events:
                assert isinstance(event, Sequence)
                groups[event.prompt_index].finished.append(event)
        return [group.output() for group in groups]

    def score(
        self, texts: str | Seq[str], *, stride: int | None = None, progress: bool = False
    ) -> list[Score]:
        """Compute each text's log-probability, token by token, and its perplexity.

        The checkpoint's prefix is put before each text. A text longer than max_length is scored by a sliding
        window of max_length tokens: each token in the first window that has it, with at least
        max_length - stride tokens before it.

        Args:
            texts: one text, or any number of them, of at most 10,000,000 characters each.
            stride: tokens that the window moves by, 1 … max_length - 1; None is half of max_length.
            progress: whether to show a progress bar of finished texts.

        Returns:
            One score per text, in their order.

        Raises:
            ParameterError: an argument outside its range.
            PromptError: a text without a token to score, or too long.
            EngineError: the device failed, or the generator was closed.

        Example:
            generator.score("I love cookies.")[0].perplexity
        """
        check_bool("progress", progress)
        if stride is None:
            stride = self._max_length // 2
        check_int("stride", stride, 1, self._max_length - 1)
        scored = self._reader.scored_texts(texts)
        scores: list[Any] = [None] * len(scored)
        with tqdm(total=len(scored), unit="text", disable=not progress) as bar:
            for index, score in score_texts(self._engine, scored, max_length=self._max_length, stride=stride):
                scores[index] = score
                bar.update()
        return scores

    def warmup(self) -> None:
        """Do now what the first requests would have to wait for: on CUDA, capturing the graphs of a step.

        Raises:
            EngineError: the device failed, or the generator was closed.
        """
        self._engine.warmup()

    def stats(self) -> Stats:
        """Return counts and times since the generator was made: see Stats."""
        return self._engine.stats()

    @property
    def num_slots(self) -> int:
        """Sequences that run at once, on all devices."""
        return self._engine.num_slots

    @property
    def kernels(self) -> str:
        """Whose operators compute: ours for "avx512", "avx2" or any processor ("portable"), or those of
        "onnxruntime" or "cuda".

        In int8 ours give the same tokens on every processor. Otherwise a seed may give another text where
        this differs, as sums are rounded in another order.
        """
        return self._kernels

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests: its device has not failed, and nobody has closed it."""
        return self._engine.is_alive

    def encode(self, prompts: str | Seq[str]) -> list[tuple[int, ...]]:
        """Return the token ids of prompts as the model gets them, the checkpoint's prefix included.

        Raises:
            PromptError, ParameterError: see generate.
        """
        return [group.token_ids for group in self._reader.groups(prompts, None)]

    def decode(self, token_ids: Seq[int]) -> str:
        """Return the text of token ids, special tokens included; what is no whole character is U+FFFD.

        Raises:
            ParameterError: an id that is not within 0 … 2**32 - 1; one that the vocabulary lacks has no text.
        """
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def close(self) -> None:
        """End the generator. Whoever waits for it, or calls it later, gets an EngineError."""
        self._finalizer()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""Checks that what comes out is right: placement, logits, tokens, distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.engine import open_engine, run_all
from benchmarks.gpu_check.figures import agreement, chi_squared, compare_logits
from benchmarks.gpu_check.placement import placement_of
from benchmarks.gpu_check.report import Result, Skipped, judged, measured
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids
from benchmarks.measure.checkpoints import SEED
from hgt_infer import Generator, SamplingParams
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.export.verify import TOLERANCES
from hgt_infer.sampling.host import filtered_probs

DRAW_SLOTS = 256
MAX_MEAN_KL = 1e-3  # nats; that of rounding is a hundredth of it
MIN_P = 1e-4
MAX_OUTSIDE = 5e-4  # of the draws: in float32 the token at the border of a nucleus may fall on either side
MAX_SAMPLES = 10_000  # of one request

NO_FILTERS: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_tokens": 0, "ignore_eos": True,
}  # fmt: skip
"""A checkpoint's own settings, switched off."""

DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "top_k 50": {"top_k": 50},
    "top_k 200, top_p 0.9": {"top_k": 200, "top_p": 0.9},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.3": {"top_p": 0.3},
    "temperature 0.7": {"temperature": 0.7},
    "min_p 0.05": {"min_p": 0.05},
}

KINDS: tuple[Literal["captured", "eager"], ...] = ("captured", "eager")
MAX_FLIPS = 0.04  # of the tokens of one kind of settings
CAPTURED_SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "no_repeat_ngram_size": 3},
    {"temperature": 0.0, "logit_bias": ((65, 3.0), (66, -5.0))},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
)
"""Greedy: CUDA's sampler maps random numbers to tokens in another way than the eager runner's."""

MIXED_SETTINGS: tuple[dict[str, Any], ...] = (
    {"top_k": 50, "top_p": 0.95},
    {"temperature": 0.0},
    {"top_p": 0.95, "top_k": 0},
    {"temperature": 0.8, "top_k": 0, "top_p": 1.0},
    {"top_k": 40, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"top_k": 0, "top_p": 0.9, "logit_bias": {65: 3.0, 66: -5.0}},
    {"top_k": 30, "no_repeat_ngram_size": 3},
    {"min_p": 0.02, "top_k": 0},
)
"""Every path of the samplers; request i takes the one at i modulo their number."""


def check_placement(subject: Subject) -> Result:
    """Every node of the graph that is captured is on the device, and none copies between the two."""
    placement = placement_of(subject.artifact.model_path, subject.provider, subject.device_id)
    elsewhere = placement.elsewhere(subject.provider)
    num_here = placement.num_nodes.get(subject.provider, 0)
    says = f"on {subject.provider.removesuffix('ExecutionProvider')}"
    if elsewhere:
        others = [n for p, names in placement.nodes.items() if p != subject.provider for n in names]
        says = f"elsewhere: {', '.join(others[:4])}{' …' if len(others) > 4 else ''}"
    if placement.error:
        says = f"the session did not start: {placement.error}"
    is_good = not (elsewhere or placement.num_copies or placement.error)
    figure = f"{num_here:,} nodes, {elsewhere} elsewhere, {placement.num_copies} Memcpy"
    return judged("placement", is_good, figure, says, **vars(placement))


class Forced:
    """A logits_processor that keeps the logits it is given and lets a text go on as it does.

    Args:
        token_ids: of the text, prefix and prompt included.

    Attributes:
        logits: of each step, in order.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.logits: list[NDArray[np.float32]] = []
        self._token_ids = token_ids

    def __call__(self, token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        self.logits.append(logits.copy())
        forced = np.full_like(logits, -np.inf)
        forced[self._token_ids[len(token_ids)]] = 0
        return forced


def check_logits(subject: Subject) -> Iterator[Result]:
    """Logits of real texts, step by step through the device's own graphs, beside fp32 on the CPU."""
    texts = list(subject.texts[: subject.scale.num_texts])
    with subject.generator(num_slots=subject.scale.num_slots) as generator:
        scores, logits = text_logits(generator, texts, subject)
    with Generator(subject.reference.path, device="cpu") as generator:
        expected_scores, expected = text_logits(generator, texts, subject)
    if len(logits) != len(expected):
        raise ValueError(f"the host saw the logits of {len(logits)} steps, not of {len(expected)}")
    absolute, relative = TOLERANCES[subject.precision]
    difference = compare_logits(logits, expected, absolute=absolute, relative=relative)
    is_good = (
        difference.num_not_finite == 0 and difference.max_excess <= 0 and difference.mean_kl <= MAX_MEAN_KL
    )
    figure = f"max {difference.max_abs:.3g}, mean {difference.mean_abs:.2g}, KL {difference.mean_kl:.2g}"
    says = (
        f"{difference.num_rows:,} steps of {len(texts)} texts in {subject.precision} beside fp32; the same "
        f"likeliest token in {difference.top1:.2%}, {difference.num_not_finite} not finite"
    )
    yield judged("logits of steps", is_good, figure, says, **vars(difference))
    pairs = [
        (a, b)
        for score, other in zip(scores, expected_scores, strict=True)
        for a, b in zip(score.logprobs, other.logprobs, strict=True)
        if a is not None and b is not None
    ]
    actual, wanted = np.array(pairs).T
    gap = np.abs(actual - wanted)
    is_good = bool(np.isfinite(actual).all() and (gap <= 2 * (absolute + relative * np.abs(wanted))).all())
    yield judged(
        "logits of prefills",
        is_good,
        f"max {gap.max():.3g}, mean {gap.mean():.2g}",
        f"log-probabilities of the {len(gap):,} tokens of the texts, prefilled, beside fp32",
        max=gap.max(),
        mean=gap.mean(),
    )


def text_logits(
    generator: Generator, texts: Sequence[str], subject: Subject
) -> tuple[list[Any], list[NDArray[np.float32]]]:
    """Scores of the texts, and the logits [V] of each step behind each text's first word."""
    scores = generator.score(texts)
    prompts, processors, params = [], [], []
    for text, score in zip(texts, scores, strict=True):
        prefix_length = len(score.token_ids) - len(subject.tokenizer.encode(text))
        prompt = text.split(" ")[0]
        num_prompt_tokens = prefix_length + len(subject.tokenizer.encode(prompt))
        num_steps = min(len(score.token_ids) - num_prompt_tokens, subject.scale.num_text_tokens)
        processors.append(Forced(score.token_ids))
        prompts.append(prompt)
        settings = NO_FILTERS | {"max_tokens": num_steps, "seed": 0, "logits_processor": processors[-1]}
        params.append(SamplingParams(**settings))
    generator.generate(prompts, params)
    return scores, [logits for processor in processors for logits in processor.logits]


def mixed_requests(subject: Subject, count: int) -> tuple[list[str], list[SamplingParams]]:
    """Prompts of all lengths, fed and prefilled ones, with every kind of settings, 8 to 40 tokens each."""
    prompts = subject.prompts(count)
    prompts = [prompt * (1 + 5 * (number % 4)) for number, prompt in enumerate(prompts)]
    return prompts, [
        fixed_length(8 + number % 33, seed=number, **MIXED_SETTINGS[number % len(MIXED_SETTINGS)])
        for number in range(count)
    ]


def check_alone(subject: Subject) -> Result:
    """A request alone gives the tokens that it gives among others, in any slot."""
    prompts, params = mixed_requests(subject, subject.scale.num_requests)
    with subject.generator(num_slots=subject.scale.num_slots) as generator:
        together = token_ids(generator.generate(prompts, params))
        numbers = range(0, len(prompts), max(1, len(prompts) // 24))
        alone = [token_ids(generator.generate([prompts[n]], [params[n]]))[0] for n in numbers]
    found = agreement([together[number] for number in numbers], alone)
    says = (
        f"alone and among {len(prompts)} requests in {subject.scale.num_slots} slots, every kind of settings"
    )
    return judged("alone = batched", found.is_perfect, str(found), says, **vars(found))


def check_captured(subject: Subject) -> Result:
    """Captured graphs and eager runs of the same sequences, greedy and sampled, fed and prefilled.

    As many sequences as slots, all of one length, so that both sides' steps have the same shape. Their
    kernels may round differently all the same: a near tie now and then is no fault, of any kind of
    settings one token in 25 is.
    """
    if not subject.is_cuda:
        raise Skipped("graphs are captured on CUDA")
    num_slots, num_tokens, max_length = subject.scale.num_slots, 48, subject.artifact.config.n_positions
    rng = np.random.default_rng(SEED)
    found = {}
    for name, length in (("fed", 5), ("prefilled", MAX_FED_TOKENS + 8)):
        prompts = [tuple(row) for row in rng.integers(0, 256, (num_slots, length)).tolist()]
        params = [
            SequenceParams(
                max_tokens=num_tokens, seed=number, **CAPTURED_SETTINGS[number % len(CAPTURED_SETTINGS)]
            )
            for number in range(num_slots)
        ]
        sides = []
        for kind in KINDS:
            with open_engine(subject, kind, num_slots=num_slots, max_length=max_length) as made:
                sides.append(run_all(made, prompts, params))
        for group in range(len(CAPTURED_SETTINGS)):
            rows = slice(group, None, len(CAPTURED_SETTINGS))
            found[f"{name}, {CAPTURED_SETTINGS[group]}"] = agreement(*(side[rows] for side in sides))
    flips = [result.flips for result in found.values()]
    num_different = sum(result.num_different for result in found.values())
    figure = f"{num_different} of {2 * num_slots} sequences part, at most {max(flips):.1%} of the tokens"
    worst = max(found, key=lambda name: found[name].flips)
    says = f"greedy, with and without penalties, fed and prefilled; {worst}: {found[worst]}"
    values = {name: vars(result) for name, result in found.items()}
    return judged("captured = eager", max(flips) <= MAX_FLIPS, figure, says, **values)


def check_slot_reuse(subject: Subject) -> Result:
    """Slots that longer sequences have left, and closed streams, change nothing."""
    num_slots = subject.scale.num_slots
    prompts, params = mixed_requests(subject, num_slots)
    with subject.generator(num_slots=num_slots) as generator:
        fresh = token_ids(generator.generate(prompts, params))
        longer = subject.prompts(2 * num_slots, length=40, seed=1)
        generator.generate(longer, fixed_length(80, top_k=0, top_p=0.9, repetition_penalty=1.2))
        stream: Any = generator.stream(longer[: num_slots // 2], fixed_length(60))
        next(stream)
        stream.close()
        reused = token_ids(generator.generate(prompts, params))
    found = agreement(fresh, reused)
    says = "the same requests in new slots and in slots that others have left"
    return judged("slots reused", found.is_perfect, str(found), says, **vars(found))


def check_seeds(subject: Subject) -> Result:
    """A seed's tokens do not depend on order, streaming, or steps_per_sync."""
    prompts, params = mixed_requests(subject, 48)
    with subject.generator(num_slots=subject.scale.num_slots) as generator:
        expected = token_ids(generator.generate(prompts, params))
        backwards = token_ids(generator.generate(prompts[::-1], params[::-1]))[::-1]
        streamed: list[list[int]] = [[] for _ in prompts]
        for delta in generator.stream(prompts, params):
            streamed[delta.prompt_index] += delta.token_ids
    with subject.generator(num_slots=subject.scale.num_slots, steps_per_sync=2) as generator:
        other_sync = token_ids(generator.generate(prompts, params))
    sides = {
        "in reverse order": backwards,
        "streamed": [tuple(ids) for ids in streamed],
        "steps_per_sync 2": other_sync,
    }
    found = {name: agreement(expected, actual) for name, actual in sides.items()}
    different = [f"{name}: {result}" for name, result in found.items() if not result.is_perfect]
    figure = "; ".join(different) or f"{len(prompts)} requests, 3 ways, all equal"
    values = {name: vars(result) for name, result in found.items()}
    return judged("seeds", not different, figure, f"tokens of a seed {', '.join(sides)}", **values)


def measure_variance(subject: Subject) -> Result:
    """How often tokens depend on company where the batch's size follows the running sequences."""
    num_slots = subject.scale.num_slots
    prompts, params = mixed_requests(subject, num_slots)
    with subject.generator(num_slots=num_slots, batch_invariant=False) as generator:
        together = token_ids(generator.generate(prompts, params))
        numbers = range(0, len(prompts), 2)
        alone = [token_ids(generator.generate([prompts[n]], [params[n]]))[0] for n in numbers]
    found = agreement([together[number] for number in numbers], alone)
    figure = f"{found.num_different} of {found.num_requests} differ"
    return measured("batch_invariant=False", figure, "alone and among others, 8 to 40 tokens", **vars(found))


def check_distributions(subject: Subject) -> Iterator[Result]:
    """Draws on the device beside the distribution that the host computes from the same logits."""
    prompt = subject.texts[0].split(" ")[0]
    num_slots = DRAW_SLOTS if subject.is_cuda else 16
    with subject.generator(num_slots=num_slots, max_queued_sequences=2 * MAX_SAMPLES) as generator:
        for number, (name, settings) in enumerate(DISTRIBUTIONS.items()):
            logits = logits_behind(generator, prompt)
            probs = filtered_probs(logits, SequenceParams(max_tokens=1, seed=0, **settings))
            ids = draws(generator, prompt, settings, subject.scale.num_draws, first_seed=1000 * number)
            found = chi_squared(ids, probs)
            is_good = found.p >= MIN_P and found.num_outside <= MAX_OUTSIDE * len(ids)
            figure = f"χ² {found.statistic:,.0f} at {found.degrees:,}, p {found.p:.2g}"
            says = f"{len(ids):,} draws from {np.count_nonzero(probs):,} tokens, {found.num_outside} outside"
            yield judged(f"draws: {name}", is_good, figure, says, **vars(found))


def draws(
    generator: Generator, prompt: str, settings: dict[str, Any], count: int, *, first_seed: int
) -> list[int]:
    """First tokens behind the prompt, `count` of them."""
    ids: list[int] = []
    while len(ids) < count:
        seed = first_seed + len(ids)
        params = SamplingParams(
            **NO_FILTERS | settings | {"n": min(MAX_SAMPLES, count - len(ids)), "max_tokens": 1, "seed": seed}
        )
        ids += [first for first, *_ in token_ids(generator.generate([prompt], [params]))]
    return ids


def logits_behind(generator: Generator, prompt: str) -> NDArray[np.float32]:
    """The logits [V] that the prompt's first new token is drawn from."""
    kept: list[NDArray[np.float32]] = []

    def keep(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        kept.append(logits.copy())
        return logits

    generator.generate(
        [prompt], SamplingParams(**NO_FILTERS | {"max_tokens": 1, "seed": 0, "logits_processor": keep})
    )
    if not kept:
        raise ValueError("no step showed its logits to the host")
    return kept[0]

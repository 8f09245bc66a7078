"""How much is done: `FULL`, `QUICK` for a first look, `TRIAL` to try the script itself on a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything.

    num_texts, num_text_tokens: real texts whose logits are compared, and tokens of each, at most.
    num_requests: of the comparisons of tokens. num_draws: of each chi-squared test.
    num_slots: of comparisons of tokens and of the soak. num_mixed: requests of the soak.
    warmup_s: of graphs by themselves, before they are timed. num_rounds: of each timing.
    graph_rows: of the graphs by themselves. batch_sizes, num_new_tokens: of the decode timings.
    sweep_slots, sweep_steps: num_slots and every steps_per_sync of their comparison.
    prompt_lengths: of fed and prefilled prompts. num_turns: of every variant. num_prefills: different lengths
    that variants prefill.
    num_tweets: requests of the tweets workload. peer_batches: batch size of transformers → how many
    batches it is given. compiles: whether its compiled generate is timed too.
    """

    num_texts: int
    num_text_tokens: int
    num_requests: int
    num_draws: int
    num_slots: int
    num_mixed: int
    warmup_s: float
    num_rounds: int
    graph_rows: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_new_tokens: int
    sweep_slots: int
    sweep_steps: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    num_turns: int
    num_prefills: int
    num_tweets: int
    peer_batches: dict[int, int]
    compiles: bool


FULL = Scale(
    num_texts=64,
    num_text_tokens=32,
    num_requests=256,
    num_draws=20_000,
    num_slots=64,
    num_mixed=1_000,
    warmup_s=0.3,
    num_rounds=5,
    graph_rows=(1, 64, 256),
    batch_sizes=(1, 64, 256),
    num_new_tokens=192,
    sweep_slots=256,
    sweep_steps=(2, 4, 8),
    prompt_lengths=(4, 16, 32, 64, 128),
    num_turns=2,
    num_prefills=12,
    num_tweets=5_000,
    peer_batches={128: 3, 256: 2},
    compiles=True,
)
QUICK = Scale(
    num_texts=16,
    num_text_tokens=32,
    num_requests=96,
    num_draws=20_000,
    num_slots=64,
    num_mixed=500,
    warmup_s=0.3,
    num_rounds=3,
    graph_rows=(64, 256),
    batch_sizes=(1, 256),
    num_new_tokens=96,
    sweep_slots=64,
    sweep_steps=(2, 8),
    prompt_lengths=(8, 64),
    num_turns=2,
    num_prefills=4,
    num_tweets=2_000,
    peer_batches={128: 2},
    compiles=False,
)
TRIAL = Scale(
    num_texts=3,
    num_text_tokens=8,
    num_requests=24,
    num_draws=1_000,
    num_slots=8,
    num_mixed=60,
    warmup_s=0.0,
    num_rounds=1,
    graph_rows=(1, 4),
    batch_sizes=(1, 4),
    num_new_tokens=6,
    sweep_slots=2,
    sweep_steps=(1, 4),
    prompt_lengths=(4, 20, 80),
    num_turns=1,
    num_prefills=3,
    num_tweets=20,
    peer_batches={4: 2, 8: 1},
    compiles=False,
)

SCALES = {"full": FULL, "quick": QUICK, "trial": TRIAL}

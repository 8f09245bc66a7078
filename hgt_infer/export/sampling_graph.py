"""The sampler as graph nodes: logits and per-row settings in, one token id per row out.

Filters follow transformers' order: end-of-text suppressed below the minimum length, temperature,
top_k, top_p. There is no random operator here: the caller feeds uniforms, so that a row's token
depends on its own logits, settings and uniforms alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from hgt_infer.sampling import GRAPH_MAX_TOP_K, GRAPH_UNIFORMS

Value = Any  # ir.Value, which onnxscript leaves untyped


@dataclass(frozen=True)
class SamplingInputs:
    """Settings of each row, all of shape [B, 1] but the uniforms.

    temperature: float, > 0. top_k: int64, 0 is off, 1 … GRAPH_MAX_TOP_K otherwise. top_p: float, ≥ 1 is off.
    too_short: bool, true while the row must not end. uniforms: float [B, GRAPH_UNIFORMS] in [0, 1).
    """

    temperature: Value
    top_k: Value
    top_p: Value
    too_short: Value
    uniforms: Value


def sample(
    builder: GraphBuilder,
    logits: Value,
    rows: SamplingInputs,
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int],
) -> tuple[Value, Value]:
    """Draw one token per row from its filtered distribution.

    logits: float [B, V]. Returns token_ids int64 [B] and unresolved bool [B]: rows whose candidates
    all fell outside the nucleus (about 1 in 160,000 at top_p 0.95), to be drawn from the logits on the host.

    Rows with top_k, and rows whose nucleus lies within the GRAPH_MAX_TOP_K likeliest tokens, are drawn by
    inverse CDF over that window. The others go through `_sample_wide`, which runs only when some
    row of the batch has no top_k.
    """
    op = builder.op
    window = min(GRAPH_MAX_TOP_K, vocab_size)
    # [B, window] from here on, descending. Weights are a softmax without its denominator: the peak's is 1.
    values, ids = _largest(op, logits, rows.too_short, window, vocab_size, eos_token_ids)
    peak = op.Slice(values, [0], [1], [1])
    weights = op.Exp(op.Div(op.Sub(values, peak), rows.temperature))

    # Ties with the k-th value stay, as in transformers' TopKLogitsWarper.
    no_top_k = op.Less(rows.top_k, 1)
    last = op.Sub(op.Where(no_top_k, window, op.Min(rows.top_k, window)), 1)
    in_top_k = op.GreaterOrEqual(values, op.GatherElements(values, last, axis=1))
    weights = op.Where(in_top_k, weights, 0.0)
    window_total = op.ReduceSum(weights, [1])

    any_wide = op.ReduceMax(op.Cast(no_top_k, to=ir.DataType.INT32), [0, 1], keepdims=0)
    use_wide, wide_ids, unresolved, total = op.If(
        op.Cast(any_wide, to=ir.DataType.BOOL),
        then_branch=builder.subgraph(
            lambda op: _sample_wide(op, logits, rows, no_top_k, window_total, vocab_size, eos_token_ids),
            [],
            _branch_outputs("wide"),
            name="wide",
        ),
        else_branch=builder.subgraph(
            lambda op: (
                op.Identity(no_top_k),
                op.Cast(no_top_k, to=ir.DataType.INT64),
                op.Identity(no_top_k),
                op.Identity(window_total),
            ),
            [],
            _branch_outputs("window"),
            name="window",
        ),
        _outputs=["use_wide", "wide_ids", "unresolved", "total"],
    )

    # The nucleus is inclusive: a token stays while the mass of likelier ones is below top_p.
    before = op.CumSum(weights, 1, exclusive=1)
    in_nucleus = op.And(in_top_k, op.Less(before, op.Mul(rows.top_p, total)))
    weights = op.Where(in_nucleus, weights, 0.0)
    rank = _inverse_cdf(op, weights, op.Slice(rows.uniforms, [0], [1], [1]), window)
    token_ids = op.Where(use_wide, wide_ids, op.GatherElements(ids, rank, axis=1))
    return op.Squeeze(token_ids, [1]), op.Squeeze(unresolved, [1])


def _branch_outputs(prefix: str) -> list[ir.Value]:
    """[B, 1] each: row taken from the wide path, its token id, no candidate accepted, total weight."""
    types = {"use_wide": "BOOL", "wide_ids": "INT64", "unresolved": "BOOL", "total": "FLOAT"}
    return [
        ir.val(f"{prefix}.{name}", dtype=ir.DataType[dtype], shape=["batch", 1])
        for name, dtype in types.items()
    ]


def _largest(
    op: Any, logits: Value, too_short: Value, window: int, vocab_size: int, eos_token_ids: Sequence[int]
) -> tuple[Value, Value]:
    """The `window` largest logits of each row and their ids, without end-of-text where too short."""
    num_selected = min(window + len(eos_token_ids), vocab_size)
    values, ids = op.TopK(logits, [num_selected], axis=1, _outputs=2)
    if not eos_token_ids:
        return values, ids
    is_eos = op.Equal(ids, eos_token_ids[0])
    for eos_token_id in eos_token_ids[1:]:
        is_eos = op.Or(is_eos, op.Equal(ids, eos_token_id))
    values = op.Where(op.And(is_eos, too_short), -math.inf, values)
    values, order = op.TopK(values, [window], axis=1, _outputs=2)
    return values, op.GatherElements(ids, order, axis=1)


def _inverse_cdf(op: Any, weights: Value, uniform: Value, size: int) -> Value:
    """Index [B, 1] drawn in proportion to weights [B, size] by uniform [B, 1].

    Only an index of positive weight is returned. uniform < 1 keeps the target below the total.
    """
    cumulative = op.CumSum(weights, 1)
    target = op.Mul(uniform, op.Slice(cumulative, [size - 1], [size], [1]))
    hit = op.And(op.Greater(cumulative, target), op.Greater(weights, 0.0))
    return op.ArgMax(op.Cast(hit, to=ir.DataType.FLOAT), axis=1)


def _sample_wide(
    op: Any,
    logits: Value,
    rows: SamplingInputs,
    no_top_k: Value,
    window_total: Value,
    vocab_size: int,
    eos_token_ids: Sequence[int],
) -> tuple[Value, Value, Value, Value]:
    """Draw from nuclei wider than the window, exactly and without a sort.

    GRAPH_UNIFORMS tokens are drawn from the whole softmax; the first one inside the nucleus is a
    sample of the nucleus (rejection sampling). A token is inside when the mass of strictly likelier
    tokens is below top_p. Whether a row comes here depends on its logits only, never on its uniforms.
    """
    op.builder.push_module("wide")  # names must differ from the enclosing graph's
    if eos_token_ids:
        mask = np.zeros((1, vocab_size), np.bool_)
        mask[0, list(eos_token_ids)] = True
        is_eos = op.initializer(ir.tensor(mask, name="is_eos"))
        logits = op.Where(op.And(is_eos, rows.too_short), -math.inf, logits)
    probs = op.Softmax(op.Div(logits, rows.temperature), axis=1)  # [B, V]
    total = op.Where(no_top_k, op.Reciprocal(op.ReduceMax(probs, [1])), window_total)
    use_wide = op.And(no_top_k, op.Less(op.Div(window_total, total), rows.top_p))

    # Inverse CDF in two levels: the block, then the token inside it.
    block_size = math.isqrt(vocab_size - 1) + 1
    num_blocks = -(-vocab_size // block_size)
    padded = op.Pad(probs, [0, 0, 0, num_blocks * block_size - vocab_size])
    blocks = op.Reshape(padded, [-1, num_blocks, block_size])
    block_sums = op.ReduceSum(blocks, [2], keepdims=0)  # [B, num_blocks]
    through = op.CumSum(block_sums, 1)
    targets = op.Mul(rows.uniforms, op.Slice(through, [num_blocks - 1], [num_blocks], [1]))  # [B, R]
    beyond = op.Greater(op.Unsqueeze(through, [1]), op.Unsqueeze(targets, [2]))  # [B, R, num_blocks]
    block = op.ArgMax(op.Cast(beyond, to=ir.DataType.FLOAT), axis=2, keepdims=0)  # [B, R]
    rest = op.Sub(targets, op.GatherElements(op.Sub(through, block_sums), block, axis=1))
    chosen = op.GatherElements(  # [B, R, block_size]
        blocks, op.Expand(op.Unsqueeze(block, [2]), [1, 1, block_size]), axis=1
    )
    hit = op.And(op.Greater(op.CumSum(chosen, 2), op.Unsqueeze(rest, [2])), op.Greater(chosen, 0.0))
    offset = op.ArgMax(op.Cast(hit, to=ir.DataType.FLOAT), axis=2)  # [B, R, 1]
    found = op.Squeeze(op.GatherElements(hit, offset, axis=2), [2])
    candidate_probs = op.Squeeze(op.GatherElements(chosen, offset, axis=2), [2])  # [B, R]
    candidate_ids = op.Add(op.Mul(block, block_size), op.Squeeze(offset, [2]))

    # Rounding can leave a target beyond its block's last token: such a candidate counts as outside.
    accepted = op.And(found, op.Less(_mass_above(op, probs, candidate_probs), rows.top_p))
    first = op.ArgMax(op.Cast(accepted, to=ir.DataType.FLOAT), axis=1)  # [B, 1]
    unresolved = op.And(use_wide, op.Not(op.GatherElements(accepted, first, axis=1)))
    return use_wide, op.GatherElements(candidate_ids, first, axis=1), unresolved, total


def _mass_above(op: Any, probs: Value, thresholds: Value) -> Value:
    """Mass [B, R] of the tokens strictly likelier than each threshold [B, R]; probs [B, V]."""
    masses = []
    for index in range(GRAPH_UNIFORMS):
        threshold = op.Slice(thresholds, [index], [index + 1], [1])
        masses.append(op.ReduceSum(op.Where(op.Greater(probs, threshold), probs, 0.0), [1]))
    return op.Concat(*masses, axis=1)

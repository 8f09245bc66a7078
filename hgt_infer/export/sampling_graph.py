"""The CPU's sampler as a graph: logits and per-row settings in, one token id per row out.

The filters, their order and their borders are those of `sampling.host`. A row is drawn from a window of its
likeliest tokens, from the whole softmax, or from that by rejection. There is no random operator here: the
caller feeds uniforms, so that a row's token depends on its own logits, settings and uniforms alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from hgt_infer.export.onnx_graph import KERNEL_DOMAIN, OnnxGraph, Value, if_else, loop
from hgt_infer.sampling.random_numbers import GRAPH_UNIFORMS
from hgt_infer.sampling.settings import GRAPH_MAX_TOP_K

NARROW_WINDOW, NARROW_MAX_TOP_K = 64, 50
"""Window and largest top_k of rows that need no more: TopK takes half the time where all of a batch do."""

WIDE_WINDOW = GRAPH_MAX_TOP_K + 1
"""Window of all other rows. A window is larger than top_k, so that it shows ties that go on behind top_k."""

NO_WEIGHT = 1e-30
"""Lighter tokens count as impossible: no uniform of 24 bits and no float32 sum tells them from 0."""

BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))

OUTSIDE, OPEN, INSIDE = 0.0, 1.0, 2.0
"""What is known of a candidate: whether it lies inside the nucleus."""


@dataclass(frozen=True)
class SamplingInputs:
    """Settings of each of B rows, [B, 1] where no other shape is given.

    temperature: float, > 0. top_k: int64, 0 is off, 1 … GRAPH_MAX_TOP_K otherwise. top_p: float, ≥ 1 is off.
    min_p: float, 0 is off, ≤ 1. too_short: bool, true while the row must not end.
    uniforms: float [B, GRAPH_UNIFORMS] in [0, 1).
    is_adjusted: bool; where no row is, the two that follow are not read.
    logit_bias: float [B, V], added; -inf bans a token. repetition_penalty: float [B, V], > 0, 1 is off.
    """

    temperature: Value
    top_k: Value
    top_p: Value
    min_p: Value
    too_short: Value
    uniforms: Value
    is_adjusted: Value
    logit_bias: Value
    repetition_penalty: Value


def build_sampler(*, vocab_size: int, eos_token_ids: Sequence[int], with_kernels: bool = False) -> ir.Model:
    """Build the sampler that runs on the CPU; with_kernels: where the library of our own operators is there.

    Inputs (B ≥ 0 rows, V tokens in the vocabulary):
        logits float32 [B, V]; seqlens_k int32 [B]: position of each row's last token
        temperature float32 [B], > 0; top_k int64 [B]: 0 is off, 1 … GRAPH_MAX_TOP_K otherwise
        top_p float32 [B]: 2 is off; min_p float32 [B]: 0 is off, ≤ 1; uniforms float32 [B, GRAPH_UNIFORMS]
        min_length int32 [B]: end-of-text is suppressed while seqlens_k + 1 is below
        is_adjusted bool [B]; where any row is, logit_bias and repetition_penalty float32 [B, V] are read
    Outputs: token_ids int64 [B]; unresolved bool [B]: rows to be drawn on the host. These are rows whose
        candidates all fell outside the nucleus (about 1 in 160,000 at top_p 0.95), rows whose ties
        with the k-th logit reach the end of the window, and rows whose largest logit is not finite.
    """
    graph = OnnxGraph("sampler")
    op = graph.op

    def column(name: str, dtype: ir.DataType) -> Value:
        return op.Unsqueeze(graph.input(name, dtype, ["batch"]), [1])

    vocab_shape: list[int | str] = ["batch", vocab_size]
    logits = graph.input("logits", ir.DataType.FLOAT, vocab_shape)
    length = op.Add(column("seqlens_k", ir.DataType.INT32), 1)
    rows = SamplingInputs(
        temperature=column("temperature", ir.DataType.FLOAT),
        top_k=column("top_k", ir.DataType.INT64),
        top_p=column("top_p", ir.DataType.FLOAT),
        min_p=column("min_p", ir.DataType.FLOAT),
        too_short=op.Less(length, column("min_length", ir.DataType.INT32)),
        uniforms=graph.input("uniforms", ir.DataType.FLOAT, ["batch", GRAPH_UNIFORMS]),
        is_adjusted=column("is_adjusted", ir.DataType.BOOL),
        logit_bias=graph.input("logit_bias", ir.DataType.FLOAT, vocab_shape),
        repetition_penalty=graph.input("repetition_penalty", ir.DataType.FLOAT, vocab_shape),
    )
    sampler = _Sampler(rows, vocab_size, tuple(eos_token_ids), with_kernels)
    token_ids, unresolved = if_else(
        op,
        _any(op, rows.is_adjusted),
        ("adjusted", lambda op: sampler.sample(op, sampler.adjust(op, logits))),
        ("raw", lambda op: sampler.sample(op, logits)),
        [ir.DataType.INT64, ir.DataType.BOOL],
    )
    graph.output(op.Squeeze(token_ids, [1]), "token_ids", ir.DataType.INT64, ["batch"])
    graph.output(op.Squeeze(unresolved, [1]), "unresolved", ir.DataType.BOOL, ["batch"])
    return graph.model()


@dataclass(frozen=True)
class _Window:
    """The W likeliest tokens of each row, and what follows from them alone; [B, 1] but for three.

    A weight is a token's probability over that of the likeliest one, at the row's temperature.
    """

    ids: Value  # [B, W], descending by logit
    weights: Value  # [B, W], 0 outside top_k
    before: Value  # [B, W], sum of the weights of the tokens before
    total: Value  # sum of the weights
    last_logit: Value
    min_weight: Value  # of a token that is drawn
    holds_all: Value  # every token that can be drawn
    no_top_k: Value
    is_unfiltered: Value  # no top_k, top_p or min_p: drawn from the whole softmax, whatever the window holds
    is_broken: Value  # ties with the k-th logit reach the end of the window, or no largest logit


@dataclass(frozen=True)
class _Sampler:
    """The sampler's parts. `op` builds into the graph at hand: branches are graphs of their own."""

    rows: SamplingInputs
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    with_kernels: bool

    def adjust(self, op: Any, logits: Value) -> Value:
        """Bias and repetition penalty: [B, V] → [B, V]. Neutral ones change no bit."""
        biased = op.Add(logits, self.rows.logit_bias)
        penalty = self.rows.repetition_penalty
        # l < 0 ? l · r : l / r. Where's CPU kernel takes as long as five of these.
        return op.Add(op.Div(op.Relu(biased), penalty), op.Mul(op.Min(biased, 0.0), penalty))

    def sample(self, op: Any, logits: Value) -> tuple[Value, Value]:
        """Token id and whether the host must draw instead, [B, 1] each.

        Rows with top_k, and rows whose nucleus and min_p leave tokens of the window only, are drawn by
        inverse CDF over the window; others by `sample_wide`, which runs where a row of the batch may need it.
        """
        rows = self.rows
        window = self.window(op, logits)
        needs_total = op.Or(op.Less(rows.top_p, 1.0), op.Not(window.holds_all))
        may_be_wide = op.And(window.no_top_k, op.Or(window.is_unfiltered, needs_total))
        use_wide, wide_ids, unresolved, total = if_else(
            op,
            _any(op, may_be_wide),
            ("wide", lambda op: self.sample_wide(op, logits, window)),
            (
                "window",
                lambda op: (
                    op.Identity(may_be_wide),
                    op.Identity(rows.top_k),
                    op.Identity(may_be_wide),
                    op.Identity(window.total),
                ),
            ),
            [ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.FLOAT],
        )
        # TopK gives the lowest of equal ones first: they are before a token as likelier ones are.
        in_nucleus = op.Less(window.before, op.Mul(rows.top_p, total))
        is_kept = op.And(in_nucleus, op.GreaterOrEqual(window.weights, window.min_weight))
        rank = _inverse_cdf(op, op.Where(is_kept, window.weights, 0.0), _column(op, rows.uniforms, 0))
        token_ids = op.Where(use_wide, wide_ids, op.GatherElements(window.ids, rank, axis=1))
        return token_ids, op.Or(unresolved, window.is_broken)

    def window(self, op: Any, logits: Value) -> _Window:
        """As many of each row's likeliest tokens as the row of the batch that needs most of them.

        A row looks no further than its own size, and its sums run from the front: others change no bit of it.
        """
        rows = self.rows
        no_top_k = op.Less(rows.top_k, 1)
        is_filtered = op.Or(op.Less(rows.top_p, 1.0), op.Greater(rows.min_p, 0.0))
        is_unfiltered = op.And(no_top_k, op.Not(is_filtered))
        has_small_top_k = op.And(op.Not(no_top_k), op.LessOrEqual(rows.top_k, NARROW_MAX_TOP_K))
        is_narrow = op.Or(is_unfiltered, has_small_top_k)
        narrow, wide = (min(size, self.vocab_size) for size in (NARROW_WINDOW, WIDE_WINDOW))
        size = op.Where(is_narrow, narrow, wide)
        last = op.Sub(size, 1)
        largest_size = op.Where(_any(op, op.Not(is_narrow)), [wide], [narrow])

        logits, ids = self.largest(op, logits, largest_size)  # [B, W] from here on, descending
        weights = op.Exp(op.Div(op.Sub(logits, _column(op, logits, 0)), rows.temperature))
        # Ties with the k-th logit stay, as in transformers' TopKLogitsWarper.
        kth = op.Where(no_top_k, last, op.Sub(op.Min(rows.top_k, size), 1))
        in_top_k = op.GreaterOrEqual(logits, op.GatherElements(logits, kth, axis=1))
        weights = op.Where(in_top_k, weights, 0.0)
        before = op.CumSum(weights, 1, exclusive=1)
        total = op.Add(_column(op, before, -1), _column(op, weights, -1))
        min_weight = op.Max(rows.min_p, NO_WEIGHT)
        is_last_light = op.Less(op.GatherElements(weights, last, axis=1), min_weight)
        holds_all = op.Or(is_last_light, op.Equal(size, self.vocab_size))
        splits_ties = op.And(op.Not(no_top_k), op.Not(holds_all))
        return _Window(
            ids=ids,
            weights=weights,
            before=before,
            total=total,
            last_logit=op.GatherElements(logits, last, axis=1),
            min_weight=min_weight,
            holds_all=holds_all,
            no_top_k=no_top_k,
            is_unfiltered=is_unfiltered,
            is_broken=op.Or(splits_ties, op.Not(op.Greater(total, 0.0))),  # NaN is not greater
        )

    def largest(self, op: Any, logits: Value, size: Value) -> tuple[Value, Value]:
        """The size [1] largest logits of each row and their ids, without end-of-text where too short."""
        num_selected = op.Min(op.Add(size, len(self.eos_token_ids)), [self.vocab_size])
        if self.with_kernels:  # ONNX Runtime's takes 90 % of the sampler's time at 16 rows
            values, ids = op.builder.opset(KERNEL_DOMAIN, 1).TopK(logits, num_selected, _outputs=2)
            values.dtype, ids.dtype = ir.DataType.FLOAT, ir.DataType.INT64  # nobody infers them
        else:
            values, ids = op.TopK(logits, num_selected, axis=1, _outputs=2)
        if not self.eos_token_ids:
            return values, ids
        is_eos = op.Equal(ids, self.eos_token_ids[0])
        for eos_token_id in self.eos_token_ids[1:]:
            is_eos = op.Or(is_eos, op.Equal(ids, eos_token_id))
        values = op.Where(op.And(is_eos, self.rows.too_short), -math.inf, values)
        values, order = op.TopK(values, size, axis=1, _outputs=2)
        return values, op.GatherElements(ids, order, axis=1)

    def sample_wide(self, op: Any, logits: Value, window: _Window) -> tuple[Value, Value, Value, Value]:
        """Draw from sets wider than the window, exactly and without a sort.

        Candidates are drawn from the whole softmax cut off at min_p; the first one inside the nucleus is a
        sample of the nucleus (rejection sampling). Whether a row is drawn here depends on its logits and
        settings only, never on its uniforms.

        Returns, [B, 1] each: whether the row is drawn here, its token id, whether no candidate was inside,
        and the sum of the weights that top_p is a share of.
        """
        rows = self.rows
        probs = self.softmax(op, logits)
        peak = op.GatherElements(probs, _column(op, window.ids, 0), axis=1)
        total = op.Where(window.no_top_k, op.Reciprocal(peak), window.total)
        exceeds = op.And(op.Less(window.total, op.Mul(rows.top_p, total)), op.Not(window.holds_all))
        use_wide = op.Or(window.is_unfiltered, op.And(window.no_top_k, exceeds))

        is_cut = op.And(use_wide, op.Greater(rows.min_p, NO_WEIGHT))
        weights, unit = if_else(  # weights · unit are probabilities
            op,
            _any(op, is_cut),
            ("cut", lambda op: self.cut(op, probs, is_cut, op.Mul(rows.min_p, peak))),
            ("whole", lambda op: (self.pad(op, probs), op.Expand(1.0, op.Shape(peak)))),
            [ir.DataType.FLOAT, ir.DataType.FLOAT],
        )
        ids, candidates, is_found = self.draw(op, weights)
        # The window lies inside the nucleus of such a row. Ties with its last token may lie outside of both.
        in_window = op.Greater(op.GatherElements(logits, ids, axis=1), window.last_logit)
        is_inside = op.Or(in_window, op.Or(op.GreaterOrEqual(rows.top_p, 1.0), op.Not(use_wide)))
        state = op.Where(is_found, op.Where(is_inside, INSIDE, OPEN), OUTSIDE)
        first, state = self.settle(op, state, weights, ids, candidates, unit)
        unresolved = op.And(use_wide, op.Equal(op.GatherElements(state, first, axis=1), OUTSIDE))
        return use_wide, op.GatherElements(ids, first, axis=1), unresolved, total

    def softmax(self, op: Any, logits: Value) -> Value:
        """Probabilities [B, V] at the row's temperature, without end-of-text where too short."""
        scaled = op.Div(logits, self.rows.temperature)
        if self.eos_token_ids:
            too_short = self.rows.too_short
            eos_ids = op.Expand(self.eos_token_ids, op.Shape(too_short))  # [B, num_eos]
            eos_logits = op.Where(too_short, -math.inf, op.GatherElements(scaled, eos_ids, axis=1))
            scaled = op.ScatterElements(scaled, eos_ids, eos_logits, axis=1)  # in place
        return op.Softmax(scaled, axis=1)

    def cut(self, op: Any, probs: Value, is_cut: Value, lightest: Value) -> tuple[Value, Value]:
        """Padded weights and their unit [B, 1]; rows that are cut lose probabilities below `lightest`."""
        unit = op.Where(is_cut, lightest, 1.0)
        where_cut = _indices(op, is_cut)
        in_units = op.Div(op.GatherND(probs, where_cut), op.GatherND(unit, where_cut))
        kept = op.ThresholdedRelu(in_units, alpha=BELOW_ONE)
        return self.pad(op, op.ScatterND(probs, where_cut, kept)), unit

    def pad(self, op: Any, weights: Value) -> Value:
        """[B, V] → [B, num_blocks · block_size], zeros at the end."""
        num_zeros = self.num_blocks * self.block_size - self.vocab_size
        zeros = op.Expand(0.0, op.Concat(op.Shape(weights, end=1), [num_zeros], axis=0))
        return op.Concat(weights, zeros, axis=1)  # on all threads, where Pad takes one

    @property
    def block_size(self) -> int:
        return math.isqrt(self.vocab_size - 1) + 1  # ⌈√V⌉: as many blocks as tokens in a block

    @property
    def num_blocks(self) -> int:
        return -(-self.vocab_size // self.block_size)

    def draw(self, op: Any, weights: Value) -> tuple[Value, Value, Value]:
        """Draw R tokens in proportion to the padded weights: ids, weights, whether one was found, [B, R].

        Inverse CDF in two levels: the block, then the token inside it. Rounding can leave a target beyond
        its block's last token: nothing is found then.
        """
        blocks = op.Reshape(weights, [-1, self.num_blocks, self.block_size])
        sums = op.ReduceSum(blocks, [2], keepdims=0)  # [B, num_blocks]
        through = op.CumSum(sums, 1)
        targets = op.Mul(self.rows.uniforms, _column(op, through, -1))  # [B, R]
        beyond = op.Greater(op.Unsqueeze(through, [1]), op.Unsqueeze(targets, [2]))  # [B, R, num_blocks]
        block = op.ArgMax(op.Cast(beyond, to=ir.DataType.FLOAT), axis=2, keepdims=0)  # [B, R]
        rest = op.Sub(targets, op.GatherElements(op.Sub(through, sums), block, axis=1))
        chosen = op.GatherElements(  # [B, R, block_size]
            blocks, op.Expand(op.Unsqueeze(block, [2]), [1, 1, self.block_size]), axis=1
        )
        hit = op.And(op.Greater(op.CumSum(chosen, 2), op.Unsqueeze(rest, [2])), op.Greater(chosen, NO_WEIGHT))
        offset = op.ArgMax(op.Cast(hit, to=ir.DataType.FLOAT), axis=2)  # [B, R, 1]
        ids = op.Add(op.Mul(block, self.block_size), op.Squeeze(offset, [2]))
        is_found = op.Squeeze(op.GatherElements(hit, offset, axis=2), [2])
        return ids, op.Squeeze(op.GatherElements(chosen, offset, axis=2), [2]), is_found

    def settle(
        self, op: Any, state: Value, weights: Value, ids: Value, candidates: Value, unit: Value
    ) -> tuple[Value, Value]:
        """Look at candidates until each row has one inside: its index [B, 1], and the state [B, R] then.

        A candidate is inside when the mass of likelier tokens, and of equally likely ones with lower ids, is
        below top_p. weights [B, V] and candidates [B, R], those of ids [B, R], are in units [B, 1]. Only rows
        whose first candidate that may be inside is OPEN are looked at, and most of them once.
        """

        def first_candidate(op: Any, state: Value) -> tuple[Value, Value]:
            first = op.ArgMax(op.Cast(op.Greater(state, OUTSIDE), to=ir.DataType.FLOAT), axis=1)
            return first, op.Equal(op.GatherElements(state, first, axis=1), OPEN)

        def look(op: Any, first: Value, is_open: Value, state: Value) -> Sequence[Value]:
            where_open = _indices(op, is_open)  # of n rows
            candidate = op.GatherND(op.GatherElements(candidates, first, axis=1), where_open)  # [n, 1]
            in_candidates = op.Div(op.GatherND(weights, where_open), candidate)  # [n, V]
            mass = op.Mul(candidate, op.GatherND(unit, where_open))
            top_p = op.GatherND(self.rows.top_p, where_open)
            through = _sum_from(op, in_candidates, BELOW_ONE)  # likelier and equal ones, itself too
            is_inside = op.Less(op.Mul(through, mass), top_p)

            where_near = _indices(op, op.Not(is_inside))  # few of them: outside, or at the border
            in_candidates = op.GatherND(in_candidates, where_near)
            id_ = op.GatherND(op.GatherND(op.GatherElements(ids, first, axis=1), where_open), where_near)
            equal = op.CumSum(op.Cast(op.Equal(in_candidates, 1.0), to=ir.DataType.FLOAT), 1, exclusive=1)
            before = op.Add(_sum_from(op, in_candidates, 1.0), op.GatherElements(equal, id_, axis=1))
            near_is_inside = op.Less(
                op.Mul(before, op.GatherND(mass, where_near)), op.GatherND(top_p, where_near)
            )
            is_inside = op.ScatterND(is_inside, where_near, near_is_inside)

            looked_at = op.ScatterND(
                op.GatherElements(state, first, axis=1), where_open, op.Where(is_inside, INSIDE, OUTSIDE)
            )
            state = op.ScatterElements(state, first, looked_at, axis=1)
            first, is_open = first_candidate(op, state)
            return _any(op, is_open), first, is_open, state

        first, is_open = first_candidate(op, state)
        first, _, state = loop(op, GRAPH_UNIFORMS, _any(op, is_open), look, [first, is_open, state])
        return first, state


def _sum_from(op: Any, values: Value, alpha: float) -> Value:
    """The sum [n, 1] of each row's values above alpha."""
    return op.ReduceSum(op.ThresholdedRelu(values, alpha=alpha), [1])  # Where would take 10 times


def _inverse_cdf(op: Any, weights: Value, uniform: Value) -> Value:
    """Index [B, 1] drawn in proportion to weights [B, W] by uniform [B, 1].

    Only an index of positive weight is returned. uniform < 1 keeps the target below the total.
    """
    cumulative = op.CumSum(weights, 1)
    target = op.Mul(uniform, _column(op, cumulative, -1))
    hit = op.And(op.Greater(cumulative, target), op.Greater(weights, 0.0))
    return op.ArgMax(op.Cast(hit, to=ir.DataType.FLOAT), axis=1)


def _any(op: Any, mask: Value) -> Value:
    """Whether a mask is true anywhere: []. A sum, as there may be no rows, which have no maximum."""
    return op.Greater(op.ReduceSum(op.Cast(mask, to=ir.DataType.INT32), keepdims=0), 0)


def _column(op: Any, values: Value, index: int) -> Value:
    """A column of values [B, N], as [B, 1]; -1 is the last one."""
    return op.Slice(values, [index], [index + 1 or sys.maxsize], [1])


def _indices(op: Any, mask: Value) -> Value:
    """The n rows where mask [B, 1] is true, as [n, 1]: what GatherND and ScatterND take."""
    return op.Transpose(op.NonZero(op.Squeeze(mask, [1])), perm=[1, 0])

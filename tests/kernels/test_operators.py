"""The operators beside NumPy in float64, on every instruction set that this processor has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.kernel_nodes import Array, Node, instruction_sets_here, linear

from hgt_infer.export.int8_decoder import GELU_SHIFT, quantize
from hgt_infer.export.panels import pack
from hgt_infer.kernels import reference

SETS = instruction_sets_here()
pytestmark = pytest.mark.skipif(not SETS, reason="no library of operators")

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 130), st.integers(1, 100))
ROUNDING = 2.0**-22


def random(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", SETS)
@given(SIZES, st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_linear_in_float(
    name: str, sizes: tuple[int, int, int], seed: int, has_norm: bool, has_gelu: bool, has_residual: bool
) -> None:
    rows, inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    x, weight, bias = random(rng, rows, inputs), random(rng, inputs, outputs), random(rng, outputs)
    norm = (random(rng, inputs), random(rng, inputs)) if has_norm else None
    residual = random(rng, rows, outputs)
    node = linear(weight, name, bias=bias, norm=norm, gelu=has_gelu, residual=has_residual)
    given_inputs = {"input": x, **({"residual": residual} if has_residual else {})}
    actual = node(**given_inputs)

    hidden = reference.layer_norm(x, *norm, 1e-5) if norm else x.astype(np.float64)
    expected = hidden @ weight.astype(np.float64) + bias
    if has_gelu:
        expected = reference.gelu(expected)
    if has_residual:
        expected = expected + residual
    terms = np.abs(hidden) @ np.abs(weight) + np.abs(bias) + np.abs(residual) + 1
    # LayerNorm of nearly equal inputs divides by next to nothing: their rounding comes with it.
    spread = 1 / np.sqrt(x.var(1, keepdims=True, dtype=np.float64) + 1e-5) if norm else 0
    assert np.all(np.abs(actual - expected) <= ROUNDING * terms * (4 + inputs**0.5 + 4 * spread))


@pytest.mark.parametrize("name", SETS)
@given(SIZES, st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40)
def test_linear_in_int8(name: str, sizes: tuple[int, int, int], seed: int, is_behind_gelu: bool) -> None:
    rows, inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    x = random(rng, rows, inputs) * 10 ** rng.uniform(-3, 3, (rows, 1)).astype(np.float32)
    shift = GELU_SHIFT if is_behind_gelu else 0.0
    if is_behind_gelu:
        x = reference.gelu(x).astype(np.float32)
    integers, scale = quantize(random(rng, inputs, outputs), axis=0)
    bias = random(rng, outputs)
    actual = linear(integers, name, scale=scale, bias=bias, shift=shift)(input=x)
    expected = reference.linear_int8(x, integers, scale, bias, shift)
    # An input that lies halfway between two integers may go to either.
    quantized, row_scale = reference.quantize_rows(x, shift)
    halfway = np.abs(np.abs((x + np.float64(shift)) / np.maximum(row_scale, 1e-38) - quantized) - 0.5) < 1e-3
    allowed = halfway @ np.abs(integers.astype(np.float64)) * row_scale * scale
    magnitude = np.abs(quantized) @ np.abs(integers.astype(np.float64)) * row_scale * scale + np.abs(bias)
    assert np.all(np.abs(actual - expected) <= allowed + 4 * ROUNDING * magnitude)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_has_the_same_bits_in_any_company(name: str, is_int8: bool, num_threads: int) -> None:
    rng = np.random.default_rng(0)
    inputs, outputs = 260, 1100
    weight: Array = random(rng, inputs, outputs)
    scale = None
    if is_int8:
        weight, scale = quantize(weight, axis=0)
    norm = random(rng, inputs), random(rng, inputs)
    options: Any = {"bias": random(rng, outputs), "norm": norm, "gelu": True, "scale": scale}
    x = random(rng, 205, inputs)
    alone = linear(weight, name, **options)
    expected = np.concatenate([alone(input=x[i : i + 1]) for i in range(len(x))])
    node = linear(weight, name, num_threads=num_threads, **options)
    for num_rows in (2, 3, 7, 12, 13, 25, 64, 97, 205):
        np.testing.assert_array_equal(node(input=x[-num_rows:]), expected[-num_rows:])


@pytest.mark.parametrize("name", SETS)
def test_no_sum_of_products_saturates(name: str) -> None:
    """Pairs of the largest products exceed 16 bits."""
    weight = np.full((64, 32), 127, np.int8)
    for shift in (0.0, 0.125):
        node = linear(weight, name, scale=np.ones(32, np.float32), shift=shift)
        result = node(input=np.full((1, 64), 1 - shift, np.float32))
        np.testing.assert_allclose(result, np.full((1, 32), 127 * 64.0), rtol=1e-6)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shift", [0.0, GELU_SHIFT])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_in_its_own_row_alone(name: str, value: float, shift: float) -> None:
    rng = np.random.default_rng(1)
    integers, scale = quantize(random(rng, 40, 33), axis=0)
    x = np.abs(random(rng, 3, 40))
    expected = linear(integers, name, scale=scale, shift=shift)(input=x)
    x[1, 7] = value
    actual = linear(integers, name, scale=scale, shift=shift)(input=x)
    assert not np.isfinite(actual[1]).any()
    np.testing.assert_array_equal(actual[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-36, 3e38])
def test_very_small_and_very_large_rows_give_finite_sums(name: str, value: float) -> None:
    integers, scale = quantize(np.eye(20, 7, dtype=np.float32), axis=0)
    actual = linear(integers, name, scale=scale)(input=np.full((2, 20), value, np.float32))
    np.testing.assert_allclose(actual[:, :7], value, rtol=1e-2, atol=1e-35)


@pytest.mark.parametrize("name", SETS)
def test_no_rows_give_no_rows(name: str) -> None:
    assert linear(np.ones((5, 9), np.float32), name)(input=np.zeros((0, 5), np.float32)).shape == (0, 9)


def empty_cache(
    num_slots: int, max_length: int, heads: int, size: int, dtype: Any, *, num_layers: int = 1
) -> Array:
    return np.zeros((num_slots, -(-max_length // 16), num_layers, 2, heads, 16, size), dtype)


def attention(name: str, cache: Array, *, layer: int = 0, num_threads: int = 1) -> Node:
    indices = np.zeros(1, np.int32)
    inputs = {"*qkv": np.zeros((1, 1), np.float32), "*cache": cache, "*slots": indices, "*positions": indices}
    return Node("Attention", inputs, name, layer=layer, num_threads=num_threads)


def bound(node: Node, **inputs: Array) -> Array:
    """As a call of the node, with the inputs' own memory: the cache is written."""
    binding = node.session.io_binding()
    for key, array in inputs.items():
        binding.bind_input(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("output", "cpu")
    node.session.run_with_iobinding(binding)
    output: Array = binding.copy_outputs_to_cpu()[0]
    return output


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("heads", "size", "lengths"),
    [(3, 64, (1, 17, 70)), (2, 20, (33, 5)), (1, 1, (4,)), (2, 16, (1030, 2100))],
)
def test_attention(name: str, dtype: Any, heads: int, size: int, lengths: tuple[int, ...]) -> None:
    """Whole prompts into slots out of order, then a token of each."""
    rng = np.random.default_rng(len(lengths))
    max_length, num_slots = max(lengths) + 1, len(lengths) + 1
    cache = empty_cache(num_slots, max_length, heads, size, dtype, num_layers=2)
    slots = rng.permutation(num_slots)[: len(lengths)]
    node = attention(name, cache, layer=1)
    qkv = [random(rng, length + 1, 3, heads, size) for length in lengths]

    def run(tokens: list[Array], positions: list[Array]) -> Array:
        slot_of_token = np.repeat(slots, [len(x) for x in positions]).astype(np.int32)
        return bound(
            node,
            qkv=np.concatenate(tokens).reshape(len(slot_of_token), -1),
            cache=cache,
            slots=slot_of_token,
            positions=np.concatenate(positions).astype(np.int32),
        )

    outputs = run([x[:-1] for x in qkv], [np.arange(length) for length in lengths])
    last = run([x[-1:] for x in qkv], [np.array([length]) for length in lengths])
    prompts = np.split(outputs, np.cumsum(lengths)[:-1])
    for x, prompt, step in zip(qkv, prompts, last, strict=True):
        actual = np.concatenate([prompt, step[None]]).reshape(len(x), heads, size)
        keys, values = (x[:, kind].astype(dtype) for kind in (1, 2))
        for token in {0, len(x) // 2, len(x) - 2, len(x) - 1}:
            for head in range(heads):
                seen = slice(0, token + 1)
                expected = reference.attention(x[token, 0, head], keys[seen, head], values[seen, head])
                np.testing.assert_allclose(actual[token, head], expected, atol=3e-6)
    assert not cache[:, :, 0].any(), "another layer's cache was written"
    assert not cache[sorted(set(range(num_slots)) - set(slots.tolist()))].any(), "or another slot's"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tokens_attention_has_the_same_bits_alone_and_in_a_prompt(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    heads, size, length = 2, 64, 1100
    qkv = random(rng, length, 3 * heads * size)
    whole, steps = (empty_cache(3, length, heads, size, dtype) for _ in range(2))
    positions = np.arange(length, dtype=np.int32)
    slots = np.full(length, 2, np.int32)
    expected = bound(
        attention(name, whole, num_threads=2), qkv=qkv, cache=whole, slots=slots, positions=positions
    )
    node = attention(name, steps)
    for t in range(length):
        one = slice(t, t + 1)
        alone = bound(node, qkv=qkv[one], cache=steps, slots=slots[one], positions=positions[one])
        np.testing.assert_array_equal(alone[0], expected[t])
    np.testing.assert_array_equal(whole, steps)


@pytest.mark.parametrize("name", SETS)
def test_halves_are_rounded_as_numpy_does(name: str) -> None:
    """Every magnitude: subnormal, between two halves, too large, not a number."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 64 * 300, dtype=np.uint32)
    halves = np.arange(64 * 300, dtype=np.uint32).astype(np.uint16).view(np.float16)  # and ties between them
    ties = halves.astype(np.float32)
    with np.errstate(all="ignore"):
        ties = np.where(rng.random(ties.shape) < 0.5, ties, ties * np.float32(1 + 2.0**-11))
        numbers = np.concatenate([patterns.view(np.float32), ties, -ties])
        expected = numbers.astype(np.float16)
    positions = len(numbers) // 64
    cache = empty_cache(1, positions, 1, 64, np.float16)
    qkv = np.zeros((positions, 3, 64), np.float32)
    qkv[:, 1] = numbers.reshape(positions, 64)
    order = np.arange(positions, dtype=np.int32)
    bound(
        attention(name, cache), qkv=qkv.reshape(positions, -1), cache=cache, slots=order * 0, positions=order
    )
    actual = cache[0, :, 0, 0, 0].reshape(-1)[: len(numbers)]
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(actual.view(np.uint16)[is_number], expected.view(np.uint16)[is_number])
    assert np.isnan(actual[~is_number]).all()


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_an_embedding_is_its_column_and_its_position(name: str, is_int8: bool) -> None:
    rng = np.random.default_rng(2)
    size, vocabulary = 45, 70
    matrix: Array = random(rng, size, vocabulary)
    expected, scale = matrix, None
    if is_int8:
        matrix, scale = quantize(matrix, axis=0)
        expected = matrix * scale
    positions = random(rng, 9, size)
    indices = np.zeros(1, np.int32)
    inputs = {"*token_ids": indices, "*positions": indices, "weight": pack(matrix), "scale": scale}
    node = Node("Embedding", {**inputs, "position_weight": positions}, name, vocabulary=vocabulary)
    ids, at = rng.integers(0, vocabulary, 20).astype(np.int32), rng.integers(0, 9, 20).astype(np.int32)
    np.testing.assert_array_equal(node(token_ids=ids, positions=at), expected.T[ids] + positions[at])
    for wrong in ({"token_ids": ids + vocabulary}, {"token_ids": ids - 70}, {"positions": at + 9}):
        with pytest.raises(InvalidArgument, match="Embedding: a token or a position lies outside"):
            node(**{"token_ids": ids, "positions": at, **wrong})


def test_int8_and_attention_have_the_same_bits_on_every_instruction_set() -> None:
    rng = np.random.default_rng(3)
    integers, scale = quantize(random(rng, 770, 300), axis=0)
    norm, bias = (random(rng, 770), random(rng, 770)), random(rng, 300)
    x, residual = random(rng, 30, 770) * 3, random(rng, 30, 300)
    options: Any = {"scale": scale, "bias": bias, "gelu": True, "residual": True}
    qkv = random(rng, 300, 3 * 128)
    at = np.arange(300, dtype=np.int32)
    results = []
    for name in SETS:
        cache = empty_cache(1, 300, 2, 64, np.float16)
        results.append(
            (
                linear(integers, name, norm=norm, **options)(input=x, residual=residual),
                linear(integers, name, shift=GELU_SHIFT, **options)(input=np.abs(x), residual=residual),
                bound(attention(name, cache), qkv=qkv, cache=cache, slots=at * 0, positions=at),
            )
        )
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_shapes_that_do_not_fit_are_errors() -> None:
    name = SETS[-1]
    node = linear(np.ones((40, 40), np.float32), name, residual=True)
    x = np.ones((2, 40), np.float32)
    with pytest.raises(InvalidArgument, match=r"input must be \[rows, inputs\]"):
        node(input=x[:, :39], residual=x)
    with pytest.raises(InvalidArgument, match=r"residual must be \[rows, outputs\]"):
        node(input=x, residual=x[:1])
    with pytest.raises(Exception, match="bias must have a value for each output"):
        linear(np.ones((40, 40), np.float32), name, bias=np.ones(41, np.float32))
    with pytest.raises(Exception, match="scale and column_sums must have a value for each output"):
        linear(np.ones((40, 40), np.int8), name, scale=np.ones(39, np.float32))
    with pytest.raises(Exception, match=r"weight must be \[panels"):
        inputs = {"*input": x, "weight": np.ones((2, 40, 31), np.float32)}
        Node("Linear", inputs, name, num_outputs=62, gelu=0, shift=0.0, epsilon=0.0)
    cache = empty_cache(3, 10, 2, 4, np.float32)
    node = attention(name, cache)
    qkv, zeros = np.ones((2, 24), np.float32), np.zeros(2, np.int32)
    for wrong, message in (
        ({"qkv": qkv[:, :23]}, r"qkv must be \[tokens, 3 \* heads \* head_size\]"),
        ({"slots": zeros[:1]}, "slots and positions must have a value for each token"),
        ({"slots": zeros + 3}, "a slot or a position lies outside the cache"),
        ({"positions": zeros + 16}, "a slot or a position lies outside the cache"),
        ({"positions": zeros - 1}, "a slot or a position lies outside the cache"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            node(**{"qkv": qkv, "cache": cache, "slots": zeros, "positions": zeros, **wrong})
    with pytest.raises(InvalidArgument, match="cache must be"):
        attention(name, cache, layer=1)(qkv=qkv, cache=cache, slots=zeros, positions=zeros)


def top_k(name: str) -> Node:
    return Node(
        "TopK",
        {"*input": np.zeros((1, 1), np.float32), "*count": np.zeros(1, np.int64)},
        name,
        num_results=2,
    )


@pytest.mark.parametrize("name", SETS)
@given(st.integers(1, 5), st.integers(1, 5000), st.data())
@settings(max_examples=60)
def test_top_k_is_a_stable_sort(name: str, rows: int, size: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    count = data.draw(st.integers(1, size))
    levels = data.draw(st.sampled_from([1, 3, 50, None]))  # of equal numbers there may be many
    x = random(rng, rows, size)
    if levels is not None:
        x = np.round(x * levels) / np.float32(levels)  # some of them -0
        x[rng.random(x.shape) < 0.02] = rng.choice([np.inf, -np.inf])
    values, ids = top_k(name).session.run(None, {"input": x, "count": np.array([count])})
    expected = np.argsort(-x, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, 1))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_top_k_gives_what_is_no_number_first(name: str, nan: float) -> None:
    x = random(np.random.default_rng(0), 2, 3000)
    x[1, 2222] = nan
    values, ids = top_k(name).session.run(None, {"input": x, "count": np.array([5])})
    assert ids[1, 0] == 2222
    assert np.isnan(values[1, 0])
    assert not np.isnan(values[0]).any()
    for count in (0, 3001):
        with pytest.raises(InvalidArgument, match="TopK: the count must be from 1 to"):
            top_k(name).session.run(None, {"input": x, "count": np.array([count])})

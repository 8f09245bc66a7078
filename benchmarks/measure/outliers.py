"""Random GPT-2 weights with the outliers of the pre-trained ones, which make int8 hard.

Where the numbers are from:
- Channels 138, 378 and 447 of GPT-2 124M are massive at the first position. The first MLP writes them from
  the position embedding; a query bias and rows of the keys' matrix turn them into attention, 0.56 of that of
  later tokens in layers 4 to 11: Ran-Milo, Ofek, Mendel, "A Mechanistic Account of Attention Sinks in GPT-2"
  (2026).
- Massive values are thousands, nearly constant, written by one layer and taken back by a late one: Sun et
  al., "Massive Activations in Large Language Models" (2024). First tokens draw attention: Xiao et al.,
  "Efficient Streaming Language Models with Attention Sinks" (2023).
- The residual's norm grows exponentially over layers: Heimersheim, Turner, "Residual stream norms grow
  exponentially over the forward pass" (2023).
- In a quarter of GPT-2 117M's layers, one channel of what matrices are given reaches 6 to 8: Dettmers et al.,
  "LLM.int8()" (2022), table 4. Here it is so in all layers, at most positions: harder.
- GPT-2 124M's last logits on five prompts: means -154 to -102, standard deviations 3.4 to 4.5, minima -180 to
  -115, maxima -136 to -89, entropies 4.7 to 6.9 nats, correlations between prompts 0.65 to 0.91.

Guesses: the outliers' signs, and their sizes but for 447's at the first position; which channels are outliers
elsewhere; that the last MLP takes back 95 %; the LayerNorms' gains; the matrices' rows at outliers; position
embeddings opposite to the mean of the tokens'; how the logits' mean comes about (a sixth by outliers, the
rest by ln_f's bias). All else is random: a trained model may carry rounding errors on less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FIRST = {138: -900, 378: -500, 447: 3000}  # channel of 768 → the residual at the first position
ELSEWHERE = {64: 1.0, 266: -0.7, 373: -0.8, 447: 1.3}  # channel of 768 → at others, in units of CONSTANTS
CONSTANTS = 40, 120  # after the first and after the last layer
ORDINARY = 3.0, 4.0  # standard deviation of the residual's other channels, likewise
NUM_NEURONS, ACTIVATION = 16, 40  # of the MLPs that write FIRST and take it back
SINK = 5.0  # how much larger than others the first token's score is, on average over heads
LOGIT_MEAN = -105


def outlier_weights(sizes: dict[str, int], seed: int = 0, strength: float = 1.0) -> dict[str, Any]:
    """Return the weights of a GPT-2 by their names in a checkpoint, drawn from the seed: 3 s for 124M.

    Args:
        sizes: n_layer (at least 2), n_head, n_embd (at least 64), n_positions, vocab_size.
        seed: of the random numbers.
        strength: of the outliers, times those of GPT-2; at least 0.
    """
    rng = np.random.default_rng(seed)
    width, num_layers, num_heads = sizes["n_embd"], sizes["n_layer"], sizes["n_head"]
    head, inner, root = width // num_heads, 4 * width, math.sqrt(width)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    def channels(values: dict[int, float]) -> tuple[Any, Any]:
        return np.array([channel * width // 768 for channel in values]), np.array([*values.values()])

    first, massive = channels({channel: value * strength for channel, value in FIRST.items()})
    elsewhere, constant = channels(ELSEWHERE)
    outliers = np.union1d(first, elsewhere)
    direction = np.zeros(width)  # of the residual at the first position
    direction[first] = unit(massive)
    deviations = np.geomspace(*ORDINARY, num_layers)
    constants = np.geomspace(*CONSTANTS, num_layers)[:, None] * constant * strength
    written = np.square(deviations) - np.square([0, *deviations[:-1]])
    increments = constants - np.vstack([0 * constant, constants[:-1]])

    # What a LayerNorm leaves of other channels behind the first position: before each layer, and at the end.
    shares = [1.0, *(deviations / np.sqrt(np.square(deviations) + np.square(constants).sum(1) / width))]

    weights: dict[str, Any] = {}
    mean = normal(width, scale=3.5 / root)  # of the embeddings
    mean[elsewhere] = -0.4 * np.sign(constant)
    weights["wte.weight"] = normal(sizes["vocab_size"], width, scale=0.1) + mean
    weights["wpe.weight"] = position = normal(sizes["n_positions"], width, scale=0.05) - mean
    position[0] = normal(width, scale=1.4)
    position[0, outliers] = 0

    def add_norm(name: str, scale: float) -> Any:
        gain = scale * np.exp(normal(width, scale=0.25))
        gain[rng.choice(width, width // 64, replace=False)] *= 3
        gain[outliers] = scale
        weights[f"{name}.weight"], weights[f"{name}.bias"] = gain, normal(width, scale=0.05)
        return gain

    def add_linear(name: str, num_inputs: int, num_outputs: int, scale: float) -> tuple[Any, Any]:
        weights[f"{name}.weight"] = matrix = normal(num_inputs, num_outputs, scale=scale)
        weights[f"{name}.bias"] = bias = normal(num_outputs, scale=0.1)
        return matrix, bias

    for layer in range(num_layers):
        block, scale = f"h.{layer}", 1 / (0.5 * shares[layer] * root)

        gain = add_norm(f"{block}.ln_1", 0.5)
        matrix, bias = add_linear(f"{block}.attn.c_attn", width, 3 * width, scale)
        matrix[outliers] *= 0.5
        matrix[first, 2 * width :] *= 0.1  # the first token's values are small
        query = normal(num_heads, head)
        bias[:width] = query.reshape(-1)
        if layer and strength:
            scores = SINK + 2 * normal(num_heads, 1)
            keys = scores * query * math.sqrt(head) / np.square(query).sum(1, keepdims=True)
            inputs = root * direction[first[:2]] * gain[first[:2]]  # 447 is an outlier at all tokens
            matrix[first[:2], width : 2 * width] = np.outer(inputs / (inputs @ inputs), keys)
        add_linear(
            f"{block}.attn.c_proj",
            width,
            width,
            math.sqrt((0.15 if layer else 0.01) * written[layer]) / (0.45 * root),
        )

        gain = add_norm(f"{block}.ln_2", 0.5)
        matrix, bias = add_linear(f"{block}.mlp.c_fc", width, inner, scale)
        matrix[outliers] *= 0.5
        bias -= 0.6
        down, down_bias = add_linear(
            f"{block}.mlp.c_proj", inner, width, math.sqrt(0.85 * written[layer]) / (0.4 * math.sqrt(inner))
        )
        down[:, elsewhere] *= 3
        down_bias[elsewhere] += increments[layer]
        if layer in (0, num_layers - 1):  # a few neurons find the first token by its direction
            if layer == 0:
                axis, reached, threshold, sign = unit(position[0]), 0.9, 0.4, 1.0
            else:
                axis, reached, threshold, sign = direction, 1.0, 0.75, -0.95
            slope = ACTIVATION / (root * (reached - threshold))
            matrix[:, :NUM_NEURONS] = (slope * axis / gain)[:, None]
            bias[:NUM_NEURONS] = -slope * root * threshold
            down[:NUM_NEURONS] = 0
            down[:NUM_NEURONS, first] = sign * massive / (NUM_NEURONS * ACTIVATION)

    gain = add_norm("ln_f", 1.4)
    gain[elsewhere] = 0.8
    ordinary = np.delete(np.arange(width), elsewhere)
    made = (
        root
        * (constants[-1] / np.linalg.norm([*constants[-1], deviations[-1] * root]))
        * gain[elsewhere]
        @ mean[elsewhere]
    )
    towards = mean[ordinary] / np.square(mean[ordinary]).sum()
    weights["ln_f.bias"][ordinary] += (LOGIT_MEAN - made) * towards
    return {f"transformer.{name}": weight.astype(np.float32) for name, weight in weights.items()}


def unit(vector: Any) -> Any:
    """A vector of length 1 in the same direction; of zeros for zeros."""
    return vector / max(np.linalg.norm(vector), 1e-9)

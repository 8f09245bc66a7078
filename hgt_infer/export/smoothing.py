"""Weights of the same model whose linear layers behind a LayerNorm are given what int8 holds better.

Trained models have a few channels that are much larger than the others, most of them nearly constant. They
take most of a token's one scale, and little is left for the rest. For every c and every s > 0

    x · W + b = ((x - c) / s) · (s · W) + (c · W + b),  c and s by input channel, s · W by row

and LayerNorm's bias and gain can give (x - c) / s: nothing is added at run time. s is that of Xiao et al.,
"SmoothQuant" (2023), section 4; c is a mean, where Wei et al., "Outlier Suppression+" (2023), take the
middle of the range. Both are taken over random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig
from hgt_infer.export.numpy_model import hidden_states

STRENGTH = 0.4
"""0 leaves all of a channel's size to what the LayerNorm gives, 1 puts all of it into the matrix."""
MAX_SCALE = 64.0
"""Of a channel, beside the median one; its inverse is the smallest."""
NUM_TEXTS, NUM_TOKENS = 4, 16

_NORMS = {"attn.c_attn": "ln_1", "mlp.c_fc": "ln_2"}


class Channels(NamedTuple):
    """c and s of a linear layer, float64 [inputs] each."""

    shift: NDArray[Any]
    scale: NDArray[Any]


class SmoothedWeights(Mapping[str, "NDArray[np.float32]"]):
    """A model's weights with what is above in all its layers, each computed when it is asked for.

    The head stays as it is: its matrix is the embedding too. So do the projections behind attention, where it
    changes nothing, and behind GELU, through which no scale goes.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, NDArray[Any]]) -> None:
        """Run the model over the texts: NUM_TEXTS · NUM_TOKENS tokens.

        Args:
            config: the model's sizes.
            weights: those that `weights.weight_shapes` lists; finite.
        """
        self._weights = weights
        self._by_linear: dict[str, Channels] = {}
        self._linear_behind: dict[str, str] = {}

        def observe(linear: str, hidden: NDArray[Any]) -> None:
            block, kind = linear.rsplit(".", 2)[0], linear.split(".", 2)[2]
            if kind in _NORMS:
                self._by_linear[linear] = channels_of(hidden, weights[f"{linear}.weight"])
                self._linear_behind[f"{block}.{_NORMS[kind]}"] = linear

        num_tokens = min(NUM_TOKENS, config.n_positions)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (NUM_TEXTS, num_tokens))
        hidden_states(config, weights, ids, observe)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        weight = self._weights[name]
        layer, _, kind = name.rpartition(".")
        if layer in self._linear_behind:
            shift, scale = self._by_linear[self._linear_behind[layer]]
            changed = (weight if kind == "weight" else weight - shift) / scale
        elif layer in self._by_linear:
            shift, scale = self._by_linear[layer]
            matrix = self._weights[f"{layer}.weight"]
            changed = scale[:, None] * weight if kind == "weight" else shift @ matrix + weight
        else:
            return weight
        return changed.astype(weight.dtype)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def channels_of(hidden: NDArray[Any], weight: NDArray[Any]) -> Channels:
    """Return c, the mean, and s, (largest |x - c|) ** STRENGTH / (largest |W| of the row) ** (1 - STRENGTH).

    s is in units of its median over channels, from 1 / MAX_SCALE to MAX_SCALE; 1 for a channel that is
    constant, whose row is zeros, or that overflows.

    Args:
        hidden: what the layer is given: [..., inputs].
        weight: its matrix [inputs, outputs], finite.
    """
    tokens = hidden.reshape(-1, len(weight)).astype(np.float64)
    mean = tokens.mean(0)
    shift = np.where(np.isfinite(mean), mean, 0.0)
    largest = np.abs(tokens - shift).max(0)
    rows = np.abs(weight).max(1).astype(np.float64)
    is_usual = np.isfinite(largest) & (largest > 0) & (rows > 0)
    scale = np.ones(len(weight))
    if is_usual.any():
        usual = largest[is_usual] ** STRENGTH / rows[is_usual] ** (1 - STRENGTH)
        scale[is_usual] = np.clip(usual / np.median(usual), 1 / MAX_SCALE, MAX_SCALE)
    return Channels(shift, scale)

"""GPT-2 in NumPy, as in Radford et al., "Language models are unsupervised multitask learners" (2019).

Exported graphs are compared with it, and int8 learns from it what linear layers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgt_infer.artifact.config import ModelConfig

Observe = Callable[[str, NDArray[Any]], None]
"""A linear layer's name, and what it is given: [..., tokens, inputs]."""


def hidden_states(
    config: ModelConfig,
    weights: Mapping[str, NDArray[Any]],
    token_ids: Sequence[Any] | NDArray[np.integer],
    observe: Observe = lambda name, hidden: None,
) -> NDArray[Any]:
    """Return what the head multiplies: normalized hidden states [..., tokens, n_embd] of the weights' type.

    Args:
        config: the model's sizes.
        weights: those that `weights.weight_shapes` lists. Each is read once.
        token_ids: [..., tokens], at most n_positions of them.
        observe: called before each linear layer of a block.
    """

    def norm(x: Any, name: str) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        scale = np.sqrt(np.square(centered).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return centered / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        observe(name, x)
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x: Any, name: str) -> Any:
        heads = linear(x, f"{name}.c_attn").reshape(*x.shape[:-1], 3, config.n_head, config.head_size)
        query, key, value = np.moveaxis(heads, (-3, -2), (0, -3))  # [..., heads, tokens, head_size] each
        scores = query @ key.swapaxes(-1, -2) / x.dtype.type(config.head_size**0.5)
        scores = np.where(np.tri(x.shape[-2], dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        return linear(np.moveaxis(mixed, -3, -2).reshape(x.shape), f"{name}.c_proj")

    def mlp(x: Any, name: str) -> Any:
        x = linear(x, f"{name}.c_fc")
        return linear(x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))), f"{name}.c_proj")

    ids = np.asarray(token_ids)
    x: NDArray[Any] = weights["wte.weight"][ids] + weights["wpe.weight"][: ids.shape[-1]]
    for layer in range(config.n_layer):
        x = x + attention(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn")
        x = x + mlp(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp")
    return norm(x, "ln_f")  # type: ignore[no-any-return]

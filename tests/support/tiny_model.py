"""A decoder's graph run by itself, over a cache of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class TinyModel:
    """A session of the tiny checkpoint's graph and a cache of its own for a batch."""

    def __init__(self, session: Any, num_rows: int) -> None:
        self.session = session
        caches = [x for x in session.get_inputs() if x.name.startswith("past_")]
        self.cache = {x.name: np.zeros((num_rows, x.shape[1], 64, x.shape[3]), np.float32) for x in caches}
        self.length = 0

    def __call__(self, ids: Array, num_outputs: int, total_sequence_length: int = 0) -> Array:
        """Run ids [B, S] behind what is in the cache: the logits of each row's last num_outputs tokens."""
        num_rows, num_tokens = ids.shape
        position_ids = np.arange(self.length, self.length + num_tokens, dtype=np.int32)
        self.length += num_tokens
        inputs = {
            "input_ids": ids.astype(np.int32),
            "position_ids": np.tile(position_ids, (num_rows, 1)),
            "first_output": np.array([num_tokens - num_outputs]),
            "seqlens_k": np.full(num_rows, self.length - 1, np.int32),
            "total_sequence_length": np.array(total_sequence_length or self.length, np.int32),
        }
        names = [x.name for x in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, inputs | self.cache), strict=True))
        self.cache = {name: outputs[name.replace("past", "present")] for name in self.cache}
        logits: Array = outputs["logits"]
        assert len(logits) == num_rows * num_outputs
        return logits

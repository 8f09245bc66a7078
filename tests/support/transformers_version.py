"""A mark for tests that compare with what only transformers 4.57 does."""

from __future__ import annotations

import pytest
import transformers

needs_transformers_4 = pytest.mark.skipif(
    not transformers.__version__.startswith("4.57"),
    reason="compares with transformers 4.57, whose pipeline and tokenizers 5.x changed",
)

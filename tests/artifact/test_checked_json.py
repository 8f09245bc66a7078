from __future__ import annotations

from pathlib import Path

import pytest

from hgt_infer.artifact.checked_json import read_json_object
from hgt_infer.errors import ModelFormatError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "hgt-infer"', "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[1]", "a JSON object"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "at most 1048576 bytes"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "expected JSON"),
    ],
    ids=["cut off", "deep", "no UTF-8", "NaN", "list", "too large", "huge integer"],
)
def test_json_that_is_no_bounded_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_json_object(path)
    assert len(str(caught.value)) < 500

"""The memory of a process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

_FIELDS = {"resident": "VmRSS", "resident_file": "RssFile", "peak": "VmHWM"}


def memory_bytes(pid: int | str = "self") -> dict[str, int]:
    """Return `resident` bytes, those of mapped files among them (`resident_file`), and the `peak` so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[field].split()[0]) * 1024 for name, field in _FIELDS.items()}

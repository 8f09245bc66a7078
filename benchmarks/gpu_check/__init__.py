"""Does hgt_infer work on this machine's GPU, and how fast: `python -m benchmarks.gpu_check --json FILE`.

Needs what is importable and nothing more: comparisons with transformers are skipped where it is not there.
`figures` and `placement` calculate and parse, `subject` is what is checked, `correctness`, `soak` and
`limits` check it, `timings`, `replays` and `peers` time it, `profiling` looks into it, `report` tells.
"""

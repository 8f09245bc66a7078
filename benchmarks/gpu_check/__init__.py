"""Does hgt_infer work on this machine's GPU, and how fast: `python -m benchmarks.gpu_check --json FILE`.

Needs what hgt_infer needs and nothing more. `steps` is the order and `worker` does them, to a `subject` and a
`scale`; `smoke`, `correctness`, `soak` and `limits` check; `timings`, `tweets`, `variants` and `peers` time;
`profiling` looks inside; `report` tells.
"""

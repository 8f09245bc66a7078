"""Does hgt_infer work on this machine's GPU, and how fast: `python -m benchmarks.gpu_check --json FILE`.

Needs what hgt_infer needs and nothing more. `steps` is the order, `worker` does them, `subject` is what is
checked; `smoke`, `correctness`, `soak` and `limits` check it; `timings`, `replays`, `variants` and `peers`
time it; `profiling` looks into it; `figures`, `placement` and `graph_nodes` calculate; `report` tells.
"""

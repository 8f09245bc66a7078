"""How fast hgt_infer is beside plain transformers on the same machine: `python -m benchmarks run`."""

"""Parts of hgt_infer and of training by themselves, by `python -m pytest benchmarks/components`."""

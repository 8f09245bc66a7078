"""The sampling specification in NumPy: random numbers, settings, filters in their order, log-probabilities.

`export.sampling_graph` and `cuda/sampler.cu` implement the same specification; docs/architecture.md has it.
"""

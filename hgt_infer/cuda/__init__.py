"""A GPU: its device and stream, the sampler's kernel, slots in its memory, the runner of captured steps."""

"""A GPU: CUDA's functions, its device, the sampler's kernel, the runner of captured steps, memory."""

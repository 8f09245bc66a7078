"""Checkpoints, stand-ins for services and for CUDA, and references that tests share."""

"""Workloads, rounds in turns, the environment, bounds: how something is measured."""

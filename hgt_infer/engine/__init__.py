"""The waiting queue, the slots, one step, the ends of sequences, statistics.

Nothing here sees an array; a device is known by its runner, a protocol.
"""

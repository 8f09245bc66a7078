"""The waiting queue, the slots, one step, the ends of sequences, statistics.

Nothing here sees an array or a device.
"""

"""Every exception that hgt_infer raises on purpose, in one tree.

A caller who wants to catch all of them catches `HgtInferError`; each one is also the built-in
exception that says what kind of fault it is (`ValueError`, `FileNotFoundError`, `RuntimeError`,
`MemoryError`).
"""

from __future__ import annotations


class HgtInferError(Exception):
    """Base of every exception that hgt_infer raises on purpose."""


class ParameterError(HgtInferError, ValueError):
    """An argument is outside its allowed range; the message names it, its value and the range."""


class PromptError(HgtInferError, ValueError):
    """A prompt cannot be generated from: empty without a prefix, or no room left to generate."""


class ModelNotFoundError(HgtInferError, FileNotFoundError):
    """No model at the path or hub id that was given."""


class ModelFormatError(HgtInferError, ValueError):
    """A model folder is not what it should be; the message has the path, the expected and the found."""


class DeviceUnavailableError(HgtInferError, RuntimeError):
    """The device that was asked for is not there, or ONNX Runtime cannot use it."""


class DeviceMemoryError(HgtInferError, MemoryError):
    """The device has no room for what was asked; the message has the bytes asked for, free and in all."""


class EngineError(HgtInferError, RuntimeError):
    """The device failed while a batch was running."""


class QueueFullError(HgtInferError, RuntimeError):
    """More sequences wait than max_queued_sequences allows: try again later, or elsewhere."""

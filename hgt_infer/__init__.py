"""Sample text from fine-tuned GPT-2 checkpoints, fast, on a CPU and, as an experiment, on CUDA."""

from hgt_infer.engine.stats import Histogram, Stats
from hgt_infer.errors import (
    DeviceMemoryError,
    DeviceUnavailableError,
    EngineError,
    HgtInferError,
    ModelFormatError,
    ModelNotFoundError,
    ParameterError,
    PromptError,
    QueueFullError,
)
from hgt_infer.generator import Generator
from hgt_infer.outputs import Completion, Delta, GenerationOutput, Score, TokenLogprobs
from hgt_infer.sampling_params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "Delta",
    "DeviceMemoryError",
    "DeviceUnavailableError",
    "EngineError",
    "GenerationOutput",
    "Generator",
    "HgtInferError",
    "Histogram",
    "ModelFormatError",
    "ModelNotFoundError",
    "ParameterError",
    "PromptError",
    "QueueFullError",
    "SamplingParams",
    "Score",
    "Stats",
    "TokenLogprobs",
]

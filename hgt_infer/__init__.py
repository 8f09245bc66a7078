"""Sample text from fine-tuned GPT-2 checkpoints, fast, on CUDA and on a CPU."""

from importlib.metadata import version

from hgt_infer.errors import (
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
from hgt_infer.stats import Percentiles, Stats

__version__ = version("hgt-infer")

__all__ = [
    "Completion",
    "Delta",
    "DeviceUnavailableError",
    "EngineError",
    "GenerationOutput",
    "Generator",
    "HgtInferError",
    "ModelFormatError",
    "ModelNotFoundError",
    "ParameterError",
    "Percentiles",
    "PromptError",
    "QueueFullError",
    "SamplingParams",
    "Score",
    "Stats",
    "TokenLogprobs",
]

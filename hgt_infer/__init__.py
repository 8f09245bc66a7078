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
)
from hgt_infer.generator import Generator
from hgt_infer.outputs import Completion, GenerationOutput
from hgt_infer.sampling_params import SamplingParams

__version__ = version("hgt-infer")

__all__ = [
    "Completion",
    "DeviceUnavailableError",
    "EngineError",
    "GenerationOutput",
    "Generator",
    "HgtInferError",
    "ModelFormatError",
    "ModelNotFoundError",
    "ParameterError",
    "PromptError",
    "SamplingParams",
]

"""hgt_infer on many machines, by Ray: datasets of prompts, and the HTTP service. Needs the extra `ray`."""

from hgt_infer.distributed.dataset import generate_dataset, row_seed
from hgt_infer.distributed.deployment import build_deployment

__all__ = ["build_deployment", "generate_dataset", "row_seed"]

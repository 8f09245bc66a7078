"""llama.cpp's server and GuideLLM, where `make peers` has built them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.local_service import served
from test_http_load import at

from benchmarks.measure.checkpoints import END_OF_TEXT, gpt2_small, write_model
from benchmarks.measure.http_client import Client
from benchmarks.measure.http_load import MODEL, open_loop
from benchmarks.measure.workloads import tweets
from benchmarks.peers import guidellm
from benchmarks.peers.llama_cpp import convert
from benchmarks.peers.registry import BACKENDS
from benchmarks.peers.worker import Remote
from hgt_infer import Generator

NAME = "llama_server_q8_0"

"""The whole CUDA path of a generator over ONNX Runtime's real provider and libraries that compute nothing.

What cannot be seen here is a number; what can is every call, its order, and what waits for what.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.stub_cuda import NVRTC_BUILTINS, Call, run_code

from hgt_infer.cuda.sampler import shared_bytes
from hgt_infer.export import export_checkpoint

IMPORTS = "from hgt_infer import Generator, SamplingParams\n"

LOADER = "/lib64/ld-linux-x86-64.so.2"
"""Starts a program without the libraries that /etc/ld.so.cache names."""

WHEELS = {
    "libcuda.so.1": "driver",
    "libcudart.so.13": "first/nvidia/cu13/lib",
    "libnvrtc.so.13": "first/nvidia/cu13/lib",
    NVRTC_BUILTINS: "first/nvidia/cu13/lib",
    "libcublas.so.13": "second/nvidia/cublas/lib",
    "libcublasLt.so.13": "second/nvidia/cublas/lib",
    "libcurand.so.10": "second/nvidia/curand/lib",
}
"""Folders of libraries, some laid out as wheels for CUDA 13 and some as older ones."""

OPEN_A_SESSION = """
import sys
from pathlib import Path
import onnxruntime
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.kernel import compile_kernel
from hgt_infer.errors import DeviceUnavailableError
from hgt_infer.cuda.sampler import SOURCE
onnxruntime.preload_dlls = lambda: None  # nothing beside ONNX Runtime is found
sys.path = sys.argv[2:]
try:
    device = CudaDevice()
    print(device.open_session(Path(sys.argv[1])).get_providers()[0])
    compile_kernel(SOURCE, "sm_90", {})
    device.close()
except DeviceUnavailableError as error:
    print(error)
print(*{line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}, sep="\\n")
"""


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny artifact in half precision."""
    folder = tmp_path_factory.mktemp("half")
    checkpoint = write_checkpoint(folder / "checkpoint", layout="modern")
    return export_checkpoint(checkpoint, folder / "artifact", precision="fp16").path


def test_steps_are_a_replay_and_a_kernel_each_and_nothing_waits_but_for_events(
    libraries: Path, half: Path
) -> None:
    printed, (_, _, first, second, closing, after) = run_code(
        libraries,
        IMPORTS
        + """
generator = Generator(sys.argv[1], device="cuda", num_slots=4, max_length=64, steps_per_sync=4)
mark()
generator.warmup()
for _ in range(2):
    mark()
    [output] = generator.generate("a", SamplingParams(n=3, max_tokens=6, ignore_eos=True))
mark()
generator.close()
mark()
print([len(completion.token_ids) for completion in output.completions])
""",
        half,
    )
    assert printed == "[6, 6, 6]\n"
    for calls in (first, second):
        names = [call.name for call in calls]
        # Nothing is computed outside of captured graph and sampler, nothing allocated, nothing waits for all.
        assert not {"kernel", "cudaMalloc", "cudaStreamSynchronize", "cudaDeviceSynchronize"} & set(names)
        assert not {"cudaStreamBeginCapture", "cudaMemcpy", "cudaMemsetAsync"} & set(names)
        steps = [i for i, name in enumerate(names) if name == "cudaGraphLaunch"]
        assert 6 <= len(steps) <= 6 + 4
        for i in steps:
            # 8 blocks a row, since few rows run; the vocabulary's 398 tokens have two chunks.
            assert calls[i + 1] == Call(
                "cuLaunchKernelEx", f"8 4 of 1024, clusters of 8, {shared_bytes(398, 8)} bytes"
            )
            assert calls[i + 2] == Call("cudaMemcpyAsync", f"2 {4 * 4}")  # what was reported, to the host
        entering = [call for call in calls if call.detail.startswith("1 ")]
        assert [call.name for call in entering] == ["cudaMemcpyAsync", "cudaMemcpy2DAsync"] * 3
        # A block is launched before the one before it is waited for.
        assert names.index("cudaEventSynchronize", steps[0]) > steps[3]
    assert {"cudaFree", "cuModuleUnload"} <= {call.name for call in closing}
    assert after == []  # all of the device's memory is free


def test_the_first_step_captures_where_nobody_warmed_up(libraries: Path, half: Path) -> None:
    _, (_, calls, _) = run_code(
        libraries,
        IMPORTS
        + """
generator = Generator(sys.argv[1], device="cuda", num_slots=4, max_length=64, batch_invariant=False)
mark()
generator.generate("a", SamplingParams(n=3, max_tokens=2, ignore_eos=True))
mark()
generator.close()
""",
        half,
    )
    names = [call.name for call in calls]
    assert names.count("cudaStreamBeginCapture") == names.count("cudaStreamEndCapture") >= 1
    captured = names[names.index("cudaStreamBeginCapture") + 1 : names.index("cudaStreamEndCapture")]
    assert set(captured) == {"kernel", "cudaMemsetAsync", "cudaMemcpyAsync"}
    assert "cuLaunchKernelEx" not in captured


def test_a_long_prompt_is_prefilled_and_its_siblings_copy_it(libraries: Path, half: Path) -> None:
    _, (_, calls, _) = run_code(
        libraries,
        IMPORTS
        + """
generator = Generator(sys.argv[1], device="cuda", num_slots=4, max_length=200)
generator.warmup()
mark()
generator.generate("My dream is to sleep until " * 20, SamplingParams(n=4, max_tokens=2, ignore_eos=True))
mark()
generator.close()
""",
        half,
    )
    names = [call.name for call in calls]
    assert names.count("cudaMemcpy3DAsync") == 3
    flash = [call for call in calls if "flash_fwd" in call.detail]
    assert len(flash) == 2  # one prompt, a kernel a layer
    # Steps are launched behind the prefill before anything is waited for.
    assert names.index("kernel") < names.index("cudaGraphLaunch") < names.index("cudaEventSynchronize")
    assert "cudaStreamSynchronize" not in names


def test_libraries_are_found_in_the_wheels_of_several_folders(
    libraries: Path, half: Path, tmp_path: Path
) -> None:
    """As where ONNX Runtime lies in another folder than the nvidia-* wheels."""
    folders = {name: tmp_path / path for name, path in WHEELS.items()}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(libraries / name, folder)

    def open_a_session(*sites: Path) -> list[str]:
        """What it printed, where the driver is the system's, and no other library."""
        done = subprocess.run(
            [LOADER, "--inhibit-cache", sys.executable, "-c", OPEN_A_SESSION, half / "model.onnx", *sites],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(folders["libcuda.so.1"]),
                "STUB_CUDA_LOG": str(tmp_path / "log"),
                "HGT_INFER_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    first, *loaded = open_a_session(tmp_path / "first", tmp_path / "second")
    assert first == "CUDAExecutionProvider"
    assert {str(folder / name) for name, folder in folders.items()} <= set(loaded)
    assert "libcublasLt.so.13 cannot be loaded" in open_a_session(tmp_path / "first")[0]
    assert "libcudart.so.13 cannot be loaded" in open_a_session()[0]


def test_the_kernel_is_compiled_for_the_gpu_at_hand_and_kept_in_cache_dir(
    libraries: Path, half: Path, tmp_path: Path
) -> None:
    code = "Generator(sys.argv[1], device='cuda', num_slots=1, cache_dir=sys.argv[2]).close()"
    _, [calls] = run_code(libraries, IMPORTS + code, half, tmp_path)
    details = {call.name: call.detail for call in calls}
    assert details["cuModuleGetFunction"] == "sample"
    for option in ("sampler.cu ", "--gpu-architecture=sm_90", "-DBLOCK=1024", "-DVOCAB_SIZE=398"):
        assert option in details["cuModuleLoadData"]
    [kept] = (tmp_path / "kernels").iterdir()
    assert details["cuModuleLoadData"].encode() in kept.read_bytes()

"""The whole CUDA path of a generator over ONNX Runtime's real provider and libraries that compute nothing.

What cannot be seen here is a number; what can is every call, its order, and what waits for what.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.stub_cuda import NVRTC_BUILTINS, Call

from hgt_infer.cuda.kernel import LaunchAttribute, LaunchConfig, compile_kernel
from hgt_infer.cuda.sampler import SOURCE, shared_bytes
from hgt_infer.errors import DeviceUnavailableError
from hgt_infer.export import export_checkpoint

START = """
import ctypes, sys
from hgt_infer import Generator, SamplingParams
write = ctypes.CDLL("libcudart.so.13").stub_write
mark = lambda: write(b"mark", b"")
"""


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


def run(libraries: Path, code: str, *arguments: object, **environment: str) -> tuple[str, list[list[Call]]]:
    """What a process printed, and its calls between marks. None of them is cuDNN's, which is there."""
    log = libraries / "run.log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries),
            "STUB_CUDA_LOG": str(log),
            "HGT_INFER_CACHE": tempfile.mkdtemp(dir=libraries),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts: list[list[Call]] = [[]]
    for line in log.read_text().splitlines():
        call = Call(*line.split("\t", 1))
        if call.name == "mark":
            parts.append([])
        else:
            parts[-1].append(call)
    assert not [call for calls in parts for call in calls if call.name.startswith("cudnn")]
    return done.stdout, parts


def test_steps_are_a_replay_and_a_kernel_each_and_nothing_waits_but_for_events(
    libraries: Path, half: Path
) -> None:
    printed, (_, _, first, second, closing, after) = run(
        libraries,
        """
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
    _, (_, calls, _) = run(
        libraries,
        """
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
    _, (_, calls, _) = run(
        libraries,
        """
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


def test_the_kernel_is_compiled_for_the_gpu_at_hand(libraries: Path, half: Path) -> None:
    _, parts = run(libraries, "Generator(sys.argv[1], device='cuda', num_slots=1).close()", half)
    details = {call.name: call.detail for call in parts[0]}
    assert details["cuModuleGetFunction"] == "sample"
    for option in ("sampler.cu ", "--gpu-architecture=sm_90", "-DBLOCK=1024", "-DVOCAB_SIZE=398"):
        assert option in details["cuModuleLoadData"]


def test_a_compiled_kernel_is_kept_on_disk_and_made_anew_where_it_is_damaged(
    libraries: Path, half: Path, tmp_path: Path
) -> None:
    def num_compiled() -> tuple[int, str]:
        code = "Generator(sys.argv[1], device='cuda', num_slots=1).close()"
        _, [calls] = run(libraries, code, half, HGT_INFER_CACHE=str(tmp_path))
        loaded = next(call.detail for call in calls if call.name == "cuModuleLoadData")
        return sum(call.name == "nvrtcCompileProgram" for call in calls), loaded

    (first, code), (second, kept) = num_compiled(), num_compiled()
    assert (first, second, kept) == (1, 0, code)
    [file] = (tmp_path / "kernels").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert num_compiled() == (1, code)
    assert num_compiled() == (0, code)


def test_a_cache_that_cannot_be_written_costs_the_compilation_alone(
    libraries: Path, half: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code = "Generator(sys.argv[1], device='cuda', num_slots=1).close()"
    for _ in range(2):
        _, [calls] = run(libraries, code, half, HGT_INFER_CACHE=str(tmp_path / "file"))
        assert "nvrtcCompileProgram" in [call.name for call in calls]


def test_a_launch_has_the_layout_of_the_header() -> None:
    """CUDA 13.0's cuda.h."""
    assert ctypes.sizeof(LaunchConfig) == 56
    fields = (LaunchConfig.stream, LaunchConfig.attributes, LaunchConfig.num_attributes)
    assert [field.offset for field in fields] == [32, 40, 48]
    assert (ctypes.sizeof(LaunchAttribute), LaunchAttribute.cluster.offset) == (72, 8)


def test_what_the_compiler_says_is_in_the_error(libraries: Path, half: Path) -> None:
    printed, _ = run(
        libraries,
        """
from hgt_infer import EngineError
try:
    Generator(sys.argv[1], device="cuda", num_slots=1)
except EngineError as error:
    print(error)
""",
        half,
        STUB_NVRTC_FAILS="1",
    )
    assert printed.startswith("sampler.cu for sm_90: line 3: ?")


def test_a_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgt_infer.cuda.kernel.NVRTC", "libnvrtc-that-is-not-there.so")
    with pytest.raises(DeviceUnavailableError, match=r"libnvrtc-that-is-not.*hgt-infer\[cuda\]"):
        compile_kernel(SOURCE, "sm_90", {})

"""Compiles the operators' sources into one library: `python -m hgt_infer.kernels.build`.

The library has no part of Python in it, so that one serves every version. The build hook of the package loads
this file before anything is installed: it imports the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"
COMPILERS = ("zig", "clang++", "g++")

_COMPILE = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"),
    *("-fno-exceptions", "-fno-rtti", "-nostdinc++", "-g0", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
)
_UNITS: dict[str, tuple[str, ...]] = {"operators.cc": (), "portable.cc": ()}
_X86_UNITS = {
    **_UNITS,
    "avx2.cc": ("-march=x86-64-v3",),
    "avx512.cc": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
}
# No start files, nor the runtime of the compiler: zig would compile them first, for 16 to 75 s. On Windows
# the runtime alone, in 4 s: what touches the pages of a large stack frame is in it.
_LINK = ("-shared", "-nostdlib")
_LINUX_LINK = (*_LINK, "-Wl,-z,defs", "-lc", "-lm")


class BuildError(Exception):
    """The library cannot be compiled; the message has the compiler's output."""


@dataclass(frozen=True)
class Target:
    """A platform: its library's file, its units with the flags of each, and how they are linked."""

    library: str
    units: Mapping[str, tuple[str, ...]]
    link: tuple[str, ...]
    zig: str
    """What zig calls it, with the oldest version of the system that the library runs on."""
    wheel_platform: str
    """The same in the name of a wheel."""


TARGETS = {
    "x86_64-linux": Target(
        "libhgt_kernels.so", _X86_UNITS, _LINUX_LINK, "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"
    ),
    "aarch64-linux": Target(
        "libhgt_kernels.so", _UNITS, _LINUX_LINK, "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64"
    ),
    "aarch64-macos": Target(
        *("libhgt_kernels.dylib", _UNITS),
        (*_LINK, "-s", "-Wl,-install_name,@rpath/libhgt_kernels.dylib", "-lSystem"),
        *("aarch64-macos.11.0", "macosx_11_0_arm64"),
    ),
    "x86_64-windows": Target(
        *(
            "hgt_kernels.dll",
            _X86_UNITS,
            (*_LINK, "-s", "-Wl,--no-entry", "-lucrtbase", "-rtlib=compiler-rt"),
        ),
        *("x86_64-windows-gnu", "win_amd64"),
    ),
}


@dataclass(frozen=True)
class Compiler:
    """A compiler, and the command that calls it. zig alone compiles for other platforms than its own."""

    name: str
    command: tuple[str, ...]


def host() -> str:
    """The name of this machine's target, whether or not it is one of TARGETS."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    return f"{machine}-{system}"


def find_compiler(name: str | None = None) -> Compiler:
    """The compiler of that name, or the first of COMPILERS that is installed; else BuildError."""
    names = [name] if name else COMPILERS
    for each in names:
        if each == "zig" and importlib.util.find_spec("ziglang"):
            return Compiler(each, (sys.executable, "-m", "ziglang", "cc"))
        if each != "zig" and (path := shutil.which(each)):
            return Compiler(each, (path,))
    raise BuildError(f"no compiler: {', '.join(names)} not found (zig is in the package ziglang)")


def wheel_tag(target: str, compiler: Compiler) -> str:
    """The tag of a wheel with the library; zig alone links against an older system than the one here."""
    if compiler.name == "zig":
        return f"py3-none-{TARGETS[target].wheel_platform}"
    return f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def build(target: str, compiler: Compiler, *, sanitizers: Sequence[str] = (), output: Path = FOLDER) -> Path:
    """Compile the library into a folder, unless one of the same sources and flags is there; return its path.

    Raises BuildError, and then leaves what is there. The file appears whole, by a rename.
    """
    if target not in TARGETS:
        raise BuildError(f"no target {target!r}: there are {', '.join(TARGETS)}")
    if compiler.name != "zig" and target != host():
        raise BuildError(f"{compiler.name} compiles for {host()}, not for {target}: zig does")
    if compiler.name == "zig" and sanitizers:
        raise BuildError("zig comes without the libraries of the sanitizers: take g++")
    library = output / TARGETS[target].library
    digest_file = library.with_name(f"{library.name}.digest")
    compile_flags, link_flags = _flags(TARGETS[target], compiler, sanitizers)
    digest = _digest(compiler, compile_flags, link_flags)
    if library.exists() and digest_file.exists() and digest_file.read_text() == digest:
        return library
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".build-") as folder:

        def compile_unit(unit: str) -> str:
            path = str(Path(folder, unit).with_suffix(".o"))
            _run([*compiler.command, *compile_flags[unit], "-c", str(SOURCE / unit), "-o", path], folder)
            return path

        with ThreadPoolExecutor() as threads:
            objects = list(threads.map(compile_unit, compile_flags))
        linked = Path(folder, library.name)
        _run([*compiler.command, *objects, *link_flags, "-o", str(linked)], folder)
        digest_file.unlink(missing_ok=True)
        linked.replace(library)
    digest_file.write_text(digest)
    return library


def _flags(
    target: Target, compiler: Compiler, sanitizers: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The flags of each unit, and those of the link."""
    common: list[str] = []
    if compiler.name == "zig":  # which compiles for the processor that it runs on unless a target is named
        common = ["-target", target.zig, "-fno-sanitize=undefined"]
    if sanitizers:
        common = [f"-fsanitize={','.join(sanitizers)}", "-fno-sanitize-recover=all", "-g", "-Wno-error"]
    units = {unit: [*_COMPILE, *common, *own] for unit, own in target.units.items()}
    if compiler.name == "zig":
        units = {
            unit: [flag.replace("=x86-64-v", "=x86_64_v") for flag in flags] for unit, flags in units.items()
        }
    return units, [*common, *(["-shared"] if sanitizers else target.link)]


def _digest(compiler: Compiler, *flags: object) -> str:
    """Of everything that a library is made of."""
    made_of = hashlib.sha256(repr((flags, _run([*compiler.command, "--version"]))).encode())
    for path in sorted(path for path in SOURCE.rglob("*") if path.is_file()):
        made_of.update(repr((path.name, path.read_bytes())).encode())
    return made_of.hexdigest()


def _run(command: Sequence[str], cache: str | None = None) -> str:
    """What a command prints; zig keeps what it makes on the way in the folder `cache`."""
    folders = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache} if cache else {}
    try:
        done = subprocess.run(
            command, env={**os.environ, **folders}, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile the operators for ONNX Runtime, unless the library is there and up to date."""
    parser = argparse.ArgumentParser(prog="python -m hgt_infer.kernels.build", description=main.__doc__)
    parser.add_argument("--target", choices=TARGETS, help="the platform (default: this one)")
    parser.add_argument("--compiler", choices=COMPILERS, help="default: the first that is installed")
    parser.add_argument("--sanitize", metavar="NAMES", help="address,undefined; with g++")
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder of the library")
    options = parser.parse_args(arguments)
    sanitizers = options.sanitize.split(",") if options.sanitize else []
    try:
        compiler = find_compiler(options.compiler or ("g++" if sanitizers else None))
        build(options.target or host(), compiler, sanitizers=sanitizers, output=options.output)
    except BuildError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()

"""How the operators' library is compiled, named and put in place."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.paths import ROOT

from hgt_infer.kernels import build as build_module
from hgt_infer.kernels.build import TARGETS, BuildError, Compiler, build, find_compiler, host, main, wheel_tag

LIBRARIES = {
    "x86_64-linux": "libhgt_kernels.so",
    "aarch64-linux": "libhgt_kernels.so",
    "aarch64-macos": "libhgt_kernels.dylib",
    "x86_64-windows": "hgt_kernels.dll",
}
MESSAGE = "portable.cc:1:1: error: what is this?"
STAND_IN = f"""#!{sys.executable}
import pathlib, sys
folder, arguments = pathlib.Path(__file__).parent, sys.argv[1:]
if arguments == ["--version"]:
    sys.exit(print((folder / "version").read_text()))
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
is_broken = (folder / "broken").exists()
pathlib.Path(arguments[arguments.index("-o") + 1]).write_text("half" if is_broken else "whole")
sys.exit({MESSAGE!r} if is_broken else 0)
"""


class StandIn:
    """A compiler that writes down how it is called, by the name of the one that takes every target."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.set_version("1")
        program = folder / "compiler"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self.compiler = Compiler("zig", (str(program),))

    def set_version(self, version: str) -> None:
        (self._folder / "version").write_text(version)

    def break_it(self) -> None:
        (self._folder / "broken").touch()

    def take_calls(self) -> list[list[str]]:
        """The calls since the last time that they were taken."""
        path = self._folder / "calls"
        calls = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return calls


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "compiler")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_target_has_its_file() -> None:
    assert {name: target.library for name, target in TARGETS.items()} == LIBRARIES


@pytest.mark.parametrize("target", LIBRARIES)
def test_units_are_compiled_each_for_its_instruction_set_and_linked(
    target: str, stand_in: StandIn, tmp_path: Path
) -> None:
    library = build(target, stand_in.compiler, output=tmp_path / "out")
    assert library == tmp_path / "out" / LIBRARIES[target] and library.read_text() == "whole"
    assert names(library.parent) == {library.name, f"{library.name}.digest"}
    *compiled, linked = stand_in.take_calls()
    assert all(call[call.index("-target") + 1] == TARGETS[target].zig for call in [*compiled, linked])
    instruction_sets = {
        Path(call[call.index("-c") + 1]).name: [flag for flag in call if flag.startswith("-m")]
        for call in compiled
    }
    of_x86 = {
        "avx2.cc": ["-march=x86_64_v3"],
        "avx512.cc": ["-march=x86_64_v4", "-mavx512vnni", "-mavx512bf16"],
    }
    baseline: dict[str, list[str]] = {"operators.cc": [], "portable.cc": []}
    assert instruction_sets == {**baseline, **(of_x86 if target.startswith("x86_64") else {})}
    assert "-shared" in linked
    assert {Path(each).stem for each in linked if each.endswith(".o")} == {
        Path(name).stem for name in instruction_sets
    }


def test_a_library_of_the_same_sources_flags_and_compiler_is_left_as_it_is(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(build_module.SOURCE, tmp_path / "source")
    monkeypatch.setattr(build_module, "SOURCE", source)

    def is_compiled() -> bool:
        build("aarch64-linux", stand_in.compiler, output=tmp_path / "out")
        return bool(stand_in.take_calls())

    assert is_compiled()
    assert not is_compiled()
    (source / "portable.cc").write_text("// other")
    assert is_compiled()
    (source / "new.h").touch()
    assert is_compiled()
    stand_in.set_version("2")
    assert is_compiled()
    monkeypatch.setattr(build_module, "_COMPILE", ("-O1",))
    assert is_compiled()
    (tmp_path / "out" / "libhgt_kernels.so").unlink()
    assert is_compiled()
    assert not is_compiled()


def test_a_failure_shows_what_the_compiler_said_and_leaves_the_library(
    stand_in: StandIn, tmp_path: Path
) -> None:
    library = build("x86_64-linux", stand_in.compiler, output=tmp_path / "out")
    before = names(library.parent)
    stand_in.set_version("2")
    stand_in.break_it()
    with pytest.raises(BuildError, match=MESSAGE.replace("?", r"\?")):
        build("x86_64-linux", stand_in.compiler, output=tmp_path / "out")
    assert library.read_text() == "whole" and names(library.parent) == before


def test_no_compiler_is_an_error_that_names_those_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"no compiler: zig, clang\+\+, g\+\+ not found"):
        find_compiler()
    with pytest.raises(BuildError, match=r"no compiler: g\+\+ not found"):
        find_compiler("g++")


def test_zig_comes_first_then_clang_then_gcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert find_compiler() == Compiler("zig", (sys.executable, "-m", "ziglang", "cc"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_compiler() == Compiler("clang++", ("/bin/clang++",))
    assert find_compiler("g++") == Compiler("g++", ("/bin/g++",))


def test_what_cannot_be_built_is_an_error(stand_in: StandIn, tmp_path: Path) -> None:
    gcc = Compiler("g++", stand_in.compiler.command)
    with pytest.raises(BuildError, match="no target 'vax-vms': there are x86_64-linux, "):
        build("vax-vms", stand_in.compiler)
    with pytest.raises(BuildError, match="not for x86_64-windows: zig does"):
        build("x86_64-windows", gcc)
    with pytest.raises(BuildError, match="without the libraries of the sanitizers"):
        build("x86_64-linux", stand_in.compiler, sanitizers=["address"])
    with pytest.raises(BuildError, match="cannot be run"):
        build("x86_64-linux", Compiler("zig", (str(tmp_path / "nothing"),)))


def test_sanitizers_are_compiled_and_linked_in(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "host", lambda: "x86_64-linux")
    gcc = Compiler("g++", stand_in.compiler.command)
    build("x86_64-linux", gcc, sanitizers=["address", "undefined"], output=tmp_path / "out")
    calls = stand_in.take_calls()
    assert all("-fsanitize=address,undefined" in call for call in calls)
    assert not any("-nostdlib" in call or "-target" in call for call in calls)


def test_the_command_builds_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: StandIn
) -> None:
    monkeypatch.setattr(build_module, "find_compiler", lambda name: stand_in.compiler)
    main(["--target", "aarch64-macos", "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "libhgt_kernels.dylib").exists()
    stand_in.break_it()
    with pytest.raises(SystemExit, match="1"):
        main(["--target", "x86_64-windows", "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and MESSAGE in error


@pytest.mark.parametrize(
    ("target", "tag"),
    [
        ("x86_64-linux", "py3-none-manylinux_2_17_x86_64"),
        ("aarch64-linux", "py3-none-manylinux_2_17_aarch64"),
        ("aarch64-macos", "py3-none-macosx_11_0_arm64"),
        ("x86_64-windows", "py3-none-win_amd64"),
    ],
)
def test_a_wheel_says_for_which_platform_it_is(target: str, tag: str) -> None:
    assert wheel_tag(target, Compiler("zig", ())) == tag


def test_a_wheel_of_the_systems_compiler_is_for_this_system_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_platform", lambda: "macosx-14.2-arm64")
    assert wheel_tag("aarch64-macos", Compiler("clang++", ())) == "py3-none-macosx_14_2_arm64"


def test_machines_and_systems_have_one_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert host() == "x86_64-windows"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert host() == "aarch64-macos"


class Hook:
    """The build hook of a project whose kernels a stand-in compiles."""

    def __init__(self, compiler: Compiler | None, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("hatchling", reason="the build hook needs hatchling")
        import hatch_build

        def find() -> Compiler:
            if compiler is None:
                raise BuildError("no compiler")
            return compiler

        self.warnings: list[str] = []
        self.data: dict[str, Any] = {"pure_python": True, "force_include": {}}
        monkeypatch.setattr(hatch_build, "_load", lambda path: build_module)
        monkeypatch.setattr(build_module, "find_compiler", find)
        app = SimpleNamespace(display_warning=self.warnings.append)
        self.hook = hatch_build.KernelsBuildHook(
            *(str(ROOT), {}, None, None, "", "wheel", app),
        )


def test_a_wheel_holds_the_library_of_the_platform_that_is_named(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGT_INFER_BUILD_TARGET", "x86_64-windows")
    hook = Hook(stand_in.compiler, monkeypatch)
    hook.hook.initialize("standard", hook.data)
    assert hook.data["tag"] == "py3-none-win_amd64" and not hook.data["pure_python"]
    ((path, inside),) = hook.data["force_include"].items()
    assert Path(inside) == Path("hgt_infer/kernels/hgt_kernels.dll") and Path(path).read_text() == "whole"


def test_an_editable_installation_has_the_library_in_place(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    hook = Hook(stand_in.compiler, monkeypatch)
    monkeypatch.setattr(build_module, "build", lambda *arguments: built.append(arguments))
    hook.hook.initialize("editable", hook.data)
    assert built == [(host(), stand_in.compiler)]
    assert hook.data == {"pure_python": True, "force_include": {}}


def test_where_nothing_compiles_the_wheel_is_of_python_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Hook(None, monkeypatch)
    hook.hook.initialize("standard", hook.data)
    assert hook.data == {"pure_python": True, "force_include": {}}
    assert hook.warnings == ["hgt_infer without its own operators, which is slower: no compiler"]
    monkeypatch.setenv("HGT_INFER_BUILD_TARGET", "x86_64-linux")
    with pytest.raises(BuildError):
        hook.hook.initialize("standard", hook.data)


@pytest.mark.integration
@pytest.mark.parametrize("name", build_module.COMPILERS)
def test_a_compiled_library_exports_its_functions(name: str, tmp_path: Path) -> None:
    try:
        compiler = find_compiler(name)
    except BuildError as error:
        pytest.skip(str(error))
    library = ctypes.CDLL(str(build(host(), compiler, output=tmp_path)))
    library.hgt_kernels_choose.restype = ctypes.c_char_p
    assert library.hgt_kernels_choose(b"portable") == b"portable"
    assert library.hgt_kernels_choose(b"sse9") is None
    assert library.RegisterCustomOps

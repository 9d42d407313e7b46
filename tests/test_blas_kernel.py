"""The kernel of NumPy's BLAS is selected only where needed, and the user's setting has priority."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gpumlp.backends.blas_kernel import (
    SWITCH,
    VARIABLE,
    Choice,
    Processor,
    built_in_kernels,
    decide,
    describe,
    numpy_openblas,
    read_processor,
)

ROOT = Path(__file__).parents[1]
ALL_FLAGS = "fpu avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
FIVE_KERNELS = ("PRESCOTT", "NEHALEM", "SANDYBRIDGE", "HASWELL", "SKYLAKEX")


def cpuinfo(folder: Path, vendor: str = "AuthenticAMD", flags: str = ALL_FLAGS) -> Path:
    """Two processors, as Linux lists them."""
    processor = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\npower management:\n\n"
    file = folder / "cpuinfo"
    file.write_text(processor + processor.replace("flags\t\t: fpu", "flags\t\t: fpu other"))
    return file


def openblas(folder: Path, kernels: tuple[str, ...] = FIVE_KERNELS) -> Path:
    """A file with the symbols of an OpenBLAS with these kernels, and with other symbols."""
    file = folder / "libscipy_openblas64_.so"
    names = [*(f"gotoblas_{kernel}" for kernel in kernels), "gotoblas_init", "Cooperlake", "Zen"]
    file.write_bytes(b"\x7fELF\0" + b"\0".join(name.encode() for name in names) + b"\0")
    return file


def run(folder: Path, program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a fake AMD processor with AVX-512."""
    fake = (
        "import pathlib\n"
        "really_open = pathlib.Path.open\n"
        "def open_fake(path, *words, **options):\n"
        f"    file = pathlib.Path({str(cpuinfo(folder))!r}) if str(path) == '/proc/cpuinfo' else path\n"
        "    return really_open(file, *words, **options)\n"
        "pathlib.Path.open = open_fake\n"
    )
    environment = {name: os.environ[name] for name in os.environ if name not in (SWITCH, VARIABLE)}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    words = [sys.executable, "-W", "always", "-c", fake + program]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)


def numpy_with(kernel: str) -> str:
    """The beginning of a program that imports NumPy first, with this kernel."""
    return f"import os\nos.environ[{VARIABLE!r}] = {kernel!r}\nimport numpy\ndel os.environ[{VARIABLE!r}]\n"


# -- The decision ------------------------------------------------------------------------------------------


def test_the_avx512_kernel_is_selected_where_openblas_may_not_select_it(tmp_path: Path) -> None:
    choice = decide({}, read_processor(cpuinfo(tmp_path)), openblas(tmp_path))
    assert choice.kernel == "SkylakeX"
    assert "processor's AVX-512" in choice.reason


@pytest.mark.parametrize(
    ("environment", "processor", "reason"),
    [
        ({"OPENBLAS_CORETYPE": "Haswell"}, {}, "OPENBLAS_CORETYPE=Haswell is set"),
        ({"OPENBLAS_CORETYPE": ""}, {}, "OPENBLAS_CORETYPE= is set"),
        ({"GPUMLP_BLAS_KERNEL": "off"}, {}, "disabled by GPUMLP_BLAS_KERNEL"),
        ({"GPUMLP_BLAS_KERNEL": "OFF"}, {}, "disabled by GPUMLP_BLAS_KERNEL"),
        ({}, {"vendor": "GenuineIntel"}, "its own selection suits"),
        *(({}, {"flags": ALL_FLAGS.replace(flag, "")}, "no AVX-512") for flag in ALL_FLAGS.split()[3:]),
        ({}, {"flags": ""}, "does not report"),
    ],
)
def test_the_selection_is_left_to_openblas_with_the_reason(
    tmp_path: Path, environment: dict[str, str], processor: dict[str, object], reason: str
) -> None:
    choice = decide(environment, read_processor(cpuinfo(tmp_path, **processor)), openblas(tmp_path))
    assert choice.kernel is None
    assert reason in choice.reason


@pytest.mark.parametrize(
    "kernels",
    [(), FIVE_KERNELS[:-1], (*FIVE_KERNELS, "COOPERLAKE"), (*FIVE_KERNELS, "ZEN"), (*FIVE_KERNELS, "ZEN5")],
    ids=["none", "without SkylakeX", "with Cooperlake", "with Zen", "with one to come"],
)
def test_an_openblas_with_other_kernels_is_left_unchanged(tmp_path: Path, kernels: tuple[str, ...]) -> None:
    choice = decide({}, read_processor(cpuinfo(tmp_path)), openblas(tmp_path, kernels))
    assert choice.kernel is None
    assert "its kernels are not the expected ones" in choice.reason


def test_a_numpy_without_its_own_openblas_is_left_unchanged(tmp_path: Path) -> None:
    choice = decide({}, read_processor(cpuinfo(tmp_path)), None)
    assert choice == Choice(None, "NumPy does not contain its own OpenBLAS")


def test_a_system_without_cpuinfo_is_supported(tmp_path: Path) -> None:
    assert read_processor(tmp_path / "missing") == Processor("", frozenset())
    assert built_in_kernels(tmp_path / "missing") == frozenset()


def test_the_kernels_of_an_openblas_are_read_from_its_symbols(tmp_path: Path) -> None:
    assert built_in_kernels(openblas(tmp_path)) == set(FIVE_KERNELS)
    library = numpy_openblas()
    if library is None:
        pytest.skip("this NumPy does not contain its own OpenBLAS")
    assert {"HASWELL", "PRESCOTT"} <= built_in_kernels(library)


@pytest.mark.parametrize(
    ("choice", "in_effect", "expected"),
    [
        (Choice("SkylakeX", "why"), "SkylakeX", "SkylakeX set by gpumlp (why); in effect"),
        (Choice("SkylakeX", "why"), "Haswell", "not in effect: it runs Haswell"),
        (Choice(None, "why"), "SkylakeX", "left to OpenBLAS: why"),
        (Choice(None, "why"), "Haswell", "try OPENBLAS_CORETYPE=SkylakeX"),
    ],
)
def test_the_description_contains_the_selection_and_its_effect(
    tmp_path: Path, choice: Choice, in_effect: str, expected: str
) -> None:
    assert expected in describe(choice, in_effect, read_processor(cpuinfo(tmp_path)))


def test_a_user_who_set_the_variable_gets_no_advice(tmp_path: Path) -> None:
    processor = read_processor(cpuinfo(tmp_path))
    for environment in ({"GPUMLP_BLAS_KERNEL": "off"}, {"OPENBLAS_CORETYPE": "Haswell"}):
        assert "try" not in describe(decide(environment, processor, None), "Haswell", processor)


# -- The effect --------------------------------------------------------------------------------------------

_library = numpy_openblas()
needs_the_wheel = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64")
    or _library is None
    or built_in_kernels(_library) != set(FIVE_KERNELS),
    reason="needs Linux on x86-64 and NumPy's wheel with its five kernels",
)
MODULE = str(ROOT / "gpumlp" / "backends" / "blas_kernel.py")
ALONE = f"import runpy, os; runpy.run_path({MODULE!r})\n"  # does not import NumPy
SHOW = f"print(os.environ.get({VARIABLE!r}))"


@needs_the_wheel
def test_sets_the_variable_before_numpy_loads(tmp_path: Path) -> None:
    done = run(tmp_path, ALONE + "import sys; assert 'numpy' not in sys.modules\n" + SHOW)
    assert (done.stdout, done.stderr) == ("SkylakeX\n", "")


@needs_the_wheel
@pytest.mark.parametrize(
    ("variables", "expected"), [({SWITCH: "off"}, "None\n"), ({VARIABLE: "Haswell"}, "Haswell\n")]
)
def test_the_users_setting_has_priority(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    done = run(tmp_path, ALONE + SHOW, **variables)
    assert (done.stdout, done.stderr) == (expected, "")


@needs_the_wheel
@pytest.mark.skipif(not read_processor().has_avx512, reason="the kernel needs a processor with AVX-512")
def test_numpy_runs_the_kernel_and_info_shows_it(tmp_path: Path) -> None:
    done = run(tmp_path, "import gpumlp.info\ngpumlp.info.main([])")
    assert "kernel SkylakeX\n" in done.stdout, done.stderr
    assert "SkylakeX set by gpumlp" in done.stdout
    assert "; in effect;" in done.stdout


@needs_the_wheel
def test_a_numpy_imported_first_gives_one_warning(tmp_path: Path) -> None:
    done = run(
        tmp_path, numpy_with("Haswell") + f"import gpumlp\nimport gpumlp.info\n{SHOW}\ngpumlp.info.main([])"
    )
    assert done.stdout.startswith("None\n"), done.stderr
    assert "too late for SkylakeX" in done.stdout
    assert done.stderr.count("RuntimeWarning: NumPy was imported before gpumlp") == 1
    assert "at about half speed" in done.stderr
    assert "OPENBLAS_CORETYPE=SkylakeX" in done.stderr
    assert done.stderr.startswith("<string>:"), "the warning names the line that imports gpumlp"


@needs_the_wheel
@pytest.mark.skipif(not read_processor().has_avx512, reason="the kernel needs a processor with AVX-512")
def test_no_warning_if_numpy_runs_the_kernel_anyway(tmp_path: Path) -> None:
    done = run(tmp_path, numpy_with("SkylakeX") + "import gpumlp")
    assert (done.returncode, done.stderr) == (0, "")


@needs_the_wheel
@pytest.mark.parametrize("variables", [{SWITCH: "off"}, {VARIABLE: "Haswell"}])
def test_no_warning_if_the_variable_would_not_have_been_set(tmp_path: Path, variables: dict[str, str]) -> None:
    done = run(tmp_path, "import numpy, gpumlp", **variables)
    assert (done.returncode, done.stderr) == (0, "")

"""Which of its kernels NumPy's BLAS takes, settled before NumPy loads: importing this module settles it.

OpenBLAS, the BLAS in NumPy's wheels, has kernels for several generations of processors and chooses one as it is
loaded, for an AMD processor by its family first. On a (virtual) Zen 5 it took the one with AVX2, and the one with
AVX-512 made matrix products twice as fast. By its source it does so for families 23 and 24 (Zen 1 and 2), whatever
else the processor can do; which family that machine showed is not known. ``OPENBLAS_CORETYPE`` names it a kernel.

It is set here only where it cannot be a step back: an AMD processor with AVX-512; NumPy's wheel with its own
OpenBLAS, in which SkylakeX is the only kernel with AVX-512 (so in NumPy 2.1 to 2.4), so that OpenBLAS could only
choose the same one or a slower; no ``OPENBLAS_CORETYPE`` of the user's; and not ``GPUMLP_BLAS_KERNEL=off``.
Processes started from this one inherit the variable, and their NumPy takes the same kernel on the same processor.
"""

from __future__ import annotations

import importlib.util
import itertools
import mmap
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SWITCH = "GPUMLP_BLAS_KERNEL"
VARIABLE = "OPENBLAS_CORETYPE"
KERNEL = "SkylakeX"

_CPUINFO = Path("/proc/cpuinfo")
_AVX512 = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})  # what SkylakeX is compiled with
_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})
_AVX2_KERNELS = frozenset({"Haswell", "Zen"})
# Up to Haswell no kernel has AVX-512. Of any other, and of those to come, this module knows nothing.
_KNOWN_KERNELS = frozenset({"PRESCOTT", "NEHALEM", "SANDYBRIDGE", "HASWELL", "SKYLAKEX"})
_LATE = (
    "NumPy was imported before gpumlp, too late to choose the kernel of its BLAS: it runs without AVX-512, which "
    "this processor has, at about half the speed of matrix products (measured on an AMD Zen 5). Import gpumlp "
    f"before NumPy, or set {VARIABLE}={KERNEL} in the environment; {SWITCH}=off silences this."
)


class Choice(NamedTuple):
    """What was decided: the kernel, or None where the choice is left to OpenBLAS, and why, in words."""

    kernel: str | None
    reason: str
    by_user: bool = False  # the user has decided, and needs no advice


class Processor(NamedTuple):
    """A processor as Linux describes it; empty where it does not."""

    vendor: str
    flags: frozenset[str]

    @property
    def has_avx512(self) -> bool:
        """Has it all that the SkylakeX kernels use?"""
        return self.flags >= _AVX512


def read_processor(cpuinfo: Path = _CPUINFO) -> Processor:
    """The first processor of a file in the form of /proc/cpuinfo."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            first = list(itertools.takewhile(str.strip, lines))  # up to the first empty line
    except OSError:
        first = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    return Processor(fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split()))


def numpy_openblas() -> Path | None:
    """The OpenBLAS that NumPy's wheel brings, found without importing NumPy; None for any other NumPy."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return None
    libraries = Path(spec.origin).parents[1] / "numpy.libs"
    return next(iter(sorted(libraries.glob("libscipy_openblas*.so*"))), None)


def built_in_kernels(library: Path) -> frozenset[str]:
    """The kernels in an OpenBLAS, by the symbols of their tables; empty if it cannot be read."""
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = re.findall(rb"gotoblas_([A-Z][A-Z0-9_]+)\0", content)
    except (OSError, ValueError):  # ValueError: an empty file
        return frozenset()
    return frozenset(name.decode() for name in names)


def running_kernel() -> str | None:
    """The kernel of the OpenBLAS that NumPy has loaded, as it says itself; None if it does not."""
    import threadpoolctl  # brings nothing of NumPy

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
    return next((pool.get("architecture") for pool in pools if "numpy.libs" in pool["filepath"]), None)


def decide(environment: Mapping[str, str], processor: Processor, library: Path | None) -> Choice:
    """The kernel to ask for, if any.

    Args:
        environment: variables of this process.
        processor: of this machine.
        library: NumPy's own OpenBLAS, or None; read only where the processor is one that needs it.
    """
    if environment.get(SWITCH, "").lower() == "off":
        return Choice(None, f"switched off by {SWITCH}", by_user=True)
    if VARIABLE in environment:
        return Choice(None, f"{VARIABLE}={environment[VARIABLE]} is set in the environment", by_user=True)
    if not processor.flags:
        return Choice(None, "the system does not say what the processor can do")
    if not processor.has_avx512:
        return Choice(None, "the processor has no AVX-512")
    if processor.vendor not in _VENDORS:
        return Choice(None, "it chooses by itself what suits this processor")
    if library is None:
        return Choice(None, "NumPy does not bring an OpenBLAS of its own")
    kernels = built_in_kernels(library)
    if "SKYLAKEX" not in kernels or kernels - _KNOWN_KERNELS:
        return Choice(None, f"it has other kernels than expected ({', '.join(sorted(kernels)) or 'none found'})")
    return Choice(KERNEL, "OpenBLAS may take this processor for one without AVX-512, which it has")


def apply() -> Choice:
    """Decide for this process and set the variable, or warn where NumPy is already there."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return Choice(None, "only considered on Linux with an x86-64 processor")
    choice = decide(os.environ, read_processor(), numpy_openblas())
    if choice.kernel is None:
        return choice
    if "numpy" in sys.modules:
        if running_kernel() not in _AVX2_KERNELS:
            return Choice(None, "it has chosen by itself what suits this processor")
        warnings.warn(_LATE, RuntimeWarning, stacklevel=5)  # the line that imports gpumlp
        return Choice(None, f"NumPy was imported before gpumlp, too late for {KERNEL}")
    os.environ[VARIABLE] = choice.kernel  # the C library's getenv sees it too
    return choice


def describe(choice: Choice, in_effect: str | None, processor: Processor) -> str:
    """The decision and what became of it, in a line.

    Args:
        choice: what was decided.
        in_effect: the kernel that NumPy's BLAS runs, as it says itself; None if it does not.
        processor: of this machine.
    """
    if choice.kernel is not None:
        outcome = "in effect" if in_effect == choice.kernel else f"not in effect: it runs {in_effect or 'unknown'}"
        return f"{choice.kernel} set by gpumlp ({choice.reason}); {outcome}; {SWITCH}=off prevents it"
    text = f"left to OpenBLAS: {choice.reason}"
    if processor.has_avx512 and in_effect in _AVX2_KERNELS and not choice.by_user:
        text += f"; {in_effect} has no AVX-512, which the processor has: try {VARIABLE}={KERNEL}"
    return text


CHOICE = apply()

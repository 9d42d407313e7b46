"""Selection of the kernel of NumPy's BLAS. Importing this module selects it, which must happen before NumPy loads.

OpenBLAS, the BLAS in NumPy's wheels, contains kernels for several generations of processors and selects one when
it is loaded. For AMD processors it checks the family first: on a virtual Zen 5 it selected the AVX2 kernel,
although the AVX-512 kernel doubles the speed of matrix products. According to its source it does so for families
23 and 24 (Zen 1 and 2) regardless of other features; the family that this machine reported is not known. The
environment variable ``OPENBLAS_CORETYPE`` overrides the selection.

This module sets the variable only if that cannot select a slower kernel: for an AMD processor with AVX-512 and
NumPy's wheel with its own OpenBLAS in which SkylakeX is the only AVX-512 kernel (NumPy 2.1 to 2.4), unless the
user has set ``OPENBLAS_CORETYPE`` or ``GPUMLP_BLAS_KERNEL=off``. Child processes inherit the variable and use the
same kernel.
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
_AVX512 = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})  # required by SkylakeX
_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})
_AVX2_KERNELS = frozenset({"Haswell", "Zen"})
# SkylakeX is the only one of these with AVX-512. With any other kernel, the choice is left to OpenBLAS.
_KNOWN_KERNELS = frozenset({"PRESCOTT", "NEHALEM", "SANDYBRIDGE", "HASWELL", "SKYLAKEX"})
_LATE = (
    "NumPy was imported before gpumlp, too late to select the kernel of its BLAS, which does not use this "
    "processor's AVX-512: matrix products run at about half speed (measured on an AMD Zen 5). Import gpumlp "
    f"before NumPy, or set {VARIABLE}={KERNEL} in the environment; {SWITCH}=off disables this warning."
)


class Choice(NamedTuple):
    """The selected kernel, or None if the selection is left to OpenBLAS, and the reason."""

    kernel: str | None
    reason: str
    by_user: bool = False  # set by the user: no advice is given


class Processor(NamedTuple):
    """Vendor and features of a processor, as reported by Linux; empty if unknown."""

    vendor: str
    flags: frozenset[str]

    @property
    def has_avx512(self) -> bool:
        """Whether the processor has all features that the SkylakeX kernel uses."""
        return self.flags >= _AVX512


def read_processor(cpuinfo: Path = _CPUINFO) -> Processor:
    """Read the first processor from a file in the format of /proc/cpuinfo."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            first = list(itertools.takewhile(str.strip, lines))  # up to the first empty line
    except OSError:
        first = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    return Processor(fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split()))


def numpy_openblas() -> Path | None:
    """The path of the OpenBLAS in NumPy's wheel, without importing NumPy; None for other builds of NumPy."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return None
    libraries = Path(spec.origin).parents[1] / "numpy.libs"
    return next(iter(sorted(libraries.glob("libscipy_openblas*.so*"))), None)


def built_in_kernels(library: Path) -> frozenset[str]:
    """The kernels in an OpenBLAS library, read from its symbols; empty if it cannot be read."""
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = re.findall(rb"gotoblas_([A-Z][A-Z0-9_]+)\0", content)
    except (OSError, ValueError):  # ValueError: an empty file
        return frozenset()
    return frozenset(name.decode() for name in names)


def running_kernel() -> str | None:
    """The kernel that NumPy's OpenBLAS reports; None if unknown or if NumPy is not loaded."""
    import threadpoolctl  # does not import NumPy

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
    return next((pool.get("architecture") for pool in pools if "numpy.libs" in pool["filepath"]), None)


def decide(environment: Mapping[str, str], processor: Processor, library: Path | None) -> Choice:
    """Select the kernel.

    Args:
        environment: environment variables of this process.
        processor: of this machine.
        library: path of NumPy's own OpenBLAS, or None; read only for processors that need it.
    """
    if environment.get(SWITCH, "").lower() == "off":
        return Choice(None, f"disabled by {SWITCH}", by_user=True)
    if VARIABLE in environment:
        return Choice(None, f"{VARIABLE}={environment[VARIABLE]} is set in the environment", by_user=True)
    if not processor.flags:
        return Choice(None, "the system does not report the processor's features")
    if not processor.has_avx512:
        return Choice(None, "the processor has no AVX-512")
    if processor.vendor not in _VENDORS:
        return Choice(None, "its own selection suits this processor")
    if library is None:
        return Choice(None, "NumPy does not contain its own OpenBLAS")
    kernels = built_in_kernels(library)
    if "SKYLAKEX" not in kernels or kernels - _KNOWN_KERNELS:
        found = ", ".join(sorted(kernels)) or "none found"
        return Choice(None, f"its kernels are not the expected ones ({found})")
    return Choice(KERNEL, "OpenBLAS may not detect this processor's AVX-512")


def apply() -> Choice:
    """Select the kernel and set the variable, or warn if NumPy is already loaded."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return Choice(None, "only considered on Linux with an x86-64 processor")
    choice = decide(os.environ, read_processor(), numpy_openblas())
    if choice.kernel is None:
        return choice
    if "numpy" in sys.modules:
        if running_kernel() not in _AVX2_KERNELS:
            return Choice(None, "its own selection suits this processor")
        warnings.warn(_LATE, RuntimeWarning, stacklevel=5)  # at the line that imports gpumlp
        return Choice(None, f"NumPy was imported before gpumlp, too late for {KERNEL}")
    os.environ[VARIABLE] = choice.kernel  # also visible to the C library's getenv
    return choice


def describe(choice: Choice, in_effect: str | None, processor: Processor) -> str:
    """Describe the selection and its effect in one line.

    Args:
        choice: the selection.
        in_effect: the kernel that NumPy's BLAS reports; None if unknown.
        processor: of this machine.
    """
    if choice.kernel is not None:
        outcome = "in effect" if in_effect == choice.kernel else f"not in effect: it runs {in_effect or 'unknown'}"
        return f"{choice.kernel} set by gpumlp ({choice.reason}); {outcome}; {SWITCH}=off prevents it"
    text = f"left to OpenBLAS: {choice.reason}"
    if processor.has_avx512 and in_effect in _AVX2_KERNELS and not choice.by_user:
        text += f"; {in_effect} has no AVX-512, which the processor supports: try {VARIABLE}={KERNEL}"
    return text


CHOICE = apply()

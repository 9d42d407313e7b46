"""Write numpy.inv, an intersphinx inventory of the NumPy names that our pages use."""

import zlib
from pathlib import Path

CLASSES = ["ndarray", "dtype", "float32", "float64", "int64", "uint8"]
FUNCTIONS = ["asarray", "matmul", "load", "savez"]

lines = [f"numpy.{name} py:class 1 reference/generated/numpy.{name}.html#$ -" for name in CLASSES[:2]]
lines += [f"numpy.{name} py:class 1 reference/arrays.scalars.html#$ -" for name in CLASSES[2:]]
lines += ["numpy.random.Generator py:class 1 reference/random/generator.html#$ -"]
lines += [f"numpy.{name} py:function 1 reference/generated/numpy.{name}.html#$ -" for name in FUNCTIONS]
HEAD = (
    "# Sphinx inventory version 2\n# Project: NumPy\n# Version: 2\n"
    "# The remainder of this file is compressed using zlib.\n"
)
body = zlib.compress("".join(f"{line}\n" for line in lines).encode())
(Path(__file__).parent / "numpy.inv").write_bytes(HEAD.encode() + body)

"""Parts of messages: lists of names, and values that may be of any kind and size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_NAMES, _LETTERS = 10, 60  # that a message shows


def in_line(name: object) -> str:
    r"""A name for a message, without the line breaks that names from a file may have.

    >>> print(in_line("cat\n"))
    cat\n
    """
    return str(name).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def listed(names: Iterable[object]) -> str:
    """Names for a message, the first ten of them.

    >>> listed(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)'
    """
    words = list(map(in_line, names))
    return ", ".join(words[:_NAMES]) + (f", ... ({len(words):,} in all)" if len(words) > _NAMES else "")


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(3, "seed"), counted(1, "class"), counted(2_000, "class")
    ('3 seeds', '1 class', '2,000 classes')
    """
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def numeric_array(found: Any) -> str:
    """What to give instead of an array of another dtype. A sparse matrix becomes an array of one object.

    Data frames of several dtypes, or of pandas's own, become arrays of objects.

    >>> import numpy
    >>> numeric_array(numpy.array(["a", "b"]))
    'give one dense numeric array, such as uint8 or float32'
    """
    if found.shape == () and hasattr(found.item(), "toarray"):
        return "it is sparse, give its toarray()"
    if found.shape and found.dtype == object:
        return "give one dense numeric array, such as its astype(float), without missing values"
    return "give one dense numeric array, such as uint8 or float32"


def as_product(shape: Iterable[int]) -> str:
    """A shape for a message.

    >>> as_product((28, 28))
    '28 x 28'
    """
    return " x ".join(map(str, shape))


def with_article(kind: type) -> str:
    """The name of a class with its article.

    >>> with_article(int), with_article(dict)
    ('an int', 'a dict')
    """
    name = kind.__name__
    return f"{'an' if name[0] in 'aeiouAEIO' or name.isupper() else 'a'} {name}"  # an MLP


def with_options(rule: object, options: Mapping[str, object]) -> str:
    """An object by its class and its arguments.

    >>> with_options([], {"size": 3})
    'list(size=3)'
    """
    return f"{type(rule).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def shown(value: object) -> str:
    """A value that is not what was expected: in full if it is short, otherwise its type. Reads no array.

    >>> shown("adam"), shown(([0.0] * 100, [1] * 100)), shown(int)
    ("'adam'", 'a tuple', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a number of NumPy's
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):  # not repr, which would read it from a device
        return f"an array of shape {value.shape}"  # type: ignore[attr-defined]
    big = hasattr(value, "__array__")
    if isinstance(value, tuple | list | dict):
        big = len(value) > _NAMES or not all(isinstance(each, str | int | float) for each in value)
    text = "" if big else repr(value)
    if 0 < len(text) <= _LETTERS and "\n" not in text:
        return text
    return with_article(type(value))

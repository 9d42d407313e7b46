"""Activations, losses and layers by name, for ``MLP(..., activation=name)`` and for files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from ..words import shown, with_article
from .hyperparameters import require_methods

T = TypeVar("T", bound=type[Any])
R = TypeVar("R")


class Registry(dict[str, type[R]], Generic[R]):
    """Classes of one kind, by their `name`.

    Args:
        what: the kind, in a word.
        base: its base class.
        methods: what a subclass has to define.
        kinds: the built-in classes.
        check: tries an object of a user's class on a small example; raises TypeError.

    Attributes:
        built_in: the built-in classes.
    """

    known: ClassVar[list[Registry[Any]]] = []

    def __init__(
        self,
        what: str,
        base: type[R],
        methods: tuple[str, ...],
        kinds: Iterable[type[R]],
        check: Callable[[R], None],
    ) -> None:
        super().__init__({kind.name: kind for kind in kinds})  # type: ignore[attr-defined]
        self.what, self.base, self.methods, self._check = what, base, methods, check
        self.built_in = frozenset(self.values())
        self.known.append(self)

    def find(self, value: object) -> R:
        """The object of the class with this name; an object of such a class is returned unchanged.

        Raises:
            ValueError: the name is unknown.
            TypeError: the class lacks its name or a method, or a method does not write where it should.
        """
        if isinstance(value, self.base):
            if type(value) in self.built_in:
                return value
            require_methods(value, self.base, *self.methods)
            if not isinstance(getattr(value, "name", None), str):
                raise TypeError(
                    f"{type(value).__name__} is expected to have a name, such as name = 'my_{self.what}'"
                )
            self._check(value)
            return value
        if not isinstance(value, str) or value not in self:
            raise ValueError(
                f"{self.what} is expected to be one of {', '.join(self)}, or {with_article(self.base)}, "
                f"got {shown(value)}"
            )
        return self.find(self[value]())

    def describe(self, rule: R) -> tuple[str, dict[str, Any]]:
        """The name of an object's class and its attributes, with which `make` makes it again.

        Raises:
            ValueError: that would make another one.
        """
        kind, options = type(rule), _options(rule)
        name: str = rule.name  # type: ignore[attr-defined]
        if name in self and self[name] is not kind:
            raise ValueError(
                f"the {self.what} {rule!r} cannot be saved: {name!r} is the name of {self[name].__name__}; give "
                f"{kind.__name__} another name and register it (@gpumlp.register)"
            )
        if name not in self:
            raise ValueError(
                f"the {self.what} {rule!r} cannot be saved: {kind.__name__} could not be found when it is loaded; "
                f"call gpumlp.register({kind.__name__}) before saving and before loading"
            )
        try:
            text = json.dumps(options, sort_keys=True)
            again = json.dumps(_options(kind(**json.loads(text))), sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the {self.what} {rule!r} cannot be saved: its attributes are expected to be the arguments of "
                f"{kind.__name__}(...), and numbers or strings: {error}"
            ) from error
        if again != text:
            raise ValueError(
                f"the {self.what} {rule!r} cannot be saved: its attributes are expected to be the arguments of "
                f"{kind.__name__}(...), but with those it has others: keep each argument as it is given"
            )
        return name, options

    def make(self, name: str, options: Mapping[str, Any]) -> R:
        """The object that `describe` described.

        Raises:
            KeyError: the name is unknown.
            TypeError, ValueError: the options are not those of its class.
        """
        return self[name](**options)


def _options(rule: Any) -> dict[str, Any]:
    """The arguments of an object's class, which are its attributes; a layer has other attributes, too."""
    return rule.options() if hasattr(rule, "options") else dict(vars(rule))


def register(kind: T) -> T:
    """Make an activation, a loss or a layer of your own known by its name, for networks that are saved and loaded.

    A class decorator. Its objects must be determined by their attributes, which are the arguments of the class.

    Raises:
        TypeError: it is not a class of activations, losses or layers.
        ValueError: it has no name of its own, or another class has it already.

    >>> from gpumlp import MLP, Tanh
    >>> @register
    ... class DoubleTanh(Tanh):
    ...     name = "double_tanh"
    ...
    ...     def forward(self, xp, s, out):
    ...         xp.multiply(s, 2, out=s)
    ...         super().forward(xp, s, out)
    >>> MLP([4, 3, 2], "double_tanh", device="cpu").activation
    DoubleTanh()
    """
    registry = next(
        (found for found in Registry.known if isinstance(kind, type) and issubclass(kind, found.base)), None
    )
    if registry is None:
        raise TypeError(f"a subclass of Activation, Loss or Layer is expected, got {shown(kind)}")
    name = vars(kind).get("name")
    if not isinstance(name, str):
        raise ValueError(
            f"{kind.__name__} is expected to have a name of its own, such as name = 'my_{registry.what}'"
        )
    other = registry.get(name, kind)
    if any(getattr(other, name) != getattr(kind, name) for name in ("__module__", "__qualname__")):
        raise ValueError(f"{name!r} is the name of {other.__name__} already; give {kind.__name__} another one")
    registry[name] = kind
    return kind

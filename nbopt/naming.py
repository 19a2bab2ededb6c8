"""NervanaObject: the common base of everything that can be named, described and rebuilt."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Iterable
from typing import Any

from nbopt.errors import DescriptionError
from nbopt.interface.backend import Backend

_LONGEST = 90  # of a value in a text

# Public class path -> class. Only what stands here can be built from a description: a description never
# imports anything but the library's own modules.
_registry: dict[str, type] = {}
# Of classes of the library that are imported when they are first asked for: public path -> module.
_homes: dict[str, str] = {}


def offer(homes: dict[str, str]) -> None:
    """Let descriptions name classes of the library whose modules are not imported before.

    Parameters
    ----------
    homes : dict of str to str
        Public class path -> module.
    """
    _homes.update(homes)


def registered_class(path: str) -> type[Any]:
    """Return the registered class that a description's ``type`` names.

    Parameters
    ----------
    path : str
        ``"nbopt.RMSProp"``, the path of a user's own class (``"package.module.Class"``), or neon's path of a
        class that nbopt has too (``"neon.optimizers.optimizer.RMSProp"``).

    Raises
    ------
    DescriptionError
        If no Optimizer or Schedule subclass was defined under this path.
    """
    key = path
    if isinstance(path, str) and path.startswith("neon.optimizers."):
        key = "nbopt." + path.rpartition(".")[2]
    try:
        if key in _homes:
            importlib.import_module(_homes[key])
        return _registry[key]
    except (KeyError, TypeError):
        known = ", ".join(sorted({*_registry, *_homes}))
        raise DescriptionError(
            f"a description names the class {path!r}, which is not a known Optimizer or Schedule. Known: "
            f"{known}. Import the module that defines the class first; nothing is imported because a "
            "description asks for it."
        ) from None


class NervanaObject:
    """Base class of optimizers, schedules and layers, after neon's class of the same name.

    Parameters
    ----------
    name : str, optional
        A name for messages and for MultiOptimizer. Without one, the object is called by its class and a
        number.

    Attributes
    ----------
    be : Backend or None
        The backend that all objects share; `nbopt.set_backend` sets it on this class.
    """

    be: Backend = None  # type: ignore[assignment]  # until one is set
    _numbers = itertools.count()
    _named = False

    def __init__(self, name: str | None = None) -> None:
        self._named = name is not None
        self.name = name if self._named else f"{self.classnm}_{next(NervanaObject._numbers)}"

    @property
    def classnm(self) -> str:
        """The name of the class."""
        return type(self).__name__

    @property
    def modulenm(self) -> str:
        """The path of the class, as a description's ``type`` gives it."""
        return _class_path(type(self))

    def get_description(self, skip: Iterable[str] = ()) -> dict[str, Any]:
        """Describe the object by its constructor's arguments, in plain Python values.

        Parameters
        ----------
        skip : list of str
            Arguments to leave out.

        Returns
        -------
        dict
            ``{"type": path of the class, "config": {argument: value}}``. Objects among the values are
            described in their turn. A name that the user did not choose is left out.
        """
        config = {}
        for argument in constructor_arguments(type(self)):
            if argument in skip or (argument == "name" and not self._named):
                continue
            config[argument] = _describe(getattr(self, argument))
        return {"type": self.modulenm, "config": config}

    @classmethod
    def gen_class(cls, pdict: Any) -> Any:
        """Build an object from a description.

        Parameters
        ----------
        pdict : dict
            The constructor's arguments (a description's ``config``), or a whole description with ``type`` and
            ``config``. It is not changed.

        Returns
        -------
        NervanaObject
            Of this class, or of the subclass that ``type`` names.

        Raises
        ------
        DescriptionError
            If the class is unknown, is not a `cls`, or does not take these arguments.
        """
        if not isinstance(pdict, dict):
            raise DescriptionError(f"a description is a dict, not {pdict!r}")
        target, config = cls, pdict
        if _is_description(pdict):
            target, config = registered_class(pdict["type"]), pdict.get("config") or {}
            if not issubclass(target, cls):
                raise DescriptionError(
                    f"the description is of a {target.__name__}, not of a {cls.__name__}: call "
                    f"{target.__name__}.gen_class"
                )
        values = {key: _rebuild(value) for key, value in config.items()}
        allowed = constructor_arguments(target)
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise DescriptionError(
                f"{target.__name__} takes no {', '.join(unknown)}; its arguments are {', '.join(allowed)}"
            )
        try:
            return target(**values)
        except TypeError as error:
            raise DescriptionError(f"{target.__name__} can't be built from {values}: {error}") from error

    @classmethod
    def recursive_gen(cls, pdict: Any, key: Any) -> None:
        """Replace ``pdict[key]``, where it is a description, by the object that it describes.

        Parameters
        ----------
        pdict : dict
            Changed in place, as in neon.
        key : hashable
            The entry to look at; one that holds no description stays as it is.
        """
        pdict[key] = _rebuild(pdict[key])

    def __repr__(self) -> str:
        return f"<{self.classnm} {self.name!r}>"


class Described(NervanaObject):
    """A NervanaObject that equals any other with the same description, and can be built from one."""

    def __init_subclass__(cls, symbolic: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not symbolic:  # else it stands for a class in a trace, see nbopt.optimizers.tracing
            _registry[_class_path(cls)] = cls

    def __repr__(self) -> str:
        given = []
        for argument, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, argument, parameter.default)
            unsaid = value is parameter.default or (argument == "name" and not self._named)
            if argument == "learning_rate" or not (unsaid or _is_default(value, parameter.default)):
                given.append(f"{argument}={_short(value)}")
        return f"{self.classnm}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Described):
            return NotImplemented
        return type(self) is type(other) and _equal(self.get_description(), other.get_description())

    def __hash__(self) -> int:
        # Hyper-parameters change, hashes must not; equal objects share their class.
        return hash(type(self))


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a value is what the constructor takes without one; None stands for a schedule, too."""
    if default is None and isinstance(value, Described):
        return value.get_description()["config"].get("step_config", "") is None
    return type(value) is type(default) and _equal(value, default)


def _short(value: Any) -> str:
    if hasattr(value, "shape") and value.shape != ():
        return f"<{type(value).__name__} of shape {tuple(value.shape)}>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _class_path(cls: type) -> str:
    """Return the public path: ``nbopt.RMSProp`` for a class of the library, whatever its file."""
    package = cls.__module__.partition(".")[0]
    return f"nbopt.{cls.__name__}" if package == "nbopt" else f"{cls.__module__}.{cls.__qualname__}"


def constructor_arguments(cls: type) -> list[str]:
    """Return the names of the arguments of a class's constructor."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]


def _equal(one: Any, other: Any) -> bool:
    """Return whether two descriptions, or values in them, are equal.

    Arrays are equal if their dtypes, shapes and elements are.
    """
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if (
        hasattr(one, "shape")
        and hasattr(other, "shape")
        and (one.shape, one.dtype) != (other.shape, other.dtype)
    ):
        return False
    try:
        same = one == other
        return bool(same.all() if hasattr(same, "all") else same)
    except (TypeError, ValueError):  # what can't be compared is equal to itself only: a tensor, say
        return False


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and "type" in value and set(value) <= {"type", "config"}


def _describe(value: Any) -> Any:
    if isinstance(value, NervanaObject):
        return value.get_description()
    if isinstance(value, dict):
        return {key: _describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _rebuild(value: Any) -> Any:
    if _is_description(value):
        return NervanaObject.gen_class(value)
    if isinstance(value, dict):
        return {key: _rebuild(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rebuild(item) for item in value]
    return value

"""The registry of backends, and the one that is current.

Built-in backends are known by their names and imported when first used. Others come through the entry-point
group ``nbopt.backends``: a package that declares ``toy = "package.module:ToyBackend"`` there is used by
``nbopt.set_backend("toy")``.
"""

from __future__ import annotations

import copyreg
import difflib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nbopt.arrays.tensor import Tensor
from nbopt.errors import ArgumentError, BackendError, UnknownBackendError
from nbopt.interface.backend import Backend
from nbopt.language.words import OPTIONS, advising
from nbopt.naming import NervanaObject

_BUILT_IN = {
    "cpu": "nbopt_backends.cpu.backend:NumbaCPU",
    "cuda": "nbopt_backends.cuda.numba_cuda:NumbaCUDA",
    "reference": "nbopt_backends.meaning.reference:Reference",
}
_NEON_NAMES = {"mkl": "cpu", "gpu": "cuda"}
_GROUP = "nbopt.backends"


@functools.partial(advising, words=OPTIONS)
def gen_backend(
    backend: str | Backend = "cpu",
    rng_seed: int | None = None,
    datatype: Any = np.float32,
    batch_size: int = 1,
    stochastic_round: bool | int = False,
    device_id: int = 0,
    max_devices: object = None,
    compat_mode: object = None,
    deterministic_update: object = None,
    deterministic: object = None,
    num_threads: int | None = None,
    fast_math: bool = False,
) -> Backend:
    """Make a backend and set it for all objects of the process, as neon's function of the same name does.

    Parameters
    ----------
    backend : str
        ``"cpu"`` (also neon's ``"mkl"``), ``"cuda"`` (also neon's ``"gpu"``), ``"reference"``, or the name of
        an installed one.
    rng_seed : int, optional
        Seed of stochastic rounding, from 0 to 2**64 - 1; drawn from the system without one.
    datatype : dtype
        The dtype of new tensors that are given none.
    batch_size : int
        ``be.bsz``, by which gradients are divided. At least 1.
    stochastic_round : bool or int
        The rounding that new tensors start with.
    device_id : int
        Which GPU.
    max_devices, compat_mode, deterministic_update, deterministic
        neon's; they do nothing here and are accepted with a warning.
    num_threads : int, optional
        How many CPU threads to use at most. Without it, all that Numba has; processes that torchrun has
        started (``LOCAL_WORLD_SIZE``) divide them, unless ``NUMBA_NUM_THREADS`` is set.
    fast_math : bool
        Allow arithmetic that is not bit for bit the same everywhere.

    Returns
    -------
    Backend

    Raises
    ------
    UnknownBackendError
        If no backend has this name; the message lists those that exist.
    BackendError
        If the backend can't be used here; the message says what to do.
    ArgumentError
        If an option makes no sense.
    """
    for name, value in {
        "max_devices": max_devices,
        "compat_mode": compat_mode,
        "deterministic_update": deterministic_update,
        "deterministic": deterministic,
    }.items():
        if value is not None:
            warnings.warn(f"gen_backend: {name} is neon's and does nothing in nbopt", stacklevel=3)
    return set_backend(
        backend,
        rng_seed=rng_seed,
        datatype=datatype,
        batch_size=batch_size,
        stochastic_round=stochastic_round,
        device_id=device_id,
        num_threads=num_threads,
        fast_math=fast_math,
    )


def set_backend(name_or_backend: str | Backend, **options: Any) -> Backend:
    """Set the backend that all objects of the process use, and return it.

    Parameters
    ----------
    name_or_backend : str or Backend
        A name, as `gen_backend` takes, or a backend that was made before.
    **options
        For a name: the backend's constructor's arguments, see `Backend`.

    Returns
    -------
    Backend

    Raises
    ------
    UnknownBackendError
        If no backend has this name; the message lists those that exist.
    BackendError
        If the backend can't be used here; the message says what to do.
    ArgumentError
        If an option's value makes no sense, or options come with a backend that exists already.
    """
    if isinstance(name_or_backend, Backend):
        if options:
            raise ArgumentError(
                f"options ({', '.join(options)}) go with a backend's name, not with a backend that exists "
                "already"
            )
        backend = name_or_backend
    else:
        backend = new_backend(name_or_backend, **options)
    NervanaObject.be = backend
    return backend


def new_backend(name: str, **options: Any) -> Backend:
    """Return a new backend, which is not made the current one. See `set_backend` for the arguments."""
    return _usable_class(name)(**options)


def get_backend() -> Backend:
    """Return the current backend.

    If none is set, the one that NBOPT_BACKEND names is installed, else the CPU backend.

    Returns
    -------
    Backend

    Raises
    ------
    BackendError
        If the backend can't be used here, or NBOPT_BACKEND names none.
    """
    backend = NervanaObject.be
    if backend is not None:
        return backend
    name = os.environ.get("NBOPT_BACKEND")
    try:
        return set_backend(name or "cpu")
    except BackendError as error:
        raise type(error)(
            f"{error} (The environment variable NBOPT_BACKEND chose it.)" if name else str(error)
        ) from None


@contextmanager
def use_backend(name_or_backend: str | Backend, **options: Any) -> Iterator[Backend]:
    """Set a backend for the duration of a ``with`` block, and restore the former one afterwards.

    The backend is set as by `set_backend`, for the whole process.

    Parameters
    ----------
    name_or_backend : str or Backend
    **options
        As for `set_backend`.

    Yields
    ------
    Backend
    """
    previous = NervanaObject.be
    backend = set_backend(name_or_backend, **options)
    try:
        yield backend
    finally:
        NervanaObject.be = previous


def available_backends() -> list[str]:
    """Return the names of the backends that can be used on this machine.

    Returns
    -------
    list of str
        Built-in ones first, then those of other packages.
    """
    return [name for name in known_backends() if backend_problem(name) is None]


def known_backends() -> list[str]:
    """Return the names of all backends, built-in and installed, usable here or not.

    Returns
    -------
    list of str
    """
    return [*_BUILT_IN, *(name for name in _entry_points() if name not in _BUILT_IN)]


def backend_problem(name: str) -> str | None:
    """Return why a backend can't be used here.

    Parameters
    ----------
    name : str

    Returns
    -------
    str or None
        The reason and what to do about it; None where it can be used.
    """
    try:
        return _load(name).problem()
    except BackendError as error:
        return str(error)


def _usable_class(name: Any) -> type[Backend]:
    cls = _load(name)
    problem = cls.problem()
    if problem:
        raise BackendError(f"the backend {name!r} can't be used here: {problem}")
    return cls


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points  # when it is needed: it imports a package for e-mails

    return {point.name: point for point in entry_points(group=_GROUP)}


def _load(name: Any) -> type[Backend]:
    key = _NEON_NAMES.get(name, name) if isinstance(name, str) else name
    if isinstance(key, str) and key in _BUILT_IN:
        module, cls = _BUILT_IN[key].split(":")
        try:
            return getattr(importlib.import_module(module), cls)
        except ImportError as error:
            raise BackendError(
                f"the backend {key!r} can't be imported: {error}. Type: pip install {_requirement(key)}"
            ) from error
    points = _entry_points()
    if not isinstance(key, str) or key not in points:
        known = ", ".join([*known_backends(), *(f"{neon} (= {ours})" for neon, ours in _NEON_NAMES.items())])
        alike = difflib.get_close_matches(str(name).lower(), [*known_backends(), *_NEON_NAMES], 1)
        hint = f'. Write "{alike[0]}"' if alike else ""
        raise UnknownBackendError(f"there is no backend {name!r}. Known: {known}{hint}")
    try:
        cls = points[key].load()
    except Exception as error:
        raise BackendError(
            f"the backend {key!r} is installed by another package and can't be loaded: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise BackendError(
            f"the entry point {key!r} of the group {_GROUP} must name a subclass of nbopt.Backend, not "
            f"{cls!r}"
        )
    return cls


def _requirement(name: str) -> str:
    return {"cuda": '"nbopt[cuda13]" (or "nbopt[cuda12]", by the driver)'}.get(name, '"numba>=0.62"')


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    # Backends hold compiled code and devices; the copy belongs to the backend that is current where it is
    # loaded.
    return _rebuilt, (tensor.be.picklable(tensor.storage), tensor.name, tensor.rounding)


def _rebuilt(array: Any, name: str | None, rounding: bool | int) -> Tensor:
    be = get_backend()
    tensor = be.wrap(array) if be.memory == "host" else be.array(array, array.dtype)
    tensor.name, tensor.rounding = name, rounding
    return tensor


# Here and not in the class, which knows no backend but its own.
copyreg.pickle(Tensor, _reduced)

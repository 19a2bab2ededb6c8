"""Checkpoints on disk: a run's state in a safetensors file, of which every byte is checked when it is read.

The file's metadata have two entries. ``nbopt`` is the state (see `nbopt.Optimizer.state_dict`) as JSON, in
which ``{"dtype", "shape", "digest"}`` stands for each array; ``digest`` is that of this text. Digests are
BLAKE2b with 16 bytes, in hexadecimal digits, those of arrays over their elements in C order. The tensors are
called ``layer/parameter`` and ``layer/parameter/state``, see `_tensor_names`.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nbopt.checkpoints.restore import Restoration
from nbopt.checkpoints.state import state_dict
from nbopt.checkpoints.structure import check_structure
from nbopt.errors import ArgumentError, CheckpointError
from nbopt.layers import Layer
from nbopt.optimizers.base import Optimizer

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# dtype -> what safetensors calls its storage. Its functions for NumPy don't know bfloat16.
_STORAGE = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    _BFLOAT16: "U16",
}
_DTYPES = {dtype.name: dtype for dtype in _STORAGE}

_USE_ANOTHER = "Load an older checkpoint, or copy the file again from where it came from."


class _Stored(NamedTuple):
    """An array in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    digest: str


def save(path: str | os.PathLike[str], optimizer: Optimizer, layers: Iterable[Layer]) -> None:
    """Save to a file everything that the next step of a run depends on.

    `load` goes on from it with the same bits. The file is replaced as a whole: if the save fails, is killed,
    or the machine stops, what is found at `path` is the old file or the new one.

    Parameters
    ----------
    path : str or os.PathLike
        By custom with the ending ``.safetensors``: any program that reads such files finds the parameters and
        states in it. bfloat16 is stored as uint16. A new file has the permissions that the process's umask
        gives, an existing one keeps its own.
    optimizer : Optimizer
    layers : list
        All layers that the optimizer trains.

    Raises
    ------
    CheckpointError
        If something can't be kept in a file, such as a hyper-parameter that is an object. See
        `Optimizer.state_dict`.
    ArgumentError
        If the path is none.
    OSError
        If the file can't be written; FileNotFoundError where there is no such folder; IsADirectoryError where
        the path is that of a folder. What is there and is no regular file, such as a named pipe or a device,
        is never replaced.

    Notes
    -----
    Besides the parameters and states themselves, a save holds one copy of them all in the host's memory
    (safetensors before 0.8 may make a second). A save that was killed may leave a folder
    ``.nbopt-save-<random>`` beside the file, which can be deleted.
    """
    path = _checked(path)
    _refuse_other_than_files(path)
    path = os.path.realpath(path)  # a link stays one, and what it leads to is replaced
    if not os.path.isdir(os.path.dirname(path)):
        raise FileNotFoundError(
            errno.ENOENT, "there is no such folder to save a checkpoint in", os.path.dirname(path)
        )
    import json  # these are imported where they are needed: an import of nbopt takes less time

    state = state_dict(optimizer, layers)
    arrays = {}
    for name, entry in _tensor_names(state):
        # safetensors writes arrays of other orders as if they were in C order.
        values = np.asarray(entry["values"], order="C")
        if values.dtype not in _STORAGE:
            raise CheckpointError(
                f"{name} has dtype {values.dtype}, which checkpoints can't hold; they take "
                f"{', '.join(_DTYPES)}"
            )
        arrays[name] = values.view(np.uint16) if values.dtype == _BFLOAT16 else values
        entry["values"] = {"dtype": values.dtype.name, "shape": values.shape, "digest": _digest(arrays[name])}
    text = json.dumps(state)
    _replace(path, arrays, {"nbopt": text, "digest": _digest(np.frombuffer(text.encode(), np.uint8))})


def load(
    path: str | os.PathLike[str], optimizer: Optimizer, layers: Iterable[Layer], hyperparameters: bool = True
) -> None:
    """Put back what `save` has saved: the next step gives the bits that it would have given there.

    Everything is checked before anything changes: the file down to its last byte, and that it fits the
    optimizer and the layers. No code from the file is run. Nothing changes where it does not fit.

    Parameters
    ----------
    path : str or os.PathLike
    optimizer, layers, hyperparameters
        See `Optimizer.load_state_dict`, which this is with a file's state.

    Raises
    ------
    CheckpointError
        If the file is damaged, or is no checkpoint, or one of another optimizer or other layers.
    ArgumentError
        If the path is none, or `hyperparameters` no flag.
    OSError
        If the file can't be read, or is no regular file.

    Notes
    -----
    Besides the parameters and states themselves, a load holds one copy of them all in the host's memory.
    """
    from safetensors import SafetensorError, safe_open

    path = _checked(path)
    _refuse_other_than_files(path)  # to open a named pipe would wait for somebody who writes to it
    with open(path, "rb"):
        pass  # a missing file, say, gives the error that Python users know
    try:
        with safe_open(path, framework="numpy") as file:
            state = _header(path, file.metadata())
            restoration = Restoration(optimizer, layers, state, hyperparameters)
            names = [name for name, _ in _tensor_names(state)]
            if sorted(names) != sorted(file.keys()):
                raise CheckpointError(
                    f"{path} is damaged: its tensors are not those of its own list. {_USE_ANOTHER}"
                )
            for name, array in zip(names, restoration.arrays):
                array.values = _read(path, file, name, array.values)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged, or no safetensors file: {error}. {_of_torch(path) or _USE_ANOTHER}"
        ) from error
    restoration.commit()


def _checked(path: Any) -> str:
    """Return a path as a str. A number would be the handle of an open file, and closed."""
    if not isinstance(path, (str, bytes, os.PathLike)) or not path:
        raise ArgumentError(
            f'the path comes first, and must be that of a file, such as "run.safetensors", not {path!r}'
        )
    return os.fsdecode(path)


def _of_torch(path: str) -> str:
    """Return what to type for a file that PyTorch has saved, or NumPy: both write ZIP archives."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return ""
    return (
        "It is an archive, as torch.save writes it: write optimizer.load_state_dict(torch.load(path)) with "
        "the optimizer that saved it. nbopt.load reads what nbopt.save has written."
    )


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _refuse_other_than_files(path: str) -> None:
    """Raise OSError where something is at a path, or at the end of its links, and is no regular file."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing is there; to open it gives the error that Python users know
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a checkpoint is a file, and this is a folder", path)
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(
            errno.EINVAL, f"a checkpoint is a regular file, and this is {kind}; give the path of a file", path
        )


def _tensor_names(state: Any) -> list[Any]:
    """Return [(name in the file, entry of the state), ...], each parameter and then its states.

    Layers and states are called by their names, or by their numbers where they have none, one that is not
    unique, or one that could be confused with a number or part of a longer name.
    """
    found = []
    layers = _labels([layer["name"] for layer in state["layers"]])
    for label, layer in zip(layers, state["layers"]):
        for number, parameter in enumerate(layer["parameters"]):
            name = f"{label}/{number}"
            found.append((name, parameter))
            labels = _labels([each["name"] for each in parameter["states"]])
            found += [(f"{name}/{own}", each) for own, each in zip(labels, parameter["states"])]
    return found


def _labels(names: list[str]) -> list[str]:
    counts = Counter(names)
    return [
        name if name and counts[name] == 1 and "/" not in name and not name.isdecimal() else str(k)
        for k, name in enumerate(names)
    ]


def _digest(array: np.ndarray[Any, Any]) -> str:
    import hashlib

    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=16).hexdigest()


def _replace(path: str, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    import tempfile

    from safetensors.numpy import save_file

    directory = os.path.dirname(path)
    # A folder, since safetensors may use temporary files of its own beside the one that it writes.
    with tempfile.TemporaryDirectory(
        prefix=".nbopt-save-", dir=directory, ignore_cleanup_errors=True
    ) as folder:
        temporary = os.path.join(folder, "new")
        with open(temporary, "wb"):
            pass  # safetensors makes files that nobody else can read; this one has the mode of a new file
        mode = stat.S_IMODE(os.stat(path if os.path.exists(path) else temporary).st_mode)
        save_file(arrays, temporary, metadata)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        if os.name == "posix":
            _flush_directory(directory)


def _flush_directory(directory: str) -> None:
    """Wait until the new entry of a directory is on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(path: str, metadata: dict[str, str]) -> Any:
    """Return the state in a file's metadata, with `_Stored` for its arrays."""
    import json

    metadata = metadata or {}
    text = metadata.get("nbopt")
    if text is None:
        raise CheckpointError(
            f"{path} is no checkpoint of nbopt, or is damaged: its metadata have no entry nbopt. "
            f"{_USE_ANOTHER}"
        )
    if metadata.get("digest") != _digest(np.frombuffer(text.encode(), np.uint8)):
        raise CheckpointError(
            f"{path} is damaged: its description is not the one that was saved. {_USE_ANOTHER}"
        )
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint that nbopt has saved: {error}") from error
    check_structure(state, dict)
    for name, entry in _tensor_names(state):
        values = entry["values"]
        try:
            entry["values"] = _Stored(_DTYPES[values["dtype"]], tuple(values["shape"]), values["digest"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is no checkpoint that nbopt has saved: it describes {name} as {values}"
            ) from error
    return state


def _read(path: str, file: Any, name: str, stored: Any) -> Any:
    part = file.get_slice(name)
    if (part.get_dtype(), tuple(part.get_shape())) != (_STORAGE[stored.dtype], stored.shape):
        raise CheckpointError(
            f"{path} is damaged: the dtype or shape of {name} is not the one that was saved. {_USE_ANOTHER}"
        )
    values = file.get_tensor(name)
    if _digest(values) != stored.digest:
        raise CheckpointError(
            f"{path} is damaged: the values of {name} are not those that were saved. {_USE_ANOTHER}"
        )
    return values.view(stored.dtype)

"""Compiled functions on disk, as machine code that a later process runs without Numba's compiler.

A file holds a digest of what follows, a line of JSON, and an object file as LLVM made it. It is loaded by
LLVM alone, so a process that finds all its kernels starts no part of Numba's compiler, which takes most of a
second. Each object gets an engine of its own, so functions of one name in two of them are never confused.
"""

import contextlib
import ctypes
import hashlib
import json
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from numba.core.registry import cpu_target
from numba.core.runtime import _nrt_python

from nbopt_backends.lowering import source
from nbopt_backends.lowering.notice import while_compiling

# What was loaded stays loaded: plans know functions by their addresses.
_kept: list[Any] = []


class Function(NamedTuple):
    """A compiled function.

    Attributes
    ----------
    address : int
    found : bool
        Whether it was on disk.
    """

    address: int
    found: bool


def function_of(text, name, stem, compiler):
    """Return a compiled function of a generated module, from disk wherever that works.

    Machine code from a damaged file would be run as it is, so nothing is loaded whose digest is wrong. One
    process at a time compiles a module, so those that start together compile once.

    Parameters
    ----------
    text, stem
        As for `nbopt_backends.lowering.source.load`.
    name : str
        Of the function.
    compiler : callable
        ``compiler(function)`` returns Numba's ``cfunc`` of it.

    Returns
    -------
    Function
    """
    place = source.place(text, stem)
    if place is None:  # installed without source: no name for it
        return Function(_compiled(text, name, stem, compiler).address, False)
    path = place.with_name(f"{place.stem}.{name}.{_target()}.object")
    address, _ = _on_disk(path)
    if address is not None:
        return Function(address, True)
    with while_compiling(source.cache_folder), source.alone(place) as undisturbed:
        address, damaged = _on_disk(path)  # another process may have been quicker
        if address is not None:
            return Function(address, True)
        made = _compiled(text, name, stem, compiler)
        if not undisturbed:
            source.warn_of_waiting(place)
        elif _written(path, made) and damaged:
            source.warn_of_damage()
    return Function(made.address, False)


def _compiled(text, name, stem, compiler):
    made = compiler(getattr(source.load(text, stem), name))
    _kept.append(made)
    return made


def _target():
    """Return a word for the processor that code is made for, as Numba sees it."""
    return hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode()).hexdigest()[:8]


def _written(path, made):
    """Write a function that was compiled to a file, and return whether that worked."""
    try:
        library = made._library
        module = library._final_module
        declared = [*module.functions, *module.global_variables]
        needs = [one.name for one in declared if one.is_declaration and not one.name.startswith("llvm.")]
        about = json.dumps({"name": made._wrapper_name, "needs": needs}).encode()
        content = about + b"\n" + library._get_compiled_object()
    except Exception as error:  # Numba keeps its machine code elsewhere than today
        source.warn_of_writing(error)
        return False
    return source.write(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _on_disk(path):
    """Return the address of the function in a file, or None, and whether the file is damaged."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None, False
    if digest != hashlib.sha256(content).hexdigest().encode():
        return None, True
    about, _, code = content.partition(b"\n")
    about = json.loads(about)
    # LLVM ends a process that loads what can't be linked.
    if not all(map(_known, about["needs"])):
        return None, False
    return _loaded(code, about["name"]), False


def _known(symbol):
    """Return whether code that is loaded can call a function, or read a variable, of this name."""
    if llvm.address_of_symbol(symbol) is None:
        with contextlib.suppress(KeyError):  # Numba gives these names when it first compiles
            llvm.add_symbol(symbol, _nrt_python.c_helpers[symbol.removeprefix("NRT_")])
    return llvm.address_of_symbol(symbol) is not None


def _loaded(code, name):
    engine = _engine("")
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name)


def built(text, *names):
    """Return the addresses of some functions of a module that is given as LLVM's own text."""
    engine = _engine(text)
    engine.finalize_object()
    return [engine.get_function_address(name) for name in names]


def _engine(text):
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
    _kept.append(llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine))
    return _kept[-1]


class _Method(ctypes.Structure):
    """Python's ``PyMethodDef``."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


_FASTCALL = 0x80  # METH_FASTCALL


def called_from_python(name, address):
    """Return a Python function of compiled code that takes and gives Python's objects.

    Calls through ctypes take a microsecond or two more.

    Parameters
    ----------
    name : str
    address : int
        Of ``PyObject* function(PyObject* self, PyObject** arguments, ssize_t count)``.
    """
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.c_void_p] * 3)
    make = kind(("PyCFunction_NewEx", ctypes.pythonapi))
    _kept.append(_Method(name.encode(), address, _FASTCALL, None))
    return make(ctypes.addressof(_kept[-1]), None, None)

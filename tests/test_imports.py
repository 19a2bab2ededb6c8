"""Imports point one way, as DESIGN says: the sources are read, so that even an import inside a function is seen."""

import ast
import pathlib
import sys

import pytest

import nbopt
import nbopt_backends

ROOTS = {package.__name__: pathlib.Path(package.__file__).parent for package in (nbopt, nbopt_backends)}


def package_of(name):
    return name.partition(".")[0]


def module_name(root, path):
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(root, path): path for root in ROOTS.values() for path in sorted(root.rglob("*.py"))}


def imported(module):
    """Yield (module that is imported, whether at import time) for every import statement in the source of `module`."""
    tree = ast.parse(MODULES[module].read_text())
    inside = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute, so that they can be followed"
            # "from nbopt import ops" imports a module, "from nbopt.ops import PRIMITIVES" a name in one. Of others we can't tell.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES or package_of(name) not in ROOTS else node.module for name in names]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


IMPORTS = {module: set(imported(module)) for module in MODULES}
DIRECT = {module: {name for name, _ in found} for module, found in IMPORTS.items()}
AT_IMPORT = {module: {name for name, early in found if early and name in MODULES} for module, found in IMPORTS.items()}


def reachable(module):
    """Return all modules of the two packages that importing `module` imports (their packages' __init__ files aside)."""
    found, waiting = set(), [module]
    while waiting:
        for name in AT_IMPORT[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def modules_of(package):
    return [module for module in MODULES if package_of(module) == package]


def test_the_sources_are_found_and_read():
    assert {"nbopt", "nbopt.ops", "nbopt.optimizers.adam", "nbopt_backends.numba_cpu"} <= set(MODULES)
    assert {"nbopt.errors", "nbopt.ops"} <= DIRECT["nbopt.expr"]
    assert "numba" in DIRECT["nbopt_backends.numba_cpu"]
    assert "numba.cuda" in DIRECT["nbopt_backends.numba_cuda"]
    assert {"nbopt.ops", "nbopt.expr", "nbopt.trace", "nbopt.backend"} <= reachable("nbopt.optimizers.base")
    # Inside a function, and so not at import time.
    assert "nbopt.backends" in DIRECT["nbopt.tensor"] - AT_IMPORT["nbopt.tensor"]


@pytest.mark.parametrize("module", modules_of("nbopt"))
def test_the_interface_imports_numpy_and_the_standard_library_and_no_numba_no_backend_no_device(module):
    allowed = {"nbopt", "numpy", "ml_dtypes", "safetensors", *sys.stdlib_module_names}
    if module == "nbopt.torch":  # which users import by its name
        allowed |= {"torch"}
    assert {package_of(name) for name in DIRECT[module]} <= allowed


def test_nothing_imports_the_adapter_to_pytorch():
    assert not [module for module in MODULES if "nbopt.torch" in DIRECT[module]]


LAYERS = [
    ["nbopt.ops", "nbopt.errors"],
    ["nbopt.expr", "nbopt.update", "nbopt.layers"],
    ["nbopt.trace"],
    ["nbopt.methods"],
    ["nbopt.backend"],
    ["nbopt.optimizers"],
]


@pytest.mark.parametrize("rank", range(len(LAYERS) - 1), ids=lambda rank: LAYERS[rank][0])
def test_the_interface_points_from_optimizers_to_backend_to_trace_to_expr_to_ops(rank):
    above = tuple(name for layer in LAYERS[rank + 1 :] for name in layer)
    for module in LAYERS[rank]:
        assert not {name for name in DIRECT[module] | reachable(module) if name.startswith(above)}


def test_ops_and_errors_import_nothing_of_nbopt():
    for module in LAYERS[0]:
        assert not {name for name in DIRECT[module] if package_of(name) == "nbopt"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_in_a_circle(module):
    """A package's __init__ is for users: modules import each other directly, or it would close a circle."""
    assert module not in reachable(module)


LEAVES = ["lowering", "chunks", "reduction", "memory", "scalar", "rounding", "xoroshiro"]


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_of_the_backends_import_nothing_but_leaves(leaf):
    allowed = {f"nbopt_backends.{name}" for name in LEAVES}
    assert {name for name in DIRECT[f"nbopt_backends.{leaf}"] if package_of(name) == "nbopt_backends"} <= allowed


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_of_the_backends_need_no_numba(leaf):
    assert not {name for name in DIRECT[f"nbopt_backends.{leaf}"] if package_of(name) in ("numba", "llvmlite")}


SIDES = {
    "host": ("host", "reference", "numba_cpu", "threads", "cpu_"),
    "device": ("device_", "cuda_", "numba_cuda"),
}


def of_side(side):
    return {module for module in modules_of("nbopt_backends") if module.partition(".")[2].startswith(SIDES[side])}


@pytest.mark.parametrize("side, other", [("host", "device"), ("device", "host")])
def test_what_is_for_the_host_and_what_is_for_devices_never_import_each_other(side, other):
    for module in of_side(side):
        assert not (DIRECT[module] | reachable(module)) & of_side(other)


@pytest.mark.parametrize("module", [*LEAVES, "plan", "array_backend", "compiled_backend", "source"])
def test_what_is_for_both_knows_neither(module):
    module = f"nbopt_backends.{module}"
    assert not (DIRECT[module] | reachable(module)) & (of_side("host") | of_side("device"))


@pytest.mark.parametrize("module", MODULES)
def test_numba_cuda_is_imported_by_its_backend_alone(module):
    devices = {name for name in DIRECT[module] if name.startswith(("numba.cuda", "numba_cuda", "cupy", "torch", "cuda"))}
    assert not devices or module in ("nbopt_backends.numba_cuda", "nbopt.torch")


@pytest.mark.parametrize("name", ["", ".reference", ".plan", ".array_backend", ".host", ".device_array", ".device_plan", ".device_streams"])
def test_the_reference_and_what_knows_of_arrays_alone_need_no_numba(name):
    module = f"nbopt_backends{name}"
    for name in {module} | reachable(module):
        assert not {other for other in DIRECT[name] if package_of(other) in ("numba", "llvmlite")}

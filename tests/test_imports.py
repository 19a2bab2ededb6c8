"""Imports point one way. The sources are read, so that an import inside a function counts as well."""

import ast
import functools
import pathlib
import subprocess
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
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what type checkers alone read."""

    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(module):
    """Yield (module, whether at import time) for every import statement of `module`.

    Imports for type checkers alone do not count.
    """
    tree = WithoutTypes().visit(ast.parse(MODULES[module].read_text()))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{module}, line {node.lineno}: imports are absolute, so that they can be followed"
            )
            # "from nbopt import ops" imports a module, "from nbopt.language.ops import PRIMITIVES" a name in
            # one. Of others we can't tell.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if name in MODULES or package_of(name) not in ROOTS else node.module for name in names
            ]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


@functools.cache
def imports():
    """All modules' imports, as `imported` gives them; at first use, since to read them takes seconds."""
    return {module: set(imported(module)) for module in MODULES}


@functools.cache
def direct(module):
    """What a module imports, at import time or inside functions."""
    return {name for name, _ in imports()[module]}


@functools.cache
def at_import(module):
    """Modules of the two packages that a module imports at import time."""
    return {name for name, early in imports()[module] if early and name in MODULES}


def reachable(module, imported_by=at_import):
    """Return all modules of the two packages that importing `module` imports.

    Their packages' __init__ files do not count.
    """
    found, waiting = set(), [module]
    while waiting:
        for name in imported_by(waiting.pop()) & MODULES.keys() - found:
            found.add(name)
            waiting.append(name)
    return found


def modules_of(package):
    return [module for module in MODULES if package_of(module) == package]


#: The floors of the house, from the ground up. A module imports from its own floor and those below it.
FLOORS = [
    ["nbopt.errors", "nbopt.version", "nbopt.terminal", "nbopt.attributes"],
    ["nbopt.language"],
    ["nbopt.arrays"],
    ["nbopt.interface"],
    ["nbopt.naming", "nbopt.checks", "nbopt.backends", "nbopt.schedules", "nbopt.layers", "nbopt.parameters"],
    ["nbopt.checkpoints.structure", "nbopt.checkpoints.state", "nbopt.checkpoints.restore"],
    ["nbopt.optimizers"],
    ["nbopt.checkpoints.file", "nbopt.inspection"],
    ["nbopt.torch", "nbopt.__main__"],
]
BACKEND_FLOORS = [
    [
        "nbopt_backends.meaning.xoroshiro",
        "nbopt_backends.meaning.rounding",
        "nbopt_backends.meaning.tree",
        "nbopt_backends.meaning.slices",
        "nbopt_backends.matrices",
    ],
    ["nbopt_backends.arrays"],
    [
        "nbopt_backends.plans.chunks",
        "nbopt_backends.plans.layout",
        "nbopt_backends.plans.plan",
        "nbopt_backends.plans.launch",
        "nbopt_backends.lowering",
    ],
    ["nbopt_backends.plans.compiled"],
    ["nbopt_backends.cpu", "nbopt_backends.cuda", "nbopt_backends.meaning.reference"],
]


def under(module, names):
    return any(module == name or module.startswith(f"{name}.") for name in names)


def floor_of(module, floors):
    return next((number for number, names in enumerate(floors) if under(module, names)), None)


def test_the_sources_are_found():
    """The reader of sources sees imports at import time and inside functions."""
    assert {"nbopt", "nbopt.language.ops", "nbopt.optimizers.adam", "nbopt_backends.cpu.backend"} <= set(
        MODULES
    )
    assert {"nbopt.errors", "nbopt.language.ops"} <= direct("nbopt.language.expressions")
    assert "numba" in direct("nbopt_backends.cpu.backend")
    assert "numba.cuda" in direct("nbopt_backends.cuda.toolchain")
    assert {"nbopt.language.ops", "nbopt.language.trace", "nbopt.interface.backend"} <= reachable(
        "nbopt.optimizers.base"
    )
    assert "nbopt.torch" not in at_import("nbopt")


@pytest.mark.parametrize("module", modules_of("nbopt"))
def test_the_interface_needs_numpy_alone(module):
    """The interface imports NumPy and the standard library: no Numba, no backend, no library of devices."""
    allowed = {"nbopt", "numpy", "ml_dtypes", "safetensors", *sys.stdlib_module_names}
    if under(module, ["nbopt.torch"]):  # which users import by its name
        allowed |= {"torch"}
    assert {package_of(name) for name in direct(module)} <= allowed


def test_nothing_imports_the_adapter_to_pytorch():
    """Only the adapter's own modules import it."""
    assert not [
        m
        for m in MODULES
        if not under(m, ["nbopt.torch"]) and any(under(name, ["nbopt.torch"]) for name in direct(m))
    ]


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_imports_never_point_up(module):
    """A module imports from its own floor and from lower ones. Packages' __init__ files are for users."""
    floors = FLOORS if package_of(module) == "nbopt" else BACKEND_FLOORS
    own = floor_of(module, floors)
    assert own is not None or module in PACKAGES or module == "nbopt_backends.pytest_plugin", (
        "it stands on no floor"
    )
    above = {
        name
        for name in direct(module)
        if (floor_of(name, floors) or 0) > (len(floors) if own is None else own)
    }
    assert not above


def test_the_language_imports_nothing_above():
    """Ops and errors import nothing of nbopt."""
    for module in ["nbopt.language.ops", "nbopt.errors"]:
        assert not {name for name in direct(module) if package_of(name) == "nbopt"}


@pytest.mark.parametrize("module", MODULES)
def test_no_circles(module):
    """No module imports itself by way of others, not even inside a function.

    Packages' __init__ files are for users.
    """
    assert module not in reachable(module)
    assert module in PACKAGES or module not in reachable(module, direct)


SIDES = {
    "host": ["nbopt_backends.arrays.host", "nbopt_backends.meaning.reference", "nbopt_backends.cpu"],
    "device": ["nbopt_backends.arrays.device", "nbopt_backends.cuda"],
}
NO_NUMBA = [
    "nbopt_backends.meaning",
    "nbopt_backends.arrays",
    "nbopt_backends.plans.plan",
    "nbopt_backends.plans.layout",
    "nbopt_backends.plans.chunks",
    "nbopt_backends.lowering.text",
    "nbopt_backends.lowering.formulas",
    "nbopt_backends.cuda.kernels",
    "nbopt_backends.cuda.numbers",
    "nbopt_backends.cuda.plan",
    "nbopt_backends.cuda.reductions",
    "nbopt_backends.cuda.stages",
    "nbopt_backends.cuda.streams",
]


def of_side(side):
    return {module for module in modules_of("nbopt_backends") if under(module, SIDES[side])}


@pytest.mark.parametrize("side, other", [("host", "device"), ("device", "host")])
def test_host_and_device_never_import_each_other(side, other):
    """What is for the host knows nothing of devices, and the other way round."""
    for module in of_side(side):
        assert not (direct(module) | reachable(module)) & of_side(other)


@pytest.mark.parametrize(
    "floor", ["nbopt_backends.plans", "nbopt_backends.lowering", "nbopt_backends.arrays.checks"]
)
def test_what_is_for_both_knows_neither(floor):
    """Plans, lowering and checks serve the host and devices."""
    for module in [module for module in MODULES if under(module, [floor])]:
        assert not (direct(module) | reachable(module)) & (of_side("host") | of_side("device"))


@pytest.mark.parametrize("module", MODULES)
def test_one_module_drives_the_device(module):
    """Both toolchains for CUDA are imported by one module, PyTorch by its adapter, CuPy by none."""
    devices = {
        name
        for name in direct(module)
        if name.startswith(("numba.cuda", "numba_cuda", "cupy", "torch", "cuda"))
    }
    assert not devices or module == "nbopt_backends.cuda.toolchain" or under(module, ["nbopt.torch"])


@pytest.mark.parametrize("floor", NO_NUMBA)
def test_the_meaning_needs_no_numba(floor):
    """The definition of results, and what knows of arrays alone, run without Numba."""
    for module in [module for module in MODULES if under(module, [floor])]:
        for name in {module} | reachable(module):
            assert not {other for other in direct(name) if package_of(other) in ("numba", "llvmlite")}


LAZY = """
import sys
import nbopt
later = ("nbopt.optimizers.", "nbopt_backends", "numba", "ml_dtypes")
assert not [name for name in sys.modules if name.startswith(later)]
assert nbopt.NervanaObject.gen_class({"type": "nbopt.Lion", "config": {}}) == nbopt.Lion()
assert "nbopt.optimizers.muon" not in sys.modules
"""


def test_optimizers_are_imported_when_they_are_asked_for():
    """Importing nbopt takes some 30 ms more than NumPy: what not every program needs comes later."""
    subprocess.run([sys.executable, "-c", LAZY], check=True)

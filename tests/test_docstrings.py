"""Every public name has a docstring with all its parts, and a place in the API reference."""

import ast
import importlib
import inspect
import pathlib
import re
import textwrap

import pytest

import nbopt
from nbopt import errors, optimizers
from nbopt.interface import backend
from nbopt.language import ops, program, stages
from nbopt_backends.arrays import host
from nbopt_backends.cpu import backend as numba_cpu
from nbopt_backends.meaning import reference

API = pathlib.Path(__file__).resolve().parent.parent / "docs" / "api"
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "References", "Examples")
# What the authors of backends and of rules work with, beside what stands in nbopt.__all__.
FOR_IMPLEMENTERS = [
    backend.Update,
    program.Program,
    stages.Pass,
    stages.Combine,
    stages.Scalars,
    stages.Verdict,
    ops.Op,
    ops.Composed,
    host.HostBackend,
    numba_cpu.NumbaCPU,
    reference.Reference,
]
# Users get objects of these classes and make none.
NOT_CONSTRUCTED = [nbopt.Tensor, backend.Update, optimizers.Step]


def public_objects():
    for module in (nbopt, optimizers):
        for name in module.__all__:
            if name != "__version__" and not inspect.ismodule(getattr(module, name)):
                yield name, getattr(module, name)
    yield from inspect.getmembers(errors, inspect.isclass)
    for value in FOR_IMPLEMENTERS:
        yield value.__name__, value


OBJECTS = dict(sorted(public_objects()))
CLASSES = {name: value for name, value in OBJECTS.items() if inspect.isclass(value)}


#: Public classes that are put together of others, which users never see.
OF_PARTS = [nbopt.Backend, nbopt.Optimizer]


def members(cls):
    """Yield (path, function or property) for the public members of a class.

    Those that only override another class's are left out.
    """
    for place, part in enumerate(cls.__mro__[:-1] if cls in OF_PARTS else [cls]):
        inherited = {name for other in cls.__mro__[place + 1 : -1] for name in vars(other)}
        for name, value in vars(part).items():
            value = value.__func__ if isinstance(value, classmethod) else value
            if (
                not name.startswith("_")
                and name not in inherited
                and (inspect.isfunction(value) or isinstance(value, property))
            ):
                yield f"{cls.__name__}.{name}", value


MEMBERS = dict(member for cls in CLASSES.values() for member in members(cls))
FUNCTIONS = {name: value for name, value in {**OBJECTS, **MEMBERS}.items() if inspect.isfunction(value)}


def parts(docstring):
    """Return a docstring's sections, title -> text; what comes before the first one under "Summary"."""
    lines = inspect.cleandoc(docstring).split("\n")
    found, title = {"Summary": []}, "Summary"
    for line, after in zip(lines, [*lines[1:], ""]):
        if line in SECTIONS and after == "-" * len(line):
            title, found[line] = line, []
        elif line != "-" * len(title):
            found[title].append(line)
    return {title: "\n".join(text).strip() for title, text in found.items()}


def described(section):
    """Return the names of which a section says something: those on its lines that are not indented."""
    heads = [line.partition(" :")[0] for line in section.split("\n") if line and not line.startswith(" ")]
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def arguments(function):
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def outcome(function):
    """Return whether a function gives something back, and the exceptions of its own lines by name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    inner = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not tree
    ]
    own = set(ast.walk(tree)).difference(*map(ast.walk, inner))
    gives = any(
        isinstance(node, (ast.Yield, ast.YieldFrom))
        or (isinstance(node, ast.Return) and node.value is not None)
        for node in own
    )
    raised = [node.exc.func for node in own if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return gives, {call.id for call in raised if isinstance(call, ast.Name)} - {"NotImplementedError"}


def lacks(function):
    """Return the parts that a function's docstring lacks, a set of str."""
    found = parts(function.__doc__)
    missing = arguments(function) ^ (described(found["Parameters"]) if "Parameters" in found else set())
    gives, raised = outcome(function)
    if gives and not {"Returns", "Yields"} & set(found):
        missing.add("Returns")
    return missing | {error for error in raised if error not in found.get("Raises", "")}


@pytest.mark.parametrize("name", {**OBJECTS, **MEMBERS})
def test_every_public_name_has_a_docstring_that_begins_with_a_sentence(name):
    docstring = {**OBJECTS, **MEMBERS}[name].__doc__
    assert inspect.cleandoc(docstring).split("\n\n")[0].endswith((".", ":"))


@pytest.mark.parametrize(
    "name", [name for name, cls in CLASSES.items() if "__init__" in vars(cls) and cls not in NOT_CONSTRUCTED]
)
def test_the_docstring_of_a_class_says_something_of_each_argument_of_its_constructor(name):
    assert arguments(CLASSES[name].__init__) <= described(parts(CLASSES[name].__doc__).get("Parameters", ""))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_of_a_function_has_its_arguments_what_it_returns_and_what_it_raises(name):
    docstring = FUNCTIONS[name].__doc__
    same_as = re.search(r"; see `([\w.]+)`\.$", docstring.strip())
    if same_as:  # the same method of another class
        assert arguments(FUNCTIONS[name]) == arguments(FUNCTIONS[same_as[1]])
    else:
        assert not lacks(FUNCTIONS[name])


@pytest.mark.parametrize(
    "name",
    [name for name, cls in CLASSES.items() if issubclass(cls, nbopt.Optimizer) and "rule" in vars(cls)],
)
def test_the_docstring_of_an_optimizer_names_its_source(name):
    assert CLASSES[name] is nbopt.Optimizer or parts(CLASSES[name].__doc__)["References"]


def test_the_optimizer_for_pytorch_says_something_of_all_its_parts():
    pytest.importorskip("torch", reason="nbopt.torch needs PyTorch: pip install nbopt[torch]")
    adapter = importlib.import_module("nbopt.torch").Optimizer
    found = parts(adapter.__doc__)
    own = [cls for cls in reversed(adapter.__mro__) if cls.__module__.startswith("nbopt.torch")]
    public = {name: value for cls in own for name, value in vars(cls).items() if not name.startswith("_")}
    assert arguments(adapter.__init__) <= described(found["Parameters"])
    assert {name for name, value in public.items() if isinstance(value, property)} <= described(
        found["Attributes"]
    )
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    assert {"step", "add_param_group", "state_dict", "load_state_dict"} <= set(functions)
    assert {name: lacks(value) for name, value in functions.items() if lacks(value)} == {}


def test_what_a_docstring_lacks_is_found():
    def function(array, scale):
        """Multiply.

        Parameters
        ----------
        array : numpy.ndarray
        """
        if scale is None:
            raise ValueError("scale")
        return array * scale

    assert lacks(function) == {"scale", "Returns", "ValueError"}


def test_every_public_name_stands_in_the_api_reference():
    text = "\n".join(path.read_text() for path in API.glob("*.md"))
    shown = {
        path.rpartition(".")[2]
        for path in re.findall(r"auto(?:class|function|exception|attribute):: ([\w.]+)", text)
    }
    for path in re.findall(r"automodule:: ([\w.]+)", text):
        module = importlib.import_module(path)
        shown |= set(getattr(module, "__all__", None) or dict(inspect.getmembers(module, inspect.isclass)))
    assert not set(OBJECTS) - shown

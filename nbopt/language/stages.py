"""Stages: what a trace becomes before a backend runs it.

A trace is straight-line code. Each line gives a value, which later lines know by its position:

    ("number", k)                 the trace's number k: a Python number that stood in the rule
    ("source", name)              a number of the step that the host knows: "lr", "t", "self.decay", ...
    ("size",)                     the number of elements of the parameter
    ("taken",)                    1 if the step stores what `step.only_if` guards, else 0
    ("load", slot)                read a slot; emitted at its first use only
    ("store", slot, value)        write a slot; the line's value is what was stored, after rounding
    ("reduce", op, over, value)   the sum, max or min of all elements of a parameter ("tensor"), or of all parameters ("step")
    ("only_if", value)            store nothing where the value is 0 or NaN
    (op, operand, ...)            a primitive of `nbopt.language.ops`

Each value has an extent, which says what it varies with: STEP (one number for all parameters), TENSOR (one for each parameter) or ELEMENT. An
extent is a set of bits, so that an operation has the union of its operands' extents. A reduction has a smaller one.

`nbopt.language.cutter.cut` makes a `Program` of it: a list of stages that run one after the other. A value's *level* is the number of reductions on
the longest way to it, and all elements' values of one level share a pass over memory.
"""

import functools
import operator
from typing import NamedTuple

STEP, TENSOR, ELEMENT = 0, 1, -1
#: Lines that are computed from nothing.
LEAVES = ("number", "source", "size", "taken", "load")


class Pass(NamedTuple):
    """One loop over all elements of all parameters: loads, arithmetic, stores, and partial results of reductions.

    Attributes
    ----------
    names : tuple of str
        The program's slots, which the kernel's text uses.
    code : tuple of tuples
        ``("load", slot)``, ``("store", slot, value, number)``, ``("round", slot, value, number)`` and ``(op, operand, ...)``. An operand from 0 on
        is an earlier line; one below 0 is a number of the parameter, ``~k`` being number k. A store's `number` is its place among the trace's
        stores, which random bits depend on. What is rounded only has the value that a store gives, and writes nothing.
    reductions : tuple of (str, int)
        Each reduction's op, and the operand that it reduces.
    guarded : bool
        Whether it is left out where the step's condition is false.
    """

    names: tuple
    code: tuple
    reductions: tuple = ()
    guarded: bool = False

    def written(self):
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "store"})

    def read(self):
        """Return which slots are loaded.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] == "load"})

    def used(self):
        """Return which slots are loaded, stored to, or only rounded for.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store", "round")})

    def moved(self):
        """Return which slots are loaded or stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        return sorted({line[1] for line in self.code if line[0] in ("load", "store")})

    def scalars(self):
        """Return which numbers of a parameter are used.

        Returns
        -------
        list of int
            Ascending.
        """
        operands = [operand for line in self.code for operand in _values(line)] + [operand for _, operand in self.reductions]
        return sorted({~operand for operand in operands if operand < 0})


class Combine(NamedTuple):
    """The end of a reduction: partial results of a pass, or a number of each parameter, become one number.

    Attributes
    ----------
    op : str
        ``"sum"``, ``"max"`` or ``"min"``.
    over : str
        ``"tensor"`` or ``"step"``.
    level : int
        Of the pass that has the partial results, the number of the level before.
    source : int
        Which of that pass's reductions; or ``~k``: number k of each parameter.
    output : int
        Which number of the parameters it becomes.
    guarded : bool
        As for `Pass`.
    """

    op: str
    over: str
    level: int
    source: int
    output: int
    guarded: bool = False


class Scalars(NamedTuple):
    """Arithmetic on numbers of parameters, in float64.

    Attributes
    ----------
    extent : int
        STEP: done once, and every parameter gets the outputs. TENSOR: done for each parameter.
    code : tuple of tuples
        As a pass's, with ``("taken",)`` besides.
    outputs : tuple of (int, int)
        A line, and which number of the parameters it becomes.
    guarded : bool
        As for `Pass`.
    """

    extent: int
    code: tuple
    outputs: tuple
    guarded: bool = False


class Verdict(NamedTuple):
    """The step's condition: what is guarded, in any update of the same step, is left out if a condition is 0 or NaN.

    Attributes
    ----------
    condition : int
        Which number of the parameters it is.
    """

    condition: int


class Program(NamedTuple):
    """A rule's structure, without a single number in it. Hashable: rules with the same structure share kernels.

    Attributes
    ----------
    names : tuple of str
        The slots' names.
    extents : tuple of int
        The slots' extents. One of extent STEP is the same memory for every parameter.
    n_given, n_numbers : int
        How many numbers of a parameter the host gives (the outputs of the scalar code), and how many there are.
    size : int or None
        Which number is the parameter's number of elements.
    levels : tuple of tuple
        The stages, level by level, in the order in which they run.
    ends : tuple of Scalars
        What runs after everything else, also where the step's condition is false: counters.
    verdict : int or None
        At which level the step's condition is known.
    """

    names: tuple
    extents: tuple
    n_given: int
    n_numbers: int
    size: int | None
    levels: tuple
    ends: tuple = ()
    verdict: int | None = None

    @classmethod
    def of(cls, names, code, n_given=0):
        """Return a program of one pass.

        Parameters
        ----------
        names : tuple of str
        code : tuple of tuples
            As a pass's.
        n_given : int
            How many numbers the host gives.

        Returns
        -------
        Program
        """
        return cls(tuple(names), (ELEMENT,) * len(names), n_given, n_given, None, ((Pass(tuple(names), tuple(code)),),))

    def stages(self):
        """Return all stages with their levels, in the order in which they run.

        Returns
        -------
        list of (int, Pass, Combine, Scalars or Verdict)
        """
        found = [(level, stage) for level, stages in enumerate(self.levels) for stage in stages]
        return found + [(len(self.levels), end) for end in self.ends]

    def order(self):
        """Return all stages with their places in the order of a step, in which those of several programs can be sorted.

        Within a level, what the conditions are computed from comes before the conditions, and these before all else. Counters come last.

        Returns
        -------
        list of (tuple, Pass, Combine, Scalars or Verdict)
            A place is (whether it is the end, the level, the part of the level).
        """
        found = []
        for level, stage in self.stages():
            first = isinstance(stage, Combine) or (isinstance(stage, Scalars) and stage.outputs)
            part = 1 if isinstance(stage, Verdict) else 0 if first else 2
            found.append(((level == len(self.levels), level, part), stage))
        return found

    def differs(self):
        """Return whether parameters have numbers of their own, which others don't have.

        Returns
        -------
        bool
        """
        over_tensors = any(isinstance(stage, Combine) and stage.over == "tensor" for _, stage in self.stages())
        return over_tensors or self.size is not None or any(isinstance(s, Scalars) and s.extent == TENSOR for _, s in self.stages())

    def passes(self):
        """Return the passes over elements.

        Returns
        -------
        list of Pass
        """
        return [stage for _, stage in self.stages() if isinstance(stage, Pass)]

    def written(self):
        """Return which slots are stored to.

        Returns
        -------
        list of int
            Ascending.
        """
        stages = [stage for _, stage in self.stages() if isinstance(stage, (Pass, Scalars))]
        return sorted({line[1] for stage in stages for line in stage.code if line[0] == "store"})

    def bytes_moved(self, sizes):
        """Return how many bytes the passes move for each element.

        Parameters
        ----------
        sizes : sequence of int
            The bytes of an element of each slot.

        Returns
        -------
        list of int
            One number for each pass.
        """
        return [sum(sizes[line[1]] for line in one.code if line[0] in ("load", "store")) for one in self.passes()]


def extents_of(code, slots, known=()):
    """Return the extent of each line of a trace.

    Parameters
    ----------
    code : sequence of tuples
    slots : sequence of int
        The slots' extents.
    known : sequence of int
        The extents of the first lines.

    Returns
    -------
    list of int
    """
    extents = [*known]
    for line in code[len(extents) :]:
        if line[0] in ("load", "store"):
            extents.append(slots[line[1]])
        elif line[0] in ("size", "reduce"):
            extents.append(STEP if line[2:3] == ("step",) else TENSOR)
        else:
            extents.append(functools.reduce(operator.or_, (extents[operand] for operand in operands_of(line)), STEP))
    return extents


def operands_of(line):
    """Return the positions of the values that a line of a trace is computed from."""
    op, *rest = line
    if op in LEAVES:
        return []
    return rest[1:2] if op == "store" else rest[2:] if op == "reduce" else rest


def _values(line):
    """Return the operands of a line of a stage."""
    op, *rest = line
    return [] if op in LEAVES else rest[1:2] if op in ("store", "round") else rest

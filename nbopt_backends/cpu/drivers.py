"""What runs a step on the CPU: one call from Python into compiled code, which goes through all stages.

The two functions here never change, so they are built of LLVM's instructions at once: Numba's own work in
Python takes 0.7 s for them, LLVM a few milliseconds. What the stages do is compiled apart, where a step has
such a stage, and reached by address: see `chunks` and `ends` in this folder.
"""

import functools

from llvmlite import ir
from numba.core.cgutils import alloca_once_value, for_range

from nbopt_backends.cpu.objects import built, called_from_python

#: A stage is a record of int64[FIELDS]: 0 whether it is left out once the step's condition is false; 1
#: whether it is a pass; 2 the address of ``void function(argument, entry, step)``; 3 the argument; 4 the
#: address of the first entry; 5 the bytes from one entry to the next; 6 how many there are.
FIELDS = 7

#: Bytes from one thread's share to the next: two cache lines, which threads would take from each other.
SHARE = 128

_WORD, _NOTHING = ir.IntType(64), ir.VoidType()


@functools.cache
def drivers():
    """Return `run_stages` as a Python function, and the address of `take`."""
    module = ir.Module("nbopt_drivers")
    _run_stages(module)
    _take(module)
    run_stages, take = built(str(module), "run_stages", "take")
    return called_from_python("run_stages", run_stages), take


def _run_stages(module):
    """Build what runs the stages of a step, one after the other. Python calls it with five ints.

    - `threads`: how many share a stage.
    - `parallel`: if these are several, the address of int64[2]: those of Numba's ``parallel_for`` and of
      `take`.
    - `stages`, `count`: the address of int64[count, FIELDS].
    - `step`: that of int64[3]: the seed, the update count, and whether the step is taken, which a stage may
      change.

    It returns how many passes ran.
    """
    builder, (_, arguments, _) = _begun(module, "run_stages", 3, _WORD)
    threads, parallel, stages, count, step = (
        _python(builder, "PyLong_AsLongLong", _WORD, _at(builder, arguments, number)) for number in range(5)
    )
    interpreter = _python(builder, "PyEval_SaveThread", _WORD)
    passes = alloca_once_value(builder, _WORD(0))
    # int64[5]: the first share, how many there are, the bytes from one to the next, a stage, and the step.
    # Then the shares.
    memory = builder.alloca(ir.IntType(8), builder.mul(builder.add(threads, _WORD(1)), _WORD(SHARE)))
    memory.align = SHARE
    memory = builder.ptrtoint(memory, _WORD)
    shares = builder.add(memory, _WORD(SHARE))
    for number, value in ((0, shares), (1, threads), (2, _WORD(SHARE)), (4, step)):
        _put(builder, memory, number, value)
    with for_range(builder, count) as each:
        stage = builder.add(stages, builder.mul(each.index, _WORD(8 * FIELDS)))
        free, taken = (
            _is(builder, "==", _at(builder, stage, 0), 0),
            _is(builder, "!=", _at(builder, step, 2), 0),
        )
        with builder.if_then(builder.or_(free, taken)):
            builder.store(builder.add(builder.load(passes), _at(builder, stage, 1)), passes)
            entries = _at(builder, stage, 6)
            alone = builder.or_(_is(builder, "==", threads, 1), _is(builder, "==", entries, 1))
            with builder.if_else(alone) as (serial, shared):
                with serial, for_range(builder, entries) as one:  # wakes no thread
                    _run_entry(builder, stage, one.index, step)
                with shared:
                    _put(builder, memory, 3, stage)
                    with for_range(builder, threads) as one:
                        share = builder.add(shares, builder.mul(one.index, _WORD(SHARE)))
                        after = builder.mul(entries, builder.add(one.index, _WORD(1)))
                        _put(builder, share, 0, builder.udiv(builder.mul(entries, one.index), threads))
                        _put(builder, share, 1, builder.udiv(after, threads))
                    # As NumPy calls the inner loop of a ufunc: with the addresses of one array's first
                    # element, of how many elements there are, and of the bytes from one to the next.
                    places = [builder.add(memory, _WORD(8 * number)) for number in range(3)]
                    given = [_at(builder, parallel, 1), *places, memory, _WORD(0), _WORD(1), threads]
                    _call(builder, _at(builder, parallel, 0), given)
    _python(builder, "PyEval_RestoreThread", _NOTHING, interpreter)
    builder.ret(_python(builder, "PyLong_FromLongLong", _WORD, builder.load(passes)))


def _take(module):
    """Build what takes entries until none are left: of a thread's own share first, then of the others'.

    A share is int64[2], the next entry and the one after the last, in the order of memory. A thread that
    comes late, or gets no processor for a while, finds its share done by others. It is called like the inner
    loop of a ufunc, over the shares, and works on from the first that it is given.
    """
    builder, (own, _, _, work) = _begun(module, "take", 4, _NOTHING)
    shares, threads, _, stage, step = (_at(builder, work, number) for number in range(5))
    thread = builder.udiv(builder.sub(_at(builder, own, 0), shares), _WORD(SHARE))
    with for_range(builder, threads) as each:
        number = builder.urem(builder.add(thread, each.index), threads)
        share = builder.add(shares, builder.mul(number, _WORD(SHARE)))
        again = builder.append_basic_block("again")
        builder.branch(again)
        builder.position_at_end(again)
        entry = builder.atomic_rmw("add", _pointer(builder, share), _WORD(1), "monotonic")
        with builder.if_then(builder.icmp_signed("<", entry, _at(builder, share, 1))):
            _run_entry(builder, stage, entry, step)
            builder.branch(again)
    builder.ret_void()


def _run_entry(builder, stage, number, step):
    entry = builder.add(_at(builder, stage, 4), builder.mul(number, _at(builder, stage, 5)))
    _call(builder, _at(builder, stage, 2), [_at(builder, stage, 3), entry, step])


def _begun(module, name, arity, result):
    """Return a builder of a new function of int64, and its arguments."""
    function = ir.Function(module, ir.FunctionType(result, [_WORD] * arity), name)
    return ir.IRBuilder(function.append_basic_block("entry")), function.args


def _pointer(builder, address):
    return builder.inttoptr(address, _WORD.as_pointer())


def _at(builder, address, number):
    return builder.load(builder.gep(_pointer(builder, address), [_WORD(number)]))


def _put(builder, address, number, value):
    builder.store(value, builder.gep(_pointer(builder, address), [_WORD(number)]))


def _is(builder, comparison, value, number):
    return builder.icmp_signed(comparison, value, _WORD(number))


def _call(builder, address, arguments):
    kind = ir.FunctionType(_NOTHING, [_WORD] * len(arguments))
    builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


def _python(builder, name, result, *arguments):
    """Call a function of Python's C API. Objects and the states of threads are int64."""
    kind = ir.FunctionType(result, [_WORD] * len(arguments))
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)

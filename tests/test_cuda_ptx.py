"""The CUDA kernels as PTX, which is compiled without a GPU.

What ptxas is given decides whether results can be the CPU's bits, and how fast it is.
"""

import functools
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from device_checks import Careful, Lamb
from device_slices import RULES
from helpers import OPTIMIZERS, thorough_but

import nbopt

if importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
    pytest.skip(
        'needs numba-cuda and the CUDA toolkit\'s wheels: pip install "nbopt[cuda13]"',
        allow_module_level=True,
    )
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "asv_bench"))
import machine_code

from nbopt.language.lines import STEP
from nbopt.language.ops import PRIMITIVES
from nbopt.language.program import Program
from nbopt.language.stages import Combine, Scalars
from nbopt_backends.cuda import toolchain
from nbopt_backends.cuda.closing import Closing
from nbopt_backends.cuda.dialects import DIALECT, FAST
from nbopt_backends.cuda.fused import parts_of
from nbopt_backends.cuda.kernels import N_ARGUMENTS, update_text
from nbopt_backends.cuda.numbers import ends_text
from nbopt_backends.cuda.reductions import sums_text
from nbopt_backends.cuda.slices import slices_text
from nbopt_backends.cuda.small import Small, alone, named_text, scalars_text
from nbopt_backends.cuda.walks import kind_of
from nbopt_backends.meaning.slices import walk_of

CAPABILITIES = [(8, 0), (9, 0)]
CLIPPED = {"gradient_clip_value": 0.1, "param_clip_value": 1.0, "gradient_clip_norm": 1.0}


def skipping():
    """RMSProp whose pass is left out where the norm of the gradients is not finite."""
    optimizer = nbopt.RMSProp()
    optimizer.skip_nonfinite = True
    return optimizer


PROGRAMS = {
    **OPTIMIZERS, "rmsprop clipped": lambda: nbopt.RMSProp(**CLIPPED), "lamb": Lamb, "careful": Careful,
    "skipping": skipping,
}  # fmt: skip

# Of whose instructions the others' kernels are made too, the ones with the most values alive among them. (The
# bits of all are tested in test_gpu.py.)
USUAL = (
    "adadelta",
    "shift_adamax",
    "rmsprop_centered",
    "nadam",
    "asgd",
    "rmsprop clipped",
    "lamb",
    "careful",
    "skipping",
)

every_program = pytest.mark.parametrize("name", thorough_but(PROGRAMS, *USUAL))
every_capability = pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")


@pytest.fixture(scope="module", autouse=True)
def _each_kernel_is_compiled_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "ltoir", functools.cache(toolchain.ltoir))
        yield


@functools.cache
def ptx_of(text, name, count, capability, stem="cuda_kernel", **options):
    return toolchain.linked(toolchain.ltoir(text, stem, name, count, capability, **options), capability)


@functools.cache
def program_of(name):
    return machine_code.program_of(PROGRAMS[name])


def pass_of(name, number=-1):
    """A pass of an optimizer; the last one, which stores the parameter."""
    return program_of(name).passes()[number]


def kernel(name, dtype, capability, dialect=DIALECT, strided=False, number=-1, **options):
    stage = pass_of(name, number)
    text = update_text(stage, dialect, (dtype,) * len(stage.names), dtype, strided)
    return ptx_of(text, "update", N_ARGUMENTS, capability, **options)


def instructions(ptx):
    """The PTX's instructions, without predicates and operands: ``add.rn.f32``, ``ld.global.v4.f32``, ..."""
    return re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_:]+)+)\s", ptx, re.MULTILINE)


def arithmetic(ptx):
    """Those that compute floating-point values."""
    names = r"(add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt|ex2|lg2|sin|cos|tanh)(\.\w+)*\.f\d\d"
    return [instruction for instruction in instructions(ptx) if re.match(names, instruction)]


def assert_exact(ptx):
    found = arithmetic(ptx)
    assert found
    for instruction in found:
        assert re.fullmatch(r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)", instruction), instruction
    for word in (".ftz", ".approx", "fma.", "mad.rn", ".full"):
        assert word not in ptx
    assert "call" not in ptx


def assert_float32_but_for_numbers(ptx, *others):
    """The numbers of a parameter are float64, and rounded once each.

    So are a tile's results, which are widened. Only the `others` compute in float64.
    """
    double = {i for i in instructions(ptx) if ".f64" in i}
    moved = {"ld.global.f64", "cvt.rn.f32.f64", "cvt.f64.f32", "st.global.f64", "mov.f64"}
    assert double <= moved | {*others}


def assert_no_local_memory(ptx):
    assert ".local" not in ptx and "__local_depot" not in ptx


@every_capability
@every_program
@pytest.mark.covering
def test_float32_kernels_are_exact_and_load_and_store_16_bytes_with_a_scalar_tail(name, capability):
    """Every operation rounds by itself, none is of float64, and no value lives in local memory."""
    ptx, stage = kernel(name, "float32", capability), pass_of(name)
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    assert_float32_but_for_numbers(ptx)
    found = instructions(ptx)
    assert found.count("ld.global.v4.f32") >= len(stage.read()) and "ld.global.f32" in found
    assert found.count("st.global.v4.f32") >= len(stage.written()) and "st.global.f32" in found
    assert not [
        i
        for i in found
        if i.startswith(("ld.", "st.")) and not i.startswith(("ld.global.", "st.global.", "ld.param."))
    ]


@pytest.mark.parametrize(
    "dtype, arithmetic, kept",
    [("float32", "float32", 0), ("float64", "float64", 0), ("bfloat16", "float32", 7)],
)
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", ["rmsprop clipped", "lamb", "careful"])
@pytest.mark.covering
@pytest.mark.rest("rmsprop clipped-*")
def test_passes_that_reduce_are_exact(name, strided, dtype, arithmetic, kept):
    """Every operation rounds by itself.

    Lanes are folded in shared memory, no value lives in local memory, and none is spilled.
    """
    stage = pass_of(name, 0)
    assert stage.reductions
    bits = tuple(kept * (slot in stage.written()) for slot in range(len(stage.names)))
    shared = not program_of(name).differs()
    text = update_text(stage, DIALECT, (dtype,) * len(stage.names), arithmetic, strided, bits, shared)
    ptx = ptx_of(text, "update", N_ARGUMENTS, (9, 0))
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    if dtype != "float64":
        folds = "add.rn.f64", "max.f64", "min.f64", "setp.nan.f64", "selp.f64"  # of the tiles' results
        assert_float32_but_for_numbers(ptx, *folds)
    found = instructions(ptx)
    assert (
        "bar.sync" in ptx
        and f"st.shared.f{arithmetic[-2:]}" in found
        and found.count("st.global.f64") >= len(stage.reductions)
    )
    assert strided or any(i.startswith("ld.global.v") for i in found)
    compiled = machine_code.Kernel(text)
    assert not compiled.spilled
    assert compiled.registers <= (64 if dtype == "float32" and not strided else 128)


SLICED = {
    "rows and bands": ("factored", (300, 70), -1, ("rows", "bands")),
    "each column of a row": ("covers", (5, 4, 33), -1, ("rows", "rows", "bands", "each")),
    "a slice": ("factored", (5, 4, 33), 7, ("rows",)),
    "guarded": ("centred", (300, 70), -1, ()),
}


def sliced(name, dtype="float32", kept=0, strided=False):
    """The last pass with these folds: its text, and that text's PTX.

    It is of the optimizer's parameters with a shape, over an extent.
    """
    rule, shape, extent, kinds = SLICED[name]
    with nbopt.use_backend("reference") as be:
        layer = nbopt.Parameters((np.zeros(shape, np.float32), np.zeros(shape, np.float32)))
        program = RULES[rule]().updates(be, [layer], 0)[0].program
    stage = [
        one
        for one in program.loops()
        if one.extent == extent and len(one.folds) == len(kinds) and one.has_slices(program.extents)
    ][-1]
    walk = walk_of(shape, program.extents, extent)
    own = len(program.names) - program.workspace
    arithmetic = "float64" if dtype == "float64" else "float32"
    dtypes = (dtype,) * own + (arithmetic,) * program.workspace
    bits = tuple(kept * (slot in stage.written() and slot < own) for slot in range(len(program.names)))
    assert tuple(kind_of(walk, program.extents.index(fold[2])) for fold in stage.folds) == kinds
    text = slices_text(
        stage, program.extents, kinds, DIALECT, dtypes, arithmetic, strided, bits, not program.differs()
    )
    return stage, text, ptx_of(text, "update", N_ARGUMENTS, (9, 0))


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("dtype", "kept"), [("float32", 0), ("float64", 0), ("bfloat16", 7)])
@pytest.mark.parametrize("name", SLICED)
@pytest.mark.covering
def test_passes_with_slices_are_exact(name, dtype, kept, strided):
    """Every operation rounds by itself.

    Rows are folded in shared memory, no value lives in local memory, and none is spilled.
    """
    stage, text, ptx = sliced(name, dtype, kept, strided)
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    if dtype != "float64":
        assert_float32_but_for_numbers(ptx)
    found = instructions(ptx)
    bits = "64" if dtype == "float64" else "32"
    assert (
        ("bar.sync" in ptx)
        == (f"st.shared.f{bits}" in found)
        == bool(stage.reductions or "rows" in SLICED[name][-1])
    )
    compiled = machine_code.Kernel(text)
    assert not compiled.spilled
    assert compiled.registers <= 128


def test_neighbouring_threads_load_neighbouring_elements():
    """A lane's place in its row is added to the row's address, times the size of an element.

    A warp's loads are as many bytes in one piece.
    """
    _, text, ptx = sliced("rows and bands")
    assert (
        "column = tile * 128 + (lane & ((1 << shift) - 1))" in text
        and "i = (run * last + begin + start) * columns + column" in text
    )
    assert "load_float32(p1, i, 1)" in text and "ld.global.f32" in ptx


def test_passes_with_slices_that_may_be_skipped_leave_before_they_load_anything():
    _, _, ptx = sliced("guarded")
    loads = [i for i in instructions(ptx) if i.startswith("ld.global")]
    assert loads[0] == "ld.global.u64" and "ld.global.f32" in loads


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("copy_numbers", 5),
        ("fold_rows", 8),
        ("join_slices", 3),
        ("judge", 3),
        ("advance", 1),
    ],
)
def test_ends_of_reductions_are_exact(name, count):
    """Sums of float64 round one by one."""
    text = ends_text(DIALECT) if name == "join_slices" else alone(named_text(name), name, DIALECT)
    ptx = ptx_of(text, name, count, (9, 0), "cuda_numbers")
    assert_no_local_memory(ptx)
    if name in ("fold_rows", "join_slices"):
        assert_exact(ptx)


@pytest.mark.parametrize("name", ["rmsprop clipped", "skipping"])
def test_what_ends_in_a_pass_is_exact(name):
    """The last block folds, computes numbers and judges. It waits for the others by one atomic operation."""
    program = program_of(name)
    norm, (combine, scalars, *verdict) = program.passes()[0], program.levels[1][:-1]
    assert isinstance(combine, Combine) and isinstance(scalars, Scalars)
    parts = [Small(named_text("fold_rows"), "fold_rows", (0,) * 8, 1)]
    parts.append(Small(scalars_text(scalars, DIALECT, {}), "run", (0,) * 7, 1))
    parts += [Small(named_text("judge"), "judge", (0,) * 3, 1) for _ in verdict]
    dtypes = ("float32",) * len(norm.names)
    text = update_text(norm, DIALECT, dtypes, "float32", closing=Closing((), parts_of(parts)))
    ptx = ptx_of(text, "update", N_ARGUMENTS, (9, 0))
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    assert {"atom.acq_rel.gpu.global.add.u64", "sqrt.rn.f64", "ld.global.v4.f32"} <= set(instructions(ptx))
    assert instructions(ptx).count("atom.acq_rel.gpu.global.add.u64") == 1
    compiled = machine_code.Kernel(text)
    assert not compiled.spilled
    assert compiled.registers <= 48  # a multiprocessor has five blocks of 256 threads then


def test_scalar_code_is_exact():
    """Powers by whole numbers are multiplications; a product and a sum stay two operations."""
    code = (
        ("load", 0),
        ("multiply", 0, ~0),
        ("add", 1, ~1),
        ("power", 2, ~1),
        ("sqrt", 3),
        ("divide", 4, 2),
        ("store", 0, 5, 0),
    )
    ptx = ptx_of(
        alone(scalars_text(Scalars(STEP, code, ((5, 2),), True), DIALECT, {0: "float32"}), "run", DIALECT),
        "run",
        7,
        (9, 0),
        "cuda_numbers",
    )
    assert {"mul.rn.f64", "add.rn.f64", "sqrt.rn.f64", "div.rn.f64", "st.global.f32"} <= set(
        instructions(ptx)
    )
    program = next(stage for _, stage in program_of("rmsprop clipped").stages() if isinstance(stage, Scalars))
    text = alone(scalars_text(program, DIALECT, {}), "run", DIALECT)
    assert_exact(ptx_of(text, "run", 7, (9, 0), "cuda_numbers"))


@pytest.mark.parametrize("name", ["rmsprop", "shift_adamax"])
@pytest.mark.rest("shift_adamax")
def test_float64_kernels_are_exact_too(name):
    ptx = kernel(name, "float64", (9, 0))
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    assert "ld.global.v2.f64" in ptx and "st.global.v2.f64" in ptx


def test_mixed_kernels_load_16_bytes_of_each_slot():
    ptx = ptx_of(
        update_text(pass_of("rmsprop"), DIALECT, ("float32", "float32", "float64"), "float64"),
        "update",
        N_ARGUMENTS,
        (9, 0),
    )
    assert "ld.global.v4.f32" in ptx and "ld.global.v2.f64" in ptx and "st.global.v2.f64" in ptx
    assert_exact(ptx)
    assert_no_local_memory(ptx)


@every_capability
@pytest.mark.rest("sm_90")
def test_strided_kernels_are_exact(capability):
    ptx = kernel("rmsprop", "float32", capability, strided=True)
    assert_exact(ptx)
    assert_no_local_memory(ptx)


def sixteen_bits(name, dtypes, kept, capability, strided=False):
    return ptx_of(
        update_text(pass_of(name), DIALECT, dtypes, "float32", strided, kept),
        "update",
        N_ARGUMENTS,
        capability,
    )


@every_capability
@pytest.mark.parametrize(
    "kept",
    [(0, 0, 0), (7, 0, 0), (7, 0, 7)],
    ids=["nearest", "stochastic parameters", "stochastic parameters and states"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.covering
def test_16_bit_kernels_are_exact_and_load_vectors(dtype, kept, capability):
    ptx = sixteen_bits("rmsprop", (dtype,) * 3, kept, capability)
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    assert_float32_but_for_numbers(ptx)
    words = 2 if any(kept) else 4  # four elements at a time take half of the registers for random bits
    assert instructions(ptx).count(f"ld.global.v{words}.u32") >= 3
    assert instructions(ptx).count(f"st.global.v{words}.u32") >= 2


@every_capability
@pytest.mark.rest("sm_90")
def test_kernels_that_round_float32_states_of_16_bit_parameters(capability):
    ptx = sixteen_bits("adam", ("bfloat16", "bfloat16", "float32", "float32"), (7, 0, 10, 0), capability)
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    assert_float32_but_for_numbers(ptx)
    assert instructions(ptx).count("ld.global.v4.f32") >= 4 and "ld.global.v2.u32" in ptx


def test_strided_kernels_round_without_local_memory():
    ptx = sixteen_bits("rmsprop", ("bfloat16", "bfloat16", "float32"), (7, 0, 0), (9, 0), strided=True)
    assert_exact(ptx)
    assert_no_local_memory(ptx)


@every_capability
@pytest.mark.parametrize("name", ["shift_adamax", "rmsprop clipped"])
@pytest.mark.covering
def test_maximum_and_minimum_keep_nan(name, capability):
    """PTX's max and min drop NaN.

    Behind each stands a choice of the sum, which is NaN, where the operands are unordered.
    """
    ptx = kernel(name, "float32", capability)
    extremes = re.findall(r"(?:max|min)\.f32\s+(%f\d+), (%f\d+), (%f\d+|0f[0-9A-F]+);", ptx)
    assert extremes
    for found, a, b in extremes:
        unordered = re.findall(rf"setp\.nan\.f32\s+(%p\d+), (?:{a}, {b}|{b}, {a});", ptx)
        sums = re.findall(rf"add\.rn\.f32\s+(%f\d+), (?:{a}, {b}|{b}, {a});", ptx)
        chosen = re.findall(rf"selp\.f32\s+%f\d+, (%f\d+), {found}, (%p\d+);", ptx)
        assert any(nan in sums and predicate in unordered for nan, predicate in chosen)


@pytest.mark.parametrize("kept", [(0, 0, 0), (8, 0, 8)], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.covering
def test_kernels_that_may_be_skipped_leave_before_they_load_anything(strided, kept):
    ptx = ptx_of(
        update_text(pass_of("skipping"), DIALECT, ("float32",) * 3, "float32", strided, kept),
        "update",
        N_ARGUMENTS,
        (9, 0),
    )
    assert_exact(ptx)
    loads = [i for i in instructions(ptx) if i.startswith("ld.global")]
    assert loads[0] == "ld.global.u64" and "ld.global.f32" in loads


@pytest.mark.parametrize(
    ("name", "arguments", "wide"),
    [("row_sums", 6, "cvt st"), ("fold_sums", 4, "add cvt ld st"), ("extremes", 5, "")],
)
def test_reductions_compile(name, arguments, wide):
    """Only what is above the tiles of a sum is float64."""
    ptx = ptx_of(sums_text(DIALECT, "float32"), name, arguments, (9, 0), "cuda_sums")
    assert {i.split(".")[0] for i in instructions(ptx) if ".f64" in i} == set(wide.split())
    assert_no_local_memory(ptx)


@pytest.mark.parametrize(
    "op", ["exp", "exp2", "log", "log2", "tanh", "power", "ldexp", "finite", "sgn", "rint", "where"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.covering
def test_every_other_op_compiles(op, dtype):
    arity = PRIMITIVES[op].arity
    loads = tuple(("load", k + 1) for k in range(arity))
    program = Program.of(
        ("out", "x1", "x2", "x3")[: arity + 1], (*loads, (op, *range(arity)), ("store", 0, arity, 0))
    )
    ptx = ptx_of(
        update_text(program.passes()[0], DIALECT, (dtype,) * (arity + 1), dtype),
        "update",
        N_ARGUMENTS,
        (8, 0),
    )
    assert f"st.global.v{16 // np.dtype(dtype).itemsize}.f{8 * np.dtype(dtype).itemsize}" in ptx


STORED = [("float32", 0), ("float64", 0), ("bfloat16", 0), ("bfloat16", 7), ("float16", 0), ("float16", 10)]


@pytest.mark.parametrize("dtype, kept", STORED, ids=lambda value: str(value))
@pytest.mark.parametrize(
    "name", thorough_but(OPTIMIZERS, "adadelta", "shift_adamax", "rmsprop_centered", "radam", "yogi", "rprop")
)
@pytest.mark.covering
@pytest.mark.rest("rmsprop_centered-*", "yogi-*", "rprop-*")
def test_no_storage_makes_a_kernel_inexact_or_spill_registers_and_float32_needs_few(name, dtype, kept):
    """What ptxas says of the code for compute capability 9.0.

    64 registers leave room for half of the threads that a multiprocessor can have.
    """
    stage = pass_of(name)
    bits = tuple(kept * (slot in stage.written()) for slot in range(len(stage.names)))
    text = update_text(
        stage, DIALECT, (dtype,) * len(stage.names), "float64" if dtype == "float64" else "float32", kept=bits
    )
    ptx = ptx_of(text, "update", N_ARGUMENTS, (9, 0))
    assert_exact(ptx)
    assert_no_local_memory(ptx)
    kernel = machine_code.Kernel(text)
    assert not kernel.spilled
    assert dtype != "float32" or kernel.registers <= 64
    assert (name, dtype) != ("rmsprop", "float32") or kernel.registers <= 32


@pytest.mark.parametrize(
    "row, moves", [("rmsprop, float32", 20), ("rmsprop, bfloat16, states float32, stochastic", 14)]
)
@pytest.mark.rest("*, stochastic-14")
def test_where_the_batch_size_is_a_power_of_two_no_element_is_divided_by_it(row, moves):
    kernel, moved, width = machine_code.kernel_of(*machine_code.ROWS[row])
    assert moved == moves
    try:
        disassembled = machine_code.disassembled(kernel.code)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    kinds = [line.split()[0] for line in machine_code.way_through_the_loop(*disassembled)]
    # They are RMSProp's own division and square root, one of each.
    assert kinds.count("MUFU.RCP") == kinds.count("MUFU.RSQ") == width


def test_fast_math_may_contract_and_approximate():
    """The other tests would pass if nothing they look for could ever be in a kernel."""
    ptx = kernel("rmsprop", "float32", (9, 0), FAST, fast_math=True)
    assert "fma.rn" in ptx and ".approx" in ptx
    with pytest.raises(AssertionError):
        assert_exact(ptx)


def test_infix_arithmetic_would_be_contracted():
    """Why the dialect spells every operation as a call."""
    ptx = kernel("rmsprop", "float32", (9, 0), FAST)
    with pytest.raises(AssertionError):
        assert_exact(ptx)

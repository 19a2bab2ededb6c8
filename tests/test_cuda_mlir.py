"""The CUDA kernels as numba-cuda-mlir compiles them, as PTX: needs no GPU.

NBOPT_CUDA_COMPILER=numba-cuda-mlir chooses it where both toolchains are installed.
"""

import re

import pytest
from device_checks import Careful, Lamb
from helpers import OPTIMIZERS, thorough_but

import nbopt
from nbopt_backends.cuda import toolchain

if not toolchain.MLIR or toolchain.cuda is None:
    pytest.skip(
        'needs numba-cuda-mlir (pip install "numba-cuda-mlir[cu13]==0.6.*"), and no numba-cuda or '
        "NBOPT_CUDA_COMPILER=numba-cuda-mlir",
        allow_module_level=True,
    )

import numpy as np

from nbopt_backends.cuda.closing import Closing
from nbopt_backends.cuda.dialects import MLIR_DIALECT, MLIR_FAST
from nbopt_backends.cuda.fused import parts_of
from nbopt_backends.cuda.kernels import N_ARGUMENTS, update_text
from nbopt_backends.cuda.numbers import ends_text
from nbopt_backends.cuda.reductions import sums_text
from nbopt_backends.cuda.small import Small, alone, named_text, scalars_text

PROGRAMS = {**OPTIMIZERS, "lamb": Lamb, "careful": Careful}


def passes_of(name):
    with nbopt.use_backend("reference") as be:
        layer = nbopt.Parameters((np.zeros(3, np.float32), np.zeros(3, np.float32)))
        return PROGRAMS[name]().updates(be, [layer], 0)[0].program.passes()


def ptx_of(stage, dtype, kept=0, dialect=MLIR_DIALECT, **options):
    bits = tuple(kept * (slot in stage.written()) for slot in range(len(stage.names)))
    arithmetic = "float64" if dtype == "float64" else "float32"
    text = update_text(stage, dialect, (dtype,) * len(stage.names), arithmetic, kept=bits)
    return toolchain.ptx(text, "cuda_kernel", "update", N_ARGUMENTS, (9, 0), **options)


def assert_exact(ptx):
    """Every operation rounds by itself, none is contracted, nothing is called or lies in local memory."""
    names = r"^\s*(?:@!?%p\d+\s+)?((?:add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt|ex2|lg2)(?:\.\w+)*\.f\d\d)\s"
    found = re.findall(names, ptx, re.MULTILINE)
    for instruction in found:
        assert re.fullmatch(r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)", instruction), instruction
    for word in (".ftz", ".approx", "fma.", "mad.rn", ".full", "call", ".local"):
        assert word not in ptx
    return found


@pytest.mark.parametrize("name", thorough_but(PROGRAMS, "rmsprop", "radam", "lamb", "careful"))
def test_float32(name):
    """Each pass is exact, and loads and stores 16 bytes."""
    for stage in passes_of(name):
        ptx = ptx_of(stage, "float32")
        assert assert_exact(ptx)
        assert ptx.count("ld.global.v4.f32") >= len(stage.read())
        assert ptx.count("st.global.v4.f32") >= len(stage.written())


@pytest.mark.parametrize(("dtype", "kept"), [("float64", 0), ("bfloat16", 7), ("float16", 10)])
def test_storage(dtype, kept):
    """So is each storage, rounded stochastically as well."""
    (stage,) = passes_of("rmsprop")
    assert assert_exact(ptx_of(stage, dtype, kept))


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        (alone(named_text("fold_rows"), "fold_rows", MLIR_DIALECT), "fold_rows", 8),
        (ends_text(MLIR_DIALECT), "join_slices", 3),
        (sums_text(MLIR_DIALECT, "float32"), "row_sums", 6),
    ],
    ids=["fold_rows", "join_slices", "row_sums"],
)
def test_ends(text, name, count):
    """So are the ends of reductions, and sums outside of steps."""
    assert assert_exact(toolchain.ptx(text, "cuda_numbers", name, count, (9, 0)))


def test_a_pass_with_what_follows():
    """So is a pass whose last block computes the factor of the norm clip."""
    with nbopt.use_backend("reference") as be:
        layer = nbopt.Parameters((np.zeros(3, np.float32), np.zeros(3, np.float32)))
        program = nbopt.RMSProp(gradient_clip_norm=1.0).updates(be, [layer], 0)[0].program
    norm, (_, scalars, *_) = program.passes()[0], program.levels[1]
    parts = (
        Small(named_text("fold_rows"), "fold_rows", (0,) * 8, 1),
        Small(scalars_text(scalars, MLIR_DIALECT, {}), "run", (0,) * 7, 1),
    )
    closing = Closing((), parts_of(parts))
    text = update_text(norm, MLIR_DIALECT, ("float32",) * len(norm.names), "float32", closing=closing)
    ptx = toolchain.ptx(text, "cuda_kernel", "update", N_ARGUMENTS, (9, 0))
    assert {"sqrt.rn.f64", "div.rn.f64"} <= set(assert_exact(ptx))
    assert ptx.count("atom.acq_rel.gpu.global.add.u64") == 1


def test_fast_math():
    """The tests above would pass if nothing they look for could ever be in a kernel."""
    with pytest.raises(AssertionError):
        assert_exact(ptx_of(passes_of("rmsprop")[0], "float32", dialect=MLIR_FAST, fast_math=True))

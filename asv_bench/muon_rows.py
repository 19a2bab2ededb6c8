"""What compare.py measures of Muon: beside the bare products that it is made of, and beside PyTorch's."""

from benchmarks import Job
from benchmarks.matrices import SHAPES, products_step, torch_muon_step
from benchmarks.side_by_side import ratio
from rows import row, side_by_side

import nbopt


def beside_products(shapes, rounds, bar, **others):
    """Measure steps over some shapes, beside the products alone and other contenders."""
    steps = {
        "nbopt": lambda: Job(nbopt.Muon(), shapes).step,
        "products": lambda: products_step(shapes),
        **others,
    }
    result = side_by_side(steps, rounds, matrices=len(shapes))
    result.check("nbopt / products", ratio(result.seconds["nbopt"], result.seconds["products"]), "x", bar)
    return result


@row("muon-small", "Muon, 126 matrices of 64 x 64: over the bare batched products, and beside PyTorch's")
def small(scale):
    shapes = SHAPES["small"][:6] if scale.quick else SHAPES["small"]
    result = beside_products(shapes, scale.few, "<= 1.5", PyTorch=lambda: torch_muon_step(shapes))
    result.faster("PyTorch", ">= 20")
    return result


@row(
    "muon-hidden",
    "Muon, six hidden matrices of GPT-2: over the bare batched products",
    chosen_by_name_only=True,
)
def hidden(scale):
    """PyTorch's is left out: its step takes minutes where products in bfloat16 are emulated."""
    shapes = [(48, 16), (16, 48)] if scale.quick else SHAPES["hidden"]
    return beside_products(shapes, 3, "<= 0.85")

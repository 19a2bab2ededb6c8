"""Muon over matrices: its step beside the bare products that it is made of, and beside PyTorch's."""

import numpy as np

import nbopt

from . import Job, pairs, requires_torch
from .side_by_side import measure, ratio

ROUNDS = 5
SHAPES = {
    "hidden": [(2304, 768), (768, 768), (3072, 768), (768, 3072), (3072, 768), (768, 3072)],
    "small": [(64, 64)] * 126,
}


def products_step(shapes, steps=5):
    """Return a function that does the products of the plain iteration, batched by shape, and nothing else."""
    sides = [tuple(sorted(shape)) for shape in shapes]
    batches = []
    for m, n in dict.fromkeys(sides):
        k = sides.count((m, n))
        made = [np.full(shape, 0.01, np.float32) for shape in ((k, m, n), (k, n, m), (k, m, m), (k, m, m))]
        batches.append((*made, np.empty((k, m, m), np.float32), np.empty((k, m, n), np.float32)))

    def step():
        for x, transposed, gram, square, small, large in batches:
            for _ in range(steps):
                np.matmul(x, transposed, out=small)
                np.matmul(gram, square, out=small)
                np.matmul(gram, x, out=large)

    return step


def torch_muon_step(shapes):
    """PyTorch's Muon, whose products are in bfloat16."""
    torch = requires_torch()
    if not hasattr(torch.optim, "Muon"):
        raise NotImplementedError("torch.optim.Muon came with PyTorch 2.9")
    parameters = []
    for param, grad in pairs(shapes):
        parameters.append(torch.nn.Parameter(torch.from_numpy(param).clone()))
        parameters[-1].grad = torch.from_numpy(grad).clone()
    return torch.optim.Muon(parameters).step


class Muon:
    """A whole step: momentum, orthogonalisation, weight decay."""

    params = list(SHAPES)
    param_names = ["shapes"]
    timeout = 600

    def setup(self, shapes):
        self.shapes = SHAPES[shapes]
        self.job = Job(nbopt.Muon(), self.shapes, backend="cpu")

    def time_step(self, shapes):
        self.job.step()

    def track_over_products(self, shapes):
        seconds = measure({"nbopt": self.job.step, "products": products_step(self.shapes)}, ROUNDS)
        return ratio(seconds["nbopt"], seconds["products"])[0]

    track_over_products.unit = "of the time of the plain batched products"

    def track_torch_over_nbopt(self, shapes):
        if shapes == "hidden":
            raise NotImplementedError("a step of PyTorch's takes minutes where bfloat16 is emulated")
        seconds = measure({"nbopt": self.job.step, "torch": torch_muon_step(self.shapes)}, ROUNDS)
        return ratio(seconds["torch"], seconds["nbopt"])[0]

    track_torch_over_nbopt.unit = "times as long as nbopt's"

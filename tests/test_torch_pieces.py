"""Steps that are run piece by piece: the same bits as at once, whatever a rule reduces over."""

import pytest

torch = pytest.importorskip("torch")

import nbopt.torch  # noqa: E402

SIZES = [(300, 20), (7,), (1,), (40, 40), (5000,), (0,), (3, 4, 5)]


class Pieces:
    """Deals the parameters out to some pieces, which it runs backwards."""

    def __init__(self, params, count):
        self.count, self.places = count, {param: place % count for place, param in enumerate(params)}
        self.together, self.taken = [], []

    dealt = None

    def of(self, param):
        return self.places[param]

    def begin(self, updates):
        return self.turns

    def turns(self, together):
        self.together.append(together)
        if together:
            yield None
        for piece in reversed(range(self.count)):
            self.taken.append((yield piece))


def trained(kind, pieces, groups=1, bad=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    params = [torch.randn(shape).to(dtype).requires_grad_() for shape in SIZES]
    cut = [{"params": params[:3]}, {"params": params[3:]}] if groups > 1 else params
    optimizer = kind(cut, seed=3, backend="cpu", **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    if pieces:
        optimizer._pieces = Pieces(params, pieces)
    for step in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        if step == 1:
            params[3].grad = None
        if step == bad:
            params[4].grad[3] = float("inf")
        optimizer.step()
    return params, optimizer


CASES = {
    "adamw": (nbopt.torch.AdamW, {}, False),
    "clip": (
        nbopt.torch.AdamW,
        {"gradient_clip_norm": 1.0, "skip_nonfinite": True, "bad": 2, "groups": 2},
        True,
    ),
    "prodigy": (nbopt.torch.Prodigy, {"groups": 2}, True),
    "schedulefree": (nbopt.torch.ScheduleFreeSGD, {"groups": 2}, False),
    "masters": (
        nbopt.torch.AdamW,
        {"dtype": torch.bfloat16, "master_weights": True, "stochastic_round": True, "ema_decay": 0.9},
        False,
    ),
    "axes": (nbopt.torch.SM3, {"dtype": torch.bfloat16, "stochastic_round": True, "groups": 2}, False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.rest("schedulefree")
def test_pieces_are_the_step(name):
    """Parameters, states, counts and norms are those of the step at once, in any number of pieces."""
    kind, options, together = CASES[name]
    params, plain = trained(kind, 0, **options)
    expected = plain.state_dict()
    for count in (1, 3, 7):
        others, optimizer = trained(kind, count, **options)
        assert all(map(torch.equal, params, others))
        found = optimizer.state_dict()
        for index, states in expected["state"].items():
            assert all(torch.equal(states[state], found["state"][index][state]) for state in states)
        assert found["rng_state"] == expected["rng_state"] and found["skipped"] == expected["skipped"]
        assert str(found["param_groups"]) == str(expected["param_groups"])
        assert optimizer.grad_norm == plain.grad_norm
        assert set(optimizer._pieces.together) == {together}
        skipped = [not taken for taken in optimizer._pieces.taken]
        assert sum(skipped) == count * ("bad" in options)


def test_matrices_are_refused():
    """A function of whole matrices is refused before anything changes."""
    matrix = torch.ones(4, 4).requires_grad_()
    optimizer = nbopt.torch.Muon([matrix], backend="cpu")
    optimizer._pieces = Pieces([matrix], 1)
    matrix.grad = torch.ones(4, 4)
    with pytest.raises(nbopt.errors.ArgumentError, match="whole matrices"):
        optimizer.step()
    assert torch.equal(matrix, torch.ones(4, 4)) and not optimizer.state


def test_steady_pieces_make_no_plans():
    """The second step finds the plans of all pieces again, of however many there are."""
    torch.manual_seed(0)
    params = [torch.randn(5).requires_grad_() for _ in range(40)]
    optimizer = nbopt.torch.AdamW(params, backend="cpu")
    optimizer._pieces = Pieces(params, 20)
    plans = []
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(5)
        optimizer.step()
        plans.append([share._plans[0].number for share in optimizer._groups[0].shares.values()])
    assert len(plans[0]) == 20 and plans[0] == plans[1] == plans[2]

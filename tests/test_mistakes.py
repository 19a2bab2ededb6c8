"""Typical mistakes of a new user, as they are typed: an error names the line to type, or it works.

Mistakes inside of a rule stand in test_messages.py, test_traps.py and test_bad_rules.py, arrays that can't be
used in test_bad_input.py.
"""

import importlib.util
import warnings

import numpy as np
import pytest

import nbopt

BEFORE = """
import numpy as np
import nbopt

w, dw = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
b, db = np.ones(2, np.float32), np.ones(2, np.float32)
layer, optimizer = nbopt.Parameters((w, dw), (b, db), name="linear"), nbopt.RMSProp()
"""
IN_TORCH = """
import torch
import nbopt.torch

model = torch.nn.Linear(3, 2)
model(torch.ones(4, 3)).sum().backward()
"""

# What is typed -> what the error says.
NATIVE = {
    # arrays and layers
    "optimizer.optimize([nbopt.Parameters(([1.0, 2.0], [0.1, 0.1]))], 0)": "numpy.array(x, 'float32')",
    "nbopt.Parameters(w, dw)": "Parameters((W, dW), (b, db))",
    "nbopt.Parameters([(w, dw), (b, db)])": "Parameters(*pairs)",
    'nbopt.Parameters({"w": (w, dw)})': "Parameters(*pairs.values())",
    "optimizer.optimize([nbopt.Parameters((w, db))], 0)": "has shape (3, 2) and its gradient (2,)",
    "optimizer.optimize(layer, 0)": "write [layer]",
    "optimizer.optimize(0, [layer])": "optimizer.optimize([layer], epoch)",
    "optimizer.optimize([layer])": "missing 1 required positional argument: 'epoch'",
    "optimizer.optimize([w], 0)": "nbopt.Parameters((W, dW), ...)",
    "optimizer.optimize([(w, dw), (b, db)], 0)": "nbopt.Parameters((W, dW), ...)",
    "layer.grad = [dw, db]": "write layer.grads = [dW, db]",
    "layer.grads[0] = dw": "write layer.set_grad(index, dW)",
    "layer.grads = dw": "gradients come as a list, such as [x]",
    "layer.set_grad(2, dw)": "has 2 parameters, counted from 0",
    # PyTorch's habits
    "optimizer.step()": "optimizer.optimize(layers, epoch)",
    "optimizer.zero_grad()": "dW[:] = ...",
    'optimizer.param_groups[0]["lr"] = 0.1': "optimizer.learning_rate = 1e-4",
    'nbopt.SGD([{"params": []}], lr=0.1)': "write nbopt.GradientDescentMomentum",
    "nbopt.optim.Adam()": "write nbopt.torch",
    "nbopt.adamw()": "write nbopt.AdamW",
    "optimizer.gradient_clip = 1.0": "optimizer.gradient_clip_norm = ...",
    "optimizer.train()": "nbopt.ScheduleFreeAdamW",
    "optimizer.states = {}": "states is a method of RMSProp",
    "nbopt.Sgd()": "write nbopt.GradientDescentMomentum",
    "nbopt.Parameter((w, dw))": "write nbopt.Parameters",
    # optimizers and backends
    'optimizer.be = nbopt.backends.new_backend("reference")': "Write nbopt.set_backend(backend)",
    "backend.batch_size = 64": "write be.bsz = 64",
    "backend.num_threads = 2": "write nbopt.gen_backend('reference', num_threads=2)",
    "nbopt.gen_backend('reference', bsz=64)": "Write batch_size= in place of bsz=",
    "nbopt.set_backend('reference', thread=2)": "Write num_threads= in place of thread=",
    "nbopt.gen_backend('reference', batch_size='64')": "must be an int from 1 on, not '64'",
    "nbopt.Adam(learning_rate='0.1')": "learning_rate must be a finite number from 0 on, not '0.1'",
    'nbopt.MultiOptimizer({"default": nbopt.RMSProp})': "write RMSProp()",
    'nbopt.MultiOptimizer({"linear": nbopt.RMSProp()})': 'with the key "default"',
    'nbopt.Adam(schedule="cosine")': "such as nbopt.Schedule(10, 0.5)",
    'nbopt.gen_backend("CPU")': 'Write "cpu"',
    'nbopt.gen_backend("refrence")': 'Write "reference"',
    # rules
    """
class Own(nbopt.Optimizer):
    def rule(self, param, grad):
        param[:] = param - 0.1 * grad

Own().optimize([layer], 0)
""": "Write def rule(self, step, param, grad):",
    """
class Own(nbopt.Optimizer):
    def rule(self, step, param, grad, momentum):
        momentum[:] = momentum + grad
        param[:] = param - 0.1 * momentum

Own().optimize([layer], 0)
""": 'state_names = ("momentum",)',
    """
class Own(nbopt.Optimizer):
    state_names = ("momentum",)

    def rule(self, step, param, grad):
        param[:] = param - 0.1 * grad

Own().optimize([layer], 0)
""": "Write def rule(self, step, param, grad, momentum):",
    """
class Own(nbopt.Optimizer):
    def states(self):
        return {"momentum": nbopt.State()}

    def rule(self, step, param, grad, momentum):
        momentum[:] = momentum + grad
        param[:] = param - 0.1 * momentum

Own().optimize([layer], 0)
""": "Write def states(self, shape):",
    """
class Own(nbopt.Optimizer):
    def rule(self, step, param, grad):
        param[:] = param - 0.1 * self.be.sqrtt(grad)

Own().optimize([layer], 0)
""": "Write be.sqrt(x)",
    """
class Own(nbopt.Optimizer):
    def rule(self, step, param, grad):
        param[:] = param - 0.1 * self.be.sign(grad)

Own().optimize([layer], 0)
""": "Write be.sgn(x)",
    """
class Own(nbopt.Optimizer):
    def rule(self, step, param, grad):
        param[:] = param - 0.1 * self.be.sum(grad, dim=0)

Own().optimize([layer], 0)
""": "Write axis= in place of dim=",
    """
class Own(nbopt.Optimizer):
    learning_rate = 0.1

    def rule(self, step, param, grad):
        param[:] = param - self.lr * grad

Own().optimize([layer], 0)
""": "a rule has step.lr",
    """
class Own(nbopt.Optimizer):
    def rule(self, step, param, grad):
        return param - 0.1 * grad

Own().optimize([layer], 0)
""": "In place of return ..., write param[:] = ...",
    # files
    'nbopt.save("run.safetensors", [layer], optimizer)': "write nbopt.save(path, optimizer, layers)",
    'nbopt.save(optimizer, [layer], "run.safetensors")': "the path comes first",
    'nbopt.save("run.safetensors", optimizer, layer)': "write [layer]",
    'optimizer.save("run.safetensors")': 'nbopt.save("run.safetensors", optimizer, layers)',
    'nbopt.load("nowhere.safetensors", optimizer, [layer])': "nowhere.safetensors",
    'np.savez("run.npz", w); nbopt.load("run.npz", optimizer, [layer])': "what nbopt.save has written",
    'nbopt.save("a.safetensors", optimizer, [layer]); nbopt.load("a.safetensors", nbopt.Adam(), [layer])': (
        "saved with nbopt.RMSProp, and the optimizer here is nbopt.Adam"
    ),
    "nbopt.explain([layer], optimizer)": "nbopt.explain(optimizer, layers)",
}
MADE = "optimizer = nbopt.torch.AdamW(model.parameters()); "
TORCH = {
    "nbopt.torch.AdamW(model)": "write nbopt.torch.AdamW(model.parameters(), ...)",
    "nbopt.torch.AdamW(model.parameters)": "write nbopt.torch.AdamW(model.parameters(), ...)",
    "nbopt.torch.AdamW(model.state_dict())": "write nbopt.torch.AdamW(model.parameters(), ...)",
    "given = model.parameters(); print(len(list(given))); nbopt.torch.AdamW(given)": (
        "write nbopt.torch.AdamW(model.parameters(), ...)"
    ),
    "nbopt.torch.AdamW(model.parameters(), lr='0.1')": "lr must be a number, not '0.1'",
    "nbopt.torch.AdamW(model.parameters(), max_norm=1.0)": "Write gradient_clip_norm= in place of max_norm=",
    "adam = torch.optim.Adam(model.parameters()); adam.step()\n"
    "nbopt.torch.Lion(model.parameters()).load_state_dict(adam.state_dict())": (
        "the state dict is not of Lion: a group of it has no step"
    ),
    "nbopt.torch.LAMB(model)": "write nbopt.torch.LAMB(model.parameters(), ...)",
    "nbopt.torch.AdamW(model.parameters(), learning_rate=0.1, wdecay=0.1)": (
        "Write lr= in place of learning_rate=. Write weight_decay= in place of wdecay=."
    ),
    "nbopt.torch.AdamW(model.parameters(), stochastic_rounding=True)": "Write stochastic_round=",
    "nbopt.torch.AdamW(model.parameters(), 0.1, 0.9, 0.99)": "write betas=(0.9, 0.999)",
    "nbopt.torch.AdamW(model.parameters(), schedule=nbopt.Schedule(10, 0.5))": "torch.optim.lr_scheduler",
    "nbopt.torch.AdamW([{'params': model.parameters(), 'learning_rate': 0.1}])": "write 'lr'",
    MADE + "optimizer.param_groups[0]['learning_rate'] = 0.1; optimizer.step()": "write 'lr'",
    MADE + "optimizer.param_groups[0]['lr'] = '0.1'; optimizer.step()": "must be a number, not '0.1'",
    MADE + "optimizer.optimize([layer], 0)": "write optimizer.step()",
    MADE + "print(optimizer.lr)": 'optimizer.param_groups[0]["lr"]',
    MADE + "nbopt.save('run.safetensors', optimizer, [model])": "torch.save(optimizer.state_dict(), path)",
    MADE + "optimizer.step(); torch.save(optimizer.state_dict(), 'a'); nbopt.load('a', optimizer, [])": (
        "optimizer.load_state_dict(torch.load(path))"
    ),
    MADE + "optimizer.step(); nbopt.torch.SGD(model.parameters()).load_state_dict(optimizer.state_dict())": (
        "the state dict is not of SGD"
    ),
    "nbopt.torch.RMSProp(model.parameters())": "write nbopt.torch.RMSprop",
    "nbopt.torch.Optimizer(model.parameters(), lr=0.1)": "nbopt.RMSProp(learning_rate=...)",
    "nbopt.torch.Optimizer(model.parameters(), nbopt.AdamW)": "write AdamW()",
    "nbopt.torch.Optimizer(model.parameters(), torch.optim.AdamW)": "write nbopt.torch.AdamW(model",
    "optimizer.optimize([model], 0)": "nbopt.torch.AdamW(model.parameters())",
    "optimizer.optimize(model.parameters(), 0)": "nbopt.torch.AdamW(model.parameters())",
    "nbopt.Parameters(model)": "Parameters(*[(p, p.grad) for p in model.parameters()])",
    "optimizer.optimize([nbopt.Parameters((torch.ones(3), torch.ones(3, device='meta')))], 0)": "x.cpu()",
}


def typed(text, before, tmp_path, monkeypatch):
    """Run what a user types, in an empty directory; return the names that it made."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(before, names)
    names["backend"] = nbopt.get_backend()
    exec(text, names)
    return names


@pytest.mark.parametrize("text", [*NATIVE, *TORCH], ids=lambda text: " ".join(text.split())[:60])
def test_mistake(text, tmp_path, monkeypatch):
    """The message has the line to type."""
    before, words = BEFORE, NATIVE.get(text) or TORCH[text]
    if text in TORCH:
        if importlib.util.find_spec("torch") is None:
            pytest.skip("needs PyTorch")
        before += IN_TORCH
    with nbopt.use_backend("reference"), pytest.raises(Exception) as caught:
        typed(text, before, tmp_path, monkeypatch)
    assert words in str(caught.value)


# What looks like a mistake, and works.
WORKS = {
    "nothing was generated": "nbopt.set_backend('reference'); optimizer.optimize([layer], 0)",
    "a tuple of layers": "optimizer.optimize((layer,), 0)",
    "other gradients": "layer.grads = [dw + 1, db + 1]; optimizer.optimize([layer], 0)",
    "no gradient": "layer.grads = [dw, None]; optimizer.optimize([layer], 0)",
    "a rate of NumPy's": "optimizer.learning_rate = np.float64(0.1); optimizer.optimize([layer], 0)",
    "neon's order": "nbopt.gen_backend('reference', 7, np.float32, 4); optimizer.optimize([layer], 0)",
    "nothing called": """
class Own(nbopt.Optimizer):
    def __init__(self, rate):  # and no super().__init__()
        self.rate = rate

    def rule(self, step, param, grad):
        param[:] = param - self.rate * grad

Own(0.1).optimize([layer], 0)
""",
}


@pytest.mark.parametrize("name", WORKS)
def test_no_mistake(name, tmp_path, monkeypatch):
    """It trains."""
    with nbopt.use_backend("reference"):
        names = typed(WORKS[name], BEFORE, tmp_path, monkeypatch)
    assert (names["w"] < 1).all()


@pytest.mark.parametrize("word", ["lr", "learning_rate"])
def test_attribute_for_all_groups(word):
    """To set a rate of a drop-in class does nothing, as in PyTorch, and the warning says what does."""
    torch = pytest.importorskip("torch")
    import nbopt.torch

    optimizer = nbopt.torch.AdamW([torch.nn.Parameter(torch.ones(3))])
    with pytest.warns(UserWarning, match=r'group in optimizer\.param_groups: group\["lr"\] = \.\.\.'):
        setattr(optimizer, word, 0.1)

    class Own(nbopt.torch.AdamW):
        """A class of a user's may have what it likes."""

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setattr(Own([torch.nn.Parameter(torch.ones(3))]), word, 0.1)


def test_a_missing_attribute_of_a_property():
    """The error of a property's own code is not hidden."""

    class Own(nbopt.RMSProp):
        @property
        def twice(self):
            return self.frobnicated * 2

    with pytest.raises(AttributeError, match="frobnicated"):
        Own().twice  # noqa: B018


def test_an_error_of_a_rule_is_its_own():
    """A TypeError inside of a rule is no matter of its arguments."""

    class Own(nbopt.Optimizer):
        def rule(self, step, param, grad):
            len(7)

    layer = nbopt.Parameters((np.ones(3, np.float32), np.ones(3, np.float32)))
    with nbopt.use_backend("reference"), pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        Own().optimize([layer], 0)


def test_entries_are_tuples():
    """What layers give can be compared, copied and pickled as tuples are."""
    import copy
    import pickle

    w, dw = np.ones(3, np.float32), np.ones(3, np.float32)
    grads = nbopt.Parameters((w, dw)).grads
    assert grads == (dw,)
    assert type(pickle.loads(pickle.dumps(grads))) is type(copy.deepcopy(grads)) is tuple

"""The arguments of constructors: names, order, defaults, and what type checkers know of them."""

import ast
import copy
import inspect
import os
import pathlib
import pickle

import pytest
import stub

import nbopt
from nbopt import errors, optimizers
from nbopt.arrays import methods

FIRST = "stochastic_round=False, learning_rate"
MOMENTS = "beta_1=0.9, beta_2=0.999, epsilon=1e-08"
DECAY = "wdecay=0.0, decoupled=True"
AVERAGE = "wdecay=0.0, average_power=0.0, weight_lr_power=2.0"
ORTHOGONAL = "ns_steps=5, ns_coefficients=(3.4445, -4.775, 2.0315), flatten=None, method=None, workspace=None"
CLIPS = "gradient_clip_norm=None, gradient_clip_value=None, param_clip_value=None"
MODIFIERS = "ema_decay=None, centralize=False, adaptive_clip=None, param_decay=None, mirror_dtype=None"
LAST = f"{CLIPS}, name=None, *, schedule=None, {MODIFIERS}, state_dtype=None"
CAUTIOUS = f"{LAST}, cautious=False"

#: Every class with its arguments. Programs pass them by position, so they stay as they are.
SIGNATURES = {
    "ADOPT": f"{FIRST}=0.001, beta_1=0.9, beta_2=0.9999, epsilon=1e-06, {DECAY}, clip_exponent=0.25, {LAST}",
    "AMSGrad": f"{FIRST}=0.001, {MOMENTS}, {LAST}",
    "ASGD": f"{FIRST}=0.01, lambd=0.0001, alpha=0.75, t0=1000000.0, {LAST}",
    "AdaBelief": f"{FIRST}=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-16, epsilon_root=1e-16, {LAST}",
    "AdaMax": f"{FIRST}=0.002, {MOMENTS}, {LAST}",
    "Adafactor": (
        f"{FIRST}=0.01, beta_2_decay=-0.8, epsilon_1={2.0**-23}, epsilon_2=0.001, clip_threshold=1.0, "
        f"wdecay=0.0, {CAUTIOUS}"
    ),
    "Adadelta": (
        "stochastic_round=False, decay=0.95, epsilon=1e-06, param_clip_value=None, name=None, *, "
        f"gradient_clip_value=None, {MODIFIERS}, state_dtype=None"
    ),
    "AdEMAMix": f"{FIRST}=0.001, {MOMENTS}, {DECAY}, beta_3=0.9999, alpha=5.0, warmup=None, {CAUTIOUS}",
    "Adagrad": f"{FIRST}=0.01, epsilon=1e-06, {LAST}",
    "Adam": (
        f"{FIRST}=0.001, {MOMENTS}, {CLIPS}, name='adam', *, schedule=None, {MODIFIERS}, "
        "state_dtype=None, cautious=False"
    ),
    "AdamW": f"{FIRST}=0.001, {MOMENTS}, wdecay=0.01, {CAUTIOUS}",
    "AdaMuon": (
        f"{FIRST}=0.02, momentum_coef=0.9, wdecay=0.0, {ORTHOGONAL}, beta_2=0.95, epsilon=1e-10,"
        f" signs=False, nesterov=False, {LAST}"
    ),
    "Adan": (
        f"{FIRST}=0.001, beta_1=0.98, beta_2=0.92, beta_3=0.99, epsilon=1e-08, wdecay=0.0, decoupled=False, "
        f"{LAST}"
    ),
    "CAME": (
        f"{FIRST}=0.0002, beta_1=0.9, beta_2=0.999, beta_3=0.9999, epsilon_1=1e-30, epsilon_2=1e-16, "
        f"clip_threshold=1.0, {DECAY}, {LAST}"
    ),
    "DAdaptAdam": (
        f"{FIRST}=1.0, {MOMENTS}, {DECAY}, bias_correction=False, d0=1e-06, growth_rate=None, {LAST}"
    ),
    "GradientDescentMomentum": (
        "learning_rate, momentum_coef, stochastic_round=False, wdecay=0.0, "
        f"{CLIPS}, name=None, schedule=None, nesterov=False, *, {MODIFIERS}, state_dtype=None"
    ),
    "LAMB": (
        f"{FIRST}=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-06, {DECAY}, grad_averaging=True, {CAUTIOUS}"
    ),
    "LARS": (
        f"{FIRST}=0.001, momentum_coef=0.9, wdecay=0.0, dampening=0.0, trust_coefficient=0.001, "
        f"nesterov=False, {LAST}"
    ),
    "Lion": f"{FIRST}=0.0001, beta_1=0.9, beta_2=0.99, wdecay=0.001, {CAUTIOUS}",
    "MARS": (
        f"{FIRST}=0.003, beta_1=0.95, beta_2=0.99, epsilon=1e-08, wdecay=0.0, gamma=0.025, "
        f"optimize_1d=False, rate_1d=1.0, beta_1_1d=0.9, beta_2_1d=0.95, wdecay_1d=0.1, {CAUTIOUS}"
    ),
    "MultiOptimizer": "optimizer_mapping, name=None",
    "Muon": (
        f"{FIRST}=0.001, momentum_coef=0.95, wdecay=0.1, {ORTHOGONAL}, nesterov=True, epsilon=1e-07,"
        f" adjust_lr_fn=None, heads=1, split=None, axis=-2, {LAST}"
    ),
    "NorMuon": (
        f"{FIRST}=0.02, momentum_coef=0.95, wdecay=0.0, {ORTHOGONAL}, beta_2=0.95, nesterov=True,"
        f" epsilon=1e-10, adjust_lr_fn=None, {LAST}"
    ),
    "NAdam": f"{FIRST}=0.002, {MOMENTS}, momentum_decay=0.004, {LAST}",
    "Optimizer": "name=None, state_dtype=None",
    "Prodigy": (
        f"{FIRST}=1.0, {MOMENTS}, {DECAY}, bias_correction=False, d0=1e-06, growth_rate=None, d_coef=1.0, "
        f"beta_3=None, safeguard_warmup=False, {LAST}"
    ),
    "RAdam": f"{FIRST}=0.001, {MOMENTS}, {LAST}",
    "RMSProp": (
        f"stochastic_round=False, decay_rate=0.95, learning_rate=0.002, epsilon=1e-06, {CLIPS}, name=None, "
        f"schedule=None, *, centered=False, momentum_coef=0.0, {MODIFIERS}, state_dtype=None"
    ),
    "Rprop": f"{FIRST}=0.01, eta_minus=0.5, eta_plus=1.2, step_min=1e-06, step_max=50.0, {LAST}",
    "SM3": f"{FIRST}=0.1, momentum_coef=0.0, beta=0.0, epsilon=1e-30, {LAST}",
    "ScheduleFreeAdamW": f"{FIRST}=0.0025, {MOMENTS}, warmup=None, {AVERAGE}, {LAST}",
    "ScheduleFreeRAdam": f"{FIRST}=0.0025, {MOMENTS}, silent_sgd_phase=True, {AVERAGE}, {LAST}",
    "ScheduleFreeSGD": f"{FIRST}=1.0, momentum_coef=0.9, warmup=None, {AVERAGE}, {LAST}",
    "ShiftAdaMax": (
        f"{FIRST}=0.002, {MOMENTS}, schedule=None, name='ShiftAdaMax', *, {MODIFIERS}, state_dtype=None"
    ),
    "StableAdamW": (
        f"{FIRST}=0.001, beta_1=0.9, beta_2=0.99, epsilon=1e-08, wdecay=0.01, decoupled=True, {LAST}"
    ),
    "Tiger": f"{FIRST}=0.001, beta=0.965, wdecay=0.01, decoupled=True, {LAST}",
    "Yogi": f"{FIRST}=0.01, beta_1=0.9, beta_2=0.999, epsilon=0.001, initial_accumulator_value=1e-06, {LAST}",
}
CLASSES = {
    kind.__name__: kind
    for kind in optimizers.every()
    if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer)
}
#: Those whose arguments are numbers and flags.
PLAIN = sorted(set(CLASSES) - {"MultiOptimizer", "Optimizer"})


def made(name, **options):
    """An optimizer, with the arguments that it can't do without."""
    needed = {"learning_rate": 0.1, "momentum_coef": 0.9} if name == "GradientDescentMomentum" else {}
    return CLASSES[name](**{**needed, **options})


def signature(kind):
    """The arguments of a class, without their types."""
    found = inspect.signature(kind)
    arguments = [argument.replace(annotation=found.empty) for argument in found.parameters.values()]
    return str(inspect.Signature(arguments))


def test_signatures():
    """Names, order, defaults and keyword-only parts are those that programs rely on."""
    found = {name: signature(kind) for name, kind in CLASSES.items()}
    assert found == {name: f"({arguments})" for name, arguments in SIGNATURES.items()}


@pytest.mark.parametrize("name", PLAIN)
def test_arguments_become_attributes(name):
    """Every argument is found again under its name, by position and by name, and after a change."""
    parameters = inspect.signature(CLASSES[name]).parameters
    given = {key: 0.25 for key, parameter in parameters.items() if isinstance(parameter.default, float)}
    given |= {
        key: not parameter.default
        for key, parameter in parameters.items()
        if isinstance(parameter.default, bool)
    }
    given |= {"beta_2_decay": -0.5, "clip_threshold": 2.0} if name == "Adafactor" else {}
    given |= {"eta_plus": 2.0} if name == "Rprop" else {}
    given |= {"learning_rate": 0.5, "momentum_coef": 0.75} if name == "GradientDescentMomentum" else {}
    given |= {key: value for key, value in {
        "name": "n", "warmup": 20.0, "ema_decay": 0.75, "growth_rate": 1.5, "beta_3": 0.5,
        "adaptive_clip": 0.5, "param_decay": 0.5, "mirror_dtype": "bfloat16",
        "gradient_clip_norm": 2.0, "gradient_clip_value": 3.0, "param_clip_value": 4.0,
        "schedule": nbopt.Schedule(2, 0.5), "state_dtype": "float64", "ns_steps": 3,
        "ns_coefficients": (2.0, -1.5, 0.5), "flatten": True, "method": "gram", "workspace": 1000,
        "adjust_lr_fn": "original", "heads": 2, "split": (2, 4), "axis": -1,
    }.items() if key in parameters}  # fmt: skip
    assert given.keys() == parameters.keys()
    by_name = CLASSES[name](**given)
    positional = [
        key for key, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    by_position = CLASSES[name](
        *(given[key] for key in positional),
        **{key: given[key] for key in parameters if key not in positional},
    )
    for optimizer in (by_name, by_position, pickle.loads(pickle.dumps(by_name)), copy.deepcopy(by_name)):
        assert {key: getattr(optimizer, key) for key in parameters} == given
        assert {key: optimizer.__dict__[key] for key in parameters} == given  # where reads cost least
        assert optimizer == by_name
        config = optimizer.get_description()["config"]
        described = {key: [*value] if type(value) is tuple else value for key, value in given.items()}
        assert list(config) == list(parameters)
        assert {**config, "schedule": None} == {**described, "schedule": None}
        assert nbopt.NervanaObject.gen_class(optimizer.get_description()) == optimizer


@pytest.mark.parametrize("name", PLAIN)
def test_wrong_calls(name):
    """Python's own errors name the class and the argument."""
    parameters = inspect.signature(CLASSES[name]).parameters
    positional = [
        parameter for parameter in parameters.values() if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) takes .* positional arguments"):
        CLASSES[name](*[False] * (len(positional) + 1))
    with pytest.raises(
        TypeError, match=rf"^{name}\.__init__\(\) got multiple values for argument '{positional[0].name}'"
    ):
        CLASSES[name](False, **{positional[0].name: False})
    with pytest.raises(
        errors.UnknownArgumentError,
        match=rf"^{name} takes no beta_7\. .*Its arguments are {positional[0].name}, ",
    ):
        made(name, beta_7=1.0)
    if name == "GradientDescentMomentum":
        missing = (
            r"__init__\(\) missing 2 required positional arguments: 'learning_rate' and 'momentum_coef'$"
        )
        with pytest.raises(TypeError, match=missing):
            nbopt.GradientDescentMomentum()


@pytest.mark.parametrize("name", PLAIN)
def test_values_are_checked(name):
    """A number that makes no sense is refused by the constructor and by an assignment, in the same words."""
    optimizer = made(name)
    for key, parameter in inspect.signature(CLASSES[name]).parameters.items():
        if key in ("name", "state_dtype"):
            continue
        wrong = (
            1.0
            if key == "beta_2_decay"
            else "yes"
            if isinstance(parameter.default, (bool, type(None)))
            else -1.0
        )
        with pytest.raises(errors.ArgumentError, match=rf"^{key}( must be|: ).*") as assigned:
            setattr(optimizer, key, wrong)
        with pytest.raises(errors.ArgumentError) as constructed:
            made(name, **{key: wrong})
        assert str(constructed.value) == str(assigned.value)


def test_type_checkers_see_the_ops():
    """The file that editors and type checkers read has the ops that there are."""
    path = pathlib.Path(methods.__file__).with_suffix(".pyi")
    if os.environ.get("NBOPT_UPDATE_GOLDEN") == "1":
        path.write_text(stub.ops_text())
    assert path.read_text() == stub.ops_text(), (
        "run NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py, and read what it wrote"
    )


def test_type_checkers_see_the_constructors():
    """The file that editors and type checkers read has the arguments that there are."""
    path = pathlib.Path(optimizers.__file__).with_suffix(".pyi")
    if os.environ.get("NBOPT_UPDATE_GOLDEN") == "1":
        path.write_text(stub.text())
    assert path.read_text() == stub.text(), (
        "run NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py, and read what it wrote"
    )
    classes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    for name in PLAIN:
        (constructor,) = (node for node in classes[name].body if isinstance(node, ast.FunctionDef))
        for argument in [*constructor.args.args, *constructor.args.kwonlyargs]:
            argument.annotation = None
        assert ast.unparse(constructor.args) == ast.unparse(
            ast.parse(f"lambda self, {SIGNATURES[name]}: 0").body[0].value.args
        )

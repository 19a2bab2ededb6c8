# Written from the declarations of hyper-parameters (see hyper.py):
# NBOPT_UPDATE_GOLDEN=1 pytest tests/test_signatures.py

from typing import Any, Protocol, SupportsFloat

from nbopt.layers import get_param_list as get_param_list
from nbopt.optimizers.adapted import AdaptedOptimizer as AdaptedOptimizer
from nbopt.optimizers.base import Optimizer as Optimizer
from nbopt.optimizers.decay import DecayOptimizer as DecayOptimizer
from nbopt.optimizers.matrix import MatrixOptimizer as MatrixOptimizer
from nbopt.optimizers.moments import MomentOptimizer as MomentOptimizer
from nbopt.optimizers.multi import MultiOptimizer as MultiOptimizer
from nbopt.optimizers.schedulefree import ScheduleFreeOptimizer as ScheduleFreeOptimizer
from nbopt.optimizers.states import State as State
from nbopt.optimizers.step import Step as Step
from nbopt.optimizers.velocity import VelocityOptimizer as VelocityOptimizer

__all__ = [
    "ADOPT",
    "ASGD",
    "CAME",
    "LAMB",
    "LARS",
    "MARS",
    "SM3",
    "AMSGrad",
    "AdEMAMix",
    "AdaBelief",
    "AdaMax",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adan",
    "DAdaptAdam",
    "GradientDescentMomentum",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "NAdam",
    "NorMuon",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSProp",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "ShiftAdaMax",
    "StableAdamW",
    "State",
    "Step",
    "Tiger",
    "Yogi",
    "get_param_list",
]

def every() -> list[Any]: ...

class _Schedule(Protocol):
    def get_learning_rate(self, learning_rate: Any, epoch: Any, /) -> Any: ...

class ADOPT(DecayOptimizer):
    """Adam that divides each gradient by a mean square of the gradients before it."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any
    clip_exponent: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.9999,
        epsilon: SupportsFloat = 1e-06,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        clip_exponent: SupportsFloat | None = 0.25,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class ASGD(Optimizer):
    """Stochastic gradient descent that also keeps the average of its parameters."""

    lambd: Any
    alpha: Any
    t0: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.01,
        lambd: SupportsFloat = 0.0001,
        alpha: SupportsFloat = 0.75,
        t0: SupportsFloat = 1000000.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class CAME(DecayOptimizer):
    """Adafactor with a mean of its steps, which is trusted less where steps have differed from it."""

    beta_1: Any
    beta_2: Any
    beta_3: Any
    epsilon_1: Any
    epsilon_2: Any
    clip_threshold: Any
    wdecay: Any
    decoupled: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.0002,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        beta_3: SupportsFloat = 0.9999,
        epsilon_1: SupportsFloat = 1e-30,
        epsilon_2: SupportsFloat = 1e-16,
        clip_threshold: SupportsFloat = 1.0,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class LAMB(DecayOptimizer):
    """Adam whose step is as long for each parameter as the parameter itself, times the learning rate."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any
    grad_averaging: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-06,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        grad_averaging: bool = True,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class LARS(VelocityOptimizer):
    """Gradient descent with momentum, and a rate of its own for each matrix."""

    momentum_coef: Any
    wdecay: Any
    dampening: Any
    trust_coefficient: Any
    nesterov: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        momentum_coef: SupportsFloat = 0.9,
        wdecay: SupportsFloat = 0.0,
        dampening: SupportsFloat = 0.0,
        trust_coefficient: SupportsFloat = 0.001,
        nesterov: bool = False,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class MARS(Optimizer):
    """AdamW of gradients that are corrected by their change since the step before."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    gamma: Any
    optimize_1d: Any
    rate_1d: Any
    beta_1_1d: Any
    beta_2_1d: Any
    wdecay_1d: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.003,
        beta_1: SupportsFloat = 0.95,
        beta_2: SupportsFloat = 0.99,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.0,
        gamma: SupportsFloat = 0.025,
        optimize_1d: bool = False,
        rate_1d: SupportsFloat = 1.0,
        beta_1_1d: SupportsFloat = 0.9,
        beta_2_1d: SupportsFloat = 0.95,
        wdecay_1d: SupportsFloat = 0.1,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class SM3(Optimizer):
    """Adagrad whose sums of squares are kept for each row and each column alone."""

    momentum_coef: Any
    beta: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.1,
        momentum_coef: SupportsFloat = 0.0,
        beta: SupportsFloat = 0.0,
        epsilon: SupportsFloat = 1e-30,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class AMSGrad(MomentOptimizer):
    """Adam that divides by the largest mean square so far, so that a rare large gradient is not forgotten."""

    beta_1: Any
    beta_2: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class AdEMAMix(DecayOptimizer):
    """AdamW with a second, very slow mean of gradients beside the first one."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any
    beta_3: Any
    alpha: Any
    warmup: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        beta_3: SupportsFloat = 0.9999,
        alpha: SupportsFloat = 5.0,
        warmup: SupportsFloat | None = None,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class AdaBelief(MomentOptimizer):
    """Adam that divides by how far gradients stray from their mean, in place of how large they are."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    epsilon_root: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-16,
        epsilon_root: SupportsFloat = 1e-16,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class AdaMax(MomentOptimizer):
    """Adam that divides by a decaying maximum of the gradients' magnitudes in place of a root mean square."""

    beta_1: Any
    beta_2: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.002,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class AdaMuon(MatrixOptimizer):
    """Muon whose steps are divided by the root of a mean square of each element, as in Adam."""

    momentum_coef: Any
    wdecay: Any
    ns_steps: Any
    ns_coefficients: Any
    flatten: Any
    method: Any
    workspace: Any
    beta_2: Any
    epsilon: Any
    signs: Any
    nesterov: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.02,
        momentum_coef: SupportsFloat = 0.9,
        wdecay: SupportsFloat = 0.0,
        ns_steps: SupportsFloat = 5,
        ns_coefficients: tuple[Any, ...] = (3.4445, -4.775, 2.0315),
        flatten: bool | None = None,
        method: str | None = None,
        workspace: SupportsFloat | None = None,
        beta_2: SupportsFloat = 0.95,
        epsilon: SupportsFloat = 1e-10,
        signs: bool = False,
        nesterov: bool = False,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Adadelta(Optimizer):
    """Gradient descent without a learning rate: steps are scaled by the ratio of two running mean squares."""

    decay: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        decay: SupportsFloat = 0.95,
        epsilon: SupportsFloat = 1e-06,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        gradient_clip_value: SupportsFloat | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Adafactor(Optimizer):
    """Steps along the gradient over the root of a mean square, kept for rows and columns alone."""

    beta_2_decay: Any
    epsilon_1: Any
    epsilon_2: Any
    clip_threshold: Any
    wdecay: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.01,
        beta_2_decay: SupportsFloat = -0.8,
        epsilon_1: SupportsFloat = 1.1920928955078125e-07,
        epsilon_2: SupportsFloat = 0.001,
        clip_threshold: SupportsFloat = 1.0,
        wdecay: SupportsFloat = 0.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class Adagrad(Optimizer):
    """Gradient descent with each step divided by the root of the sum of all squared gradients so far."""

    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.01,
        epsilon: SupportsFloat = 1e-06,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Adam(Optimizer):
    """Gradient descent along a running mean of gradients, in units of their running root mean square."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = 'adam',
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class AdamW(MomentOptimizer):
    """Adam with decoupled weight decay: weights shrink by the learning rate times `wdecay`."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.01,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class Adan(Optimizer):
    """Adam with Nesterov's momentum, by a running mean of the differences of successive gradients."""

    beta_1: Any
    beta_2: Any
    beta_3: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.98,
        beta_2: SupportsFloat = 0.92,
        beta_3: SupportsFloat = 0.99,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = False,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class DAdaptAdam(AdaptedOptimizer):
    """Adam that finds its learning rate by itself, from a lower bound of the distance to the solution."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any
    bias_correction: Any
    d0: Any
    growth_rate: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 1.0,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        bias_correction: bool = False,
        d0: SupportsFloat = 1e-06,
        growth_rate: SupportsFloat | None = None,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class GradientDescentMomentum(VelocityOptimizer):
    """Stochastic gradient descent with momentum, Nesterov's too."""

    momentum_coef: Any
    wdecay: Any
    nesterov: Any

    def __init__(
        self,
        learning_rate: SupportsFloat,
        momentum_coef: SupportsFloat,
        stochastic_round: bool | int = False,
        wdecay: SupportsFloat = 0.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        schedule: _Schedule | None = None,
        nesterov: bool = False,
        *,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Lion(Optimizer):
    """Steps of one size along the sign of a mixture of momentum and gradient."""

    beta_1: Any
    beta_2: Any
    wdecay: Any
    cautious: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.0001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.99,
        wdecay: SupportsFloat = 0.001,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
        cautious: bool = False,
    ) -> None: ...

class Muon(MatrixOptimizer):
    """Steps along the running mean of gradients, made orthogonal: singular values become about 1."""

    momentum_coef: Any
    wdecay: Any
    ns_steps: Any
    ns_coefficients: Any
    flatten: Any
    method: Any
    workspace: Any
    nesterov: Any
    epsilon: Any
    adjust_lr_fn: Any
    heads: Any
    split: Any
    axis: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        momentum_coef: SupportsFloat = 0.95,
        wdecay: SupportsFloat = 0.1,
        ns_steps: SupportsFloat = 5,
        ns_coefficients: tuple[Any, ...] = (3.4445, -4.775, 2.0315),
        flatten: bool | None = None,
        method: str | None = None,
        workspace: SupportsFloat | None = None,
        nesterov: bool = True,
        epsilon: SupportsFloat = 1e-07,
        adjust_lr_fn: str | None = None,
        heads: SupportsFloat = 1,
        split: tuple[Any, ...] | None = None,
        axis: SupportsFloat = -2,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class NAdam(MomentOptimizer):
    """Adam with Nesterov's momentum: the step looks ahead along the mean."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    momentum_decay: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.002,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        momentum_decay: SupportsFloat = 0.004,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class NorMuon(MatrixOptimizer):
    """Muon whose steps are divided by the root of a mean square of each row: all neurons move alike."""

    momentum_coef: Any
    wdecay: Any
    ns_steps: Any
    ns_coefficients: Any
    flatten: Any
    method: Any
    workspace: Any
    beta_2: Any
    nesterov: Any
    epsilon: Any
    adjust_lr_fn: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.02,
        momentum_coef: SupportsFloat = 0.95,
        wdecay: SupportsFloat = 0.0,
        ns_steps: SupportsFloat = 5,
        ns_coefficients: tuple[Any, ...] = (3.4445, -4.775, 2.0315),
        flatten: bool | None = None,
        method: str | None = None,
        workspace: SupportsFloat | None = None,
        beta_2: SupportsFloat = 0.95,
        nesterov: bool = True,
        epsilon: SupportsFloat = 1e-10,
        adjust_lr_fn: str | None = None,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Prodigy(AdaptedOptimizer):
    """Adam that finds its learning rate by how far the parameters have come from where they began."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any
    bias_correction: Any
    d0: Any
    growth_rate: Any
    d_coef: Any
    beta_3: Any
    safeguard_warmup: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 1.0,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.0,
        decoupled: bool = True,
        bias_correction: bool = False,
        d0: SupportsFloat = 1e-06,
        growth_rate: SupportsFloat | None = None,
        d_coef: SupportsFloat = 1.0,
        beta_3: SupportsFloat | None = None,
        safeguard_warmup: bool = False,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class RAdam(MomentOptimizer):
    """Adam that does not divide until it has seen enough gradients."""

    beta_1: Any
    beta_2: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class RMSProp(Optimizer):
    """Gradient descent with each step divided by a running root mean square of its gradients."""

    decay_rate: Any
    epsilon: Any
    centered: Any
    momentum_coef: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        decay_rate: SupportsFloat = 0.95,
        learning_rate: SupportsFloat = 0.002,
        epsilon: SupportsFloat = 1e-06,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        schedule: _Schedule | None = None,
        *,
        centered: bool = False,
        momentum_coef: SupportsFloat = 0.0,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Rprop(Optimizer):
    """Steps along the gradient's sign, of a size that each element finds for itself."""

    eta_minus: Any
    eta_plus: Any
    step_min: Any
    step_max: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.01,
        eta_minus: SupportsFloat = 0.5,
        eta_plus: SupportsFloat = 1.2,
        step_min: SupportsFloat = 1e-06,
        step_max: SupportsFloat = 50.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class ScheduleFreeAdamW(ScheduleFreeOptimizer):
    """AdamW that averages parameters in place of a schedule and of a mean of gradients."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    warmup: Any
    wdecay: Any
    average_power: Any
    weight_lr_power: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.0025,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        warmup: SupportsFloat | None = None,
        wdecay: SupportsFloat = 0.0,
        average_power: SupportsFloat = 0.0,
        weight_lr_power: SupportsFloat = 2.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class ScheduleFreeRAdam(ScheduleFreeOptimizer):
    """`ScheduleFreeAdamW` whose learning rate is rectified as in `RAdam`, so that it needs no warmup."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    silent_sgd_phase: Any
    wdecay: Any
    average_power: Any
    weight_lr_power: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.0025,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        silent_sgd_phase: bool = True,
        wdecay: SupportsFloat = 0.0,
        average_power: SupportsFloat = 0.0,
        weight_lr_power: SupportsFloat = 2.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class ScheduleFreeSGD(ScheduleFreeOptimizer):
    """Gradient descent that averages parameters in place of a schedule and of momentum."""

    momentum_coef: Any
    warmup: Any
    wdecay: Any
    average_power: Any
    weight_lr_power: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 1.0,
        momentum_coef: SupportsFloat = 0.9,
        warmup: SupportsFloat | None = None,
        wdecay: SupportsFloat = 0.0,
        average_power: SupportsFloat = 0.0,
        weight_lr_power: SupportsFloat = 2.0,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class ShiftAdaMax(Optimizer):
    """AdaMax with its multiplications replaced by shifts, for networks of binary weights."""

    beta_1: Any
    beta_2: Any
    epsilon: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.002,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 1e-08,
        schedule: _Schedule | None = None,
        name: str | None = 'ShiftAdaMax',
        *,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class StableAdamW(DecayOptimizer):
    """AdamW whose steps are shorter where gradients have just become larger."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    wdecay: Any
    decoupled: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.99,
        epsilon: SupportsFloat = 1e-08,
        wdecay: SupportsFloat = 0.01,
        decoupled: bool = True,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Tiger(DecayOptimizer):
    """Steps of one size along the sign of a running mean of gradients."""

    beta: Any
    wdecay: Any
    decoupled: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.001,
        beta: SupportsFloat = 0.965,
        wdecay: SupportsFloat = 0.01,
        decoupled: bool = True,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

class Yogi(MomentOptimizer):
    """Adam whose mean square moves by at most a fixed part of the squared gradient."""

    beta_1: Any
    beta_2: Any
    epsilon: Any
    initial_accumulator_value: Any

    def __init__(
        self,
        stochastic_round: bool | int = False,
        learning_rate: SupportsFloat = 0.01,
        beta_1: SupportsFloat = 0.9,
        beta_2: SupportsFloat = 0.999,
        epsilon: SupportsFloat = 0.001,
        initial_accumulator_value: SupportsFloat = 1e-06,
        gradient_clip_norm: SupportsFloat | None = None,
        gradient_clip_value: SupportsFloat | None = None,
        param_clip_value: SupportsFloat | None = None,
        name: str | None = None,
        *,
        schedule: _Schedule | None = None,
        ema_decay: SupportsFloat | None = None,
        centralize: bool = False,
        adaptive_clip: SupportsFloat | None = None,
        param_decay: SupportsFloat | None = None,
        mirror_dtype: Any = None,
        state_dtype: Any = None,
    ) -> None: ...

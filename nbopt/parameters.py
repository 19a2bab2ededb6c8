"""Parameters: raw arrays as a layer."""

from operator import is_
from typing import Any

from nbopt.backends import get_backend
from nbopt.base import NervanaObject
from nbopt.errors import LayerError


class Parameters(NervanaObject):
    """A layer made of arrays that already exist. Optimizers update the parameters in place, without copies.

    Parameters
    ----------
    *pairs : (param, grad)
        Arrays (or tensors) of the same shape: NumPy arrays and PyTorch's tensors on the CPU, device arrays on a GPU. JAX's arrays, which are
        immutable, can be gradients.
    name : str, optional
        What `MultiOptimizer` and messages call the layer.

    Attributes
    ----------
    params : tuple
        The parameters, as they were given.
    grads : tuple
        The gradients, as they were given or set last. Assign a list to replace all (``layer.grads = [dW, db]``); `set_grad` replaces one.
        Gradients that are written in place need neither.
    states : list of list of Tensor
        What optimizers keep for each parameter; empty until the first step.

    Examples
    --------
    >>> import numpy as np, nbopt
    >>> W, dW = np.ones((3, 2), np.float32), np.full((3, 2), 0.1, np.float32)
    >>> layer = nbopt.Parameters((W, dW), name="linear")
    >>> nbopt.GradientDescentMomentum(learning_rate=1.0, momentum_coef=0).optimize([layer], epoch=0)
    >>> float(W[0, 0].round(3))
    0.9
    """

    def __init__(self, *pairs, name=None):
        super().__init__(name=name)
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise LayerError(f"Parameters takes (param, grad) pairs: Parameters((W, dW), (b, db)); not {type(pair).__name__}")
            if isinstance(pair[0], (tuple, list)) and all(hasattr(part, "shape") for part in pair[0]):
                raise LayerError("Parameters takes pairs as arguments of their own: Parameters(*pairs) for a list of them")
        self.params = tuple(param for param, _ in pairs)
        self._grads = [grad for _, grad in pairs]
        self.states: list[list] = [[] for _ in pairs]
        self._backend: Any = None
        self._tensors: list = []
        self._entries: Any = None

    @property
    def grads(self):
        """Tuple : the gradients, as they were given or set last."""
        return tuple(self._grads)

    @grads.setter
    def grads(self, grads):
        grads = list(grads)
        if len(grads) != len(self.params):
            raise LayerError(f"there are {len(self.params)} parameters, so {len(self.params)} gradients are needed, not {len(grads)}")
        self._grads = grads
        self._entries = None

    def set_grad(self, index, grad):
        """Replace the gradient of one parameter.

        Parameters
        ----------
        index : int
            Which parameter, from 0.
        grad : array or Tensor
            Of the parameter's shape.
        """
        self._grads[index] = grad
        self._entries = None

    def get_params(self):
        """Return what optimizers ask layers for.

        Returns
        -------
        list of ((Tensor, Tensor), list of Tensor)
            ``((param, grad), states)`` for each parameter; tensors of the current backend, which share the arrays' memory.
        """
        be = get_backend()
        if be is not self._backend:
            self._backend, self._tensors, self._entries = be, [be.wrap(param) for param in self.params], None
        if self._entries is None:
            grads = [be.resolved(grad) for grad in self._grads]
            entries = [((param, be.wrap(grad)), states) for param, grad, states in zip(self._tensors, grads, self.states)]
            if not all(map(is_, grads, self._grads)):
                return entries  # a copy holds the values of this step only
            self._entries = entries
        return self._entries

    def __getstate__(self):
        return {**self.__dict__, "_backend": None, "_tensors": [], "_entries": None}

    def __len__(self):
        return len(self.params)

    def __repr__(self):
        shapes = ", ".join(str(tuple(p.shape)) for p in self.params)
        return f"<Parameters {self.name!r}: {shapes}>"



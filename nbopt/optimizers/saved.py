"""State dicts and copies of optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbopt.checkpoints import restore
from nbopt.checkpoints import state as checkpoint
from nbopt.layers import Layer

if TYPE_CHECKING:
    from nbopt.optimizers.base import Optimizer


class Saved:
    """The part of `Optimizer` that saves and loads."""

    _root: Any
    skipped: Any
    t: Any
    step_numbers: Any

    def state_dict(self, layers: Iterable[Layer]) -> dict[str, Any]:
        """Return everything that the next step depends on, but for the gradients, as plain values and copies.

        Parameters
        ----------
        layers : list
            All layers that the optimizer trains, as for `optimize`. Nothing is changed.

        Returns
        -------
        dict
            - ``"version"``: int, of this format
            - ``"optimizer"``: its description, see `get_description`: the class and the hyper-parameters
            - ``"optimizers"``: for itself, and each optimizer inside of a `MultiOptimizer` once, ``{"path":
              the keys that lead to it, "type": its class, "t": its steps so far, "skipped": how many of them
              were skipped}``
            - ``"rng"``: the state of stochastic rounding, see `Backend.rng_get_state`
            - ``"layers"``: ``{"name": str or None, "parameters": [...]}`` for each, and for each parameter
              ``{"name": str or None, "values": numpy.ndarray, "states": [...]}``, and for each state
              ``{"name": str or None, "rounding": bool or int, "values": numpy.ndarray}``

            Names that were not chosen by the user are None. Not in it is what a program sets up before it
            trains: the batch size, the roundings of the parameters, attributes of the optimizer that are no
            arguments of its constructor.

        Raises
        ------
        CheckpointError
            If a hyper-parameter is no plain value, so that it can't be described.
        """
        return checkpoint.state_dict(self, layers)  # type: ignore[arg-type]

    def load_state_dict(
        self, state: dict[str, Any], layers: Iterable[Layer], hyperparameters: bool = True
    ) -> None:
        """Put back what `state_dict` has returned.

        Given the same gradients, the next step gives the same bits as it did there.

        Parameters, and states that are there already, are overwritten in place, in whatever memory and layout
        they are; other states are made anew. The state of stochastic rounding is the current backend's, and
        so that of everything that it runs.

        Parameters
        ----------
        state : dict
            It is not changed, and shares no memory with what it is loaded into.
        layers : list
            Layers of the same number, names, shapes and dtypes, in the same order, on this or another
            backend.
        hyperparameters : bool
            Whether the optimizer's hyper-parameters become those of the state, too (all that its constructor
            takes, but for the name). Schedules are built anew. False keeps what the optimizer has now.

        Raises
        ------
        CheckpointError
            If the state is not one of this optimizer and these layers. The message says what differs.
        nbopt.errors.NboptError
            If the layers are malformed, or their memory can't be written. Nothing has changed, whatever is
            raised.

        Notes
        -----
        While it is at work it holds a copy of what it overwrites in the host's memory, to be able to put it
        back.
        """
        restore.load_state_dict(self, state, layers, hyperparameters)  # type: ignore[arg-type]

    @classmethod
    def rebuilt(cls, description: dict[str, Any]) -> Optimizer:
        """Return the optimizer that a description is of, whichever class it names.

        Parameters
        ----------
        description : dict
            As `get_description` returns it.

        Returns
        -------
        Optimizer
        """
        return cls._root.gen_class(description)

    def __getstate__(self) -> dict[str, Any]:
        # An adapter gives its own copies of optimizers a backend of their own.
        state = {key: value for key, value in self.__dict__.items() if key not in ("_kept", "be")}
        # copy.copy would share the tensors.
        if "_t" in state:
            state["_t"] = self.t
        if "_skipped" in state:
            state["_skipped"] = self.skipped
        if "_step_states" in state:
            state["_step_states"] = self.step_numbers()
        return state

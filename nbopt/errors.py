"""The exceptions that nbopt raises, for users who want to catch them.

Each one also inherits the built-in exception that Python users expect for that kind of mistake, so
``except ValueError`` works as well as ``except nbopt.errors.LayoutError``.
"""


class NboptError(Exception):
    """Base class of every exception that nbopt raises on purpose."""


class ArgumentError(NboptError, ValueError):
    """A hyper-parameter or option has a value that makes no sense."""


class UnknownArgumentError(ArgumentError, TypeError):
    """A constructor is called with an argument that it doesn't take."""


class OperandError(NboptError, TypeError):
    """An operand is not a tensor, an expression or a number."""


class ShapeError(NboptError, ValueError):
    """Shapes do not fit together."""


class LayoutError(NboptError, ValueError):
    """An array's memory can't be used: read-only, overlapping, unaligned, byte-swapped, masked."""


class SparseError(LayoutError, RuntimeError):
    """A gradient is sparse, and the optimizer needs all of its elements."""


class DtypeError(LayoutError, TypeError):
    """An array's dtype is not one that nbopt stores."""


class LayerError(NboptError, TypeError, ValueError):
    """A layer list is malformed: no ``get_params``, a layer listed twice, odd parameters."""


class StateError(NboptError, ValueError):
    """The states of a parameter were left by another optimizer or don't fit it."""


class TraceError(NboptError, TypeError):
    """A rule, or an expression, asks for something that can't become a kernel."""


class MissingError(TraceError, AttributeError):
    """A rule or an expression asks an object for an attribute that it does not have."""


class DeviceMemoryError(NboptError, MemoryError):
    """A GPU has too little memory left."""


class BackendError(NboptError, RuntimeError):
    """A backend is unknown, or it is known and can't be used here."""


class UnknownBackendError(BackendError, ValueError):
    """No backend has this name."""


class CheckpointError(NboptError, ValueError):
    """A checkpoint is damaged, or is not one of this optimizer and these layers."""


class DescriptionError(NboptError, ValueError):
    """A description does not name a registered class or does not fit its constructor."""

"""What generated CPU kernels are made of, all in one place for them to import."""

from nbopt_backends.cpu.folds import *  # noqa: F403
from nbopt_backends.cpu.instructions import *  # noqa: F403
from nbopt_backends.cpu.random_bits import *  # noqa: F403
from nbopt_backends.cpu.walks import *  # noqa: F403

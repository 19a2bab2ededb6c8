"""Reference: a NumPy interpreter of programs, short and slow. It defines what every op and every program means."""

import numpy as np

from nbopt.language.ops import PRIMITIVES, compute_dtype
from nbopt_backends.arrays.host import HostBackend
from nbopt_backends.meaning.reduction import norm_factor, tile_sums, tree_sum
from nbopt_backends.meaning.rounding import FORMATS, nearest, stochastic
from nbopt_backends.meaning.xoroshiro import first_blocks, random_slices


def run(program, arrays, scalars, kept, stream):
    """Run `program` over one tuple of arrays.

    Parameters
    ----------
    program : nbopt.language.trace.Program
    arrays : list of numpy.ndarray
        By slot. Those that the program stores to are modified.
    scalars : list of float
    kept : list of int
        By slot: how many mantissa bits a stochastic rounding keeps, or 0.
    stream : tuple of int
        Seed, update count, and the number of the tensor's first block.
    """
    dtype = compute_dtype(array.dtype for array in arrays)
    scalars = [dtype.type(x) for x in scalars]
    values = []
    stores = 0
    for op, *operands in program.code:
        if op == "load":
            values.append(arrays[operands[0]].astype(dtype))
        elif op == "store":
            slot, value = operands
            target = arrays[slot]
            new = np.broadcast_to(scalars[~value] if value < 0 else values[value], target.shape)
            storage = target.dtype.name
            if kept[slot]:
                seed, update, first_block = stream
                random = random_slices(seed, update, stores, first_block, target.size, FORMATS[storage].word)
                new = stochastic(new, storage, kept[slot], random.reshape(target.shape))
            else:
                new = nearest(new, storage)
            target[...] = new
            values.append(new)
            stores += 1
        else:
            values.append(PRIMITIVES[op].numpy(*(scalars[~x] if x < 0 else values[x] for x in operands)))


class Reference(HostBackend):
    """The backend ``"reference"``: the same results as the others, by NumPy alone."""

    name = "reference"

    def prepare(self, update):
        """Return a function that interprets the update's program for one parameter after the other."""
        arrays, kept = self.checked_columns(update)
        rows, kept = list(zip(*arrays)), list(zip(*kept))
        blocks = first_blocks([row[0].size for row in rows], update.listing).tolist()
        program, scalars = update.program, list(update.scalars)

        def look(count):
            divisor = update.scaled_divisor()
            if update.loss_scale is not None and update.program.divisor is not None:
                scalars[update.program.divisor] = divisor
            if not update.norm_is_needed:
                return True
            grads, dtypes = [row[1] for row in rows], [compute_dtype(a.dtype for a in row) for row in rows]
            total, factor = self._factor(grads, dtypes, update.clip_norm or 1.0, divisor)
            if update.clip_norm is not None:
                scalars[program.factor] = float(factor)
            return bool(np.isfinite(total))

        def launch(count):
            if update.verdict is None:
                look(count)
            elif not update.verdict.finite(count):
                update.skipped.storage[...] += 1
                return
            with np.errstate(all="ignore"):
                for row, bits, first_block in zip(rows, kept, blocks):
                    run(program, row, scalars, bits, (self.rng_seed, count, first_block))
            self.launches += len(rows)

        if update.verdict is not None:
            update.verdict.looks.append(look)
        return launch

    def norm_factor(self, grads, clip_norm):
        """Return the factor that clips the norm of `grads`, a list of tensors, to `clip_norm`; a float."""
        return float(self._factor([grad.storage for grad in grads], [compute_dtype([grad.dtype]) for grad in grads], clip_norm, self.bsz)[1])

    def _factor(self, grads, dtypes, clip_norm, divisor):
        with np.errstate(all="ignore"):
            sums = [tile_sums(np.square(grad.astype(dtype).ravel())) for grad, dtype in zip(grads, dtypes) if grad.size]
        total = np.concatenate(sums).astype(compute_dtype(dtypes)) if sums else np.zeros(1, np.float32)
        return norm_factor(total, clip_norm, divisor)

    def sum_last_axis(self, matrix):
        """Return the sums of the rows of a (m, n) array."""
        return tree_sum(matrix)

    def explain(self, update):
        """Return the update's program as text."""
        lines = [f"# {index}: {line}" for index, line in enumerate(update.program.code)]
        return ["\n".join(["# The reference interprets this program with NumPy:", *lines, ""])]

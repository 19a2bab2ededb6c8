"""CompiledBackend: what backends that compile a program for a layout have in common.

They find its plan again, and show its text.
"""

import threading

import numpy as np

from nbopt.language.summary import summary
from nbopt_backends.arrays.checks import ArrayBackend
from nbopt_backends.lowering import source
from nbopt_backends.meaning.slices import kinds_of
from nbopt_backends.plans.layout import Layout, layout_key

# Layouts that are remembered for one optimizer, and programs of assignments outside optimizers: far more than
# a run has, so forgetting all of the latter at once does no harm.
MOST_LAYOUTS = 8
_MOST_ASSIGNMENTS = 256


class CompiledBackend(ArrayBackend):
    """A backend that keeps plans. Subclasses implement `new_plan` and `text`.

    Attributes
    ----------
    stem : str
        What the modules of its kernels are called by, see `source.load`.
    """

    stem = "kernel"

    def __init__(self, **options):
        super().__init__(**options)
        # Plans hold addresses between prepare and launch, so each Python thread has its own.
        self._assignments = threading.local()

    def plan_of(self, update):
        """Return the update's plan: one that is kept, with the addresses of now, or a new one."""
        plans = update.plans
        if plans is None:
            known = self._assignments.__dict__
            if len(known) > _MOST_ASSIGNMENTS:
                known.clear()
            plans = known.setdefault(update.program, [])
        elif update.key is not None:
            for plan in plans:
                if plan.fits(self, update) and plan.follow(update):
                    return plan
            for plan in plans:
                if plan.fits(self, update) and plan.recall(update):
                    return plan
        arrays, kept = self.checked_columns(update)
        key = layout_key(arrays, kept, update.listing)
        for plan in plans:
            if plan.layout.key == key and plan.fits(self, update):
                break
        else:
            plan = self.new_plan(update, Layout(arrays, update.program, key, self.memory))
            plans.insert(0, plan)
            del plans[MOST_LAYOUTS:]
        plan.refresh(update, arrays)
        return plan

    def new_plan(self, update, layout):
        """Return a plan with everything compiled and allocated."""
        raise NotImplementedError(f"{type(self).__name__} has no plans")

    def text(self, stage, group):
        """Return the text of the kernel of a pass for a group of tensors."""
        raise NotImplementedError(f"{type(self).__name__} has no texts of kernels")

    def texts(self, update, layout):
        """Return the texts of an update's kernels, each with the stem of its file."""
        found, program = [], update.program
        for stage in program.loops():
            for group in layout.groups:
                if stage.has_slices(program.extents):
                    kinds = kinds_of(layout.shapes(group), program.extents, stage.extent)
                    found += [self.text_with_slices(stage, group, program.extents, kind) for kind in kinds]
                else:
                    found.append(self.text(stage, group))
        return [(text, self.stem) for text in found]

    def text_with_slices(self, stage, group, extents, kind):
        """Return the text of the kernel of a pass that knows slices, for a group of tensors.

        These are of one kind, see `kinds_of`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no texts of kernels of slices")

    def marked(self, text):
        """Return a module's text with the mark of `fast_math`, if that is on.

        The mark makes another module of it.
        """
        return text + ("\n# fast_math\n" if self.fast_math else "")

    def explain(self, update):
        """Return the stages of the update, and the texts of its kernels.

        A pass comes with the bytes that it moves, a kernel with the name of its file.
        """
        arrays, kept = self.checked_columns(update)
        program = update.program
        layout = Layout(arrays, program, layout_key(arrays, kept), self.memory)
        texts = self.texts(update, layout)
        stages = [_stages(program, group, layout.shapes(group)) for group in layout.groups]
        return [*stages, *(f"# {source.load(text, stem).__file__}\n{text}" for text, stem in texts)]


def _stages(program, group, shapes):
    """Return the stages of a program over the tensors of a group, as comments."""
    slots = ", ".join(f"{program.names[slot]} {group.dtypes[slot]}" for slot in program.columns())
    lines = summary(program, [np.dtype(dtype).itemsize for dtype in group.dtypes], [*shapes.values()])
    return "".join(
        f"# {line}\n" for line in [f"The stages of a step over {slots}:", *(f"  {line}" for line in lines)]
    )

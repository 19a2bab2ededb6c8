"""Numba's passes for kernels, without those that find nothing in generated text.

Each pass goes over a whole function, some with new analyses of it, which adds up to a tenth of the time.
"""

from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager

#: What looks for closures, `with`, `raise` of values, literally(), array expressions and the like: generated
#: text has none of it.
_LEFT_OUT = {
    "WithLifting",
    "InlineClosureLikes",
    "RewriteSemanticConstants",
    "DeadBranchPrune",
    "GenericRewrites",
    "RewriteDynamicRaises",
    "MakeFunctionToJitFunction",
    "FindLiterallyCalls",
    "LiteralUnroll",
    "LiteralPropagationSubPipelinePass",
    "InlineOverloads",
    "NopythonRewrites",
    "DumpParforDiagnostics",
}


class KernelCompiler(CompilerBase):
    """Compiles in nopython mode with the passes that generated text needs."""

    def define_pipelines(self):
        """Return the one pipeline; a name that this version of Numba does not have is not missed."""
        kept = PassManager("kernel")
        for each, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if each.__name__ not in _LEFT_OUT:
                kept.add_pass(each, description)
        kept.finalize()
        return [kept]

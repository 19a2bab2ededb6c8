"""Translate the PTX that NVVM makes of Numba's kernels into C.

Each register is a C variable that holds its bits, each instruction a statement, each label a label. The
threads of a block take turns: one runs to its end, or in a kernel with barriers to the next barrier. An
instruction that is not known is an error."""

import re
from pathlib import Path

_SPECIAL = {"%tid.x": "tid", "%ntid.x": "ntid", "%ctaid.x": "ctaid", "%nctaid.x": "nctaid"}
_COMPARED = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "lo": "<",
    "hi": ">",
    "ls": "<=",
    "hs": ">=",
}
_ROUNDED = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "and": "&", "or": "|", "xor": "^"}
# The modifiers of instructions that are known, beside types. (Arithmetic without .rn may be contracted by
# ptxas, and is not here.)
_MODIFIERS = {
    name: set(modifiers.split())
    for names, modifiers in {
        "add sub": "rn ftz",
        "mul": "rn ftz lo wide",
        "div sqrt rcp ex2 lg2 tanh": "rn ftz approx",
        "fma": "rn rm ftz",
        "min max neg abs": "ftz",
        "cvt": "rn ftz sat rni rzi rmi rpi bf16x2",
        "setp": "ftz nan num eq ne lt gt le ge lo hi ls hs equ neu ltu gtu leu geu",
        "ld st": "global shared param v2 v4",
        "bra call": "uni",
        "bar": "sync",
        "atom": "acq_rel gpu global add",
        "mov selp and or xor not shl shr rem copysign prmt bfi ret": "",
    }.items()
    for name in names.split()
}
_FUNCTIONS = {"sqrt": "sqrt", "fma": "fma", "ex2": "exp2", "lg2": "log2", "tanh": "tanh"}


def bits_of(kind):
    """The width of a PTX type such as ``f32``."""
    return 8 if kind == "pred" else int(kind[1:])


def c_type(kind):
    """The C type of values of a PTX type."""
    if kind == "pred":
        return "u8"
    return {"f32": "float", "f64": "double", "f16": "float"}.get(kind, kind.replace("b", "u"))


class Function:
    """One kernel or device function."""

    def __init__(self, kind, result, name, parameters, body, shared, constants):
        self.kind, self.result, self.name = kind, result.split()[-1] if result else None, name
        self.parameters = [line.split()[-1] for line in parameters.split(",") if line.strip()]
        self.shared, self.constants = shared, constants
        self.has_barriers = "bar.sync" in body
        self.barriers = 0
        self.variables = {}
        self.scopes = [{}]
        self.lines = []
        self.translate(body)

    def translate(self, body):
        """Go through the body's statements, labels and braces."""
        # Lists of registers are no blocks.
        body = re.sub(r"\{((?:\s*[%\w]+\s*,)*\s*[%\w]+\s*)\}", r"<\1>", body)
        blocks = 0
        for token in re.findall(r"[{}]|[\w$]+:|[^;{}:]+;", body):
            if token == "{":
                blocks += 1
                self.scopes.append({})
            elif token == "}":
                self.scopes.pop()
            elif token.endswith(":"):
                self.lines.append(self.label(token[:-1]) + ":;")
            else:
                self.statement(" ".join(token[:-1].split()), blocks)

    def statement(self, text, block):
        """Translate one statement."""
        if text.startswith(".reg"):
            _, kind, names = text.split(None, 2)
            for name in re.split(r"\s*,\s*", names):
                several = re.fullmatch(r"(%\w+)<(\d+)>", name)
                for each in [f"{several[1]}{k}" for k in range(int(several[2]))] if several else [name]:
                    self.declare(
                        each,
                        f"r_{each.lstrip('%')}" + (f"_{block}" if len(self.scopes) > 1 else ""),
                        kind[1:],
                    )
        elif text.startswith(".param"):
            name = text.split()[-1]
            self.declare(name, f"{name}_{block}", "b64")
        elif not text.startswith((".shared", ".pragma", ".loc")):
            found = re.fullmatch(r"(?:@(!?%\w+) )?([a-z][\w.:]*) ?(.*)", text)
            if not found:
                raise NotImplementedError(text)
            predicate, operation, operands = found.groups()
            condition = (
                f"if ({'!' * predicate.startswith('!')}{self.register(predicate.lstrip('!'))}) "
                if predicate
                else ""
            )
            operands = [
                operand.strip()
                for operand in re.findall(r"\s*(<[^>]*>|\([^)]*\)|\[[^\]]*\]|[^,]+)", operands)
            ]
            self.lines.append(f"{condition}{{ {self.instruction(operation.split('.'), operands)} }}")

    def declare(self, name, variable, kind):
        self.variables[variable] = "u8" if kind == "pred" else f"u{bits_of(kind)}"
        self.scopes[-1][name] = variable

    def register(self, name):
        """The C variable of a register."""
        variable = next(scope[name] for scope in reversed(self.scopes) if name in scope)
        return f"t->{variable}" if self.has_barriers else variable

    @staticmethod
    def label(name):
        return "L_" + name.replace("$", "_")

    def value(self, operand, kind):
        """An operand as a C expression of a PTX type."""
        if kind == "f16":
            return f"from_half({self.value(operand, 'b16')})"
        if re.fullmatch(r"0[fF]\w{8}|0[dD]\w{16}", operand):
            bits = f"0x{operand[2:]}ull"
        elif re.fullmatch(r"-?\d+|0x\w+", operand):
            bits = f"{int(operand, 0) % 2**64:#x}ull"
        elif operand in self.shared:
            bits = str(self.shared[operand])
        elif operand in self.constants:
            bits = f"((u64)constant_{operand} ^ DEVICE_BIT)"
        elif operand.startswith(("%tid.", "%ntid.", "%ctaid.", "%nctaid.")):
            bits = _SPECIAL.get(operand, "1" if operand.startswith(("%ntid", "%nctaid")) else "0")
        else:
            bits = self.register(operand)
        return f"as_{kind}({bits})" if kind in ("f32", "f64") else f"(({c_type(kind)}){bits})"

    def assigned(self, operand, kind, expression):
        """A statement that gives a register a value of a PTX type."""
        if kind in ("f32", "f64"):
            expression = f"bits_{kind}({expression})"
        elif kind == "f16":
            expression = f"to_half({expression})"
        else:
            expression = f"({c_type(kind)})({expression})"
        return f"{self.register(operand)} = {expression};"

    def instruction(self, parts, operands):
        """One instruction as C statements."""
        name = parts[0]
        kinds = [part for part in parts[1:] if re.fullmatch(r"[busf](8|16|32|64)|pred", part)]
        kind = kinds[-1] if kinds else None
        if (
            not set(parts[1:]) <= {*_MODIFIERS.get(name, ()), *kinds}
            or name not in _MODIFIERS
            or ("rm" in parts and kind != "f32")
        ):
            raise NotImplementedError(".".join(parts))
        method = getattr(self, f"do_{name}", None)
        if method:
            return method(parts, operands, kind)
        if kind is None:
            raise NotImplementedError(".".join(parts))
        if kind[0] == "f" and name in ("neg", "abs"):  # which work on the sign bit
            kind = f"b{bits_of(kind)}"
        compute = self.floating if kind[0] == "f" else self.integer
        return self.assigned(operands[0], kind, compute(parts, operands[1:], kind))

    # --- control ---

    def do_bra(self, parts, operands, kind):
        return f"goto {self.label(operands[0])};"

    def do_ret(self, parts, operands, kind):
        if self.kind == "func":
            return "return result;"
        return "t->done = 1; return;" if self.has_barriers else "return;"

    def do_bar(self, parts, operands, kind):
        self.barriers += 1
        return f"t->next = {self.barriers}; return; case {self.barriers}:;"

    def do_call(self, parts, operands, kind):
        result, name, arguments = operands
        arguments = [self.register(argument.strip()) for argument in arguments.strip("()").split(",")]
        return f"{self.register(result.strip('() '))} = function_{name}({', '.join(arguments)});"

    # --- data ---

    def do_mov(self, parts, operands, kind):
        target, source = operands
        if kind == "pred":
            return self.assigned(target, kind, f"{self.value(source, kind)} != 0")
        kind = f"b{bits_of(kind)}"
        if target.startswith("<"):
            names = re.split(r"\s*,\s*", target[1:-1].strip())
            width = bits_of(kind) // len(names)
            return " ".join(
                self.assigned(each, f"b{width}", f"{self.value(source, kind)} >> {k * width}")
                for k, each in enumerate(names)
            )
        if source.startswith("<"):
            names = re.split(r"\s*,\s*", source[1:-1].strip())
            width = bits_of(kind) // len(names)
            return self.assigned(
                target,
                kind,
                " | ".join(
                    f"(u64){self.value(each, f'b{width}')} << {k * width}" for k, each in enumerate(names)
                ),
            )
        return self.assigned(target, kind, self.value(source, kind))

    def memory(self, parts, operand, size):
        """A C pointer to so many bytes from an address on."""
        base, offset = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand).groups()
        space = (
            f"shared(memory, {self.value(base, 'b64')}"
            if "shared" in parts
            else f"global({self.value(base, 'b64')}"
        )
        return f"{space} + (s64){offset or 0}, {size})"

    def passed(self, operand):
        """The variable of a parameter or result of a call, or None where the operand is none."""
        base = re.match(r"\[\s*([\w$]+)", operand)[1]
        if base == self.result:
            return "result"
        return f"P_{base}" if base in self.parameters else self.register(base)

    def do_ld(self, parts, operands, kind):
        targets = re.split(r"\s*,\s*", operands[0].strip("<> "))
        kind = kind if kind[0] == "s" else f"b{bits_of(kind)}"
        if "param" in parts:
            return self.assigned(targets[0], kind, self.passed(operands[1]))
        width = bits_of(kind) // 8
        loaded = " ".join(f"{c_type(kind)} v{k} = (({c_type(kind)}*)from)[{k}];" for k in range(len(targets)))
        stored = " ".join(self.assigned(target, kind, f"v{k}") for k, target in enumerate(targets))
        return f"u8* from = {self.memory(parts, operands[1], width * len(targets))}; {loaded} {stored}"

    def do_st(self, parts, operands, kind):
        sources = re.split(r"\s*,\s*", operands[1].strip("<> "))
        kind = f"b{bits_of(kind)}"
        if "param" in parts:
            return f"{self.passed(operands[0])} = {self.value(sources[0], kind)};"
        stored = " ".join(
            f"(({c_type(kind)}*)to)[{k}] = {self.value(source, kind)};" for k, source in enumerate(sources)
        )
        return f"u8* to = {self.memory(parts, operands[0], bits_of(kind) // 8 * len(sources))}; {stored}"

    def do_atom(self, parts, operands, kind):
        """An addition; nothing else runs meanwhile, as kernels run on one core."""
        target, place, value = operands
        place, kind = self.memory(parts, place, bits_of(kind) // 8), f"u{bits_of(kind)}"
        return (
            f"{kind}* place = ({kind}*){place}; {kind} before = *place; "
            f"*place += {self.value(value, kind)}; {self.assigned(target, kind, 'before')}"
        )

    def do_cvt(self, parts, operands, kind):
        if "bf16x2" in parts:
            if parts[1:] != ["rn", "bf16x2", "f32"]:
                raise NotImplementedError(".".join(parts))
            upper, lower = (f"to_bfloat({self.value(operand, 'f32')})" for operand in operands[1:])
            return self.assigned(operands[0], "b32", f"(u32){upper} << 16 | {lower}")
        to, source = [part for part in parts[1:] if re.fullmatch(r"[busf](8|16|32|64)", part)]
        value = self.value(operands[1], source)
        rounding = next((part for part in parts if part in _ROUNDED), None)
        if rounding:
            value = f"{_ROUNDED[rounding]}((double){value})"
        if "sat" in parts:
            if to != "f32":
                raise NotImplementedError(".".join(parts))
            value = f"saturated({value})"
        if source[0] == "f" and to in ("f32", "f64"):
            value = f"canonical_{to}({value})"
        elif source[0] == "f" and to[0] != "f":
            value = f"to_{to}({value})"
        return self.assigned(operands[0], to, f"({c_type(to)}){value}")

    # --- values ---

    def do_setp(self, parts, operands, kind):
        compared, (x, y) = parts[1], [self.value(operand, kind) for operand in operands[1:3]]
        if len(operands) > 3:
            raise NotImplementedError(".".join(parts))
        unordered = f"({x} != {x} || {y} != {y})"
        if compared in ("nan", "num"):
            found = unordered if compared == "nan" else f"!{unordered}"
        elif kind[0] == "f" and compared == "ne":
            found = f"({x} < {y} || {x} > {y})"
        elif kind[0] == "f" and compared.endswith("u"):
            found = f"({x} {_COMPARED[compared[:-1]]} {y} || {unordered})"
        else:
            found = f"{x} {_COMPARED[compared]} {y}"
        return self.assigned(operands[0], "pred", found)

    def do_selp(self, parts, operands, kind):
        kind = f"b{bits_of(kind)}"
        yes, no = (self.value(operand, kind) for operand in operands[1:3])
        return self.assigned(operands[0], kind, f"{self.value(operands[3], 'pred')} ? {yes} : {no}")

    def do_mul(self, parts, operands, kind):
        if "wide" in parts:
            wide = f"{kind[0]}{2 * bits_of(kind)}"
            return self.assigned(
                operands[0],
                wide,
                " * ".join(f"({wide}){self.value(operand, kind)}" for operand in operands[1:]),
            )
        compute = self.floating if kind[0] == "f" else self.integer
        return self.assigned(operands[0], kind, compute(parts, operands[1:], kind))

    def do_prmt(self, parts, operands, kind):
        return self.assigned(
            operands[0],
            "b32",
            f"permuted({', '.join(self.value(operand, 'b32') for operand in operands[1:])})",
        )

    def do_bfi(self, parts, operands, kind):
        source, target = (self.value(operand, f"u{bits_of(kind)}") for operand in operands[1:3])
        begin, length = int(operands[3], 0), int(operands[4], 0)
        mask = ((1 << length) - 1) << begin
        return self.assigned(
            operands[0], kind, f"({target} & ~{mask:#x}ull) | (({source} << {begin}) & {mask:#x}ull)"
        )

    def floating(self, parts, operands, kind):
        """A floating-point expression."""
        name, suffix = parts[0], "f" if kind == "f32" else ""
        flush = "flushed({})" if "ftz" in parts and kind == "f32" else "{}"
        values = [flush.format(self.value(operand, kind)) for operand in operands]
        if name in _INFIX:
            found = f"{values[0]} {_INFIX[name]} {values[1]}"
        elif name == "fma" and "rm" in parts:
            found = f"fma_down({', '.join(values)})"
        elif name in _FUNCTIONS:
            found = f"{_FUNCTIONS[name]}{suffix}({', '.join(values)})"
        elif name == "rcp":
            found = (
                f"coarse_reciprocal({values[0]})"
                if kind == "f64" and "approx" in parts
                else f"1 / {values[0]}"
            )
        elif name in ("min", "max"):
            found = f"{name}imum({values[0]}, {values[1]})"
        elif name == "copysign":
            found = f"copysign{suffix}({values[1]}, {values[0]})"
        else:
            raise NotImplementedError(".".join(parts))
        return f"canonical_{kind}({flush.format(f'({found})')})"

    def integer(self, parts, operands, kind):
        """An expression of integers, predicates, or the bits of floating-point numbers."""
        name, width = parts[0], bits_of(kind)
        signed = kind[0] == "s"
        plain = kind if kind == "pred" else f"u{width}"
        if name in ("add", "sub", "mul", "and", "or", "xor"):
            if "hi" in parts:
                raise NotImplementedError(".".join(parts))
            return f" {_INFIX[name]} ".join(self.value(operand, plain) for operand in operands)
        if name in ("div", "rem"):
            x, y = (self.value(operand, kind) for operand in operands)
            return f"{y} ? {x} {_INFIX[name]} {y} : 0"
        if name in ("min", "max"):
            x, y = (self.value(operand, kind) for operand in operands)
            return f"{x} {'<' if name == 'min' else '>'} {y} ? {x} : {y}"
        if name == "not":
            return f"{'!' if kind == 'pred' else '~'}{self.value(operands[0], plain)}"
        if name in ("neg", "abs") and kind[0] == "b":
            return f"{self.value(operands[0], kind)} {'^' if name == 'neg' else '& ~'}((u64)1 << {width - 1})"
        if name == "neg":
            return f"-{self.value(operands[0], plain)}"
        if name == "shl":
            by = self.value(operands[1], "u32")
            return f"{by} < {width} ? {self.value(operands[0], plain)} << {by} : 0"
        if name == "shr":
            value, by = self.value(operands[0], kind if signed else plain), self.value(operands[1], "u32")
            return (
                f"{value} >> ({by} < {width} ? {by} : {width - 1})"
                if signed
                else f"{by} < {width} ? {value} >> {by} : 0"
            )
        raise NotImplementedError(".".join(parts))

    # --- the whole ---

    def text(self, number, shared_size):
        """The C of the function; a kernel's ends with what runs all of its blocks."""
        variables = " ".join(f"{kind} {name};" for name, kind in self.variables.items())
        body = "\n".join(self.lines)
        if self.kind == "func":
            arguments = ", ".join(f"u64 P_{name}" for name in self.parameters)
            return (
                f"static u64 function_{self.name}({arguments}) {{ u64 result; {variables}\n{body}\nreturn "
                "result; }"
            )
        taken = " ".join(f"u64 P_{name} = *(u64*)P[{k}];" for k, name in enumerate(self.parameters))
        if not self.has_barriers:
            return f"""static void thread{number}(u32 tid, u32 ntid, u32 ctaid, u32 nctaid, void** P) {{
{taken} {variables}
{body}
}}
static void run{number}(u32 blocks, u32 threads, void** P) {{
  for (u32 block = blocks; block-- > 0;)
    for (u32 tid = threads; tid-- > 0;)
      thread{number}(tid, threads, block, blocks, P);
}}"""
        return f"""struct thread{number} {{ int next, done; {variables} }};
static void go{number}(
    struct thread{number}* t, u32 tid, u32 ntid, u32 ctaid, u32 nctaid, void** P, u8* memory
) {{ {taken}
switch (t->next) {{ case 0:;
{body}
}} t->done = 1; }}
static void run{number}(u32 blocks, u32 threads, void** P) {{
  struct thread{number}* all = malloc(threads * sizeof *all);
  u8* memory = aligned_alloc(64, {shared_size});
  for (u32 k = 0; k < blocks; k++) {{  /* those with even numbers come first, then the others backwards */
    u32 even = (blocks + 1) / 2, block = k < even ? 2 * k : 2 * (blocks - k) - 1;
    memset(all, 0xA5, threads * sizeof *all); memset(memory, 0xA5, {shared_size});
    for (u32 k = 0; k < threads; k++) all[k].next = all[k].done = 0;
    for (int turn = 0;; turn++) {{  /* every other turn from the last thread to the first */
      u32 waiting = 0; int barrier = 0;
      for (u32 k = 0; k < threads; k++) {{
        u32 tid = turn % 2 ? k : threads - 1 - k;
        if (all[tid].done) continue;
        go{number}(all + tid, tid, threads, block, blocks, P, memory);
        if (all[tid].done) continue;
        if (waiting++ && barrier != all[tid].next) TRAP("the threads of a block wait at different barriers");
        barrier = all[tid].next;
      }}
      if (!waiting) break;
      if (waiting != threads) TRAP("some threads of a block don't come to a barrier");
    }}
  }}
  free(all); free(memory);
}}"""


def translated(ptx):
    """Return the C text of a PTX module."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    shared, size = {}, 64
    for bits, name, count in re.findall(
        r"\.shared\s+\.align\s+\d+\s+\.[bu](\d+)\s+([\w$]+)(?:\[(\d+)\])?;", ptx
    ):
        shared[name] = size  # 0 is no address
        size += -(-int(bits) // 8 * int(count or 1) // 64) * 64
    arrays = re.findall(
        r"\.(?:const|global)\s+\.align\s+\d+\s+\.[bu](\d+)\s+([\w$]+)\[(\d+)\]\s*=\s*\{([^}]*)\};", ptx
    )
    constants = [
        f"static const u{width} constant_{name}[{count}] __attribute__((aligned(16))) = {{{values}}};"
        for width, name, count, values in arrays
    ]
    functions = []
    heads = re.compile(r"\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)\s*(?:\.\w+[^{;]*)?([{;])")
    for head in heads.finditer(ptx):
        if head[5] == ";":  # a declaration
            continue
        depth, end = 1, head.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[end], 0)
            end += 1
        functions.append(
            Function(
                head[1],
                head[2],
                head[3],
                head[4],
                ptx[head.end() : end - 1],
                shared,
                {name for _, name, _, _ in arrays},
            )
        )
    texts = [function.text(number, size) for number, function in enumerate(functions)]
    declared = [
        text[: text.index("{")] + ";" for text, function in zip(texts, functions) if function.kind == "func"
    ]
    kernels = [
        f'{{"{f.name}", {len(f.parameters)}, run{number}}}, '
        for number, f in enumerate(functions)
        if f.kind == "entry"
    ]
    head = Path(__file__).with_name("ptx.h").read_text()
    return "\n".join(
        [
            head,
            *constants,
            *declared,
            *texts,
            f"struct kernel kernels[] = {{{''.join(kernels)}{{0, 0, 0}}}};\n",
        ]
    )

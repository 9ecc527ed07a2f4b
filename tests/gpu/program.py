"""Reads PTX, the text that nvcc and Triton make of kernels, into what simulator.cpp runs."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).resolve().parent
_SOURCE = (HERE / "instruction.h").read_text()


def _names(enum: str) -> dict[str, int]:
    text = re.search(rf"enum class {enum} : uint8_t {{([^}}]*)}}", _SOURCE)
    assert text is not None
    return {name: number for number, name in enumerate(re.findall(r"(\w+)_\b", text[1]))}


OPS, TYPES, COMPARISONS, MODES, SPECIALS = map(_names, ("Op", "Type", "Comparison", "Mode", "Special"))
_FLAGS = re.search(r"enum Flag : uint8_t \{([^}]*)\}", _SOURCE)
assert _FLAGS is not None
FLAGS = {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", _FLAGS[1])}
_SIZES = {name: int(re.sub(r"\D", "", name) or 8) // 8 for name in TYPES}
INSTRUCTION = struct.Struct("<8B6iq")
"""The struct of the same name in instruction.h."""


@dataclasses.dataclass
class Kernel:
    """A kernel as simulator.cpp takes it. Parameters: (offset, bytes) of each."""

    name: str
    code: bytes
    slots: bytes
    lists: bytes
    shared: int
    local: int
    threads: int
    parameters: list[tuple[int, int]]
    text: list[str]


class Unknown(ValueError):
    """An instruction that is not known."""


def _strip(text: str) -> str:
    """Without comments and the places of lines in a source, which end without a semicolon."""
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.S)
    return re.sub(r"^\s*\.(?:loc|file)\b.*$", "", text, flags=re.M)


def _up_to(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def read(text: str, memory: list[bytearray]) -> list[Kernel]:
    """The kernels of a module. Its global variables are appended to `memory`, which must outlive them."""
    text = _strip(text)
    module = _Module(memory)
    at = 0
    pattern = re.compile(r"\.(?:visible|weak|extern)?\s*\.?(entry|func|global|shared|const)\b")
    kernels = []
    while found := pattern.search(text, at):
        kind = found[1]
        line_start = max(text.rfind(";", 0, found.start()), text.rfind("}", 0, found.start())) + 1
        if kind in ("entry", "func"):
            stop = _declaration_end(text, found.end())
            if text[stop] == ";":
                at = stop + 1
                continue
            end = _matching(text, stop)
            if kind == "func":
                raise Unknown("a function that is called")
            kernels.append(_Entry(module, text[found.end() : stop], text[stop + 1 : end - 1]).kernel())
            at = end
        else:
            at = _statement_end(text, found.end())
            module.declare(kind, text[line_start:at], extern=".extern" in text[line_start : found.end()])
    return kernels


def _declaration_end(text: str, at: int) -> int:
    return min(x for x in (text.find("{", at), text.find(";", at)) if x >= 0)


def _statement_end(text: str, at: int) -> int:
    return text.index(";", at)


def _matching(text: str, at: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    raise Unknown("an open brace")


_VARIABLE = re.compile(r"\.align\s+(\d+)\s+\.(\w+)\s+([\w$.%]+)(?:\[(\d*)\])?")


class _Module:
    def __init__(self, memory: list[bytearray]) -> None:
        self.memory = memory
        self.addresses: dict[str, int] = {}
        self.dynamic: set[str] = set()
        self.shared: dict[str, tuple[int, int]] = {}

    def declare(self, kind: str, text: str, *, extern: bool) -> None:
        found = _VARIABLE.search(text)
        if found is None:
            raise Unknown(text)
        alignment, size = int(found[1]), _SIZES[found[2]] * int(found[4] or 1)
        name = found[3]
        if kind == "shared":
            if extern:
                self.dynamic.add(name)
            else:
                self.shared[name] = (alignment, size)
            return
        held = bytearray(size + alignment)
        self.memory.append(held)
        start = -_address(held) % alignment
        if "=" in text:
            values = [int(x, 0) for x in re.findall(r"-?\b(?:0x)?[0-9A-Fa-f]+\b", text.partition("=")[2])]
            each = _SIZES[found[2]]
            for i, value in enumerate(values):
                held[start + each * i : start + each * (i + 1)] = (value & (1 << 8 * each) - 1).to_bytes(each, "little")
        self.addresses[name] = _address(held) + start


def _address(held: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(held)).from_buffer(held))


_SPECIAL = re.compile(r"%(?:(tid|ntid|ctaid|nctaid)\.([xyz])|(laneid|warpid|envreg1|envreg2|clock64|clock|globaltimer))$")


class _Entry:
    """Reads one kernel."""

    def __init__(self, module: _Module, head: str, body: str) -> None:
        self.module = module
        self.slots: list[int] = [0] * len(SPECIALS)
        self.known: dict[str, int] = {}
        self.constants: dict[int, int] = {}
        self.lists: list[int] = []
        self.local: dict[str, int] = {}
        self.local_size = 64  # of a call's parameters
        self.shared: dict[str, int] = {}
        self.shared_size = 0
        self.code: list[list[int]] = []
        self.text: list[str] = []
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, str]] = []
        self.name = re.match(r"\s*([\w$]+)", head)[1]  # type: ignore[index]
        self.parameters: dict[str, tuple[int, int]] = {}
        self._parameters(head)
        sizes = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head)
        self.threads = functools.reduce(lambda a, b: a * int(b or 1), sizes.groups(), 1) if sizes else 0
        for name, (alignment, size) in module.shared.items():
            if name in body:
                self._share(name, alignment, size)
        self._body(body, "")
        for at, label in self.jumps:
            self.code[at][-1] = self.labels[label]

    def _parameters(self, head: str) -> None:
        offset = 0
        inside = re.search(r"\((.*)\)", head, re.S)
        for one in filter(None, (x.strip() for x in (inside[1] if inside else "").split(","))):
            found = re.match(
                r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr(?:\s+\.\w+)?(?:\s+\.align\s+\d+)?\s+)?([\w$]+)(?:\[(\d+)\])?$",
                one,
            )
            if found is None:
                raise Unknown(one)
            each = _SIZES[found[2]]
            size = each * int(found[4] or 1)
            offset = _up_to(offset, int(found[1] or each))
            self.parameters[found[3]] = (offset, size)
            offset += size

    def _share(self, name: str, alignment: int, size: int) -> None:
        self.shared_size = _up_to(self.shared_size, alignment)
        self.shared[name] = self.shared_size
        self.shared_size += size

    def kernel(self) -> Kernel:
        code = b"".join(INSTRUCTION.pack(*one) for one in self.code)
        slots = b"".join((x & 2**64 - 1).to_bytes(8, "little") for x in self.slots)
        lists = struct.pack(f"<{len(self.lists)}i", *self.lists)
        return Kernel(
            self.name,
            code,
            slots,
            lists,
            _up_to(self.shared_size, 16),
            self.local_size,
            self.threads,
            list(self.parameters.values()),
            self.text,
        )

    # Statements.

    def _body(self, text: str, scope: str) -> None:
        at = 0
        token = re.compile(r"\s*(?:([$\w]+)\s*:(?!:)|(\{)|([^;{}]+(?:\{[^}]*\}[^;{}]*)*);|$)")
        while at < len(text):
            found = token.match(text, at)
            if found is None:
                raise Unknown(text[at : at + 200])
            if found[1]:
                self.labels[found[1]] = len(self.code)
            elif found[2]:
                end = _matching(text, found.end() - 1)
                self._body(text[found.end() : end - 1], f"{scope}{at}:")
                at = end
                continue
            elif found[3]:
                statement = found[3].strip()
                if statement.startswith("."):
                    self._directive(statement, scope)
                elif statement:
                    self._instruction(statement, scope)
            at = found.end()

    def _directive(self, text: str, scope: str) -> None:
        if text.startswith(".reg"):
            for name, count in re.findall(r"(%?[\w$]+)(?:<(\d+)>)?\s*(?:,|$)", text.split(None, 2)[2]):
                for one in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                    self.known[scope + one] = self._slot(0)
        elif text.startswith((".shared", ".local")):
            found = _VARIABLE.search(text)
            if found is None:
                raise Unknown(text)
            alignment, size = int(found[1]), _SIZES[found[2]] * int(found[4] or 1)
            if text.startswith(".shared"):
                self._share(found[3], alignment, size)
            else:
                self.local_size = _up_to(self.local_size, alignment)
                self.local[found[3]] = self.local_size
                self.local_size += size
        elif text.startswith(".param"):
            found = re.search(r"([\w$]+)(?:\[\d+\])?$", text)
            assert found is not None
            # Only the first one of a call is looked at: an assertion's message.
            self.local[found[1]] = 0 if found[1] == "param0" else 32
        elif not text.startswith((".pragma", ".branchtargets")):
            raise Unknown(text)

    # Operands.

    def _slot(self, value: int) -> int:
        self.slots.append(value)
        return len(self.slots) - 1

    def _constant(self, value: int) -> int:
        if value not in self.constants:
            self.constants[value] = self._slot(value)
        return self.constants[value]

    def _operand(self, text: str, scope: str) -> int:
        """The slot of a register, a constant or the address of a variable."""
        text = text.strip()
        if text == "_":
            return SPECIALS["sink"]
        if special := _SPECIAL.match(text):
            return SPECIALS[
                f"{special[1]}_{special[2]}" if special[1] else "clock" if special[3] not in SPECIALS else special[3]
            ]
        parts = scope.split(":")
        for depth in range(len(parts), -1, -1):
            name = "".join(f"{x}:" for x in parts[:depth] if x) + text
            if name in self.known:
                return self.known[name]
        if re.match(r"0[fF][0-9A-Fa-f]{8}$|0[dD][0-9A-Fa-f]{16}$", text):
            return self._constant(int(text[2:], 16))
        if re.match(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?$", text):
            return self._constant(int(text.rstrip("U"), 0))
        if text in self.shared:
            return self._constant(self.shared[text])
        if text in self.module.dynamic:
            return SPECIALS["dynamic_smem"]
        if text in self.module.addresses:
            return self._constant(self.module.addresses[text])
        raise Unknown(text)

    def _address_of(self, text: str, scope: str) -> tuple[int, int]:
        base, _, more = text.strip()[1:-1].partition("+")
        base, offset = base.strip(), int(more.strip() or "0", 0)
        if base in self.parameters:
            return SPECIALS["params"], self.parameters[base][0] + offset
        if base in self.local:
            return SPECIALS["locals"], self.local[base] + offset
        return self._operand(base, scope), offset

    def _vector(self, text: str, scope: str) -> tuple[int, int]:
        """(slot, 1), or (place in the lists, elements)."""
        text = text.strip()
        if not text.startswith("{"):
            return self._operand(text, scope), 1
        slots = [self._operand(x, scope) for x in text[1:-1].split(",")]
        if len(slots) == 1:
            return slots[0], 1
        self.lists += slots
        return len(self.lists) - len(slots), len(slots)

    # Instructions.

    def _instruction(self, text: str, scope: str) -> None:
        found = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.S)
        if found is None:
            raise Unknown(text)
        guard = self._operand(found[2], scope) if found[2] else -1
        words = found[3].replace("::", "_").split(".")
        operands = [x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,{}\[\]()])+", found[4])]
        try:
            self._one(words, operands, scope, guard, int(found[1] == "!"))
        except (Unknown, KeyError, IndexError) as fault:
            raise Unknown(f"{text} ({fault!r})") from fault
        self.text += [text] * (len(self.code) - len(self.text))

    def _emit(
        self, op: str, guard: int, negated: int, *, kind: str = "b32", source: str = "b32", mode: str = "none",
        comparison: int = 0, count: int = 1, flags: int = 0, d: int | None = None, a: int | None = None,
        b: int | None = None, c: int | None = None, e: int | None = None, offset: int = 0,
    ) -> None:  # fmt: skip
        zero = SPECIALS["zero"]
        places = [SPECIALS["sink"] if d is None else d, *(zero if x is None else x for x in (a, b, c, e))]
        self.code.append(
            [OPS[op], TYPES[kind], TYPES[source], MODES[mode], comparison, count, flags, negated, guard, *places, offset]
        )

    def _one(self, words: list[str], operands: list[str], scope: str, guard: int, negated: int) -> None:
        op, rest = words[0], words[1:]
        emit = functools.partial(self._emit, guard=guard, negated=negated)
        kinds = [x for x in rest if x in TYPES]
        kind = kinds[-1] if kinds else "b32"

        def value(i: int) -> int:
            return self._operand(operands[i].lstrip("!") if operands[i].startswith("!") else operands[i], scope)

        def not_flag(i: int) -> int:
            return FLAGS["NEGATED"] if operands[i].startswith("!") else 0

        packed = [x for x in rest if re.fullmatch(r"b?f16x2|[us]16x2|[us]8x4|e\d+m\d+x2", x)]
        if packed and op != "cvt":
            # A pair of 16-bit numbers in 32 bits: one half after the other.
            if op not in ("setp", "add", "sub", "min", "max", "neg", "abs") or not packed[0].endswith("16x2"):
                raise Unknown(op)
            halves = [self._slot(0) for _ in range(6)]
            self.lists += halves
            base, given = len(self.lists) - 6, range(1, len(operands))
            for i in given:
                emit("unpack", d=base + 2 * i - 2, a=value(i), count=2)
            to = [self._operand(x, scope) for x in operands[0].split("|")] if op == "setp" else halves[4:]
            for i, half in enumerate(to):
                places = dict(zip("ab", (halves[2 * x - 2 + i] for x in given), strict=False))
                comparison = COMPARISONS[rest[0]] if op == "setp" else 0
                emit(op, kind=packed[0][:-2], comparison=comparison, d=half, **places)
            if op != "setp":
                emit("pack", d=value(0), a=base + 4, count=2)
        elif op in ("ret", "exit"):
            emit("exit")
        elif op == "trap":
            emit("trap")
        elif op == "bra":
            self.jumps.append((len(self.code), operands[0]))
            emit("bra")
        elif op == "call":
            emit("call")
        elif op in ("bar", "barrier"):
            if "warp" in rest:
                emit("barrier_warp", e=value(0))
            elif "red" in rest:
                names = [x for x in ("and", "or") if x in rest]
                emit("bar_red", mode=names[0], d=value(0), a=value(1), c=value(2), flags=not_flag(2))
            else:
                emit("bar", a=value(0), b=value(1) if len(operands) > 1 else None)
        elif op in ("membar", "fence"):
            emit("fence")
        elif op in ("ld", "ldu"):
            base, offset = self._address_of(operands[1], scope)
            to, count = self._vector(operands[0], scope)
            emit("ld", kind=kind, d=to, a=base, offset=offset, count=count, flags=self._memory_flags(rest))
        elif op == "st":
            base, offset = self._address_of(operands[0], scope)
            given, count = self._vector(operands[1], scope)
            emit("st", kind=kind, a=base, b=given, offset=offset, count=count, flags=self._memory_flags(rest))
        elif op in ("atom", "red"):
            at = 0 if op == "red" else 1
            base, offset = self._address_of(operands[at], scope)
            names = [x for x in rest if x in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc")]
            emit(
                "atom", kind=kind, mode=names[0], a=base, offset=offset, d=None if op == "red" else value(0), b=value(at + 1),
                c=value(at + 2) if len(operands) > at + 2 else None, flags=self._memory_flags(rest),
            )  # fmt: skip
        elif op == "shfl":
            first, _, second = operands[0].partition("|")
            more = {"count": 2, "offset": self._operand(second, scope)} if second else {}
            emit("shfl", mode=rest[1], d=self._operand(first, scope), a=value(1), b=value(2), c=value(3), e=value(4), **more)
        elif op == "vote":
            emit("vote", mode=rest[1], d=value(0), a=value(1), e=value(2), flags=not_flag(1))
        elif op == "match":
            emit("match", d=value(0), a=value(1), e=value(2))
        elif op in ("stmatrix", "ldmatrix"):
            place, held = (0, 1) if op == "stmatrix" else (1, 0)
            base, offset = self._address_of(operands[place], scope)
            registers, count = self._vector(operands[held], scope)
            emit(
                op, kind="b16", a=base, b=registers, e=self._constant(2**32 - 1), offset=offset, count=count,
                flags=FLAGS["SHARED"] | (FLAGS["SECOND"] if "trans" in rest else 0),
            )  # fmt: skip
        elif op == "redux":
            emit("redux", kind=kind, mode=rest[1], d=value(0), a=value(1), e=value(2))
        elif op == "activemask":
            emit("activemask", d=value(0))
        elif op == "setp":
            first, _, second = operands[0].partition("|")
            modes = [x for x in rest[1:] if x in ("and", "or", "xor")]
            unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
            emit(
                "setp", kind=kind, comparison=COMPARISONS[unsigned.get(rest[0], rest[0])], mode=modes[0] if modes else "none",
                d=self._operand(first, scope), a=value(1), b=value(2), c=value(3) if len(operands) > 3 else None,
                flags=not_flag(3) if len(operands) > 3 else 0, count=2 if second else 1,
                e=self._operand(second, scope) if second else None,
            )  # fmt: skip
        elif op == "cvt" and any(x in ("f16x2", "bf16x2") for x in rest):
            emit("cvt_pair", kind="bf16" if "bf16x2" in rest else "f16", d=value(0), a=value(1), b=value(2))
        elif op == "cvt":
            modes = {"rni": "none", "rzi": "zero", "rmi": "floor", "rpi": "ceil"}
            found = [x for x in rest if x in modes]
            if any(x in ("rz", "rm", "rp") for x in rest):
                raise Unknown(op)
            flags = (FLAGS["SATURATE"] if "sat" in rest else 0) | (FLAGS["WHOLE"] if found else 0)
            mode = modes[found[0]] if found else "none"
            emit("cvt", kind=kinds[0], source=kinds[1], d=value(0), a=value(1), flags=flags, mode=mode)
        elif op == "cvta":
            name = ("to_shared" if "to" in rest else "from_shared") if "shared" in rest else "mov"
            emit(name, kind="b64", d=value(0), a=value(1))
        elif op == "mov" and operands[0].startswith("{"):
            to, count = self._vector(operands[0], scope)
            emit("unpack", kind=kind, d=to, a=value(1), count=count)
        elif op == "mov" and operands[1].startswith("{"):
            given, count = self._vector(operands[1], scope)
            emit("pack", kind=kind, d=value(0), a=given, count=count)
        elif op == "mov" and (operands[1] in self.local or operands[1] in self.parameters):
            base, offset = self._address_of(f"[{operands[1]}]", scope)
            emit("add", kind="b64", d=value(0), a=base, b=self._constant(offset))
        elif op in ("mul", "mad"):
            if any(x in ("rz", "rm", "rp", "ftz") for x in rest) or (op == "mad" and kind in ("f32", "f64")):
                raise Unknown(op)
            half = next((f"mul_{x}" for x in ("hi", "wide") if x in rest), "mul")
            to = value(0)
            if op == "mul":
                emit(half, kind=kind, d=to, a=value(1), b=value(2))
            else:
                between = self._slot(0)
                emit(half, kind=kind, d=between, a=value(1), b=value(2))
                wide = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}.get(kind, kind) if half == "mul_wide" else kind
                emit("add", kind=wide, d=to, a=between, b=value(3))
        elif op == "shf":
            flags = 0 if "wrap" in rest else FLAGS["SECOND"]
            emit(f"shf_{rest[0]}", d=value(0), a=value(1), b=value(2), c=value(3), flags=flags)
        elif op == "lop3":
            emit("lop3", d=value(0), a=value(1), b=value(2), c=value(3), e=value(4))
        elif op == "bfi":
            emit("bfi", kind=kind, d=value(0), a=value(1), b=value(2), c=value(3), e=value(4))
        elif op in ("min", "max"):
            emit(op, kind=kind, d=value(0), a=value(1), b=value(2), flags=FLAGS["KEEP_NAN"] if "NaN" in rest else 0)
        elif op == "bfind":
            emit(op, kind=kind, d=value(0), a=value(1), flags=FLAGS["SECOND"] if "shiftamt" in rest else 0)
        elif op in ("prefetch", "prefetchu", "discard", "griddepcontrol", "nanosleep", "createpolicy"):
            emit("nop")
        elif op in OPS and len(operands) in (2, 3, 4):
            if any(x in ("rz", "rm", "rp", "ftz") for x in rest):
                raise Unknown(op)
            places = dict(zip("abc", (value(i) for i in range(1, len(operands))), strict=False))
            emit(op, kind=kind, d=value(0), mode="near" if {"approx", "full"} & set(rest) else "none", **places)
        else:
            raise Unknown(op)

    @staticmethod
    def _memory_flags(rest: list[str]) -> int:
        flags = FLAGS["SHARED"] if any(x.startswith("shared") for x in rest) else 0
        if "acquire" in rest or "acq_rel" in rest:
            flags |= FLAGS["ACQUIRE"]
        if "release" in rest or "acq_rel" in rest:
            flags |= FLAGS["RELEASE"]
        return flags

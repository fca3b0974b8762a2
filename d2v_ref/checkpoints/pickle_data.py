"""Reading a pickle as data: nothing is imported, and nothing that the file names is ever called.

A pickle is a program for a small stack machine, and Python's own machine lets that program import and call whatever it
wants.  This one knows only the instructions that build plain data, listed in ``_PLAIN`` and in ``_Machine.step``; what
PyTorch needs beyond them (an OrderedDict, a tensor on a storage) is a table of names that its caller passes in.  The
standard library's ``pickletools.genops`` splits the bytes into instructions; it documents each of them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from d2v_ref.checkpoints.mapped import DOWNLOAD_AGAIN, short
from d2v_ref.errors import CheckpointError

MAX_PICKLE = 64 << 20
MAX_STEPS = 5_000_000  # also bounds the objects, of which an instruction makes one at most; a tensor takes about 60

SAVE_AGAIN = "If you trust the file, load it with PyTorch and save model.state_dict() with safetensors.torch.save_file."

_MARK = object()
_PUSH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NO_EFFECT = {"PROTO", "FRAME"}


@dataclass(frozen=True)
class Name:
    """A global that the pickle mentions, such as ``torch.FloatStorage``: its name, nothing more."""

    text: str


class RefusedError(Exception):
    """What a caller's function raises about the arguments that it was given."""


Call = Callable[[Any], Any]


def read_pickle(data: bytes, path: Path, names: Mapping[str, Call | None], persistent: Call) -> Any:
    """The object that the pickle describes.

    ``names`` are the globals that it may mention, each with our function of a tuple of arguments that stands for
    calling it, or None if it may be mentioned only.  ``persistent`` makes an object of a persistent id, a storage.
    """
    machine = _Machine(path, names, persistent)
    for step, (opcode, argument, position) in enumerate(_instructions(data, path)):
        if opcode == "STOP":
            return machine.result()
        try:
            if step == MAX_STEPS:
                raise RefusedError(f"more than {MAX_STEPS} instructions")
            machine.step(opcode, argument)
        except RefusedError as error:
            raise CheckpointError(f"byte {position} of its pickle: {error}", path=path, hint=DOWNLOAD_AGAIN) from None
    raise CheckpointError("its pickle has no end", path=path, hint=DOWNLOAD_AGAIN)


def _instructions(data: bytes, path: Path) -> Iterator[tuple[str, Any, int]]:
    try:
        for opcode, argument, position in pickletools.genops(data):
            yield opcode.name, argument, position or 0
    except Exception as error:  # genops says nowhere which it raises; ours do not pass through here
        raise CheckpointError(
            "its pickle is damaged", path=path, got=str(error)[:200] or type(error).__name__, hint=DOWNLOAD_AGAIN
        ) from None


class _Machine:
    """A stack, a memo of objects to be used again, and the instructions."""

    def __init__(self, path: Path, names: Mapping[str, Call | None], persistent: Call) -> None:
        self.path, self.names, self.persistent = path, names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif opcode in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[opcode])
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))
        elif opcode not in _NO_EFFECT:
            action = self.ACTIONS.get(opcode)
            if action is None:
                raise CheckpointError(
                    f"its pickle uses the instruction {opcode}, which no state dict needs",
                    path=self.path,
                    hint=SAVE_AGAIN,
                )
            action(self, argument)

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise CheckpointError("its pickle ends too early", path=self.path, hint=DOWNLOAD_AGAIN)
        return self.stack[0]

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedError("an instruction takes an object that is not there")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise RefusedError("a mark is missing")
        self.stack.pop()
        return items[::-1]

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise RefusedError(f"expected a {kind.__name__} to fill")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def empty_list(self, _: Any) -> None:
        self.stack.append([])

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self, _: Any) -> None:
        item = self.pop()
        self.top(list).append(item)

    def appends(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    def set_items(self, _: Any) -> None:
        self.fill(self.pop_to_mark())

    def fill(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise RefusedError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Text and integers only: hashing a tuple of tuples can take forever.
            if not isinstance(key, str | int):
                raise RefusedError(f"a key is a {type(key).__name__} (expected text)")
            if key in target:
                raise RefusedError(f"the key {short(key)} comes twice")
            target[key] = value

    def put(self, index: int | None) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedError("an instruction keeps an object that is not there")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise RefusedError(f"no object was kept as number {index}")
        self.stack.append(self.memo[index])

    def name(self, argument: str) -> None:
        self.mention(*argument.split(" ", 1))  # genops puts a space between module and name

    def name_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedError("a name is not text")
        self.mention(module, name)

    def mention(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in self.names:
            refuse_name(text, self.path)
        self.stack.append(Name(text))

    def reduce(self, _: Any) -> None:
        arguments, name = self.pop(), self.pop()
        call = self.names[name.text] if isinstance(name, Name) else None
        if call is None or not isinstance(arguments, tuple):
            raise RefusedError(f"calls {name.text if isinstance(name, Name) else 'an object'}, which is not a function")
        self.stack.append(call(arguments))

    def build(self, _: Any) -> None:
        """PyTorch keeps the versions of a state dict's modules in an attribute of it.  No value depends on them."""
        state = self.pop()
        self.top(dict)
        if not isinstance(state, dict) or state.keys() != {"_metadata"}:
            raise RefusedError("sets attributes other than a state dict's _metadata")

    def persistent_id(self, _: Any) -> None:
        self.stack.append(self.persistent(self.pop()))

    ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
        "MARK": mark,
        "EMPTY_DICT": empty_dict,
        "EMPTY_LIST": empty_list,
        "TUPLE": make_tuple,
        "APPEND": append,
        "APPENDS": appends,
        "SETITEM": set_item,
        "SETITEMS": set_items,
        "BINPUT": put,
        "LONG_BINPUT": put,
        "MEMOIZE": put,
        "BINGET": get,
        "LONG_BINGET": get,
        "GLOBAL": name,
        "STACK_GLOBAL": name_from_stack,
        "REDUCE": reduce,
        "BUILD": build,
        "BINPERSID": persistent_id,
    }


_KINDS = {  # the start of a name, and what a file holds that mentions it
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch.Q": "a quantized tensor",
    "torch._utils._rebuild_sparse": "a sparse tensor",
    "torch.serialization._get_layout": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor": "a tensor without data",
    "torch.Complex": "complex numbers",
    "torch.complex": "complex numbers",
    "torch.float8": "8-bit floating-point numbers",
    "torch._tensor._rebuild_from_type_v2": "a tensor with attributes of its own",
}


def refuse_name(name: str, path: Path) -> NoReturn:
    kind = next((kind for start, kind in _KINDS.items() if name.startswith(start)), None)
    if kind is not None:
        raise CheckpointError(f"holds {kind} ({short(name)}), which can't be read here", path=path, hint=SAVE_AGAIN)
    raise CheckpointError(
        f"the file asks to run code, {short(name)}, which was not run",
        path=path,
        expected="a state dict: names and tensors only",
        hint=SAVE_AGAIN,
    )

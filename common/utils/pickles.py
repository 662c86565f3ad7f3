"""Unpickle files that others wrote, without running what they name and in time and memory bounded by their size.

A pickle is a program: unpickling calls whatever the file names, and a few hundred bytes can describe keys whose hash
takes centuries, or lists within lists of more elements than atoms. Here each name that a format needs becomes an inert
record, every other name is refused before anything runs, and what comes out is a tree of bounded size.
"""

import pickle
import reprlib
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

MAX_OBJECTS = 1_000_000  # in a tree; an object that occurs twice is two
MAX_DEPTH = 50  # of containers within containers
LARGEST_KEY = 2**32  # larger whole numbers can be chosen so that all have one hash


class Refused(Exception):
    """Why a file is not read. Its text is one line."""


class Record:
    """In place of an object of a library: keeps its arguments and state, runs nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


# `pickle.Unpickler`, written in C, allocates as many objects and as long a text as a file of a few bytes claims to
# hold. Its twin in Python does not, and lets opcodes be replaced, but has no public name (2026-11).
class BoundedUnpickler(pickle._Unpickler):
    """Reads a pickle as plain values and records.

    Args:
        file: a position in it; the pickle need not be its end.
        records: (module, name) -> what stands in for it.

    Raises:
        Refused: by `load`, for names and keys that a format does not need. A damaged file raises almost anything.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[list[Any]]
    append: Any
    pop_mark: Any

    def __init__(self, file: BinaryIO, records: Mapping[tuple[str, str], type]) -> None:
        super().__init__(file, encoding="latin1")
        self.records = records

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self.records:
            what = f"{module}.{name}" if len(module) + len(name) < 100 else reprlib.repr(name)
            raise Refused(f"it wants to run {what}, which such a file does not need; nothing was run")
        return self.records[module, name]

    def put_items(self) -> None:
        """Keys and values above the mark, into the dictionary below it."""
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and abs(key) < LARGEST_KEY):
                raise Refused("it holds a dictionary whose keys are neither texts nor whole numbers")
            target[key] = value

    def put_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.metastack.append(self.stack)
        self.stack = [key, value]
        self.put_items()

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.metastack.append(self.stack)
        self.stack = items
        self.put_items()

    def drop_items(self) -> None:
        """Of a set: they would be hashed, and no format needs them."""
        self.pop_mark()

    def make_frozenset(self) -> None:
        self.pop_mark()
        self.append(None)

    def build(self) -> None:
        """Only records have a state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise Refused("it gives a state to an object that has none")
        self.stack[-1].__setstate__(state)

    dispatch |= {
        pickle.SETITEM[0]: put_item,
        pickle.SETITEMS[0]: put_items,
        pickle.DICT[0]: make_dict,
        pickle.ADDITEMS[0]: drop_items,
        pickle.FROZENSET[0]: make_frozenset,
        pickle.BUILD[0]: build,
        # That of bytearrays allocates what a few bytes claim.
        pickle.BYTEARRAY8[0]: dispatch[pickle.BINBYTES8[0]],
    }


def check_tree(content: Any) -> None:
    """Check that a value can be walked, compared and formatted in bounded time.

    Raises:
        Refused: more than `MAX_OBJECTS` in it, deeper than `MAX_DEPTH`, or within itself.
    """
    count, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        children: Any = ()
        if isinstance(value, Record):
            children = (*value.args, value.state)
        elif isinstance(value, dict):
            children = value.values()
        elif isinstance(value, list | tuple):
            children = value
        count += len(children)
        if count > MAX_OBJECTS or depth > MAX_DEPTH:
            raise Refused("it holds too many objects, or one that contains itself")
        waiting += [(child, depth + 1) for child in children]

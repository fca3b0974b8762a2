"""Paths as a tree in which layers that are alike stand once: ``encoder.layer.0-11``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Branch:
    """What stands under a step of a path.

    Attributes:
        name: the step, or several where nothing else begins at the first of them; ``0-11`` for twelve that are alike.
        value: what was given for this path; None if nothing was.
        inner: the branches under it.
        times: how many are alike.
    """

    name: str
    value: Any = None
    inner: list[Branch] = field(default_factory=list)
    times: int = 1


def tree(rows: Iterable[tuple[str, Any]]) -> Branch:
    """Values by path (``encoder.layer.0``), folded: numbered neighbours with equal contents become one branch."""
    root = Branch("")
    known = {"": root}
    for path, value in rows:
        known.setdefault(path, _grown(known, path)).value = value
    return _folded(root)


def ranges(paths: Iterable[str]) -> list[str]:
    """The same paths, those that differ in a number written once where they are neighbours."""
    return list(_names(tree((path, True) for path in paths), ""))


_DEEPEST = 50  # no model has as many steps; a name in a file may have any number of points


def _grown(known: dict[str, Branch], path: str) -> Branch:
    """The branch of a path, with those that lead to it."""
    if path not in known:
        before, _, step = path.rpartition(".") if path.count(".") < _DEEPEST else ("", "", path)
        known[path] = Branch(step)
        _grown(known, before).inner.append(known[path])
    return known[path]


def _names(branch: Branch, before: str) -> Iterator[str]:
    path = f"{before}.{branch.name}" if before else branch.name
    if branch.value is not None:
        yield path
    for inner in branch.inner:
        yield from _names(inner, path)


def _folded(branch: Branch) -> Branch:
    inner: list[Branch] = []
    for one in map(_folded, branch.inner):
        joined = _joined(inner[-1], one) if inner else None
        if joined is None:
            inner.append(one)
        else:
            inner[-1] = joined
    if branch.name and branch.value is None and len(inner) == 1:
        only = inner[0]
        return Branch(f"{branch.name}.{only.name}", only.value, only.inner, only.times)
    return Branch(branch.name, branch.value, inner)


_NUMBERED = re.compile(r"(?:(\d+)-)?(\d+)((?:\..*)?)")


def _joined(before: Branch, one: Branch) -> Branch | None:
    """Two neighbours as one branch, or None if they are not alike."""
    a, b = _NUMBERED.fullmatch(before.name), _NUMBERED.fullmatch(one.name)
    if a is None or b is None or b[1] is not None or int(a[2]) + 1 != int(b[2]) or a[3] != b[3]:
        return None
    if (before.value, before.inner) != (one.value, one.inner) or one.times != 1:
        return None
    return Branch(f"{a[1] or a[2]}-{b[2]}{a[3]}", one.value, one.inner, before.times + 1)

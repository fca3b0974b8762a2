"""Backends by name, found through the entry-point group ``d2v_ref.backends``.

A package that declares ``[project.entry-points."d2v_ref.backends"] fast = "package.module:FastOps"`` adds
``backend="fast"``.  Nothing is imported before it is asked for, and a backend that can't run is an error: it never
becomes another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from d2v_ref.errors import BackendError
from d2v_ref.ops.definitions import Ops

GROUP = "d2v_ref.backends"


@dataclass(frozen=True)
class BackendInfo:
    """A backend that is registered on this machine: whether it runs here, and which operations it computes itself."""

    name: str
    available: bool
    overrides: tuple[str, ...] = ()
    reason: str = ""


def _load(name: str) -> type[Ops]:
    if name == Ops.name:
        return Ops
    found = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in found:
        raise BackendError(f"no backend is called {name!r}", expected=" or ".join([Ops.name, *sorted(found)]))
    try:
        backend = found[name].load()
    except BackendError:
        raise  # which says itself what is missing
    except Exception as error:  # a third party's import may fail in any way: no driver, no such attribute
        hint = f"Install what it needs: pip install 'd2v-ref[{name}]' if the backend is one of ours"
        reason = f"{type(error).__name__}: {error}"
        raise BackendError(f"backend {name} can't be imported here: {reason}", hint=hint) from None
    if not (isinstance(backend, type) and issubclass(backend, Ops)):
        raise BackendError(
            f"backend {name} is not a backend", got=found[name].value, expected="a subclass of d2v_ref.ops.Ops"
        )
    lacks = backend.lacks()
    if lacks is not None:
        raise lacks
    return backend


def get_ops(backend: str | Ops = "numpy", dtype: str = "float32") -> Ops:
    """The operations of a backend by name, or an ``Ops`` that somebody made, as it is."""
    if isinstance(backend, Ops):
        return backend
    return _load(backend)(dtype)


def backends() -> list[BackendInfo]:
    """Every registered backend, with the reason where one can't run here."""
    names = [Ops.name, *sorted({point.name for point in metadata.entry_points(group=GROUP)})]
    found = []
    for name in names:
        try:
            found.append(BackendInfo(name, True, tuple(_load(name).overrides())))
        except BackendError as error:
            found.append(BackendInfo(name, False, reason=str(error)))
    return found

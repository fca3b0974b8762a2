"""Messages: one line whatever they hold, with every part; and the codes that the command line returns."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from d2v_ref import errors
from d2v_ref.errors import D2VError

CLASSES: list[type[D2VError]] = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, D2VError)
]
parts = st.none() | st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.binary()


@given(message=st.text(), path=st.none() | st.text(), got=parts, expected=parts, hint=st.none() | st.text())
def test_a_message_is_one_line_and_holds_every_part(
    message: str, path: Any, got: Any, expected: Any, hint: Any
) -> None:
    text = str(D2VError(message, path=path, got=got, expected=expected, hint=hint))
    assert len(text.splitlines()) <= 1
    for part in (message, path, got, expected, hint):
        if part is not None:
            assert " ".join(str(part).split()) in text


def test_the_parts_have_an_order() -> None:
    error = D2VError("has the wrong\nsize", path=Path("a") / "b", got=(1, 2), expected=3, hint="Make\r\n\tit 3")
    assert str(error) == f"{Path('a') / 'b'}: has the wrong size (got (1, 2); expected 3). Make it 3"
    assert str(D2VError("m", got="x" * 300, hint="h")) == f"m (got {'x' * 300}). h"
    assert str(D2VError("m", got="x" * 301, hint="h")) == f"m (got {'x' * 300} ...). h"  # not all of an array
    assert str(D2VError("m", got=0)) == "m (got 0)"  # falsy is not absent
    assert str(D2VError("m", got="", expected="x")) == "m (got ; expected x)"
    assert str(D2VError("m")) == "m"
    assert (error.message, error.got, error.expected, error.hint) == (
        "has the wrong\nsize",
        (1, 2),
        3,
        "Make\r\n\tit 3",
    )


def test_every_error_is_in_the_tree() -> None:
    assert [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)
    ] == CLASSES
    assert all(error.__doc__ for error in CLASSES)


def test_exit_codes() -> None:
    """1 a failed comparison, 2 a wrong input or use, 3 something that this machine lacks."""
    assert {error.__name__: error.exit_code for error in CLASSES} == {
        "D2VError": 2,
        "CheckpointError": 2,
        "UnavailableError": 3,
        "MissingPackageError": 3,
        "ConfigError": 2,
        "InputError": 2,
        "BackendError": 3,
        "ConformanceError": 1,
    }
    assert issubclass(errors.UnavailableError, errors.CheckpointError)

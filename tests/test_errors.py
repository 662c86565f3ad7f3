"""The one place where errors get the name of what they are about."""

import json

import pytest

from common.errors import UserError, error_context


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory"),
            "cannot read a.json: No such file or directory; put it there",
        ),
        (
            json.JSONDecodeError("Expecting value", "", 0),
            "cannot read a.json: Expecting value: line 1 column 1 (char 0)",
        ),
        (UserError("it is empty"), "cannot read a.json: it is empty; put it there"),
        (ValueError(), "cannot read a.json: ValueError; put it there"),
    ],
)
def test_an_error_gets_its_subject_and_advice(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as raised, error_context("cannot read a.json", ValueError, advice="put it there"):
        raise error
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("error", [KeyError("a bug"), MemoryError(), OSError(12, "Cannot allocate memory")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, error_context("cannot read a.json", ValueError):
        raise error
    assert raised.value is error

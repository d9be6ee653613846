"""The error tree: what each class tells a caller, and that the docstring draws the tree that exists."""

from __future__ import annotations

import pickle
import re

import pytest

import fastpaxos_core.errors
from fastpaxos import errors

CLIENT_ERRORS = {
    # class: (may have applied, retryable)
    errors.Busy: (False, True),
    errors.NoLeader: (False, True),
    errors.Rejected: (False, True),
    errors.NotApplied: (False, True),
    errors.TooLarge: (False, False),
    errors.OutcomeUnknown: (True, False),
    errors.DeadlineExceeded: (True, False),
    errors.ConnectionLost: (True, False),
    errors.ResultGone: (True, False),
    errors.SessionExpired: (True, False),
    errors.CommandError: (True, False),
    errors.Closed: (False, False),
}


def make(kind: type[errors.ClientError]) -> errors.ClientError:
    return errors.CommandError("ValueError", "odd") if kind is errors.CommandError else kind("what happened")


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
def test_client_errors_say_whether_the_command_may_have_applied(kind: type[errors.ClientError]) -> None:
    error = make(kind)
    assert (error.may_have_applied, error.retryable) == CLIENT_ERRORS[kind]


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
def test_only_not_applied_and_closed_promise_that_nothing_happened(kind: type[errors.ClientError]) -> None:
    assert (not make(kind).may_have_applied) == issubclass(kind, errors.NotApplied | errors.Closed)
    assert make(kind).may_have_applied == issubclass(kind, errors.OutcomeUnknown | errors.CommandError)


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind: type[errors.ClientError]) -> None:
    error = make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_a_query_changes_nothing_whatever_the_error() -> None:
    late = errors.DeadlineExceeded("late").of_query()
    assert (late.may_have_applied, late.retryable) == (False, True)
    raised = errors.CommandError("KeyError", "x").of_query()
    assert (raised.may_have_applied, raised.retryable) == (False, False)
    assert errors.DeadlineExceeded("late").may_have_applied, "the class itself must not change"


def test_command_error_names_type_and_message() -> None:
    error = errors.CommandError("ValueError", "odd")
    assert (error.type_name, error.message) == ("ValueError", "odd")
    assert str(error) == "the state machine raised ValueError: odd"


def test_core_errors_are_the_same_classes() -> None:
    for name in fastpaxos_core.errors.__all__:
        assert getattr(errors, name) is getattr(fastpaxos_core.errors, name)


def test_every_error_is_exported_and_has_one_root() -> None:
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(errors.__all__) == set(classes)
    assert all(issubclass(kind, errors.FastPaxosError) for kind in classes.values())


def test_the_docstring_draws_the_tree() -> None:
    drawn: dict[str, str | None] = {}
    stack: list[tuple[int, str]] = []
    for match in re.finditer(r"^    ([│├└─ ]*)([A-Z]\w+)\b", errors.__doc__ or "", re.MULTILINE):
        depth, name = len(match[1]) // 4, match[2]
        stack = [entry for entry in stack if entry[0] < depth]
        drawn[name] = stack[-1][1] if stack else None
        stack.append((depth, name))
    actual = {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__}
    actual["FastPaxosError"] = None
    assert drawn == actual

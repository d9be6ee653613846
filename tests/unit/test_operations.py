"""Histories survive their way through a file, and lines that are none are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastpaxos.testing.operations import Operation, read_history, write_history
from histories import NOT_APPLIED, OK, READ, WRITE, cas, delete, not_applied, read, write

ODD = [
    read(1, 2, b"\x00\xff\n"),
    read(1, 1, None),
    write(0, None, b""),
    cas(1, 2, None, b"a", swapped=False),
    delete(3, 4, existed=True),
    not_applied(write(5, 6, b"b")),
    replace(cas(7, None, b"a", b"c"), slot=12, client="client \u00e9"),
]


def test_a_history_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    write_history(path, ODD)
    assert list(read_history(path)) == ODD
    assert len(path.read_text(encoding="ascii").splitlines()) == len(ODD)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no operation"),
        ("[]", "no operation"),
        ("{}", "'result'"),
        (write(0, 1, b"a").to_json().replace("write", "put"), "OperationKind"),
        (write(0, 1, b"a").to_json().replace('"61"', '"6"'), "hexadecimal"),
        (write(0, 1, b"a").to_json().replace('"61"', "null"), "no value"),
        (write(3, 1, b"a").to_json(), "answered at 1 ns, asked at 3 ns"),
    ],
)
def test_a_line_that_is_no_operation_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{ODD[0].to_json()}\n{line}\n", encoding="ascii")
    with pytest.raises(ValueError, match=rf"history\.jsonl, line 2: .*{reason}"):
        list(read_history(path))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Operation("c", b"k", READ, b"v", None, 0), "a value"),
        (Operation("c", b"k", WRITE, None, None, 0), "no value"),
        (Operation("c", b"k", WRITE, b"v", None, 0, None, OK), "no time of the answer"),
        (Operation("c", b"k", READ, None, None, 0, 1, OK, True), "a result of another type"),
        (cas(0, 1, None, b"v", swapped=None), "a result of another type"),
    ],
)
def test_what_no_client_can_have_seen_is_refused(operation: Operation, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        operation.validate()
    replace(operation, value=b"v" if operation.kind is not READ else None, outcome=NOT_APPLIED).validate()


def test_a_line_for_people_says_what_was_asked_and_told() -> None:
    assert str(cas(1, 2, b"a", b"b")) == "c: cas b'k' b'a' -> b'b' = True [1, 2] ns"
    assert str(write(1, None, b"a")) == "w: write b'k' b'a' = unknown [1, None] ns"

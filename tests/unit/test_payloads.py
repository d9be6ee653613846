"""The sweep of payload sizes: which blocks are tried, and what a row says."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos.cli import main
from fastpaxos.cli.payloads import PAYLOAD_BYTES_MAX, SIZES, _Size, batch_candidates, describe_floors, describe_size

LATENCY: Any = {"p50": 1.0, "p99": 2.0, "p999": 3.0, "max": 4.0}


@pytest.mark.parametrize("size", [*map(int, SIZES.split(",")), 1, PAYLOAD_BYTES_MAX])
def test_blocks_that_are_tried_fit(size: int) -> None:
    batches = batch_candidates(size)
    assert batches == sorted(set(batches))
    assert 1 <= min(batches) <= max(batches) <= 16_384
    assert max(batches) * (size + 4) <= (1 << 20) - 4096
    # Small and large blocks are among them, unless one command is a large block.
    assert min(batches) * (size + 4) <= max(16 << 10, size + 4)
    assert max(batches) * (size + 4) > 256 << 10 or max(batches) == 16_384


def test_a_row_has_medians_and_the_ratio_of_block_bytes() -> None:
    known = _Size(batch=10, acknowledged=50, applied=50)
    known.commands_per_second = [1_000.0, 3_000.0, 2_000.0]
    known.latency_us = [LATENCY, LATENCY | {"p50": 9.0}, LATENCY | {"p50": 5.0}]
    known.alone_latency_us = [LATENCY] * 3
    floors: Any = [
        {"bytes_per_second": speed, "payload_bytes_per_frame": 65_536, "window": 4, "latency_us": LATENCY}
        for speed in (200_000, 600_000, 100_000)
    ]
    row = describe_size(100, known, floors)
    header = row["block_bytes"] - 10 * 100
    assert 0 < header < 100
    assert (row["commands_per_second"], row["bytes_per_second"]) == (2_000, 200_000)
    # Each round against the floor of the same round: 1000 / 200, 3000 / 600, 2000 / 100 commands.
    expected = 100 * (1 + header / 1000) / 200
    assert row["rounds"]["ratio_to_floor"] == pytest.approx([expected, expected, expected * 4], abs=0.01)
    assert row["ratio_to_floor"] == pytest.approx(expected, abs=0.01)
    assert row["latency_us"] == LATENCY | {"p50": 5.0}
    assert row["verdict"]
    assert describe_floors(floors) == {
        "bytes_per_second": 200_000,
        "payload_bytes_per_frame": 65_536,
        "window": 4,
        "latency_us": LATENCY,
        "rounds": {"bytes_per_second": [200_000, 600_000, 100_000]},
    }


@pytest.mark.parametrize(
    "wrong", [_Size(acknowledged=1), _Size(applied=1), _Size(errors=1), _Size(digests_equal=False)]
)
def test_a_row_without_a_floor_tells_what_went_wrong(wrong: _Size) -> None:
    wrong.batch = 1
    wrong.commands_per_second = [1.0]
    wrong.latency_us = wrong.alone_latency_us = [LATENCY]
    row = describe_size(16, wrong, [])
    assert (row["verdict"], row["ratio_to_floor"], row["rounds"]["ratio_to_floor"]) == (False, None, [])
    assert describe_floors([]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "16,big"), "no list of sizes"),
        (("--sizes", "0"), "outside 1..1000000"),
        (("--sizes", "16,65536", "--batch", "100"), "lower --batch"),
        (("--clients", "2", "--load-processes", "3"), "load processes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_misuse_is_explained(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(("bench", "payloads", *arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err

"""What apply costs: sessions, result blobs, the hash chain and the key-value machine, at several batch sizes."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from fastpaxos import HashChain, KeyValueMachine
from fastpaxos.statemachine import ApplyContext, ResultBlob
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.results import decode_results, encode_results, uniform_results
from fastpaxos_core.sessions import SessionTable, Verdict

BATCH_SIZES = [1, 64, 1024, 4096]
PAYLOAD = b"0123456789abcdef"
KEYS = 1000
SESSIONS = 64


def per_command(benchmark: Any, count: int) -> None:
    benchmark.extra_info["commands_per_batch"] = count
    benchmark.extra_info["commands_per_second"] = round(count / benchmark.stats.stats.median)


@pytest.mark.benchmark(group="sessions")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_sessions(benchmark: Any, count: int) -> None:
    """Classify a batch and record its results, for 64 sessions in turn."""
    table = SessionTable()
    session_ids = [table.open(index.to_bytes(16, "little"), index + 1) for index in range(SESSIONS)]
    results = uniform_results(count, bytes(8 * count))
    batches = 0

    def record() -> None:
        nonlocal batches
        session_id = session_ids[batches % SESSIONS]
        first = batches // SESSIONS * count + 1
        if table.classify(session_id, first, count) == Verdict.APPLY:
            table.record(session_id, first, count, results, first, batches + SESSIONS)
        batches += 1

    benchmark(record)
    recorded = [table.last_sequence(session_id) for session_id in session_ids]
    assert sum(sequence or 0 for sequence in recorded) == batches * count
    per_command(benchmark, count)


@pytest.mark.benchmark(group="results")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_results(benchmark: Any, count: int) -> None:
    """Encode the results of a batch, and decode them at the client."""
    values = [b"%08d" % index for index in range(count)]
    assert benchmark(lambda: decode_results(encode_results(values), count)) == values
    per_command(benchmark, count)


@pytest.mark.benchmark(group="hash chain apply")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_hash_chain(benchmark: Any, count: int) -> None:
    """Fold a batch: what the machine of the benchmarks adds to a cluster."""
    machine = HashChain()
    view = BlockView(build_block([PAYLOAD] * count, 1, 1))
    batches = 0

    def apply() -> None:
        nonlocal batches
        machine.apply_batch(view, ApplyContext(batches * count + 1, 1))
        batches += 1

    benchmark(apply)
    assert machine.count == batches * count
    assert isinstance(machine.apply_batch(view, ApplyContext(1, 1)), ResultBlob)
    per_command(benchmark, count)


@pytest.mark.benchmark(group="key-value apply")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_key_value(benchmark: Any, count: int) -> None:
    """Puts of 16 bytes over a thousand keys."""
    machine = KeyValueMachine()
    commands = [msgpack.packb([1, b"key-%06d" % (index % KEYS), PAYLOAD, False]) for index in range(count)]
    view = BlockView(build_block(commands, 1, 1))
    batches = 0

    def apply() -> None:
        nonlocal batches
        machine.apply_batch(view, ApplyContext(batches * count + 1, 1))
        batches += 1

    benchmark(apply)
    assert machine.revision == batches * count
    assert len(machine) == min(count, KEYS)
    per_command(benchmark, count)

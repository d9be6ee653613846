"""What the gate counts beside core_batches.py: each function does its work `count` times and checks the result.

They are loops over one operation, so that the counts of N and 2 N differ by that operation and by the loop.
"""

from __future__ import annotations

import functools
from typing import Any

import msgpack

from fastpaxos import HashChain, KeyValueMachine
from fastpaxos.directory import MemoryDirectory
from fastpaxos.statemachine import ApplyContext
from fastpaxos_core import build_info
from fastpaxos_core.block import BlockView, build_block
from fastpaxos_core.directory import perform
from fastpaxos_core.journal import Journal
from fastpaxos_core.results import decode_results, encode_results, uniform_results
from fastpaxos_core.sessions import SessionTable, Verdict
from fastpaxos_core.wire import FrameSplitter, FrameWriter, parse_submit

PAYLOAD = b"0123456789abcdef"
SPLITTER_LIMITS = (1 << 20, 64 << 20, None)
SEGMENT_BYTES = 1 << 20
KEYS = 256

if build_info()["profile"] != "release":
    raise SystemExit(f"the gate counts the release build, this is {build_info()['profile']}: run `make build`")


def expect(name: str, found: object, wanted: object) -> None:
    """Raise unless the work gave what it must."""
    if found != wanted:
        raise ValueError(f"{name}: {found!r}, expected {wanted!r}"[:500])


def encode(count: int, commands: int, uniform: int) -> None:
    """Encode a client's block, of equal or of mixed lengths."""
    payloads = [b"x" * (16 if uniform else 8 + index % 17) for index in range(commands)]
    for _ in range(count):
        block = build_block(payloads, 1, 1)
    expect("commands of the block", list(BlockView(block)), payloads)


def decode(count: int, commands: int) -> None:
    """Decode a block into its commands."""
    payloads = [b"%016d" % index for index in range(commands)]
    block = build_block(payloads, 1, 1)
    for _ in range(count):
        decoded = list(BlockView(block))
    expect("commands of the block", decoded, payloads)


def split(count: int, commands: int, piece_bytes: int) -> None:
    """Split a stream of 16 Submit frames that arrives in pieces."""
    writer = FrameWriter(0, 1, 0, b"c" * 16)
    block = build_block([PAYLOAD] * commands, 1, 1)
    stream = b"".join(b"".join(writer.submit(block, request_id)) for request_id in range(16))
    pieces = [stream[start : start + piece_bytes] for start in range(0, len(stream), piece_bytes)]
    splitter = FrameSplitter(*SPLITTER_LIMITS)
    for _ in range(count):
        frames: list[Any] = []
        for piece in pieces:
            frames += splitter.feed(piece)
        expect("frames", len(frames), 16)
    expect("requests", [parse_submit(frame)[0] for frame in frames], list(range(16)))
    expect("blocks", {frame.body for frame in frames}, {block})


def seal(count: int, commands: int) -> None:
    """Append a batch to the journal, seal it into a group commit, report it as synced."""
    journal, _ = Journal.open(MemoryDirectory(), node_id=1, incarnation=7, boot=1, segment_bytes=SEGMENT_BYTES)
    block = build_block([PAYLOAD] * commands, 1, 1)
    sealed = 0
    for index in range(count):
        slot = index * commands + 1
        journal.append(slot, slot + commands, 65537, slot, block)
        write = journal.seal(65537, slot - 1)
        if write is None:
            raise ValueError("nothing was sealed")
        journal.synced(write.ticket)
        sealed += write.nbytes
    expect("bytes sealed cover the blocks", sealed >= count * len(block), True)


@functools.cache
def written_journal(commands: int, writes: int) -> MemoryDirectory:
    """A directory with a journal of so many group commits, all of them synced."""
    directory = MemoryDirectory()
    journal, _ = Journal.open(directory, node_id=1, incarnation=7, boot=1, segment_bytes=SEGMENT_BYTES)
    block = build_block([PAYLOAD] * commands, 1, 1)
    for index in range(writes):
        journal.append(index * commands + 1, (index + 1) * commands + 1, 65537, index, block)
        write = journal.seal(65537, index * commands)
        if write is None:
            raise ValueError("nothing was sealed")
        perform(directory, write)
        journal.synced(write.ticket)
    return directory


def recover(count: int, commands: int, writes: int) -> None:
    """Open a written journal, and read all that is committed back for the state machine."""
    directory = written_journal(commands, writes)
    written = set(directory.list())
    for _ in range(count):
        journal, recovery = Journal.open(directory, node_id=1, incarnation=7, boot=2, segment_bytes=SEGMENT_BYTES)
        slot = 1
        while slot <= recovery.commit_index:
            read = journal.locate(slot)
            if read is None:
                raise ValueError(f"slot {slot} is not in the journal")
            batches = journal.parse(read, directory.read(read.segment_name, read.offset, read.length))
            slot = batches[-1].slot_end
        for name in set(directory.list()) - written:
            # The segment that this start began; the next one finds the directory as this one did.
            directory.remove(name)
        expect("commit_index", recovery.commit_index, (writes - 1) * commands)
        expect("read back beyond it", slot > recovery.commit_index, True)


def sessions(count: int, commands: int) -> None:
    """Classify a batch of a session and record its results, as apply does."""
    table = SessionTable()
    session_id = table.open(bytes(16), 1)
    results = uniform_results(commands, bytes(8 * commands))
    for index in range(count):
        first = index * commands + 1
        expect("verdict", table.classify(session_id, first, commands), Verdict.APPLY)
        table.record(session_id, first, commands, results, first, first)
    expect("last sequence", table.last_sequence(session_id), count * commands)
    expect("a repetition", table.classify(session_id, (count - 1) * commands + 1, commands), Verdict.DUPLICATE)


def results(count: int, commands: int) -> None:
    """Encode the results of a batch and decode them again."""
    values = [b"%08d" % index for index in range(commands)]
    for _ in range(count):
        decoded = decode_results(encode_results(values), commands)
    expect("results", decoded, values)


def put(count: int, commands: int) -> None:
    """Apply a batch of puts to the key-value machine."""
    machine = KeyValueMachine()
    commands_of_batch = [kv_put(b"key-%06d" % (index % KEYS), PAYLOAD) for index in range(commands)]
    view = BlockView(build_block(commands_of_batch, 1, 1))
    for index in range(count):
        machine.apply_batch(view, ApplyContext(index * commands + 1, 1))
    expect("revision", machine.revision, count * commands)
    expect("keys", len(machine), min(commands, KEYS))


def kv_put(key: bytes, value: bytes) -> bytes:
    """The command that stores a value under a key (docs/protocol.md, "Key-value machine")."""
    command: bytes = msgpack.packb([1, key, value, False])
    return command


def fold(count: int, commands: int) -> None:
    """Apply a batch to the hash-chain machine."""
    machine = HashChain()
    view = BlockView(build_block([PAYLOAD] * commands, 1, 1))
    for index in range(count):
        machine.apply_batch(view, ApplyContext(index * commands + 1, 1))
    expect("commands folded", machine.count, count * commands)

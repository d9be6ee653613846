"""Valid inputs, made by the encoders that ship: what mutation starts from."""

from __future__ import annotations

import random

from fastpaxos.directory import MemoryDirectory
from fastpaxos.handshake import Identity
from fastpaxos.identity import DirectoryIdentity
from fastpaxos_core.block import build_block, build_control, build_noop, check_block, value_crc
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.mapping import pack_mapping
from fastpaxos_core.messages import encode_message
from fastpaxos_core.results import CommandFailure, encode_results, failure_results, uniform_results
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.wire import FrameType, FrameWriter, ReplyStatus
from fuzz.formats import INCARNATION, NODE_ID, SEGMENT_BYTES, U32, FrameFormat, WriteFormat
from journal_model import History, open_journal

CLUSTER = bytes(range(1, 17))
PEER, BALLOT = 2, 1 << 16 | 2
NONCE = bytes(range(16))


def blocks() -> list[bytes]:
    """Every shape of a block: uniform or not, empty commands, one and many, no-op, control, extreme sequences."""
    return [
        build_block([b"one", b"three", b""], 5, 6, 4),
        build_block([b"abcd"] * 4, 7, 1),
        build_block([b""] * 3, 7, 9),
        build_block([b"x"], 1, (1 << 64) - 2),
        build_block([bytes(index) for index in range(12)], 1 << 63, 100, 99),
        build_block([b"y" * 90, b"z"], 9, 9),
        build_noop(1),
        build_noop(1024),
        build_control(pack_mapping({"op": "open_session", "nonce": NONCE})),
        build_control(pack_mapping({"op": "close_session", "session_id": 17})),
    ]


def maps() -> list[bytes]:
    """Every control message and hello, and maps at the limits of depth and kinds of values."""
    identity = Identity(3, 9, INCARNATION, "fsync", CLUSTER, bytes(16), {1: 5, 2: 6, 3: INCARNATION}, 77)
    messages = [
        *(identity.hello(kind) for kind in ("client", "peer", "node")),
        Identity(1, 1, 1, "memory").hello("peer"),
        {"op": "open_session", "request_id": 1, "nonce": NONCE},
        {"op": "session_opened", "request_id": 1, "session_id": 44, "status": 0},
        {"op": "close_session", "request_id": 2, "session_id": 44},
        {"op": "status", "request_id": 3, "members": {1: "a:1", 2: "b:2"}, "load": 0.5, "leader": None, "ok": True},
        {"op": "leader_changed", "leader_id": 2, "leader_address": "127.0.0.1:7002"},
        {"op": "error", "request_id": 9, "status": 5, "message": "busy", "leader_id": 0, "leader_address": ""},
        {"op": "pre_vote", "question": 5, "commit_index": 1 << 40},
        {"op": "pre_vote_reply", "question": 5, "commit_index": 7, "granted": False},
        {"op": "resigned", "ballot": BALLOT},
        {"op": "founding", "record": records()[0]},
        {"op": "ping"},
        {"op": "refused", "reason": "cluster", "message": "höst"},
        {"a": {"b": {"c": {"d": {"e": {"f": [1, -1, -(1 << 63)]}}}}}},
    ]
    return [pack_mapping(message) for message in messages]


def records() -> list[bytes]:
    """Founding records of one, three and five members."""
    return [
        FoundingRecord(CLUSTER, {1: 5, 2: 6, 3: INCARNATION}, 2, 2, "fsync").encode(),
        FoundingRecord(bytes(16), {9: 1}, 1, 1, "memory", 1, 1).encode(),
        FoundingRecord(CLUSTER, {65535: (1 << 64) - 1, 1: 1, 2: 2, 3: 3, 4: 4}, 4, 2, "write", 4096, 1 << 20).encode(),
    ]


def results() -> list[bytes]:
    """Every shape of a result blob."""
    failure = CommandFailure("ValueError", "no such key: ü")
    return [
        encode_results([b"a", b"bcd", b""]),
        encode_results([b"ab"] * 9),
        encode_results([b"ok", failure, b"", failure, b"five", b"6", b"7", b"8", failure]),
        encode_results([failure]),
        uniform_results(4, bytes(32)),
        failure_results(3, failure),
        failure_results(16, failure),
    ]


def entry_of(slot_begin: int, block: bytes, ballot: int = BALLOT, flags: int = 0) -> dict[str, object]:
    """A batch of a message: the slots that its block fills."""
    check_block(block)
    slot_end = slot_begin + U32.unpack_from(block, 8)[0]
    crc = value_crc(slot_begin, slot_end, 5, U32.unpack_from(block, 4)[0])
    return {
        "slot_begin": slot_begin, "slot_end": slot_end, "ballot": ballot, "timestamp_ns": 5, "value_crc": crc,
        "flags": flags, "block_bytes": len(block), "block": block,
    }  # fmt: skip


def messages() -> list[bytes]:
    """Every replica message of a peer of node 3: with no entries, one and several."""
    writer = FrameWriter(PEER, 1000 + PEER, 1, bytes(16))
    first = entry_of(1, build_block([b"a", b"bc"], 5, 1))
    entries = [first, entry_of(3, build_noop(4)), entry_of(7, build_control(pack_mapping({"op": "x"})))]
    learned = [{**entry, "flags": 1} for entry in entries]
    described = [{key: value for key, value in entry.items() if key != "block"} for entry in entries]
    unknown = {**described[0], "slot_begin": 9, "slot_end": 12, "flags": 2, "value_crc": 0, "block_bytes": 0}
    ranges = [{key: entry[key] for key in ("slot_begin", "slot_end", "value_crc")} for entry in entries]
    head = {"commit_index": 0, "everywhere_durable": 0}
    return [
        encode_message(writer, "prepare", BALLOT, slot_begin=1),
        encode_message(writer, "promise", BALLOT, slot_begin=1, proposer_boot=1, part_count=1),
        encode_message(writer, "promise", BALLOT, [*described, unknown], slot_begin=1, proposer_boot=1, part_count=2),
        encode_message(writer, "accept", BALLOT, [first], **head),
        encode_message(writer, "accept", BALLOT, entries, commit_index=2, everywhere_durable=1),
        encode_message(writer, "accept", BALLOT, [], **head),
        encode_message(writer, "accepted", BALLOT, ranges, commit_index=1, durable_index=1, proposer_boot=1),
        encode_message(writer, "nack", BALLOT, promised_ballot=BALLOT + 1, commit_index=4),
        encode_message(writer, "commit", BALLOT, commit_index=6, everywhere_durable=2),
        encode_message(writer, "heartbeat", BALLOT, commit_index=2, everywhere_durable=0, read_round=7),
        encode_message(writer, "heartbeat_reply", BALLOT, read_round=7, commit_index=2, proposer_boot=1),
        encode_message(writer, "fetch", 0, request_id=4, slot_begin=1, bytes_max=1 << 20),
        encode_message(writer, "fetch", BALLOT, request_id=4, slot_begin=1, slot_end=3, bytes_max=100, value_crc=9),
        encode_message(writer, "learn", BALLOT, learned, request_id=2, commit_index=7),
        encode_message(writer, "learn", BALLOT, [], request_id=2, commit_index=7),
    ]


def frames() -> list[bytes]:
    """Every frame type alone, and some of them in one stream."""
    writer = FrameWriter(0, INCARNATION, 0, CLUSTER)
    peer = FrameWriter(PEER, INCARNATION, 4, CLUSTER)
    alone = [
        *(peer.hello(unpacked) for unpacked in ({"kind": "peer", "members": {1: "a:1"}}, {})),
        writer.control({"op": "status", "request_id": 4}),
        *(b"".join(writer.submit(block, 77 + index, 1000)) for index, block in enumerate(blocks()[:4])),
        writer.query(8, b"get", 50, 0, 9),
        peer.query_reply(8, ReplyStatus.COMMAND_ERROR, 2, 44, b"\x92\xa1E\xa1m"),
        *(b"".join(peer.reply(1, 2, 3, 4, ReplyStatus.OK, 0, 5, blob)) for blob in results()[:3]),
        b"".join(peer.reply(1, 2, 3, 4, ReplyStatus.BUSY, 2, 0)),
        peer.encode(FrameType.NACK, 9, bytes(16)),
    ]
    for message in messages():
        data = bytearray(message)
        data[24:40] = CLUSTER
        FrameFormat().seal(data)
        alone.append(bytes(data))
    return [*alone, b"".join(alone[:4]), b"".join(alone[3:9]), b"".join(alone[-3:]), b"".join(alone[9:14])]


def histories(steps: int = 40) -> list[MemoryDirectory]:
    """Journals with several segments: batches, re-proposals, refills, markers, starts."""
    found = []
    for seed in range(1, 9):
        history = History.start(seed, SEGMENT_BYTES, block_bytes_max=120).run(steps)
        if seed % 2:
            directory = history.directory.crash() if seed == 3 else history.directory.copy()
            journal, recovery = open_journal(directory, 2, SEGMENT_BYTES)
            history.go_on(directory, journal, recovery)
            history.run(steps // 3)
        found.append(history.directory)
    return found


def journals() -> list[bytes]:
    """The segments of those journals, one behind the other from number 1 on; a missing one is all zeros."""
    found = []
    for directory in histories():
        segments = {int(name[8:24], 16): directory.read(name, 0, directory.size(name)) for name in directory.list()}
        if max(map(len, segments.values())) <= SEGMENT_BYTES:
            none = bytes(SEGMENT_BYTES)
            found.append(b"".join(segments.get(number, none) for number in range(1, max(segments) + 1)))
    return found


def writes() -> list[bytes]:
    """Single writes of those journals, sealed again for the place where they are judged."""
    found = {}
    for journal in journals():
        for place in range(0, len(journal), 512):
            if journal[place : place + 4] == b"FPJW":
                total_bytes = int.from_bytes(journal[place + 16 : place + 24], "little")
                write = bytearray(journal[place : place + total_bytes])
                WriteFormat().seal(write)
                found.setdefault((len(write), write[5], write[6], write[12]), bytes(write))
    return random.Random(5).sample(sorted(found.values()), min(len(found), 24))


def segment_headers() -> list[bytes]:
    """Headers of ordinary segments and of those that a start made."""
    found = {journal[place : place + 512] for journal in journals() for place in range(0, len(journal), SEGMENT_BYTES)}
    return sorted(found)


def identities() -> list[bytes]:
    """Identity files, founded and not."""
    return [
        DirectoryIdentity(NODE_ID, INCARNATION, 1, "fsync", "boot", False, b"", 0).encode(),
        DirectoryIdentity(1, 1, 1 << 31, "memory", "", True, records()[0], 1 << 40).encode(),
    ]


def session_tables() -> list[bytes]:
    """States of the session table: empty, open sessions, kept results."""
    table = SessionTable(8, 4096, 1 << 16)
    states = [table.to_state()]
    for slot in range(1, 5):
        table.open(bytes([slot]) * 16, slot)
    states.append(table.to_state())
    for step in range(6):
        table.record(1 + step % 3, 1 + 2 * (step // 3), 2, results()[step % 3], 0, 10 + step)
    states.append(table.to_state())
    return states

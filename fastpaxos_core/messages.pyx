"""Replica-to-replica messages: C layouts for the core, and a readable form for tests and tools."""

import struct

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastpaxos_core.errors import FrameError

from fastpaxos_core.types cimport uint8_t, uint64_t
from fastpaxos_core.wire cimport (
    FRAME_ACCEPT,
    FRAME_ACCEPTED,
    FRAME_COMMIT,
    FRAME_FETCH,
    FRAME_HEARTBEAT,
    FRAME_HEARTBEAT_REPLY,
    FRAME_LEARN,
    FRAME_NACK,
    FRAME_PREPARE,
    FRAME_PROMISE,
    Frame,
)


cdef const uint8_t* head_of(object frame, size_t fixed_bytes) except NULL:
    cdef bytes head = (<Frame>frame).head
    if <size_t>PyBytes_GET_SIZE(head) < fixed_bytes:
        raise FrameError(f"frame type {(<Frame>frame).type} has a head of {len(head)} bytes, it needs {fixed_bytes}")
    return <const uint8_t*>PyBytes_AS_STRING(head)


cdef int check_entries(object frame, size_t fixed_bytes, uint64_t entry_count, size_t entry_bytes) except -1:
    cdef bytes head = (<Frame>frame).head
    if <uint64_t>PyBytes_GET_SIZE(head) != fixed_bytes + entry_count * entry_bytes:
        raise FrameError(
            f"frame type {(<Frame>frame).type} names {entry_count} entries of {entry_bytes} bytes, "
            f"but its head has {len(head)} bytes"
        )
    if PyBytes_GET_SIZE((<Frame>frame).body) and not _has_blocks((<Frame>frame).type):
        raise FrameError(f"frame type {(<Frame>frame).type} has a body of {len((<Frame>frame).body)} bytes, "
                         f"expected none")
    return 0


cdef bint _has_blocks(int frame_type) noexcept:
    return frame_type == FRAME_ACCEPT or frame_type == FRAME_LEARN


# name of the message, struct format of its fixed head, names of its fields, struct format and names of its entries
_DESCRIPTOR = ("<QQQqIIII", ("slot_begin", "slot_end", "ballot", "timestamp_ns", "block_bytes", "value_crc", "flags",
                             "reserved"))
_LAYOUTS = {
    FRAME_PREPARE: ("prepare", "<Q", ("slot_begin",), None),
    FRAME_PROMISE: ("promise", "<QQIIII",
                    ("commit_index", "slot_begin", "proposer_boot", "part", "part_count", "entry_count"), _DESCRIPTOR),
    FRAME_ACCEPT: ("accept", "<QQII", ("commit_index", "everywhere_durable", "entry_count", "reserved"), _DESCRIPTOR),
    FRAME_ACCEPTED: ("accepted", "<QQII", ("commit_index", "durable_index", "proposer_boot", "entry_count"),
                     ("<QQII", ("slot_begin", "slot_end", "value_crc", "reserved"))),
    FRAME_NACK: ("nack", "<QQ", ("promised_ballot", "commit_index"), None),
    FRAME_COMMIT: ("commit", "<QQ", ("commit_index", "everywhere_durable"), None),
    FRAME_HEARTBEAT: ("heartbeat", "<QQQ", ("commit_index", "everywhere_durable", "read_round"), None),
    FRAME_HEARTBEAT_REPLY: ("heartbeat_reply", "<QQQQII", ("read_round", "commit_index", "applied_index",
                                                           "durable_index", "proposer_boot", "reserved"), None),
    FRAME_FETCH: ("fetch", "<QQQII", ("request_id", "slot_begin", "slot_end", "bytes_max", "value_crc"), None),
    FRAME_LEARN: ("learn", "<QQII", ("request_id", "commit_index", "entry_count", "kind"), _DESCRIPTOR),
}
_TYPES = {layout[0]: frame_type for frame_type, layout in _LAYOUTS.items()}


def decode_message(Frame frame not None) -> dict[str, object]:
    """Return a replica message as a dict: "message", "ballot", "sender", its fields, and "entries" where it has them.

    An entry of accept and learn has its "block" bytes too. Raises FrameError when the frame is no whole message.
    """
    if frame.type not in _LAYOUTS:
        raise FrameError(f"frame type {frame.type} is no replica message")
    name, fixed_format, fields, entry_layout = _LAYOUTS[frame.type]
    fixed_bytes = struct.calcsize(fixed_format)
    if len(frame.head) < fixed_bytes:
        raise FrameError(f"{name} has a head of {len(frame.head)} bytes, it needs {fixed_bytes}")
    message = {"message": name, "ballot": frame.ballot, "sender": frame.sender, "boot": frame.boot}
    message.update(zip(fields, struct.unpack_from(fixed_format, frame.head), strict=True))
    check_entries(frame, fixed_bytes, message.get("entry_count", 0),
                  struct.calcsize(entry_layout[0]) if entry_layout is not None else 0)
    if entry_layout is None:
        return message
    entry_format, entry_fields = entry_layout
    entries = []
    offset = 0
    for values in struct.iter_unpack(entry_format, frame.head[fixed_bytes:]):
        entry = dict(zip(entry_fields, values, strict=True))
        if frame.type in (FRAME_ACCEPT, FRAME_LEARN):
            entry["block"] = frame.body[offset : offset + entry["block_bytes"]]
            offset += entry["block_bytes"]
        entries.append(entry)
    if offset != len(frame.body):
        raise FrameError(f"{name} has {len(frame.body)} body bytes, its batches name {offset}")
    message["entries"] = entries
    return message


def encode_message(writer, str name, ballot: int = 0, entries=(), **fields) -> bytes:
    """Return the frame of a replica message, made by `writer` (a FrameWriter); the inverse of decode_message.

    `entries` are dicts as decode_message gives them; fields that are not named are 0. Raises KeyError for an unknown
    message name.
    """
    frame_type = _TYPES[name]
    _, fixed_format, field_names, entry_layout = _LAYOUTS[frame_type]
    fields = {**dict.fromkeys(field_names, 0), **fields}
    if entry_layout is not None:
        fields["entry_count"] = len(entries)
    head = struct.pack(fixed_format, *(fields[field] for field in field_names))
    body = b""
    if entry_layout is not None:
        entry_format, entry_fields = entry_layout
        for entry in entries:
            block = entry.get("block", b"")
            values = {**dict.fromkeys(entry_fields, 0), "block_bytes": len(block), **entry}
            head += struct.pack(entry_format, *(values[field] for field in entry_fields))
            body += block
    return writer.encode(frame_type, ballot, head, body)

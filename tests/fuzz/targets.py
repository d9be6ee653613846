"""What is fuzzed: each target gives one input to a decoder and says what became of it.

A target returns None when the input was decoded and every property of the result holds, a text when the input was
refused by a code instead of an exception, raises one of its `refusals`, or something else: then that is a finding.
Compiled in the fuzzing build, where some decoders also get memory of exactly the input's size (exact.pyx).
"""

import struct
from typing import ClassVar

from fastpaxos.answers import parse_command_error
from fastpaxos.handshake import check_hello
from fastpaxos.identity import DirectoryIdentity
from fastpaxos.testing import LoneReplica
from fastpaxos_core.block import BlockView, check_block
from fastpaxos_core.errors import ConfigError, CorruptionError, FrameError, InvariantError
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.journal_recovery import inspect
from fastpaxos_core.mapping import MAPPING_DEPTH_MAX, pack_mapping, unpack_mapping
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.results import decode_results, encode_results
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.wire import (
    FrameSplitter,
    FrameWriter,
    parse_mapping,
    parse_query,
    parse_query_reply,
    parse_reply,
    parse_submit,
)
from fuzz import corpus
from fuzz import formats as form

try:
    from fuzz import exact
except ImportError:  # not the fuzzing build
    exact = None

HEAD_BYTES_MAX = 2048
BODY_BYTES_MAX = 4096
COMMANDS_MAX = 20_000  # a block of empty commands may claim 2**32 - 1 of them: who lists them must know how many
MESSAGE_CHARS_MAX = 1000
BLOCK_HEADER = struct.Struct("<BBHIIIQQQ")
WRITE_PLACE = (form.INCARNATION, form.SEGMENT_NUMBER, form.WRITE_OFFSET, form.SEGMENT_BYTES)


class Target:
    """One decoder.

    Attributes:
        name, format, seeds: how it is called, what its inputs look like, and the function that makes valid ones.
        share: part of a campaign over all targets; what runs without Python in between has most of it.
        is_exact: it gets memory of exactly the input's size, so that Python's own allocator, which the address
            sanitizer does not see, may serve everything else.
        refusals: exceptions that say no.
        early: refusals (beginnings of the reason) that come before the checksum was compared, or say that it differs.
        codes: reasons of the verdicts that C functions give; None is a decoded input.
    """

    name = ""
    format = form.Format()
    share = 10
    is_exact = False
    refusals = (FrameError,)
    early = ()
    codes: ClassVar[dict] = {}

    @property
    def burst(self):
        """What judges many variants of one input at once (`exact.Burst`), or None."""
        return None

    def seeds(self):
        """Valid inputs."""
        raise AssertionError(self.name)

    def judge(self, data, chance):
        """Decode `data`, a bytearray that stays unchanged, and check what comes out."""
        raise AssertionError(self.name)


class BlockTarget(Target):
    """Blocks: `block_check` on exact memory, then every way to read a view."""

    name = "block"
    format = form.BlockFormat()
    share = 4300
    is_exact = True
    early = ("block has", "block of # bytes has CRC", "lengths do not", "unknown version", "bad crc")
    codes: ClassVar[dict] = {
        0: None,
        -1: "lengths do not add up",
        -2: "unknown version",
        -3: "bad count",
        -4: "bad crc",
    }
    seeds = staticmethod(corpus.blocks)

    @property
    def burst(self):
        return exact and exact.Burst("block", self.format.FIELDS, 40, 4, [(0, 4)])

    def judge(self, data, chance):
        if exact is None:
            view = BlockView(bytes(data))
        else:
            memory = exact.ExactBytes(data)
            code = exact.check_block_exact(memory)
            if code:
                # The texts of the refusals are made from the same bytes: now and then they are looked at as well.
                if chance.below(64) == 0:
                    check_block(memory)
                    raise AssertionError(f"check_block takes what block_check refuses with {code}")
                return self.codes[code]
            view = exact.view_block(memory)
        count = len(view)
        header = BLOCK_HEADER.pack(
            1, view.kind, data[2], view.crc, count, view.payload_bytes, view.session_id, view.first_sequence,
            view.acknowledged_below,
        )  # fmt: skip
        assert header == data[:40], "the header reads back otherwise"
        if count > COMMANDS_MAX:
            assert view.payload_bytes == 0 or view.uniform_length
            assert (view[0], view[count - 1]) == (bytes(data[40 : 40 + view.uniform_length]), view[-1])
            return None
        commands = view.commands()
        assert len(commands) == count
        lengths = b"" if data[2] & 1 else struct.pack(f"<{count}I", *map(len, commands))
        assert lengths + b"".join(commands) == data[40:], "the commands read back otherwise"
        if chance.below(4) == 0:
            place = chance.below(count)
            assert view[place] == commands[place]
            assert list(view) == commands
            assert view[-1] == commands[-1]
            assert bytes(view.payload_view) == b"".join(commands)
            assert int(view.lengths().sum()) == view.payload_bytes
        return None


class ResultsTarget(Target):
    """Result blobs, for a block of as many commands as the blob says, or of another number."""

    name = "results"
    format = form.ResultsFormat()
    share = 60
    seeds = staticmethod(corpus.results)

    def judge(self, data, chance):
        count = int.from_bytes(data[4:8], "little")
        if count > 4096 or chance.below(32) == 0:
            count = chance.below(20)
        results = decode_results(bytes(data), count)
        assert len(results) == count
        assert decode_results(encode_results(results), count) == results


class MapTarget(Target):
    """Msgpack maps of control messages, and hellos."""

    name = "map"
    format = form.MapFormat()
    share = 25
    seeds = staticmethod(corpus.maps)

    def judge(self, data, chance):
        mapping = unpack_mapping(bytes(data))
        packed = pack_mapping(mapping)
        # Packed forms are compared: a NaN is not equal to itself.
        assert pack_mapping(unpack_mapping(packed)) == packed
        assert depth_of(mapping) <= MAPPING_DEPTH_MAX
        if "kind" in mapping:
            hello = check_hello(mapping)
            assert len(hello.cluster_id) in (0, 16)
            assert len(hello.founding) <= 64
            assert len(hello.durability) <= 64
            assert 0 <= hello.node_id < 1 << 16
            assert 0 <= hello.boot < 1 << 32
            assert 0 <= hello.incarnation < 1 << 64


def depth_of(value):
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    deepest = 0
    for item in inner:
        deepest = max(deepest, depth_of(item))
    return 1 + deepest


class FrameTarget(Target):
    """Streams of frames in any fragments, then the parser of each frame; what is read is written again, the same."""

    name = "frame"
    format = form.FrameFormat()
    share = 100
    early = (
        "frame starts", "frame has version", "frame type #", "frame has flags", "frame says", "frame has reserved",
        "frame header and head",
    )  # fmt: skip
    seeds = staticmethod(corpus.frames)

    def judge(self, data, chance):
        expected = corpus.CLUSTER if chance.below(2) else None
        stream = data if exact is None else exact.ExactBytes(data)
        try:
            whole = FrameSplitter(HEAD_BYTES_MAX, BODY_BYTES_MAX, expected).feed(stream)
            error = None
        except FrameError as refusal:
            whole, error = [], refusal
        if chance.below(4) == 0:
            self._feed_pieces(data, chance, expected, whole, error)
        if error is not None:
            raise error
        position = 0
        refusal = None
        for frame in whole:
            end = position + 64 + len(frame.head) + len(frame.body)
            assert len(frame.head) <= HEAD_BYTES_MAX
            assert len(frame.body) <= BODY_BYTES_MAX
            assert not frame.flags
            writer = FrameWriter(frame.sender, frame.incarnation, frame.boot, frame.cluster_id, frame.group_id)
            assert writer.encode(frame.type, frame.ballot, frame.head, frame.body) == data[position:end]
            try:
                check_frame(frame, writer, data[position:end])
            except FrameError as problem:
                refusal = problem
            position = end
        if refusal is not None:
            raise refusal
        return None if position == len(data) else "unfinished frame"

    def _feed_pieces(self, data, chance, expected, whole, error):
        splitter = FrameSplitter(HEAD_BYTES_MAX, BODY_BYTES_MAX, expected)
        lends = chance.below(8) == 0  # a receive buffer is large: it costs more than all the rest
        frames = []
        position = 0
        said = None
        try:
            while position < len(data) and len(frames) < 100:
                size = 1 + chance.below(chance.below(3) * 70 + 2)
                piece = data[position : position + size]
                position += len(piece)
                if not lends or chance.below(2):
                    frames += splitter.feed(piece if exact is None else exact.ExactBytes(piece))
                else:
                    lent = splitter.get_buffer()
                    lent[: len(piece)] = piece
                    frames += splitter.buffer_updated(len(piece))
                assert splitter.pending_bytes <= 64 + HEAD_BYTES_MAX + BODY_BYTES_MAX
        except FrameError as refusal:
            said = refusal
        if error is None:
            assert said is None, f"pieces are refused, the whole is not: {said}"
            assert [(frame.type, frame.head, frame.body) for frame in frames] == [
                (frame.type, frame.head, frame.body) for frame in whole
            ]
        else:
            assert str(said) == str(error), f"pieces say {said!r}, the whole {error!r}"


def check_frame(frame, writer, data):
    """Parse one frame by its type and write it again. Raises FrameError; anything else is a finding."""
    if frame.type == 20:
        request_id, deadline_ms = parse_submit(frame)
        if frame.ballot == 0:
            assert b"".join(writer.submit(frame.body, request_id, deadline_ms)) == data
    elif frame.type == 21:
        reply = parse_reply(frame)
        if frame.ballot == 0:
            assert b"".join(writer.reply(*reply)) == data
    elif frame.type == 22:
        query = parse_query(frame)
        if frame.ballot == 0:
            again = writer.query(query.query_id, query.request, query.deadline_ms, query.read_mode, query.minimum_index)
            assert again == data
    elif frame.type == 23:
        reply = parse_query_reply(frame)
        if frame.ballot == 0:
            again = writer.query_reply(reply.query_id, reply.status, reply.leader_hint, reply.read_index, reply.result)
            assert again == data
        if reply.status == 9:
            parse_command_error(reply.result)
    elif frame.type >= 40:
        mapping = parse_mapping(frame)
        pack_mapping(mapping)
    else:
        message = decode_message(frame)
        fields = {name: message[name] for name in message if name not in NOT_FIELDS}
        assert encode_message(writer, message["message"], frame.ballot, message.get("entries", ()), **fields) == data


NOT_FIELDS = ("message", "ballot", "sender", "boot", "entries", "entry_count")


class WriteTarget(Target):
    """Heads of journal writes and the blocks behind them, on exact memory; only in the fuzzing build."""

    name = "write"
    format = form.WriteFormat()
    share = 3900
    is_exact = True
    early = ("bad write", "more bytes")
    codes: ClassVar[dict] = {
        0: "bad write", -1: "more bytes are needed", -2: "unknown version, kind or flag", 1: None,
        2: "a block does not match",
    }  # fmt: skip
    seeds = staticmethod(corpus.writes)

    @property
    def burst(self):
        return exact.Burst("write", self.format.FIELDS, 64, 48, self.format.ENTRY, WRITE_PLACE)

    def judge(self, data, chance):
        room = form.SEGMENT_BYTES if chance.below(8) else form.WRITE_OFFSET + chance.below(2048)
        verdict, blocks, matching = exact.check_write(
            exact.ExactBytes(data), form.INCARNATION, form.SEGMENT_NUMBER, form.WRITE_OFFSET, room
        )
        if chance.below(8) == 0:
            assert verdict == expected_verdict(self.format, data, room)
        if verdict != 1:
            return self.codes[verdict]
        assert matching <= blocks <= int.from_bytes(data[12:16], "little")
        return self.codes[1 if matching == blocks else 2]


def expected_verdict(format_, data, room):
    """What docs/protocol.md says about a write: the slow way."""
    if len(data) < 64:
        return -1
    magic, version, kind, flags, crc, count, total_bytes = struct.unpack_from("<4sBBHIIQ", data)
    head_bytes = 64 + 48 * count
    if magic != b"FPJW" or not head_bytes <= total_bytes <= room - form.WRITE_OFFSET:
        return 0
    if len(data) < head_bytes:
        return -1
    sealed = bytearray(data[:head_bytes])
    seal = form.PLACE.pack(form.INCARNATION, form.SEGMENT_NUMBER, form.WRITE_OFFSET)
    if form.crc32c(seal + sealed[:8] + sealed[12:]) != crc:
        return 0
    if version != 1 or kind > 1 or flags > 3 or any(data[56:64]):
        return -2
    write_number, durable_number, _, commit_index = struct.unpack_from("<QQQQ", data, 24)
    if not 0 < write_number < 1 << 63 or max(durable_number, commit_index) >= 1 << 63:
        return 0
    for place in range(64, head_bytes, 48):
        slot_begin, slot_end, _, _, block_bytes, _, batch_flags, reserved = form.DESCRIPTOR.unpack_from(data, place)
        if batch_flags > 1 or reserved:
            return -2
        if not 0 < slot_begin < slot_end < 1 << 63:
            return 0
        head_bytes += block_bytes
    return int(head_bytes == total_bytes)


class HeaderTarget(Target):
    """Segment headers, on exact memory; only in the fuzzing build."""

    name = "header"
    format = form.SegmentHeaderFormat()
    share = 1550
    is_exact = True
    early = ("bad header", "short header")
    codes: ClassVar[dict] = {0: "bad header", -1: "short header", 1: None}
    seeds = staticmethod(corpus.segment_headers)

    @property
    def burst(self):
        return exact.Burst("header", self.format.FIELDS, 0, 8, [(0, 8)])

    def judge(self, data, chance):
        if len(data) < 512:
            return "short header"
        fields = exact.check_segment_header(exact.ExactBytes(data[:512]))
        if fields is None:
            return "bad header"
        assert fields == struct.unpack_from("<H", data, 10) + struct.unpack_from("<H", data, 8) + struct.unpack_from(
            "<Q", data, 48
        )
        return None


class SegmentDirectory:
    """The directory of a journal target's input: segment files cut out of one byte string."""

    def __init__(self, data):
        self._files = {}
        for begin in range(0, len(data), form.SEGMENT_BYTES):
            if any(data[begin : begin + 8]):
                name = f"journal-{begin // form.SEGMENT_BYTES + 1:016x}.segment"
                self._files[name] = bytes(data[begin : begin + form.SEGMENT_BYTES])

    def list(self):
        return list(self._files)

    def size(self, name):
        return len(self._files[name])

    def read(self, name, offset, length):
        return self._files[name][offset : offset + length]


class JournalTarget(Target):
    """Recovery over whole journals."""

    name = "journal"
    format = form.JournalFormat()
    share = 4
    refusals = (CorruptionError, ConfigError)
    early = ("journal-# segment both",)
    seeds = staticmethod(corpus.journals)

    def judge(self, data, chance):
        directory = SegmentDirectory(data)
        try:
            recovery = inspect(directory)
        except InvariantError as error:
            # Sealed writes that contradict each other: the node stops, as it does for any safety rule.
            return str(error)[:24]
        slot = recovery.commit_index + 1
        for batch in recovery.batches:
            assert slot <= batch.slot_begin < batch.slot_end
            check_block(batch.block)
            slot = batch.slot_end
        end = 0
        for unknown_begin, unknown_end in recovery.unknown:
            assert max(end, recovery.commit_index + 1) <= unknown_begin < unknown_end
            end = unknown_end
        return None if not recovery.problems else recovery.problems[0]


class MessageTarget(Target):
    """Replica messages, through the splitter into a live replica that is started again every few thousand messages."""

    name = "message"
    format = form.MessageFormat()
    share = 45
    early = FrameTarget.early
    seeds = staticmethod(corpus.messages)
    MESSAGES_PER_LIFE = 2000

    def __init__(self):
        self._received = self.MESSAGES_PER_LIFE
        self._lone = None

    def judge(self, data, chance):
        # Invariant: what one input does to the replica must not depend on the inputs before it for too long.
        if self._received >= self.MESSAGES_PER_LIFE:
            self._received = 0
            self._lone = LoneReplica(form.NODE_ID, (1, 2, form.NODE_ID))
        self._received += 1
        replica = self._lone.replica
        frames = FrameSplitter(HEAD_BYTES_MAX, BODY_BYTES_MAX, None).feed(data)
        if not frames:
            return "unfinished frame"
        try:
            for frame in frames:
                replica.receive(corpus.PEER, frame)
            replica.take_messages()
            if chance.below(8) == 0:
                self._lone.sync()
        except InvariantError as error:
            self._received = self.MESSAGES_PER_LIFE
            return str(error)[:16]
        return None


class RecordTarget(Target):
    """Founding records."""

    name = "record"
    format = form.MapFormat()
    share = 5
    seeds = staticmethod(corpus.records)

    def judge(self, data, chance):
        assert FoundingRecord.decode(bytes(data)).encode() == data


class IdentityTarget(Target):
    """The identity file."""

    name = "identity"
    format = form.IdentityFormat()
    share = 5
    refusals = (CorruptionError, ConfigError)
    early = ("identity has only", "identity is corrupt")
    seeds = staticmethod(corpus.identities)

    def judge(self, data, chance):
        identity = DirectoryIdentity.decode(bytes(data), "identity")
        again = DirectoryIdentity.decode(identity.encode(), "identity")
        assert identity == again
        assert 0 < identity.node_id < 1 << 16
        assert identity.durability in ("fsync", "write", "memory")


class SessionsTarget(Target):
    """States of the session table, as snapshots will hold them.

    A state names its limit of sessions, up to 2**24, and the table takes room for them: that may be more than there is.
    """

    name = "sessions"
    format = form.MapFormat()
    share = 6
    refusals = (CorruptionError, MemoryError)
    seeds = staticmethod(corpus.session_tables)

    def judge(self, data, chance):
        table = SessionTable.from_state(bytes(data))
        state = table.to_state()
        assert SessionTable.from_state(state).to_state() == state


class PlantedTarget(BlockTarget):
    """Not a decoder but a planted bug, which trusts the length that a block says: a run must report it.

    In the fuzzing build it reads on behind the memory of the input, and only the sanitizer can tell.
    """

    name = "planted"
    burst = None

    def judge(self, data, chance):
        if exact is not None:
            exact.read_too_far(exact.ExactBytes(data))
        elif len(data) >= 40:
            for place in range(int.from_bytes(data[12:16], "little")):
                data[40 + place]


def all_targets():
    """Every target that this build can run, by name."""
    kinds = [BlockTarget, FrameTarget, ResultsTarget, MapTarget, JournalTarget, MessageTarget, RecordTarget]
    kinds += [IdentityTarget, SessionsTarget]
    if exact is not None:
        kinds += [WriteTarget, HeaderTarget]
    return {kind.name: kind() for kind in kinds}


def reason_of(refusal):
    """The beginning of a refusal, an exception or a text, with every number as one #: few enough to be counted."""
    text = str(refusal)
    assert len(text) <= MESSAGE_CHARS_MAX, f"a refusal of {len(text)} characters: {text[:60]}"
    return short(text)


def short(text):
    """The beginning of a text, with every number as one #."""
    found = []
    for character in text[:48]:
        if found and found[-1] == "#" and character in "0123456789abcdefx":
            continue
        found.append("#" if "0" <= character <= "9" else character)
    return "".join(found)

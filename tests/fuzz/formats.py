"""The formats of wire and disk as a fuzzer sees them: where fields stand, how lengths are made to fit, what is sealed.

Written down once more from docs/protocol.md, and not taken from the decoders: these are what is tested. Compiled in the
fuzzing build, like mutation.py.
"""

import struct
from typing import ClassVar

from fastpaxos_core.block import crc32c, value_crc
from fuzz.mutation import Layout

INCARNATION = 0x1122334455667788
NODE_ID = 3
SEGMENT_BYTES = 4096
SECTOR = 512
SEGMENT_NUMBER = 5  # of a write that is judged alone, and its place
WRITE_OFFSET = 1024

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
PLACE = struct.Struct("<QQQ")
DESCRIPTOR = struct.Struct("<QQQqIIII")
NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]
NUMBER_TOKENS = [struct.pack("<Q", number)[:width] for number in NUMBERS for width in (2, 4, 8)]
MSGPACK_TOKENS = [
    b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\x80", b"\x81", b"\x90", b"\x91", b"\xa0", b"\xa1k", b"\xc4\x00",
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\xdc\x10\x01", b"\xdc\xff\xff", b"\xde\xff\xff", b"\xd9\xff", b"\xc4\xff",
    b"\xd4\x01\x00", b"\xd6\xff\x00\x00\x00\x00", b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xc7\x00\x05", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xca\xff\x80\x00\x00", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7), b"\xce\xff\xff\xff\xff", b"\xff", b"\xe0", b"\x91" * 9, b"\x81\xa1k" * 9, b"\x91" * 1100,
    b"\xa4\xed\xa0\x80\x80", b"\xa1\xff", b"\xa2op", b"\xa7op\x00\xff\xfe", b"\xc5\x04\x80" + bytes(1152),
    b"\xda\x04\x80" + b"x" * 1152, b"\x82" + 2 * (b"\xda\x02\x80" + b"y" * 640 + b"\xc0"),
]  # fmt: skip


def set_crc(data: bytearray, begin: int, end: int, place: int) -> None:
    """Put the CRC32C of data[begin:end] without the four bytes at `place` there."""
    view = memoryview(data)
    crc = crc32c(view[place + 4 : end], crc32c(view[begin:place]))
    view.release()
    U32.pack_into(data, place, crc)


class Format:
    """One kind of input, of `bytes_max` bytes at most: long ones cost time and reach no more code.

    `fit` makes its lengths agree with its size, `seal` its checksums with its bytes.
    """

    layout = Layout()
    bytes_max = 512

    def fit(self, data: bytearray) -> None:
        """Nothing says how long this is."""

    def seal(self, data: bytearray) -> None:
        """Nothing is sealed."""


class BlockFormat(Format):
    """A block: 40 bytes of header, lengths unless uniform, payload."""

    FIELDS = ((0, 1), (1, 1), (2, 2), (4, 4), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8))
    layout = Layout(
        fixed=FIELDS,
        entries_begin=40,
        stride=4,
        entry=[(0, 4), (0, 4), (0, 1)],
        tokens=NUMBER_TOKENS,
    )

    def fit(self, data: bytearray) -> None:
        """Payload bytes are what is left; the last length is what the others leave."""
        size = len(data)
        if size < 40:
            return
        if data[2] & 1:
            U32.pack_into(data, 12, size - 40)
            return
        count = min(U32.unpack_from(data, 8)[0], (size - 40) // 4)
        payload = size - 40 - 4 * count
        U32.pack_into(data, 8, count)
        U32.pack_into(data, 12, payload)
        if 0 < count <= 64:
            rest = payload - sum(struct.unpack_from(f"<{count - 1}I", data, 40))
            if rest >= 0:
                U32.pack_into(data, 36 + 4 * count, rest)

    def seal(self, data: bytearray) -> None:
        if len(data) >= 40:
            set_crc(data, 0, len(data), 4)


class FrameFormat(Format):
    """A stream of frames, each with a header of 64 bytes, a head and a body."""

    bytes_max = 1024
    layout = Layout(
        fixed=[
            (0, 4), (4, 1), (5, 1), (6, 2), (8, 4), (12, 4), (12, 2), (16, 4), (16, 2), (20, 4), (24, 8), (32, 8),
            (40, 8), (48, 4), (52, 2), (54, 2), (56, 8),
        ],
        entries_begin=64,
        stride=8,
        entry=[(0, 8), (0, 4), (4, 4), (0, 2), (2, 2), (4, 1)],
        tokens=[*NUMBER_TOKENS, *MSGPACK_TOKENS],
    )  # fmt: skip

    def fit(self, data: bytearray) -> None:
        """The last frame ends where the data end."""
        position = 0
        while len(data) - position >= 64:
            head_bytes, body_bytes = struct.unpack_from("<II", data, position + 12)
            room = len(data) - position - 64
            if head_bytes + body_bytes >= room or room - head_bytes - body_bytes < 64:
                head_bytes = min(head_bytes, room)
                struct.pack_into("<II", data, position + 12, head_bytes, room - head_bytes)
                return
            position += 64 + head_bytes + body_bytes

    def seal(self, data: bytearray) -> None:
        position = 0
        while len(data) - position >= 64:
            head_bytes, body_bytes = struct.unpack_from("<II", data, position + 12)
            head_end = position + 64 + head_bytes
            if head_end > len(data):
                return
            if data[position + 5] == 21 and head_bytes == 48 and head_end + body_bytes <= len(data):
                view = memoryview(data)
                crc = crc32c(view[head_end : head_end + body_bytes])
                view.release()
                U32.pack_into(data, head_end - 8, crc)
            set_crc(data, position, head_end, position + 8)
            position = head_end + body_bytes


def seal_batch(data: bytearray, place: int, block: int) -> None:
    """Seal the block at `block` and the value CRC of its descriptor at `place`, if both are there."""
    slot_begin, slot_end, _, timestamp_ns, block_bytes, *_ = DESCRIPTOR.unpack_from(data, place)
    if block_bytes < 40 or block + block_bytes > len(data):
        return
    set_crc(data, block, block + block_bytes, block + 4)
    value = value_crc(slot_begin, slot_end, timestamp_ns, U32.unpack_from(data, block + 4)[0])
    U32.pack_into(data, place + 36, value)


class MessageFormat(FrameFormat):
    """One frame between replicas: the blocks of its body and the value CRCs of its entries are sealed, too."""

    # frame type: bytes before the entries, bytes of an entry
    ENTRIES: ClassVar[dict] = {2: (32, 48), 3: (24, 48), 4: (24, 24), 10: (24, 48)}
    COUNT_OFFSETS: ClassVar[dict] = {2: 28, 3: 16, 4: 20, 10: 16}

    def fit(self, data: bytearray) -> None:
        """The count of entries and the length of the last block follow from the bytes that are there."""
        if len(data) < 64:
            return
        frame_type = data[5]
        head_bytes = min(U32.unpack_from(data, 12)[0], len(data) - 64)
        struct.pack_into("<II", data, 12, head_bytes, len(data) - 64 - head_bytes)
        if frame_type not in self.ENTRIES:
            return
        fixed, stride = self.ENTRIES[frame_type]
        if head_bytes >= fixed:
            count = (head_bytes - fixed) // stride
            U32.pack_into(data, 64 + self.COUNT_OFFSETS[frame_type], count)
            if count and stride == 48 and frame_type != 2:
                self._fit_last_block(data, 64 + fixed, count, len(data) - 64 - head_bytes)

    @staticmethod
    def _fit_last_block(data: bytearray, begin: int, count: int, body_bytes: int) -> None:
        others = sum(U32.unpack_from(data, begin + 48 * index + 32)[0] for index in range(count - 1))
        if others <= body_bytes:
            U32.pack_into(data, begin + 48 * (count - 1) + 32, body_bytes - others)

    def seal(self, data: bytearray) -> None:
        if len(data) >= 64 and data[5] in (3, 10):
            head_bytes = U32.unpack_from(data, 12)[0]
            block = 64 + head_bytes
            for place in range(64 + 24, 64 + head_bytes - 47, 48):
                if block >= len(data):
                    break
                seal_batch(data, place, block)
                block += U32.unpack_from(data, place + 32)[0]
        super().seal(data)


class WriteFormat(Format):
    """One write of the journal: a header of 64 bytes, descriptors, blocks."""

    FIELDS = ((0, 4), (4, 1), (5, 1), (6, 2), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8))
    ENTRY = ((0, 8), (8, 8), (16, 8), (24, 8), (32, 4), (36, 4), (40, 4), (44, 4))
    bytes_max = 1536
    layout = Layout(
        fixed=FIELDS,
        entries_begin=64,
        stride=48,
        entry=ENTRY,
        tokens=NUMBER_TOKENS,
    )

    def fit(self, data: bytearray) -> None:
        size = len(data)
        if size < 64:
            return
        count = min(U32.unpack_from(data, 12)[0], (size - 64) // 48)
        U32.pack_into(data, 12, count)
        U64.pack_into(data, 16, size)
        if 0 < count <= 64:
            MessageFormat._fit_last_block(data, 64, count, size - 64 - 48 * count)

    def seal(self, data: bytearray) -> None:
        self.seal_at(data, 0, SEGMENT_NUMBER, WRITE_OFFSET)

    def seal_at(self, data: bytearray, begin: int, segment_number: int, offset: int) -> int:
        """Seal the write at `begin`, which stands at `offset` of the segment. Returns its bytes, or 0."""
        if len(data) - begin < 64:
            return 0
        count, total_bytes = struct.unpack_from("<IQ", data, begin + 12)
        head_bytes = 64 + 48 * count
        if head_bytes > len(data) - begin:
            return 0
        block = begin + head_bytes
        for index in range(count):
            seal_batch(data, begin + 64 + 48 * index, block)
            block += U32.unpack_from(data, begin + 64 + 48 * index + 32)[0]
        view = memoryview(data)
        crc = crc32c(view[begin : begin + 8], crc32c(PLACE.pack(INCARNATION, segment_number, offset)))
        crc = crc32c(view[begin + 12 : begin + head_bytes], crc)
        view.release()
        U32.pack_into(data, begin + 8, crc)
        return total_bytes if head_bytes <= total_bytes <= len(data) - begin else 0


class SegmentHeaderFormat(Format):
    """The header of a segment, 512 bytes; of the copy behind it nothing is known here."""

    FIELDS = ((0, 8), (8, 2), (10, 2), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8))
    FIELDS += ((80, 8), (88, 8), (96, 8), (104, 8))
    bytes_max = 1024
    layout = Layout(fixed=FIELDS, tokens=NUMBER_TOKENS)

    def seal(self, data: bytearray) -> None:
        for begin in (0, 512):
            if len(data) >= begin + 512:
                set_crc(data, begin, begin + 512, begin + 12)


class JournalFormat(Format):
    """A whole journal: segments of SEGMENT_BYTES, one behind the other, numbered from 1; the last may be cut."""

    layout = Layout(
        fixed=[*SegmentHeaderFormat.FIELDS, *WriteFormat.FIELDS, (64, 8), (72, 8), (80, 8), (96, 4), (104, 4)],
        tokens=NUMBER_TOKENS,
        period=SECTOR,
    )
    bytes_max = 4 * SEGMENT_BYTES
    write = WriteFormat()

    def seal(self, data: bytearray) -> None:
        for begin in range(0, len(data), SEGMENT_BYTES):
            self._seal_segment(data, begin, begin // SEGMENT_BYTES + 1, min(begin + SEGMENT_BYTES, len(data)))

    def _seal_segment(self, data: bytearray, begin: int, number: int, end: int) -> None:
        for copy in (begin, begin + 512):
            if copy + 512 <= end:
                set_crc(data, copy, copy + 512, copy + 12)
        position = begin + WRITE_OFFSET
        while position + 64 <= end:
            size = 0
            if data[position : position + 4] == b"FPJW":
                size = self.write.seal_at(data, position, number, position - begin)
            position += max(SECTOR, (size + SECTOR - 1) // SECTOR * SECTOR)


class ResultsFormat(Format):
    """A result blob: a header of 8 bytes, lengths, a bitmap of errors, payload."""

    layout = Layout(
        fixed=[(0, 1), (1, 1), (2, 2), (4, 4)],
        entries_begin=8,
        stride=4,
        entry=[(0, 4), (0, 1)],
        tokens=[*NUMBER_TOKENS, *MSGPACK_TOKENS],
    )

    def fit(self, data: bytearray) -> None:
        size = len(data)
        if size < 8 or data[1] & 5:
            return
        count = U32.unpack_from(data, 4)[0]
        begin = 8 + 4 * count + ((count + 7) // 8 if data[1] & 2 else 0)
        if 0 < count <= 64 and begin <= size:
            rest = size - begin - sum(struct.unpack_from(f"<{count - 1}I", data, 8))
            if rest >= 0:
                U32.pack_into(data, 4 + 4 * count, rest)


class MapFormat(Format):
    """Msgpack: every byte may be a type."""

    layout = Layout(tokens=MSGPACK_TOKENS)
    bytes_max = 1536


class IdentityFormat(Format):
    """The identity file: magic, version, flags, CRC32C of everything else, length, msgpack."""

    layout = Layout(
        fixed=[(0, 8), (8, 2), (10, 2), (12, 4), (16, 4)], entries_begin=20, stride=1, entry=[(0, 1)],
        tokens=MSGPACK_TOKENS,
    )  # fmt: skip

    def fit(self, data: bytearray) -> None:
        if len(data) >= 20:
            U32.pack_into(data, 16, len(data) - 20)

    def seal(self, data: bytearray) -> None:
        if len(data) >= 20:
            U32.pack_into(data, 12, 0)
            U32.pack_into(data, 12, crc32c(data))

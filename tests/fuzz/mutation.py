"""Structure-aware mutation of encoded bytes, deterministic by seed.

This is Cython in pure Python mode: the default suite runs it as Python, the fuzzing build compiles it.
"""

import cython

_MULTIPLIER = cython.declare(cython.ulonglong, 6364136223846793005)
_INCREMENT = cython.declare(cython.ulonglong, 1442695040888963407)
_ALL_ONES = cython.declare(cython.ulonglong, 18446744073709551615)


@cython.cclass
class Chance:
    """A small random source: one 64-bit linear congruence, whose high half is used."""

    def __init__(self, seed: cython.ulonglong):
        self.state = seed
        for _ in range(4):
            self.word()

    @cython.ccall
    def word(self) -> cython.ulonglong:
        """32 random bits."""
        self.state = (self.state * _MULTIPLIER + _INCREMENT) & _ALL_ONES
        return self.state >> 32

    @cython.ccall
    def below(self, limit: cython.ulonglong) -> cython.ulonglong:
        """A number in 0..limit-1; limit is 1..2**32-1."""
        return (self.word() * limit) >> 32

    @cython.ccall
    def wide(self) -> cython.ulonglong:
        """64 random bits."""
        high: cython.ulonglong = self.word()
        return ((high << 32) | self.word()) & _ALL_ONES


@cython.cclass
class Layout:
    """Where the fields of a format stand.

    Args:
        fixed: (offset, width) of each field of the header; a width is 1, 2, 4 or 8 bytes, little-endian.
        stride, entry: behind `entries_begin`, an entry of `stride` bytes with fields at these (offset, width) repeats
            up to the end; stride 0: nothing repeats.
        tokens: byte strings that mean something in this format.
        period: 0, or the bytes after which the whole layout begins again (sectors of a journal).
    """

    fixed: list
    entries_begin: cython.size_t
    stride: cython.size_t
    entry: list
    tokens: list
    period: cython.size_t

    def __init__(self, fixed=(), entries_begin=0, stride=0, entry=(), tokens=(), period=0):
        self.fixed = list(fixed)
        self.entries_begin = entries_begin
        self.stride = stride
        self.entry = list(entry)
        self.tokens = list(tokens)
        self.period = period

    @cython.ccall
    def pick(self, chance: Chance, size: cython.size_t) -> tuple:
        """(offset, width) of some field, which may lie behind the end of `size` bytes."""
        base: cython.size_t = 0
        room: cython.size_t = size
        if self.period and size > self.period:
            base = chance.below(size // self.period) * self.period
            room = min(self.period, size - base)
        if self.stride and room > self.entries_begin and (not self.fixed or chance.below(3) == 0):
            count: cython.size_t = (room - self.entries_begin + self.stride - 1) // self.stride
            # The first and the last entries stand next to what the lengths are about.
            index: cython.size_t = chance.below(count)
            kind: cython.size_t = chance.below(4)
            if kind == 0:
                index = 0
            elif kind == 1:
                index = count - 1
            field = self.entry[chance.below(len(self.entry))]
            return base + self.entries_begin + index * self.stride + field[0], field[1]
        if not self.fixed:
            return base + chance.below(max(room, 1)), 1
        field = self.fixed[chance.below(len(self.fixed))]
        return base + field[0], field[1]


@cython.cfunc
def load(data: bytearray, offset: cython.size_t, width: cython.size_t) -> cython.ulonglong:
    value: cython.ulonglong = 0
    index: cython.size_t
    for index in range(width):
        byte: cython.ulonglong = data[offset + index]
        value |= byte << (8 * index)
    return value


@cython.cfunc
def store(data: bytearray, offset: cython.size_t, width: cython.size_t, value: cython.ulonglong) -> cython.int:
    index: cython.size_t
    for index in range(width):
        data[offset + index] = (value >> (8 * index)) & 255
    return 0


@cython.cfunc
def interesting(chance: Chance, old: cython.ulonglong, width: cython.size_t, size: cython.size_t) -> cython.ulonglong:
    """A value for a field of `width` bytes in `size` bytes of data: borders, neighbours, sizes, or chance."""
    bits: cython.ulonglong = 8 * width
    top: cython.ulonglong = _ALL_ONES >> (64 - bits)
    kind: cython.ulonglong = chance.below(16)
    small: cython.ulonglong = chance.below(9)
    if kind < 3:
        return old ^ (cython.cast(cython.ulonglong, 1) << chance.below(bits))
    if kind < 5:
        return (old - 4 + small) & _ALL_ONES if old >= 4 else small
    if kind < 7:
        return small
    if kind == 7:
        return top - small
    if kind == 8:
        return (top >> 1) + small
    if kind == 9:
        return ((top >> chance.below(bits)) + small) & top
    if kind == 10:
        return size - min(small * small, size)
    if kind == 11:
        return size + small
    if kind == 12:
        return chance.below(size + 1)
    if kind == 13:
        return (old << 1) & _ALL_ONES
    if kind == 14:
        return chance.below(256)
    return chance.wide()


@cython.cclass
class Mutator:
    """Changes inputs of one format in place, and keeps them below `bytes_max`.

    `corpus` is a list of bytes to splice with; it may grow.
    """

    chance: Chance
    layout: Layout
    corpus: list
    bytes_max: cython.size_t

    def __init__(self, chance: Chance, layout: Layout, corpus: list, bytes_max: cython.size_t):
        self.chance = chance
        self.layout = layout
        self.corpus = corpus
        self.bytes_max = bytes_max

    @cython.ccall
    def mutate(self, data: bytearray) -> cython.int:
        """Apply one to eight changes."""
        chance: Chance = self.chance
        changes: cython.int = 1
        while changes < 8 and chance.below(5) < 2:
            changes += 1
        for _ in range(changes):
            self.change(data)
        if len(data) > self.bytes_max:
            del data[self.bytes_max :]
        return 0

    @cython.cfunc
    def change(self, data: bytearray) -> cython.int:
        chance: Chance = self.chance
        size: cython.size_t = len(data)
        kind: cython.ulonglong = chance.below(32)
        if kind < 18 or size == 0:
            self.change_field(data)
        elif kind < 21:
            place: cython.size_t = chance.below(size)
            data[place] ^= 1 << chance.below(8)
        elif kind < 23:
            data[chance.below(size)] = chance.below(256)
        elif kind < 25:
            self.cut(data)
        elif kind == 25:
            data.extend(bytes(chance.below(80)))
        elif kind == 26:
            self.repeat(data)
        elif kind < 30:
            self.splice(data, kind)
        else:
            self.put_token(data)
        return 0

    @cython.cfunc
    def change_field(self, data: bytearray) -> cython.int:
        chance: Chance = self.chance
        size: cython.size_t = len(data)
        place: tuple = self.layout.pick(chance, size)
        offset: cython.size_t = place[0]
        width: cython.size_t = place[1]
        if offset + width > size:
            data.append(chance.below(256))
        elif chance.below(8) == 0:
            # Two fields that are equal, or sums of each other, are where a check may compare the wrong ones.
            place = self.layout.pick(chance, size)
            source: cython.size_t = place[0]
            if source + width <= size:
                store(data, offset, width, load(data, source, width))
        else:
            store(data, offset, width, interesting(chance, load(data, offset, width), width, size))
        return 0

    @cython.cfunc
    def cut(self, data: bytearray) -> cython.int:
        """Cut the end off, or take something out of the middle."""
        chance: Chance = self.chance
        size: cython.size_t = len(data)
        begin: cython.size_t = chance.below(size)
        if chance.below(2):
            # Cuts at the border of a field find checks that are off by one field.
            begin = min(size, cython.cast(cython.size_t, self.layout.pick(chance, size)[0]))
        if chance.below(2):
            del data[begin:]
        else:
            del data[begin : begin + 1 + chance.below(64)]
        return 0

    @cython.cfunc
    def repeat(self, data: bytearray) -> cython.int:
        """Put a part in a second time, an entry of the layout if it has entries."""
        chance: Chance = self.chance
        size: cython.size_t = len(data)
        begin: cython.size_t = chance.below(size)
        length: cython.size_t = 1 + chance.below(64)
        if self.layout.stride and size > self.layout.entries_begin and chance.below(2):
            length = self.layout.stride
            begin = self.layout.entries_begin
        data[begin:begin] = data[begin : begin + length]
        return 0

    @cython.cfunc
    def splice(self, data: bytearray, kind: cython.ulonglong) -> cython.int:
        """Take a part over from another input: behind this one, over this one, or as its second half."""
        chance: Chance = self.chance
        other: bytes = self.corpus[chance.below(len(self.corpus))]
        begin: cython.size_t = chance.below(len(other) + 1)
        if kind == 27:
            data.extend(other)
        elif kind == 28:
            end: cython.size_t = min(cython.cast(cython.size_t, len(other)), begin + 1 + chance.below(64))
            data[begin:end] = other[begin:end]
        else:
            del data[chance.below(len(data) + 1) :]
            data.extend(other[begin:])
        return 0

    @cython.cfunc
    def put_token(self, data: bytearray) -> cython.int:
        """Put a token of the format over, or between, what stands there."""
        chance: Chance = self.chance
        tokens: list = self.layout.tokens
        if not tokens:
            self.change_field(data)
            return 0
        token: bytes = tokens[chance.below(len(tokens))]
        begin: cython.size_t = chance.below(len(data) + 1)
        data[begin : begin + (len(token) if chance.below(2) else chance.below(2))] = token
        return 0

"""A simulated network: directed links with delay, loss, duplication, reordering, replay and cuts.

Peers talk over connections, as they do over TCP: a connection belongs to one start of either end, and what was sent on
an earlier one is lost, except where the simulation replays old frames on purpose. On a connection frames arrive in
order unless the link reorders. Every frame passes through the real splitter, some of them cut into pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from struct import Struct

from fastpaxos_core.errors import FrameError
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType

from .schedule import MILLISECOND_NS, Schedule

__all__ = ["LinkOptions", "SimNetwork", "accepted", "parse_frames"]

# head_bytes and body_bytes stand behind magic, version, type, flags and checksum.
_LENGTHS = Struct("<II")
_LENGTHS_OFFSET = 12
_HEADER_BYTES = 64
_OLD_FRAMES_KEPT = 64
_HEAD_BYTES_MAX = 1 << 20
_BODY_BYTES_MAX = 1 << 23
# Share of the frames that pass through a splitter of their own once more, cut into pieces.
_IN_PIECES = 1 / 16


@dataclass(frozen=True)
class LinkOptions:
    """How badly the links behave. Probabilities are per frame, in 0..1; delays are in nanoseconds."""

    delay_min_ns: int = MILLISECOND_NS // 10
    delay_max_ns: int = MILLISECOND_NS
    tail: float = 0.0
    """Probability of a delay up to `tail_max_ns` instead of `delay_max_ns`; later frames wait behind it."""
    tail_max_ns: int = 100 * MILLISECOND_NS
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Probability that a frame does not keep its place behind the frames sent before it."""
    replay: float = 0.0
    """Probability that a frame from the past of the same link, of any connection, arrives once more."""
    corrupt: float = 0.0
    """Probability that a bit of a frame is flipped on its way."""


def accepted(frame: Frame | None) -> Frame:
    """The frame that the splitter gave. Raises FrameError if it refused the bytes."""
    if frame is None:
        raise FrameError("the splitter refuses it")
    return frame


def parse_frames(data: bytes) -> Iterator[tuple[bytes, Frame]]:
    """Cut bytes that hold whole frames into these frames, each as bytes and as the real splitter reads it."""
    offset = 0
    while offset < len(data):
        head_bytes, body_bytes = _LENGTHS.unpack_from(data, offset + _LENGTHS_OFFSET)
        end = offset + _HEADER_BYTES + head_bytes + body_bytes
        if end > len(data):
            raise ValueError(f"a frame needs {end - offset} bytes, {len(data) - offset} are left")
        piece = data if offset == 0 and end == len(data) else data[offset:end]
        [frame] = FrameSplitter(_HEAD_BYTES_MAX, _BODY_BYTES_MAX, None).feed(piece)
        yield piece, frame
        offset = end


_CALM = LinkOptions()


class _Link:
    """One direction between two nodes."""

    def __init__(self) -> None:
        self.cut = False
        self.last_arrival_ns = 0
        self.old_frames: deque[tuple[bytes, Frame]] = deque(maxlen=_OLD_FRAMES_KEPT)


class SimNetwork:
    """Carries frames between nodes.

    Args:
        schedule: virtual time and randomness.
        options: behaviour of every link; may be replaced at any time (`network.options = ...`).
        deliver: called as deliver(source, target, epoch, frame); `epoch` is what `send` was given, None for a replay;
            `frame` is None where the splitter refused the bytes.
        lost: called as lost(source, target, epoch) when a control frame is lost. Only replica messages may be lost on a
            connection that stands; for everything else a loss is the end of the connection, as it is on TCP.
    """

    def __init__(
        self,
        schedule: Schedule,
        options: LinkOptions,
        deliver: Callable[[int, int, int | None, Frame | None], None],
        lost: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.options = options
        self.calm: frozenset[int] = frozenset()
        """Links between these nodes behave well, whatever `options` say."""
        self.frames_sent = 0
        self.frames_lost = 0
        self.frames_replayed = 0
        self.frames_duplicated = 0
        self.frames_reordered = 0
        self.frames_corrupted = 0
        self._schedule = schedule
        self._deliver = deliver
        self._lost = lost
        self._links: dict[tuple[int, int], _Link] = {}

    def is_cut(self, source: int, target: int) -> bool:
        """Tell whether nothing passes from `source` to `target`."""
        return self._link(source, target).cut

    def cut(self, source: int, target: int, *, both_ways: bool = True) -> None:
        """Stop everything from `source` to `target`; frames on their way are lost when they would arrive."""
        self._link(source, target).cut = True
        if both_ways:
            self._link(target, source).cut = True

    def partition(self, groups: Iterable[Iterable[int]]) -> None:
        """Cut every link between nodes of different groups; links inside a group are healed."""
        sets = [set(group) for group in groups]
        for group in sets:
            for other in sets:
                for source in sorted(group):
                    for target in sorted(other):
                        if source != target:
                            self._link(source, target).cut = group is not other

    def heal_link(self, source: int, target: int) -> None:
        """Mend one direction between two nodes."""
        self._link(source, target).cut = False

    def heal(self) -> None:
        """Mend every link."""
        for link in self._links.values():
            link.cut = False

    def send(self, source: int, target: int, epoch: int, data: bytes, parsed: Frame) -> None:
        """Send one frame; `parsed` is what the splitter makes of its bytes `data`."""
        random = self._schedule.random
        options = self.options
        if self.calm and source in self.calm and target in self.calm:
            options = _CALM
        link = self._link(source, target)
        self.frames_sent += 1
        if options.replay:
            if link.old_frames and random.random() < options.replay:
                old = random.choice(link.old_frames)
                self.frames_replayed += 1
                self._schedule.after(self._delay_ns(options), lambda: self._arrive(link, source, target, None, *old))
            link.old_frames.append((data, parsed))
        if link.cut or (options.loss and random.random() < options.loss):
            self._lose(source, target, epoch, parsed)
            return
        copies = 1
        if options.duplicate and random.random() < options.duplicate and parsed.type != FrameType.CONTROL:
            copies = 2
            self.frames_duplicated += 1
        for copy in range(copies):
            arrival_ns = self._schedule.now_ns + self._delay_ns(options)
            if copy == 0 and not (options.reorder and random.random() < options.reorder):
                arrival_ns = max(arrival_ns, link.last_arrival_ns + 1)
                link.last_arrival_ns = arrival_ns
            elif copy == 0:
                self.frames_reordered += 1
            self._schedule.at(arrival_ns, partial(self._arrive, link, source, target, epoch, data, parsed))

    def _lose(self, source: int, target: int, epoch: int | None, parsed: Frame) -> None:
        self.frames_lost += 1
        if self._lost is not None and parsed.type == FrameType.CONTROL and epoch is not None:
            self._lost(source, target, epoch)

    def _delay_ns(self, options: LinkOptions) -> int:
        random = self._schedule.random.random
        span_ns = options.delay_max_ns
        if options.tail and random() < options.tail:
            span_ns = options.tail_max_ns
        return options.delay_min_ns + int(random() * (span_ns - options.delay_min_ns))

    def _arrive(self, link: _Link, source: int, target: int, epoch: int | None, data: bytes, parsed: Frame) -> None:
        if link.cut:
            self._lose(source, target, epoch, parsed)
            return
        random = self._schedule.random
        options = self.options
        if self.calm and source in self.calm and target in self.calm:
            options = _CALM
        if options.corrupt and random.random() < options.corrupt:
            self._arrive_corrupt(source, target, epoch, data)
        elif random.random() < _IN_PIECES:
            self._deliver(source, target, epoch, self._through_splitter(data))
        else:
            self._deliver(source, target, epoch, parsed)

    def _arrive_corrupt(self, source: int, target: int, epoch: int | None, data: bytes) -> None:
        """Flip a bit: the splitter refuses the frame, or the checksum of a block inside must be wrong."""
        random = self._schedule.random
        flipped = bytearray(data)
        flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
        self.frames_corrupted += 1
        try:
            frames = FrameSplitter(_HEAD_BYTES_MAX, _BODY_BYTES_MAX, None).feed(bytes(flipped))
        except FrameError:
            frames = []
        if frames:
            self._deliver(source, target, epoch, frames[0])
        else:
            self._deliver(source, target, epoch, None)

    def _through_splitter(self, frame: bytes) -> Frame:
        """Feed one frame to a fresh splitter in up to four pieces."""
        random = self._schedule.random
        splitter = FrameSplitter(_HEAD_BYTES_MAX, _BODY_BYTES_MAX, None)
        cuts = sorted(random.randrange(len(frame)) for _ in range(random.randrange(4)))
        frames: list[Frame] = []
        for begin, end in zip([0, *cuts], [*cuts, len(frame)], strict=True):
            if end > begin:
                frames += splitter.feed(frame[begin:end])
        if len(frames) != 1:
            raise AssertionError(f"one frame of {len(frame)} bytes went in, {len(frames)} came out of the splitter")
        return frames[0]

    def _link(self, source: int, target: int) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = _Link()
        return link

"""A simulated network: directed links with delay, loss, duplication, reordering, replay and cuts.

Peers talk over connections, as they do over TCP: a connection belongs to one start of either end, and what was sent on
an earlier one is lost, except where the simulation replays old frames on purpose. On a connection frames arrive in
order unless the link reorders. Every frame passes through the real splitter, cut into pieces at random places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

from fastpaxos_core.wire import Frame, FrameSplitter

from .schedule import MILLISECOND_NS, Schedule

__all__ = ["LinkOptions", "SimNetwork", "split_frames"]

# head_bytes and body_bytes stand behind magic, version, type, flags and checksum.
_LENGTHS = Struct("<II")
_LENGTHS_OFFSET = 12
_HEADER_BYTES = 64
_OLD_FRAMES_KEPT = 64
_HEAD_BYTES_MAX = 1 << 20
_BODY_BYTES_MAX = 1 << 23


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


def split_frames(data: bytes) -> Iterator[bytes]:
    """Cut bytes that hold whole frames into these frames."""
    offset = 0
    while offset < len(data):
        head_bytes, body_bytes = _LENGTHS.unpack_from(data, offset + _LENGTHS_OFFSET)
        end = offset + _HEADER_BYTES + head_bytes + body_bytes
        if end > len(data):
            raise ValueError(f"a frame needs {end - offset} bytes, {len(data) - offset} are left")
        yield data[offset:end]
        offset = end


class _Link:
    """One direction between two nodes."""

    def __init__(self) -> None:
        self.cut = False
        self.last_arrival_ns = 0
        self.old_frames: deque[bytes] = deque(maxlen=_OLD_FRAMES_KEPT)


class SimNetwork:
    """Carries frames between nodes.

    Args:
        schedule: virtual time and randomness.
        options: behaviour of every link; may be replaced at any time (`network.options = ...`).
        deliver: called as deliver(source, target, epoch, frame); `epoch` is what `send` was given, None for a replay.
    """

    def __init__(
        self, schedule: Schedule, options: LinkOptions, deliver: Callable[[int, int, int | None, Frame], None]
    ) -> None:
        self.options = options
        self.frames_sent = 0
        self.frames_lost = 0
        self.frames_replayed = 0
        self._schedule = schedule
        self._deliver = deliver
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

    def heal(self) -> None:
        """Mend every link."""
        for link in self._links.values():
            link.cut = False

    def send(self, source: int, target: int, epoch: int, data: bytes) -> None:
        """Send bytes that hold whole frames; each of them meets its own fate."""
        for frame in split_frames(data):
            self._send_frame(source, target, epoch, frame)

    def _send_frame(self, source: int, target: int, epoch: int, frame: bytes) -> None:
        random = self._schedule.random
        options = self.options
        link = self._link(source, target)
        self.frames_sent += 1
        if options.replay and link.old_frames and random.random() < options.replay:
            old = random.choice(link.old_frames)
            self.frames_replayed += 1
            self._schedule.after(self._delay_ns(), lambda: self._arrive(link, source, target, None, old))
        if options.replay:
            link.old_frames.append(frame)
        if link.cut or random.random() < options.loss:
            self.frames_lost += 1
            return
        copies = 2 if random.random() < options.duplicate else 1
        for copy in range(copies):
            arrival_ns = self._schedule.now_ns + self._delay_ns()
            if copy == 0 and random.random() >= options.reorder:
                arrival_ns = max(arrival_ns, link.last_arrival_ns + 1)
                link.last_arrival_ns = arrival_ns
            self._schedule.after(
                arrival_ns - self._schedule.now_ns, lambda: self._arrive(link, source, target, epoch, frame)
            )

    def _delay_ns(self) -> int:
        random = self._schedule.random
        options = self.options
        if options.tail and random.random() < options.tail:
            return random.randint(options.delay_min_ns, options.tail_max_ns)
        return random.randint(options.delay_min_ns, options.delay_max_ns)

    def _arrive(self, link: _Link, source: int, target: int, epoch: int | None, frame: bytes) -> None:
        if link.cut:
            self.frames_lost += 1
            return
        for parsed in self._through_splitter(frame):
            self._deliver(source, target, epoch, parsed)

    def _through_splitter(self, frame: bytes) -> list[Frame]:
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
        return frames

    def _link(self, source: int, target: int) -> _Link:
        return self._links.setdefault((source, target), _Link())

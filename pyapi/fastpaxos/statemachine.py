"""State machines: what a program replicates, and how a node drives it (DESIGN: safety rule 12).

A machine must be deterministic: from the same commands in the same order, with the same contexts, every replica must
come to the same state and the same results. No clock, no random numbers, no iteration over sets, no reading of files;
time comes from `context.now_ns`. An exception from `apply` is a result like any other: the same on every replica.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import msgpack

from fastpaxos_core.errors import ConfigError, FastPaxosError, FrameError
from fastpaxos_core.results import CommandFailure, decode_results, encode_results, failure_results
from fastpaxos_core.wire import ReplyStatus

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fastpaxos_core.block import BlockView

__all__ = [
    "ApplyContext",
    "BatchRun",
    "NoSnapshotError",
    "QueryContext",
    "ResultBlob",
    "SnapshotReader",
    "SnapshotWriter",
    "StateMachine",
    "apply_commands",
    "begin_batch",
    "load_machine",
    "query_machine",
]

SLICE_NS = 2_000_000
STRIDE_MAX = 1024
FAILURE_MESSAGE_BYTES = 1024
FAILURE_NAME_BYTES = 128
# Results of one batch must fit into one reply frame and into what a session keeps, with lengths and failures.
BATCH_RESULT_BYTES_MAX = 3 << 20
# A query's result travels in the head of its reply frame.
QUERY_RESULT_BYTES_MAX = (1 << 20) - 1024

# These say that this process is in trouble, not that the command is wrong: other replicas may not see them, so the
# node stops instead of recording them as a result.
FATAL_ERRORS = (MemoryError, RecursionError, OSError)


class NoSnapshotError(FastPaxosError):
    """This state machine defines no snapshot."""


class SnapshotWriter(Protocol):
    """Where `StateMachine.snapshot` puts its bytes."""

    def write(self, data: bytes, /) -> object:
        """Append `data` to the snapshot."""
        ...


class SnapshotReader(Protocol):
    """Where `StateMachine.restore` gets its bytes. `applied_index` and `now_ns` are those of the snapshot."""

    applied_index: int
    now_ns: int

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes (all when negative), b"" at the end."""
        ...


class ApplyContext:
    """What a command may know beside its bytes. Equal on every replica. Valid during the call only.

    Attributes:
        slot: position of this command in the log, from 1; in `apply_batch`, of the first command.
        slot_begin: position of the first command of the batch; command number i of the batch has `slot_begin + i`.
        now_ns: replicated UTC time in nanoseconds; it never falls, and is the same for a whole batch.
    """

    __slots__ = ("now_ns", "slot", "slot_begin")

    def __init__(self, slot_begin: int, now_ns: int) -> None:
        self.slot = slot_begin
        self.slot_begin = slot_begin
        self.now_ns = now_ns

    @property
    def applied_index(self) -> int:
        """Every slot up to this one was applied before this command."""
        return self.slot - 1

    def __repr__(self) -> str:
        return f"ApplyContext(slot={self.slot}, slot_begin={self.slot_begin}, now_ns={self.now_ns})"


@dataclass(frozen=True, slots=True)
class QueryContext:
    """What a query may know: every slot up to `applied_index` is applied, at replicated time `now_ns`."""

    applied_index: int
    now_ns: int


@dataclass(slots=True)
class ResultBlob:
    """A ready result blob (docs/protocol.md, "Result blob") that `apply_batch` may return instead of a sequence."""

    data: bytes


BatchResults: TypeAlias = "ResultBlob | Sequence[Buffer | CommandFailure] | Iterator[Buffer | CommandFailure]"


class StateMachine:
    """Base of every replicated state machine. Define `apply` or `apply_batch`, and `query` if there are reads.

    All methods run on the node's event loop, one at a time; a single call that takes longer than the election timeout
    costs the node its leadership. MemoryError, RecursionError, OSError and exceptions that are no `Exception` stop
    the node; any other exception becomes the result of the command, raised at the caller as `CommandError`.
    """

    def __new__(cls, *_args: Any, **_keywords: Any) -> Self:
        if cls.apply is StateMachine.apply and cls.apply_batch is StateMachine.apply_batch:
            raise TypeError(f"{cls.__name__} must define apply or apply_batch")
        for method in (cls.apply, cls.apply_batch, cls.query):
            if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
                raise TypeError(f"{cls.__name__}.{method.__name__} must be a plain method, not async")
        return super().__new__(cls)

    def apply(self, command: bytes, context: ApplyContext) -> Buffer:
        """Change the state by one command and return its result, any bytes-like object."""
        raise TypeError(f"{type(self).__name__} applies whole batches only")

    def apply_batch(self, batch: BlockView, context: ApplyContext) -> BatchResults:
        """Apply all commands of a batch, in order; an optional override for speed.

        Args:
            batch: the commands: it has a length, gives `bytes` by index and iteration, and raw views (BlockView).

        Returns:
            One result per command, as a sequence, as a `ResultBlob`, or as an iterator. A generator is best for long
            work: the node pauses it between slices. A result is bytes-like or a `CommandFailure`. If this raises or
            returns anything else, every command of the batch gets the error as its result.
        """
        results = []
        for offset, command in enumerate(batch):
            context.slot = context.slot_begin + offset
            results.append(self.apply(command, context))
        return results

    def query(self, request: bytes, context: QueryContext) -> Buffer:
        """Answer a read. Must not change the state: it runs on one replica only."""
        raise ValueError(f"{type(self).__name__} answers no queries")

    def snapshot(self, writer: SnapshotWriter) -> None:
        """Write the whole state. The base raises NoSnapshotError."""
        raise NoSnapshotError(f"{type(self).__name__} has no snapshot: define snapshot(writer) and restore(reader)")

    def restore(self, reader: SnapshotReader) -> None:
        """Replace the state by what `snapshot` wrote. The base raises NoSnapshotError."""
        raise NoSnapshotError(f"{type(self).__name__} cannot be restored: define snapshot(writer) and restore(reader)")

    def digest(self) -> str:
        """Return a short text that is equal on replicas with equal state; "" when the machine has none."""
        return ""


def cut_text(text: str, bytes_max: int) -> str:
    """Return the longest beginning of `text` that has at most `bytes_max` bytes in UTF-8."""
    data = text.encode("utf-8", "backslashreplace")
    return data[:bytes_max].decode("utf-8", "ignore")


def failure_of(error: Exception, message_bytes_max: int = FAILURE_MESSAGE_BYTES) -> CommandFailure:
    """Return an exception of user code as a result: its type name and its message, cut to 1 KiB."""
    try:
        message = str(error)
    except FATAL_ERRORS:
        raise
    except Exception:
        message = "(the message of this exception cannot be read)"
    return make_failure(type(error).__name__, message, message_bytes_max)


def make_failure(type_name: str, message: str, message_bytes_max: int = FAILURE_MESSAGE_BYTES) -> CommandFailure:
    """Return a CommandFailure within its limits."""
    return CommandFailure(cut_text(type_name, FAILURE_NAME_BYTES), cut_text(message, message_bytes_max))


def checked_result(result: object) -> bytes | CommandFailure:
    """Return what a machine gave as a result in its final form; anything that is not bytes-like is a failure."""
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result)
    if isinstance(result, CommandFailure):
        return make_failure(result.type_name, result.message)
    return make_failure("TypeError", f"apply must return a bytes-like result, not {type(result).__name__}")


class BatchRun:
    """One batch on its way through a state machine, in slices.

    Args:
        machine: its `apply_batch` is called if it is overridden, else `apply` per command.
        batch: the commands (a BlockView, or any sequence of bytes for a machine that asks for no more).
        slot_begin, now_ns: see `ApplyContext`.

    The results depend on machine and batch alone, never on how the work was sliced.
    """

    def __init__(self, machine: StateMachine, batch: BlockView, slot_begin: int, now_ns: int) -> None:
        self._machine = machine
        self._batch = batch
        self._count = len(batch)
        self._context = ApplyContext(slot_begin, now_ns)
        self._by_batch = type(machine).apply_batch is not StateMachine.apply_batch
        # What is left: commands to apply, or results to take from apply_batch (once it was called).
        self._rest: Iterator[Any] | None = None if self._by_batch else iter(batch)
        self._results: list[bytes | CommandFailure] = []
        self._result_bytes = 0
        self._stride = 1
        self._blob: bytes | None = None

    @property
    def results(self) -> bytes | None:
        """The result blob of the whole batch, or None while there is work left."""
        return self._blob

    def step(self, clock_ns: Callable[[], int], slice_ns: int = SLICE_NS) -> bytes | None:
        """Work until the batch is done or about `slice_ns` of `clock_ns` have passed; one call is never cut short.

        Returns the result blob when the batch is done, else None: call again after looking at the network.
        """
        begin = now = clock_ns()
        while self._blob is None:
            before = now
            self._advance(self._stride)
            now = clock_ns()
            # The clock is asked rarely where commands are cheap, and after every command where they are not.
            if (now - before) * 8 < slice_ns:
                self._stride = min(2 * self._stride, STRIDE_MAX)
            elif (now - before) * 4 > slice_ns:
                self._stride = max(1, self._stride // 2)
            if now - begin >= slice_ns:
                break
        return self._blob

    def finish(self) -> bytes:
        """Do all the work that is left, in one go, and return the result blob."""
        while self._blob is None:
            self._advance(self._count)
        return self._blob

    def _advance(self, stride: int) -> None:
        if self._by_batch:
            self._take_results(stride)
        else:
            self._apply_each(stride)

    def _apply_each(self, stride: int) -> None:
        """The hot loop of machines that define only `apply`."""
        apply, context, add = self._machine.apply, self._context, self._add
        results = self._results
        rest: Iterable[bytes] = () if self._rest is None else self._rest
        slot = context.slot_begin + len(results)
        for command in islice(rest, stride):
            context.slot = slot
            slot += 1
            try:
                result = apply(command, context)
            except FATAL_ERRORS:
                raise
            except Exception as error:
                add(failure_of(error))
            else:
                add(result)
        if len(results) == self._count:
            self._blob = encode_results(results)

    def _add(self, result: object) -> None:
        if type(result) is not bytes:
            result = checked_result(result)
        size = len(result) if type(result) is bytes else self._failure_bytes(result)
        self._result_bytes += size
        if self._result_bytes > BATCH_RESULT_BYTES_MAX:
            self._result_bytes -= size
            result = make_failure("ResultTooLarge", "applied, but the results of its batch are too large")
        self._results.append(result)

    @staticmethod
    def _failure_bytes(failure: Any) -> int:
        return len(failure.type_name) + len(failure.message.encode()) + 8

    def _take_results(self, stride: int) -> None:
        """Call `apply_batch`, or take up to `stride` more results from the iterator that it returned."""
        taken = 0
        try:
            if self._rest is None:
                self._rest = self._rest_of(self._machine.apply_batch(self._batch, self._context))
                if self._blob is not None:
                    return
            # One more than there are commands is asked for and never two, however the work is sliced.
            stride = min(stride, self._count + 1 - len(self._results))
            for result in islice(self._rest, stride):
                self._add(result)
                taken += 1
        except FATAL_ERRORS:
            raise
        except Exception as error:
            self.fail(error)
            return
        given = len(self._results)
        if given > self._count or (taken < stride and given < self._count):
            number = given if given < self._count else "more"
            self._fail_all(make_failure("ValueError", f"apply_batch gave {number} results for {self._count} commands"))
        elif taken < stride:
            self._blob = encode_results(self._results)

    def take(self, returned: object) -> bytes | None:
        """Go on from what `apply_batch` has returned already. Returns the result blob if that is all."""
        try:
            self._rest = self._rest_of(returned)
        except FATAL_ERRORS:
            raise
        except Exception as error:
            self.fail(error)
        return self._blob

    def fail(self, error: Exception) -> bytes:
        """Every command of the batch has this error. Returns the result blob."""
        self._fail_all(failure_of(error, self._message_bytes_max()))
        assert self._blob is not None
        return self._blob

    def _rest_of(self, returned: object) -> Iterator[Any]:
        if isinstance(returned, ResultBlob):
            self._check_blob(returned.data)
            self._blob = returned.data
            return iter(())
        if isinstance(returned, str | bytes | bytearray | memoryview) or not isinstance(returned, Sequence | Iterator):
            raise TypeError(f"apply_batch must return a sequence of results, not {type(returned).__name__}")
        return iter(returned)

    def _check_blob(self, data: bytes) -> None:
        if type(data) is not bytes or len(data) > BATCH_RESULT_BYTES_MAX + 4 * self._count:
            raise ValueError(f"apply_batch returned a result blob that is no bytes object or too large: {len(data)}")
        if _is_plain(data, self._count):
            return
        try:
            decode_results(data, self._count)
        except FrameError as error:
            raise ValueError(f"apply_batch returned a damaged result blob: {error}") from error

    def _message_bytes_max(self) -> int:
        """How long a message may be that every command of this batch gets."""
        share = BATCH_RESULT_BYTES_MAX // max(1, self._count) - FAILURE_NAME_BYTES
        return max(0, min(FAILURE_MESSAGE_BYTES, share))

    def _fail_all(self, failure: CommandFailure) -> None:
        self._results = []
        self._blob = failure_results(self._count, failure)


def _is_plain(data: bytes, count: int) -> bool:
    """Uniform and without errors, as most blobs are: only the total could be wrong, and is not."""
    header = b"\x01\x01\x00\x00" + count.to_bytes(4, "little")
    return data[:8] == header and (len(data) - 8) % count == 0


def begin_batch(machine: StateMachine, batch: BlockView, slot_begin: int, now_ns: int) -> bytes | BatchRun:
    """Start to apply a batch. Returns its result blob if the machine gives that at once, else the run to go on with."""
    if type(machine).apply_batch is StateMachine.apply_batch:
        return BatchRun(machine, batch, slot_begin, now_ns)
    try:
        returned = machine.apply_batch(batch, ApplyContext(slot_begin, now_ns))
    except FATAL_ERRORS:
        raise
    except Exception as error:
        return BatchRun(machine, batch, slot_begin, now_ns).fail(error)
    if type(returned) is ResultBlob:
        data = returned.data
        if type(data) is bytes and len(data) <= BATCH_RESULT_BYTES_MAX and _is_plain(data, len(batch)):
            return data
    run = BatchRun(machine, batch, slot_begin, now_ns)
    return run.take(returned) or run


def apply_commands(machine: StateMachine, batch: BlockView, slot_begin: int, now_ns: int) -> bytes:
    """Apply a batch in one go and return its result blob. A node uses `BatchRun`, which works in slices."""
    return BatchRun(machine, batch, slot_begin, now_ns).finish()


def query_machine(machine: StateMachine, request: bytes, context: QueryContext) -> tuple[ReplyStatus, bytes]:
    """Answer a query: (OK, result), or (COMMAND_ERROR, msgpack [type name, message]) when the machine raised."""
    try:
        result = checked_result(machine.query(request, context))
    except FATAL_ERRORS:
        raise
    except Exception as error:
        result = failure_of(error)
    if isinstance(result, bytes) and len(result) > QUERY_RESULT_BYTES_MAX:
        message = f"the result has {len(result)} bytes; at most {QUERY_RESULT_BYTES_MAX} fit into a reply"
        result = make_failure("ResultTooLarge", message)
    if isinstance(result, bytes):
        return ReplyStatus.OK, result
    return ReplyStatus.COMMAND_ERROR, msgpack.packb([result.type_name, result.message])


BUILT_IN = {"kv": "fastpaxos.kv:KeyValueMachine", "hashchain": "fastpaxos.hashchain:HashChain"}


def load_machine(spec: str) -> Callable[[], StateMachine]:
    """Return the factory of a state machine by name: "kv", "hashchain", or "module:Class".

    Raises ConfigError that says what went wrong: no such module, no such class, not a StateMachine, or one that
    cannot be made without arguments.
    """
    module_name, separator, class_name = BUILT_IN.get(spec, spec).partition(":")
    if not separator or not module_name or not class_name:
        raise ConfigError(f"state machine {spec!r} is unknown; use {', '.join(BUILT_IN)} or MODULE:CLASS")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"state machine {spec!r}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in class_name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"state machine {spec!r}: {module_name!r} has no {class_name!r}") from None
    if not (isinstance(found, type) and issubclass(found, StateMachine)):
        raise ConfigError(f"state machine {spec!r}: {class_name!r} is no subclass of fastpaxos.StateMachine")
    try:
        inspect.signature(found.__init__).bind(None)
    except TypeError as error:
        raise ConfigError(f"state machine {spec!r}: {class_name}() must need no arguments: {error}") from error
    return found

"""What clients of a real cluster asked for and were told, and the judgement on it by the replicas' journals.

Everything is measured on the hash chain machine: the result of a command is its place in the applied order, and a read
tells how many commands were applied and their digest. So each answer can be compared with the one order in the log.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from fastpaxos import Client, ClientError, NotApplied, OutcomeUnknown
from fastpaxos.cli.journal import journal_directory
from fastpaxos.testing import ClientHistory, LogModel, Read, Violation, Write
from fastpaxos.testing.chaos.witness import read_log as read_applied_log
from fastpaxos_core import journal_recovery
from fastpaxos_core.block import BlockView
from fastpaxos_core.hashchain import HashChainState


@dataclass(eq=False, slots=True)
class WriteCall:
    """One call that writes, as its caller saw it. Times are those of the monotonic clock of this process."""

    who: str
    commands: list[bytes]
    invoked_ns: int
    answered_ns: int | None = None
    positions: list[int] = field(default_factory=list)
    """Place of each command in the applied order, from 1; empty unless acknowledged."""
    error: ClientError | None = None


@dataclass(eq=False, slots=True)
class ReadCall:
    """One linearizable read, as its caller saw it."""

    who: str
    invoked_ns: int
    answered_ns: int | None = None
    applied_index: int = 0
    count: int = 0
    digest: str = ""
    error: ClientError | None = None


class CallHistory:
    """Makes calls with commands that are never used twice, and keeps what became of them."""

    def __init__(self) -> None:
        self.writes: list[WriteCall] = []
        self.reads: list[ReadCall] = []
        self._commands = 0

    def _new_command(self) -> bytes:
        self._commands += 1
        # The lengths differ, so that blocks with and without a table of lengths are made.
        return b"%08d" % self._commands + bytes(self._commands % 5)

    async def write(self, client: Client, who: str, count: int = 1) -> WriteCall:
        """Run `count` new commands in one call."""
        call = WriteCall(who, [self._new_command() for _ in range(count)], time.monotonic_ns())
        self.writes.append(call)
        try:
            if count == 1:
                results = [await client.execute(call.commands[0])]
            else:
                results = await client.execute_many(call.commands)
        except (NotApplied, OutcomeUnknown) as error:
            call.error = error
            return call
        call.answered_ns = time.monotonic_ns()
        call.positions = [int.from_bytes(result, "little") for result in results]
        return call

    async def read(self, client: Client, who: str) -> ReadCall:
        """Read how far the machine is."""
        call = ReadCall(who, time.monotonic_ns())
        self.reads.append(call)
        try:
            answer = await client.query(b"")
        except (NotApplied, OutcomeUnknown) as error:
            call.error = error
            return call
        call.answered_ns = time.monotonic_ns()
        call.applied_index, call.count, call.digest = msgpack.unpackb(answer)
        return call

    def check(self, log: LogModel) -> None:
        """Judge every answer by the applied order. Raises Violation."""
        place = {command: number for number, command in enumerate(applied_commands(log), 1)}
        if len(place) != log.commands:
            ClientHistory.check_commands_once(log)
        issued = {command for call in self.writes for command in call.commands}
        if foreign := place.keys() - issued:
            raise Violation(f"{len(foreign)} commands in the log were never issued, such as {min(foreign)!r}")
        for call in self.writes:
            self._check_write(call, place)
        self._check_reads(log)
        self._in_real_time(log, place).check_real_time(log)

    @staticmethod
    def _check_write(call: WriteCall, place: Mapping[bytes, int]) -> None:
        found = [place.get(command) for command in call.commands]
        if call.answered_ns is not None and found != call.positions:
            raise Violation(f"{call.who} was told places {call.positions} for {call.commands}; in the log are {found}")
        if isinstance(call.error, NotApplied) and any(found):
            raise Violation(f"{call.who} was told {call.error!r} for {call.commands}, they applied at {found}")

    def _check_reads(self, log: LogModel) -> None:
        """What a read saw is a state that the log goes through, at the index that it names."""
        chain = HashChainState()
        digests = [chain.digest.hex()]
        for command in applied_commands(log):
            chain.fold_one(command)
            digests.append(chain.digest.hex())
        last_slots = [entry.slot_end - 1 for entry in log.applied]
        for call in self.reads:
            if call.answered_ns is None:
                continue
            entries = bisect_right(last_slots, call.applied_index)
            count = log.applied[entries - 1].last_position if entries else 0
            if (call.count, call.digest) != (count, digests[count]):
                raise Violation(
                    f"{call.who} read {call.count} commands with digest {call.digest} at index {call.applied_index}; "
                    f"by the log it is {count} with {digests[count]}"
                )

    def _in_real_time(self, log: LogModel, place: Mapping[bytes, int]) -> ClientHistory:
        """The same history in the words of fastpaxos.testing, which compares the applied order with real time."""
        history = ClientHistory()
        ends = [entry.last_position for entry in log.applied]
        for call in self.writes:
            places = [place[command] for command in call.commands if command in place]
            for index in {bisect_left(ends, number) for number in places}:
                entry = log.applied[index]
                history.writes.append(
                    Write(
                        call.who,
                        entry.session_id,
                        entry.first_sequence,
                        entry.block,
                        call.invoked_ns,
                        answered_ns=call.answered_ns,
                    )
                )
        for read in self.reads:
            if read.answered_ns is not None:
                history.reads.append(Read(read.who, read.invoked_ns, read.answered_ns, read.count))
        return history


def applied_commands(log: LogModel) -> Iterator[bytes]:
    """All commands in the order in which they took effect."""
    for entry in log.applied:
        yield from BlockView(entry.block)


def read_log(data_dir: Path, applied_index: int) -> LogModel:
    """What a stopped replica applied, by its journal, in which nothing may be bad."""
    problems = journal_recovery.verify(journal_directory(data_dir))
    if problems:
        raise Violation(f"{data_dir.name} has a bad journal: {problems}")
    return read_applied_log(data_dir, applied_index)


def chain_digest(log: LogModel) -> str:
    """The digest that a replica must report that has applied `log`."""
    chain = HashChainState()
    for command in applied_commands(log):
        chain.fold_one(command)
    return chain.digest.hex()


def check_replicas_agree(logs: Mapping[int, LogModel], digests: Mapping[int, str]) -> LogModel:
    """Every journal tells one and the same order, and every replica reported the digest that follows from it.

    Returns that order. Raises Violation.
    """
    first, *others = logs
    for other in others:
        pairs = zip(applied_commands(logs[first]), applied_commands(logs[other]), strict=False)
        for number, (mine, theirs) in enumerate(pairs, 1):
            if mine != theirs:
                raise Violation(f"command {number} is {mine!r} at replica {first} and {theirs!r} at replica {other}")
        if logs[first].commands != logs[other].commands:
            raise Violation(f"replica {first} applied {logs[first].commands}, {other} {logs[other].commands} commands")
    for node_id, log in logs.items():
        if digests[node_id] != chain_digest(log):
            raise Violation(f"replica {node_id} says digest {digests[node_id]}, its journal says {chain_digest(log)}")
    return logs[first]

"""Commands that are too large, sessions that nobody knows, state machines that raise: at the level of whole nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpaxos
from fastpaxos import CommandError, HashChain, SessionExpired, StateMachine, TooLarge
from fastpaxos.statemachine import BatchResults
from fastpaxos_core.block import BlockView, build_block, build_control, build_noop
from fastpaxos_core.results import CommandFailure, decode_results
from fastpaxos_core.wire import ReplyStatus
from integration.bad_input_support import chain_digest, raw_client
from local_cluster import LocalCluster

KIB = 1 << 10
SMALL: dict[str, Any] = {"block_bytes_max": 64 * KIB, "command_bytes_max": 60 * KIB, "commands_per_block_max": 100}


def digests(statuses: list[dict[str, Any]]) -> set[str]:
    return {status["digest"] for status in statuses}


# --- size -------------------------------------------------------------------------------------------------------------


async def test_oversized_commands_are_refused_with_both_numbers_and_the_rest_goes_on(tmp_path: Path) -> None:
    largest = bytes(60 * KIB)
    async with LocalCluster(tmp_path, **SMALL) as cluster, cluster.client() as client:
        # Before the first contact only the client's own limits are known, then those of the nodes.
        with pytest.raises(TooLarge, match=str(2 << 20)):
            await client.execute(bytes(2 << 20))
        commands = [b"first", largest]
        for command in commands:
            await client.execute(command)
        with pytest.raises(TooLarge, match=rf"{60 * KIB + 1}.* {60 * KIB}") as caught:
            await client.execute(largest + b"x")
        assert not caught.value.may_have_applied
        with pytest.raises(TooLarge, match=rf"{60 * KIB + 1}"):
            await client.execute_many([b"fits", largest + b"x", b"fits"])
        with pytest.raises(TooLarge):
            await client.query(bytes(2 << 20))
        many = [b"%d" % number for number in range(1000)]
        assert len(await client.execute_many(many)) == 1000
        assert digests(await cluster.settle()) == {chain_digest([*commands, *many])}


async def test_a_client_that_ignores_the_limits_is_answered_and_nothing_is_applied(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, **SMALL) as cluster:
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            session_id = await raw.begin_session(bytes(16))
            for number, block in enumerate(
                (
                    build_block([bytes(64 * KIB)], session_id, 1),
                    build_block([b"x"] * 101, session_id, 1),
                    build_block([bytes(100 * KIB)] * 10, session_id, 1),
                )
            ):
                await raw.send(b"".join(raw.frames.submit(block, number + 1)))
                reply = await raw.reply()
                assert (reply.status, reply.request_id) == (ReplyStatus.TOO_LARGE, number + 1)
            await raw.send(b"".join(raw.frames.submit(build_block([b"x"] * 100, session_id, 1), 9)))
            assert (await raw.reply()).status == ReplyStatus.OK
        assert digests(await cluster.settle()) == {chain_digest([b"x"] * 100)}


async def test_blocks_that_are_damaged_or_forged_are_malformed(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster:
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            session_id = await raw.begin_session(bytes(16))
            good = build_block([b"one", b"three"], session_id, 1)
            bad = [
                good[:-1],
                good + b"x",
                good[:-1] + bytes([good[-1] ^ 1]),
                good[:20],
                b"",
                build_noop(3),
                build_control(b"\x81\xa2op\xa4stop"),
                build_block([b"x"], 0, 1),
                build_block([b"x"], session_id, 0),
                *(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :] for place in range(40)),
            ]
            for request_id, block in enumerate(bad, 1):
                await raw.send(b"".join(raw.frames.submit(block, request_id)))
                reply = await raw.reply()
                assert (reply.status, reply.request_id) == (ReplyStatus.MALFORMED, request_id), block
            await raw.send(b"".join(raw.frames.submit(good, 99)))
            reply = await raw.reply()
            assert (reply.status, reply.command_count) == (ReplyStatus.OK, 2)
        assert digests(await cluster.settle()) == {chain_digest([b"one", b"three"])}


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_session_that_the_log_does_not_know_is_refused_and_nothing_is_applied(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            session_id = await raw.begin_session(bytes(16))
            for unknown in (session_id + 1000, 2**64 - 1):
                await raw.send(b"".join(raw.frames.submit(build_block([b"nobody's"], unknown, 1), 5)))
                reply = await raw.reply()
                assert (reply.status, reply.session_id) == (ReplyStatus.SESSION_UNKNOWN, unknown)
            # A block far ahead of what the session sent, and one that overlaps what was applied.
            await raw.send(b"".join(raw.frames.submit(build_block([b"early"], session_id, 5), 6)))
            assert (await raw.reply()).status == ReplyStatus.OUT_OF_ORDER
            whole = build_block([b"one", b"two", b"three"], session_id, 1)
            await raw.send(b"".join(raw.frames.submit(whole, 7)))
            applied = await raw.reply()
            assert applied.status == ReplyStatus.OK
            await raw.send(b"".join(raw.frames.submit(build_block([b"three", b"four"], session_id, 3), 8)))
            assert (await raw.reply()).status == ReplyStatus.INVALID_SEQUENCE
            # The same block again is answered from the table.
            await raw.send(b"".join(raw.frames.submit(whole, 9)))
            again = await raw.reply()
            assert (again.status, again.results) == (ReplyStatus.OK, applied.results)
            await raw.send(raw.frames.control({"op": "close_session", "request_id": 2, "session_id": session_id}))
            await raw.control("session_closed")
            await raw.send(b"".join(raw.frames.submit(build_block([b"late"], session_id, 4), 10)))
            assert (await raw.reply()).status == ReplyStatus.SESSION_UNKNOWN
        await client.execute(b"after")
        assert digests(await cluster.settle()) == {chain_digest([b"one", b"two", b"three", b"after"])}


async def test_an_evicted_session_ends_with_a_clear_error_and_the_client_goes_on(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, sessions_max=2) as cluster, cluster.client() as client:
        await client.execute(b"one")
        session_id = client.session_id
        for _ in range(2):
            async with cluster.client() as other:
                await other.execute(b"other")
                # It stays in the table as long as it is not closed, and pushes out who was there longest.
                async with cluster.client() as third:
                    await third.execute(b"third")
        with pytest.raises(SessionExpired, match="sessions_max") as caught:
            await client.execute(b"two")
        assert caught.value.may_have_applied
        assert int.from_bytes(await client.execute(b"three"), "little") == 6
        assert client.session_id != session_id
        applied = [b"one", *[b"other", b"third"] * 2, b"three"]
        assert digests(await cluster.settle()) == {chain_digest(applied)}


# --- a state machine that raises --------------------------------------------------------------------------------------


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no text for you")


class Faulty(HashChain):
    """A hash chain that also raises what a command asks for."""

    apply_batch = StateMachine.apply_batch

    def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> bytes:
        super().apply(command, context)
        if command == b"unprintable":
            raise Unprintable
        if command == b"no bytes":
            return 42  # type: ignore[return-value]
        if command.startswith(b"raise "):
            raise KeyError(command.decode())
        if command == b"raise at length":
            raise ValueError
        if command.startswith(b"long"):
            raise RuntimeError("\N{SNOWMAN}" * 5000)
        return command


async def test_a_command_that_raises_gets_its_error_on_every_replica_and_the_log_moves_on(tmp_path: Path) -> None:
    commands = [b"fine", b"raise this", b"fine", b"unprintable", b"no bytes", b"long", b"fine"]
    async with LocalCluster(tmp_path, machine=Faulty) as cluster, cluster.client() as client:
        results = await client.execute_many(commands, return_exceptions=True)
        failures = {index: result for index, result in enumerate(results) if isinstance(result, CommandError)}
        assert [result for index, result in enumerate(results) if index not in failures] == [b"fine"] * 3
        told = {index: (error.type_name, error.message) for index, error in failures.items()}
        assert told == {
            1: ("KeyError", "'raise this'"),
            3: ("Unprintable", "(the message of this exception cannot be read)"),
            4: ("TypeError", "apply must return a bytes-like result, not int"),
            5: ("RuntimeError", "\N{SNOWMAN}" * 341),
        }
        with pytest.raises(CommandError, match=r"^the state machine raised KeyError: 'raise alone'$") as caught:
            await client.execute(b"raise alone")
        assert caught.value.may_have_applied
        with pytest.raises(CommandError, match="'raise many'"):
            await client.execute_many([b"fine", b"raise many"])
        applied = [*commands, b"raise alone", b"fine", b"raise many"]
        assert digests(await cluster.settle()) == {chain_digest(applied)}
        # The next leader gives the same answers, from its own copy of the result.
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            session_id = await raw.begin_session(bytes(range(16)))
            block = build_block([b"fine", b"raise again"], session_id, 1)
            await raw.send(b"".join(raw.frames.submit(block, 1)))
            first = (await raw.reply()).results
        await cluster.settle()
        await cluster.stop(leader.config.node_id)
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            assert await raw.begin_session(bytes(range(16))) == session_id
            await raw.send(b"".join(raw.frames.submit(block, 2)))
            second = (await raw.reply()).results
        assert first == second
        good, failed = decode_results(first, 2)
        assert good == b"fine"
        assert isinstance(failed, CommandFailure)
        assert (failed.type_name, failed.message) == ("KeyError", "'raise again'")


class FaultyBatches(HashChain):
    """Refuses whole batches: by raising at once, in the middle of its answers, or with too few of them."""

    def apply_batch(self, batch: BlockView, context: fastpaxos.ApplyContext) -> BatchResults:
        results = super().apply_batch(batch, context)
        if b"raise" in batch.commands():
            raise ArithmeticError(f"batch of {len(batch)}")
        if b"stop" in batch.commands():
            return self._stop_halfway(len(batch))
        if b"forget" in batch.commands():
            return [b"only one"]
        return results

    @staticmethod
    def _stop_halfway(count: int) -> Iterator[bytes]:
        for _ in range(count // 2):
            yield b"fine"
        raise LookupError("halfway")

    def query(self, request: bytes, context: fastpaxos.QueryContext) -> bytes:
        if request == b"large":
            return bytes(20 << 20)
        return super().query(request, context)


@pytest.mark.parametrize(
    ("bad", "type_name", "message"),
    [
        (b"raise", "ArithmeticError", "batch of 4"),
        (b"stop", "LookupError", "halfway"),
        (b"forget", "ValueError", "apply_batch gave 1 results for 4 commands"),
    ],
)
async def test_every_command_of_a_batch_gets_the_error_of_apply_batch(
    tmp_path: Path, bad: bytes, type_name: str, message: str
) -> None:
    async with LocalCluster(tmp_path, machine=FaultyBatches) as cluster, cluster.client() as client:
        commands = [b"one", b"two", bad, b"four"]
        for _ in range(2):
            outcomes = await client.execute_many(commands, return_exceptions=True)
            told = [(each.type_name, each.message) for each in outcomes if isinstance(each, CommandError)]
            assert told == [(type_name, message)] * 4
        assert len(await client.execute(b"and on")) == 8
        assert digests(await cluster.settle()) == {chain_digest([*commands, *commands, b"and on"])}


async def test_a_query_that_raises_or_answers_too_much_fails_alone(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, machine=FaultyBatches) as cluster, cluster.client() as client:
        await client.execute(b"one")
        for request, text in ((b"unknown", "ValueError: the hash chain answers only"), (b"large", "ResultTooLarge")):
            with pytest.raises(CommandError, match=text) as caught:
                await client.query(request)
            assert not caught.value.may_have_applied
        assert digests(await cluster.settle()) == {chain_digest([b"one"])}

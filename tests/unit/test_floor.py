"""The floor of `bench floor`: it does the work that it claims to time, and its answers rest on a quorum of disks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpaxos.cli import floor_node
from fastpaxos.cli.floor import LATENCY_PAYLOAD_BYTES
from fastpaxos.cli.floor_node import (
    HEADER,
    POSITION,
    REPLY_BYTES,
    FloorPlan,
    FrameChecker,
    StreamFile,
    run_client,
    run_leader,
)
from fastpaxos_core.block import build_block, crc32c


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload), crc32c(payload)) + payload


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_node, "FILE_BYTES", 1 << 20)


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_checked_wherever_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    frames = [frame(chance.randbytes(chance.choice([1, 7, 100, 3000]))) for _ in range(8)]
    stream = b"".join(frames)
    checker = FrameChecker()
    offset = 0
    while offset < len(stream):
        size = chance.choice([1, 3, 8, 500, 4000])
        checker.take(stream[offset : offset + size])
        offset += size
    ends = [sum(map(len, frames[: number + 1])) for number in range(8)]
    assert (list(checker.ends), checker.position) == (ends, len(stream))


def test_a_changed_byte_is_seen() -> None:
    data = bytearray(frame(b"payload"))
    data[-1] ^= 1
    with pytest.raises(ValueError, match="ends at byte 15"):
        FrameChecker().take(bytes(data))


@pytest.mark.parametrize("sync", ["inline", "none", "thread"])
def test_the_file_holds_the_stream(tmp_path: Path, sync: str) -> None:
    file = StreamFile(tmp_path / "file", sync)
    pieces = [os.urandom(size) for size in (10, 4000, 1)]
    for piece in pieces:
        file.append(piece)
        file.flush()
        if sync == "thread":
            file.finish()
    assert file.durable == 4011
    file.close()
    assert (tmp_path / "file").read_bytes()[:4011] == b"".join(pieces)


def test_the_thread_takes_what_arrives_meanwhile_as_one_group(tmp_path: Path) -> None:
    file = StreamFile(tmp_path / "file", "thread")
    file.append(b"one")
    file.flush()
    file.append(b"two")
    file.append(b"three")
    file.flush()
    file.finish()
    assert file.durable == 3
    file.finish()
    assert file.durable == 11
    file.close()


@contextlib.contextmanager
def leader_with_silent_followers(replicas: int) -> Iterator[tuple[tuple[str, int], list[socket.socket]]]:
    """A leader whose followers are the test's sockets; its own disk is always done."""
    with contextlib.ExitStack() as stack:
        followers, clients = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        arguments = (replicas, Path("unused"), "off", followers, clients)
        leader = multiprocessing.get_context("spawn").Process(target=run_leader, args=arguments, daemon=True)
        leader.start()
        stack.callback(leader.join)
        stack.callback(leader.kill)
        addresses = [followers.getsockname()] * (replicas - 1)
        yield (
            clients.getsockname(),
            [stack.enter_context(socket.create_connection(address)) for address in addresses],
        )


def test_nothing_is_answered_before_a_quorum_holds_it() -> None:
    data = frame(b"x" * 100)
    with leader_with_silent_followers(3) as (address, silent), socket.create_connection(address) as client:
        client.sendall(data + data)
        received = b""
        while len(received) < 2 * len(data):
            received += silent[0].recv(1000)
        assert received == data + data
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        # One follower has the first frame and a part of the second.
        silent[1].sendall(POSITION.pack(len(data) + 5))
        client.settimeout(20.0)
        assert len(client.recv(1000)) == REPLY_BYTES
        silent[0].sendall(POSITION.pack(2 * len(data)))
        assert len(client.recv(1000)) == REPLY_BYTES


def test_the_client_counts_each_frame_once() -> None:
    with leader_with_silent_followers(1) as (address, _):
        for window in (1, 8):
            frames, histogram = run_client(FloorPlan(1000, window, 0.2, 0.05), address)
            assert frames > 0
            assert abs(histogram.samples - frames) <= 2 * window


def test_the_frame_that_is_timed_alone_is_the_block_of_one_small_command() -> None:
    assert len(build_block([bytes(16)], 1, 1)) == LATENCY_PAYLOAD_BYTES

"""Blocks and frames: encode, decode, split."""

from __future__ import annotations

from typing import Any

import pytest

from fastpaxos_core.block import BlockView, build_block, check_block
from fastpaxos_core.wire import FrameSplitter, FrameWriter, parse_submit

BATCH_SIZES = [1, 64, 1024, 4096]
SPLITTER_LIMITS = (1 << 20, 64 << 20, None)


@pytest.mark.benchmark(group="block encode")
@pytest.mark.parametrize("count", BATCH_SIZES)
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "mixed"])
def bench_block_encode(benchmark: Any, count: int, uniform: bool) -> None:
    commands = [b"x" * (16 if uniform else 8 + index % 17) for index in range(count)]
    block = benchmark(build_block, commands, 1, 1)
    assert list(BlockView(block)) == commands
    benchmark.extra_info["commands_per_second"] = round(count / benchmark.stats.stats.median)


@pytest.mark.benchmark(group="block check")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_block_check(benchmark: Any, count: int) -> None:
    block = build_block([b"0123456789abcdef"] * count, 1, 1)
    benchmark(check_block, block)
    assert len(BlockView(block)) == count


@pytest.mark.benchmark(group="block decode")
@pytest.mark.parametrize("count", BATCH_SIZES)
def bench_block_decode(benchmark: Any, count: int) -> None:
    commands = [b"%016d" % index for index in range(count)]
    block = build_block(commands, 1, 1)
    assert benchmark(lambda: list(BlockView(block))) == commands


@pytest.mark.benchmark(group="frame splitter")
@pytest.mark.parametrize("count", [1, 64, 1024])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1448], ids=["whole", "segments"])
def bench_splitter(benchmark: Any, count: int, piece_bytes: int) -> None:
    """64 Submit frames, in one piece or in TCP-segment sized ones."""
    writer = FrameWriter(0, 1, 0, b"c" * 16)
    block = build_block([b"0123456789abcdef"] * count, 1, 1)
    stream = b"".join(b"".join(writer.submit(block, request_id)) for request_id in range(64))
    pieces = [stream[start : start + piece_bytes] for start in range(0, len(stream), piece_bytes)]

    def split() -> list[Any]:
        splitter = FrameSplitter(*SPLITTER_LIMITS)
        frames = []
        for piece in pieces:
            frames += splitter.feed(piece)
        return frames

    frames = benchmark(split)
    assert [parse_submit(frame)[0] for frame in frames] == list(range(64))
    assert all(frame.body == block for frame in frames)
    benchmark.extra_info["bytes_per_second"] = round(len(stream) / benchmark.stats.stats.median)

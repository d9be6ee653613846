"""The slot window, looked at through a replica that fills it (its methods are C-level) and through its NumPy views."""

import numpy as np
import pytest

from fastpaxos.testing.wired import WiredReplicas
from fastpaxos_core.window import SlotWindow


@pytest.mark.parametrize(("slots", "batches"), [(0, 1), (3, 1), (1 << 31, 1), (8, 0), (8, 2**32 - 1)])
def test_bad_capacities_are_refused(slots: int, batches: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        SlotWindow(slots, batches)


def test_an_empty_window() -> None:
    window = SlotWindow(8, 4)
    assert (window.memory_begin, window.slot_end_max, window.batch_count, window.block_bytes) == (1, 1, 0, 0)
    assert window.batches() == []
    assert window.status.tolist() == [0] * 8


def test_the_views_are_read_only() -> None:
    window = SlotWindow(8, 4)
    for view in (window.accepted_ballots, window.batch_references, window.vote_masks, window.status):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


def test_all_cells_of_a_batch_move_together_and_wrap_around_the_ring() -> None:
    cluster = WiredReplicas([1, 2, 3], window_slots=8, ring_slots=16, commands_per_block_max=8, batch_capacity=16)
    cluster.elect(1)
    session_id = cluster.open_session(1)
    sequence = 1
    for size in (3, 5, 2, 8, 1, 7, 8, 8):
        assert cluster.submit(1, session_id, sequence, [b"x"] * size) == 0
        sequence += size
        cluster.run()
        window = cluster.replicas[1].window
        end = cluster.replicas[1].commit_index + 1
        cells = np.arange(end - size, end) % window.slot_capacity
        assert set(window.status[cells].tolist()) == {3}
        assert len(set(window.batch_references[cells].tolist())) == 1
        assert set(window.accepted_ballots[cells].tolist()) == {cluster.replicas[1].ballot}
        assert all(mask.bit_count() >= 2 for mask in window.vote_masks[cells].tolist())
        assert end - window.memory_begin <= window.slot_capacity
    assert [replica.commit_index for replica in cluster.replicas.values()] == [sequence - 1 + 2] * 3


def test_batches_leave_memory_when_the_budget_is_spent() -> None:
    cluster = WiredReplicas([1], log_memory_bytes=10_000)
    cluster.elect(1)
    session_id = cluster.open_session(1)
    for index in range(50):
        assert cluster.submit(1, session_id, index * 10 + 1, [b"y" * 100] * 10) == 0
        cluster.run()
    window = cluster.replicas[1].window
    assert window.block_bytes <= 10_000
    assert window.memory_begin > 400
    assert (
        sum(row[1] - row[0] for row in window.batches()) == cluster.replicas[1].commit_index + 1 - window.memory_begin
    )

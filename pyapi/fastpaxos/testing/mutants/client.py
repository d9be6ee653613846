"""Faults of the client's side and of the wire: retries, frames of strangers, lengths, buffers (rules 5.9, 5.10)."""

from __future__ import annotations

from .model import Mutant, core, package

__all__ = ["MUTANTS"]

SESSION = "tests/unit/test_session.py::"
ERRORS = "tests/unit/test_session_errors.py::"
WIRE = "tests/unit/test_wire.py::"

MUTANTS = (
    Mutant(
        52,
        "an unanswered block is sent again under new sequence numbers",
        (
            package(
                "inflight",
                "        self.needs_resend = False\n        return [block",
                "        self.needs_resend = False\n"
                "        if mutant(52):\n"
                "            from fastpaxos_core.block import BlockView\n"
                "            for block in list(self._blocks.values()):\n"
                "                view = BlockView(block.data)\n"
                "                if block.needs_send and block.attempts:\n"
                "                    del self._blocks[block.first_sequence]\n"
                "                    block.first_sequence = self.next_sequence\n"
                "                    self.next_sequence += block.count\n"
                "                    block.data = build_block(\n"
                "                        view.commands(), view.session_id, block.first_sequence, 0)\n"
                "                    self._blocks[block.first_sequence] = block\n"
                "        return [block",
            ),
        ),
        rows=(52,),
        origin="CASSANDRA-9086, JAVA-819",
        rules=("5.9",),
        layers=(f"{SESSION}test_unanswered_blocks_are_sent_again_byte_identical_and_oldest_first", "sim"),
    ),
    Mutant(
        152,
        "unanswered blocks are sent again newest first",
        (
            package(
                "inflight",
                "        return [block for block in self._blocks.values() if block.needs_send]\n",
                "        resends = [block for block in self._blocks.values() if block.needs_send]\n"
                "        return resends[::-1] if mutant(152) else resends\n",
            ),
        ),
        rows=(52,),
        origin="DESIGN 5.9",
        rules=("5.9",),
        layers=(f"{SESSION}test_unanswered_blocks_are_sent_again_byte_identical_and_oldest_first",),
    ),
    Mutant(
        252,
        "a client acknowledges results that it does not have yet",
        (
            package(
                "inflight",
                "            acknowledged_below = next(iter(blocks)) if blocks else first_sequence\n",
                "            acknowledged_below = next(iter(blocks)) if blocks and not mutant(252) else "
                "first_sequence\n",
            ),
        ),
        rows=(52, 59),
        origin="class",
        rules=("5.9",),
        layers=(f"{SESSION}test_acknowledged_below_is_the_oldest_unanswered_sequence", "sim"),
    ),
    Mutant(
        352,
        "every attempt to open a session has a nonce of its own",
        (
            package(
                "session",
                "        self._open_request = self._close_request = 0\n        self._inflight.mark_for_resend()\n",
                "        if mutant(352) and not self.session_id:\n"
                "            self._nonce = self._random.randbytes(NONCE_BYTES)\n"
                "        self._open_request = self._close_request = 0\n        self._inflight.mark_for_resend()\n",
            ),
        ),
        rows=(52,),
        origin="class",
        rules=("5.9",),
        layers=(f"{SESSION}test_opening_is_repeated_with_the_same_nonce_until_it_is_answered",),
    ),
    Mutant(
        58,
        "a block whose callers have gone is forgotten and leaves a hole in the sequences",
        (
            package(
                "pending_work",
                "                expired = block.expire(now_ns)\n",
                "                expired = block.expire(now_ns)\n"
                "                if mutant(58) and not block.live_waiters():\n"
                "                    self._inflight._blocks = {\n"
                "                        first: other for first, other in self._inflight._blocks.items()\n"
                "                        if other is not block\n"
                "                    }\n",
            ),
        ),
        rows=(58,),
        origin="class (cancelled task)",
        rules=("5.9",),
        layers=(f"{ERRORS}test_deadline_after_sending_is_unknown_but_the_block_is_sent_again_all_the_same", "sim"),
    ),
    Mutant(
        55,
        "the buffer of a frame is used again while it waits to be sent",
        (
            core(
                "wire",
                "    frame = PyBytes_FromStringAndSize(\n        NULL, <Py_ssize_t>(FRAME_HEADER_BYTES + head_bytes + "
                "tail_bytes + body_room))\n",
                "    global _used_again\n"
                "    if MUTANT(55) and _used_again is not None and len(_used_again) == (\n"
                "            FRAME_HEADER_BYTES + head_bytes + tail_bytes + body_room):\n"
                "        frame = _used_again\n"
                "    else:\n"
                "        frame = PyBytes_FromStringAndSize(\n            NULL, <Py_ssize_t>(FRAME_HEADER_BYTES + "
                "head_bytes + tail_bytes + body_room))\n"
                "    _used_again = frame\n",
            ),
            core("wire", 'cdef bytes _EMPTY = b""\n', 'cdef bytes _EMPTY = b""\ncdef bytes _used_again = None\n'),
        ),
        rows=(55,),
        origin="CPython #135862, zuvloop #61",
    ),
    Mutant(
        155,
        "a large block is handed to the journal as a view of the wrong part of its frame",
        (
            core(
                "journal",
                "                buffers.append(memoryview(owner)[offset:offset + size])\n",
                "                buffers.append(memoryview(owner)[0 if MUTANT(155) else offset:][:size])\n",
            ),
        ),
        rows=(55,),
        origin="bookkeeper #2563",
        layers=("tests/unit/test_replica.py::test_large_blocks_of_one_frame_are_journalled_each_at_its_own_place",),
    ),
    Mutant(
        56,
        "frames of another cluster are taken",
        (
            core(
                "wire",
                "    if splitter._is_founded and splitter._last_cluster is not splitter._expected_cluster:\n",
                "    if splitter._is_founded and not MUTANT(56) and splitter._last_cluster is not "
                "splitter._expected_cluster:\n",
            ),
        ),
        rows=(56,),
        origin="TigerBeetle #3260",
        layers=(f"{WIRE}test_a_frame_of_another_cluster_is_refused_by_name",),
    ),
    Mutant(
        156,
        "frames of another boot than the connected one are taken",
        (
            core(
                "replica",
                "        if frame.boot != found.boot or not found.connected:\n",
                "        if (frame.boot != found.boot and not MUTANT(156)) or not found.connected:\n",
            ),
        ),
        rows=(56,),
        origin="TigerBeetle #3260",
        rules=("5.2",),
        layers=("tests/paper/test_acceptor.py::test_51_frames_of_another_boot_than_the_connected_one_are_ignored",),
    ),
    Mutant(
        256,
        "a node proposes in the ballot of another node",
        (
            core(
                "acceptor",
                '        if ballot_node(ballot) != peer.node_id:\n            raise FrameError(f"node '
                "{peer.node_id} proposes",
                "        if ballot_node(ballot) != peer.node_id and not MUTANT(256):\n"
                '            raise FrameError(f"node {peer.node_id} proposes',
            ),
        ),
        rows=(56,),
        origin="class",
        rules=("5.1",),
        layers=("tests/paper/test_acceptor.py::test_51_a_ballot_of_another_node_is_refused_as_a_bad_frame",),
    ),
    Mutant(
        356,
        "frames on a connection may name another sender",
        (
            package(
                "handshake",
                "    if (\n        frame.incarnation != incarnation\n",
                "    if not mutant(356) and (\n        frame.incarnation != incarnation\n",
            ),
        ),
        rows=(56,),
        origin="TigerBeetle #3260",
        layers=("tests/unit/test_transport.py::test_a_frame_of_another_sender_breaks_the_connection",),
    ),
    Mutant(
        456,
        "the checksum of a frame is not verified",
        (
            core(
                "wire",
                "    if crc != splitter._header.crc:\n",
                "    if crc != splitter._header.crc and not MUTANT(456):\n",
            ),
        ),
        rows=(56,),
        origin="PODC'07",
        layers=(f"{WIRE}test_wrong_crc_names_both_values_before_any_body_arrives",),
    ),
    Mutant(
        556,
        "the block of a batch that arrives is not checked",
        (
            core(
                "state",
                "    code = block_check(block, descriptor.block_bytes, header, 1)\n",
                "    code = block_check(block, descriptor.block_bytes, header, 0 if MUTANT(556) else 1)\n",
            ),
        ),
        rows=(56,),
        origin="PODC'07",
        layers=("tests/unit/test_replica.py::test_an_acceptor_takes_nothing_from_a_bad_frame",),
    ),
    Mutant(
        656,
        "a batch need not have the value CRC that its descriptor names",
        (
            core(
                "state",
                '            != descriptor.value_crc:\n        raise FrameError(f"the value CRC',
                '            != descriptor.value_crc and not MUTANT(656):\n        raise FrameError(f"the value CRC',
            ),
        ),
        rows=(56,),
        origin="PODC'07",
        layers=("tests/paper/test_acceptor.py::test_51_a_batch_that_contradicts_its_block_is_refused",),
    ),
    Mutant(
        57,
        "the length of a frame's body is trusted",
        (
            core(
                "wire",
                "    if available >= 20 and header.body_bytes > splitter.body_bytes_max:\n",
                "    if available >= 20 and header.body_bytes > splitter.body_bytes_max and not MUTANT(57):\n",
            ),
        ),
        rows=(57,),
        origin="PySyncObj, etcd #14098 kin",
        layers=(f"{WIRE}test_bad_headers_are_refused_as_soon_as_the_field_is_there",),
    ),
    Mutant(
        157,
        "the number of entries in a frame is trusted",
        (
            core(
                "messages",
                "    if <uint64_t>PyBytes_GET_SIZE(head) != fixed_bytes + entry_count * entry_bytes:\n",
                "    if <uint64_t>PyBytes_GET_SIZE(head) != fixed_bytes + entry_count * entry_bytes and not "
                "MUTANT(157):\n",
            ),
        ),
        rows=(57,),
        origin="class",
        layers=("tests/unit/test_replica.py::test_a_message_must_have_the_entries_that_it_counts",),
    ),
    Mutant(
        257,
        "the length of a block in a batch is trusted",
        (
            core(
                "state",
                "    if descriptor.block_bytes > room:\n",
                "    if descriptor.block_bytes > room and not MUTANT(257):\n",
            ),
        ),
        rows=(57,),
        origin="class",
        layers=("tests/unit/test_replica.py::test_a_batch_must_have_the_bytes_that_it_counts",),
    ),
    Mutant(
        265,
        "the version of a frame is not looked at",
        (
            core(
                "wire",
                "    if available >= 5 and header.version != FRAME_VERSION:\n",
                "    if available >= 5 and header.version != FRAME_VERSION and not MUTANT(265):\n",
            ),
        ),
        rows=(65,),
        origin="TigerBeetle 0.16.25-26",
        layers=(f"{WIRE}test_bad_headers_are_refused_as_soon_as_the_field_is_there",),
    ),
    Mutant(
        365,
        "a peer of another protocol version is accepted",
        (
            package(
                "handshake",
                "    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:\n",
                "    if not mutant(365) and (hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < "
                "PROTOCOL_MIN):\n",
            ),
        ),
        rows=(65,),
        origin="class",
        layers=("tests/unit/test_transport.py::test_a_wrong_peer_is_refused_with_reason_and_values",),
    ),
)

"""The client without asyncio: an event loop in a thread of its own, usable from any number of threads."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine, Iterable
from functools import partial
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self, TypeVar

from fastpaxos.answers import Results
from fastpaxos.client import Client, Cluster, timeout_to_ns
from fastpaxos.command_queue import as_bytes
from fastpaxos.errors import Busy, Closed, ConnectionLost, FastPaxosError
from fastpaxos.runtime import run

__all__ = ["BlockingClient"]

Result = TypeVar("Result")

NS_PER_S = 1_000_000_000
# The client's own thread answers every call by its deadline; this much later something is wrong with that thread.
GRACE_S = 5.0
OPEN_TIMEOUT_S = 10.0
COMMAND_CHARGE = 64


class _CommandFuture(concurrent.futures.Future[bytes]):
    """A future that may be cancelled by its thread at the very moment at which the loop's thread answers it."""

    def set_result(self, result: bytes) -> None:
        if self.set_running_or_notify_cancel():
            super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        if self.set_running_or_notify_cancel():
            super().set_exception(exception)


class BlockingClient:
    """The same as `fastpaxos.Client`, with calls that block.

        with fastpaxos.BlockingClient({1: "127.0.0.1:7001", 2: "127.0.0.1:7002"}) as client:
            result = client.execute(b"add 1")

    All threads share one session, so what they submit at the same time travels together. Interrupting a call
    (KeyboardInterrupt) drops the interest in its result and leaves the client usable. It does not survive a fork: the
    child must open its own.

    Args and errors are those of `fastpaxos.Client`.
    """

    def __init__(self, cluster: Cluster, **options: Any) -> None:
        self._client = Client(cluster, **options)
        self._lock = threading.Lock()
        self._inbox: list[tuple[bytes, _CommandFuture, int]] = []
        self._inbox_charge = 0
        self._is_woken = False
        self._has_ended = False
        self._is_closed = False
        self._process_id = os.getpid()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._at_exit: partial[None] | None = None
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()

    def __enter__(self) -> Self:
        if self._thread is not None or self._is_closed:
            raise Closed("a client is opened only once; make a new one")
        self._process_id = os.getpid()
        # A daemon, so that a client that nobody closes does not keep the process alive; atexit closes it in order.
        self._thread = threading.Thread(target=self._run, name="fastpaxos-client", daemon=True)
        self._thread.start()
        self._at_exit = partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)
        try:
            self._opened.result(OPEN_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client as `Client.aclose` does and end its thread. Closing twice, or in a forked child, is fine."""
        self._is_closed = True
        thread = self._thread
        if thread is None or self._process_id != os.getpid() or thread is threading.current_thread():
            return
        self._on_loop(self._request_stop)
        thread.join(2 * GRACE_S)
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None

    # --- calls --------------------------------------------------------------------------------------------------------

    def execute(self, command: bytes, timeout: float | None = None) -> bytes:
        """Replicate one command and return its result."""
        self._check_may_block()
        try:
            future: concurrent.futures.Future[bytes] = self.submit(command, timeout)
        except Busy:
            return self._call(self._client.execute(command, timeout), timeout)
        return self._wait(future, timeout)

    def submit(self, command: bytes, timeout: float | None = None) -> concurrent.futures.Future[bytes]:
        """Hand over one command and return the future of its result. Cancelling it drops the interest in the result.

        Its callbacks run on the client's own thread and must not call the client's blocking methods.

        Raises:
            Busy: too much is queued or unanswered; call `ready_to_submit()`.
            TooLarge, Closed.
        """
        self._check_usable()
        client = self._client
        command = as_bytes(command)
        client.check_command_bytes(len(command))
        deadline_ns = monotonic_ns() + self._timeout_ns(timeout)
        future = _CommandFuture()
        charge = len(command) + COMMAND_CHARGE
        with self._lock:
            if self._has_ended:
                raise Closed("the client was closed; open a new one")
            if self._inbox and self._inbox_charge + charge > client.room_bytes:
                raise Busy(
                    f"{self._inbox_charge} bytes wait to be taken over and there is room for {client.room_bytes}; "
                    f"await answers or call ready_to_submit()"
                )
            client.check_room(len(command))
            self._inbox.append((command, future, deadline_ns))
            self._inbox_charge += charge
            is_first, self._is_woken = not self._is_woken, True
        if is_first:
            self._on_loop(self._take_inbox)
        return future

    def ready_to_submit(self, command_bytes: int = 0, timeout: float | None = None) -> None:
        """Wait until a command of `command_bytes` can be submitted. Raises Busy when `timeout` passes before."""
        self._call(self._client.ready_to_submit(command_bytes, timeout), timeout)

    def execute_many(
        self, commands: Iterable[bytes], timeout: float | None = None, return_exceptions: bool = False
    ) -> Results:
        """Replicate many commands in order and return their results; see `Client.execute_many`."""
        return self._call(self._client.execute_many(commands, timeout, return_exceptions), timeout)

    def query(self, request: bytes, timeout: float | None = None) -> bytes:
        """Ask the state machine a linearizable read."""
        return self._call(self._client.query(request, timeout), timeout)

    def status(self, node: int | str, timeout: float | None = None) -> dict[str, Any]:
        """Ask one node, by id or "host:port", what it knows about itself; see `Client.status`."""
        return self._call(self._client.status(node, timeout), timeout)

    @property
    def session_id(self) -> int:
        """Id of the open session, 0 while there is none."""
        return self._client.session_id

    @property
    def leader_id(self) -> int:
        """Node that was last known to lead, 0 if none."""
        return self._client.leader_id

    @property
    def cluster_id(self) -> bytes:
        """The cluster's 16-byte id, b"" before the first contact."""
        return self._client.cluster_id

    # --- the caller's side --------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._process_id != os.getpid():
            raise Closed(
                f"this client was opened in process {self._process_id} and its thread did not survive the fork; open "
                f"a new one in process {os.getpid()}"
            )
        if self._is_closed or self._thread is None:
            raise Closed("the client is not open; use it as `with BlockingClient(...) as client`")

    def _check_may_block(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback on the client's own thread called a method that blocks it")

    def _timeout_ns(self, timeout: float | None) -> int:
        return self._client.timeout_ns if timeout is None else timeout_to_ns(timeout)

    def _call(self, call: Coroutine[Any, Any, Result], timeout: float | None) -> Result:
        """Run `call` on the client's loop and wait for it."""
        try:
            self._check_usable()
            self._check_may_block()
            assert self._loop is not None
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        except BaseException as error:
            call.close()
            if isinstance(error, RuntimeError) and self._is_closed:
                raise Closed("the client was closed; open a new one") from None
            raise
        return self._wait(future, timeout)

    def _wait(self, future: concurrent.futures.Future[Result], timeout: float | None) -> Result:
        try:
            return future.result(self._timeout_ns(timeout) / NS_PER_S + GRACE_S)
        except TimeoutError:
            if future.done():
                raise  # the call's own, not the wait's
            future.cancel()
            raise ConnectionLost(
                "the client's thread did not answer in time; it may be stuck in a callback, and the command may have "
                "been applied"
            ) from None
        except concurrent.futures.CancelledError:
            raise ConnectionLost("the client was closed before the call had its answer") from None
        except BaseException:
            future.cancel()  # KeyboardInterrupt, or the call's own error, for which this does nothing
            raise

    # --- the loop's side ----------------------------------------------------------------------------------------------

    def _on_loop(self, function: Any) -> None:
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self._is_closed:
                raise

    def _run(self) -> None:
        try:
            run(self._main())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)
        finally:
            self._is_closed = True
            self._fail_inbox()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self._client:
            self._opened.set_result(None)
            if not self._is_closed:
                await self._stop.wait()

    def _request_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _take_inbox(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
            self._inbox_charge = 0
            self._is_woken = False
        for command, future, deadline_ns in inbox:
            try:
                self._client.submit_for(future, command, deadline_ns)
            except FastPaxosError as error:
                future.set_exception(error)

    def _fail_inbox(self) -> None:
        with self._lock:
            self._has_ended = True
            inbox, self._inbox = self._inbox, []
        for _, future, _ in inbox:
            future.set_exception(Closed("the client was closed; the command was never sent"))


def _close_if_alive(reference: weakref.ref[BlockingClient]) -> None:
    client = reference()
    if client is not None:
        client.close()

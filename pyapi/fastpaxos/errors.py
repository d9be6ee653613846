"""Every error that fastpaxos raises on purpose.

    FastPaxosError
    ├── ClientError                 a command or query of a client; `may_have_applied`, `retryable`
    │   ├── NotApplied              did not take effect and never will
    │   │   ├── Busy                too much is unanswered already
    │   │   ├── NoLeader            no leader could be reached in time, nothing was sent
    │   │   ├── Rejected            the cluster refused it for good
    │   │   └── TooLarge            exceeds a limit, will never fit
    │   ├── OutcomeUnknown          was sent; may have taken effect, or may still
    │   │   ├── DeadlineExceeded    no answer in time
    │   │   ├── ConnectionLost      the client was closed, or its loop ended, before an answer
    │   │   ├── ResultGone          took effect, but the cluster no longer keeps its result
    │   │   └── SessionExpired      the session ended before an answer
    │   ├── CommandError            the state machine raised: that is the command's result
    │   └── Closed                  the client or node is closed; the call had no effect
    ├── ConfigError                 a setting, address or data directory does not fit
    ├── CorruptionError             bytes on disk are not what was written
    ├── FrameError                  bytes from the network are no valid frame
    └── InternalError               a bug in fastpaxos
        └── InvariantError          a safety rule would have been broken; the node stopped instead

What a caller may do is decided over all attempts that the client made, not over the last one:

- `NotApplied`: do it again if you like, it cannot apply twice.
- `OutcomeUnknown`: read the state before you do it again, unless the command is idempotent. A query changes nothing:
  its errors have `may_have_applied` False, whatever their class.
- The client's own retries reuse session and sequence number, so they never apply a command twice.
"""

from __future__ import annotations

from typing import Self

from fastpaxos_core.errors import (
    ConfigError,
    CorruptionError,
    FastPaxosError,
    FrameError,
    InternalError,
    InvariantError,
)

__all__ = [
    "Busy",
    "ClientError",
    "Closed",
    "CommandError",
    "ConfigError",
    "ConnectionLost",
    "CorruptionError",
    "DeadlineExceeded",
    "FastPaxosError",
    "FrameError",
    "InternalError",
    "InvariantError",
    "NoLeader",
    "NotApplied",
    "OutcomeUnknown",
    "Rejected",
    "ResultGone",
    "SessionExpired",
    "TooLarge",
]


class ClientError(FastPaxosError):
    """A command or query that has no result for its caller.

    Attributes:
        may_have_applied: False only if the command certainly has no effect, now and later. Queries never have one.
        retryable: whether the same call may succeed later and cannot make a command apply twice.
    """

    may_have_applied: bool = False
    retryable: bool = False

    def of_query(self) -> Self:
        """Say that this is the error of a query, which changes nothing, and return it."""
        self.may_have_applied = False
        self.retryable = self.retryable or isinstance(self, OutcomeUnknown)
        return self


class NotApplied(ClientError):  # noqa: N818
    """The command did not take effect and never will; it is safe to do it again."""

    retryable = True


class Busy(NotApplied):
    """Too many bytes or commands are unanswered already. Await answers, or `Client.ready_to_submit()`."""


class NoLeader(NotApplied):
    """No leader could be reached before the deadline, so the command was never sent."""


class Rejected(NotApplied):
    """The cluster refused the command, and no attempt of it can apply later."""


class TooLarge(NotApplied):
    """The command, or the list of commands, exceeds a limit that the message names. It will not fit next time."""

    retryable = False


class OutcomeUnknown(ClientError):  # noqa: N818
    """The command was sent and may have taken effect, or may still do so. Look at the state before doing it again."""

    may_have_applied = True


class DeadlineExceeded(OutcomeUnknown):
    """No answer came in time; the command was sent at least once."""


class ConnectionLost(OutcomeUnknown):
    """The client was closed, or its event loop ended, while a sent command had no answer yet."""


class ResultGone(OutcomeUnknown):
    """The command took effect once, but the cluster no longer keeps its result, so nobody can tell what it was."""


class SessionExpired(OutcomeUnknown):
    """The client's session ended, by age or over the cluster's limit, before the command was answered.

    Nothing of that session applies any more; whether the command did before is unknown.
    """


class CommandError(ClientError):
    """The state machine raised while it applied the command or answered the query.

    Every replica had the same error at the same place of the log, so it is the command's result: doing it again is a
    new command. What the state machine changed before it raised stays changed.

    Attributes:
        type_name: name of the exception's class in the state machine, such as "ValueError".
        message: its text, cut to 1 KiB.
    """

    may_have_applied = True

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"the state machine raised {self.type_name}: {self.message}"


class Closed(ClientError):  # noqa: N818
    """The client or node is closed (or was never opened); the call had no effect. Open a new one."""

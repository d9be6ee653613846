"""The one place of the core with system calls: a thread that writes and syncs the journal without holding the GIL.

Jobs are carried out strictly in order, each synced before the next one begins: recovery rests on it. What a job needs
(iovec array, names, pinned buffers) is built under the GIL beforehand. Any error is final: after a failed write or
fsync nobody knows what is on the disk, so everything after it is refused, and no sync is ever tried again. An open or a
write that was interrupted has done nothing, and is continued; an interrupted sync is a failed one.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EINTR, EIO, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp, strncpy

from fastpaxos_core.journal cimport JournalWrite

from fastpaxos_core.errors import ConfigError, InvariantError


cdef enum:
    IOV_MAX = 1024                  # parts that one pwritev takes (Linux)
    CACHED_BYTES_MAX = 1048576      # of what is on the disk; more is given back to the page cache
    UNWRITTEN_BYTES_MAX = 8388608   # without syncs, so much is left to the kernel before it is asked to drop the rest
    NAME_BYTES = 64

cdef enum:                          # where an error arose
    STAGE_OPEN = 0
    STAGE_PREALLOCATE
    STAGE_WRITE
    STAGE_SYNC
    STAGE_RENAME
    STAGE_SYNC_DIRECTORY
    STAGE_REFUSED

STAGES = (
    "opening it failed", "reserving room for it failed", "writing failed", "syncing failed", "renaming it failed",
    "syncing the directory failed", "it was refused after an earlier error",
)

cdef char* TEMPORARY_NAME = b"journal-new.temporary"
cdef char* SPARE_NAME = b"journal-spare.temporary"


# One write. Ownership: malloc'd; `views` pin the buffers and are released under the GIL.
cdef struct Job:
    Job* next
    uint64_t ticket
    uint64_t offset
    uint64_t segment_bytes
    char[NAME_BYTES] segment_name
    iovec* parts
    Py_buffer* views
    int part_count
    Py_buffer header                # buf NULL: the segment exists
    bint needs_sync
    int error                       # errno, 0 when it went well
    int stage
    int64_t sync_ns                 # how long the sync took, 0 without one

# What the thread works on. `lock` guards everything but what only the one who carries out a job uses.
cdef struct WriterState:
    pthread_mutex_t lock
    pthread_cond_t wake
    Job* queue_first
    Job* queue_last
    Job* done_first
    Job* done_last
    bint busy                       # the thread is carrying out a job
    bint stopping
    int event
    int directory                   # used by whoever carries out a job, from here on
    int segment
    char[NAME_BYTES] segment_name
    uint64_t cached_from            # the page cache was asked to drop the segment's bytes below it
    bint durable
    int error                       # the first error, final
    # Invariant: one of these two is 0. Guarded by lock.
    uint64_t spare_wanted           # size of the segment to prepare, 0 = none
    uint64_t spare_bytes            # size of the one prepared, 0 = none
    int spare


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef int open_at(int directory, const char* name, int flags) noexcept nogil:
    """Descriptor of a file, or -1 with errno."""
    cdef int descriptor = openat(directory, name, flags | O_CLOEXEC, 0o600)
    while descriptor < 0 and errno == EINTR:
        descriptor = openat(directory, name, flags | O_CLOEXEC, 0o600)
    return descriptor


cdef int write_all(int descriptor, iovec* parts, int count, uint64_t offset) noexcept nogil:
    """pwritev until everything is written; changes `parts`. Returns 0 or an errno."""
    cdef ssize_t written
    cdef size_t left
    while count > 0:
        written = pwritev(descriptor, parts, min(count, <int>IOV_MAX), <int64_t>offset)
        if written < 0:
            if errno == EINTR:
                continue
            return errno
        if written == 0:
            return EIO
        offset += <uint64_t>written
        left = <size_t>written
        while count > 0 and left >= parts.iov_len:
            left -= parts.iov_len
            parts += 1
            count -= 1
        if left:
            parts.iov_base = <uint8_t*>parts.iov_base + left
            parts.iov_len -= left
    return 0


cdef int reserve(int descriptor, uint64_t size) noexcept nogil:
    """Give the file its size and its room on the disk; the latter not where the file system cannot."""
    while fallocate(descriptor, 0, 0, <int64_t>size) != 0:
        if errno == EINTR:
            continue
        if errno != EOPNOTSUPP:
            return errno
        while ftruncate(descriptor, <int64_t>size) != 0:
            if errno != EINTR:
                return errno
        return 0
    return 0


cdef int fail(Job* job, int stage, int error) noexcept nogil:
    job.stage = stage
    job.error = error
    return error


cdef int create_segment(WriterState* state, Job* job) noexcept nogil:
    """Make the segment of a job under a temporary name, with its header, and make it durable; then name it."""
    cdef const char* temporary = TEMPORARY_NAME
    cdef iovec part
    cdef bint is_prepared
    cdef int error
    pthread_mutex_lock(&state.lock)
    is_prepared = state.spare_bytes == job.segment_bytes
    if is_prepared:
        state.spare_bytes = 0
        temporary = SPARE_NAME
        state.segment = state.spare
    pthread_mutex_unlock(&state.lock)
    if not is_prepared:
        state.segment = open_at(state.directory, temporary, O_RDWR | O_CREAT | O_TRUNC)
        if state.segment < 0:
            return fail(job, STAGE_OPEN, errno)
        error = reserve(state.segment, job.segment_bytes)
        if error:
            return fail(job, STAGE_PREALLOCATE, error)
    part.iov_base = job.header.buf
    part.iov_len = job.header.len
    error = write_all(state.segment, &part, 1, 0)
    if error:
        return fail(job, STAGE_WRITE, error)
    if state.durable and fsync(state.segment) != 0:
        return fail(job, STAGE_SYNC, errno)
    if renameat(state.directory, temporary, state.directory, job.segment_name) != 0:
        return fail(job, STAGE_RENAME, errno)
    if state.durable and fsync(state.directory) != 0:
        return fail(job, STAGE_SYNC_DIRECTORY, errno)
    return 0


cdef int enter_segment(WriterState* state, Job* job) noexcept nogil:
    cdef int error
    if state.segment >= 0:
        if strcmp(state.segment_name, job.segment_name) == 0:
            return 0
        close(state.segment)
        state.segment = -1
    if job.header.buf != NULL:
        error = create_segment(state, job)
    else:
        state.segment = open_at(state.directory, job.segment_name, O_RDWR)
        if state.segment < 0:
            return fail(job, STAGE_OPEN, errno)
        # Recovery makes its segment without room on the disk, so that a start is cheap.
        error = reserve(state.segment, job.segment_bytes)
        if error:
            fail(job, STAGE_PREALLOCATE, error)
    if error == 0:
        strncpy(state.segment_name, job.segment_name, NAME_BYTES)
        state.cached_from = job.offset
    return error


cdef int give_back(WriterState* state, uint64_t end) noexcept nogil:
    """Let the page cache drop what is on the disk: it is rarely read again, and its pages are the next to write to.

    A journal that only grows in memory takes new pages all the time, which crowds out what others keep there, and on
    virtual machines costs more than the write itself. Without syncs, the kernel is told to begin with what is new, and
    drops what it has written of what is old. An advice cannot fail in a way that matters.
    """
    if end < state.cached_from + CACHED_BYTES_MAX:
        return 0
    if state.durable:
        posix_fadvise(state.segment, <int64_t>state.cached_from, <int64_t>(end - state.cached_from),
                      POSIX_FADV_DONTNEED)
    else:
        sync_file_range(state.segment, <int64_t>state.cached_from, <int64_t>(end - state.cached_from),
                        SYNC_FILE_RANGE_WRITE)
        if end > UNWRITTEN_BYTES_MAX:
            posix_fadvise(state.segment, 0, <int64_t>(end - UNWRITTEN_BYTES_MAX), POSIX_FADV_DONTNEED)
    state.cached_from = end
    return 0


cdef int carry_out(WriterState* state, Job* job) noexcept nogil:
    """Do one job; the first error is final for all that come after it. Returns 0 or an errno."""
    cdef int64_t started
    cdef int error
    if state.error:
        return fail(job, STAGE_REFUSED, state.error)
    error = enter_segment(state, job)
    if error == 0:
        error = write_all(state.segment, job.parts, job.part_count, job.offset)
        if error:
            fail(job, STAGE_WRITE, error)
    if error == 0 and job.needs_sync and state.durable:
        started = monotonic_ns()
        if fdatasync(state.segment) != 0:
            error = fail(job, STAGE_SYNC, errno)
        job.sync_ns = monotonic_ns() - started
    # Without syncs the advice may wait for the disk, which only the thread may do.
    if error == 0 and (state.durable or state.busy):
        give_back(state, job.offset + job_bytes(job))
    state.error = error
    return error


cdef int prepare_spare(WriterState* state, uint64_t size) noexcept nogil:
    """Make a file for the next segment while there is nothing else to do. Going without one is no error."""
    cdef int descriptor = open_at(state.directory, SPARE_NAME, O_RDWR | O_CREAT | O_TRUNC)
    if descriptor < 0:
        return 0
    if reserve(descriptor, size) != 0 or (state.durable and fsync(descriptor) != 0):
        close(descriptor)
        unlinkat(state.directory, SPARE_NAME, 0)
        return 0
    pthread_mutex_lock(&state.lock)
    state.spare = descriptor
    state.spare_bytes = size
    # An inline write may have asked again meanwhile. Making another one would empty this one, perhaps just when its
    # first write is going into it.
    state.spare_wanted = 0
    pthread_mutex_unlock(&state.lock)
    return 0


cdef void* run(void* argument) noexcept nogil:
    """The thread: never touches a Python object."""
    cdef WriterState* state = <WriterState*>argument
    cdef Job* job
    cdef uint64_t spare_wanted
    cdef uint64_t one = 1
    pthread_mutex_lock(&state.lock)
    while True:
        job = state.queue_first
        if job != NULL:
            state.queue_first = job.next
            if job.next == NULL:
                state.queue_last = NULL
            job.next = NULL
            state.busy = True
            pthread_mutex_unlock(&state.lock)
            carry_out(state, job)
            pthread_mutex_lock(&state.lock)
            state.busy = False
            want_spare(state, job)
            if state.done_last == NULL:
                state.done_first = job
            else:
                state.done_last.next = job
            state.done_last = job
            # The counter cannot overflow, so this neither blocks nor fails.
            write(state.event, &one, sizeof(one))
        elif state.stopping:
            break
        elif state.spare_wanted:
            spare_wanted = state.spare_wanted
            state.spare_wanted = 0
            pthread_mutex_unlock(&state.lock)
            prepare_spare(state, spare_wanted)
            pthread_mutex_lock(&state.lock)
        else:
            pthread_cond_wait(&state.wake, &state.lock)
    pthread_mutex_unlock(&state.lock)
    return NULL


cdef bint want_spare(WriterState* state, Job* job) noexcept nogil:
    """Ask for a spare once, when the first half of a segment is full. Called with the lock."""
    if job.error or state.spare_bytes or job.offset >= job.segment_bytes:
        return False
    if job.offset < job.segment_bytes // 2 <= job.offset + job_bytes(job):
        state.spare_wanted = job.segment_bytes
    return state.spare_wanted != 0


cdef uint64_t job_bytes(Job* job) noexcept nogil:
    cdef uint64_t size = 0
    cdef int index
    for index in range(job.part_count):
        size += <uint64_t>job.views[index].len
    return size


cdef int free_job(Job* job) noexcept:
    """Release what a job holds; needs the GIL."""
    cdef int index
    if job.header.buf != NULL:
        PyBuffer_Release(&job.header)
    for index in range(job.part_count):
        PyBuffer_Release(&job.views[index])
    free(job.views)
    free(job.parts)
    free(job)
    return 0


cdef Job* build_job(JournalWrite write) except NULL:
    """Pin the buffers of a write and describe it in C."""
    cdef Job* job = <Job*>calloc(1, sizeof(Job))
    cdef Py_ssize_t count = len(write.buffers)
    cdef bytes name = write.segment_name.encode()
    if job == NULL:
        raise MemoryError("no memory for a journal write")
    try:
        if PyBytes_GET_SIZE(name) >= NAME_BYTES:
            raise InvariantError(f"segment name {write.segment_name!r} is too long")
        strncpy(job.segment_name, PyBytes_AS_STRING(name), NAME_BYTES - 1)
        job.ticket = write.ticket
        job.offset = write.offset
        job.segment_bytes = write.segment_bytes
        job.needs_sync = write.needs_sync
        job.parts = <iovec*>calloc(count, sizeof(iovec))
        job.views = <Py_buffer*>calloc(count, sizeof(Py_buffer))
        if job.parts == NULL or job.views == NULL:
            raise MemoryError(f"no memory for a journal write of {count} parts")
        if write.new_segment is not None:
            PyObject_GetBuffer(write.new_segment[1], &job.header, PyBUF_SIMPLE)
        for buffer in write.buffers:
            PyObject_GetBuffer(buffer, &job.views[job.part_count], PyBUF_SIMPLE)
            job.parts[job.part_count].iov_base = job.views[job.part_count].buf
            job.parts[job.part_count].iov_len = job.views[job.part_count].len
            job.part_count += 1
    except BaseException:
        free_job(job)
        raise
    return job


cdef class JournalWriter:
    """Carries out JournalWrites in order, in a thread of its own or on the calling one.

    Ownership: keeps the buffers of each write until its completion was taken; descriptors are closed by `close`.

    Args:
        directory_path: where the segments are.
        durability: "fsync" syncs every write; "write" and "memory" sync nothing.

    Raises:
        ConfigError: the durability mode is unknown.
        OSError: the directory cannot be opened.
    """

    cdef WriterState* state
    cdef pthread_t thread
    cdef bint is_running
    cdef readonly str directory_path
    cdef readonly str durability

    def __cinit__(self, directory_path: str, durability: str):
        cdef sigset_t all_signals, old_signals
        cdef bytes path = os.fsencode(directory_path)
        cdef int error
        if durability not in ("fsync", "write", "memory"):
            raise ConfigError(f"durability {durability!r} is none of 'fsync', 'write', 'memory'")
        self.directory_path = directory_path
        self.durability = durability
        self.state = <WriterState*>calloc(1, sizeof(WriterState))
        if self.state == NULL:
            raise MemoryError("no memory for the journal writer")
        self.state.directory = -1
        self.state.segment = -1
        self.state.event = -1
        self.state.durable = durability == "fsync"
        pthread_mutex_init(&self.state.lock, NULL)
        pthread_cond_init(&self.state.wake, NULL)
        self.state.directory = open_at(AT_FDCWD, PyBytes_AS_STRING(path), O_RDONLY | O_DIRECTORY)
        if self.state.directory < 0:
            raise OSError(errno, os.strerror(errno), directory_path)
        self.state.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.state.event < 0:
            raise OSError(errno, os.strerror(errno), "eventfd")
        # Signals are for the threads of Python.
        sigfillset(&all_signals)
        pthread_sigmask(SIG_SETMASK, &all_signals, &old_signals)
        error = pthread_create(&self.thread, NULL, run, self.state)
        pthread_sigmask(SIG_SETMASK, &old_signals, NULL)
        if error:
            raise OSError(error, os.strerror(error), "journal writer thread")
        self.is_running = True

    def __dealloc__(self):
        cdef Job* job
        if self.state == NULL:
            return
        self._stop()
        job = self.state.done_first
        while job != NULL:
            self.state.done_first = job.next
            free_job(job)
            job = self.state.done_first
        pthread_cond_destroy(&self.state.wake)
        pthread_mutex_destroy(&self.state.lock)
        free(self.state)

    cdef int _stop(self) noexcept:
        """Let the thread finish what is queued, and close everything."""
        if self.is_running:
            self.is_running = False
            with nogil:
                pthread_mutex_lock(&self.state.lock)
                self.state.stopping = True
                pthread_cond_signal(&self.state.wake)
                pthread_mutex_unlock(&self.state.lock)
                pthread_join(self.thread, NULL)
        if self.state.spare_bytes:
            self.state.spare_bytes = 0
            close(self.state.spare)
            unlinkat(self.state.directory, SPARE_NAME, 0)
        if self.state.segment >= 0:
            close(self.state.segment)
            self.state.segment = -1
        if self.state.directory >= 0:
            close(self.state.directory)
            self.state.directory = -1
        if self.state.event >= 0:
            close(self.state.event)
            self.state.event = -1
        return 0

    def fileno(self) -> int:
        """Descriptor that becomes readable when `completions` has something; -1 when closed."""
        return self.state.event

    @property
    def failed(self) -> bool:
        """True after the first error: nothing is written any more."""
        return self.state.error != 0

    @property
    def has_spare(self) -> bool:
        """True while a file for the next segment is prepared."""
        pthread_mutex_lock(&self.state.lock)
        prepared = self.state.spare_bytes != 0
        pthread_mutex_unlock(&self.state.lock)
        return prepared

    def submit(self, JournalWrite write not None) -> None:
        """Hand a write to the thread. Its completion is taken by `completions`, in the same order.

        Raises:
            InvariantError: the writer is closed.
        """
        cdef Job* job
        self._check_open()
        job = build_job(write)
        pthread_mutex_lock(&self.state.lock)
        if self.state.queue_last == NULL:
            self.state.queue_first = job
        else:
            self.state.queue_last.next = job
        self.state.queue_last = job
        pthread_cond_signal(&self.state.wake)
        pthread_mutex_unlock(&self.state.lock)

    def write_inline(self, JournalWrite write not None) -> int:
        """Carry out a write on the calling thread; returns the nanoseconds that the sync took.

        Raises:
            InvariantError: the writer is closed, or its thread has not finished what was submitted before.
            OSError: it failed; nothing is written any more.
        """
        cdef Job* job
        cdef bint is_idle
        cdef int64_t sync_ns
        self._check_open()
        pthread_mutex_lock(&self.state.lock)
        is_idle = self.state.queue_first == NULL and not self.state.busy
        pthread_mutex_unlock(&self.state.lock)
        if not is_idle:
            raise InvariantError(f"journal write {write.ticket} would overtake earlier ones")
        job = build_job(write)
        with nogil:
            carry_out(self.state, job)
            pthread_mutex_lock(&self.state.lock)
            if want_spare(self.state, job):
                pthread_cond_signal(&self.state.wake)
            pthread_mutex_unlock(&self.state.lock)
        error = self._error_of(job)
        sync_ns = job.sync_ns
        free_job(job)
        if error is not None:
            raise error
        return sync_ns

    def completions(self) -> list:
        """Take what is finished: list[(ticket, None or OSError, nanoseconds that the sync took)], in order."""
        cdef uint64_t counter
        cdef Job* job
        cdef Job* next_job
        cdef list finished = []
        if self.state.event >= 0:
            # An empty counter is no error: the descriptor does not block.
            read(self.state.event, &counter, sizeof(counter))
        pthread_mutex_lock(&self.state.lock)
        job = self.state.done_first
        self.state.done_first = NULL
        self.state.done_last = NULL
        pthread_mutex_unlock(&self.state.lock)
        while job != NULL:
            next_job = job.next
            finished.append((job.ticket, self._error_of(job), job.sync_ns))
            free_job(job)
            job = next_job
        return finished

    def close(self) -> None:
        """Finish what was submitted, stop the thread and close all files. Completions can still be taken."""
        self._stop()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    cdef int _check_open(self) except -1:
        if not self.is_running:
            raise InvariantError("the journal writer is closed")
        return 0

    cdef object _error_of(self, Job* job):
        if job.error == 0:
            return None
        path = os.path.join(self.directory_path, job.segment_name.decode())
        return OSError(
            job.error,
            f"journal write {job.ticket} of {job_bytes(job)} bytes: {STAGES[job.stage]}: {os.strerror(job.error)}; "
            f"this node must stop",
            path,
        )

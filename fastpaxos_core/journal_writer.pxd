"""The system calls that the journal writer makes."""

from libc.stdint cimport int64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t* thread, const void* attributes, void* (*start)(void*) noexcept nogil, void* argument)
    int pthread_join(pthread_t thread, void** result)
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_cond_init(pthread_cond_t* condition, const void* attributes)
    int pthread_cond_destroy(pthread_cond_t* condition)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_signal(pthread_cond_t* condition)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t* signals)
    int pthread_sigmask(int how, const sigset_t* signals, sigset_t* old)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t pwritev(int descriptor, const iovec* parts, int count, int64_t offset)

cdef extern from "<fcntl.h>" nogil:
    int AT_FDCWD, O_RDWR, O_RDONLY, O_CREAT, O_TRUNC, O_CLOEXEC, O_DIRECTORY
    int openat(int directory, const char* path, int flags, ...)
    int fallocate(int descriptor, int mode, int64_t offset, int64_t size)
    int POSIX_FADV_DONTNEED
    int posix_fadvise(int descriptor, int64_t offset, int64_t size, int advice)
    unsigned int SYNC_FILE_RANGE_WRITE
    int sync_file_range(int descriptor, int64_t offset, int64_t size, unsigned int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)
    int fsync(int descriptor)
    int fdatasync(int descriptor)
    int ftruncate(int descriptor, int64_t size)
    int unlinkat(int directory, const char* path, int flags)
    ssize_t read(int descriptor, void* data, size_t size)
    ssize_t write(int descriptor, const void* data, size_t size)

cdef extern from "<stdio.h>" nogil:
    int renameat(int old_directory, const char* old, int new_directory, const char* new)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* now)

/* Records the system calls that change files below one directory, in the order in which they took effect, and lets
 * chosen ones fail. Loaded with LD_PRELOAD; does nothing before recorder_start.
 *
 * A call other than a sync is carried out and logged under one lock, so the log is a true order. A sync is logged when
 * it begins and when it ends: it covers what ended before it began, and others may write meanwhile.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, ALLOCATE, SYNC_BEGIN, SYNC_END, CLOSE, RENAME, UNLINK, MKDIR, NOTE, READ };
enum { DESCRIPTORS_MAX = 4096, FAULTS_MAX = 8, SHORT = -1, KILL = -2, HOLD = -3 };

/* What precedes each record's name and data; the layout that recording.py reads. */
struct record {
    uint32_t kind;
    int32_t descriptor;
    int64_t result; /* of the call, or -errno */
    uint64_t offset;
    uint64_t size; /* or the flags of an open */
    uint32_t name_bytes;
    uint32_t data_bytes;
    uint32_t injected; /* 1: the result was made up */
    uint32_t call_number; /* of the calls of that name, from 1 */
    char call[16];
};

struct fault {
    char call[16]; /* "any": all names are counted together */
    int number; /* which of the calls of that name, from 1; 0: every one */
    int action; /* errno, SHORT or KILL */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_bytes;
static int log_descriptor = -1;
static unsigned char tracked[DESCRIPTORS_MAX];
static uint64_t positions[DESCRIPTORS_MAX];
static struct fault faults[FAULTS_MAX];
static int fault_count;
static struct { char call[16]; int count; } counts[32];
static int any_count;
static char held_name[16];
static int held_calls;

static long raw(long result) { return result; }

static void append(const void *data, size_t size) {
    const char *rest = data;
    while (size) {
        long written = raw(syscall(SYS_write, log_descriptor, rest, size));
        if (written <= 0)
            syscall(SYS_exit_group, 99);
        rest += written;
        size -= (size_t)written;
    }
}

static void log_record(struct record *record, const char *call, const char *name, const void *data) {
    char buffer[sizeof(*record) + 2 * PATH_MAX];
    size_t size = sizeof(*record);
    int saved = errno;
    strncpy(record->call, call, sizeof(record->call) - 1);
    record->name_bytes = name ? (uint32_t)strlen(name) : 0;
    memcpy(buffer, record, sizeof(*record));
    if (record->name_bytes)
        memcpy(buffer + size, name, record->name_bytes);
    append(buffer, size + record->name_bytes);
    if (record->data_bytes)
        append(data, record->data_bytes);
    errno = saved;
}

/* Count a call and say what shall happen to it: 0, or a fault's action. Called with the lock. */
static int count_call(struct record *record, const char *call) {
    int index, number;
    for (index = 0; index < 31 && counts[index].call[0] && strcmp(counts[index].call, call) != 0; index++)
        ;
    strncpy(counts[index].call, call, sizeof(counts[index].call) - 1);
    number = ++counts[index].count;
    any_count++;
    record->call_number = (uint32_t)number;
    for (index = 0; index < fault_count; index++) {
        int is_any = strcmp(faults[index].call, "any") == 0;
        if ((is_any || strcmp(faults[index].call, call) == 0) &&
            (faults[index].number == 0 || faults[index].number == (is_any ? any_count : number))) {
            record->injected = 1;
            if (faults[index].action == KILL)
                syscall(SYS_exit_group, 9);
            return faults[index].action;
        }
    }
    return 0;
}

static int is_tracked(int descriptor) {
    return log_descriptor >= 0 && descriptor >= 0 && descriptor < DESCRIPTORS_MAX && tracked[descriptor];
}

static int is_below_root(int directory, const char *path) {
    if (log_descriptor < 0)
        return 0;
    if (path[0] == '/')
        return strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == 0);
    return is_tracked(directory);
}

/* --- what the test's child calls --- */

int recorder_start(const char *directory, const char *log_path) {
    log_descriptor = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    root_bytes = strlen(directory);
    strncpy(root, directory, sizeof(root) - 1);
    return log_descriptor;
}

void recorder_fault(const char *call, int number, int action) {
    struct fault *fault = &faults[fault_count];
    if (action == HOLD) {
        strncpy(held_name, call, sizeof(held_name) - 1);
        held_calls = number;
        return;
    }
    fault_count++;
    strncpy(fault->call, call, sizeof(fault->call) - 1);
    fault->number = number;
    fault->action = action;
}

void recorder_note(const void *data, uint32_t size) {
    struct record record = {.kind = NOTE, .data_bytes = size};
    pthread_mutex_lock(&lock);
    log_record(&record, "note", NULL, data);
    pthread_mutex_unlock(&lock);
}

/* --- the calls --- */

#define NEXT(type, name, parameters)            \
    static type(*next) parameters;              \
    if (next == NULL)                           \
        *(void **)&next = dlsym(RTLD_NEXT, name)

#define RESULT(value) ((value) < 0 ? -(int64_t)errno : (int64_t)(value))

/* Carries out `perform` unless a fault wants otherwise, and logs it; leaves the result in `result`. */
#define RECORD(record, call, name, data, perform)       \
    do {                                                \
        int action;                                     \
        pthread_mutex_lock(&lock);                      \
        action = count_call(&(record), call);           \
        if (action > 0) {                               \
            errno = action;                             \
            result = -1;                                \
        } else {                                        \
            result = perform;                           \
        }                                               \
        (record).result = RESULT(result);               \
        log_record(&(record), call, name, data);        \
        pthread_mutex_unlock(&lock);                    \
    } while (0)

/* The first open of a file whose name contains held_name waits until other threads have made held_calls calls. */
static void hold(const char *path) {
    int patience, is_done = 0, until;
    pthread_mutex_lock(&lock);
    if (held_name[0] == 0 || strstr(path, held_name) == NULL)
        is_done = 1;
    else
        held_name[0] = 0;
    until = any_count + held_calls;
    pthread_mutex_unlock(&lock);
    for (patience = 0; !is_done && patience < 100000; patience++) {
        usleep(100);
        pthread_mutex_lock(&lock);
        is_done = any_count >= until;
        pthread_mutex_unlock(&lock);
    }
}

static int opened(int directory, const char *path, int flags, mode_t mode, const char *call) {
    struct record record = {.kind = OPEN, .descriptor = directory, .size = (uint64_t)flags};
    int result;
    NEXT(int, "openat64", (int, const char *, int, ...));
    if (!is_below_root(directory, path))
        return next(directory, path, flags, mode);
    hold(path);
    RECORD(record, call, path, NULL, next(directory, path, flags, mode));
    if (result >= 0 && result < DESCRIPTORS_MAX) {
        tracked[result] = 1;
        positions[result] = 0;
    }
    return result;
}

#define OPENED(directory, call)             \
    mode_t mode = 0;                        \
    if (flags & (O_CREAT | O_TMPFILE)) {    \
        va_list rest;                       \
        va_start(rest, flags);              \
        mode = va_arg(rest, mode_t);        \
        va_end(rest);                       \
    }                                       \
    return opened(directory, path, flags, mode, call)

int open(const char *path, int flags, ...) { OPENED(AT_FDCWD, "open"); }
int open64(const char *path, int flags, ...) { OPENED(AT_FDCWD, "open"); }
int openat(int directory, const char *path, int flags, ...) { OPENED(directory, "openat"); }
int openat64(int directory, const char *path, int flags, ...) { OPENED(directory, "openat"); }

/* A write at `offset`, or at the descriptor's position when `moves`. Half of it when a fault wants it short. */
static ssize_t written(int descriptor, const struct iovec *parts, int count, uint64_t offset, int moves, const char *call) {
    struct record record = {.kind = WRITE, .descriptor = descriptor};
    static char copy[1 << 24];
    size_t size = 0;
    ssize_t result;
    int index, action;
    pthread_mutex_lock(&lock);
    for (index = 0; index < count; index++) {
        if (size + parts[index].iov_len > sizeof(copy))
            syscall(SYS_exit_group, 98);
        memcpy(copy + size, parts[index].iov_base, parts[index].iov_len);
        size += parts[index].iov_len;
    }
    record.offset = moves ? positions[descriptor] : offset;
    record.size = size;
    action = count_call(&record, call);
    if (action > 0) {
        errno = action;
        result = -1;
    } else {
        if (action == SHORT)
            size = (size + 1) / 2;
        result = syscall(SYS_pwrite64, descriptor, copy, size, record.offset);
        if (result > 0) {
            record.data_bytes = (uint32_t)result;
            if (moves)
                positions[descriptor] = (uint64_t)syscall(SYS_lseek, descriptor, record.offset + result, SEEK_SET);
        }
    }
    record.result = RESULT(result);
    log_record(&record, call, NULL, copy);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int descriptor, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    if (!is_tracked(descriptor))
        return syscall(SYS_write, descriptor, data, size);
    return written(descriptor, &part, 1, 0, 1, "write");
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    struct iovec part = {(void *)data, size};
    if (!is_tracked(descriptor))
        return syscall(SYS_pwrite64, descriptor, data, size, offset);
    return written(descriptor, &part, 1, (uint64_t)offset, 0, "pwrite");
}

ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off64_t offset) {
    NEXT(ssize_t, "pwritev64", (int, const struct iovec *, int, off64_t));
    if (!is_tracked(descriptor))
        return next(descriptor, parts, count, offset);
    return written(descriptor, parts, count, (uint64_t)offset, 0, "pwritev");
}

int ftruncate64(int descriptor, off64_t size) {
    struct record record = {.kind = TRUNCATE, .descriptor = descriptor, .size = (uint64_t)size};
    int result;
    if (!is_tracked(descriptor))
        return (int)syscall(SYS_ftruncate, descriptor, size);
    RECORD(record, "ftruncate", NULL, NULL, (int)syscall(SYS_ftruncate, descriptor, size));
    return result;
}

int fallocate64(int descriptor, int mode, off64_t offset, off64_t size) {
    struct record record = {.kind = ALLOCATE, .descriptor = descriptor, .offset = (uint64_t)offset, .size = (uint64_t)size};
    int result;
    if (!is_tracked(descriptor))
        return (int)syscall(SYS_fallocate, descriptor, mode, offset, size);
    RECORD(record, "fallocate", NULL, NULL, (int)syscall(SYS_fallocate, descriptor, mode, offset, size));
    return result;
}

static int synced(int descriptor, const char *call, long number) {
    struct record begin = {.kind = SYNC_BEGIN, .descriptor = descriptor};
    struct record end = {.kind = SYNC_END, .descriptor = descriptor};
    int result = -1, action;
    if (!is_tracked(descriptor))
        return (int)syscall(number, descriptor);
    pthread_mutex_lock(&lock);
    action = count_call(&begin, call);
    end.injected = begin.injected;
    end.call_number = begin.call_number;
    log_record(&begin, call, NULL, NULL);
    pthread_mutex_unlock(&lock);
    if (action <= 0) {
        result = (int)syscall(number, descriptor);
        action = errno;
    }
    pthread_mutex_lock(&lock);
    errno = action;
    end.result = RESULT(result);
    log_record(&end, call, NULL, NULL);
    pthread_mutex_unlock(&lock);
    errno = action;
    return result;
}

int fsync(int descriptor) { return synced(descriptor, "fsync", SYS_fsync); }
int fdatasync(int descriptor) { return synced(descriptor, "fdatasync", SYS_fdatasync); }

int close(int descriptor) {
    struct record record = {.kind = CLOSE, .descriptor = descriptor};
    int result, action;
    if (!is_tracked(descriptor))
        return (int)syscall(SYS_close, descriptor);
    pthread_mutex_lock(&lock);
    /* Linux closes the descriptor whatever it returns. */
    action = count_call(&record, "close");
    tracked[descriptor] = 0;
    result = (int)syscall(SYS_close, descriptor);
    if (action > 0) {
        errno = action;
        result = -1;
    }
    record.result = RESULT(result);
    log_record(&record, "close", NULL, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

static int renamed(int directory, const char *old, int new_directory, const char *new, const char *call) {
    struct record record = {.kind = RENAME, .descriptor = directory, .data_bytes = (uint32_t)strlen(new)};
    int result;
    if (!is_below_root(directory, old))
        return (int)syscall(SYS_renameat, directory, old, new_directory, new);
    RECORD(record, call, old, new, (int)syscall(SYS_renameat, directory, old, new_directory, new));
    return result;
}

int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new, "rename"); }
int renameat(int directory, const char *old, int new_directory, const char *new) {
    return renamed(directory, old, new_directory, new, "renameat");
}

static int unlinked(int directory, const char *path, int flags, const char *call) {
    struct record record = {.kind = UNLINK, .descriptor = directory};
    int result;
    if (!is_below_root(directory, path))
        return (int)syscall(SYS_unlinkat, directory, path, flags);
    RECORD(record, call, path, NULL, (int)syscall(SYS_unlinkat, directory, path, flags));
    return result;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0, "unlink"); }
int unlinkat(int directory, const char *path, int flags) { return unlinked(directory, path, flags, "unlinkat"); }

int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR, "rmdir"); }

int mkdir(const char *path, mode_t mode) {
    struct record record = {.kind = MKDIR, .descriptor = AT_FDCWD};
    int result;
    if (!is_below_root(AT_FDCWD, path))
        return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    RECORD(record, "mkdir", path, NULL, (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode));
    return result;
}

static ssize_t was_read(int descriptor, void *data, size_t size, off64_t offset, int moves, const char *call) {
    struct record record = {.kind = READ, .descriptor = descriptor, .offset = (uint64_t)offset, .size = size};
    ssize_t result;
    int action;
    pthread_mutex_lock(&lock);
    action = count_call(&record, call);
    if (action > 0) {
        errno = action;
        result = -1;
    } else {
        if (action == SHORT && size > 1)
            size /= 2;
        result = moves ? syscall(SYS_read, descriptor, data, size) : syscall(SYS_pread64, descriptor, data, size, offset);
    }
    record.result = RESULT(result);
    log_record(&record, call, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t read(int descriptor, void *data, size_t size) {
    if (!is_tracked(descriptor))
        return syscall(SYS_read, descriptor, data, size);
    return was_read(descriptor, data, size, 0, 1, "read");
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    if (!is_tracked(descriptor))
        return syscall(SYS_pread64, descriptor, data, size, offset);
    return was_read(descriptor, data, size, offset, 0, "pread");
}

/* Names without 64 are other symbols on some systems, and the same calls. */
#if __SIZEOF_LONG__ == 8
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}
ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(descriptor, parts, count, offset);
}
int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
    return fallocate64(descriptor, mode, offset, size);
}
ssize_t pread(int descriptor, void *data, size_t size, off_t offset) { return pread64(descriptor, data, size, offset); }
#endif

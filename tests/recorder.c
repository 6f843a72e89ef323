/* Preloaded into a process, it records what that writes into the files of one directory, and what it syncs.

   RECORDED  the directory
   RECORD    the file that the records are appended to; power.py reads it

   A record: kind, 3 bytes of nothing, length of the name, offset, size, CLOCK_BOOTTIME in seconds; then the
   name and, of a write, the data. Kinds: w(rite), t(runcate), s(ync), u(nlink). Each call and its record
   are made under one lock, so that the order is the real one. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define DESCRIPTORS 65536

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *names[DESCRIPTORS];
static const char *directory;
static int out = -1;

struct head {
    char kind;
    char pad[3];
    uint32_t name;
    int64_t offset;
    int64_t size;
    double time;
};

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static void __attribute__((constructor)) begin(void)
{
    const char *path = getenv("RECORD");
    directory = getenv("RECORDED");
    if (path && directory)
        out = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(char kind, const char *name, int64_t offset, int64_t size, const void *data)
{
    struct timespec now;
    struct head head = {kind, {0, 0, 0}, strlen(name), offset, size, 0};
    struct iovec parts[3] = {
        {&head, sizeof head}, {(void *)name, head.name}, {(void *)data, data ? (size_t)size : 0}};
    syscall(SYS_clock_gettime, CLOCK_BOOTTIME, &now);
    head.time = now.tv_sec + now.tv_nsec / 1e9;
    syscall(SYS_writev, out, parts, 3);
}

static const char *inside(const char *path)
{
    size_t length = directory ? strlen(directory) : 0;
    if (out < 0 || strncmp(path, directory, length) || path[length] != '/')
        return NULL;
    return path + length + 1;
}

static int opened(const char *path, int fd)
{
    const char *name = inside(path);
    if (name && fd >= 0 && fd < DESCRIPTORS) {
        pthread_mutex_lock(&lock);
        free(names[fd]);
        names[fd] = strdup(name);
        pthread_mutex_unlock(&lock);
    }
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags)
    return opened(path, REAL(int, "open", const char *, int, ...)(path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
    MODE(flags)
    return opened(path, REAL(int, "open64", const char *, int, ...)(path, flags, mode));
}

int close(int fd)
{
    if (fd >= 0 && fd < DESCRIPTORS && names[fd]) {
        pthread_mutex_lock(&lock);
        free(names[fd]);
        names[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return REAL(int, "close", int)(fd);
}

/* Done under the lock, and recorded if it succeeded. */
#define RECORDED_CALL(fd, kind, offset, size, data, call) \
    if (fd < 0 || fd >= DESCRIPTORS || !names[fd]) \
        return call; \
    pthread_mutex_lock(&lock); \
    ssize_t answer = call; \
    if (answer >= 0) \
        note(kind, names[fd], offset, size, data); \
    pthread_mutex_unlock(&lock); \
    return answer;

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    RECORDED_CALL(fd, 'w', offset, answer, data,
                  REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, data, size, offset))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    RECORDED_CALL(fd, 'w', offset, answer, data,
                  REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(fd, data, size, offset))
}

ssize_t write(int fd, const void *data, size_t size)
{
    RECORDED_CALL(fd, 'w', lseek(fd, 0, SEEK_CUR) - answer, answer, data,
                  REAL(ssize_t, "write", int, const void *, size_t)(fd, data, size))
}

int ftruncate(int fd, off_t size)
{
    RECORDED_CALL(fd, 't', 0, size, NULL, REAL(int, "ftruncate", int, off_t)(fd, size))
}

int ftruncate64(int fd, off64_t size)
{
    RECORDED_CALL(fd, 't', 0, size, NULL, REAL(int, "ftruncate64", int, off64_t)(fd, size))
}

int fsync(int fd)
{
    RECORDED_CALL(fd, 's', 0, 0, NULL, REAL(int, "fsync", int)(fd))
}

int fdatasync(int fd)
{
    RECORDED_CALL(fd, 's', 0, 0, NULL, REAL(int, "fdatasync", int)(fd))
}

int unlink(const char *path)
{
    const char *name = inside(path);
    pthread_mutex_lock(&lock);
    int answer = REAL(int, "unlink", const char *)(path);
    if (!answer && name)
        note('u', name, 0, 0, NULL);
    pthread_mutex_unlock(&lock);
    return answer;
}

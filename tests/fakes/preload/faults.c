/* Makes chosen calls on files of one folder fail, as a dying or a full disk would.
 *
 * FAULTS_FOLDER   files below it count
 * FAULTS_CONTROL  a file of six 64-bit numbers, shared with the test: calls seen, first call that fails (0: none),
 *                 how many fail from there on, errno, how many did fail, delay of each sync in microseconds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

struct control {
    _Atomic int64_t seen, first, count, error, failed, sync_delay_us;
};

static struct control *control;
static const char *folder;
static size_t folder_length;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULTS_CONTROL");
    folder = getenv("FAULTS_FOLDER");
    if (!path || !folder)
        return;
    folder_length = strlen(folder);
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int descriptor = real_open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (shared != MAP_FAILED)
        control = shared;
}

static int fails(void)
{
    int64_t number = atomic_fetch_add(&control->seen, 1) + 1;
    int64_t first = atomic_load(&control->first);
    if (!first || number < first || number >= first + atomic_load(&control->count))
        return 0;
    atomic_fetch_add(&control->failed, 1);
    errno = (int)atomic_load(&control->error);
    return 1;
}

static int ours(int descriptor)
{
    if (!control || descriptor < 3)
        return 0;
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > (ssize_t)folder_length && !strncmp(path, folder, folder_length) && path[folder_length] == '/';
}

static void delay(void)
{
    int64_t us = control ? atomic_load(&control->sync_delay_us) : 0;
    if (us) {
        struct timespec pause = {us / 1000000, us % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    return ours(fd) && fails() ? -1 : real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite);
    return ours(fd) && fails() ? -1 : real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(pwrite64);
    return ours(fd) && fails() ? -1 : real(fd, data, size, at);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    return ours(fd) && fails() ? -1 : real(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    return ours(fd) && fails() ? -1 : real(fd, size);
}

int fsync(int fd)
{
    REAL(fsync);
    if (!ours(fd))
        return real(fd);
    delay();
    return fails() ? -1 : real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    if (!ours(fd))
        return real(fd);
    delay();
    return fails() ? -1 : real(fd);
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    REAL(posix_fallocate);
    return ours(fd) && fails() ? errno : real(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
    REAL(posix_fallocate64);
    return ours(fd) && fails() ? errno : real(fd, at, size);
}

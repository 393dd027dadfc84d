/* Keeps beside a folder what its disk would hold if the power went now: what was synced, and nothing else.
 *
 * POWER_FOLDER  the folder, as the program sees it
 * POWER_SHADOW  where the platter is kept; the same relative names
 * POWER_NAMES   "late": a rename or a removal is on the platter after its folder was synced
 *               "early": it is there at once, whether or not the data is
 *
 * A sync of a file copies it over what the shadow has, page by page and in place: a process killed in the middle
 * leaves a part of it, as a disk would. POWER_CALLS is a file that gets a byte for each sync; a process that has
 * done POWER_LAST of them kills itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define PENDING 256

static const char *folder, *shadow;
static size_t folder_length;
static int early, calls = -1, last, count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char from[PATH_MAX], to[PATH_MAX]; } pending[PENDING];
static int waiting;

__attribute__((constructor)) static void start(void)
{
    folder = getenv("POWER_FOLDER");
    shadow = getenv("POWER_SHADOW");
    if (!folder || !shadow) {
        folder = NULL;
        return;
    }
    folder_length = strlen(folder);
    const char *names = getenv("POWER_NAMES"), *path = getenv("POWER_CALLS");
    last = getenv("POWER_LAST") ? atoi(getenv("POWER_LAST")) : 0;
    early = names && !strcmp(names, "early");
    if (path)
        calls = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int platter_of(const char *path, char *out)
{
    if (!folder || strncmp(path, folder, folder_length) || (path[folder_length] && path[folder_length] != '/'))
        return 0;
    return snprintf(out, PATH_MAX, "%s%s", shadow, path + folder_length) < PATH_MAX;
}

static int absolute(const char *path, char *out)
{
    if (path[0] == '/')
        return snprintf(out, PATH_MAX, "%s", path) < PATH_MAX;
    char here[PATH_MAX];
    return getcwd(here, sizeof here) && snprintf(out, PATH_MAX, "%s/%s", here, path) < PATH_MAX;
}

static void copy(int from, const char *to, mode_t mode)
{
    char block[1 << 16];
    int target = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, mode & 0777);
    if (target < 0)
        return;
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", from);
    int source = open(link, O_RDONLY | O_CLOEXEC);
    off_t at = 0;
    ssize_t length;
    while (source >= 0 && (length = pread(source, block, sizeof block, at)) > 0) {
        if (pwrite(target, block, length, at) != length)
            abort();
        at += length;
    }
    if (ftruncate(target, at))
        abort();
    if (source >= 0)
        close(source);
    close(target);
}

static void apply(const char *from, const char *to)
{
    static int (*real_rename)(const char *, const char *);
    static int (*real_unlink)(const char *);
    if (!real_rename) {
        real_rename = dlsym(RTLD_NEXT, "rename");
        real_unlink = dlsym(RTLD_NEXT, "unlink");
    }
    if (!to[0])
        real_unlink(from);
    else if (real_rename(from, to) && errno == ENOENT)
        close(open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)); /* the name is there, the data never came */
}

static void later(const char *from, const char *to)
{
    char a[PATH_MAX], b[PATH_MAX], platter_a[PATH_MAX], platter_b[PATH_MAX] = "";
    if (!absolute(from, a) || !platter_of(a, platter_a))
        return;
    if (to && (!absolute(to, b) || !platter_of(b, platter_b)))
        return;
    pthread_mutex_lock(&lock);
    if (early)
        apply(platter_a, platter_b);
    else if (waiting < PENDING) {
        strcpy(pending[waiting].from, platter_a);
        strcpy(pending[waiting++].to, platter_b);
    }
    pthread_mutex_unlock(&lock);
}

static void synced(int descriptor)
{
    char link[32], path[PATH_MAX], platter[PATH_MAX];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = folder ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0)
        return;
    path[length] = 0;
    if (!platter_of(path, platter) || fstat(descriptor, &about))
        return;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(about.st_mode)) {
        mkdir(platter, 0700);
        for (int n = 0; n < waiting; n++)
            apply(pending[n].from, pending[n].to);
        waiting = 0;
    } else if (about.st_nlink) {
        copy(descriptor, platter, about.st_mode);
    }
    if (calls >= 0 && write(calls, ".", 1) != 1)
        abort();
    if (++count == last)
        kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
}

int fsync(int fd)
{
    REAL(fsync);
    int result = real(fd);
    if (!result)
        synced(fd);
    return result;
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    int result = real(fd);
    if (!result)
        synced(fd);
    return result;
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    int result = real(from, to);
    if (!result && folder)
        later(from, to);
    return result;
}

int renameat(int a, const char *from, int b, const char *to)
{
    REAL(renameat);
    int result = real(a, from, b, to);
    if (!result && folder && a == AT_FDCWD && b == AT_FDCWD)
        later(from, to);
    return result;
}

int link(const char *from, const char *to)
{
    REAL(link);
    int result = real(from, to);
    char a[PATH_MAX], b[PATH_MAX], platter_a[PATH_MAX], platter_b[PATH_MAX];
    /* A second name for data that is there: it comes with the data, as on a file system with a journal. */
    if (!result && folder && absolute(from, a) && absolute(to, b) && platter_of(a, platter_a) && platter_of(b, platter_b))
        real(platter_a, platter_b);
    return result;
}

int unlink(const char *path)
{
    REAL(unlink);
    int result = real(path);
    if (!result && folder)
        later(path, NULL);
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    int result = real(path, mode);
    char whole[PATH_MAX], platter[PATH_MAX];
    if (!result && folder && absolute(path, whole) && platter_of(whole, platter))
        real(platter, mode);
    return result;
}

/*
 * A storage layer for crash tests: what a process wrote but did not sync can be taken away from it.
 *
 * Preloaded into the server (LD_PRELOAD), it keeps a second copy of everything under DROPSYNC_ROOT in DROPSYNC_SHADOW,
 * as a disk would hold it after a power cut:
 *   - the content of a file reaches the copy with fsync or fdatasync of that file;
 *   - a name (created, renamed, removed) reaches it with fsync of its directory.
 * After killing the server the test puts the copy in the place of the data directory. With DROPSYNC_TEAR=<seed> some
 * files of the copy then get a part of what was written behind their synced end (see the test). With
 * DROPSYNC_IGNORE=1 syncs report success and keep nothing: a test that still passes then tests nothing.
 *
 * Layout of the copy: ino/<inode> holds contents; tree/<path> are hard links to them, made when a directory is synced.
 * DROPSYNC_DELAY_MS makes each sync take longer.
 * All bookkeeping is under one lock; the server is slower with it, which no test minds.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX], shadow[PATH_MAX];
static size_t root_length;
static int ignore_syncs;
static useconds_t delay_micros;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* First byte written since the last sync, per inode. A plain table: a server has few files open for writing. */
struct dirty { ino_t inode; off_t from; };
static struct dirty *dirty_table;
static size_t dirty_count, dirty_capacity;

#define REAL(name) (__extension__ ({ \
    static __typeof__(&name) real_function; \
    if (!real_function) real_function = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    real_function; }))

static void start(void) {
    const char *from = getenv("DROPSYNC_ROOT"), *to = getenv("DROPSYNC_SHADOW"), *ignore = getenv("DROPSYNC_IGNORE");
    if (!from || !to) return;
    if (!realpath(from, root)) { fprintf(stderr, "dropsync: %s: %s\n", from, strerror(errno)); abort(); }
    snprintf(shadow, sizeof shadow, "%s", to);
    root_length = strlen(root);
    ignore_syncs = ignore && *ignore == '1';
    const char *delay = getenv("DROPSYNC_DELAY_MS");
    delay_micros = delay ? (useconds_t)atoi(delay) * 1000 : 0;
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/ino", shadow);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/tree", shadow);
    mkdir(path, 0700);
}

/* The path of `fd` below the root, or NULL; "" is the root itself. */
static const char *below(int fd, char *buffer) {
    pthread_once(&once, start);
    if (!root_length) return NULL;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, buffer, PATH_MAX - 1);
    if (n <= 0) return NULL;
    buffer[n] = 0;
    if (strncmp(buffer, root, root_length) || (buffer[root_length] && buffer[root_length] != '/')) return NULL;
    return buffer + root_length;
}

static struct dirty *find_dirty(ino_t inode, int make) {
    for (size_t i = 0; i < dirty_count; i++)
        if (dirty_table[i].inode == inode) return &dirty_table[i];
    if (!make) return NULL;
    if (dirty_count == dirty_capacity) {
        dirty_capacity = dirty_capacity ? dirty_capacity * 2 : 64;
        dirty_table = realloc(dirty_table, dirty_capacity * sizeof *dirty_table);
        if (!dirty_table) abort();
    }
    dirty_table[dirty_count] = (struct dirty){inode, -1};
    return &dirty_table[dirty_count++];
}

static void inode_path(char *out, ino_t inode) { snprintf(out, PATH_MAX + 64, "%s/ino/%lu", shadow, (unsigned long)inode); }

/* Notes that bytes from `offset` on changed. */
static void wrote(int fd, off_t offset) {
    char buffer[PATH_MAX];
    struct stat st;
    int saved = errno;
    if (below(fd, buffer) && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
        pthread_mutex_lock(&lock);
        struct dirty *d = find_dirty(st.st_ino, 1);
        if (d->from < 0 || offset < d->from) d->from = offset;
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
}

static void copy_from(int fd, const struct stat *st, off_t from) {
    char path[PATH_MAX + 64], link[64], *buffer = malloc(1 << 20);
    inode_path(path, st->st_ino);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int in = REAL(open)(link, O_RDONLY | O_CLOEXEC), out = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (in < 0 || out < 0 || !buffer) { fprintf(stderr, "dropsync: %s: %s\n", path, strerror(errno)); abort(); }
    if (REAL(ftruncate)(out, st->st_size)) abort();
    for (off_t at = from; at < st->st_size;) {
        ssize_t n = pread(in, buffer, 1 << 20, at);
        if (n <= 0) break;
        if (REAL(pwrite)(out, buffer, (size_t)n, at) != n) { fprintf(stderr, "dropsync: %s: %s\n", path, strerror(errno)); abort(); }
        at += n;
    }
    close(in);
    close(out);
    free(buffer);
}

/* Brings the names of a directory into the copy. */
static void sync_directory(const char *relative) {
    char real[PATH_MAX + 64], kept[PATH_MAX + 64], from[PATH_MAX + 400], to[PATH_MAX + 400];
    snprintf(real, sizeof real, "%s%s", root, relative);
    snprintf(kept, sizeof kept, "%s/tree%s", shadow, relative);
    mkdir(kept, 0700);
    DIR *dir = opendir(kept);
    /* The name of this directory is not durable yet; its entries come with it when its parent is synced. */
    if (!dir) return;
    {
        for (struct dirent *e; (e = readdir(dir));) {
            struct stat st;
            snprintf(to, sizeof to, "%s/%s", real, e->d_name);
            snprintf(from, sizeof from, "%s/%s", kept, e->d_name);
            if (e->d_type == DT_REG && (lstat(to, &st) || !S_ISREG(st.st_mode))) REAL(unlink)(from);
        }
        closedir(dir);
    }
    dir = opendir(real);
    if (!dir) return;
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat st, old;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(from, sizeof from, "%s/%s", real, e->d_name);
        snprintf(to, sizeof to, "%s/%s", kept, e->d_name);
        if (lstat(from, &st)) continue;
        if (S_ISDIR(st.st_mode)) {
            char child[PATH_MAX + 400];
            snprintf(child, sizeof child, "%s/%s", relative, e->d_name);
            if (!mkdir(to, 0700)) sync_directory(child);
            continue;
        }
        if (!S_ISREG(st.st_mode)) continue;
        char inode[PATH_MAX + 64];
        struct stat have;
        inode_path(inode, st.st_ino);
        if (stat(inode, &have)) {
            int fd = REAL(open)(inode, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
            if (fd >= 0) close(fd);
            if (stat(inode, &have)) continue;
        }
        if (!lstat(to, &old)) {
            if (old.st_ino == have.st_ino) continue;
            REAL(unlink)(to);
        }
        if (link(inode, to)) { fprintf(stderr, "dropsync: %s: %s\n", to, strerror(errno)); abort(); }
    }
    closedir(dir);
}

static void synced(int fd) {
    char buffer[PATH_MAX];
    struct stat st;
    int saved = errno;
    const char *relative = below(fd, buffer);
    if (relative && delay_micros) usleep(delay_micros);
    if (relative && !ignore_syncs && !fstat(fd, &st)) {
        pthread_mutex_lock(&lock);
        if (S_ISDIR(st.st_mode)) {
            sync_directory(relative);
        } else if (S_ISREG(st.st_mode)) {
            struct dirty *d = find_dirty(st.st_ino, 0);
            if (d && d->from >= 0) { copy_from(fd, &st, d->from); d->from = -1; }
        }
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
}

/* A new file takes an inode that an older one may have had. */
static void created(int fd) {
    char buffer[PATH_MAX], path[PATH_MAX + 64];
    struct stat st;
    int saved = errno;
    if (below(fd, buffer) && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
        pthread_mutex_lock(&lock);
        inode_path(path, st.st_ino);
        REAL(unlink)(path);
        find_dirty(st.st_ino, 1)->from = 0;
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
}

static int opened(int fd, int flags, int existed) {
    if (fd >= 0 && (flags & O_CREAT) && !existed) created(fd);
    else if (fd >= 0 && (flags & O_TRUNC)) wrote(fd, 0);
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list arguments; va_start(arguments, flags); mode_t mode = va_arg(arguments, mode_t); va_end(arguments); \
        int existed = !(flags & O_CREAT) || !access(path, F_OK); \
        return opened(REAL(name)(path, flags, mode), flags, existed); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        va_list arguments; va_start(arguments, flags); mode_t mode = va_arg(arguments, mode_t); va_end(arguments); \
        int existed = !(flags & O_CREAT) || !faccessat(at, path, F_OK, 0); \
        return opened(REAL(name)(at, path, flags, mode), flags, existed); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t n) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    int flags = fcntl(fd, F_GETFL);
    struct stat st;
    if (at >= 0 && (flags & O_APPEND) && !fstat(fd, &st)) at = st.st_size;
    ssize_t r = REAL(write)(fd, data, n);
    if (r > 0 && at >= 0) wrote(fd, at);
    return r;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    int flags = fcntl(fd, F_GETFL);
    struct stat st;
    if (at >= 0 && (flags & O_APPEND) && !fstat(fd, &st)) at = st.st_size;
    ssize_t r = REAL(writev)(fd, parts, n);
    if (r > 0 && at >= 0) wrote(fd, at);
    return r;
}

#define AT(name, type_of_data, type_of_count) \
    ssize_t name(int fd, type_of_data data, type_of_count n, off_t at) { \
        ssize_t r = REAL(name)(fd, data, n, at); \
        if (r > 0) wrote(fd, at); \
        return r; \
    }
AT(pwrite, const void *, size_t)
AT(pwrite64, const void *, size_t)
AT(pwritev, const struct iovec *, int)
AT(pwritev64, const struct iovec *, int)

#define TRUNCATE(name) \
    int name(int fd, off_t length) { int r = REAL(name)(fd, length); if (!r) wrote(fd, length); return r; }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name) int name(int fd) { int r = REAL(name)(fd); if (!r) synced(fd); return r; }
SYNC(fsync)
SYNC(fdatasync)

int sync_file_range(int fd, off_t at, off_t n, unsigned flags) { return REAL(sync_file_range)(fd, at, n, flags); }

// What the tests do from other processes, where a shell cannot: mapped memory, record locks,
// signals. Each prints one line or nothing; status 0 is success.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int must_open(const char *path, int flags) {
    int fd = open(path, flags, 0644);
    if (fd < 0) fail(path);
    return fd;
}

static void on_signal(int number) { (void)number; }

static int lock(int fd, int command, short kind, long start, long length) {
    struct flock f = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &f);
}

int main(int count, char **args) {
    const char *what = args[1], *path = args[2];
    if (!strcmp(what, "map-write")) { // path offset text: shared mapping, msync
        int fd = must_open(path, O_RDWR);
        struct stat st;
        if (fstat(fd, &st)) fail("fstat");
        char *m = mmap(0, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (m == MAP_FAILED) fail("mmap");
        memcpy(m + atol(args[3]), args[4], strlen(args[4]));
        if (msync(m, st.st_size, MS_SYNC)) fail("msync");
        return 0;
    }
    if (!strcmp(what, "map-read")) { // path offset length: private mapping
        int fd = must_open(path, O_RDONLY);
        long offset = atol(args[3]), length = atol(args[4]);
        char *m = mmap(0, offset + length, PROT_READ, MAP_PRIVATE, fd, 0);
        if (m == MAP_FAILED) fail("mmap");
        printf("%.*s\n", (int)length, m + offset);
        return 0;
    }
    if (!strcmp(what, "append")) { // path word times: each line whole, by one write each
        int fd = must_open(path, O_WRONLY | O_APPEND | O_CREAT);
        for (int i = 0; i < atoi(args[4]); i++) {
            char line[256];
            int length = snprintf(line, sizeof line, "%s %d\n", args[3], i);
            if (write(fd, line, length) != length) fail("write");
        }
        return 0;
    }
    if (!strcmp(what, "write-line")) { // (on descriptor) path word times: writes at the shared offset
        int fd = must_open(path, O_WRONLY);
        if (count > 5) lseek(fd, atol(args[5]), SEEK_SET);
        for (int i = 0; i < atoi(args[4]); i++) {
            char line[256];
            int length = snprintf(line, sizeof line, "%s %d\n", args[3], i);
            if (write(fd, line, length) != length) fail("write");
        }
        return 0;
    }
    if (!strcmp(what, "read-twice")) { // path: two reads of 4 bytes, one descriptor
        int fd = must_open(path, O_RDONLY);
        char b[9] = "";
        if (read(fd, b, 4) < 0 || read(fd, b + 4, 4) < 0) fail("read");
        printf("%s\n", b);
        return 0;
    }
    if (!strcmp(what, "lock-hold")) { // path start length: locks, says "held", holds until stdin ends
        int fd = must_open(path, O_RDWR);
        if (lock(fd, F_SETLKW, F_WRLCK, atol(args[3]), atol(args[4]))) fail("F_SETLKW");
        printf("held\n");
        fflush(stdout);
        char c;
        while (read(0, &c, 1) > 0) {}
        return 0;
    }
    if (!strcmp(what, "lock-try")) { // path start length: 0 if free
        int fd = must_open(path, O_RDWR);
        if (!lock(fd, F_SETLK, F_WRLCK, atol(args[3]), atol(args[4]))) return 0;
        if (errno == EAGAIN || errno == EACCES) return 11;
        fail("F_SETLK");
    }
    if (!strcmp(what, "lock-interrupted")) { // path: waits, says "waiting"; a signal must end it
        int fd = must_open(path, O_RDWR);
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGUSR1, &action, 0);
        printf("waiting\n");
        fflush(stdout);
        if (!lock(fd, F_SETLKW, F_WRLCK, 0, 0)) { printf("locked\n"); return 1; }
        if (errno != EINTR) fail("F_SETLKW");
        printf("interrupted\n");
        return 0;
    }
    if (!strcmp(what, "lock-second")) { // path first second: holds byte first, says so, then wants second
        int fd = must_open(path, O_RDWR);
        if (lock(fd, F_SETLKW, F_WRLCK, atol(args[3]), 1)) fail("F_SETLKW");
        printf("held\n");
        fflush(stdout);
        char c;
        if (read(0, &c, 1) != 1) fail("stdin");
        if (!lock(fd, F_SETLKW, F_WRLCK, atol(args[4]), 1)) { printf("locked\n"); return 0; }
        printf("%s\n", errno == EDEADLK ? "deadlock" : strerror(errno));
        return 0;
    }
    if (!strcmp(what, "unlinked")) { // path: an open file without a name works
        int fd = must_open(path, O_RDWR | O_CREAT);
        if (unlink(path)) fail("unlink");
        char b[6] = "";
        struct stat st;
        if (pwrite(fd, "hello", 5, 0) != 5 || pread(fd, b, 5, 0) != 5) fail("io");
        if (strcmp(b, "hello") || fstat(fd, &st) || st.st_nlink != 0 || st.st_size != 5) fail("fstat");
        if (ftruncate(fd, 2) || fstat(fd, &st) || st.st_size != 2) fail("ftruncate");
        return 0;
    }
    if (!strcmp(what, "unnamed")) { // directory: O_TMPFILE, then a name
        int fd = open(path, O_TMPFILE | O_RDWR, 0600);
        if (fd < 0) fail("O_TMPFILE");
        if (write(fd, "named", 5) != 5) fail("write");
        char from[64], to[4096];
        snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
        snprintf(to, sizeof to, "%s/named", path);
        if (linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW)) fail("linkat");
        return 0;
    }
    if (!strcmp(what, "watch")) { // path: prints the content at each line of stdin, one descriptor
        int fd = must_open(path, O_RDONLY);
        char b[4096], c;
        while (read(0, &c, 1) == 1) {
            ssize_t n = pread(fd, b, sizeof b, 0);
            if (n < 0) fail("pread");
            printf("%.*s\n", (int)n, b);
            fflush(stdout);
        }
        return 0;
    }
    if (!strcmp(what, "read-blocked")) { // path: a read that only a signal ends
        int fd = must_open(path, O_RDONLY);
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGUSR1, &action, 0);
        printf("waiting\n");
        fflush(stdout);
        char c;
        if (read(fd, &c, 1) >= 0 || errno != EINTR) fail("read");
        printf("interrupted\n");
        return 0;
    }
    if (!strcmp(what, "inherit")) { // path position: writes by parent and child through one descriptor
        int fd = must_open(path, O_WRONLY);
        long at = atol(args[3]);
        struct stat st;
        if (lseek(fd, at, SEEK_SET) != at || write(fd, "parent\n", 7) != 7) fail("write");
        if (lseek(fd, 0, SEEK_CUR) != at + 7) fail("lseek");
        pid_t child = fork();
        if (!child) _exit(write(fd, "child\n", 6) != 6);
        int status;
        if (waitpid(child, &status, 0) != child || status) fail("child");
        if (write(fd, "parent\n", 7) != 7) fail("write");
        if (ftruncate(fd, 30) || fstat(fd, &st) || st.st_size != 30) fail("ftruncate");
        return 0;
    }
    fprintf(stderr, "unknown: %s\n", what);
    return 2;
}

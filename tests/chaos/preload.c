/* LD_PRELOADed, it does to one process what the file says that $CHAOS_PRELOAD names: lets the time of day jump, and
   rename or fsync fail or hang. What counts from the machine's start goes on. (libfaketime breaks clock_nanosleep, and
   so Python's sleep.) */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { RENAME = 1, FSYNC };
static const volatile struct {
    int64_t offset;      /* seconds */
    int32_t call, error; /* which call ends with which errno; -1: not before this is taken back */
} *wanted;

static int fails(int call)
{
    while (wanted && wanted->call == call && wanted->error < 0)
        usleep(10000);
    if (!wanted || wanted->call != call)
        return 0;
    errno = wanted->error;
    return 1;
}

int rename(const char *from, const char *to)
{
    return fails(RENAME) ? -1 : (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}

int fsync(int file)
{
    return fails(FSYNC) ? -1 : (int)syscall(SYS_fsync, file);
}

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("CHAOS_PRELOAD");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *wanted, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    if (found != MAP_FAILED)
        wanted = found;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (!status && wanted && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += wanted->offset;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;
    int status = clock_gettime(CLOCK_REALTIME, &found);
    (void)zone;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return status;
}

time_t time(time_t *result)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (result)
        *result = found.tv_sec;
    return found.tv_sec;
}

/* Preloaded into User Mode Linux, whose real-time clock it is: from one reading to the next 15 seconds pass.

   A kernel reads that clock when it boots, and when it is suspended and when it is resumed, to learn how long
   it was away; at other times it counts by itself. So each suspension of a kernel that nothing keeps asleep is
   one of 15 seconds. */

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
    static long readings;
    int failed = syscall(SYS_clock_gettime, id, now);

    if (!failed && id == CLOCK_REALTIME)
        now->tv_sec += 15 * ++readings;
    return failed;
}

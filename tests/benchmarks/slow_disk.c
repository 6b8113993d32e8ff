/* A disk whose flush takes 5 ms more: fsync and fdatasync sleep, then do their work.
   cc -shared -fPIC -o slow_disk.so slow_disk.c; LD_PRELOAD=./slow_disk.so python … */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static int slowly(const char *name, int descriptor)
{
    struct timespec pause = {0, 5000000};
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    nanosleep(&pause, 0);
    return real(descriptor);
}

int fsync(int descriptor)
{
    return slowly("fsync", descriptor);
}

int fdatasync(int descriptor)
{
    return slowly("fdatasync", descriptor);
}

// web/wasm.c: functions that WebAssembly's C library declares but does not have.
#include <stddef.h>
#include <sys/types.h>

int flock(int file, int operation) {
    (void)file, (void)operation;
    return 0;
}

int posix_madvise(void *start, size_t size, int advice) {
    (void)start, (void)size, (void)advice;
    return 0;
}

pid_t waitpid(pid_t process, int *status, int options) {
    (void)process, (void)status, (void)options;
    return -1;
}

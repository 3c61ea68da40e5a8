// web/wasm.h: what WebAssembly's C library lacks of the functions that train_gpt.c calls. Included
// before it. A page has one process, one user and no terminal.
#include <errno.h>
#include <signal.h>
#include <sys/types.h>

typedef struct { int si_signo; } siginfo_t;
struct sigaction { void (*sa_handler)(int); sigset_t sa_mask; int sa_flags; };
struct winsize { unsigned short ws_row, ws_col, ws_xpixel, ws_ypixel; };
enum { SA_RESTART, TIOCGWINSZ };

static inline int sigaction(int number, const struct sigaction *now, struct sigaction *before) {
    (void)number, (void)now, (void)before;
    return 0;
}
static inline int kill(pid_t process, int number) {
    (void)process, (void)number;
    return -1;
}
static inline pid_t fork(void) { errno = ENOSYS; return -1; }
static inline pid_t getppid(void) { return 1; }

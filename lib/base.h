// lib/base.h: errors, the terminal, memory, time, threads, random numbers, and files that appear
// whole or not at all.
// C that is also valid C++, as all headers here are: nvcc compiles the same text.
#ifndef BASE_H
#define BASE_H

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef DOUBLE            // the gradient check compiles everything in double precision
typedef double real;
#else
typedef float real;
#endif

enum { MAX_TEXT = 512 };    // bytes of a flag's value or of a path in a run's folder

// A float holds the square of a number up to this one. A gradient above it would make AdamW's v
// infinite: its updates would be 0 from then on. Instead the run ends as diverged.
#define LARGEST_SQUARED 1.8e19

// ---------------------------------------------------------------------------
// Errors: one line that says which flag or file, what is wrong, and what would be right

enum { FAILED = 1, USAGE = 2 };    // exit status: a run failed; the command is wrong

static const char *program = "./train_gpt";    // as the user called it: argv[0]

// The program's name without its folder: the start of every message
static const char *program_name(void) {
    const char *slash = strrchr(program, '/');
    return slash ? slash + 1 : program;
}

__attribute__((format(printf, 2, 3), noreturn))
static void die(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_name());
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

// snprintf that dies if the text does not fit: a cut path would name another file.
__attribute__((format(printf, 3, 4)))
static void format_text(char *out, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out, size, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= size)
        die(USAGE, "a path or value is longer than %zu characters: %.60s...", size - 1, out);
}

// ---------------------------------------------------------------------------
// The terminal

enum { TEXT_WIDTH = 80 };    // columns of everything printed that does not depend on the terminal

// The rows and columns of the terminal; 24 and 80 if stdout is none, or does not know.
static struct winsize terminal_size(void) {
    struct winsize standard = {24, TEXT_WIDTH, 0, 0}, size;
    bool known = !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_row && size.ws_col;
    return known ? size : standard;
}

// Prints a line's fields, without a newline. A terminal shows the first ones that fit: a line that
// is written over must not wrap. Two columns stay free, for the ^C that a terminal echoes.
__attribute__((format(printf, 1, 2)))
static void print_fields(const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    int end = (int)strlen(text), length = end, columns = terminal_size().ws_col;
    int room = !isatty(STDOUT_FILENO) ? length : columns > 2 ? columns - 2 : 0;
    for (; length > room && end > 0; end--)
        if (!strncmp(text + end, "  ", 2)) length = end;    // two spaces stand between fields
    printf("%.*s", length < room ? length : room, text);
}

// Prints a sentence and a newline, broken between words. Lines after the first are indented.
__attribute__((format(printf, 1, 2)))
static void print_sentence(const char *format, ...) {
    char text[5 * MAX_TEXT], *rest = text, *word;
    int column = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    while ((word = strsep(&rest, " "))) {
        bool fits = !column || column + 1 + (int)strlen(word) <= TEXT_WIDTH;
        if (!fits) column = printf("\n ") - 1;
        column += printf("%s%s", column ? " " : "", word);
    }
    putchar('\n');
}

// The text as one word of a shell command, in quotes if it needs them. Valid until the next call.
static const char *shell_word(const char *text) {
    static char out[4 * MAX_TEXT + 8];    // a quote becomes four characters
    size_t plain = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                "+,-./:=@_");
    if (*text && !text[plain]) return text;
    char *to = out;
    *to++ = '\'';
    for (; *text && to < out + 4 * MAX_TEXT; text++) {
        if (*text == '\'') to = stpcpy(to, "'\\'");
        *to++ = *text;
    }
    strcpy(to, "'");
    return out;
}

// ---------------------------------------------------------------------------
// Memory and time

// Zeroed memory for count elements of size bytes. Dies if there is not enough.
static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) {
        double megabytes = 1e-6 * (double)count * (double)size;
        die(FAILED, "cannot allocate %.1f MB; try a smaller -d, -T or -batch", megabytes);
    }
    return memory;
}

// Seconds from a fixed moment in the past.
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---------------------------------------------------------------------------
// Threads: OpenMP's, or one if the compiler has no OpenMP

#ifdef _OPENMP
#include <omp.h>

// The number of processes or threads to run at a time: OMP_NUM_THREADS, if it is set.
static int cores(void) { return omp_get_max_threads(); }

// Starts the program again with settings that make OpenMP's threads spin for a moment and then
// sleep. Waking takes longer than most layers of a small model; but a thread that spins on a busy
// machine keeps away the one that it waits for. GCC's and LLVM's OpenMP read the settings only when
// they are loaded. Does nothing if the user has chosen them, or if the program cannot be found.
static void restart_with_short_waits(char **argv) {
    static const char *const settings[3][2] = {
        {"GOMP_SPINCOUNT", "1000"}, {"KMP_BLOCKTIME", "1"}, {"KMP_USE_YIELD", "2"}
    };
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    for (int i = 0; i < 3; i++)
        if (setenv(settings[i][0], settings[i][1], 0)) return;    // else it would start for ever
    execvp(argv[0], argv);
}
#else
static void omp_set_num_threads(int threads) { (void)threads; }
static int omp_get_max_threads(void) { return 1; }
static int omp_get_num_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
static int cores(void) { return (int)fmax(1, (double)sysconf(_SC_NPROCESSORS_ONLN)); }
static void restart_with_short_waits(char **argv) { (void)argv; }
#endif

// ---------------------------------------------------------------------------
// Random numbers

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). The state is a counter, so that any place of
// the stream can be reached at once, and a run resumes without a saved generator.
static uint64_t random_u64(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// The start of an independent stream for each (seed, a, b), such as (seed, step, row of the batch).
static uint64_t random_stream(uint64_t seed, uint64_t a, uint64_t b) {
    uint64_t state = seed;
    state = random_u64(&state) ^ a;
    state = random_u64(&state) ^ b;
    return random_u64(&state);
}

// An integer in [0, n), n < 2^32: the high half of a 32 x 32 bit product.
static uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(((random_u64(state) >> 32) * n) >> 32);
}

// A real number in [0, 1): the top 53 bits.
static double random_uniform(uint64_t *state) {
    return (double)(random_u64(state) >> 11) * 0x1p-53;
}

// A standard normal number (Box and Muller, 1958).
static double random_normal(uint64_t *state) {
    double u = 1 - random_uniform(state), v = random_uniform(state);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

// ---------------------------------------------------------------------------
// Files that appear whole or not at all: written as PATH.tmp, synced, then renamed to PATH

static char atomic_tmp[MAX_TEXT + 4];    // PATH.tmp of the file being written: one at a time

// Opens a new PATH.tmp for writing. Dies if that fails.
static FILE *atomic_open(const char *path) {
    format_text(atomic_tmp, sizeof atomic_tmp, "%s.tmp", path);
    // if it is a link, what lies behind it stays as it is
    bool stuck = unlink(atomic_tmp) && errno != ENOENT;
    FILE *file = stuck ? NULL : fopen(atomic_tmp, "wb");
    if (!file) die(FAILED, "cannot write %s: %s", atomic_tmp, strerror(errno));
    return file;
}

__attribute__((noreturn))
static void atomic_fail(const char *path) {
    int reason = errno;
    unlink(atomic_tmp);
    die(FAILED, "cannot write %s: %s (the previous one, if any, is intact)", path,
        strerror(reason));
}

// fsync for a folder. Some file systems cannot do it: EINVAL.
static int folder_sync(int handle) { return fsync(handle) && errno != EINVAL ? -1 : 0; }

// Syncs the file, renames it to PATH and syncs the folder, which holds the new name. The folder is
// opened before the rename, so that everything that can fail does so while the old file is still
// in place.
static void atomic_close(FILE *file, const char *path) {
    char folder[MAX_TEXT];
    strcpy(folder, path);
    if (ferror(file) || fflush(file) || fsync(fileno(file)) || fclose(file)) atomic_fail(path);
    int handle = open(dirname(folder), O_RDONLY);
    if (handle < 0 || rename(atomic_tmp, path)) atomic_fail(path);
    if (folder_sync(handle) || close(handle))
        die(FAILED, "wrote %s, but cannot sync its folder: %s", path, strerror(errno));
}

// mkdir -p. Creates first and looks afterwards, because another run may be making the same folder.
static void make_folders(const char *path) {
    struct stat info;
    for (size_t n = strspn(path, "/"); path[n]; n += strspn(path + n, "/")) {
        char folder[MAX_TEXT];
        n += strcspn(path + n, "/");
        snprintf(folder, sizeof folder, "%.*s", (int)n, path);
        if (mkdir(folder, 0777) && errno != EEXIST)
            die(FAILED, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    if (stat(path, &info) || !S_ISDIR(info.st_mode))
        die(FAILED, "cannot make the folder %s: a file has that name", path);
}

#endif

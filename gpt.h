// gpt.h: what train_gpt.c and train_gpt.cu share and neither should repeat.
// Plain C that is also valid C++, so that nvcc compiles the very same text.
#ifndef GPT_H
#define GPT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// ---------------------------------------------------------------------------
// Errors: one line that says what, where, and what would be right

enum { FAILED = 1, USAGE = 2 };    // exit status: a run that failed, a command that is wrong

__attribute__((format(printf, 2, 3), noreturn))
static void die(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("train_gpt: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

// ---------------------------------------------------------------------------
// Random numbers

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the state is a counter, so any place of the
// stream can be reached at once, and a run resumes without a saved generator.
static uint64_t random_u64(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// An independent stream for each (seed, a, b): for instance (seed, step, row of the batch).
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

#endif

// The speed of training steps, of the multiply alone and of OpenBLAS, measured in turn so that all see the same machine.
// usage: bench C L NH T B V seconds [libopenblas.so symbol]
// prints medians: tokens/s, model GFLOP/s, the multiply's GFLOP/s at 1024 cubed, OpenBLAS's at 2048 cubed (0 without it)
#include <dlfcn.h>
#define main train_gpt_main
#include "../train_gpt.c"
#undef main

static int by_value(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

// cblas_sgemm(order, trans_a, trans_b, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc), its integers of 32 or 64 bits
typedef void Sgemm(int, int, int, long, long, long, float, const real *, long, const real *, long, float, real *, long);

static double sgemm_rate(Sgemm *sgemm, real *buffer, int N) {    // FLOP/s of out = a b, all N x N; sgemm NULL: ours
    real *a = buffer + (size_t)N * N, *b = a + (size_t)N * N;
    double start = now();
    if (sgemm) sgemm(101, 111, 111, N, N, N, 1, a, N, b, N, 0, buffer, N);
    else matmul(buffer, NULL, matrix(a, N), matrix(b, N), N, N, N);
    return 2.0 * N * N * N / (now() - start);
}

int main(int argc, char **argv) {
    enum { ROUNDS = 1000 };
    if (argc != 8 && argc != 10) die(USAGE, "usage: bench C L NH T B V seconds [libopenblas.so symbol]");
    int C = atoi(argv[1]), L = atoi(argv[2]), T = atoi(argv[4]), B = atoi(argv[5]), V = atoi(argv[6]);
    char *flags[] = {argv[0], (char *)"-d", argv[1], (char *)"-layers", argv[2], (char *)"-heads", argv[3], (char *)"-T", argv[4], (char *)"-batch", argv[5]};
    Config cfg;
    GPT g;
    config_parse(&cfg, 11, flags);
    gpt_init(&g, &cfg, V, B, T);
    int *tokens = (int *)allocate((size_t)(B * T), sizeof(int)), *targets = (int *)allocate((size_t)(B * T), sizeof(int));
    uint64_t random = 1;
    for (int i = 0; i < B * T; i++) tokens[i] = (int)random_below(&random, (uint32_t)V), targets[i] = (int)random_below(&random, (uint32_t)V);
    real *buffer = (real *)allocate(3 * 2048 * 2048, sizeof(real));
    for (int i = 0; i < 3 * 2048 * 2048; i++) buffer[i] = (real)random_uniform(&random);

    void *library = argc == 10 ? dlopen(argv[8], RTLD_NOW) : NULL;
    Sgemm *openblas = library ? (Sgemm *)dlsym(library, argv[9]) : NULL;
    if (argc == 10 && !openblas) die(FAILED, "%s", dlerror());

    static double step_rate[ROUNDS], gemm_rate[ROUNDS], openblas_rate[ROUNDS];
    double log_z, end = now() + atof(argv[7]);
    int round = 0, step = 0;
    for (; round < ROUNDS && (round < 5 || now() < end); round++) {
        double start = now(), steps = 0;
        do {
            step++, steps++;
            gpt_forward(&g, tokens, B, T, 0);
            gpt_loss(&g, targets, B, T, 1, &log_z);
            gpt_backward(&g, tokens, B, T);
            gpt_update(&g, step % 1000 + 1, NULL);
        } while (now() - start < 0.1);
        step_rate[round] = steps * B * T / (now() - start);
        gemm_rate[round] = sgemm_rate(NULL, buffer, 1024);
        if (!openblas) continue;
        openblas_rate[round] = sgemm_rate(openblas, buffer, 2048);
        usleep(150000);    // its threads spin for a while after their work, and would slow the next steps
    }
    double flops = 6.0 * (double)(g.num_parameters - parameter_size(&g.table[WTE])) + 12.0 * L * T / 2 * C;    // a token, forward and backward
    double tokens_per_second = median(step_rate, round);
    printf("%.0f %.1f %.1f %.1f\n", tokens_per_second, 1e-9 * flops * tokens_per_second, 1e-9 * median(gemm_rate, round), 1e-9 * median(openblas_rate, round));
    return 0;
}

// bench.c: measures the speed of training steps, and with `limits` the rates that bound it: of the
// machine's multiply-adds, of our matrix multiply and of OpenBLAS's. They take turns, so that a
// change of the machine's speed meets all of them.
//
// usage: bench C L NH T B V SECONDS [limits [LIBRARY SGEMM CORENAME]]
//   LIBRARY   OpenBLAS's shared library; SGEMM, CORENAME: its names of cblas_sgemm and
//             openblas_get_corename
// Prints one "name value" a line. A value is the median of the turns: tokens/s, or GFLOP/s.
#include <dlfcn.h>
#define main train_gpt_main
#include "../../train_gpt.c"
#undef main

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

// Trains on one batch for a tenth of a second and counts *step up; returns steps a second. The
// clock runs inside the parallel region: a training run has one region for all its steps.
static double step_rate(GPT *g, const int *tokens, const int *targets, int B, int T, int *step) {
    double log_z, steps = 0, seconds = 0;
    #pragma omp parallel
    #pragma omp master
    {
        double start = now();
        do {
            gpt_forward(g, tokens, B, T, 0);
            gpt_loss(g, targets, B, T, 1, &log_z);
            gpt_backward(g, tokens, B, T);
            gpt_update(g, *step % g->cfg.steps + 1, NULL);
            ++*step;
            steps++;
            seconds = now() - start;
        } while (seconds < 0.1);
    }
    return steps / seconds;
}

// FLOP/s of multiply-adds in registers, on all threads. A core has one to four units, which each
// start one a cycle and finish it some four cycles later: with as many independent sums as the
// matrix multiply keeps, no unit waits. The sums start apart, so that no compiler computes one for
// all, and tend to 1, so that no value becomes infinite or denormal.
static double peak_rate(void) {
    enum { SUMS = 2 * MR, STEPS = 1 << 22 };
    volatile real half = (real)0.5;    // volatile: unknown to the compiler
    double rate = 0;
    #pragma omp parallel reduction(+:rate)
    {
        vector sum[SUMS], x = (vector){0} + half, total = {0};
        for (int i = 0; i < SUMS; i++) sum[i] = (real)i * x;
        double start = now();
        for (int step = 0; step < STEPS; step++)
            for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * x + x;
        double seconds = now() - start;
        for (int i = 0; i < SUMS; i++) total += sum[i];
        for (int i = 0; i < VL; i++)
            if (!(fabs(total[i] - SUMS) < (real)1e-3)) die(FAILED, "bench: the sums are wrong");
        rate += 2.0 * STEPS * SUMS * VL / seconds;
    }
    return rate;
}

// FLOP/s of our matrix multiply, out = a b^T, all N x N. buffer (3,N,N): out, a, b.
static double multiply_rate(real *buffer, int N) {
    size_t size = (size_t)N * (size_t)N;
    double seconds = 0;
    #pragma omp parallel
    #pragma omp master
    {
        double start = now();
        matmul_forward(buffer, buffer + size, buffer + 2 * size, N, N, N);
        seconds = now() - start;
    }
    return 2.0 * N * N * N / seconds;
}

// cblas_sgemm(order, trans_a, trans_b, M, N, K, alpha, a, lda, b, ldb, beta, out, ldo). Its
// integers have 32 or 64 bits: for numbers from 0 to 2^31 it sees no difference.
typedef void Sgemm(int, int, int, long, long, long, float, const real *, long,
                   const real *, long, float, real *, long);

// FLOP/s of OpenBLAS, out = a b, all N x N. buffer as above.
static double openblas_rate(Sgemm *sgemm, real *buffer, int N) {
    enum { ROW_MAJOR = 101, AS_IT_IS = 111 };
    size_t size = (size_t)N * (size_t)N;
    const real *a = buffer + size, *b = buffer + 2 * size;
    double start = now();
    sgemm(ROW_MAJOR, AS_IT_IS, AS_IT_IS, N, N, N, 1, a, N, b, N, 0, buffer, N);
    double seconds = now() - start;
    usleep(150000);    // its threads spin on for a while and would slow the next turn
    return 2.0 * N * N * N / seconds;
}

static void *symbol(void *library, const char *name) {
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) die(FAILED, "bench: %s", dlerror());
    return found;
}

int main(int argc, char **argv) {
    enum { MOST_TURNS = 10000, MULTIPLY_N = 1024, OPENBLAS_N = 2048 };
    int limits = argc > 8 && strcmp(argv[8], "limits") == 0;
    if (argc != 8 && !(limits && (argc == 9 || argc == 12)))
        die(USAGE, "usage: bench C L NH T B V SECONDS [limits [LIBRARY SGEMM CORENAME]]");
    char *flags[] = {
        argv[0],
        (char *)"-d", argv[1],
        (char *)"-layers", argv[2],
        (char *)"-heads", argv[3],
        (char *)"-T", argv[4],
        (char *)"-batch", argv[5],
    };
    Config cfg;
    GPT g;
    config_parse(&cfg, (int)(sizeof flags / sizeof flags[0]), flags);
    int C = cfg.d, L = cfg.layers, T = cfg.T, B = cfg.batch, V = atoi(argv[6]);
    double seconds = atof(argv[7]);
    gpt_init(&g, &cfg, V, B, T);

    int *tokens = (int *)allocate((size_t)(B * T), sizeof(int));
    int *targets = (int *)allocate((size_t)(B * T), sizeof(int));
    uint64_t random = 1;
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int)random_below(&random, (uint32_t)V);
        targets[i] = (int)random_below(&random, (uint32_t)V);
    }
    size_t values = 3 * (size_t)OPENBLAS_N * OPENBLAS_N;
    real *buffer = (real *)allocate(values, sizeof(real));
    for (size_t i = 0; i < values; i++) buffer[i] = (real)random_uniform(&random);

    Sgemm *sgemm = NULL;
    if (argc == 12) {
        void *library = dlopen(argv[9], RTLD_NOW);
        sgemm = (Sgemm *)symbol(library, argv[10]);
        char *(*corename)(void) = (char *(*)(void))symbol(library, argv[11]);
        printf("kernel %s\n", corename());
    }

    static double steps[MOST_TURNS], peak[MOST_TURNS], multiply[MOST_TURNS];
    static double openblas[MOST_TURNS];
    double end = now() + seconds;
    int turn = 0, step = 0;
    for (; turn < MOST_TURNS && (turn < 5 || now() < end); turn++) {
        steps[turn] = step_rate(&g, tokens, targets, B, T, &step);
        if (limits) peak[turn] = peak_rate();
        if (limits) multiply[turn] = multiply_rate(buffer, MULTIPLY_N);
        if (sgemm) openblas[turn] = openblas_rate(sgemm, buffer, OPENBLAS_N);
    }
    // FLOPs of a token, forward and backward: the matrices that it passes, and causal attention
    double matrices = (double)(g.num_parameters - parameter_size(&g.table[WTE]));
    double flops = 6 * matrices + 12.0 * L * T / 2 * C;
    double tokens_per_second = B * T * median(steps, turn);
    printf("tokens/s %.1f\n", tokens_per_second);
    printf("training %.3f\n", 1e-9 * flops * tokens_per_second);
    if (limits) printf("peak %.3f\n", 1e-9 * median(peak, turn));
    if (limits) printf("multiply %.3f\n", 1e-9 * median(multiply, turn));
    if (sgemm) printf("openblas %.3f\n", 1e-9 * median(openblas, turn));
    return 0;
}

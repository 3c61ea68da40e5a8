// A student's train_gpt.c as a program that answers grade.py: driver FD WORK COUNT, then flags of
// train_gpt. It reads its inputs from stdin and writes its answers to FD, both as doubles. grade.py
// draws new inputs each time and computes the right answers after this program has ended.

// gpt_layout rounds the size of each array of the model up to whole cache lines, with ceil. In
// this program ceil also notes the size and adds room for guards, while gpt_init runs.
#include <tgmath.h>
static double noted_ceil(double lines);
#undef ceil
#define ceil(x) noted_ceil(x)

// static, so that the compiler drops main and everything that only main calls
#define main static __attribute__((unused)) train_gpt_main
#include "train_gpt.c"
#undef main
#undef ceil
#include "guards.h"

static FILE *answers;

enum { ROOM = 2 * GUARD / CACHE_LINE };              // cache lines between two arrays
static double noted[2 * MOST_GUARDED];               // cache lines of each array, perhaps not whole
static int num_noted;
static bool noting;

static double noted_ceil(double lines) {
    if (!noting) return ceil(lines);
    if (num_noted == 2 * MOST_GUARDED) die(FAILED, "driver: more than %d arrays", num_noted);
    noted[num_noted++] = lines;
    return ceil(lines) + ROOM;
}

// As gpt_init, with guards round the model's arrays. Those that a step computes are all NaN first.
static void guarded_init(GPT *g, const Config *cfg) {
    noting = true;
    gpt_init(g, cfg, cfg->vocab, cfg->batch, cfg->T);
    noting = false;
    char *at = (char *)g->memory + (CACHE_LINE - (uintptr_t)g->memory % CACHE_LINE);
    for (int i = num_noted / 2; i < num_noted; i++) {    // gpt_init calls gpt_layout twice
        size_t size = (size_t)(noted[i] * CACHE_LINE);
        if ((real *)at > g->sine) guard_fill(at, size);
        guard(NULL, at, size, at == (char *)g->params ? 0 : GUARD, GUARD);
        at += ((size_t)ceil(noted[i]) + ROOM + 1) * CACHE_LINE;
    }
    if (num_noted && at != (char *)g->memory + (size_t)g->bytes)
        die(FAILED, "driver: the arrays of the model are not where gpt_layout places them");
}

// many at a time, so that a measured time is not the time of reading and writing
static double some_numbers[4096];

static void get(real *x, size_t n) {
    for (size_t m; n; x += m, n -= m) {
        m = n < 4096 ? n : 4096;
        if (fread(some_numbers, sizeof(double), m, stdin) != m)
            die(FAILED, "driver: too few numbers on stdin");
        for (size_t i = 0; i < m; i++) x[i] = (real)some_numbers[i];
    }
}

static void put(const real *x, size_t n) {
    for (size_t m; n; x += m, n -= m) {
        m = n < 4096 ? n : 4096;
        for (size_t i = 0; i < m; i++) some_numbers[i] = x[i];
        fwrite(some_numbers, sizeof(double), m, answers);
    }
}

static void put_one(double x) { fwrite(&x, sizeof x, 1, answers); }

static real *some(const char *name, size_t n) {
    return (real *)guarded_memory(name, n * sizeof(real));
}

static void get_tokens(int *tokens, int n, int V) {
    for (int i = 0; i < n; i++) {
        double y;
        if (fread(&y, sizeof y, 1, stdin) != 1) die(FAILED, "driver: too few tokens on stdin");
        tokens[i] = (int)y % V;
    }
}

// model: weights, then for COUNT steps a batch; answers all results of every step. train: the same,
// but answers the last weights only.
static void model(const Config *cfg, int steps, int every) {
    GPT g;
    int V = cfg->vocab, B = cfg->batch, T = cfg->T;
    guarded_init(&g, cfg);
    size_t N = g.num_parameters, rows = (size_t)(B * T);
    int *inputs = (int *)guarded_memory("the batch's inputs", rows * sizeof(int));
    int *targets = (int *)guarded_memory("the batch's targets", rows * sizeof(int));
    get(g.params, N);
    if (every) guard_fill(g.grads, N * sizeof(real));
    for (int step = 1; step <= steps; step++) {
        double log_z;
        static Stats stats;
        get_tokens(inputs, B * T, V);
        get_tokens(targets, B * T, V);
        gpt_forward(&g, inputs, B, T, 1);
        double loss = gpt_loss(&g, targets, B, T, 1, &log_z);
        gpt_statistics(&g, B, T, &stats);
        if (every) put(g.logits, (size_t)(B * T * V));
        gpt_backward(&g, inputs, B, T);
        if (every) put(g.grads, N);
        double norm = gpt_update(&g, step, NULL);
        if (!every) continue;
        guards_check(&g);
        put_one(loss);
        put_one(log_z);
        put_one(norm);
        put_one(learning_rate(cfg, step));
        for (int l = 0; l < cfg->layers; l++) put_one(stats.by_layer[MAX_ATTN_LOGIT][l]);
        put(g.params, N);
        put(g.m, N);
        put(g.v, N);
    }
    guards_check(&g);
    if (!every) put(g.params, N);
}

// init: answers the weights that training starts from
static void init(const Config *cfg) {
    GPT g;
    guarded_init(&g, cfg);
    guards_check(&g);
    put(g.params, g.num_parameters);
}

// update: weights, gradients, moments; answers the norm of the gradients, and weights and moments
// after the update of step COUNT
static void update(const Config *cfg, int step) {
    GPT g;
    guarded_init(&g, cfg);
    size_t N = g.num_parameters;
    get(g.params, N);
    get(g.grads, N);
    get(g.m, N);
    get(g.v, N);
    put_one(gpt_update(&g, step, NULL));
    guards_check(&g);
    put(g.params, N);
    put(g.m, N);
    put(g.v, N);
}

// attention: qk (B,T,2,C), qkv (B,T,3,C), dout and out (B,T,C) and softmax (B,NH,T,2) of a batch of
// B = COUNT; answers dqkv (B,T,3,C)
static void attention(const Config *cfg, int B) {
    int T = cfg->T, NH = cfg->heads, HS = cfg->d / NH;
    size_t n = (size_t)(B * T * NH * HS), rows = (size_t)(B * NH * T);
    size_t scratch_size = (size_t)omp_get_max_threads() * attention_scratch_size(T, HS);
    real *qk = some("qk", 2 * n), *qkv = some("qkv", 3 * n), *dqkv = some("dqkv", 3 * n);
    real *dout = some("dout", n), *out = some("out", n), *softmax = some("softmax", 2 * rows);
    real *scratch = some("scratch", scratch_size);
    get(qk, 2 * n);
    get(qkv, 3 * n);
    get(dout, n);
    get(out, n);
    get(softmax, 2 * rows);
    attention_backward(dqkv, dout, out, softmax, qk, qkv, 1 / sqrt((real)HS), scratch,
                       0, B, T, NH, HS);
    guards_check(NULL);
    put(dqkv, 3 * n);
}

// multiply: COUNT times M, N, K; 1 or 0 for a transposed, b transposed, add; then a, b and add.
// Answers each product.
static void products(int count) {
    while (count--) {
        real head[6];
        get(head, 6);
        int M = (int)head[0], N = (int)head[1], K = (int)head[2], size = M * N;
        real *a = some("a", (size_t)(M * K)), *b = some("b", (size_t)(K * N));
        real *add = some("add", (size_t)size), *out = some("out", (size_t)size);
        get(a, (size_t)(M * K));
        get(b, (size_t)(K * N));
        if (head[5] != 0) get(add, (size_t)size);
        #pragma omp taskgroup
        matmul(out, head[5] != 0 ? add : NULL, head[3] != 0 ? transposed(a, M) : matrix(a, K),
               head[4] != 0 ? transposed(b, K) : matrix(b, N), M, N, K);
        guards_check(NULL);
        put(out, (size_t)size);
        num_guarded = 0;
    }
}

int main(int argc, char **argv) {
    Config cfg;
    const char *work = argv[2];
    int count = atoi(argv[3]);
    answers = fdopen(atoi(argv[1]), "wb");
    config_parse(&cfg, argc - 3, argv + 3);
    int threads = omp_get_max_threads();
    // one thread of a team works and the others help it, as in train_gpt
    #pragma omp parallel num_threads(threads)
    #pragma omp master
    {
        omp_set_num_threads(threads);                           // for omp_get_max_threads
        if (!strcmp(work, "model")) model(&cfg, count, 1);
        else if (!strcmp(work, "train")) model(&cfg, count, 0);
        else if (!strcmp(work, "init")) init(&cfg);
        else if (!strcmp(work, "update")) update(&cfg, count);
        else if (!strcmp(work, "attention")) attention(&cfg, count);
        else products(count);
    }
    fclose(answers);
    return 0;
}

// A student's train_gpt.c as a program that answers grade.py: driver FD WORK COUNT, then flags of
// train_gpt. It reads its inputs from stdin and writes its answers to FD, both as doubles. grade.py
// draws new inputs each time and computes the right answers after this program has ended. The names
// of functions begin with kit_, since a student's helper may be called update or layernorm.

#define _GNU_SOURCE    // for RTLD_NEXT
#include <dlfcn.h>

// gpt_layout rounds the size of each array of the model up to whole cache lines, with ceil. In
// this program ceil also notes the size and adds room for guards, while gpt_init runs.
#include <tgmath.h>
static double noted_ceil(double lines);
#undef ceil
#define ceil(x) noted_ceil(x)
#include "lib/base.h"

// Attention may believe that it runs on this thread, to show whose scratch it uses.
static int pretended = -1;
static bool makes_tasks;                             // GCC's calls for tasks, below, set it
static int thread_number(void) { return pretended < 0 ? omp_get_thread_num() : pretended; }
#define omp_get_thread_num thread_number

// static, so that the compiler drops main and everything that only main calls
#define main static __attribute__((unused)) train_gpt_main
#include "train_gpt.c"
#undef main
#undef ceil
#include "kit.h"

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

static void kit_get(real *x, size_t n) {
    for (size_t m; n; x += m, n -= m) {
        m = n < 4096 ? n : 4096;
        if (fread(some_numbers, sizeof(double), m, stdin) != m)
            die(FAILED, "driver: too few numbers on stdin");
        for (size_t i = 0; i < m; i++) x[i] = (real)some_numbers[i];
    }
}

static void kit_put(const real *x, size_t n) {
    for (size_t m; n; x += m, n -= m) {
        m = n < 4096 ? n : 4096;
        for (size_t i = 0; i < m; i++) some_numbers[i] = x[i];
        fwrite(some_numbers, sizeof(double), m, answers);
    }
}

static real *kit_some(const char *name, size_t n) {
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
static void kit_model(const Config *cfg, int steps, int every) {
    GPT g;
    int V = cfg->vocab, B = cfg->batch, T = cfg->T;
    guarded_init(&g, cfg);
    size_t N = g.num_parameters, rows = (size_t)(B * T);
    int *inputs = (int *)guarded_memory("the batch's inputs", rows * sizeof(int));
    int *targets = (int *)guarded_memory("the batch's targets", rows * sizeof(int));
    kit_get(g.params, N);
    if (every) guard_fill(g.grads, N * sizeof(real));
    for (int step = 1; step <= steps; step++) {
        double log_z;
        static Stats stats;
        get_tokens(inputs, B * T, V);
        get_tokens(targets, B * T, V);
        if (every) {                                 // as validation measures it
            gpt_forward(&g, inputs, B, T, 0);
            stats.val_loss = gpt_loss(&g, targets, B, T, 0, &log_z);
        }
        gpt_forward(&g, inputs, B, T, 1);
        double loss = gpt_loss(&g, targets, B, T, 1, &log_z);
        gpt_statistics(&g, B, T, &stats);
        if (every) kit_put(g.logits, (size_t)(B * T * V));
        gpt_backward(&g, inputs, B, T);
        if (every) kit_put(g.grads, N);
        double norm = gpt_update(&g, step, &stats);
        if (!every) continue;
        guards_check(&g);
        kit_put_one(loss);
        kit_put_one(log_z);
        kit_put_one(norm);
        kit_put_one(learning_rate(cfg, step));
        for (int l = 0; l < cfg->layers; l++) kit_put_one(stats.by_layer[MAX_ATTN_LOGIT][l]);
        kit_put(g.params, N);
        kit_put(g.m, N);
        kit_put(g.v, N);
        put_log(&g, &stats);
    }
    guards_check(&g);
    if (!every) kit_put(g.params, N);
}

// init: answers the weights that training starts from
static void kit_init(const Config *cfg) {
    GPT g;
    guarded_init(&g, cfg);
    guards_check(&g);
    kit_put(g.params, g.num_parameters);
}

// update: weights, gradients, moments and, with -qk_clip, each layer's max_logit (B,NH); answers
// the norm of the gradients, weights and moments after the update of step COUNT, and what it logs
static void kit_update(const Config *cfg, int step) {
    GPT g;
    guarded_init(&g, cfg);
    size_t N = g.num_parameters;
    kit_get(g.params, N);
    kit_get(g.grads, N);
    kit_get(g.m, N);
    kit_get(g.v, N);
    for (int l = 0; cfg->qk_clip > 0 && l < cfg->layers; l++)
        kit_get(g.layers[l].max_logit, (size_t)(cfg->batch * cfg->heads));
    static Stats stats;
    kit_put_one(gpt_update(&g, step, &stats));
    guards_check(&g);
    kit_put(g.params, N);
    kit_put(g.m, N);
    kit_put(g.v, N);
    put_log(&g, &stats);
}

// attention: qk (B,T,2,C), qkv (B,T,3,C), dout and out (B,T,C) and softmax (B,NH,T,2) of a batch of
// B = COUNT; answers dqkv (B,T,3,C), and how many values it wrote to the scratch of other threads.
// A lone thread believes that it is the last of three.
static void kit_attention(const Config *cfg, int B) {
    int T = cfg->T, NH = cfg->heads, HS = cfg->d / NH, threads = omp_get_max_threads(), mine = 0;
    size_t n = (size_t)(B * T * NH * HS), rows = (size_t)(B * NH * T), others = 0;
    size_t each = attention_scratch_size(T, HS);
    real *qk = kit_some("qk", 2 * n), *qkv = kit_some("qkv", 3 * n);
    real *dqkv = kit_some("dqkv", 3 * n), *softmax = kit_some("softmax", 2 * rows);
    real *dout = kit_some("dout", n), *out = kit_some("out", n);
    if (threads == 1) pretended = mine = 2;
    real *scratch = kit_some("scratch", (size_t)(mine + threads) * each);
    kit_get(qk, 2 * n);
    kit_get(qkv, 3 * n);
    kit_get(dout, n);
    kit_get(out, n);
    kit_get(softmax, 2 * rows);
    attention_backward(dqkv, dout, out, softmax, qk, qkv, (real)attention_scale(cfg),
                       (real)cfg->attn_cap, scratch, 0, B, T, NH, HS);
    guards_check(NULL);
    kit_put(dqkv, 3 * n);
    for (size_t i = 0; i < (size_t)mine * each; i++) others += !isnan(scratch[i]);
    kit_put_one((double)others);
}

// multiply: COUNT times M, N, K; 1 or 0 for a transposed and b transposed; add: 0 none, 1 a matrix,
// 2 the matrix that is in out; gap: how much longer than needed the rows of all matrices are, in
// memory; then a, b and add without gaps. Answers each product with its gaps, GAP if not written.
enum { GAP = 12345 };
static void kit_products(int count) {
    while (count--) {
        real head[7];
        kit_get(head, 7);
        int M = (int)head[0], N = (int)head[1], K = (int)head[2], add = (int)head[5];
        int gap = (int)head[6], tall_a = head[3] != 0 ? K : M, tall_b = head[4] != 0 ? N : K;
        int wide_a = (head[3] != 0 ? M : K) + gap, wide_b = (head[4] != 0 ? K : N) + gap;
        int ldc = N + gap;
        real *a = kit_some("a", (size_t)(tall_a * wide_a));
        real *b = kit_some("b", (size_t)(tall_b * wide_b));
        real *plus = kit_some("add", (size_t)(M * ldc)), *out = kit_some("out", (size_t)(M * ldc));
        for (int i = 0; i < M * ldc; i++) if (i % ldc >= N) out[i] = GAP;
        for (int i = 0; i < tall_a; i++) kit_get(a + i * wide_a, (size_t)(wide_a - gap));
        for (int i = 0; i < tall_b; i++) kit_get(b + i * wide_b, (size_t)(wide_b - gap));
        for (int i = 0; add && i < M; i++) kit_get((add == 2 ? out : plus) + i * ldc, (size_t)N);
        const real *added = add == 2 ? out : add ? plus : NULL;
        Matrix left = head[3] != 0 ? transposed(a, wide_a) : matrix(a, wide_a);
        Matrix right = head[4] != 0 ? transposed(b, wide_b) : matrix(b, wide_b);
        if (gap) multiply(out, added, ldc, left, right, M, N, K);
        else {
            #pragma omp taskgroup
            matmul(out, added, left, right, M, N, K);
        }
        guards_check(NULL);
        kit_put(out, (size_t)(M * ldc));
        num_guarded = 0;
    }
}

// layernorm: how (0 add is NULL; 1 another array; 2 dx; 3 NULL, and dx is dout; 4 all rows by
// residual_layernorm_backward), rows, C; then x, dout, add (rows,C); weight, dweight (C); mean,
// rstd (rows). Answers dx (rows,C), dweight (C), and 1 if chunks are tasks that all use the scratch
// of the first chunk: whether two meet there is left to chance, and rare.
static void kit_layernorm(void) {
    real head[3];
    kit_get(head, 3);
    int how = (int)head[0], rows = (int)head[1], C = (int)head[2];
    size_t n = (size_t)(rows * C);
    real *x = kit_some("x", n), *dout = kit_some("dout", n);
    real *add = kit_some("add", n), *dx = kit_some("dx", n);
    real *weight = kit_some("weight", (size_t)C), *dweight = kit_some("dweight", (size_t)C);
    real *mean = kit_some("mean", (size_t)rows), *rstd = kit_some("rstd", (size_t)rows);
    real *partial = kit_some("partial", (size_t)ceil_div(rows, CHUNK) * 3 * (size_t)C);
    kit_get(x, n);
    kit_get(dout, n);
    kit_get(how == 2 || how == 4 ? dx : add, n);
    kit_get(weight, (size_t)C);
    kit_get(dweight, (size_t)C);
    kit_get(mean, (size_t)rows);
    kit_get(rstd, (size_t)rows);
    if (how == 3) dx = dout;
    makes_tasks = false;
    const real *added = how == 1 ? add : how == 2 ? dx : NULL;
    if (how == 4)
        residual_layernorm_backward(dx, dweight, dout, x, weight, mean, rstd, partial, rows, C);
    else
        for (int i = 0; i < rows; i++)
            layernorm_row_backward(dx + i * C, added ? added + i * C : NULL, dweight, dout + i * C,
                                   x + i * C, weight, mean[i], rstd[i], partial + C, C);
    guards_check(NULL);
    int used[2] = {0};                               // scratch of the first chunk, of the others
    for (int i = 0; i < ceil_div(rows, CHUNK) * 3 * C; i++)
        if (i % (3 * C) >= C) used[i >= 3 * C] |= !isnan(partial[i]);
    kit_put(dx, n);
    kit_put(dweight, (size_t)C);
    kit_put_one(makes_tasks && rows > CHUNK && used[0] && !used[1]);
}

// qk_norm: random arrays, of more rows than a chunk. Answers 1 if chunks are tasks that all use the
// scratch of the first chunk.
static void kit_qk_norm(const Config *cfg) {
    int B = cfg->batch, T = cfg->T, NH = cfg->heads, HS = cfg->d / NH, over = qk_norm_over(cfg);
    int chunks = ceil_div(B * T, CHUNK), used[2] = {0};
    size_t rows = (size_t)(B * T), C = (size_t)cfg->d, turns = (size_t)(T * (HS / 2));
    real *dqkv = kit_some("dqkv", rows * 3 * C), *qkv = kit_some("qkv", rows * 3 * C);
    real *mean = kit_some("mean", rows * 2 * (size_t)NH);
    real *rstd = kit_some("rstd", rows * 2 * (size_t)NH);
    real *weight = kit_some("q_weight and k_weight", 2 * (size_t)over);
    real *dweight = kit_some("dq_weight and dk_weight", 2 * (size_t)over);
    real *cosine = kit_some("cosine", turns), *sine = kit_some("sine", turns);
    real *partial = kit_some("partial", (size_t)(chunks * 4 * over));
    kit_get(dqkv, rows * 3 * C);
    kit_get(qkv, rows * 3 * C);
    kit_get(mean, rows * 2 * (size_t)NH);
    kit_get(rstd, rows * 2 * (size_t)NH);
    kit_get(weight, 2 * (size_t)over);
    kit_get(cosine, turns);
    kit_get(sine, turns);
    qk_norm_rope_backward(dqkv, dweight, dweight + over, qkv, mean, rstd, weight, weight + over,
                          over, cosine, sine, partial, B, T, NH, HS);
    guards_check(NULL);
    for (int i = 0; i < chunks * 4 * over; i++)
        if (i % (4 * over) >= 2 * over) used[i >= 4 * over] |= !isnan(partial[i]);
    kit_put_one(used[0] && !used[1]);
}

// orthogonalize: rows, cols; then x (rows,cols). Answers x.
static void kit_orthogonalize(void) {
    real head[2];
    kit_get(head, 2);
    int rows = (int)head[0], cols = (int)head[1], n = least(rows, cols);
    size_t size = (size_t)(rows * cols);
    real *x = kit_some("x", size), *scratch = kit_some("scratch", (size_t)(2 * n * n) + size);
    double *sums = guarded_memory("sums", (size / SUM_CHUNK + 1) * sizeof(double));
    kit_get(x, size);
    orthogonalize(x, rows, cols, scratch, sums);
    guards_check(NULL);
    kit_put(x, size);
}

// muon: rows, cols, lr, clip_scale, decay, cautious; then param, grad, m (rows,cols). Answers
// param, m and the result.
static void kit_muon(void) {
    real head[6];
    kit_get(head, 6);
    int rows = (int)head[0], cols = (int)head[1], n = least(rows, cols);
    size_t size = (size_t)(rows * cols);
    AdamW o = {.clip_scale = head[3], .beta1 = (real)0.9, .beta2 = (real)0.95, .correction1 = 1,
               .correction2 = 1, .eps = (real)1e-8, .decay = head[4], .cautious = (int)head[5]};
    real *param = kit_some("param", size), *grad = kit_some("grad", size);
    real *m = kit_some("m", size), *scratch = kit_some("scratch", (size_t)(10 * n * n));
    double *sums = guarded_memory("sums", (size / SUM_CHUNK + 1) * sizeof(double));
    kit_get(param, size);
    kit_get(grad, size);
    kit_get(m, size);
    double squares = muon(param, grad, m, rows, cols, head[2], o, scratch, sums);
    guards_check(NULL);
    kit_put(param, size);
    kit_put(m, size);
    kit_put_one(squares);
}

// Seconds of processor time of this thread
static double kit_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Seconds that one thread alone spends in tasks: GCC's calls for tasks come here first. -1 with
// another compiler.
#if defined(_OPENMP) && !defined(__clang__)
static double in_tasks;
static int depth;                                    // of calls: a task may make tasks
static double tasks_begin(void) { return depth++ ? 0 : kit_seconds(); }
static void tasks_end(double start) { if (!--depth) in_tasks += kit_seconds() - start; }
#define PASS_ON(name, parameters, arguments) \
    void name parameters { \
        static void (*next) parameters; \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name); \
        makes_tasks = true; \
        if (omp_get_num_threads() > 1) { \
            next arguments; \
            return; \
        } \
        double start = tasks_begin(); \
        next arguments; \
        tasks_end(start); \
    }
PASS_ON(GOMP_taskloop, (void (*f)(void *), void *data, void (*copy)(void *, void *), long size,
                        long align, unsigned flags, unsigned long tasks, int priority, long from,
                        long to, long by),
        (f, data, copy, size, align, flags, tasks, priority, from, to, by))
PASS_ON(GOMP_taskloop_ull, (void (*f)(void *), void *data, void (*copy)(void *, void *), long size,
                            long align, unsigned flags, unsigned long tasks, int priority,
                            unsigned long long from, unsigned long long to,
                            unsigned long long by),
        (f, data, copy, size, align, flags, tasks, priority, from, to, by))
PASS_ON(GOMP_task, (void (*f)(void *), void *data, void (*copy)(void *, void *), long size,
                    long align, bool deferred, unsigned flags, void **depend, int priority,
                    void *detach),
        (f, data, copy, size, align, deferred, flags, depend, priority, detach))
PASS_ON(GOMP_taskgroup_end, (void), ())
PASS_ON(GOMP_taskwait, (void), ())
#else
static double in_tasks = -1;
#endif

typedef struct { const real *data; size_t n; } Result;

// One of LAYERS in checks_layers.py. Writes its results to out; returns how many there are.
static int kit_compute(GPT *g, int which, const int *inputs, const int *targets, Result *out) {
    const Config *cfg = &g->cfg;
    int B = cfg->batch, T = cfg->T, NH = cfg->heads, C = cfg->d, HS = C / NH, V = g->V, n = 0;
    int rows = B * T, over = qk_norm_over(cfg);
    size_t BTC = (size_t)rows * (size_t)C, BTV = (size_t)rows * (size_t)V;
    const Layer a = g->layers[0];
    static real norm;
    double log_z;
    switch (which) {
    case 0:
        gelu_forward(a.gelu, a.slope, g->fc, rows, 4 * C);
        gelu_backward(g->dfc, g->fc, a.slope, rows, 4 * C);
        out[n++] = (Result){a.gelu, 4 * BTC};
        out[n++] = (Result){a.slope, 4 * BTC};
        out[n++] = (Result){g->dfc, 4 * BTC};
        return n;
    case 1:
        embedding_forward(g->embedded, inputs, g->w[WTE], rows, C);
        embedding_backward(g->dw[WTE], g->dnorm, targets, rows, C, V);
        out[n++] = (Result){g->embedded, BTC};
        out[n++] = (Result){g->dw[WTE], (size_t)V * (size_t)C};
        return n;
    case 3:
        matmul_forward(g->logits, g->ln_f, g->w[LM_HEAD], rows, C, V);
        matmul_backward(g->dnorm, g->dw[LM_HEAD], g->logits, g->ln_f, g->w[LM_HEAD], rows, C, V);
        out[n++] = (Result){g->logits, BTV};
        out[n++] = (Result){g->dnorm, BTC};
        out[n++] = (Result){g->dw[LM_HEAD], (size_t)V * (size_t)C};
        return n;
    case 4:
        residual_layernorm_forward(a.ln_2, a.x_mid, a.ln_2_mean, a.ln_2_rstd, g->embedded,
                                   g->branch, a.w[LN_2], rows, C);
        kappa_forward(a.qkv, a.qk_rstd, 1, rows, NH, HS);
        qk_norm_rope_forward(a.qk, a.qk_mean, a.qk_rstd, a.qkv, a.w[Q_NORM], a.w[K_NORM], over,
                             g->cosine, g->sine, B, T, NH, HS);
        attention_forward(a.att, a.softmax, a.max_logit, a.qk, a.qkv, 1, 0, g->scratch, 0, B, T,
                          NH, HS);
        round_to_bf16(g->logits, rows, V);
        cross_entropy(g->logits, g->losses, g->log_z, targets, (real)1e-4, 1, rows, V);
        attention_backward(g->dqkv, g->dnorm, a.att, a.softmax, a.qk, a.qkv, 1, 0, g->scratch, 0,
                           B, T, NH, HS);
        qk_norm_rope_backward(g->dqkv, a.dw[Q_NORM], a.dw[K_NORM], a.qkv, a.qk_mean, a.qk_rstd,
                              a.w[Q_NORM], a.w[K_NORM], over, g->cosine, g->sine, g->partial,
                              B, T, NH, HS);
        kappa_backward(g->dqkv, a.qkv, a.qk_rstd, 1, rows, NH, HS);
        residual_layernorm_backward(g->dx, a.dw[LN_2], g->dnorm, a.x_mid, a.w[LN_2], a.ln_2_mean,
                                    a.ln_2_rstd, g->partial, rows, C);
        out[n++] = (Result){a.ln_2, BTC};
        out[n++] = (Result){a.qk, 2 * BTC};
        out[n++] = (Result){a.att, BTC};
        out[n++] = (Result){g->logits, BTV};
        out[n++] = (Result){g->losses, (size_t)rows};
        out[n++] = (Result){g->dqkv, 3 * BTC};
        out[n++] = (Result){g->dx, BTC};
        out[n++] = (Result){a.dw[LN_2], (size_t)C};
        return n;
    case 5:
        gpt_forward(g, inputs, B, T, 0);
        gpt_loss(g, targets, B, T, 1, &log_z);
        gpt_backward(g, inputs, B, T);
    }
    norm = (real)gpt_update(g, 1, NULL);             // also case 2
    out[n++] = (Result){&norm, 1};
    out[n++] = (Result){g->params, g->num_parameters};
    out[n++] = (Result){g->m, g->num_parameters};
    out[n++] = (Result){g->v, g->num_parameters};
    return n;
}

// layer: which one, a seed. Computes it COUNT times from the same random memory. Answers the
// results of the first time, how many times they were others, the gradient's norm by one loop, the
// seconds of processor time that this thread took, those of a lone thread in tasks and, last (in
// main), those that the other threads took since they began.
static void kit_layer(const Config *cfg, int count) {
    real head[2];
    GPT g;
    Result out[8];
    double time = 0, different = 0, squares = 0;
    in_tasks = in_tasks < 0 ? -1 : 0;
    kit_get(head, 2);
    gpt_init(&g, cfg, cfg->vocab, cfg->batch, cfg->T);
    int rows = cfg->batch * cfg->T;
    int *tokens = (int *)allocate(2 * (size_t)rows, sizeof(int));
    size_t n = (size_t)((char *)g.memory + (size_t)g.bytes - (char *)g.params) / sizeof(real);
    real *kept = (real *)allocate(n, sizeof(real)), *first = NULL;
    uint64_t random = (uint64_t)head[1];
    for (size_t i = 0; i < 2 * (size_t)rows + n; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        if (i < 2 * (size_t)rows) tokens[i] = (int)((random >> 33) % (uint64_t)cfg->vocab);
        else kept[i - 2 * (size_t)rows] = (real)((double)(random >> 11) * 0x1p-53);
    }
    for (int i = 0; i < count; i++) {
        if (!i) memcpy(g.params, kept, n * sizeof(real));
        // the inputs that a layer may have changed
        memcpy(g.params, kept, (size_t)(g.cosine - g.params) * sizeof(real));
        memcpy(g.logits, kept + (g.logits - g.params), (size_t)rows * (size_t)g.V * sizeof(real));
        real *qkv = g.layers[0].qkv;
        memcpy(qkv, kept + (qkv - g.params), (size_t)rows * 3 * (size_t)cfg->d * sizeof(real));
        memcpy(g.dx, kept + (g.dx - g.params), (size_t)rows * (size_t)cfg->d * sizeof(real));
        time -= kit_seconds();
        int results = kit_compute(&g, (int)head[0], tokens, tokens + rows, out), same = 1;
        time += kit_seconds();
        size_t total = 0;
        for (int j = 0; j < results; j++) total += out[j].n;
        if (!i) first = (real *)allocate(total, sizeof(real));
        real *at = first;
        for (int j = 0; j < results; j++, at += out[j - 1].n)
            if (!i) memcpy(at, out[j].data, out[j].n * sizeof(real));
            else same &= !memcmp(at, out[j].data, out[j].n * sizeof(real));
        different += !same;
        if (i == count - 1) kit_put(first, total);
    }
    for (size_t i = 0; i < g.num_parameters; i++) squares += (double)(g.grads[i] * g.grads[i]);
    kit_put_one(different);
    kit_put_one(sqrt(squares));
    kit_put_one(time);
    kit_put_one(in_tasks);
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
        if (!strcmp(work, "model")) kit_model(&cfg, count, 1);
        else if (!strcmp(work, "train")) kit_model(&cfg, count, 0);
        else if (!strcmp(work, "init")) kit_init(&cfg);
        else if (!strcmp(work, "update")) kit_update(&cfg, count);
        else if (!strcmp(work, "attention")) kit_attention(&cfg, count);
        else if (!strcmp(work, "layernorm")) kit_layernorm();
        else if (!strcmp(work, "qk_norm")) kit_qk_norm(&cfg);
        else if (!strcmp(work, "orthogonalize")) kit_orthogonalize();
        else if (!strcmp(work, "muon")) kit_muon();
        else if (!strcmp(work, "layer")) kit_layer(&cfg, count);
        else kit_products(count);
    }
    double others = 0;
    #pragma omp parallel num_threads(threads) reduction(+:others)
    if (omp_get_thread_num() > 0) others = kit_seconds();
    if (!strcmp(work, "layer")) kit_put_one(others);
    fclose(answers);
    return 0;
}

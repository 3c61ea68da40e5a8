// A student's train_gpt.c as a program that answers grade.py: driver FD WORK COUNT, then flags of
// train_gpt. It reads its inputs from stdin and writes its answers to FD, both as doubles. grade.py
// draws new inputs each time and computes the right answers after this program has ended.

// static, so that the compiler drops main and everything that only main calls
#define main static __attribute__((unused)) train_gpt_main
#include "train_gpt.c"
#undef main

static FILE *answers;

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

static real *some(size_t n) { return (real *)allocate(n, sizeof(real)); }

static void get_tokens(int *tokens, int n, int V) {
    for (int i = 0; i < n; i++) {
        double y;
        if (fread(&y, sizeof y, 1, stdin) != 1) die(FAILED, "driver: too few tokens on stdin");
        tokens[i] = (int)y % V;
    }
}

// The columns of log.csv that a step measures, in their order, without those of absent tensors
static void put_log(const GPT *g, const Stats *stats) {
    const double *groups[3] = {stats->grad_rms, stats->param_rms, stats->update_rms};
    put_one(stats->val_loss);
    put_one(stats->mean_logit);
    for (int i = 0; i < NUM_BY_LAYER; i++)
        for (int l = 0; l < g->cfg.layers; l++) put_one(stats->by_layer[i][l]);
    for (int i = 0; i < NUM_ACTIVATIONS; i++) put_one(stats->act_rms[i]);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < NUM_KINDS; k++)
            if (g->table[k].copies) put_one(groups[i][k]);
}

// model: weights, then for COUNT steps a batch; answers all results of every step. train: the same,
// but answers the last weights only.
static void model(const Config *cfg, int steps, int every) {
    GPT g;
    int V = cfg->vocab, B = cfg->batch, T = cfg->T;
    gpt_init(&g, cfg, V, B, T);
    size_t N = g.num_parameters;
    int *inputs = (int *)allocate((size_t)(B * T), sizeof(int));
    int *targets = (int *)allocate((size_t)(B * T), sizeof(int));
    get(g.params, N);
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
        if (every) put(g.logits, (size_t)(B * T * V));
        gpt_backward(&g, inputs, B, T);
        if (every) put(g.grads, N);
        double norm = gpt_update(&g, step, &stats);
        if (!every) continue;
        put_one(loss);
        put_one(log_z);
        put_one(norm);
        put_one(learning_rate(cfg, step));
        for (int l = 0; l < cfg->layers; l++) put_one(stats.by_layer[MAX_ATTN_LOGIT][l]);
        put(g.params, N);
        put(g.m, N);
        put(g.v, N);
        put_log(&g, &stats);
    }
    if (!every) put(g.params, N);
}

// init: answers the weights that training starts from
static void init(const Config *cfg) {
    GPT g;
    gpt_init(&g, cfg, cfg->vocab, cfg->batch, cfg->T);
    put(g.params, g.num_parameters);
}

// update: weights, gradients, moments; answers the norm of the gradients, weights and moments after
// the update of step COUNT, and what it logs
static void update(const Config *cfg, int step) {
    GPT g;
    gpt_init(&g, cfg, cfg->vocab, cfg->batch, cfg->T);
    size_t N = g.num_parameters;
    get(g.params, N);
    get(g.grads, N);
    get(g.m, N);
    get(g.v, N);
    static Stats stats;
    put_one(gpt_update(&g, step, &stats));
    put(g.params, N);
    put(g.m, N);
    put(g.v, N);
    put_log(&g, &stats);
}

// attention: qk (B,T,2,C), qkv (B,T,3,C), dout and out (B,T,C) and softmax (B,NH,T,2) of a batch of
// B = COUNT; answers dqkv (B,T,3,C)
static void attention(const Config *cfg, int B) {
    int T = cfg->T, NH = cfg->heads, HS = cfg->d / NH;
    size_t n = (size_t)(B * T * NH * HS), rows = (size_t)(B * NH * T);
    real *qk = some(2 * n), *qkv = some(3 * n), *dqkv = some(3 * n);
    real *dout = some(n), *out = some(n), *softmax = some(2 * rows);
    real *scratch = some(attention_scratch_size(T, HS));
    for (size_t i = 0; i < 3 * n; i++) dqkv[i] = NAN;    // an element that is not written shows
    get(qk, 2 * n);
    get(qkv, 3 * n);
    get(dout, n);
    get(out, n);
    get(softmax, 2 * rows);
    attention_backward(dqkv, dout, out, softmax, qk, qkv, 1 / sqrt((real)HS), scratch,
                       0, B, T, NH, HS);
    put(dqkv, 3 * n);
}

// multiply: COUNT times M, N, K; 1 or 0 for a transposed, b transposed, add; then a, b and add.
// Answers each product.
static void products(int count) {
    while (count--) {
        real head[6];
        get(head, 6);
        int M = (int)head[0], N = (int)head[1], K = (int)head[2], size = M * N;
        real *a = some((size_t)(M * K)), *b = some((size_t)(K * N));
        real *add = some((size_t)size), *out = some((size_t)size);
        get(a, (size_t)(M * K));
        get(b, (size_t)(K * N));
        if (head[5] != 0) get(add, (size_t)size);
        for (int i = 0; i < size; i++) out[i] = NAN;
        matmul(out, head[5] != 0 ? add : NULL, head[3] != 0 ? transposed(a, M) : matrix(a, K),
               head[4] != 0 ? transposed(b, K) : matrix(b, N), M, N, K);
        put(out, (size_t)size);
        free(a);
        free(b);
        free(add);
        free(out);
    }
}

int main(int argc, char **argv) {
    Config cfg;
    const char *work = argv[2];
    int count = atoi(argv[3]);
    answers = fdopen(atoi(argv[1]), "wb");
    config_parse(&cfg, argc - 3, argv + 3);
    if (!strcmp(work, "model")) model(&cfg, count, 1);
    else if (!strcmp(work, "train")) model(&cfg, count, 0);
    else if (!strcmp(work, "init")) init(&cfg);
    else if (!strcmp(work, "update")) update(&cfg, count);
    else if (!strcmp(work, "attention")) attention(&cfg, count);
    else products(count);
    fclose(answers);
    return 0;
}

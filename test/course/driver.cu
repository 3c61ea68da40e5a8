// A student's train_gpt.cu on the CPU, built with -DFP32, as a program that answers grade.py like
// driver.c: driver FD WORK COUNT, then flags.
#define main static __attribute__((unused)) train_gpt_main
#include "train_gpt.cu"
#undef main

static FILE *answers;

static void get(void *to, size_t n, bool whole) {    // n doubles, as int where whole, else as float
    for (size_t i = 0; i < n; i++) {
        double y;
        if (fread(&y, sizeof y, 1, stdin) != 1) die(FAILED, "driver: too few numbers on stdin");
        if (whole) ((int *)to)[i] = (int)y;
        else ((float *)to)[i] = (float)y;
    }
}

static void put(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double y = x[i];
        fwrite(&y, sizeof y, 1, answers);
    }
}

static void put_one(double x) { fwrite(&x, sizeof x, 1, answers); }

static float *on_device(size_t n) {
    float *x;
    check(cudaMalloc((void **)&x, (n ? n : 1) * sizeof(float)));
    return x;
}

static float *get_device(size_t n) {
    float *x = (float *)allocate(n, sizeof(float)), *y = on_device(n);
    get(x, n, false);
    check(cudaMemcpy(y, x, n * sizeof(float), cudaMemcpyHostToDevice));
    return y;
}

static void put_device(const float *x, size_t n) {
    float *y = (float *)allocate(n, sizeof(float));
    check(cudaStreamSynchronize(stream));
    check(cudaMemcpy(y, x, n * sizeof(float), cudaMemcpyDeviceToHost));
    put(y, n);
}

static void kernel(const char *work) {    // rows and C, then the arrays
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    int size[2];
    get(size, 2, true);
    int rows = size[0], C = size[1];
    size_t n = (size_t)rows * C;
    float *x = get_device(n), *out = on_device(n);
    if (!strcmp(work, "gelu_forward")) gelu_forward(out, x, rows, C);
    else if (!strcmp(work, "gelu_backward")) gelu_backward(out, x, get_device(n), rows, C);
    else {
        float *mean = on_device(rows), *rstd = on_device(rows);
        residual_layernorm_forward(out, x, mean, rstd, x, NULL, get_device(C), rows, C);
    }
    put_device(out, n);
}

// As in driver.c. train_gpt.cu measures fewer columns.
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

// As driver.c's model.
static void model(Config *cfg, int steps) {
    GPT g;
    int V = cfg->vocab, B = cfg->batch, T = cfg->T, rows = B * T;
    static Stats stats;
    gpt_init(&g, cfg, V, B, T);
    size_t N = g.num_parameters;
    int *inputs = (int *)allocate(rows, sizeof(int)), *targets = (int *)allocate(rows, sizeof(int));
    float *p = (float *)allocate(N, sizeof(float));
    get(p, N, false);
    check(cudaMemcpy(g.params, p, N * sizeof(float), cudaMemcpyHostToDevice));
    update_weights(g.weights, g.params, N);
    for (int step = 1; step <= steps; step++) {
        get(inputs, rows, true);
        get(targets, rows, true);
        batch_send(&g.batch, inputs, targets, B, T);
        gpt_constants(&g, step);
        gpt_gradient(&g, B, T, 1);
        for (int i = 0; i < rows; i++) put_device(g.logits + (size_t)i * padded(V), V);
        put_device(g.grads, N);
        gpt_update(&g, 1);
        gpt_statistics(&g, B, T, 1, &stats);
        put_one(stats.train_loss);
        put_one(stats.log_z);
        put_one(stats.grad_norm);
        put_one(learning_rate(cfg, step));
        for (int l = 0; l < cfg->layers; l++) put_one(stats.by_layer[MAX_ATTN_LOGIT][l]);
        put_device(g.params, N);
        put_device(g.m, N);
        put_device(g.v, N);
        put_log(&g, &stats);
    }
}

int main(int argc, char **argv) {
    Config cfg;
    answers = fdopen(atoi(argv[1]), "wb");
    if (!strcmp(argv[2], "model")) {
        config_parse(&cfg, argc - 3, argv + 3);
        model(&cfg, atoi(argv[3]));
    } else kernel(argv[2]);
    fclose(answers);
    return 0;
}

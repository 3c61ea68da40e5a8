// A student's train_gpt.cu on the CPU, built with -DFP32, as a program that answers grade.py like
// driver.c: driver FD WORK COUNT, then flags.
#include "lib/gpu.h"

// reserve rounds the size of each array up to 512 bytes, with ceil, and then allocates it. In this
// program ceil notes the size, and cudaMalloc adds guards.
static double noted_ceil(double blocks);
template <class number> static cudaError_t guarded_malloc(number **at, size_t size);
#define ceil(x) noted_ceil(x)
#define cudaMalloc(at, size) guarded_malloc(at, size)
#define main static __attribute__((unused)) train_gpt_main
#include "train_gpt.cu"
#undef main
#undef ceil
#undef cudaMalloc
#include "kit.h"

static double noted;    // bytes

static double noted_ceil(double blocks) {
    noted = blocks * 512;
    return ceil(blocks);
}

template <class number> static cudaError_t guarded_malloc(number **at, size_t size) {
    char *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, size + 2 * GUARD);
    size_t wanted = noted > 0 && ceil(noted / 512) * 512 == size ? (size_t)noted : size;
    if (!error) guard(NULL, memory + GUARD, wanted, GUARD, size - wanted + GUARD);
    *at = (number *)(memory + GUARD);
    return error;
}

// n doubles, as int where whole, else as float
static void kit_get(void *to, size_t n, bool whole) {
    for (size_t i = 0; i < n; i++) {
        double y;
        if (fread(&y, sizeof y, 1, stdin) != 1) die(FAILED, "driver: too few numbers on stdin");
        if (whole) ((int *)to)[i] = (int)y;
        else ((float *)to)[i] = (float)y;
    }
}

static void kit_put(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double y = x[i];
        fwrite(&y, sizeof y, 1, answers);
    }
}

static float *on_device(const char *name, size_t n) {
    float *x;
    noted = 0;
    check(guarded_malloc(&x, n * sizeof(float)));
    guarded[num_guarded - 1].name = name;
    return x;
}

static float *get_device(const char *name, size_t n) {
    float *x = (float *)allocate(n, sizeof(float)), *y = on_device(name, n);
    kit_get(x, n, false);
    check(cudaMemcpy(y, x, n * sizeof(float), cudaMemcpyHostToDevice));
    return y;
}

static void put_device(const float *x, size_t n) {
    float *y = (float *)allocate(n, sizeof(float));
    check(cudaStreamSynchronize(stream));
    check(cudaMemcpy(y, x, n * sizeof(float), cudaMemcpyDeviceToHost));
    kit_put(y, n);
}

// rows, C and 1 or 0 for a branch (of gelu_backward: for dinp that is dout); then the arrays.
// Answers out (rows,C); of LayerNorm also x (rows,C), mean and rstd (rows). Without a branch x is
// inp.
static void kit_kernel(const char *work) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    int size[3];
    kit_get(size, 3, true);
    int rows = size[0], C = size[1];
    size_t n = (size_t)rows * C;
    bool backward = !strcmp(work, "gelu_backward");
    float *inp = get_device("inp", n), *out = on_device(backward ? "dinp" : "out", n);
    if (!strcmp(work, "gelu_forward")) gelu_forward(out, inp, rows, C);
    else if (backward) {
        float *dout = get_device("dout", n);
        if (size[2]) out = dout;
        gelu_backward(out, dout, inp, rows, C);
    } else {
        float *weight = get_device("weight", C), *branch = size[2] ? get_device("branch", n) : NULL;
        float *x = branch ? on_device("x", n) : inp;
        float *mean = on_device("mean", rows), *rstd = on_device("rstd", rows);
        residual_layernorm_forward(out, x, mean, rstd, inp, branch, weight, rows, C);
        check(cudaStreamSynchronize(stream));
        guards_check(NULL);
        put_device(out, n);
        put_device(x, n);
        put_device(mean, rows);
        put_device(rstd, rows);
        return;
    }
    check(cudaStreamSynchronize(stream));
    guards_check(NULL);
    put_device(out, n);
}

// As driver.c's model.
static void kit_model(Config *cfg, int steps) {
    GPT g;
    int V = cfg->vocab, B = cfg->batch, T = cfg->T, rows = B * T;
    static Stats stats;
    gpt_init(&g, cfg, V, B, T);
    size_t N = g.num_parameters;
    int *inputs = (int *)allocate(rows, sizeof(int)), *targets = (int *)allocate(rows, sizeof(int));
    float *p = (float *)allocate(N, sizeof(float));
    kit_get(p, N, false);
    check(cudaMemcpy(g.params, p, N * sizeof(float), cudaMemcpyHostToDevice));
    update_weights(g.weights, g.params, N);
    for (int step = 1; step <= steps; step++) {
        kit_get(inputs, rows, true);
        kit_get(targets, rows, true);
        batch_send(&g.batch, inputs, targets, B, T);
        gpt_constants(&g, step);
        gpt_gradient(&g, B, T, 1);
        for (int i = 0; i < rows; i++) put_device(g.logits + (size_t)i * padded(V), V);
        put_device(g.grads, N);
        gpt_update(&g, 1);
        gpt_statistics(&g, B, T, 1, &stats);
        check(cudaStreamSynchronize(stream));
        guards_check(&g);
        kit_put_one(stats.train_loss);
        kit_put_one(stats.log_z);
        kit_put_one(stats.grad_norm);
        kit_put_one(learning_rate(cfg, step));
        for (int l = 0; l < cfg->layers; l++) kit_put_one(stats.by_layer[MAX_ATTN_LOGIT][l]);
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
        kit_model(&cfg, atoi(argv[3]));
    } else kit_kernel(argv[2]);
    fclose(answers);
    return 0;
}

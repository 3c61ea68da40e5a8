// train_gpt.cu as a library for the tests, with shim.c's functions. The tests see parameters,
// gradients and moments as host memory: what they wrote goes to the device before each call, and
// what the call changed comes back after it. They are float; a layer runs in the library's `act`.
#ifndef PROGRAM
#define PROGRAM "../../train_gpt.cu"
#endif
#define main train_gpt_main
#include PROGRAM
#undef main

typedef struct {
    GPT g;
    float *host[4];    // params, grads, m, v
    int B;
    double loss, log_z;
    Stats stats;
} Shim;

static void move(Shim *s, cudaMemcpyKind kind) {
    float *device[4] = {s->g.params, s->g.grads, s->g.m, s->g.v};
    for (int i = 0; i < 4; i++) {
        double bytes = s->g.num_parameters * sizeof(float);
        if (kind == cudaMemcpyHostToDevice) to_gpu(device[i], s->host[i], bytes);
        else from_gpu(s->host[i], device[i], bytes);
    }
    if (kind == cudaMemcpyHostToDevice)
        update_weights(s->g.weights, s->g.params, s->g.num_parameters);
}

// a copy, or NaN where host is NULL
template <class T> static T *on_gpu(const T *host, size_t n) {
    T *p = NULL;
    check(cudaMalloc(&p, n * sizeof(T)));
    if (host) check(cudaMemcpy(p, host, n * sizeof(T), cudaMemcpyHostToDevice));
    else check(cudaMemset(p, 0xFF, n * sizeof(T)));
    return p;
}
static act *act_on_gpu(const float *host, size_t n) {
    act *rounded = (act *)allocate(n, sizeof(act));
    for (size_t i = 0; i < n; i++) rounded[i] = (act)(host ? host[i] : NAN);
    act *p = on_gpu(rounded, n);
    free(rounded);
    return p;
}
template <class T> static void to_host(float *host, T *p, size_t n) {    // and frees it
    T *copy = (T *)allocate(n, sizeof(T));
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(copy, p, n * sizeof(T), cudaMemcpyDeviceToHost));
    check(cudaFree(p));
    for (size_t i = 0; i < n; i++) host[i] = (float)copy[i];
    free(copy);
}

extern "C" {

size_t shim_real_size(void) { return sizeof(float); }

void *shim_new(int argc, char **argv) {
    Shim *s = (Shim *)allocate(1, sizeof(Shim));
    Config cfg;
    config_parse(&cfg, argc, argv);
    gpt_init(&s->g, &cfg, cfg.vocab ? cfg.vocab : 256, cfg.batch, cfg.T);
    for (int i = 0; i < 4; i++) s->host[i] = (float *)allocate(s->g.num_parameters, sizeof(float));
    move(s, cudaMemcpyDeviceToHost);
    return s;
}

void shim_free(Shim *s) {
    gpt_free(&s->g);
    stream = NULL;    // a layer alone runs on the default stream
    for (int i = 0; i < 4; i++) free(s->host[i]);
    free(s);
}

int shim_num_tensors(Shim *s) {
    int count = 0;
    for (int k = 0; k < NUM_KINDS; k++) count += s->g.table[k].copies;
    return count;
}

void shim_tensor(Shim *s, int i, char *name, long *offset, long *rows, long *cols) {
    const Parameter *p = s->g.table;
    for (; i >= p->copies; p++) i -= p->copies;
    snprintf(name, 128, p->name, i);
    *offset = (long)(p->offset + (size_t)i * parameter_size(p));
    *rows = p->rows;
    *cols = p->cols;
}

long shim_num_parameters(Shim *s) { return (long)s->g.num_parameters; }
float *shim_params(Shim *s) { return s->host[0]; }
float *shim_grads(Shim *s) { return s->host[1]; }
float *shim_m(Shim *s) { return s->host[2]; }
float *shim_v(Shim *s) { return s->host[3]; }

static void begin(Shim *s, const int *inputs, const int *targets, int B, int T) {
    move(s, cudaMemcpyHostToDevice);
    s->B = B;
    check(cudaMemset(s->g.results, 0, 2 * sizeof(Results)));
    batch_send(&s->g.batch, inputs, targets, B, T);
}

static double mean_loss(Shim *s) {
    GPT *g = &s->g;
    Results r;
    launch(loss_kernel, 1, 256, g->results + 1, g->losses, g->log_z, g->batch.rows, (int *)NULL);
    from_gpu(&r, g->results + 1, sizeof r);
    s->log_z = r.log_z / g->batch.rows;
    return s->loss = r.loss / g->batch.rows;
}

double shim_forward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    begin(s, inputs, targets, B, T);
    for (int b = 0; b < B; b += s->g.micro_batch) {
        int n = least(s->g.micro_batch, B - b);
        gpt_forward(&s->g, s->g.batch.inputs + b * T, n, T, 0);
        gpt_loss(&s->g, s->g.batch.targets + b * T, n, T, 0);
    }
    return mean_loss(s);
}

double shim_backward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    begin(s, inputs, targets, B, T);
    gpt_constants(&s->g, 1);
    gpt_gradient(&s->g, B, T, 1);
    mean_loss(s);
    move(s, cudaMemcpyDeviceToHost);
    return s->loss;
}

double shim_log_z(Shim *s) { return s->log_z; }

double shim_update(Shim *s, int step) {    // also reads the step's statistics
    move(s, cudaMemcpyHostToDevice);
    gpt_constants(&s->g, step);
    gpt_update(&s->g, 1);
    gpt_statistics(&s->g, s->B, s->g.cfg.T, 1, &s->stats);
    move(s, cudaMemcpyDeviceToHost);
    return s->stats.grad_norm;
}
double shim_by_layer(Shim *s, int i, int layer) { return s->stats.by_layer[i][layer]; }
double shim_act_rms(Shim *s, int i) { return s->stats.act_rms[i]; }
double shim_mean_logit(Shim *s) { return s->stats.mean_logit; }
double shim_lr(Shim *s, int step) { return learning_rate(&s->g.cfg, step); }

// fc (rows,OC) = inp (rows,IC) weight^T, out = gelu(fc); dfc = gelu'(fc) * (dout weight2), dweight
// (IC,OC) = dout^T out; dout (rows,IC), weight2 (IC,OC). A model must exist, for cuBLAS.
void shim_matmul_gelu(float *out, float *fc, float *dfc, float *dweight, const float *inp,
                      const float *weight, const float *dout, const float *weight2,
                      int rows, int IC, int OC) {
    size_t n = (size_t)rows * OC, in = (size_t)rows * IC, w = (size_t)IC * OC;
    size_t sizes[] = {n, n, n, in, w, in, w};
    const float *from[] = {NULL, NULL, NULL, inp, weight, dout, weight2};
    float *to[] = {out, fc, dfc}, *dw = on_gpu<float>(NULL, w);
    act *x[7];
    for (int i = 0; i < 7; i++) x[i] = act_on_gpu(from[i], sizes[i]);
    matmul_gelu_forward(x[0], x[1], x[3], x[4], rows, IC, OC);
    check(cudaMemset(dw, 0, w * sizeof(float)));
    matmul_gelu_backward(x[2], dw, x[5], x[1], x[0], x[6], rows, OC, IC);
    for (int i = 0; i < 3; i++) to_host(to[i], x[i], n);
    to_host(dweight, dw, w);
    for (int i = 3; i < 7; i++) check(cudaFree(x[i]));
}

// V is a multiple of W.
void shim_round_to_bf16(float *logits, int rows, int V) {
    act *x = act_on_gpu(logits, (size_t)rows * V);
    round_to_bf16(x, rows, V);
    to_host(logits, x, (size_t)rows * V);
}

// The residual stream is inp, without a branch.
void shim_layernorm_forward(float *out, float *mean, float *rstd, const float *inp,
                            const float *weight, int rows, int C) {
    size_t n = (size_t)rows * C;
    act *y = act_on_gpu(NULL, n), *x = act_on_gpu(inp, n), *w = act_on_gpu(weight, C);
    float *m = on_gpu<float>(NULL, rows), *r = on_gpu<float>(NULL, rows);
    residual_layernorm_forward(y, x, m, r, x, NULL, w, rows, C);
    to_host(out, y, n);
    to_host(mean, m, rows);
    to_host(rstd, r, rows);
    check(cudaFree(x));
    check(cudaFree(w));
}

void shim_layernorm_backward(float *dinp, float *dweight, const float *dout, const float *inp,
                             const float *weight, const float *mean, const float *rstd, int rows,
                             int C) {
    size_t n = (size_t)rows * C;
    act *dx = act_on_gpu(NULL, n), *dy = act_on_gpu(dout, n), *x = act_on_gpu(inp, n);
    act *w = act_on_gpu(weight, C);
    float *dw = on_gpu<float>(NULL, C), *m = on_gpu(mean, rows), *r = on_gpu(rstd, rows);
    Partials partial = {};
    partial.memory = on_gpu<float>(NULL, (size_t)ROW_BLOCKS * row_block(C).y * C);
    check(cudaMemset(dx, 0, n * sizeof(act)));
    check(cudaMemset(dw, 0, C * sizeof(float)));
    residual_layernorm_backward(dx, dw, dy, x, w, m, r, &partial, rows, C);
    sum_partials(&partial, C);
    to_host(dinp, dx, n);
    to_host(dweight, dw, C);
    void *used[] = {dy, x, w, m, r, partial.memory};
    for (void *p : used) check(cudaFree(p));
}

}

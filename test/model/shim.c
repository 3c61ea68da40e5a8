// The trainer as a library for the tests: train_gpt.c's functions under names that ctypes can call.
#define main train_gpt_main
#include "../../train_gpt.c"
#undef main

typedef struct {
    GPT g;
    int B;
    double loss, log_z;
} Shim;

size_t shim_real_size(void) { return sizeof(real); }

void *shim_new(int argc, char **argv) {
    Shim *s = (Shim *)allocate(1, sizeof(Shim));
    Config cfg;
    config_parse(&cfg, argc, argv);
    gpt_init(&s->g, &cfg, cfg.vocab ? cfg.vocab : 256, cfg.batch, cfg.T);
    return s;
}

void shim_free(Shim *s) {
    gpt_free(&s->g);
    free(s);
}

static const Parameter *parameter_at(const GPT *g, int i, int *layer) {
    for (int k = 0; k < NUM_KINDS; i -= g->table[k++].copies)
        if (i < g->table[k].copies) {
            *layer = i;
            return &g->table[k];
        }
    return NULL;
}

int shim_num_tensors(Shim *s) {
    int count = 0;
    for (int k = 0; k < NUM_KINDS; k++) count += s->g.table[k].copies;
    return count;
}

void shim_tensor(Shim *s, int i, char *name, long *offset, long *rows, long *cols, int *hidden) {
    int layer;
    const Parameter *p = parameter_at(&s->g, i, &layer);
    snprintf(name, 128, p->name, layer);
    *offset = (long)(p->offset + (size_t)layer * parameter_size(p));
    *rows = p->rows;
    *cols = p->cols;
    *hidden = p->hidden;
}

long shim_num_parameters(Shim *s) { return (long)s->g.num_parameters; }
real *shim_params(Shim *s) { return s->g.params; }
real *shim_grads(Shim *s) { return s->g.grads; }
real *shim_m(Shim *s) { return s->g.m; }
real *shim_v(Shim *s) { return s->g.v; }

double shim_forward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    s->B = B;
    gpt_forward(&s->g, inputs, B, T, 1);
    return s->loss = gpt_loss(&s->g, targets, B, T, 0, &s->log_z);
}

double shim_backward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    s->B = B;
    gpt_forward(&s->g, inputs, B, T, 1);
    s->loss = gpt_loss(&s->g, targets, B, T, 1, &s->log_z);
    gpt_backward(&s->g, inputs, B, T);
    return s->loss;
}

double shim_total_loss(Shim *s) {    // of the last full batch
    double z = 0;
    int rows = s->B * s->g.cfg.T;
    for (int i = 0; i < rows; i++) z += (double)s->g.log_z[i] * s->g.log_z[i];
    return s->loss + s->g.cfg.z_loss * z / rows;
}

double shim_log_z(Shim *s) { return s->log_z; }

double shim_max_attn_logit(Shim *s, int layer) {
    static Stats stats;
    gpt_statistics(&s->g, s->B, &stats);
    return stats.max_attn_logit[layer];
}

double shim_act_rms(Shim *s, int i) { return s->g.act_rms[i]; }

double shim_update(Shim *s, int step) { return gpt_update(&s->g, step, NULL); }
double shim_lr(Shim *s, int step) { return learning_rate(&s->g.cfg, step); }

void shim_layernorm_forward(real *out, real *mean, real *rstd, const real *inp, const real *weight,
                            int rows, int C) {
    layernorm_forward(out, mean, rstd, inp, weight, rows, C);
}

void shim_layernorm_backward(real *dinp, real *dweight, const real *dout, const real *inp,
                             const real *weight, const real *mean, const real *rstd, int rows,
                             int C) {
    real *partial = (real *)allocate(3 * (size_t)(rows / CHUNK + 1) * (size_t)C, sizeof(real));
    layernorm_backward(dinp, NULL, dweight, dout, inp, weight, mean, rstd, partial, rows, C);
    free(partial);
}

void shim_gelu_forward(real *out, real *slope, const real *inp, long n) {
    gelu_forward(out, slope, inp, (size_t)n);
}
void shim_gelu_backward(real *dinp, const real *dout, const real *slope, long n) {
    gelu_backward(dinp, dout, slope, (size_t)n);
}

static void rope(real *out, const real *inp, int B, int T, int NH, int HS, int backward) {
    real *table = (real *)allocate((size_t)T * (size_t)HS, sizeof(real));
    real *sine = table + T * HS / 2;
    rope_table(table, sine, T, HS);
    (backward ? rope_backward : rope_forward)(out, inp, table, sine, B, T, NH, HS);
    free(table);
}
void shim_rope_forward(real *out, const real *inp, int B, int T, int NH, int HS) {
    rope(out, inp, B, T, NH, HS, 0);
}
void shim_rope_backward(real *dinp, const real *dout, int B, int T, int NH, int HS) {
    rope(dinp, dout, B, T, NH, HS, 1);
}

static real *attention_scratch(int T, int HS) {
    return (real *)allocate((size_t)max_threads() * 2 * (size_t)(QB + HS + 1) * (size_t)T,
                            sizeof(real));
}

void shim_attention_forward(real *out, real *softmax, const real *q, const real *k, const real *v,
                            double scale, int B, int T, int NH, int HS, double *max_logit) {
    real *scratch = attention_scratch(T, HS);
    real *largest = (real *)allocate((size_t)(B * NH), sizeof(real));
    attention_forward(out, softmax, largest, q, k, v, (real)scale, scratch, B, T, NH, HS);
    *max_logit = 0;
    for (int i = 0; i < B * NH; i++) *max_logit = fmax(*max_logit, largest[i]);
    free(scratch);
    free(largest);
}

void shim_attention_backward(real *dq, real *dk, real *dv, const real *dout, const real *out,
                             const real *softmax, const real *q, const real *k, const real *v,
                             double scale, int B, int T, int NH, int HS) {
    real *scratch = attention_scratch(T, HS);
    attention_backward(dq, dk, dv, dout, out, softmax, q, k, v, (real)scale, scratch, B, T, NH, HS);
    free(scratch);
}

void shim_cross_entropy(real *logits, double *loss, double *log_z, const int *targets,
                        double z_loss, int rows, int V) {
    real *losses = (real *)allocate((size_t)rows, sizeof(real));
    real *z = (real *)allocate((size_t)rows, sizeof(real));
    cross_entropy(logits, losses, z, targets, (real)z_loss, 1, 1, rows, V);
    *loss = 0;
    *log_z = 0;
    for (int i = 0; i < rows; i++) {
        *loss += losses[i] / rows;
        *log_z += z[i] / rows;
    }
    free(losses);
    free(z);
}

// trans_a: a is stored (K,M); trans_b: b is stored (N,K)
void shim_matmul(real *out, const real *a, const real *b, const real *add, int M, int N, int K,
                 int trans_a, int trans_b) {
    matmul(out, add, trans_a ? transposed(a, M) : matrix(a, K),
           trans_b ? transposed(b, K) : matrix(b, N), M, N, K);
}

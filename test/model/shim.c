// The trainer as a library for the tests: each function of train_gpt.c under a name that ctypes can
// call. IN_TEAM runs a call as the program does: one thread calls, the others help with its tasks.
#define main train_gpt_main
#include "../../train_gpt.c"
#undef main

#define IN_TEAM _Pragma("omp parallel") _Pragma("omp master")

typedef struct {
    GPT g;
    int B;
    double loss, log_z;
    Stats stats;
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

void shim_tensor(Shim *s, int i, char *name, long *offset, long *rows, long *cols) {
    int layer;
    const Parameter *p = parameter_at(&s->g, i, &layer);
    snprintf(name, 128, p->name, layer);
    *offset = (long)(p->offset + (size_t)layer * parameter_size(p));
    *rows = p->rows;
    *cols = p->cols;
}

long shim_num_parameters(Shim *s) { return (long)s->g.num_parameters; }
real *shim_params(Shim *s) { return s->g.params; }
real *shim_grads(Shim *s) { return s->g.grads; }
real *shim_m(Shim *s) { return s->g.m; }
real *shim_v(Shim *s) { return s->g.v; }

static double forward(Shim *s, const int *inputs, const int *targets, int B, int T, int gradient) {
    s->B = B;
    IN_TEAM {
        gpt_forward(&s->g, inputs, B, T, 1);
        s->loss = gpt_loss(&s->g, targets, B, T, gradient, &s->log_z);
        if (gradient) gpt_backward(&s->g, inputs, B, T);
    }
    return s->loss;
}

double shim_forward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    return forward(s, inputs, targets, B, T, 0);
}

double shim_backward(Shim *s, const int *inputs, const int *targets, int B, int T) {
    return forward(s, inputs, targets, B, T, 1);
}

double shim_total_loss(Shim *s) {                    // of the last full batch
    double z = 0;
    int rows = s->B * s->g.cfg.T;
    for (int i = 0; i < rows; i++) z += (double)s->g.log_z[i] * s->g.log_z[i];
    return s->loss + s->g.cfg.z_loss * z / rows;
}

double shim_log_z(Shim *s) { return s->log_z; }

// The measures of the last forward pass and of the last update
static const Stats *measured(Shim *s) {
    gpt_statistics(&s->g, s->B, s->g.cfg.T, &s->stats);
    return &s->stats;
}

double shim_by_layer(Shim *s, int i, int layer) { return measured(s)->by_layer[i][layer]; }
double shim_act_rms(Shim *s, int i) { return measured(s)->act_rms[i]; }
double shim_mean_logit(Shim *s) { return measured(s)->mean_logit; }

double shim_update(Shim *s, int step) {
    double norm = 0;
    IN_TEAM norm = gpt_update(&s->g, step, &s->stats);
    return norm;
}

double shim_lr(Shim *s, int step) { return learning_rate(&s->g.cfg, step); }

void shim_embedding_backward(real *dwte, const real *dout, const int *tokens,
                             int rows, int C, int V) {
    IN_TEAM embedding_backward(dwte, dout, tokens, rows, C, V);
}

void shim_layernorm_forward(real *out, real *mean, real *rstd, const real *inp,
                            const real *weight, int rows, int C) {
    real *x = (real *)inp;                           // not written to without a branch
    IN_TEAM residual_layernorm_forward(out, x, mean, rstd, x, NULL, weight, rows, C);
}

void shim_layernorm_backward(real *dinp, real *dweight, const real *dout, const real *inp,
                             const real *weight, const real *mean, const real *rstd,
                             int rows, int C) {
    real *partial = (real *)allocate((size_t)ceil_div(rows, CHUNK) * 3 * (size_t)C, sizeof(real));
    memset(dinp, 0, (size_t)rows * (size_t)C * sizeof(real));
    IN_TEAM residual_layernorm_backward(dinp, dweight, dout, inp, weight, mean, rstd, partial,
                                        rows, C);
    free(partial);
}

void shim_gelu_forward(real *out, real *slope, const real *inp, int rows, int C) {
    IN_TEAM gelu_forward(out, slope, inp, rows, C);
}

void shim_gelu_backward(real *dinp, const real *dout, const real *slope, int rows, int C) {
    IN_TEAM gelu_backward(dinp, dout, slope, rows, C);
}

// out, inp (B,T,NH,HS); direction 1: forward, -1: backward
void shim_rope(real *out, const real *inp, int direction, int B, int T, int NH, int HS) {
    real *cosine = (real *)allocate((size_t)T * (size_t)HS, sizeof(real));
    real *sine = cosine + T * HS / 2;
    rope_table(cosine, sine, T, HS);
    for (int row = 0; row < B * T; row++) {
        int at = row * NH * HS, position = row % T * HS / 2;
        rope_row(out + at, inp + at, cosine + position, sine + position, (real)direction, NH, HS);
    }
    free(cosine);
}

static real *scratch_of_all(int T, int HS) {
    size_t threads = (size_t)omp_get_max_threads();
    return (real *)allocate(threads * attention_scratch_size(T, HS), sizeof(real));
}

// largest (NH): of each head, over the batch
void shim_capped_forward(real *out, real *softmax, const real *qk, const real *qkv,
                         double scale, double cap, int B, int T, int NH, int HS, real *largest) {
    real *scratch = scratch_of_all(T, HS);
    real *all = (real *)allocate((size_t)(B * NH), sizeof(real));
    IN_TEAM attention_forward(out, softmax, all, qk, qkv, (real)scale, (real)cap, scratch, 0,
                              B, T, NH, HS);
    for (int i = 0; i < B * NH; i++)
        largest[i % NH] = i < NH ? all[i] : larger(all[i], largest[i % NH]);
    free(scratch);
    free(all);
}

void shim_capped_backward(real *dqkv, const real *dout, const real *out, const real *softmax,
                          const real *qk, const real *qkv, double scale, double cap,
                          int B, int T, int NH, int HS) {
    real *scratch = scratch_of_all(T, HS);
    IN_TEAM attention_backward(dqkv, dout, out, softmax, qk, qkv, (real)scale, (real)cap, scratch,
                               0, B, T, NH, HS);
    free(scratch);
}

// out, slope (n): of the scores s (n)
void shim_soft_cap(real *out, real *slope, const real *s, double cap, int n) {
    for (int i = 0; i < n; i++) out[i] = soft_cap(s[i], (real)cap, slope + i);
}

void shim_gate_forward(real *out, const real *att, const real *gate, int rows, int C) {
    IN_TEAM gate_forward(out, att, gate, rows, C);
}

void shim_gate_backward(real *datt, real *dgate, const real *dout, const real *att,
                        const real *gate, int rows, int C) {
    IN_TEAM gate_backward(datt, dgate, dout, att, gate, rows, C);
}

// The scratch has the size that orthogonalize asks for, and NaN in it.
void shim_orthogonalize(real *x, int rows, int cols) {
    size_t n = (size_t)least(rows, cols), size = (size_t)rows * (size_t)cols;
    size_t extent = 2 * n * n + size;
    real *scratch = (real *)allocate(extent, sizeof(real));
    double *sums = (double *)allocate(size / SUM_CHUNK + 1, sizeof(double));
    for (size_t i = 0; i < extent; i++) scratch[i] = NAN;
    IN_TEAM orthogonalize(x, rows, cols, scratch, sums);
    free(scratch);
    free(sums);
}

void shim_round_to_bf16(real *logits, int rows, int V) {
    IN_TEAM round_to_bf16(logits, rows, V);
}

void shim_cross_entropy(real *logits, double *loss, double *log_z, const int *targets,
                        double z_loss, int rows, int V) {
    real *losses = (real *)allocate((size_t)rows, sizeof(real));
    real *z = (real *)allocate((size_t)rows, sizeof(real));
    IN_TEAM cross_entropy(logits, losses, z, targets, (real)z_loss, 1, rows, V);
    *loss = *log_z = 0;
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
    IN_TEAM {
        #pragma omp taskgroup
        matmul(out, add, trans_a ? transposed(a, M) : matrix(a, K),
               trans_b ? transposed(b, K) : matrix(b, N), M, N, K);
    }
}

// seen (rows,OC): out as the next layer finds it, right after the call
void shim_matmul_forward(real *seen, real *out, const real *inp, const real *weight,
                         int rows, int IC, int OC) {
    IN_TEAM {
        matmul_forward(out, inp, weight, rows, IC, OC);
        memcpy(seen, out, (size_t)rows * (size_t)OC * sizeof(real));
    }
}

// seen (rows,IC) and seen_weight (OC,IC): the same of both gradients
void shim_matmul_backward(real *seen, real *seen_weight, real *dinp, real *dweight,
                          const real *dout, const real *inp, const real *weight,
                          int rows, int IC, int OC) {
    IN_TEAM {
        matmul_backward(dinp, dweight, dout, inp, weight, rows, IC, OC);
        memcpy(seen, dinp, (size_t)rows * (size_t)IC * sizeof(real));
        memcpy(seen_weight, dweight, (size_t)OC * (size_t)IC * sizeof(real));
    }
}

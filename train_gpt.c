// train_gpt.c: a small GPT in C, trained on the CPU. It shows why training a Transformer becomes
// unstable, and what cures it: each cure is a few lines, marked with its flag.
//
// Read it from the top: the layers, each forward then backward; the model, which calls them in
// order; the optimizers, AdamW and Muon; the training loop; main. The matrix multiply is last.
//
// Shapes: B batch, T sequence length, C channels (the width, -d), L layers, NH heads, HS = C/NH
// head size, V vocabulary; rows = B*T; IC, OC channels into and out of a matrix. Arrays are
// row-major: x (B,T,C) has its element (b,t,c) at x[(b*T + t)*C + c]. dx is the gradient of the
// loss with respect to x. A real is a float (a double in the gradient check).
//
// A line marked [flag], or the lines from `[flag` to `flag]`, are what that flag adds to code that
// others use. Functions that only these lines call may be unmarked. gpt.h says what each flag does.
//
// Threads: one thread runs the program. At `omp taskloop` it cuts a loop into tasks, runs them with
// the help of idle threads, and goes on when all are done (with `nogroup`, at once). `omp simd`
// asks for vector instructions. A sum that tasks share is cut at places that do not depend on the
// number of threads, so that results have the same bits with any number.

#include <tgmath.h>        // sqrt, log and fabs of a float return a float
#include "gpt.h"           // Config, parameter_table, learning_rate, muParam's factors
#include "dataloader.h"    // DataLoader: batches of tokens
#include "lib/sweep.h"     // config_parse, checkpoint_*, run_*, Stats, sweep
#include "lib/sample.h"    // sample_text

// The element (i,j) of a matrix is data[i * row + j * col]: row and col are distances, not sizes.
// Exchanging them transposes the matrix without a copy.
typedef struct { const real *data; ptrdiff_t row, col; } Matrix;
static Matrix matrix(const real *data, ptrdiff_t row) { return (Matrix){data, row, 1}; }
static Matrix transposed(const real *data, ptrdiff_t row) { return (Matrix){data, 1, row}; }

// The last section, "Arithmetic", defines these.
// out (M,N) = add + a (M,K) b (K,N). add may be NULL (adds nothing) or out. matmul only starts
// tasks: an `omp taskgroup` around it waits for them. multiply works on the calling thread; the
// rows of its out and add lie ldc apart.
static void matmul(real *out, const real *add, Matrix a, Matrix b, int M, int N, int K);
static void multiply(real *out, const real *add, ptrdiff_t ldc, Matrix a, Matrix b,
                     int M, int N, int K);
// out (cols,rows) = in (rows,cols) transposed; the rows of out lie ldo apart, those of in ldi.
static void transpose(real *out, ptrdiff_t ldo, const real *in, ptrdiff_t ldi, int rows, int cols);
static inline real row_sum(const real *x, int n);    // sum of n values; dot, max likewise
static inline real row_dot(const real *x, const real *y, int n);
static inline real row_max(const real *x, int n);
// The sum of squares of x (n), in double, since the square of a float may overflow; sums
// (n / SUM_CHUNK + 1) is scratch.
enum { SUM_CHUNK = 4096 };                           // values that a task sums
static double sum_squares(const real *x, size_t n, double *sums);
// Takes x (rows,cols) = U S V^T to about U V^T: singular values become 0.7 to 1.2, except those
// that are tiny beside the others. scratch
// (2,n,n) and (rows,cols), where n is the shorter side; sums (rows * cols / SUM_CHUNK + 1)
static void orthogonalize(real *x, int rows, int cols, real *scratch, double *sums);
static inline real exponential(real x);              // e^x, for x <= 0
static inline real reciprocal(real x);               // 1/x, for 1 <= x <= 2
static int least(int a, int b) { return a < b ? a : b; }
static real larger(real a, real b) { return a > b ? a : b; }    // b if a is NaN
static int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------
// Layers, each forward then backward

// out (rows,C): for each token of tokens (rows), its row of wte (V,C), the token embedding
static void embedding_forward(real *out, const int *tokens, const real *wte, int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        memcpy(out + (size_t)i * C, wte + (size_t)tokens[i] * C, (size_t)C * sizeof(real));
}

// Sets row v of dwte (V,C) to the sum of dout (rows,C) over the positions where tokens (rows) is v.
// Each task takes some of the channels: if it took some of the rows, two tasks could add to the
// same row of dwte at once.
static void embedding_backward(real *dwte, const real *dout, const int *tokens,
                               int rows, int C, int V) {
    enum { CHANNELS = 32 };                          // per task: two cache lines of floats
    #pragma omp taskloop
    for (int from = 0; from < C; from += CHANNELS) {
        int end = least(C, from + CHANNELS);
        for (int v = 0; v < V; v++)
            for (int c = from; c < end; c++) dwte[(size_t)v * C + c] = 0;
        for (int i = 0; i < rows; i++)
            for (int c = from; c < end; c++)
                dwte[(size_t)tokens[i] * C + c] += dout[(size_t)i * C + c];
    }
}

// LayerNorm without a bias (Ba et al. 2016) of one row, x (C) and weight (C):
//   out = weight * n, where n = (x - mean) * rstd and rstd = 1 / sqrt(variance + 1e-6)
static void layernorm_row(real *out, real *mean, real *rstd, const real *x, const real *weight,
                          int C) {
    real m = row_sum(x, C) / C;
    #pragma omp simd
    for (int j = 0; j < C; j++) out[j] = x[j] - m;
    real variance = row_dot(out, out, C) / C;
    // Makes r NaN if the squares overflow (0 * infinity); otherwise 0 * variance adds 0. Without
    // it r would be 0, the logits 0 and the loss log V: a broken run would look sound.
    real r = 1 / sqrt(variance + (real)1e-6) + 0 * variance;
    #pragma omp simd
    for (int j = 0; j < C; j++) out[j] = weight[j] * (out[j] * r);
    *mean = m;
    *rstd = r;
}

// The gradients of one row; dx, add, dout, x, weight, dweight (C). With g = dout * weight:
//   dx = add + rstd * (g - average(g) - n * average(g * n));  dweight += dout * n
// The averages over the row are there because the mean and rstd depend on every x too. add may be
// NULL or dx, dx may be dout. scratch (2,C).
static void layernorm_row_backward(real *dx, const real *add, real *dweight, const real *dout,
                                   const real *x, const real *weight, real mean, real rstd,
                                   real *scratch, int C) {
    real *n = scratch, *g = scratch + C;
    #pragma omp simd
    for (int j = 0; j < C; j++) {
        n[j] = (x[j] - mean) * rstd;
        g[j] = dout[j] * weight[j];
        dweight[j] += dout[j] * n[j];
    }
    real mean_g = row_sum(g, C) / C;
    real mean_gn = row_dot(g, n, C) / C;
    #pragma omp simd
    for (int j = 0; j < C; j++)
        dx[j] = (add ? add[j] : 0) + rstd * (g[j] - mean_g - n[j] * mean_gn);
}

// Adds the output of a branch to the residual stream, x (rows,C) = inp + branch, and normalizes
// each row, out (rows,C) = LayerNorm(x). branch may be NULL: then x must be inp. weight (C); mean,
// rstd (rows)
static void residual_layernorm_forward(real *out, real *x, real *mean, real *rstd,
                                       const real *inp, const real *branch, const real *weight,
                                       int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++) {
        size_t at = (size_t)i * C;
        if (branch)
            for (size_t j = at; j < at + C; j++) x[j] = inp[j] + branch[j];
        layernorm_row(out + at, mean + i, rstd + i, x + at, weight, C);
    }
}

// The gradient of a norm's weight sums over rows: a task sums the rows of a chunk, then the chunks
// are added in their order, whatever the number of threads.
enum { CHUNK = 64 };                                 // rows

// out (n) = the sum over chunks of the first n values of partial (chunks,stride)
static void sum_chunks(real *out, const real *partial, size_t stride, int chunks, int n) {
    memcpy(out, partial, (size_t)n * sizeof(real));
    for (int chunk = 1; chunk < chunks; chunk++)
        for (int j = 0; j < n; j++) out[j] += partial[chunk * stride + j];
}

// Adds to dx (rows,C) the gradient that reaches x through its LayerNorm; sets dweight (C). dout, x
// (rows,C); weight (C); mean, rstd (rows); partial (chunks,3,C): a chunk's dweight and the scratch
// of a row
static void residual_layernorm_backward(real *dx, real *dweight, const real *dout, const real *x,
                                        const real *weight, const real *mean, const real *rstd,
                                        real *partial, int rows, int C) {
    int chunks = ceil_div(rows, CHUNK);
    #pragma omp taskloop
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *dw = partial + (size_t)chunk * 3 * C;
        memset(dw, 0, (size_t)C * sizeof(real));
        for (int i = chunk * CHUNK; i < least(rows, (chunk + 1) * CHUNK); i++) {
            size_t at = (size_t)i * C;
            layernorm_row_backward(dx + at, dx + at, dw, dout + at, x + at, weight, mean[i],
                                   rstd[i], dw + C, C);
        }
    }
    sum_chunks(dweight, partial, (size_t)3 * C, chunks, C);
}

// out (rows,OC) = inp (rows,IC) weight^T; weight (OC,IC)
static void matmul_forward(real *out, const real *inp, const real *weight,
                           int rows, int IC, int OC) {
    #pragma omp taskgroup
    matmul(out, NULL, matrix(inp, IC), transposed(weight, IC), rows, OC, IC);
}

// dinp (rows,IC) = dout (rows,OC) weight;  dweight (OC,IC) = dout^T inp
static void matmul_backward(real *dinp, real *dweight, const real *dout, const real *inp,
                            const real *weight, int rows, int IC, int OC) {
    #pragma omp taskgroup
    {
        matmul(dinp, NULL, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
        matmul(dweight, NULL, transposed(dout, OC), matrix(inp, IC), OC, IC, rows);
    }
}

// Like matmul_backward, for another layer that reads the same inp: adds to dinp, does not set it.
static void matmul_backward_add(real *dinp, real *dweight, const real *dout,    // [gate
                                const real *inp, const real *weight, int rows, int IC, int OC) {
    #pragma omp taskgroup
    {
        matmul(dinp, dinp, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
        matmul(dweight, NULL, transposed(dout, OC), matrix(inp, IC), OC, IC, rows);
    }
}                                                                               // gate]

// Rotary positions (Su et al. 2021) of the heads of one token, inp (NH,HS): the pair (i, i + HS/2)
// of each head turns by an angle that grows with the position, forward if direction is 1, back if
// -1. out may be inp. cosine, sine (HS/2): of the angles at this position.
static void rope_row(real *out, const real *inp, const real *cosine, const real *sine,
                     real direction, int NH, int HS) {
    int half = HS / 2;
    for (int h = 0; h < NH; h++) {
        const real *x = inp + h * HS;
        real *y = out + h * HS;
        #pragma omp simd
        for (int i = 0; i < half; i++) {
            real x0 = x[i], x1 = x[i + half], s = direction * sine[i];
            y[i] = x0 * cosine[i] - x1 * s;
            y[i + half] = x0 * s + x1 * cosine[i];
        }
    }
}

// Replaces q and k in qkv (rows,3,C), head by head, by g(q) and g(k) (figure 10, section 3.3):
//   g(z) = sqrt(kappa) z / RMS(z), where RMS(z) = sqrt(average(z^2) + 1e-6)
// If their directions are unrelated, the standard deviation of the score q.k / sqrt(HS) is kappa;
// its largest possible value is kappa sqrt(HS). factor (rows,2,NH) = sqrt(kappa) / RMS(z).
static void kappa_forward(real *qkv, real *factor, real kappa, int rows,        // [kappa
                          int NH, int HS) {
    #pragma omp taskloop
    for (size_t i = 0; i < (size_t)rows * 2 * NH; i++) {     // the heads of q and k
        real *z = qkv + (i / (2 * NH) * 3 * NH + i % (2 * NH)) * HS;
        real square = row_dot(z, z, HS) / HS;
        // 0 * square: as in layernorm_row
        factor[i] = sqrt(kappa / (square + (real)1e-6)) + 0 * square;
        for (int j = 0; j < HS; j++) z[j] *= factor[i];
    }
}                                                                               // kappa]

// Converts the gradients of g in dqkv (rows,3,C) to those of z, in place, from g in qkv (rows,3,C):
//   dz = factor * (dg - g * average(dg * g) / kappa)
static void kappa_backward(real *dqkv, const real *qkv, const real *factor,     // [kappa
                           real kappa, int rows, int NH, int HS) {
    #pragma omp taskloop
    for (size_t i = 0; i < (size_t)rows * 2 * NH; i++) {
        size_t at = (i / (2 * NH) * 3 * NH + i % (2 * NH)) * HS;
        real mean = row_dot(dqkv + at, qkv + at, HS) / HS;
        for (size_t j = at; j < at + HS; j++)
            dqkv[j] = factor[i] * (dqkv[j] - qkv[j] * mean / kappa);
    }
}                                                                               // kappa]

// Computes the q and k that attention sees, qk (B,T,2,C), from qkv (B,T,3,C), the output of the
// linear layer c_attn. qk-norm applies LayerNorm to each head, so that scores stay small however
// large the weights of c_attn grow. It normalizes `over` values together: HS or, with -qk_norm
// model, all C. The heads of a layer share q_weight and k_weight (over), which are NULL without
// qk-norm. RoPE then turns the heads. mean, rstd (B,T,2,NH): of qk-norm; cosine, sine (T,HS/2).
static void qk_norm_rope_forward(real *qk, real *mean, real *rstd, const real *qkv,
                                 const real *q_weight, const real *k_weight, int over,
                                 const real *cosine, const real *sine,
                                 int B, int T, int NH, int HS) {
    int C = NH * HS;
    #pragma omp taskloop
    for (int row = 0; row < B * T; row++)
        for (int i = 0; i < 2; i++) {                // q, then k
            const real *from = qkv + ((size_t)row * 3 + i) * C;
            real *to = qk + ((size_t)row * 2 + i) * C;
            size_t angles = (size_t)(row % T) * (HS / 2);
            if (q_weight) {                                                     // [qk_norm
                size_t head = ((size_t)row * 2 + i) * NH;
                for (int h = 0; h < C / over; h++)
                    layernorm_row(to + h * over, mean + head + h, rstd + head + h, from + h * over,
                                  i ? k_weight : q_weight, over);
                from = to;
            }                                                                   // qk_norm]
            rope_row(to, from, cosine + angles, sine + angles, 1, NH, HS);
        }
}

// Converts the gradients of qk, held in the q and k parts of dqkv (B,T,3,C), to those of qkv, in
// place. First rotates back (a rotation's transpose is its inverse), then goes back through
// qk-norm. dq_weight, dk_weight (over): NULL without qk-norm. partial (chunks,4,over): a chunk's
// dq_weight and dk_weight, then scratch (2,over).
static void qk_norm_rope_backward(real *dqkv, real *dq_weight, real *dk_weight, const real *qkv,
                                  const real *mean, const real *rstd, const real *q_weight,
                                  const real *k_weight, int over, const real *cosine,
                                  const real *sine, real *partial,
                                  int B, int T, int NH, int HS) {
    int C = NH * HS, rows = B * T, chunks = ceil_div(rows, CHUNK);
    #pragma omp taskloop
    for (int chunk = 0; chunk < chunks; chunk++) {
        real *dw = partial + (size_t)chunk * 4 * over;
        memset(dw, 0, (size_t)2 * over * sizeof(real));
        for (int row = chunk * CHUNK; row < least(rows, (chunk + 1) * CHUNK); row++)
            for (int i = 0; i < 2; i++) {            // q, then k
                size_t at = ((size_t)row * 3 + i) * C;
                size_t angles = (size_t)(row % T) * (HS / 2);
                real *d = dqkv + at;
                rope_row(d, d, cosine + angles, sine + angles, -1, NH, HS);
                if (q_weight) {                                                 // [qk_norm
                    size_t head = ((size_t)row * 2 + i) * NH;
                    for (int h = 0; h < C / over; h++)
                        layernorm_row_backward(d + h * over, NULL, dw + i * over, d + h * over,
                                               qkv + at + h * over, i ? k_weight : q_weight,
                                               mean[head + h], rstd[head + h], dw + 2 * over, over);
                }                                                               // qk_norm]
            }
    }
    if (q_weight) {                                                             // [qk_norm
        sum_chunks(dq_weight, partial, (size_t)4 * over, chunks, over);
        sum_chunks(dk_weight, partial + over, (size_t)4 * over, chunks, over);
    }                                                                           // qk_norm]
}

// Causal attention: out_i = sum over j <= i of p_ij v_j, where p_i is the softmax over j of the
// scores (attention logits) s_ij = scale * dot(q_i, k_j). A task computes a head of a sequence.
// If cap is not 0, cap tanh(s_ij / cap) takes the place of s_ij in p_ij: the dot products, capped
// at cap / scale. If relu2 is not 0, p_ij is relu2 * max(0, s_ij)^2 instead.
//
// Keeps the scores of at most QB queries per thread, not of all T (Dao et al. 2022). The backward
// pass recomputes p from softmax (B,NH,T,2), which holds two numbers per query: the largest score,
// and 1 / the sum of exp(score - largest). One number, the log of the sum of exp(score), would not
// be enough: near 1e6 a float rounds it by up to 0.03, which puts p off by 3%.
enum { QB = 64 };                                    // queries in a block

// The memory of one thread while it runs a task. A block has `rows` queries, which see `cols` keys.
typedef struct {
    real *p;                                         // (rows,cols) scores, then exp or p
    real *dp;                                        // (rows,cols) dp, then ds: backward only
    real *k_t, *v_t;                                 // (HS,T) k and v of this head, transposed
    real *slope;                                     // (T) the cap's, of a query: backward only
    // (2T) T zeros, then T times -infinity. Adding mask[T - 1 - i + j] to the score of query i and
    // key j hides the key if j > i.
    real *mask;
} AttentionScratch;

// The reals that one thread needs
static size_t attention_scratch_size(int T, int HS) { return (size_t)(2 * (QB + HS) + 3) * T; }

// This thread's part of memory (threads, attention_scratch_size). A task of attention stays on its
// thread and never waits, so no other task uses that part before it ends.
static AttentionScratch attention_scratch(real *memory, int T, int HS) {
    AttentionScratch s;
    s.p = memory + omp_get_thread_num() * attention_scratch_size(T, HS);
    s.dp = s.p + (size_t)QB * T;
    s.k_t = s.dp + (size_t)QB * T;
    s.v_t = s.k_t + (size_t)HS * T;
    s.slope = s.v_t + (size_t)HS * T;
    s.mask = s.slope + T;
    for (int t = 0; t < T; t++) {
        s.mask[t] = 0;
        s.mask[T + t] = -INFINITY;
    }
    return s;
}

// Caps a score (Bello et al. 2016; Gemma 2, arXiv 2408.00118): returns cap tanh(s / cap).
// *slope is its derivative, 1 - tanh^2. With e = exp(-2 |s| / cap), tanh is (1 - e) / (1 + e), and
// its derivative 4 e / (1 + e)^2, which is right also where tanh rounds to 1.
static inline real soft_cap(real s, real cap, real *slope) {                    // [attn_cap
    real e = exponential(-2 * fabs(s) / cap), inverse = reciprocal(1 + e);
    *slope = 4 * e * inverse * inverse;
    return (s < 0 ? -cap : cap) * (1 - e) * inverse;
}                                                                               // attn_cap]

// out (B,T,C) from q and k in qk (B,T,2,C) and v in qkv (B,T,3,C). max_logit (B,NH), unless NULL:
// the largest |s_ij| of each head, before the cap. scratch (threads, attention_scratch_size).
static void attention_forward(real *out, real *softmax, real *max_logit, const real *qk,
                              const real *qkv, real scale, real cap, real *scratch, real relu2,
                              int B, int T, int NH, int HS) {
    int C = NH * HS;
    int block = T > 2 * QB ? QB : QB / 2;            // shorter blocks mask fewer scores
    #pragma omp taskloop
    for (int head = 0; head < B * NH; head++) {
        // the first row of this sequence, the first channel of this head
        size_t first = (size_t)(head / NH) * T, channel = (size_t)(head % NH) * HS;
        const real *q = qk + first * 2 * C + channel, *k = q + C;
        const real *v = qkv + first * 3 * C + 2 * C + channel;
        real *o = out + first * C + channel;
        real largest = 0;
        AttentionScratch s = attention_scratch(scratch, T, HS);
        transpose(s.k_t, T, k, 2 * C, T, HS);        // once; multiply would for each block
        // queries i0 .. i0+rows-1, keys 0 .. cols-1
        for (int i0 = 0; i0 < T; i0 += block) {
            int rows = least(block, T - i0), cols = i0 + rows;
            real *stats = softmax + 2 * ((size_t)head * T + i0);
            // 1. products q k^T
            multiply(s.p, NULL, cols, matrix(q + (size_t)i0 * 2 * C, 2 * C), matrix(s.k_t, T),
                     rows, cols, HS);
            for (int i = 0; i < rows; i++) {
                real *p = s.p + (size_t)i * cols, *mask = s.mask + T - 1 - (i0 + i);
                // 2. the largest score; cap, scale and mask
                if (max_logit)
                    for (int j = 0; j <= i0 + i; j++) largest = larger(fabs(scale * p[j]), largest);
                if (cap > 0)                                                    // [attn_cap
                    for (int j = 0; j < cols; j++)
                        p[j] = soft_cap(p[j], cap / scale, s.slope + j);        // attn_cap]
                for (int j = 0; j < cols; j++) p[j] = scale * p[j] + mask[j];
                real top = row_max(p, cols);
                if (relu2 > 0) {                                                // [attention
                    for (int j = 0; j < cols; j++) p[j] = p[j] < 0 ? 0 : p[j] * p[j];
                    stats[2 * i + 1] = relu2;
                    continue;
                }                                                               // attention]
                // 3. exponentials and their sum
                for (int j = 0; j < cols; j++) p[j] = exponential(p[j] - top);
                stats[2 * i] = top;
                stats[2 * i + 1] = 1 / row_sum(p, cols);
            }
            // 4. out = p v / sum
            real *oi = o + (size_t)i0 * C;
            multiply(oi, NULL, C, matrix(s.p, cols), matrix(v, 3 * C), rows, HS, cols);
            for (int i = 0; i < rows; i++)
                for (int c = 0; c < HS; c++) oi[(size_t)i * C + c] *= stats[2 * i + 1];
        }
        if (max_logit) max_logit[head] = largest;
    }
}

// dqkv (B,T,3,C), the gradients of q and k in qk and of v in qkv, from dout and out (B,T,C):
//   dp_ij = dot(dout_i, v_j);  ds_ij = scale * p_ij (dp_ij - dot(dout_i, out_i))
//   dq = ds k;  dk = ds^T q;  dv = p^T dout
// With squares, ds_ij = scale * 2 relu2 max(0, s_ij) dp_ij. With a cap, ds_ij is also multiplied by
// the cap's derivative.
// ds_ij is the gradient of dot(q_i, k_j), not of s_ij: it includes the scale. Softmax's backward
// pass subtracts from dp_ij the sum over j of p_ij dp_ij. This equals dot(dout_i, out_i), since
// out_i = sum over j of p_ij v_j.
static void attention_backward(real *dqkv, const real *dout, const real *out, const real *softmax,
                               const real *qk, const real *qkv, real scale, real cap,
                               real *scratch, real relu2, int B, int T, int NH, int HS) {
    int C = NH * HS;
    int block = T > 2 * QB ? QB : QB / 2, last = (T - 1) / block * block;
    #pragma omp taskloop
    for (int head = 0; head < B * NH; head++) {
        size_t first = (size_t)(head / NH) * T, channel = (size_t)(head % NH) * HS;
        const real *q = qk + first * 2 * C + channel, *k = q + C;
        const real *v = qkv + first * 3 * C + 2 * C + channel;
        real *dq = dqkv + first * 3 * C + channel, *dk = dq + C, *dv = dk + C;
        AttentionScratch s = attention_scratch(scratch, T, HS);
        transpose(s.k_t, T, k, 2 * C, T, HS);
        transpose(s.v_t, T, v, 3 * C, T, HS);
        // starts with the last block, which sees all keys and so writes all of dk and dv; the
        // blocks before it add to them
        for (int i0 = last; i0 >= 0; i0 -= block) {
            int rows = least(block, T - i0), cols = i0 + rows;
            size_t at = (first + i0) * C + channel;
            const real *oi = out + at, *doi = dout + at, *qi = q + (size_t)i0 * 2 * C;
            const real *stats = softmax + 2 * ((size_t)head * T + i0);
            // 1. products q k^T, dp = dout v^T
            multiply(s.p, NULL, cols, matrix(qi, 2 * C), matrix(s.k_t, T), rows, cols, HS);
            multiply(s.dp, NULL, cols, matrix(doi, C), matrix(s.v_t, T), rows, cols, HS);
            // 2. p and ds, which takes the place of dp
            for (int i = 0; i < rows; i++) {
                real *p = s.p + (size_t)i * cols, *dp = s.dp + (size_t)i * cols;
                real *mask = s.mask + T - 1 - (i0 + i);
                if (cap > 0)                                                    // [attn_cap
                    for (int j = 0; j < cols; j++)
                        p[j] = soft_cap(p[j], cap / scale, s.slope + j);        // attn_cap]
                real top = stats[2 * i], inverse = stats[2 * i + 1];
                real dot = row_dot(oi + (size_t)i * C, doi + (size_t)i * C, HS);
                if (relu2 > 0)                                                  // [attention
                    for (int j = 0; j < cols; j++) {
                        real score = scale * p[j] + mask[j];
                        score = score < 0 ? 0 : score;
                        p[j] = relu2 * score * score;
                        dp[j] *= 2 * relu2 * score * scale;
                    }
                else                                                            // attention]
                    #pragma omp simd
                    for (int j = 0; j < cols; j++) {
                        p[j] = exponential(scale * p[j] + mask[j] - top) * inverse;
                        dp[j] = scale * p[j] * (dp[j] - dot);
                    }
                if (cap > 0)                                                    // [attn_cap
                    for (int j = 0; j < cols; j++) dp[j] *= s.slope[j];         // attn_cap]
            }
            // 3. dq = ds k, dk += ds^T q
            const real *dk_add = i0 == last ? NULL : dk, *dv_add = i0 == last ? NULL : dv;
            multiply(dq + (size_t)i0 * 3 * C, NULL, 3 * C, matrix(s.dp, cols), matrix(k, 2 * C),
                     rows, HS, cols);
            multiply(dk, dk_add, 3 * C, transposed(s.dp, cols), matrix(qi, 2 * C), cols, HS, rows);
            // 4. dv += p^T dout
            multiply(dv, dv_add, 3 * C, transposed(s.p, cols), matrix(doi, C), cols, HS, rows);
        }
    }
}

// Returns the sigmoid, 1 / (1 + exp(-x)). *slope is its derivative. e = exp(-|x|) cannot overflow.
static inline real sigmoid(real x, real *slope) {
    real e = exponential(-fabs(x)), inverse = reciprocal(1 + e);
    *slope = e * inverse * inverse;
    return (x > 0 ? 1 : e) * inverse;
}

// Gated attention (Qiu et al. 2025, arXiv 2505.06708): out = att * sigmoid(gate), element by
// element; all (rows,C). gate is a linear layer of attention's input.
static void gate_forward(real *out, const real *att, const real *gate, int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * C; j < (size_t)(i + 1) * C; j++) {
            real slope;
            out[j] = att[j] * sigmoid(gate[j], &slope);
        }
}

// dgate = dout * att * sigmoid'(gate);  datt = dout * sigmoid(gate). datt may be dout.
static void gate_backward(real *datt, real *dgate, const real *dout, const real *att,
                          const real *gate, int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * C; j < (size_t)(i + 1) * C; j++) {
            real slope, s = sigmoid(gate[j], &slope), d = dout[j];
            dgate[j] = d * att[j] * slope;
            datt[j] = d * s;
        }
}

// GELU in its tanh form (Hendrycks and Gimpel 2016), computed so that it is right at any x:
//   gelu(x) = x (1 + tanh u) / 2 = x s, where s = 1 / (1 + exp(-2u)) and 2u = x (A + B x^2)
// With e = exp(-|2u|), which is at most 1: s = 1/(1 + e) or e/(1 + e), and s (1 - s) = e/(1 + e)^2.
// Computes no 1 - s: for large x, rounding would leave 6e-8 instead of 0, and the gradient
// multiplies 1 - s by x (2u)' = A x + 3 B x^3. Caps |x| at 30, where e is 0 already, so that e x^2
// is never 0 * infinity.
#define GELU_A ((real)1.5957691216057308)            // 2 sqrt(2/pi)
#define GELU_B (GELU_A * (real)0.044715)

// inp, out, slope (rows,C): out = gelu(inp), and slope = gelu'(inp) = s + x s (1 - s) (2u)', all
// that the backward pass needs. Computing it here reuses e.
static void gelu_forward(real *out, real *slope, const real *inp, int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++) {
        size_t at = (size_t)i * C;
        #pragma omp simd
        for (size_t j = at; j < at + C; j++) {
            real x = inp[j];
            real a = fabs(x) < 30 ? fabs(x) : 30;
            real a2 = a * a;
            real e = exponential(-a * (GELU_A + GELU_B * a2));
            real inverse = reciprocal(1 + e);
            real s = (x > 0 ? 1 : e) * inverse;
            out[j] = x * s;
            slope[j] = s + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * a2);
        }
    }
}

// dinp (rows,C) = dout * slope. dinp may be dout.
static void gelu_backward(real *dinp, const real *dout, const real *slope, int rows, int C) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * C; j < (size_t)(i + 1) * C; j++) dinp[j] = dout[j] * slope[j];
}

// fc (rows,OC) = inp (rows,IC) weight^T;  out (rows,OC) = gelu(fc), slope (rows,OC) = gelu'(fc)
static void matmul_gelu_forward(real *out, real *slope, real *fc, const real *inp,
                                const real *weight, int rows, int IC, int OC) {
    matmul_forward(fc, inp, weight, rows, IC, OC);
    gelu_forward(out, slope, fc, rows, OC);
}

// Goes back through the product after GELU, gelu (rows,IC) weight^T, and then through GELU. Unlike
// matmul_gelu_forward, leaves the product before GELU to matmul_backward:
//   dfc (rows,IC) = slope * (dout (rows,OC) weight);  dweight (OC,IC) = dout^T gelu
static void matmul_gelu_backward(real *dfc, real *dweight, const real *dout, const real *slope,
                                 const real *gelu, const real *weight, int rows, int IC, int OC) {
    matmul_backward(dfc, dweight, dout, gelu, weight, rows, IC, OC);
    gelu_backward(dfc, dfc, slope, rows, IC);
}

// Rounds logits (rows,V) to bfloat16, the upper half of a float's bits: to the nearest, and to the
// even one of two as near. The backward pass takes the gradient of the rounded logits for theirs.
static void round_to_bf16(real *logits, int rows, int V) {                      // [bf16_logits
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * V; j < (size_t)(i + 1) * V; j++) {
            float x = (float)logits[j];
            uint32_t bits;
            memcpy(&bits, &x, sizeof bits);
            bits += 0x7fff + (bits >> 16 & 1);
            bits &= 0xffff0000;
            memcpy(&x, &bits, sizeof x);
            if (!isnan(logits[j])) logits[j] = x;
        }
}                                                                               // bf16_logits]

// Computes loss and gradient of each row of logits (rows,V) while it is in the cache. With
// Z = sum of exp(logits) and p = exp(logits) / Z:
//   losses (rows) = log Z - logit[target];  log_z (rows) = log Z
// Overwrites the logits: with scratch values if gradient is 0; if it is 1, with the gradient of
// mean(losses) + z_loss * mean(log_z^2),
//   dlogits = ((1 + 2 z_loss log Z) p - onehot(target)) / rows
static void cross_entropy(real *logits, real *losses, real *log_z, const int *targets, real z_loss,
                          int gradient, int rows, int V) {
    #pragma omp taskloop
    for (int i = 0; i < rows; i++) {
        real *x = logits + (size_t)i * V;
        real top = row_max(x, V), target = x[targets[i]];
        for (int j = 0; j < V; j++) x[j] = exponential(x[j] - top);
        real sum = row_sum(x, V);
        log_z[i] = top + log(sum);
        losses[i] = top - target + log(sum);         // not log_z - target, which rounds more
        if (!gradient) continue;
        real weight = 1;                             // of p
        weight += 2 * z_loss * log_z[i];                                        // [z_loss]
        real factor = weight / sum / rows;
        for (int j = 0; j < V; j++) x[j] *= factor;
        x[targets[i]] -= (real)1 / rows;
    }
}

// ---------------------------------------------------------------------------
// The model

// One layer: its weights, their gradients, what its backward pass needs, and a measurement
typedef struct {
    real *w[NUM_KINDS], *dw[NUM_KINDS];              // by kind; NULL where the model has none
    real *x;                                         // (B,T,C) the residual stream before the layer
    real *ln_1;                                      // (B,T,C)
    real *ln_1_mean, *ln_1_rstd;                     // (B,T)
    real *qkv;                                       // (B,T,3,C)
    real *qk_mean, *qk_rstd;                         // (B,T,2,NH)
    real *qk;                                        // (B,T,2,C) q and k as attention sees them
    real *softmax;                                   // (B,NH,T,2)
    real *max_logit;                                 // (B,NH) largest |score|, if measured
    real *att;                                       // (B,T,C)
    real *gate, *gated;                              // (B,T,C) before its sigmoid; att times it
    real *post[2];                                   // (B,T,C) inputs of the norms post_1, post_2
    real *post_mean[2], *post_rstd[2];               // (B,T)
    real *x_mid;                                     // (B,T,C) the residual stream after attention
    real *ln_2;                                      // (B,T,C)
    real *ln_2_mean, *ln_2_rstd;                     // (B,T)
    real *gelu;                                      // (B,T,4C)
    real *slope;                                     // (B,T,4C) GELU's derivative
} Layer;

typedef struct {
    Config cfg;
    int V;
    Parameter table[NUM_KINDS];
    size_t num_parameters;                           // N
    real *params, *grads;                            // (N)
    real *m, *v;                                     // (N) AdamW's moments
    real *w[NUM_KINDS], *dw[NUM_KINDS];              // for WTE, LN_F and LM_HEAD: one copy each
    Layer *layers;                                   // (L)
    real *cosine, *sine;                             // (T,HS/2) RoPE's table
    real *embedded;                                  // (B,T,C) the first layer's x
    real *branch;                                    // (B,T,C) output of attention or of an MLP
    real *x;                                         // (B,T,C) the residual stream at the end
    real *ln_f;                                      // (B,T,C)
    real *ln_f_mean, *ln_f_rstd;                     // (B,T)
    real *logits;                                    // (B,T,V); gpt_loss overwrites them
    real *losses, *log_z;                            // (B,T)
    real *fc;                                        // (B,T,4C) before GELU, of the layer at hand
    real *dx;                                        // (B,T,C) gradient of the residual stream
    real *dnorm;                                     // (B,T,C) gradient of a norm's output or att
    real *dqkv;                                      // (B,T,3,C)
    real *dgate;                                     // (B,T,C)
    real *dpost;                                     // (B,T,C) gradient of post
    real *dfc;                                       // (B,T,4C)
    real *scratch;                                   // (threads, attention_scratch_size)
    real *muon;                                      // (10,C,C) of Muon: x, and scratch
    real *partial;                                   // (chunks,4,C) for any norm's backward pass
    double *sums;                                    // (longest array summed / SUM_CHUNK + 1)
    double squares[NUM_SUMS];                        // sums over the activations, if measured
    void *memory;                                    // holds the arrays above, except layers
    double bytes;                                    // its size: a double does not overflow
} GPT;

enum { CACHE_LINE = 64 };                            // bytes. A vector that straddles two is slow

// Reserves `count` reals of the model's memory, from the start of a cache line on. A free line
// follows them: arrays whose size is a power of two would otherwise compete for the same places in
// the cache. While memory is NULL, only counts the bytes.
static void *reserve(GPT *g, double count) {
    char *at = g->memory ? (char *)g->memory + (size_t)g->bytes : NULL;
    g->bytes += (ceil(count * sizeof(real) / CACHE_LINE) + 1) * CACHE_LINE;
    return at;
}

// Finds the tensors of layer l in the array `all` (N), the weights or their gradients. out[k] is
// the one of kind k, or NULL where there is none.
static void find_tensors(const GPT *g, real *all, int l, real *out[NUM_KINDS]) {
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        out[k] = all && l < p->copies ? all + p->offset + (size_t)l * parameter_size(p) : NULL;
    }
}

// Places every array in memory or, if that is NULL, only counts the bytes that they take. Allocates
// g->layers in both cases: call gpt_free. Sizes are doubles, since a product could overflow.
static void gpt_layout(GPT *g, const Config *cfg, int V, int B, int T, void *memory) {
    double BT = (double)B * T, C = cfg->d, NH = cfg->heads, HS = C / NH;
    memset(g, 0, sizeof *g);
    g->cfg = *cfg;
    g->cfg.vocab = g->V = V;
    g->memory = memory;
    g->bytes = CACHE_LINE - (double)((uintptr_t)memory % CACHE_LINE);    // to the next cache line
    g->num_parameters = parameter_table(cfg, V, g->table);
    double N = (double)g->num_parameters;
    g->params = reserve(g, N);
    g->grads = reserve(g, N);
    g->m = reserve(g, N);
    g->v = reserve(g, N);
    g->cosine = reserve(g, T * HS / 2);
    g->sine = reserve(g, T * HS / 2);
    g->embedded = reserve(g, BT * C);
    g->branch = reserve(g, BT * C);
    g->layers = (Layer *)allocate((size_t)cfg->layers, sizeof(Layer));
    for (int l = 0; l < cfg->layers; l++) {
        Layer *a = &g->layers[l];
        find_tensors(g, g->params, l, a->w);
        find_tensors(g, g->grads, l, a->dw);
        if (l == 0) a->x = g->embedded;
        else a->x = reserve(g, BT * C);
        a->ln_1 = reserve(g, BT * C);
        a->ln_1_mean = reserve(g, BT);
        a->ln_1_rstd = reserve(g, BT);
        a->qkv = reserve(g, BT * 3 * C);
        a->qk_mean = reserve(g, BT * 2 * NH);
        a->qk_rstd = reserve(g, BT * 2 * NH);
        a->qk = reserve(g, BT * 2 * C);
        a->softmax = reserve(g, BT * NH * 2);
        a->max_logit = reserve(g, B * NH);
        a->att = reserve(g, BT * C);
        if (cfg->gate) {                                                        // [gate
            a->gate = reserve(g, BT * C);
            a->gated = reserve(g, BT * C);
        }                                                                       // gate]
        for (int i = 0; cfg->peri_ln && i < 2; i++) {                           // [peri_ln
            a->post[i] = reserve(g, BT * C);
            a->post_mean[i] = reserve(g, BT);
            a->post_rstd[i] = reserve(g, BT);
        }                                                                       // peri_ln]
        a->x_mid = reserve(g, BT * C);
        a->ln_2 = reserve(g, BT * C);
        a->ln_2_mean = reserve(g, BT);
        a->ln_2_rstd = reserve(g, BT);
        a->gelu = reserve(g, BT * 4 * C);
        a->slope = reserve(g, BT * 4 * C);
    }
    g->x = cfg->layers ? reserve(g, BT * C) : g->embedded;
    find_tensors(g, g->params, 0, g->w);
    find_tensors(g, g->grads, 0, g->dw);
    g->ln_f = reserve(g, BT * C);
    g->ln_f_mean = reserve(g, BT);
    g->ln_f_rstd = reserve(g, BT);
    g->logits = reserve(g, BT * V);
    g->losses = reserve(g, BT);
    g->log_z = reserve(g, BT);
    g->fc = reserve(g, BT * 4 * C);
    g->dx = reserve(g, BT * C);
    g->dnorm = reserve(g, BT * C);
    g->dqkv = reserve(g, BT * 3 * C);
    if (cfg->gate) g->dgate = reserve(g, BT * C);                               // [gate]
    if (cfg->peri_ln) g->dpost = reserve(g, BT * C);                            // [peri_ln]
    g->dfc = reserve(g, BT * 4 * C);
    g->scratch = reserve(g, omp_get_max_threads() * (double)attention_scratch_size(T, (int)HS));
    if (cfg->optimizer == OPTIMIZER_MUON) g->muon = reserve(g, 10 * C * C);     // [optimizer]
    g->partial = reserve(g, (BT / CHUNK + 1) * 4 * C);
    double longest = fmax(N, BT * fmax(4 * C, V));
    g->sums = reserve(g, (longest / SUM_CHUNK + 1) * (sizeof(double) / sizeof(real)));
}

static void gpt_free(GPT *g) {
    free(g->memory);
    free(g->layers);
}

// Makes a model of vocabulary V for up to B sequences of up to T tokens, with initial weights and
// AdamW's moments at 0. Dies if memory is short.
static void gpt_init(GPT *g, const Config *cfg, int V, int B, int T) {
    gpt_layout(g, cfg, V, B, T, NULL);
    double bytes = g->bytes;
    gpt_free(g);
    check_memory(bytes);
    gpt_layout(g, cfg, V, B, T, allocate((size_t)bytes, 1));
    parameters_init(g->params, g->table, cfg);
    rope_table(g->cosine, g->sine, T, cfg->d / cfg->heads);
}

// Normalizes the output of branch i of a layer, post[i]: 0 attention, 1 the MLP. Returns the norm's
// output. So its weight alone decides by how much the branch moves the residual stream (Peri-LN:
// Kim et al. 2025, arXiv 2502.02732).
static real *post_forward(GPT *g, const Layer *a, int i, int rows, int C) {     // [peri_ln
    residual_layernorm_forward(g->branch, a->post[i], a->post_mean[i], a->post_rstd[i], a->post[i],
                               NULL, a->w[i ? POST_2 : POST_1], rows, C);
    return g->branch;
}                                                                               // peri_ln]

// Returns the gradient of post[i], from g->dx, the gradient of the norm's output.
static real *post_backward(GPT *g, const Layer *a, int i, int rows, int C) {    // [peri_ln
    int kind = i ? POST_2 : POST_1;
    memset(g->dpost, 0, (size_t)rows * C * sizeof(real));
    residual_layernorm_backward(g->dpost, a->dw[kind], g->dx, a->post[i], a->w[kind],
                                a->post_mean[i], a->post_rstd[i], g->partial, rows, C);
    return g->dpost;
}                                                                               // peri_ln]

// Computes g->logits (B,T,V) from tokens (B,T). statistics 1: also the max_logit of each layer, and
// g->squares.
static void gpt_forward(GPT *g, const int *tokens, int B, int T, int statistics) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, V = g->V, rows = B * T;
    int over = qk_norm_over(&g->cfg), peri_ln = g->cfg.peri_ln;
    int measures = statistics || g->cfg.qk_clip > 0;    // QK-clip reads max_logit at each step
    size_t BTC = (size_t)rows * C;
    real scale = (real)attention_scale(&g->cfg), cap = (real)g->cfg.attn_cap;
    real kappa = (real)g->cfg.kappa, relu2 = (real)attention_relu2(&g->cfg);
    real *x = g->embedded, *branch = NULL;           // the residual stream is x + branch
    double *squares = g->squares;

    memset(squares, 0, sizeof g->squares);
    embedding_forward(x, tokens, g->w[WTE], rows, C);
    for (int l = 0; l < L; l++) {
        const Layer a = g->layers[l];                // a: activations; a copy of the pointers
        real *const *w = a.w;                        // its weights by kind
        // a.x = x + branch;  branch = attn_c_proj(attention(c_attn(ln_1(a.x))))
        residual_layernorm_forward(a.ln_1, a.x, a.ln_1_mean, a.ln_1_rstd, x, branch, w[LN_1],
                                   rows, C);
        matmul_forward(a.qkv, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        if (kappa > 0) kappa_forward(a.qkv, a.qk_rstd, kappa, rows, NH, HS);    // [kappa]
        qk_norm_rope_forward(a.qk, a.qk_mean, a.qk_rstd, a.qkv, w[Q_NORM], w[K_NORM], over,
                             g->cosine, g->sine, B, T, NH, HS);
        attention_forward(a.att, a.softmax, measures ? a.max_logit : NULL, a.qk, a.qkv, scale,
                          cap, g->scratch, relu2, B, T, NH, HS);
        real *heads = a.att;
        if (g->cfg.gate) {                                                      // [gate
            heads = a.gated;
            matmul_forward(a.gate, a.ln_1, w[GATE], rows, C, C);
            gate_forward(heads, a.att, a.gate, rows, C);
        }                                                                       // gate]
        branch = g->branch;
        if (peri_ln) branch = a.post[0];                                        // [peri_ln]
        matmul_forward(branch, heads, w[ATTN_C_PROJ], rows, C, C);
        if (peri_ln) branch = post_forward(g, &a, 0, rows, C);                  // [peri_ln]
        // a.x_mid = a.x + branch;  branch = mlp_c_proj(gelu(c_fc(ln_2(a.x_mid))))
        residual_layernorm_forward(a.ln_2, a.x_mid, a.ln_2_mean, a.ln_2_rstd, a.x, branch,
                                   w[LN_2], rows, C);
        matmul_gelu_forward(a.gelu, a.slope, g->fc, a.ln_2, w[C_FC], rows, C, 4 * C);
        if (peri_ln) branch = a.post[1];                                        // [peri_ln]
        matmul_forward(branch, a.gelu, w[MLP_C_PROJ], rows, 4 * C, C);
        if (peri_ln) branch = post_forward(g, &a, 1, rows, C);                  // [peri_ln]
        x = a.x_mid;
        if (statistics) {                            // now: the next layer overwrites fc
            squares[ACT_C_ATTN] += sum_squares(a.qkv, 3 * BTC, g->sums);
            squares[ACT_ATT] += sum_squares(a.att, BTC, g->sums);
            squares[ACT_C_FC] += sum_squares(g->fc, 4 * BTC, g->sums);
        }
    }
    // g->x = x + branch;  logits = lm_head(ln_f(g->x))
    residual_layernorm_forward(g->ln_f, g->x, g->ln_f_mean, g->ln_f_rstd, x, branch, g->w[LN_F],
                               rows, C);
    matmul_forward(g->logits, g->ln_f, g->w[LM_HEAD], rows, C, V);
    if (g->cfg.bf16_logits) round_to_bf16(g->logits, rows, V);                  // [bf16_logits]

    if (!statistics) return;
    squares[ACT_WTE] = sum_squares(g->embedded, BTC, g->sums);
    squares[ACT_RESIDUAL] = sum_squares(g->x, BTC, g->sums);
    squares[ACT_LOGITS] = sum_squares(g->logits, (size_t)rows * V, g->sums);
    for (int i = 0; i < rows; i++)
        squares[SUM_LOGITS] += row_sum(g->logits + (size_t)i * V, V);
}

// Returns the mean cross-entropy, in nats, of g->logits against targets (B,T); *log_z: mean log Z.
// Overwrites g->logits: by their gradient, for gpt_backward, if gradient is 1.
static double gpt_loss(GPT *g, const int *targets, int B, int T, int gradient, double *log_z) {
    double sum = 0, sum_log_z = 0;
    int rows = B * T;
    cross_entropy(g->logits, g->losses, g->log_z, targets, (real)g->cfg.z_loss,
                  gradient, rows, g->V);
    for (int i = 0; i < rows; i++) {
        sum += g->losses[i];
        sum_log_z += g->log_z[i];
    }
    *log_z = sum_log_z / rows;
    return sum / rows;
}

// Computes all gradients, after gpt_forward and gpt_loss on the same batch, by taking the steps of
// gpt_forward in reverse. dx is the gradient of the residual stream. At a sum x + branch it is the
// gradient of both terms. It stays in dx for x, and goes back through the branch to the branch's
// first layer, a LayerNorm, which adds its part to dx.
static void gpt_backward(GPT *g, const int *tokens, int B, int T) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, V = g->V, rows = B * T;
    int over = qk_norm_over(&g->cfg), peri_ln = g->cfg.peri_ln;
    real scale = (real)attention_scale(&g->cfg), cap = (real)g->cfg.attn_cap;
    real kappa = (real)g->cfg.kappa, relu2 = (real)attention_relu2(&g->cfg);
    real *dx = g->dx, *dnorm = g->dnorm;
    real *dlogits = g->logits;                       // gpt_loss left them there

    matmul_backward(dnorm, g->dw[LM_HEAD], dlogits, g->ln_f, g->w[LM_HEAD], rows, C, V);
    memset(dx, 0, (size_t)rows * C * sizeof(real));
    residual_layernorm_backward(dx, g->dw[LN_F], dnorm, g->x, g->w[LN_F], g->ln_f_mean,
                                g->ln_f_rstd, g->partial, rows, C);
    for (int l = L - 1; l >= 0; l--) {
        const Layer a = g->layers[l];
        real *const *w = a.w, *const *dw = a.dw;
        // the MLP: mlp_c_proj(gelu(c_fc(ln_2(x_mid))))
        real *dbranch = dx;                          // gradient of the branch, before a norm post
        if (peri_ln) dbranch = post_backward(g, &a, 1, rows, C);                // [peri_ln]
        matmul_gelu_backward(g->dfc, dw[MLP_C_PROJ], dbranch, a.slope, a.gelu, w[MLP_C_PROJ],
                             rows, 4 * C, C);
        matmul_backward(dnorm, dw[C_FC], g->dfc, a.ln_2, w[C_FC], rows, C, 4 * C);
        residual_layernorm_backward(dx, dw[LN_2], dnorm, a.x_mid, w[LN_2], a.ln_2_mean,
                                    a.ln_2_rstd, g->partial, rows, C);
        // attention: attn_c_proj(attention(c_attn(ln_1(x))))
        real *heads = a.att;
        if (peri_ln) dbranch = post_backward(g, &a, 0, rows, C);                // [peri_ln]
        if (g->cfg.gate) heads = a.gated;                                       // [gate]
        matmul_backward(dnorm, dw[ATTN_C_PROJ], dbranch, heads, w[ATTN_C_PROJ], rows, C, C);
        if (g->cfg.gate)                                                        // [gate
            gate_backward(dnorm, g->dgate, dnorm, a.att, a.gate, rows, C);      // gate]
        attention_backward(g->dqkv, dnorm, a.att, a.softmax, a.qk, a.qkv, scale, cap, g->scratch,
                           relu2, B, T, NH, HS);
        qk_norm_rope_backward(g->dqkv, dw[Q_NORM], dw[K_NORM], a.qkv, a.qk_mean, a.qk_rstd,
                              w[Q_NORM], w[K_NORM], over, g->cosine, g->sine, g->partial,
                              B, T, NH, HS);
        if (kappa > 0)                                                          // [kappa
            kappa_backward(g->dqkv, a.qkv, a.qk_rstd, kappa, rows, NH, HS);     // kappa]
        matmul_backward(dnorm, dw[C_ATTN], g->dqkv, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        if (g->cfg.gate)                                                        // [gate
            matmul_backward_add(dnorm, dw[GATE], g->dgate, a.ln_1, w[GATE], rows,
                                C, C);                                          // gate]
        residual_layernorm_backward(dx, dw[LN_1], dnorm, a.x, w[LN_1], a.ln_1_mean, a.ln_1_rstd,
                                    g->partial, rows, C);
    }
    embedding_backward(g->dw[WTE], dx, tokens, rows, C, V);
}

// ---------------------------------------------------------------------------
// The optimizer: AdamW (Loshchilov and Hutter 2019), or Muon for the matrices of the layers

// The constants of a step. The moments start at 0, which makes them too small at first: m is
// multiplied by correction1 = 1 / (1 - beta1^step), and v by correction2.
typedef struct {
    real clip_scale, beta1, beta2, correction1, correction2, eps, decay;
    int cautious;
} AdamW;

// Returns the new value of a parameter whose update is u. Cautious decay (Chen et al. 2025, arXiv
// 2510.12402) spares a parameter that the update moves away from 0: decay would work against it.
static inline real updated(real param, real u, real lr, AdamW o) {
    real decay = o.decay;
    if (o.cautious && u * param < 0) decay = 0;                                 // [cautious]
    return param - (lr * u + decay * param);
}

// One step for n parameters:
//   g = clip_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   u = m correction1 / (sqrt(v correction2) + eps);  param -= lr u + decay param
// With -rms_lr a tensor's lr is that of its kind times max(RMS(param), 1e-3) (section E.14).
// Returns the sum of u^2. sums (n / SUM_CHUNK + 1) is scratch.
static double adamw(real *param, const real *grad, real *m, real *v, size_t n, real lr, AdamW o,
                    double *sums) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    double total = 0;
    #pragma omp taskloop
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t from = chunk * SUM_CHUNK, end = n - from < SUM_CHUNK ? n : from + SUM_CHUNK;
        double sum = 0;
        #pragma omp simd reduction(+:sum)
        for (size_t i = from; i < end; i++) {
            real g = grad[i] * o.clip_scale;
            m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
            v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
            real u = m[i] * o.correction1 / (sqrt(v[i] * o.correction2) + o.eps);
            param[i] = updated(param[i], u, lr, o);
            sum += (double)u * (double)u;
        }
        sums[chunk] = sum;
    }
    for (size_t chunk = 0; chunk < chunks; chunk++) total += sums[chunk];
    return total;
}

#define MUON_MOMENTUM ((real)0.95)

// Takes one step of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for a matrix
// (rows,cols). Makes its momentum, in Nesterov's form, orthogonal: equally long in every direction.
//   m = 0.95 m + 0.05 g;  u = 0.2 sqrt(the longer side) orthogonalize(0.95 m + 0.05 g)
// The factor gives u the RMS of AdamW's updates, about 0.2, so that the same lr and decay serve
// (Moonlight: Liu et al. 2025, arXiv 2502.16982). Returns the sum of u^2. scratch (10,C,C). Costs
// 300 C^3 operations per layer: 4.2 C / (B T) times those of the layers' products in a step.
static double muon(real *param, const real *grad, real *m, int rows, int cols,  // [optimizer
                   real lr, AdamW o, real *scratch, double *sums) {
    size_t n = (size_t)rows * cols;
    real *x = scratch, size = (real)0.2 * sqrt((real)(rows > cols ? rows : cols));
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * cols; j < (size_t)(i + 1) * cols; j++) {
            real g = grad[j] * o.clip_scale;
            m[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;
            x[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;
        }
    orthogonalize(x, rows, cols, scratch + n, sums);
    #pragma omp taskloop
    for (int i = 0; i < rows; i++)
        for (size_t j = (size_t)i * cols; j < (size_t)(i + 1) * cols; j++)
            param[j] = updated(param[j], size * x[j], lr, o);
    return size * size * sum_squares(x, n, sums);
}                                                                               // optimizer]

// QK-clip (Kimi K2, arXiv 2507.20534): where the largest |score| of a head in this batch was above
// tau, multiplies the weights of its queries and keys by sqrt(tau / largest), so that its scores
// become tau / largest times as large. (K2 takes the largest score.) c_attn (3C,C) has the rows of
// q, k, v; max_logit (B,NH).
static void qk_clip(real *c_attn, const real *max_logit, real tau, int B,       // [qk_clip
                    int NH, int C) {
    size_t head = (size_t)C / NH * C;                // weights of the queries of one head
    for (int h = 0; h < NH; h++) {
        real largest = 0;
        for (int b = 0; b < B; b++) largest = larger(max_logit[b * NH + h], largest);
        if (largest <= tau) continue;
        real *q = c_attn + h * head, *k = q + (size_t)C * C, factor = sqrt(tau / largest);
        for (size_t i = 0; i < head; i++) {
            q[i] *= factor;
            k[i] *= factor;
        }
    }
}                                                                               // qk_clip]

// Updates every parameter at this step (counted from 1), after scaling the gradient down to norm
// cfg->clip if it is longer. Returns the norm before clipping. stats, unless NULL, gets for each
// kind of tensor the RMS of its gradient (before clipping), of its update and of its new values.
static double gpt_update(GPT *g, int step, Stats *stats) {
    const Config *cfg = &g->cfg;
    double norm = sqrt(sum_squares(g->grads, g->num_parameters, g->sums));
    double lr = learning_rate(cfg, step);
    double clip_scale = 1, beta2 = 0.95, eps = 1e-8, decay = 0;    // without the lines below
    if (cfg->clip > 0 && norm > cfg->clip) clip_scale = cfg->clip / norm;       // [clip]
    if (norm * clip_scale > LARGEST_SQUARED) clip_scale = NAN;    // v would overflow
    beta2 = cfg->beta2;                                                         // [beta2]
    eps = cfg->eps;                                                             // [eps]
    decay = weight_decay(cfg, step);                                            // [wd]
    AdamW o = {(real)clip_scale, (real)cfg->beta1, (real)beta2,
               (real)(1 / (1 - pow(cfg->beta1, step))), (real)(1 / (1 - pow(beta2, step))),
               (real)eps, (real)decay, 0};
    o.cautious = cfg->cautious;                                                 // [cautious]
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        size_t size = parameter_size(p), n = size * (size_t)p->copies, at = p->offset;
        double kind_lr = lr;
        kind_lr *= mu_lr_scale(cfg, p);                                         // [mu_param]
        double squares = 0;
        for (int l = 0; l < p->copies; l++) {
            size_t i = at + (size_t)l * size;
            double tensor_lr = kind_lr;
            if (cfg->rms_lr) {                                                  // [rms_lr
                double rms = sqrt(sum_squares(g->params + i, size, g->sums) / (double)size);
                tensor_lr *= fmax(rms, 1e-3);
            }                                                                   // rms_lr]
            real *params = g->params + i, *grads = g->grads + i, *m = g->m + i;
            double updates = 0;
            if (uses_muon(cfg, g->table, k)) {                                  // [optimizer
                int parts = k == C_ATTN ? 3 : 1;     // q, k and v are three matrices
                for (size_t j = 0; j < size; j += size / parts)
                    updates += muon(params + j, grads + j, m + j, p->rows / parts, p->cols,
                                    (real)tensor_lr, o, g->muon, g->sums);
            } else                                                              // optimizer]
                updates = adamw(params, grads, m, g->v + i, size, (real)tensor_lr, o, g->sums);
            if (k == C_ATTN && cfg->qk_clip > 0)                                // [qk_clip
                qk_clip(params, g->layers[l].max_logit, (real)cfg->qk_clip, cfg->batch,
                        cfg->heads, p->cols);                                   // qk_clip]
            squares += updates;
            if (!stats || (k != C_FC && k != ATTN_C_PROJ)) continue;
            int to = k == C_FC ? C_FC_GRAD_RMS : ATTN_C_PROJ_GRAD_RMS;
            stats->by_layer[to][l] = sqrt(sum_squares(grads, size, g->sums) / (double)size);
            stats->by_layer[to + 1][l] = sqrt(updates / (double)size);
        }
        if (!stats || n == 0) continue;
        stats->grad_rms[k] = sqrt(sum_squares(g->grads + at, n, g->sums) / (double)n);
        stats->update_rms[k] = sqrt(squares / (double)n);
        stats->param_rms[k] = sqrt(sum_squares(g->params + at, n, g->sums) / (double)n);
    }
    return norm;
}

// ---------------------------------------------------------------------------
// The training loop

// Why the attention logits of a layer are large (section E.1): the RMS of its queries and keys, and
// the cosine of the angle between the two with the largest |s_ij|. The norms grow, the cosine does
// not.
static void qk_statistics(const Layer *a, size_t l, int B, int T, int NH, int HS, Stats *stats) {
    int C = NH * HS, head = 0;                       // head: of a sequence, the largest score's
    double squares[2] = {0, 0}, largest = -1, cosine = NAN;
    for (int i = 0; i < B * T * 2; i++) {            // q and k by turns
        const real *x = a->qk + (size_t)i * C;
        squares[i % 2] += row_dot(x, x, C);
    }
    for (int i = 0; i < B * NH; i++)
        if (a->max_logit[i] > a->max_logit[head]) head = i;
    const real *q = a->qk + (size_t)(head / NH) * T * 2 * C + (size_t)(head % NH) * HS;
    const real *k = q + C;
    for (int i = 0; i < T; i++)
        for (int j = 0; j <= i; j++) {
            const real *qi = q + (size_t)i * 2 * C, *kj = k + (size_t)j * 2 * C;
            double dot = row_dot(qi, kj, HS);
            if (!(fabs(dot) > largest)) continue;
            double size = sqrt((double)row_dot(qi, qi, HS) * (double)row_dot(kj, kj, HS));
            largest = fabs(dot);
            cosine = size > 0 ? dot / size : NAN;
        }
    stats->by_layer[Q_RMS][l] = sqrt(squares[0] / ((double)B * T * C));
    stats->by_layer[K_RMS][l] = sqrt(squares[1] / ((double)B * T * C));
    stats->by_layer[QK_COSINE][l] = cosine;
}

// What the last gpt_forward with statistics measured on a batch of B sequences: layer by layer, the
// RMS of the activations, and the mean output logit. Without layers the RMS of theirs is NAN: an
// empty cell of the log.
static void gpt_statistics(const GPT *g, int B, int T, Stats *stats) {
    size_t L = g->cfg.layers, BTC = (size_t)B * T * g->cfg.d, BTV = (size_t)B * T * g->V;
    const double *total = g->squares;
    for (size_t l = 0; l < L; l++) {
        const Layer *a = &g->layers[l];
        const real *output = l + 1 < L ? a[1].x : g->x;
        stats->by_layer[MAX_ATTN_LOGIT][l] = row_max(a->max_logit, B * g->cfg.heads);
        stats->by_layer[BLOCK_RMS][l] = sqrt(sum_squares(output, BTC, g->sums) / (double)BTC);
        qk_statistics(a, l, B, T, g->cfg.heads, g->cfg.d / g->cfg.heads, stats);
    }
    // in the order of the ACT_ constants; c_attn, att and c_fc are summed over the layers
    const size_t count[NUM_ACTIVATIONS] = {BTC, 3 * L * BTC, L * BTC, 4 * L * BTC, BTC, BTV};
    for (int i = 0; i < NUM_ACTIVATIONS; i++)
        stats->act_rms[i] = count[i] ? sqrt(total[i] / (double)count[i]) : NAN;
    stats->mean_logit = total[SUM_LOGITS] / (double)BTV;
}

// Mean loss in nats over the first `windows` sequences of T tokens of the validation data. inputs,
// targets (B,T) are scratch.
static double evaluate(GPT *g, const DataLoader *loader, int64_t windows, int *inputs,
                       int *targets) {
    int B = g->cfg.batch, T = g->cfg.T;
    double sum = 0, log_z;
    for (int64_t w = 0; w < windows; w += B) {
        int rows = windows - w < B ? (int)(windows - w) : B;
        dataloader_val(loader, w, rows, inputs, targets);
        gpt_forward(g, inputs, rows, T, 0);
        sum += gpt_loss(g, targets, rows, T, 0, &log_z) * rows;
    }
    sum /= (double)windows;
    return isnan(sum) ? INFINITY : sum;    // NAN stands for a loss that was not measured
}

// Runs one training from its flags to its files. Returns the exit status. progress: for the sweep
// that started it, or NULL.
static int train_run(const Config *flags, int threads, Progress *progress) {
    int B = flags->batch, T = flags->T;
    DataLoader loader;
    GPT g;
    Stats stats;
    State state = {0, 0, 0, 0, 0, 0};

    // data, model, memory for a batch
    dataloader_init(&loader, flags->data, flags->val, flags->vocab, T, (uint64_t)flags->seed);
    gpt_init(&g, flags, loader.vocab, B, T);
    const Config *cfg = &g.cfg;
    int *inputs = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int *targets = (int *)allocate((size_t)B * (size_t)T, sizeof(int));

    // a new run, or one that resumes
    if (cfg->resume || *cfg->init)
        state = checkpoint_load(cfg, g.table, g.params, g.m, g.v);
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    double entropy_floor = dataloader_entropy_floor(&loader, windows);
    Run run = run_begin(cfg, g.table, g.num_parameters, g.bytes, &state,
                        dataloader_tokens(&loader), entropy_floor, NULL, threads, progress);
    if (state.log_bytes == 0) {                      // a new run
        double initial = evaluate(&g, &loader, windows, inputs, targets);
        run_initial(&run, &stats, initial);
    }

    int step = state.step;                           // steps done
    int saved = cfg->resume ? step : -1;             // step of the last checkpoint; -1: none
    while (step < cfg->steps && !interrupted && !run.diverged_step) {
        // whether this step also validates, logs or saves a checkpoint
        step++;
        int validates = step == cfg->steps || (cfg->eval_every && step % cfg->eval_every == 0);
        int logs = validates || step % cfg->log_every == 0;
        int saves = cfg->checkpoint_every && step % cfg->checkpoint_every == 0;

        // the batch, the loss, the gradients, the update
        dataloader_train(&loader, step, B, inputs, targets);
        gpt_forward(&g, inputs, B, T, logs);
        stats.train_loss = gpt_loss(&g, targets, B, T, 1, &stats.log_z);
        gpt_backward(&g, inputs, B, T);
        stats.grad_norm = gpt_update(&g, step, logs ? &stats : NULL);
        if (logs) gpt_statistics(&g, B, T, &stats);

        // the validation loss
        stats.val_loss = validates ? evaluate(&g, &loader, windows, inputs, targets) : NAN;
        if (!isfinite(stats.train_loss) || (validates && !isfinite(stats.val_loss)))
            run.diverged_step = step;

        // the log and the checkpoint
        run_step(&run, &stats, step, logs);
        if (saves) {
            saved = step;
            state = run_state(&run, step);
            checkpoint_save(cfg, g.table, g.params, g.m, g.v, &state);
        }
    }

    // finished, diverged or stopped by a signal, perhaps before the first step
    if (saved != step) {
        state = run_state(&run, step);
        checkpoint_save(cfg, g.table, g.params, g.m, g.v, &state);
    }
    int status = run_end(&run, step);
    dataloader_free(&loader);
    gpt_free(&g);
    free(inputs);
    free(targets);
    return status;
}

// Runs train_run on one thread of a team. The others wait at the end of the parallel region, and
// while they wait they run its tasks.
static int train(const Config *flags, int threads, Progress *progress) {
    int status = 0;
    #pragma omp parallel num_threads(threads)
    #pragma omp master
    {
        omp_set_num_threads(threads);                // for gpt_layout, which asks how many
        status = train_run(flags, threads, progress);
    }
    return status;
}

// ---------------------------------------------------------------------------
// From the command line

// Returns the logits (V) of the token after context (used). model: a GPT. Computes all of context
// again for each token.
static const real *logits_after(void *model, const int *context, int used) {
    GPT *g = (GPT *)model;
    gpt_forward(g, context, 1, used, 0);
    return g->logits + (size_t)(used - 1) * g->V;
}

// Writes tokens drawn from the model saved in -out.
static void sample(const Config *cfg) {
    GPT g;
    gpt_init(&g, cfg, cfg->vocab, 1, cfg->T);
    checkpoint_load(cfg, g.table, g.params, g.m, g.v);
    sample_text(cfg, logits_after, &g);
    gpt_free(&g);
}

// Prints the validation loss of the model saved in -out. Writes nothing.
static void eval(const Config *cfg) {
    int B = cfg->batch, T = cfg->T;
    DataLoader loader;
    GPT g;
    dataloader_init(&loader, cfg->data, cfg->val, cfg->vocab, T, (uint64_t)cfg->seed);
    gpt_init(&g, cfg, loader.vocab, B, T);
    State state = checkpoint_load(cfg, g.table, g.params, g.m, g.v);
    int *inputs = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int *targets = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    double loss = 0;
    #pragma omp parallel
    #pragma omp master
    loss = evaluate(&g, &loader, windows, inputs, targets);
    eval_print(cfg, &state, loss, windows);
    dataloader_free(&loader);
    gpt_free(&g);
    free(inputs);
    free(targets);
}

// Dies, before any file is touched, if the data are missing or memory is too small to run `jobs`
// trainings at once. Returns the bytes that one needs (at most: counts scratch for all threads).
static double check_runs(const Config *cfg, int jobs) {
    DataLoader loader;
    GPT g;
    dataloader_init(&loader, cfg->data, cfg->val, cfg->vocab, cfg->T, (uint64_t)cfg->seed);
    gpt_layout(&g, cfg, loader.vocab, cfg->batch, cfg->T, NULL);
    check_memory(g.bytes * jobs);
    gpt_free(&g);
    dataloader_free(&loader);
    return g.bytes;
}

// Trains once for each learning rate, as many runs at a time as there are cores.
static int train_sweep(const Config *cfg, char lr[MAX_RUNS][MAX_RATE], int runs) {
    int jobs = least(runs, cores()), threads = cores() / jobs;
    double bytes = check_runs(cfg, jobs);
    return sweep(cfg, lr, runs, jobs, threads, bytes, train);
}

int main(int argc, char **argv) {
    // comes first: starts the program again with OpenMP set to put idle threads to sleep
    restart_with_short_waits(argv);
    Config cfg;
    char lr[MAX_RUNS][MAX_RATE];
    config_parse(&cfg, argc, argv);
    if (cfg.micro_batch)
        die(USAGE, "-micro_batch %d: only train_gpt_cu has micro-batches; this program computes "
            "the whole batch at once", cfg.micro_batch);

    int runs = learning_rates(cfg.lr_text, lr, NULL);
    if (runs > 1) return train_sweep(&cfg, lr, runs);
    if (cfg.sample) sample(&cfg);
    else if (cfg.eval) eval(&cfg);
    else return train(&cfg, omp_get_max_threads(), NULL);
    return 0;
}

// ---------------------------------------------------------------------------
// Arithmetic: exponentials, sums of a row, and the matrix multiply

// multiply computes out in tiles of MR x NR sums, which stay in vector registers: AVX-512 and Arm
// have 32 of them, AVX and SSE 16. A vector holds VL reals, and NR is two vectors.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, MR = 8 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, MR = 6 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, MR = 8 };
#else
enum { VECTOR_BYTES = 16, MR = 6 };
#endif
enum { VL = VECTOR_BYTES / (int)sizeof(real), NR = 2 * VL };
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#ifdef DOUBLE
static inline real exponential(real x) { return exp(x); }
static inline real reciprocal(real x) { return 1 / x; }
#else
// exp(x) for x <= 0 without a branch or a call, so that loops over it become vector code (Cephes'
// expf, error below 1e-7): x = n ln 2 + r with n whole and |r| <= ln(2)/2, so exp(x) = 2^n exp(r).
static inline float exponential(float x) {
    // Adding 1.5 * 2^23 rounds x / ln 2 to n: so large a float has no bits for a fraction. The low
    // bits of shifted are the integer n.
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    // ln 2 = 0.693359375 - 2.12194440e-4, in two parts since n times the first is exact
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r + 1;
    p = p * r + 1;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    // 2^n as a float: n moves to the exponent, bits 23 and up, where 0x3f800000 stands for 2^0
    bits = (bits << 23) + 0x3f800000;
    float power;
    memcpy(&power, &bits, sizeof power);
    // e^-60 = 1e-26 adds nothing to a sum of at least 1; its products would be denormal, which is
    // slow, and below n = -126 the bits above are not 2^n
    return x < -60 ? 0 : p * power;
}

// 1/x for 1 <= x <= 2: the nearest parabola (at most 1/99 off), then two of Newton's steps, each of
// which squares the error. A division takes three times as long.
static inline float reciprocal(float x) {
    float y = 210 / 99.0f - (144 / 99.0f - 32 / 99.0f * x) * x;
    y *= 2 - x * y;
    return y * (2 - x * y);
}
#endif

// The sum, dot product and largest of n values. Lane l takes every VL-th value; then the upper half
// of the lanes is folded onto the lower until one is left. So VL additions run at once, in an order
// that no compiler may change.
static inline real lane_sum(real lane[VL]) {
    for (int half = VL / 2; half > 0; half /= 2)
        #pragma omp simd
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

static inline real row_sum(const real *x, int n) {
    real lane[VL] = {0};
    int j = 0;
    for (; j + VL <= n; j += VL)
        for (int l = 0; l < VL; l++) lane[l] += x[j + l];
    for (; j < n; j++) lane[0] += x[j];
    return lane_sum(lane);
}

static inline real row_dot(const real *x, const real *y, int n) {
    real lane[VL] = {0};
    int j = 0;
    for (; j + VL <= n; j += VL)
        for (int l = 0; l < VL; l++) lane[l] += x[j + l] * y[j + l];
    for (; j < n; j++) lane[0] += x[j] * y[j];
    return lane_sum(lane);
}

static inline real row_max(const real *x, int n) {
    real lane[VL];
    int j = 0;
    for (int l = 0; l < VL; l++) lane[l] = -INFINITY;
    for (; j + VL <= n; j += VL)
        #pragma omp simd
        for (int l = 0; l < VL; l++) lane[l] = larger(x[j + l], lane[l]);
    for (; j < n; j++) lane[0] = larger(x[j], lane[0]);
    for (int half = VL / 2; half > 0; half /= 2)
        #pragma omp simd
        for (int l = 0; l < half; l++) lane[l] = larger(lane[l + half], lane[l]);
    return lane[0];
}

static double sum_squares(const real *x, size_t n, double *sums) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    double total = 0;
    #pragma omp taskloop
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t from = chunk * SUM_CHUNK, end = n - from < SUM_CHUNK ? n : from + SUM_CHUNK;
        double sum = 0;
        #pragma omp simd reduction(+:sum)
        for (size_t i = from; i < end; i++) sum += (double)x[i] * (double)x[i];
        sums[chunk] = sum;
    }
    for (size_t chunk = 0; chunk < chunks; chunk++) total += sums[chunk];
    return total;
}

// out (16,16) = in (16,16) transposed; the rows of out lie ldo apart, those of in ldi. The index of
// a value, 16 * row + column, has 8 bits, 4 of the row and then 4 of the column. A deal merges the
// two halves of the block like a pack of cards: index i moves to 2 i, and i + 128 to 2 i + 1. That
// rotates the bits of every index left by one, so that four deals exchange row and column.
// Compilers turn a deal into vector instructions. They do not for plain loops over rows and
// columns, with which a step takes 3 to 6% longer.
static inline void transpose_block(real *out, ptrdiff_t ldo, const real *in, ptrdiff_t ldi) {
    real deal[2][256];
    for (int i = 0; i < 16; i++) memcpy(deal[0] + 16 * i, in + i * ldi, 16 * sizeof(real));
    for (int n = 0; n < 4; n++) {
        const real *from = deal[n % 2];
        real *to = deal[1 - n % 2];
        for (int i = 0; i < 128; i++) {
            to[2 * i] = from[i];
            to[2 * i + 1] = from[i + 128];
        }
    }
    for (int i = 0; i < 16; i++) memcpy(out + i * ldo, deal[0] + 16 * i, 16 * sizeof(real));
}

static void transpose(real *out, ptrdiff_t ldo, const real *in, ptrdiff_t ldi, int rows, int cols) {
    for (int i0 = 0; i0 < rows; i0 += 16)
        for (int j0 = 0; j0 < cols; j0 += 16)
            if (i0 + 16 <= rows && j0 + 16 <= cols)
                transpose_block(out + j0 * ldo + i0, ldo, in + i0 * ldi + j0, ldi);
            else
                for (int i = i0; i < least(rows, i0 + 16); i++)
                    for (int j = j0; j < least(cols, j0 + 16); j++)
                        out[j * ldo + i] = in[i * ldi + j];
}

// Multiplies matrices in the order of Goto and van de Geijn (2008). A tile of MR x NR sums stays
// in registers while k runs over KC values. A block of b, KC x NC, is copied ("packed") in the
// order in which tiles read it, if enough tiles read it or they cannot read b directly; it then
// stays in the L2 cache. A block of a, MC x KC, is packed if a is transposed and large: the values
// of a row, which a tile reads in turn, are otherwise far apart.
enum { KC = 512, NC = 8 * NR, MC = 12 * MR };

// A tile: out (m,n) = add + a (m,K) b (K,n), m <= MR, n <= vectors * VL. b.col is 1, and its rows
// have vectors * VL readable columns. vectors, 1 or 2, is a constant once this is inlined.
static inline __attribute__((always_inline))
void tile(int vectors, real *out, const real *add, ptrdiff_t ldc, Matrix a, Matrix b,
          int m, int n, int K) {
    vector sum[MR][2];
    const real *row[MR];
    for (int i = 0; i < MR; i++) {
        row[i] = a.data + least(i, m - 1) * a.row;          // repeats row m - 1 past the end
        for (int w = 0; w < vectors; w++) sum[i][w] = (vector){0};
    }
    for (int k = 0; k < K; k++)                             // a[i][k], a number, times row k of b
        for (int i = 0; i < MR; i++)
            for (int w = 0; w < vectors; w++)
                sum[i][w] += row[i][k * a.col] * *(const vector *)(b.data + k * b.row + w * VL);
    if (m == MR && n == vectors * VL) {                     // a whole tile: stored by vectors
        for (int i = 0; i < MR; i++)
            for (int w = 0; w < vectors; w++) {
                vector value = sum[i][w];
                if (add) value += *(const vector *)(add + i * ldc + w * VL);
                *(vector *)(out + i * ldc + w * VL) = value;
            }
        return;
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            out[i * ldc + j] = (add ? add[i * ldc + j] : 0) + sum[i][j / VL][j % VL];
}

static Matrix part(Matrix m, int i, int j) {                // skips the first i rows, j columns
    return (Matrix){m.data + i * m.row + j * m.col, m.row, m.col};
}
// The transpose of m
static Matrix flip(Matrix m) { return (Matrix){m.data, m.col, m.row}; }

// Copies m (K,cols) as panels of `width` columns, each (K,width), with zeros past the last column.
// m.row or m.col is 1. width is a constant once this is inlined, so that the copy of a whole row
// becomes vector moves.
static inline __attribute__((always_inline))
void pack(real *packed, Matrix m, int width, int cols, int K) {
    for (int j = 0; j < cols; j += width) {
        real *panel = packed + j * KC;                      // panels lie KC * width apart
        int n = least(width, cols - j);
        if (n < width) memset(panel, 0, (size_t)K * (size_t)width * sizeof(real));
        if (m.col != 1) {                                   // then m.row is 1: m lies transposed
            transpose(panel, width, m.data + j * m.col, m.col, n, K);
            continue;
        }
        for (int k = 0; k < K; k++) {
            const real *row = m.data + k * m.row + j;
            // the same copy twice: the first has a constant size
            if (n == width) memcpy(panel + k * width, row, width * sizeof(real));
            else memcpy(panel + k * width, row, (size_t)n * sizeof(real));
        }
    }
}

static void multiply(real *out, const real *add, ptrdiff_t ldc, Matrix a, Matrix b,
                     int M, int N, int K) {
    static _Thread_local real a_block[KC * MC] __attribute__((aligned(64)));
    static _Thread_local real b_block[KC * NC] __attribute__((aligned(64)));
    int pack_a = a.col != 1 && M > 2 * MC && N > 2 * NR;    // enough tiles to repay the copy
    int pack_b = b.col != 1 || M > MC || N % VL != 0;       // tiles read whole vectors of columns
    // 1. depth, by KC: all but the first add to the sums in out
    for (int k0 = 0; k0 < K; k0 += KC, add = out) {
        int depth = least(KC, K - k0);
        // 2. blocks of columns, by NC
        for (int j0 = 0; j0 < N; j0 += NC) {
            int width = least(NC, N - j0);
            if (pack_b) pack(b_block, part(b, k0, j0), NR, width, depth);
            // 3. blocks of rows, by MC
            for (int i0 = 0; i0 < M; i0 += MC) {
                int height = least(MC, M - i0);
                if (pack_a) pack(a_block, flip(part(a, i0, k0)), MR, height, depth);
                // 4. rows, by MR
                for (int i = i0; i < i0 + height; i += MR) {
                    Matrix rows = part(a, i, k0);
                    // the panel holds these rows as columns: (depth,MR)
                    if (pack_a) rows = transposed(a_block + (i - i0) * KC, MR);
                    // 5. columns, by NR
                    for (int j = j0; j < j0 + width; j += NR) {
                        Matrix columns = part(b, k0, j);
                        if (pack_b) columns = matrix(b_block + (j - j0) * KC, NR);
                        real *to = out + i * ldc + j;
                        const real *plus = add ? add + i * ldc + j : NULL;
                        int m = least(MR, M - i), n = least(NR, N - j);
                        if (n > VL) tile(2, to, plus, ldc, rows, columns, m, n, depth);
                        else tile(1, to, plus, ldc, rows, columns, m, n, depth);
                    }
                }
            }
        }
    }
}

// Starts tasks that compute blocks of out, about one per thread: blocks of whole rows if there are
// enough rows, at least 4 tiles each, else divided by columns too. A weight gradient, where a is
// transposed, is divided on its longer side. nogroup: the caller's taskgroup waits.
static void matmul(real *out, const real *add, Matrix a, Matrix b, int M, int N, int K) {
    int tasks = omp_get_num_threads();                      // of the team that runs this
    int down = least(tasks, ceil_div(M, 4 * MR));           // blocks from top to bottom
    if (a.col != 1 && N > M) down = 1;                      // a wide weight gradient
    int across = ceil_div(tasks, down);
    int height = ceil_div(ceil_div(M, down), MR) * MR;      // whole tiles
    int width = ceil_div(ceil_div(N, across), NR) * NR;
    #pragma omp taskloop collapse(2) nogroup
    for (int i = 0; i < M; i += height)
        for (int j = 0; j < N; j += width) {
            size_t at = (size_t)i * N + j;
            multiply(out + at, add ? add + at : NULL, N, part(a, i, 0), part(b, 0, j),
                     least(height, M - i), least(width, N - j), K);
        }
}

// out (M,N) = a (M,K) b (K,N): matmul, and waits for its tasks
static void product(real *out, Matrix a, Matrix b, int M, int N, int K) {
    #pragma omp taskgroup
    matmul(out, NULL, a, b, M, N, K);
}

// The Newton-Schulz iteration with the coefficients of Jordan et al. (2024). Scales x to norm 1.
// Then replaces it five times by p x, where p = a + b g + c g^2 and g = x x^T; a tall x by x p,
// where g = x^T x. That keeps the singular vectors and takes a singular value s to
// s (a + b s^2 + c s^4): those from 0.002 on end between 0.68 and 1.21.
static void orthogonalize(real *x, int rows, int cols, real *scratch, double *sums) {
    const real a = (real)3.4445, b = (real)-4.7750, c = (real)2.0315;
    int tall = rows > cols, n = least(rows, cols);
    size_t size = (size_t)rows * cols, square = (size_t)n * n;
    real *g = scratch, *p = g + square, *y = p + square;
    Matrix X = matrix(x, cols), G = matrix(g, n), P = matrix(p, n);
    real factor = (real)(1 / (sqrt(sum_squares(x, size, sums)) + 1e-30));
    #pragma omp taskloop
    for (size_t i = 0; i < size; i++) x[i] *= factor;
    for (int turn = 0; turn < 5; turn++) {
        product(g, tall ? flip(X) : X, tall ? X : flip(X), n, n, tall ? rows : cols);
        product(p, G, G, n, n, n);
        #pragma omp taskloop
        for (size_t i = 0; i < square; i++) p[i] = b * g[i] + c * p[i];
        for (size_t i = 0; i < square; i += n + 1) p[i] += a;
        product(y, tall ? X : P, tall ? P : X, rows, cols, n);
        memcpy(x, y, size * sizeof(real));
    }
}

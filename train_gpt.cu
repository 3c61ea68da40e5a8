// train_gpt.cu: the same GPT as train_gpt.c, trained on one NVIDIA GPU. Read train_gpt.c first: it
// has the same layers, names and, with few exceptions, argument lists. A layer is a kernel, which
// every thread runs for a few values, and a function that launches it. Most kernels spend their
// time waiting for memory, so each does as much as it can while values are in registers. "Moves"
// in a comment counts the values read from and written to the GPU's memory.
//
// act is the type of activations and of the weights that products read: bf16, or float if built
// with PRECISION=fp32 (lib/gpu.h). A real is a float. A thread reads and writes W = 8 values at a
// time, so C and HS are multiples of 8 (main checks), and rows of V logits are padded to one.
//
// A batch may be too large for the GPU's memory: then it is computed in micro-batches, some of its
// sequences at a time. A step sets the gradients of the weights to zero, and each micro-batch adds
// to them. Two runs give the same bits: no order of a sum is left to chance.
//
// Where the time goes, in a step of C 1024, L 16, T 512, V 32128 (267 million parameters) with a
// batch of 64, in bf16 on an H200, as `make bench_gpu` measures it: 328,000 tokens/s. A kernel's
// limit is the rate of cuBLAS's product of 4096 x 4096 matrices (770 TFLOP/s) or of a copy in
// memory (4.2 TB/s, reads and writes counted). The comment above a kernel says what it must move.
//
//                                     ms    of its limit
//     products, forward             23.8    84% of the product's rate
//     products, gradients of inputs 22.9    87%
//     products, of weights          21.4    94%
//     attention_forward              4.3    17%
//     attention_dq                   5.3    20%
//     attention_dkv                  7.0    20%
//     residual_layernorm_forward     2.3    92% of the copy's rate
//     residual_layernorm_backward    2.6    83%
//     qk_norm_rope_forward           1.8    57%
//     qk_norm_rope_backward          2.4    64%
//     gelu_forward                   2.1    97%
//     gelu_backward                  3.0   103%
//     cross_entropy                  1.4    72%
//     adamw                          2.1    90%
//     everything else                1.0

#include "gpt.h"           // Config, parameter_table, learning_rate, muParam's factors
#include "dataloader.h"    // DataLoader: batches of tokens
#include "lib/sweep.h"     // config_parse, checkpoint_*, run_*, Stats, sweep
#include "lib/sample.h"    // sample_text
#include "lib/gpu.h"       // act, launch, load, store, lanes_sum, row_sum, matmul, gpu_start

// ---------------------------------------------------------------------------
// Layers, each forward then backward

// out (rows,C): for each token of tokens (rows), its row of wte (V,C), the token embedding.
// Moves 2 C values per token.
__global__ void embedding_forward_kernel(act *out, const int *tokens, const act *wte,
                                         int rows, int C) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    int row = i / (C / W), c = i % (C / W) * W;
    if (row >= rows) return;
    float x[W];
    load(x, wte + (size_t)tokens[row] * C + c);
    store(out + (size_t)row * C + c, x);
}

static void embedding_forward(act *out, const int *tokens, const act *wte, int rows, int C) {
    launch(embedding_forward_kernel, ceil_div(rows * (C / W), 128), 128, out, tokens, wte, rows, C);
}

// Adds to row v of dwte (V,C) the sum of dout (rows,C) over the positions where the token is v.
// Threads that met the same token would have to add one after another, in an order left to chance.
// So the host sorts the positions of the batch by token (batch_send): those of token v are
// order[start[v]] .. order[start[v + 1] - 1], ascending. A block has one token and 256 channels. Of
// these positions it takes those of the micro-batch, first .. first + rows - 1, which are the rows
// of dout. Moves C values per position, and 2 C floats per token that occurs.
enum { EMBEDDING_ROWS = 8 };                         // positions that a block reads at a time
__global__ void embedding_backward_kernel(real *dwte, const act *dout, const int *order,
                                          const int *start, int first, int rows, int C) {
    __shared__ float sums[EMBEDDING_ROWS][32 * W];
    int v = blockIdx.x, c = (blockIdx.y * 32 + threadIdx.x) * W;
    if (start[v] == start[v + 1]) return;
    float sum[W] = {}, x[W];
    for (int i = start[v] + threadIdx.y; i < start[v + 1]; i += EMBEDDING_ROWS) {
        int row = order[i] - first;
        load(x, dout + (size_t)row * C + c, row >= 0 && row < rows && c < C);
        for (int j = 0; j < W; j++) sum[j] += x[j];
    }
    for (int j = 0; j < W; j++) sums[threadIdx.y][threadIdx.x * W + j] = sum[j];
    __syncthreads();
    if (threadIdx.y || c >= C) return;
    load(sum, dwte + (size_t)v * C + c);
    for (int y = 0; y < EMBEDDING_ROWS; y++)
        for (int j = 0; j < W; j++) sum[j] += sums[y][threadIdx.x * W + j];
    store(dwte + (size_t)v * C + c, sum);
}

static void embedding_backward(real *dwte, const act *dout, const int *order, const int *start,
                               int first, int rows, int C, int V) {
    launch(embedding_backward_kernel, dim3(V, ceil_div(C, 32 * W)), dim3(32, EMBEDDING_ROWS),
           dwte, dout, order, start, first, rows, C);
}

// A row of C values stays in the registers of 32 to 512 threads, PARTS times W in each, so that it
// is read from memory once. A block has several short rows, or one long one.
enum { PARTS = 2, ROW_THREADS = 512, MAX_C = ROW_THREADS * PARTS * W };
static dim3 row_block(int C) {
    int x = 32 * ceil_div(C, 32 * PARTS * W);
    return dim3(x, x < 128 ? 128 / x : 1);
}

// Adds the output of a branch to the residual stream, x (rows,C) = inp + branch, and normalizes
// each row, out (rows,C) = LayerNorm(x), without a bias (Ba et al. 2016):
//   out = weight * n, where n = (x - mean) * rstd and rstd = 1 / sqrt(variance + 1e-6)
// branch may be NULL: then x must be inp. weight (C); mean, rstd (rows). Moves 4 C values per row,
// 2 C without branch.
__global__ void __launch_bounds__(ROW_THREADS)
residual_layernorm_forward_kernel(act *out, act *x, real *mean, real *rstd, const act *inp,
                                  const act *branch, const act *weight, int rows, int C) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    float y[PARTS][W], b[PARTS][W], w[PARTS][W], m = 0, variance = 0;
    // all loads come first, so that memory answers them together
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int c = (part * blockDim.x + threadIdx.x) * W;
        bool inside = row < rows && c < C;
        load(y[part], inp + (size_t)row * C + c, inside);
        load(b[part], branch + (size_t)row * C + c, inside && branch);
        load(w[part], weight + c, c < C);
    }
    #pragma unroll
    for (int part = 0; part < PARTS; part++)
        for (int i = 0; i < W; i++) {
            // as x is stored, since the backward pass reads that
            y[part][i] = rounded(y[part][i] + b[part][i]);
            m += y[part][i];
        }
    m = row_sum(m) / C;
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int c = (part * blockDim.x + threadIdx.x) * W;
        store(x + (size_t)row * C + c, y[part], row < rows && c < C && branch);
        for (int i = 0; i < W; i++) {
            y[part][i] = c < C ? y[part][i] - m : 0;
            variance += y[part][i] * y[part][i];
        }
    }
    variance = row_sum(variance) / C;
    // NaN if the squares overflow, as in train_gpt.c
    float r = 1 / sqrtf(variance + 1e-6f) + 0 * variance;
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int c = (part * blockDim.x + threadIdx.x) * W;
        for (int i = 0; i < W; i++) y[part][i] = w[part][i] * (y[part][i] * r);
        store(out + (size_t)row * C + c, y[part], row < rows && c < C);
    }
    if (threadIdx.x == 0 && row < rows) {
        mean[row] = m;
        rstd[row] = r;
    }
}

static void residual_layernorm_forward(act *out, act *x, real *mean, real *rstd,
                                       const act *inp, const act *branch, const act *weight,
                                       int rows, int C) {
    dim3 block = row_block(C);
    launch(residual_layernorm_forward_kernel, ceil_div(rows, block.y), block,
           out, x, mean, rstd, inp, branch, weight, rows, C);
}

// The gradient of a norm's weight sums over rows. Each norm has an array partial: each row of
// threads, or block, leaves its sum in one row of it. sum_partials adds these rows at the end of a
// layer, for all norms of the layer in one launch.
enum { ROW_BLOCKS = 4 * 132 };                       // at most: four per multiprocessor of an H200
enum { MAX_PARTIALS = 7 };    // ln_f, post_2, ln_2, post_1, q_norm, k_norm, ln_1
typedef struct {
    real *memory;                                    // for MAX_PARTIALS arrays
    size_t used;                                     // of memory
    int count;
    struct { real *out, *partial; int rows, cols; } list[MAX_PARTIALS];
} Partials;

// Returns memory for partial sums (rows,cols) of out (cols).
static real *partials_add(Partials *p, real *out, int rows, int cols) {
    real *partial = p->memory + p->used;
    p->list[p->count++] = {out, partial, rows, cols};
    p->used += (size_t)rows * cols;
    return partial;
}

// out (cols) += the rows of partial (rows,cols), for each entry of the list: blockIdx.y
__global__ void sum_partials_kernel(Partials p) {
    __shared__ float sums[8][32];
    auto entry = p.list[blockIdx.y];
    int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (c < entry.cols) {
        #pragma unroll 8                             // loads that memory answers together
        for (int r = threadIdx.y; r < entry.rows; r += 8)
            sum += entry.partial[(size_t)r * entry.cols + c];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= entry.cols) return;
    sum = entry.out[c];
    for (int y = 0; y < 8; y++) sum += sums[y][threadIdx.x];
    entry.out[c] = sum;
}

static void sum_partials(Partials *p, int C) {
    launch(sum_partials_kernel, dim3(ceil_div(C, 32), p->count), dim3(32, 8), *p);
    p->count = 0;
    p->used = 0;
}

// dx (rows,C) += the gradient that reaches x through its LayerNorm. dout, x (rows,C); weight (C);
// mean, rstd (rows). With g = dout * weight:
//   dx += rstd * (g - average(g) - n * average(g * n));  dweight (C) += the sum of dout * n
// Moves 4 C values per row (reads dx, dout and x, writes dx). Each row of threads writes its part
// of the sum for dweight to a row of partial (blocks * blockDim.y,C).
__global__ void __launch_bounds__(ROW_THREADS)
residual_layernorm_backward_kernel(act *dx, real *partial, const act *dout, const act *x,
                                   const act *weight, const real *mean, const real *rstd,
                                   int rows, int C) {
    float dw[PARTS][W] = {}, w[PARTS][W];
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int c = (part * blockDim.x + threadIdx.x) * W;
        load(w[part], weight + c, c < C);
    }
    for (int first = blockIdx.x * blockDim.y; first < rows; first += gridDim.x * blockDim.y) {
        int row = first + threadIdx.y;
        float n[PARTS][W], g[PARTS][W], d[PARTS][W], mean_g = 0, mean_gn = 0;
        float m = row < rows ? mean[row] : 0, r = row < rows ? rstd[row] : 0;
        #pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int c = (part * blockDim.x + threadIdx.x) * W;
            bool inside = row < rows && c < C;
            load(n[part], x + (size_t)row * C + c, inside);
            load(g[part], dout + (size_t)row * C + c, inside);
            load(d[part], dx + (size_t)row * C + c, inside);
        }
        #pragma unroll
        for (int part = 0; part < PARTS; part++)
            for (int i = 0; i < W; i++) {
                n[part][i] = (n[part][i] - m) * r;
                dw[part][i] += g[part][i] * n[part][i];
                g[part][i] *= w[part][i];
                mean_g += g[part][i];
                mean_gn += g[part][i] * n[part][i];
            }
        mean_g = row_sum(mean_g) / C;
        mean_gn = row_sum(mean_gn) / C;
        #pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int c = (part * blockDim.x + threadIdx.x) * W;
            for (int i = 0; i < W; i++)
                d[part][i] += r * (g[part][i] - mean_g - n[part][i] * mean_gn);
            store(dx + (size_t)row * C + c, d[part], row < rows && c < C);
        }
    }
    partial += ((size_t)blockIdx.x * blockDim.y + threadIdx.y) * C;
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int c = (part * blockDim.x + threadIdx.x) * W;
        store(partial + c, dw[part], c < C);
    }
}

static void residual_layernorm_backward(act *dx, real *dweight, const act *dout, const act *x,
                                        const act *weight, const real *mean, const real *rstd,
                                        Partials *partial, int rows, int C) {
    dim3 block = row_block(C);
    int grid = least(ceil_div(rows, block.y), ROW_BLOCKS);
    real *sums = partials_add(partial, dweight, grid * block.y, C);
    launch(residual_layernorm_backward_kernel, grid, block, dx, sums, dout, x, weight, mean, rstd,
           rows, C);
}

// out (rows,OC) = inp (rows,IC) weight^T; weight (OC,IC)
static void matmul_forward(act *out, const act *inp, const act *weight,
                           int rows, int IC, int OC) {
    matmul(out, (act *)NULL, matrix(inp, IC), transposed(weight, IC), rows, OC, IC);
}

// dinp (rows,IC) = dout (rows,OC) weight;  dweight (OC,IC) += dout^T inp
static void matmul_backward(act *dinp, real *dweight, const act *dout, const act *inp,
                            const act *weight, int rows, int IC, int OC) {
    matmul(dinp, (act *)NULL, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
    matmul(dweight, dweight, transposed(dout, OC), matrix(inp, IC), OC, IC, rows);
}

// Like matmul_backward, for another layer that reads the same inp: adds to dinp, does not set it.
static void matmul_backward_add(act *dinp, real *dweight, const act *dout,      // [gate
                                const act *inp, const act *weight, int rows, int IC, int OC) {
    matmul(dinp, dinp, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
    matmul(dweight, dweight, transposed(dout, OC), matrix(inp, IC), OC, IC, rows);
}                                                                               // gate]

// A head of q or k stays in the registers of a group of lanes, PAIRS pairs (i, i + HS/2) in each.
// The number of lanes is a power of 2, so that a warp holds whole groups.
enum { PAIRS = 4, MAX_HS = 128, HEAD_THREADS = 128 };
typedef struct { float x[2][PAIRS]; } Head;          // one lane's part
static int head_lanes(int HS) {
    int lanes = 1;
    while (lanes * 2 * PAIRS < HS) lanes *= 2;
    return lanes;
}

__device__ inline Head load_head(const act *from, int HS, bool inside) {
    Head h;
    load(h.x[0], from, inside);
    load(h.x[1], from + HS / 2, inside);
    return h;
}

__device__ inline void store_head(act *to, const Head &h, int HS, bool inside) {
    store(to, h.x[0], inside);
    store(to + HS / 2, h.x[1], inside);
}

// Rotary positions (Su et al. 2021): turns each pair, forward if direction is 1, back if -1.
__device__ inline void rope_head(Head &h, const float (&cosine)[PAIRS], const float (&sine)[PAIRS],
                                 float direction) {
    for (int i = 0; i < PAIRS; i++) {
        float x0 = h.x[0][i], x1 = h.x[1][i], s = direction * sine[i];
        h.x[0][i] = x0 * cosine[i] - x1 * s;
        h.x[1][i] = x0 * s + x1 * cosine[i];
    }
}

// h = LayerNorm(h), and its mean and rstd, as in residual_layernorm_forward. Lanes that are not
// inside of the head hold zeros.
__device__ inline void layernorm_head(Head &h, real *mean, real *rstd, const Head &weight,
                                      bool inside, int HS, int lanes) {
    float m = 0, variance = 0;
    for (int i = 0; i < PAIRS; i++) m += h.x[0][i] + h.x[1][i];
    m = lanes_sum(m, lanes) / HS;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < PAIRS; i++) {
            h.x[part][i] = inside ? h.x[part][i] - m : 0;
            variance += h.x[part][i] * h.x[part][i];
        }
    variance = lanes_sum(variance, lanes) / HS;
    float r = 1 / sqrtf(variance + 1e-6f) + 0 * variance;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < PAIRS; i++) h.x[part][i] = weight.x[part][i] * (h.x[part][i] * r);
    if (inside && threadIdx.x % lanes == 0) {
        *mean = m;
        *rstd = r;
    }
}

// g, the gradient of LayerNorm(x), becomes that of x; dweight += its share of the weight's. As in
// residual_layernorm_backward.
__device__ inline void layernorm_head_backward(Head &g, Head &dweight, const Head &x,
                                               const Head &weight, float mean, float rstd,
                                               int HS, int lanes) {
    float mean_g = 0, mean_gn = 0;
    Head n;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < PAIRS; i++) {
            n.x[part][i] = (x.x[part][i] - mean) * rstd;
            dweight.x[part][i] += g.x[part][i] * n.x[part][i];
            g.x[part][i] *= weight.x[part][i];
            mean_g += g.x[part][i];
            mean_gn += g.x[part][i] * n.x[part][i];
        }
    mean_g = lanes_sum(mean_g, lanes) / HS;
    mean_gn = lanes_sum(mean_gn, lanes) / HS;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < PAIRS; i++)
            g.x[part][i] = rstd * (g.x[part][i] - mean_g - n.x[part][i] * mean_gn);
}

// partial (HS) = the sum of h over the heads of the block. The groups of a warp hold the same
// channels, and so do the warps.
__device__ inline void sum_heads(real *partial, const Head &h, int HS, int lanes) {
    __shared__ float shares[HEAD_THREADS / 32][MAX_HS];
    int i0 = threadIdx.x % lanes * PAIRS;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < PAIRS; i++) {
            float sum = h.x[part][i];
            for (int distance = 16; distance >= lanes; distance /= 2)
                sum += __shfl_xor_sync(ALL, sum, distance);
            if ((int)threadIdx.x % 32 < lanes && i0 < HS / 2)
                shares[threadIdx.x / 32][part * (HS / 2) + i0 + i] = sum;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < HS; i += HEAD_THREADS) {
        float sum = 0;
        for (int warp = 0; warp < HEAD_THREADS / 32; warp++) sum += shares[warp][i];
        partial[i] = sum;
    }
}

// Computes the q and k that attention sees, qk (B,T,2,C), from qkv (B,T,3,C), the output of the
// linear layer c_attn: by qk-norm, LayerNorm of each head with q_weight or k_weight (HS), which are
// NULL without it; then by RoPE. mean, rstd (B,T,2,NH): of qk-norm; cosine, sine (T,HS/2). Moves
// 4 C values per token.
__global__ void qk_norm_rope_forward_kernel(act *qk, real *mean, real *rstd, const act *qkv,
                                            const act *q_weight, const act *k_weight,
                                            const real *cosine, const real *sine,
                                            int rows, int T, int NH, int HS, int lanes) {
    // a group of lanes has a head of q and the same head of k, which turn by the same angles
    unsigned head = (blockIdx.x * HEAD_THREADS + threadIdx.x) / lanes;
    int row = head / NH, h = head % NH, C = NH * HS;
    int i0 = threadIdx.x % lanes * PAIRS;            // this lane's first pair
    bool inside = row < rows && i0 < HS / 2;
    int angles = row % T * (HS / 2) + i0;
    size_t from = (size_t)row * 3 * C + h * HS + i0, to = (size_t)row * 2 * C + h * HS + i0;
    float cos_t[PAIRS], sin_t[PAIRS];
    Head q = load_head(qkv + from, HS, inside), k = load_head(qkv + from + C, HS, inside);
    load(cos_t, cosine + angles, inside);
    load(sin_t, sine + angles, inside);
    if (q_weight) {                                                             // [qk_norm
        Head q_w = load_head(q_weight + i0, HS, i0 < HS / 2);
        Head k_w = load_head(k_weight + i0, HS, i0 < HS / 2);
        size_t stat = (size_t)row * 2 * NH + h;
        layernorm_head(q, mean + stat, rstd + stat, q_w, inside, HS, lanes);
        layernorm_head(k, mean + stat + NH, rstd + stat + NH, k_w, inside, HS, lanes);
    }                                                                           // qk_norm]
    rope_head(q, cos_t, sin_t, 1);
    rope_head(k, cos_t, sin_t, 1);
    store_head(qk + to, q, HS, inside);
    store_head(qk + to + C, k, HS, inside);
}

static void qk_norm_rope_forward(act *qk, real *mean, real *rstd, const act *qkv,
                                 const act *q_weight, const act *k_weight, const real *cosine,
                                 const real *sine, int B, int T, int NH, int HS) {
    int lanes = head_lanes(HS), heads = B * T * NH;
    launch(qk_norm_rope_forward_kernel, ceil_div(heads, HEAD_THREADS / lanes), HEAD_THREADS,
           qk, mean, rstd, qkv, q_weight, k_weight, cosine, sine, B * T, T, NH, HS, lanes);
}

// Converts the gradients of qk, held in the q and k parts of dqkv (B,T,3,C), to those of qkv, in
// place. First rotates back (a rotation's transpose is its inverse), then goes back through
// qk-norm. A block has heads of q, or of k. Moves 6 C values per token (reads dqkv and qkv, writes
// dqkv), 4 C without qk-norm. partial (2,blocks,HS): the weights' gradients.
__global__ void qk_norm_rope_backward_kernel(act *dqkv, real *partial, const act *qkv,
                                             const real *mean, const real *rstd,
                                             const act *q_weight, const act *k_weight,
                                             const real *cosine, const real *sine,
                                             int rows, int T, int NH, int HS, int lanes) {
    int C = NH * HS, heads = rows * NH, each = HEAD_THREADS / lanes, k = blockIdx.y;
    int i0 = threadIdx.x % lanes * PAIRS;
    Head weight = {}, dweight = {};
    if (q_weight)                                                               // [qk_norm
        weight = load_head((k ? k_weight : q_weight) + i0, HS, i0 < HS / 2);    // qk_norm]
    for (int first = blockIdx.x * each; first < heads; first += gridDim.x * each) {
        int head = first + threadIdx.x / lanes;
        bool inside = head < heads && i0 < HS / 2;
        int row = head / NH, h = head % NH, angles = row % T * (HS / 2) + i0;
        size_t at = ((size_t)row * 3 + k) * C + h * HS + i0, stat = ((size_t)row * 2 + k) * NH + h;
        float cos_t[PAIRS], sin_t[PAIRS];
        // all loads come first, also those that only qk-norm needs
        Head g = load_head(dqkv + at, HS, inside);
        Head x = load_head(qkv + at, HS, inside && q_weight);
        float m = inside && q_weight ? mean[stat] : 0, r = inside && q_weight ? rstd[stat] : 0;
        load(cos_t, cosine + angles, inside);
        load(sin_t, sine + angles, inside);
        rope_head(g, cos_t, sin_t, -1);
        if (q_weight)                                                           // [qk_norm
            layernorm_head_backward(g, dweight, x, weight, m, r, HS, lanes);    // qk_norm]
        store_head(dqkv + at, g, HS, inside);
    }
    if (q_weight) {                                                             // [qk_norm
        partial += ((size_t)k * gridDim.x + blockIdx.x) * HS;
        sum_heads(partial, dweight, HS, lanes);
    }                                                                           // qk_norm]
}

static void qk_norm_rope_backward(act *dqkv, real *dq_weight, real *dk_weight, const act *qkv,
                                  const real *mean, const real *rstd, const act *q_weight,
                                  const act *k_weight, const real *cosine, const real *sine,
                                  Partials *partial, int B, int T, int NH, int HS) {
    int lanes = head_lanes(HS), heads = B * T * NH;
    int grid = least(ceil_div(heads, HEAD_THREADS / lanes), ROW_BLOCKS);    // for q, and for k
    real *sums = NULL;
    if (q_weight) {                                                             // [qk_norm
        sums = partials_add(partial, dq_weight, grid, HS);
        partials_add(partial, dk_weight, grid, HS);  // lies behind sums: the kernel writes both
    }                                                                           // qk_norm]
    launch(qk_norm_rope_backward_kernel, dim3(grid, 2), HEAD_THREADS, dqkv, sums, qkv, mean, rstd,
           q_weight, k_weight, cosine, sine, B * T, T, NH, HS, lanes);
}

// Causal attention: out_i = sum over j <= i of p_ij v_j, where p_i is the softmax over j of the
// scores (attention logits) s_ij = scale * dot(q_i, k_j).
// If cap is not 0, cap tanh(s_ij / cap) takes the place of s_ij in p_ij: the dot products, capped
// at cap / scale, the kernels' cap. Each kernel is compiled with CAP and without: a cap of 0 costs
// nothing.
//
// Scores and p stay in registers (Dao 2023, FlashAttention-2): a warp keeps 16 queries of a head
// and reads the keys tile by tile; for dk and dv it keeps 16 keys and reads the queries. Of each
// block of 16 x 16 scores a lane holds 8, of two rows (lib/gpu.h): element e is in its row
// e / 2 % 2, so top[2] and sum[2] are per row. Four neighbouring lanes share the two rows, four
// columns of each per lane. The backward pass recomputes p from
// softmax (B,NH,T,2), which holds two numbers per query: the largest score, and 1 / the sum of
// exp(score - largest). One number, the log of the sum of exp(score), would not be enough: near 1e6
// a float rounds it by up to 0.03, which puts p off by 3%.
//
// A GPU computes 2^x, so scores are in units of ln 2 here, and exp(score) is 2^s. __fmul_rn rounds
// scale * dot alike in all three kernels. Fused with the subtraction of the largest score, it would
// not be rounded: above 1e9 even the largest score minus itself would be far from 0.
enum { ROWS = 64, ATTENTION_THREADS = 2 * ROWS };    // queries or keys of a block, 16 per warp

// Rows of a head in shared memory: at most 8 KB, and 16 bytes after each row, which spread a column
// over all banks. CH is HS rounded up to 32, 64 or 128; channels beyond HS are zeros.
template <int CH> struct Tile {
    enum { HEIGHT = CH * sizeof(act) < 128 ? 64 : 8192 / (CH * sizeof(act)) };    // rows
    enum { N = 16 / sizeof(act), LD = CH + N };      // elements in 16 bytes, and from row to row
    __align__(16) act x[HEIGHT * LD];
};

// Starts to copy `from` (rows,HS), `row` elements from one row to the next, to tile; zeros beyond
template <int CH>
__device__ inline void fetch(Tile<CH> &tile, const act *from, int row, int rows, int HS) {
    const int N = Tile<CH>::N, STEP = ATTENTION_THREADS * N / CH;
    int r = threadIdx.x * N / CH, c = threadIdx.x * N % CH;
    act *to = tile.x + r * Tile<CH>::LD + c;
    #pragma unroll
    for (int i = 0; i < Tile<CH>::HEIGHT; i += STEP) {
        int zeros = r + i < rows && c < HS ? 0 : 16;    // bytes to set to 0 instead of reading them
        __pipeline_memcpy_async(to + i * Tile<CH>::LD, from + ((r + i) * row + c), 16, zeros);
    }
}

// Waits until the tiles that this block fetches are complete and no warp reads the others.
__device__ inline void wait_for_tiles() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
}

// The block at row i and channel c of tile as the right factor of a product that sums over the
// block's rows or, transposed, over its channels
template <int CH> __device__ inline Right over_rows(const Tile<CH> &tile, int i, int c) {
    return right_factor(tile.x + i * Tile<CH>::LD + c, Tile<CH>::LD);
}
template <int CH> __device__ inline Right over_channels(const Tile<CH> &tile, int i, int c) {
    return right_transposed(tile.x + i * Tile<CH>::LD + c, Tile<CH>::LD);
}

// Rows i to i + 15 of x (rows,HS) = sums, each row times its factor. `row` elements lead from one
// row of x to the next.
template <int CH>
__device__ inline void store_rows(act *x, int row, int i, int rows, int HS,
                                  const float (&sums)[CH / 16][8], const float (&factor)[2]) {
    #pragma unroll
    for (int c = 0; c < CH / 16; c++)
        for (int e = 0; e < 8; e += 2) {
            int r = i + block_row(e), column = 16 * c + block_column(e);
            Pair y = pair(sums[c][e] * factor[e / 2 % 2], sums[c][e + 1] * factor[e / 2 % 2]);
            if (r < rows && column < HS) *(Pair *)(x + (size_t)r * row + column) = y;
        }
}

// Caps a score (Bello et al. 2016; Gemma 2, arXiv 2408.00118): returns cap tanh(s / cap).
// *slope is its derivative, 1 - tanh^2. With e = exp(-2 |s| / cap), tanh is (1 - e) / (1 + e), and
// its derivative 4 e / (1 + e)^2, which is right also where tanh rounds to 1. A hidden score stays
// -infinity.
__device__ inline real soft_cap(real s, real cap, real *slope) {                // [attn_cap
    real e = exponential(-2 * reciprocal(cap) * fabsf(s)), inverse = reciprocal(1 + e);
    *slope = 4 * (e * inverse) * inverse;
    return s == -INFINITY ? s : copysignf(cap * (inverse - e * inverse), s);
}                                                                               // attn_cap]

// The kernel for heads of HS channels
// NOLINTNEXTLINE(bugprone-macro-parentheses): (f)<32, CAP> would be a comparison
#define FOR_HEADS(f, CAP) (HS <= 32 ? f<32, CAP> : HS <= 64 ? f<64, CAP> : f<128, CAP>)

// out (B,T,C) from q and k in qk (B,T,2,C) and v in qkv (B,T,3,C). max_logit (NH), unless NULL, is
// raised to the largest |s_ij| of each head, before the cap. A block has ROWS queries, the longest
// rows first. Blocks of a head are neighbours: they find its keys and values in L2. Moves 4 C
// values per token.
// The compiler may use as many registers as leave room for 2 or 3 blocks on a multiprocessor.
template <int CH, bool CAP>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 || CAP ? 2 : 3)
attention_forward_kernel(act *out, float *softmax, float *max_logit, const act *qk,
                         const act *qkv, float scale, float cap, int T, int NH, int HS) {
    const int KEYS = Tile<CH>::HEIGHT;
    __shared__ Tile<CH> k_tile[2], v_tile[2];
    int C = NH * HS, head = blockIdx.z * NH + blockIdx.y;
    int end = (gridDim.x - blockIdx.x) * ROWS, i0 = end - ROWS + threadIdx.x / 32 * 16;
    size_t first = (size_t)blockIdx.z * T, channel = blockIdx.y * HS;
    const act *q = qk + first * 2 * C + channel, *k = q + C;
    const act *v = qkv + first * 3 * C + 2 * C + channel;
    fetch(k_tile[0], k, 2 * C, T, HS);
    fetch(v_tile[0], v, 3 * C, T, HS);
    Left qi[CH / 16];                                // this warp's queries i0 .. i0 + 15
    #pragma unroll
    for (int c = 0; c < CH / 16; c++) qi[c] = left_factor(q, 2 * C, i0, T, 16 * c, HS);
    float o[CH / 16][8] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, largest = 0;
    end = least(end, T);
    for (int j0 = 0, now = 0; j0 < end; j0 += KEYS, now ^= 1) {
        wait_for_tiles();
        if (j0 + KEYS < end) {                       // the next tile, while this one is used
            k += KEYS * 2 * C;
            v += KEYS * 3 * C;
            fetch(k_tile[now ^ 1], k, 2 * C, T - j0 - KEYS, HS);
            fetch(v_tile[now ^ 1], v, 3 * C, T - j0 - KEYS, HS);
        }
        if (j0 > i0 + 15) continue;                  // no query of this warp sees these keys
        // 1. scores = q k^T
        float s[KEYS / 16][8] = {}, factor[2], slope;
        #pragma unroll
        for (int n = 0; n < KEYS / 16; n++)
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(s[n], qi[c], over_channels(k_tile[now], 16 * n, 16 * c));
        // 2. the largest score; cap, scale and mask, which only the diagonal needs
        if (CAP || max_logit || j0 + KEYS - 1 > i0)
            for (int n = 0; n < KEYS / 16; n++)
                for (int e = 0; e < 8; e++) {
                    bool seen = j0 + 16 * n + block_column(e) <= i0 + block_row(e);
                    largest = fmaxf(largest, seen ? fabsf(s[n][e]) : 0);
                    if (CAP) s[n][e] = soft_cap(s[n][e], cap, &slope);          // [attn_cap]
                    s[n][e] = seen ? s[n][e] : -INFINITY;
                }
        float old[2] = {top[0], top[1]};
        for (int n = 0; n < KEYS / 16; n++)
            for (int e = 0; e < 8; e++) {
                s[n][e] = __fmul_rn(s[n][e], scale * PER_LN_2);
                top[e / 2 % 2] = fmaxf(top[e / 2 % 2], s[n][e]);
            }
        // 3. exponentials and their sum
        float from[2];                               // top, or 0 if all scores are -infinity so far
        for (int r = 0; r < 2; r++) {
            // over the four lanes that share the row
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL, top[r], 2));
            from[r] = top[r] == -INFINITY ? 0 : top[r];
            // sum and o were computed relative to the old top
            factor[r] = power_of_2(old[r] - from[r]);
            sum[r] *= factor[r];
        }
        for (int n = 0; n < KEYS / 16; n++)
            for (int e = 0; e < 8; e++) {
                s[n][e] = power_of_2(s[n][e] - from[e / 2 % 2]);
                sum[e / 2 % 2] += s[n][e];
            }
        // 4. out = p v / sum
        #pragma unroll
        for (int c = 0; c < CH / 16; c++)
            for (int e = 0; e < 8; e++) o[c][e] *= factor[e / 2 % 2];
        #pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            Left p = left_factor(s[n]);
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(o[c], p, over_rows(v_tile[now], 16 * n, 16 * c));
        }
    }
    float inverse[2];
    for (int r = 0; r < 2; r++) {
        int i = i0 + block_row(2 * r);
        inverse[r] = 1 / lanes_sum(sum[r], 4);
        if (threadIdx.x % 4 == 0 && i < T) {
            softmax[2 * ((size_t)head * T + i)] = top[r];
            softmax[2 * ((size_t)head * T + i) + 1] = inverse[r];
        }
    }
    store_rows<CH>(out + first * C + channel, C, i0, T, HS, o, inverse);
    if (!max_logit) return;
    for (int distance = 16; distance > 0; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, distance));
    // a maximum is the same in any order, and floats from 0 up are ordered as their bits are
    if (threadIdx.x % 32 == 0)
        atomicMax((int *)max_logit + blockIdx.y, __float_as_int(scale * largest));
}

static void attention_forward(act *out, float *softmax, float *max_logit, const act *qk,
                              const act *qkv, float scale, float cap,
                              int B, int T, int NH, int HS) {
    auto kernel = FOR_HEADS(attention_forward_kernel, false);
    if (cap > 0) kernel = FOR_HEADS(attention_forward_kernel, true);            // [attn_cap]
    launch(kernel, dim3(ceil_div(T, ROWS), NH, B), ATTENTION_THREADS, out, softmax, max_logit, qk,
           qkv, scale, cap / scale, T, NH, HS);
}

// dqkv (B,T,3,C), the gradients of q and k in qk and of v in qkv, from dout and out (B,T,C):
//   dp_ij = dot(dout_i, v_j);  ds_ij = scale * p_ij (dp_ij - dot(dout_i, out_i))
//   dq = ds k;  dk = ds^T q;  dv = p^T dout
// With a cap, ds_ij is also multiplied by the cap's derivative.
// dq is a sum over keys, dk and dv are sums over queries. Two kernels keep these sums in registers,
// in a fixed order, and both compute p and ds. The scale of ds is applied to the sums.

// dq, and dot (B,NH,T): dot_i = dot(dout_i, out_i). Moves 6 C values per token.
template <int CH, bool CAP>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 || CAP ? 2 : 3)
attention_dq_kernel(act *dqkv, float *dot, const act *dout, const act *out, const float *softmax,
                    const act *qk, const act *qkv, float scale, float cap, int T, int NH, int HS) {
    const int KEYS = Tile<CH>::HEIGHT;
    __shared__ Tile<CH> k_tile[2], v_tile[2];
    int C = NH * HS, head = blockIdx.z * NH + blockIdx.y;
    int end = (gridDim.x - blockIdx.x) * ROWS, i0 = end - ROWS + threadIdx.x / 32 * 16;
    size_t first = (size_t)blockIdx.z * T, channel = blockIdx.y * HS;
    const act *q = qk + first * 2 * C + channel, *k = q + C;
    const act *v = qkv + first * 3 * C + 2 * C + channel;
    fetch(k_tile[0], k, 2 * C, T, HS);
    fetch(v_tile[0], v, 3 * C, T, HS);
    Left qi[CH / 16], doi[CH / 16];
    float dq[CH / 16][8] = {}, top[2] = {}, inverse[2] = {}, dot_i[2] = {};
    #pragma unroll
    for (int c = 0; c < CH / 16; c++) {
        size_t at = first * C + channel;
        Left oi = left_factor(out + at, C, i0, T, 16 * c, HS);
        qi[c] = left_factor(q, 2 * C, i0, T, 16 * c, HS);
        doi[c] = left_factor(dout + at, C, i0, T, 16 * c, HS);
        for (int e = 0; e < 8; e++) dot_i[e / 2 % 2] += element(doi[c], e) * element(oi, e);
    }
    for (int r = 0; r < 2; r++) {
        size_t i = i0 + block_row(2 * r), at = (size_t)head * T + i;
        dot_i[r] = lanes_sum(dot_i[r], 4);
        if (i >= (size_t)T) continue;
        top[r] = softmax[2 * at];
        inverse[r] = softmax[2 * at + 1];
        if (threadIdx.x % 4 == 0) dot[at] = dot_i[r];
    }
    end = least(end, T);
    for (int j0 = 0, now = 0; j0 < end; j0 += KEYS, now ^= 1) {
        wait_for_tiles();
        if (j0 + KEYS < end) {                       // the next tile, while this one is used
            k += KEYS * 2 * C;
            v += KEYS * 3 * C;
            fetch(k_tile[now ^ 1], k, 2 * C, T - j0 - KEYS, HS);
            fetch(v_tile[now ^ 1], v, 3 * C, T - j0 - KEYS, HS);
        }
        if (j0 > i0 + 15) continue;
        #pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            // 1. scores = q k^T, dp = dout v^T
            float s[8] = {}, dp[8] = {}, ds[8], slope;
            #pragma unroll
            for (int c = 0; c < CH / 16; c++) {
                multiply(s, qi[c], over_channels(k_tile[now], 16 * n, 16 * c));
                multiply(dp, doi[c], over_channels(v_tile[now], 16 * n, 16 * c));
            }
            // 2. p and ds
            if (j0 + 16 * n + 15 > i0)
                for (int e = 0; e < 8; e++)
                    if (j0 + 16 * n + block_column(e) > i0 + block_row(e)) s[e] = -INFINITY;
            for (int e = 0; e < 8; e++) {
                int r = e / 2 % 2;
                if (CAP) s[e] = soft_cap(s[e], cap, &slope);                    // [attn_cap]
                s[e] = __fmul_rn(s[e], scale * PER_LN_2);
                float p = power_of_2(s[e] - top[r]) * inverse[r];
                ds[e] = p * (dp[e] - dot_i[r]);
                if (CAP) ds[e] *= slope;                                        // [attn_cap]
            }
            // 3. dq = ds k
            Left ds_i = left_factor(ds);
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(dq[c], ds_i, over_rows(k_tile[now], 16 * n, 16 * c));
        }
    }
    float factor[2] = {scale, scale};
    store_rows<CH>(dqkv + first * 3 * C + channel, 3 * C, i0, T, HS, dq, factor);
}

// dk and dv. Rows of scores and p are keys here, columns are queries. Moves 6 C values per token.
template <int CH, bool CAP>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 || CAP ? 2 : 3)
attention_dkv_kernel(act *dqkv, const float *dot, const act *dout, const float *softmax,
                     const act *qk, const act *qkv, float scale, float cap,
                     int T, int NH, int HS) {
    const int QUERIES = Tile<CH>::HEIGHT;
    __shared__ Tile<CH> q_tile[2], do_tile[2];
    __shared__ __align__(16) float softmax_tile[2][2 * QUERIES], dot_tile[2][QUERIES];
    int C = NH * HS, head = blockIdx.z * NH + blockIdx.y;
    int begin = blockIdx.x * ROWS, j0 = begin + threadIdx.x / 32 * 16;
    size_t first = (size_t)blockIdx.z * T, channel = blockIdx.y * HS;
    size_t at = first + begin;                       // the block's first key, and first query
    const act *q = qk + at * 2 * C + channel, *d = dout + at * C + channel;
    const act *k = qk + first * 2 * C + C + channel, *v = qkv + first * 3 * C + 2 * C + channel;
    auto fetch_queries = [&](int now, int i0) {
        fetch(q_tile[now], q, 2 * C, T - i0, HS);
        fetch(do_tile[now], d, C, T - i0, HS);
        q += QUERIES * 2 * C;
        d += QUERIES * C;
        int i = threadIdx.x, query = head * T + least(i0 + i, T - 1);
        int zeros = i0 + i < T ? 0 : 4;
        if (i >= QUERIES) return;
        __pipeline_memcpy_async(&softmax_tile[now][2 * i], softmax + 2 * query, 8, 2 * zeros);
        __pipeline_memcpy_async(&dot_tile[now][i], dot + query, 4, zeros);
    };
    fetch_queries(0, begin);
    Left kj[CH / 16], vj[CH / 16];
    float dk[CH / 16][8] = {}, dv[CH / 16][8] = {};
    #pragma unroll
    for (int c = 0; c < CH / 16; c++) {
        kj[c] = left_factor(k, 2 * C, j0, T, 16 * c, HS);
        vj[c] = left_factor(v, 3 * C, j0, T, 16 * c, HS);
    }
    for (int i0 = begin, now = 0; i0 < T; i0 += QUERIES, now ^= 1) {
        wait_for_tiles();
        if (i0 + QUERIES < T) fetch_queries(now ^ 1, i0 + QUERIES);
        if (i0 + QUERIES <= j0) continue;            // no key of this warp is seen by them
        #pragma unroll 1                             // more would not fit in the registers
        for (int n = 0; n < QUERIES / 16; n++) {
            // 1. transposed scores = k q^T, transposed dp = v dout^T; so are p and ds below
            float s[8] = {}, dp[8] = {}, p[8], ds[8], slope;
            #pragma unroll
            for (int c = 0; c < CH / 16; c++) {
                multiply(s, kj[c], over_channels(q_tile[now], 16 * n, 16 * c));
                multiply(dp, vj[c], over_channels(do_tile[now], 16 * n, 16 * c));
            }
            // 2. p and ds
            if (i0 + 16 * n < j0 + 15)
                for (int e = 0; e < 8; e++)
                    if (j0 + block_row(e) > i0 + 16 * n + block_column(e)) s[e] = -INFINITY;
            for (int e = 0; e < 8; e++) {
                int i = 16 * n + block_column(e);
                float top = softmax_tile[now][2 * i], inverse = softmax_tile[now][2 * i + 1];
                if (CAP) s[e] = soft_cap(s[e], cap, &slope);                    // [attn_cap]
                s[e] = __fmul_rn(s[e], scale * PER_LN_2);
                p[e] = power_of_2(s[e] - top) * inverse;
                ds[e] = p[e] * (dp[e] - dot_tile[now][i]);
                if (CAP) ds[e] *= slope;                                        // [attn_cap]
            }
            // 3. dk = ds^T q
            Left ds_j = left_factor(ds), p_j = left_factor(p);
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(dk[c], ds_j, over_rows(q_tile[now], 16 * n, 16 * c));
            // 4. dv = p^T dout
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(dv[c], p_j, over_rows(do_tile[now], 16 * n, 16 * c));
        }
    }
    act *to = dqkv + first * 3 * C + C + channel;
    float factor[2] = {scale, scale}, one[2] = {1, 1};
    store_rows<CH>(to, 3 * C, j0, T, HS, dk, factor);
    store_rows<CH>(to + C, 3 * C, j0, T, HS, dv, one);
}

// scratch (B,NH,T): dot_i
static void attention_backward(act *dqkv, const act *dout, const act *out, const float *softmax,
                               const act *qk, const act *qkv, float scale, float cap,
                               float *scratch, int B, int T, int NH, int HS) {
    dim3 grid(ceil_div(T, ROWS), NH, B);
    auto dq = FOR_HEADS(attention_dq_kernel, false);
    auto dkv = FOR_HEADS(attention_dkv_kernel, false);
    if (cap > 0) dq = FOR_HEADS(attention_dq_kernel, true);                     // [attn_cap]
    if (cap > 0) dkv = FOR_HEADS(attention_dkv_kernel, true);                   // [attn_cap]
    launch(dq, grid, ATTENTION_THREADS, dqkv, scratch, dout, out, softmax, qk, qkv, scale,
           cap / scale, T, NH, HS);
    launch(dkv, grid, ATTENTION_THREADS, dqkv, scratch, dout, softmax, qk, qkv, scale,
           cap / scale, T, NH, HS);
}

// Returns the sigmoid, 1 / (1 + exp(-x)). *slope is its derivative. e = exp(-|x|) cannot overflow.
__device__ inline real sigmoid(real x, real *slope) {
    real e = exponential(-fabsf(x)), inverse = reciprocal(1 + e);
    *slope = e * inverse * inverse;
    return (x > 0 ? 1 : e) * inverse;
}

// Gated attention (Qiu et al. 2025, arXiv 2505.06708): out = att * sigmoid(gate), element by
// element; all (n). gate is a linear layer of attention's input. Moves 3 values per element.
__global__ void gate_forward_kernel(act *out, const act *att, const act *gate, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    float x[W], y[W], slope;
    load(x, gate + at);
    load(y, att + at);
    for (int i = 0; i < W; i++) y[i] *= sigmoid(x[i], &slope);
    store(out + at, y);
}

static void gate_forward(act *out, const act *att, const act *gate, int rows, int C) {
    size_t n = (size_t)rows * C;
    launch(gate_forward_kernel, (n / W + 127) / 128, 128, out, att, gate, n);
}

// dgate = dout * att * sigmoid'(gate);  datt = dout * sigmoid(gate). datt may be dout. Moves 5
// values per element.
__global__ void gate_backward_kernel(act *datt, act *dgate, const act *dout, const act *att,
                                     const act *gate, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    float x[W], y[W], d[W], slope;
    load(x, gate + at);
    load(y, att + at);
    load(d, dout + at);
    for (int i = 0; i < W; i++) {
        real s = sigmoid(x[i], &slope);
        y[i] *= d[i] * slope;
        d[i] *= s;
    }
    store(dgate + at, y);
    store(datt + at, d);
}

static void gate_backward(act *datt, act *dgate, const act *dout, const act *att, const act *gate,
                          int rows, int C) {
    size_t n = (size_t)rows * C;
    launch(gate_backward_kernel, (n / W + 127) / 128, 128, datt, dgate, dout, att, gate, n);
}

// GELU in its tanh form, computed as in train_gpt.c: gelu(x) = x s with s = 1 / (1 + exp(-2u)) and
// 2u = x (A + B x^2), from e = exp(-|2u|). *slope = gelu'(x): train_gpt.c keeps it for the backward
// pass; here that pass computes it again, since memory costs more than an exponential.
#define GELU_A ((real)1.5957691216057308)            // 2 sqrt(2/pi)
#define GELU_B (GELU_A * (real)0.044715)
__device__ inline real gelu(real x, real *slope) {
    real a = fabsf(x) < 30 ? fabsf(x) : 30;
    real a2 = a * a;
    real e = exponential(-a * (GELU_A + GELU_B * a2));
    real inverse = reciprocal(1 + e);
    real s = (x > 0 ? 1 : e) * inverse;
    *slope = s + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * a2);
    return x * s;
}

// inp, out (n): out = gelu(inp). Moves 2 values per element.
__global__ void gelu_forward_kernel(act *out, const act *inp, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    float x[W], slope;
    load(x, inp + at);
    for (int i = 0; i < W; i++) x[i] = gelu(x[i], &slope);
    store(out + at, x);
}

static void gelu_forward(act *out, const act *inp, int rows, int C) {
    size_t n = (size_t)rows * C;
    launch(gelu_forward_kernel, (n / W + 127) / 128, 128, out, inp, n);
}

// dinp (n) = dout * gelu'(inp). dinp may be dout. Moves 3 values per element.
__global__ void gelu_backward_kernel(act *dinp, const act *dout, const act *inp, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    float x[W], d[W], slope;
    load(x, inp + at);
    load(d, dout + at);
    for (int i = 0; i < W; i++) {
        gelu(x[i], &slope);
        d[i] *= slope;
    }
    store(dinp + at, d);
}

static void gelu_backward(act *dinp, const act *dout, const act *inp, int rows, int C) {
    size_t n = (size_t)rows * C;
    launch(gelu_backward_kernel, (n / W + 127) / 128, 128, dinp, dout, inp, n);
}

// fc (rows,OC) = inp (rows,IC) weight^T;  out (rows,OC) = gelu(fc). cuBLASLt can compute GELU, and
// its gradient, as the last step of a product. On an H200 a step of the shape above then took 3%
// longer, and GELU's gradient was NaN at 1e20.
static void matmul_gelu_forward(act *out, act *fc, const act *inp, const act *weight,
                                int rows, int IC, int OC) {
    matmul_forward(fc, inp, weight, rows, IC, OC);
    gelu_forward(out, fc, rows, OC);
}

// Goes back through the product after GELU, gelu (rows,IC) weight^T, and then through GELU. Unlike
// matmul_gelu_forward, leaves the product before GELU to matmul_backward:
//   dfc (rows,IC) = gelu'(fc) * (dout (rows,OC) weight);  dweight (OC,IC) += dout^T gelu
static void matmul_gelu_backward(act *dfc, real *dweight, const act *dout, const act *fc,
                                 const act *gelu, const act *weight, int rows, int IC, int OC) {
    matmul_backward(dfc, dweight, dout, gelu, weight, rows, IC, OC);
    gelu_backward(dfc, dfc, fc, rows, IC);
}

// Rounds logits (rows,V) to bfloat16. In bf16 they already are. Moves 2 V values per token.
__global__ void round_to_bf16_kernel(act *logits, int rows, int V) {            // [bf16_logits
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    float x[W];
    if (i >= (size_t)rows * V) return;
    load(x, logits + i);
    for (int j = 0; j < W; j++) x[j] = value(__float2bfloat16(x[j]));
    store(logits + i, x);
}

static void round_to_bf16(act *logits, int rows, int V) {
    if (BF16) return;
    launch(round_to_bf16_kernel, ceil_div(rows * (V / W), 128), 128, logits, rows, V);
}                                                                               // bf16_logits]

// Loss and gradient of one row of logits per block. With Z = sum of exp(logits) and
// p = exp(logits) / Z:
//   losses (rows) = log Z - logit[target];  log_z (rows) = log Z
// If gradient is 1, overwrites the logits with the gradient of
// mean(losses) + z_loss * mean(log_z^2), means over the batch_rows of all micro-batches,
//   dlogits = ((1 + 2 z_loss log Z) p - onehot(target)) / batch_rows
// The largest logit and the sum are found in one reading; the second finds the row in the cache.
// Moves 2 V values per token. The rows of logits (rows,V) lie padded(V) apart.
__global__ void cross_entropy_kernel(act *logits, real *losses, real *log_z, const int *targets,
                                     real z_loss, int gradient, int batch_rows, int V) {
    act *x = logits + (size_t)blockIdx.x * padded(V);
    int target = targets[blockIdx.x];
    float target_logit = value(x[target]), top = -FLT_MAX, sum = 0, y[W];
    for (int j = threadIdx.x * W; j < V; j += blockDim.x * W) {
        float old = top, total = 0;
        load(y, x + j);
        for (int i = 0; i < W; i++) {
            if (j + i >= V) y[i] = -INFINITY;
            top = fmaxf(top, y[i]);
        }
        for (int i = 0; i < W; i++) total += exponential(y[i] - top);
        sum = sum * exponential(old - top) + total;
    }
    float own = top;
    top = row_max(top);
    sum = row_sum(sum * exponential(own - top));
    float z = top + logf(sum);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = top - target_logit + logf(sum);    // the large terms first
        log_z[blockIdx.x] = z;
    }
    if (!gradient) return;
    real weight = 1;                                 // of p
    weight += 2 * z_loss * z;                                                   // [z_loss]
    float factor = weight / sum / batch_rows;
    for (int j = threadIdx.x * W; j < V; j += blockDim.x * W) {
        load(y, x + j);
        for (int i = 0; i < W; i++) {
            y[i] = j + i < V ? exponential(y[i] - top) * factor : 0;
            if (j + i == target) y[i] -= 1.0f / batch_rows;
        }
        store(x + j, y);
    }
}

static void cross_entropy(act *logits, real *losses, real *log_z, const int *targets, real z_loss,
                          int gradient, int rows, int batch_rows, int V) {
    int threads = V > 4096 ? 512 : V > 256 ? 128 : 32;    // 1,024 took a quarter longer
    launch(cross_entropy_kernel, rows, threads, logits, losses, log_z, targets, z_loss,
           gradient, batch_rows, V);
}

// What the host reads of a step. diverged_step is the first step whose loss is not finite, or 0.
// Later steps then change nothing, so that the host need not look at every step.
typedef struct {
    double loss, log_z;                              // sums over the batch
    double grad_norm;                                // before clipping
    real clip_scale;
    int diverged_step;
} Results;

// results->loss, log_z = the sums of losses, log_z (rows). Notes the first step whose loss is not
// finite. In an evaluation step is NULL: then adds the sums to results->loss, log_z.
__global__ void loss_kernel(Results *results, const real *losses, const real *log_z, int rows,
                            const int *step) {
    double loss = 0, z = 0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) {
        loss += losses[i];
        z += log_z[i];
    }
    loss = row_sum(loss);
    z = row_sum(z);
    if (threadIdx.x || (step && results->diverged_step)) return;
    if (!step) loss += results->loss;
    if (!step) z += results->log_z;
    results->loss = loss;
    results->log_z = z;
    if (step && !isfinite(loss)) results->diverged_step = *step;
}

// The block's share of the sum of x^POWER (n), which a row of blocks has to itself; POWER is 1 or
// 2. In double, since the square of a float may overflow
enum { SUM_BLOCKS = 1024 };
template <int POWER, class number> __device__ inline double block_sum(const number *x, size_t n) {
    size_t step = (size_t)gridDim.x * blockDim.x * W;
    double sum = 0;
    float y[W];
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W; i < n; i += step) {
        load(y, x + i);
        for (int j = 0; j < W; j++) sum += POWER == 2 ? (double)y[j] * y[j] : y[j];
    }
    return row_sum(sum);
}

// sums (blocks) += each block's share
template <int POWER> __global__ void sum_kernel(double *sums, const act *x, size_t n) {
    double sum = block_sum<POWER>(x, n);
    if (threadIdx.x == 0) sums[blockIdx.x] += sum;
}

static int sum_blocks(size_t n) {
    return n < (size_t)128 * W * SUM_BLOCKS ? ceil_div((int)n, 128 * W) : SUM_BLOCKS;
}

static void sum_squares(double *sums, const act *x, size_t n) {
    launch(sum_kernel<2>, sum_blocks(n), 128, sums, x, n);
}

static void sum_values(double *sums, const act *x, size_t n) {
    launch(sum_kernel<1>, sum_blocks(n), 128, sums, x, n);
}

// Where the tensors of each kind lie among all parameters, and the size of one of them: blockIdx.y
// is a kind.
typedef struct {
    size_t offset[NUM_KINDS], size[NUM_KINDS], tensor[NUM_KINDS];
    real muon[NUM_KINDS];                            // the factor of Muon's updates
} Kinds;

// sums (NUM_KINDS,blocks) = each block's share of the sum of squares of a kind in all, which are
// gradients or parameters. Moves 4 bytes per parameter.
__global__ void squares_kernel(double *sums, const real *all, Kinds kinds) {
    double sum = block_sum<2>(all + kinds.offset[blockIdx.y], kinds.size[blockIdx.y]);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// rms (NUM_KINDS,MAX_LAYERS) = max(RMS of a tensor of all, lowest), by kind and layer. A block sums
// a tensor. Moves 4 bytes per parameter.
__global__ void rms_kernel(real (*rms)[MAX_LAYERS], const real *all, double lowest, Kinds kinds) {
    int k = blockIdx.y, l = blockIdx.z;
    size_t n = kinds.tensor[k];
    if (l * n >= kinds.size[k]) return;              // this kind has no tensor l
    double sum = block_sum<2>(all + kinds.offset[k] + l * n, n);
    if (threadIdx.x == 0) rms[k][l] = (real)fmax(sqrt(sum / n), lowest);
}

// out (n) = x (n) over its norm. sums (blocks): the shares of its sum of squares
__global__ void normalize_kernel(act *out, const real *x, const double *sums, int blocks, int n) {
    int at = (blockIdx.x * blockDim.x + threadIdx.x) * W;
    double total = 0;
    float y[W];
    for (int i = threadIdx.x; i < blocks; i += blockDim.x) total += sums[i];
    real factor = (real)(1 / (sqrt(row_sum(total)) + 1e-30));
    if (at >= n) return;
    load(y, x + at);
    for (int i = 0; i < W; i++) y[i] *= factor;
    store(out + at, y);
}

// p (n,n) = a + b g + c p, where p was g g, and a is on the diagonal
__global__ void polynomial_kernel(act *p, const act *g, int n) {
    const real a = (real)3.4445, b = (real)-4.7750, c = (real)2.0315;
    int at = (blockIdx.x * blockDim.x + threadIdx.x) * W;
    float x[W], y[W];
    if (at >= n * n) return;
    load(x, g + at);
    load(y, p + at);
    for (int i = 0; i < W; i++) y[i] = b * x[i] + c * y[i] + (at / n == at % n + i ? a : 0);
    store(p + at, y);
}

// Takes x (rows,cols) = U S V^T to about U V^T, as in train_gpt.c: by the Newton-Schulz iteration
// with the coefficients of Jordan et al. (2024). Scales x to norm 1. Then replaces it five times by
// p x, where p = a + b g + c g^2 and g = x x^T; a tall x by x p, where g = x^T x. Products read
// act, as Jordan's read bf16. scratch (2,n,n) and (2,rows,cols), where n is the shorter side; sums
// (blocks). 22 launches: on a small model they take longer than the work.
static void orthogonalize(real *x, int rows, int cols, act *scratch, double *sums) {
    int tall = rows > cols, n = least(rows, cols), size = rows * cols, blocks = sum_blocks(size);
    act *g = scratch, *p = g + n * n, *y[2] = {p + n * n, p + n * n + size};
    Matrix G = matrix(g, n), P = matrix(p, n);
    Kinds one = {};
    one.size[0] = size;
    launch(squares_kernel, blocks, 128, sums, x, one);
    launch(normalize_kernel, ceil_div(size, 128 * W), 128, y[0], x, sums, blocks, size);
    for (int turn = 0; turn < 5; turn++) {
        Matrix X = matrix(y[turn % 2], cols);
        product(g, tall ? flip(X) : X, tall ? X : flip(X), n, n, size / n);
        product(p, G, G, n, n, n);
        launch(polynomial_kernel, ceil_div(n * n, 128 * W), 128, p, g, n);
        if (turn < 4) product(y[1 - turn % 2], tall ? X : P, tall ? P : X, rows, cols, n);
        else product(x, tall ? X : P, tall ? P : X, rows, cols, n);
    }
}

// ---------------------------------------------------------------------------
// What only a GPU needs: its memory, batches that travel ahead, checkpoints, steps as graphs

// The arrays on the GPU, to free them. Each is allocated separately, so that compute-sanitizer sees
// writes past its end. While creates is not set, only counts their bytes.
typedef struct {
    bool creates;
    void **list;
    int count;
    double bytes;                                    // a double does not overflow
} Memory;

// reserve does not know what it reserves: g->logits = reserve(g, n) makes C++ convert a Reserved to
// act *, and this conversion allocates n values of that type.
struct Reserved {
    Memory *memory;
    double count;
    template <class number> operator number *() const {
        double bytes = ceil(count * sizeof(number) / 512) * 512;    // as cudaMalloc rounds them
        number *at = NULL;
        memory->bytes += bytes;
        if (!memory->creates) return NULL;
        check(cudaMalloc(&at, (size_t)bytes));
        memory->list = (void **)realloc(memory->list, (memory->count + 1) * sizeof(void *));
        if (!memory->list) die(FAILED, "no memory for a list of %d arrays", memory->count + 1);
        memory->list[memory->count++] = at;
        return at;
    }
};

// A batch on the GPU, and two on the host, in pinned memory, from which the GPU copies while the
// host works. The host fills them in turn and so may be two batches ahead.
typedef struct {
    int *inputs, *targets;                           // (B,T)
    int *order, *start;                              // (B,T), (V+1): see embedding_backward
    int *host[2];                                    // the four, one after another
    cudaEvent_t copied[2];                           // the GPU no longer needs host[i]
    int turn, rows, V;                               // rows: tokens of the batch at hand
} Batch;

// memory: for 3 B T + V + 1 ints on the GPU, in one array so that one copy brings a batch
static void batch_init(Batch *b, int *memory, int B, int T, int V) {
    size_t BT = (size_t)B * T;
    *b = {};
    b->inputs = memory;
    b->targets = memory + BT;
    b->order = memory + 2 * BT;
    b->start = memory + 3 * BT;
    b->V = V;
    for (int i = 0; i < 2; i++) {
        check(cudaMallocHost((void **)&b->host[i], (3 * BT + V + 1) * sizeof(int)));
        check(cudaEventCreateWithFlags(&b->copied[i], cudaEventDisableTiming));
    }
}

// Sends inputs and targets (B,T) to the GPU, with the positions sorted by token.
static void batch_send(Batch *b, const int *inputs, const int *targets, int B, int T) {
    b->turn = !b->turn;
    check(cudaEventSynchronize(b->copied[b->turn]));
    int *host = b->host[b->turn], V = b->V;
    int *order = host + (b->order - b->inputs), *start = host + (b->start - b->inputs);
    b->rows = B * T;
    memcpy(host, inputs, b->rows * sizeof(int));
    memcpy(host + (b->targets - b->inputs), targets, b->rows * sizeof(int));
    // A counting sort. First start[v + 1] counts token v. The sums make start[v] the first place of
    // token v; placing its positions moves start[v] on to the next token's. The last loop moves the
    // starts back.
    memset(start, 0, (V + 1) * sizeof(int));
    for (int i = 0; i < b->rows; i++) start[inputs[i] + 1]++;
    for (int v = 0; v < V; v++) start[v + 1] += start[v];
    for (int i = 0; i < b->rows; i++) order[start[inputs[i]]++] = i;
    for (int v = V; v > 0; v--) start[v] = start[v - 1];
    start[0] = 0;
    size_t bytes = (b->start + V + 1 - b->inputs) * sizeof(int);
    check(cudaMemcpyAsync(b->inputs, host, bytes, cudaMemcpyHostToDevice, stream));
    check(cudaEventRecord(b->copied[b->turn], stream));
}

static void batch_free(Batch *b) {
    for (int i = 0; i < 2; i++) {
        check(cudaFreeHost(b->host[i]));
        check(cudaEventDestroy(b->copied[i]));
    }
}

// checkpoint_load and checkpoint_save, of params, m, v (n) on the GPU
static State gpu_checkpoint_load(const Config *cfg, const Parameter *table, size_t n,
                                 real *params, real *m, real *v) {
    real *host = (real *)allocate(3 * n, sizeof(real));
    State state = checkpoint_load(cfg, table, host, host + n, host + 2 * n);
    to_gpu(params, host, n * sizeof(real));
    to_gpu(m, host + n, n * sizeof(real));
    to_gpu(v, host + 2 * n, n * sizeof(real));
    free(host);
    return state;
}

static void gpu_checkpoint_save(const Config *cfg, const Parameter *table, size_t n,
                                const real *params, const real *m, const real *v,
                                const State *state) {
    real *host = (real *)allocate(3 * n, sizeof(real));
    from_gpu(host, params, n * sizeof(real));
    from_gpu(host + n, m, n * sizeof(real));
    from_gpu(host + 2 * n, v, n * sizeof(real));
    checkpoint_save(cfg, table, host, host + n, host + 2 * n, state);
    free(host);
}

// weights (n) = params (n) as act, after something other than AdamW has changed params
__global__ void weights_kernel(act *weights, const real *params, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (i >= n) return;
    float x[W];
    load(x, params + i);
    store(weights + i, x);
}

static void update_weights(act *weights, const real *params, size_t n) {
    if (BF16) launch(weights_kernel, (n / W + 127) / 128, 128, weights, params, n);
}

// The kernels of a small model take less time than their launches. So a step is recorded once, when
// it is made for the second time (cuBLAS loads its kernels in the first), and then launched whole.
typedef struct {
    cudaGraphExec_t exec;
    int runs;
} Graph;

// Queues the work: from the recorded graph, if there is one. records: whether to make one.
template <class Work> static void graph_run(Graph *graph, bool records, Work work) {
    records = records && graph->runs++ == 1;
    if (!graph->exec) {
        if (records) check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        work();
        if (!records) return;
        cudaGraph_t recorded = NULL;
        check(cudaStreamEndCapture(stream, &recorded));
        check(cudaGraphInstantiate(&graph->exec, recorded, 0));
        check(cudaGraphDestroy(recorded));
    }
    check(cudaGraphLaunch(graph->exec, stream));
}

// ---------------------------------------------------------------------------
// The model

// One layer: its weights, their gradients, what its backward pass needs, and a measurement
typedef struct {
    act *w[NUM_KINDS];                               // by kind; NULL where the model has none
    real *dw[NUM_KINDS];
    act *x;                                          // (B,T,C) the residual stream before the layer
    act *ln_1;                                       // (B,T,C)
    real *ln_1_mean, *ln_1_rstd;                     // (B,T)
    act *qkv;                                        // (B,T,3,C)
    real *qk_mean, *qk_rstd;                         // (B,T,2,NH)
    act *qk;                                         // (B,T,2,C) q and k as attention sees them
    real *softmax;                                   // (B,NH,T,2)
    real *max_logit;                                 // (NH) largest |score|, if measured
    act *att;                                        // (B,T,C)
    act *gate, *gated;                               // (B,T,C) before its sigmoid; att times it
    act *post[2];                                    // (B,T,C) inputs of the norms post_1, post_2
    real *post_mean[2], *post_rstd[2];               // (B,T)
    act *x_mid;                                      // (B,T,C) the residual stream after attention
    act *ln_2;                                       // (B,T,C)
    real *ln_2_mean, *ln_2_rstd;                     // (B,T)
    act *fc;                                         // (B,T,4C) before GELU
    act *gelu;                                       // (B,T,4C)
} Layer;

// The constants of a step. The moments start at 0, which makes them too small at first: m is
// multiplied by correction1 = 1 / (1 - beta1^step), and v by correction2.
typedef struct {
    real clip, beta1, beta2, correction1, correction2, eps, decay;
    int cautious;
    real lr[NUM_KINDS];                              // muParam gives each kind its own
    int step;
} AdamW;

typedef struct {
    Config cfg;
    int V;
    int micro_batch;                                 // sequences at a time: B of the arrays below
    Parameter table[NUM_KINDS];
    size_t num_parameters;                           // N
    size_t padded_parameters;                        // N, and rows of zeros after LM_HEAD's last
    real *params, *grads;                            // (padded_parameters)
    real *m, *v;                                     // (N) AdamW's moments
    act *weights;                                    // the same as act; in fp32 params itself
    act *w[NUM_KINDS];                               // for WTE, LN_F and LM_HEAD: one copy each
    real *dw[NUM_KINDS];
    Layer *layers;                                   // (L)
    real *cosine, *sine;                             // (T,HS/2) RoPE's table
    act *embedded;                                   // (B,T,C) the first layer's x
    act *branch;                                     // (B,T,C) output of attention or of an MLP
    act *x;                                          // (B,T,C) the residual stream at the end
    act *ln_f;                                       // (B,T,C)
    real *ln_f_mean, *ln_f_rstd;                     // (B,T)
    act *logits;                                     // (B,T,padded(V)); gpt_loss overwrites them
    real *losses, *log_z;                            // (batch,T)
    act *dx;                                         // (B,T,C) gradient of the residual stream
    act *dnorm;                                      // (B,T,C) gradient of a norm's output or att
    act *dqkv;                                       // (B,T,3,C)
    act *dgate;                                      // (B,T,C)
    act *dpost;                                      // (B,T,C) gradient of post
    act *dfc;                                        // (B,T,4C)
    real *scratch;                                   // (B,NH,T) of attention_backward
    act *muon;                                       // (10,C,C) of Muon: x, and scratch
    Partials partial[1];                             // (1) of the norms' backward passes
    real *max_logit;                                 // (L,NH) the layers' max_logit
    double (*squares)[SUM_BLOCKS];                   // (NUM_SUMS,SUM_BLOCKS)
    double *sums;                                    // (3,NUM_KINDS,blocks) of gpt_update
    real (*grad_rms)[MAX_LAYERS];                    // (NUM_KINDS,MAX_LAYERS) if measured
    real (*rms)[MAX_LAYERS];                         // of params; NULL without -rms_lr
    double *totals;                                  // (NUM_SUMS + 3 NUM_KINDS) of both
    AdamW *adamw;                                    // (1)
    Results *results;                                // (2) of the last step, and of an evaluation
    Batch batch;
    Graph graphs[2];                                 // a step without and with statistics
    Gpu gpu;
    Memory memory;                                   // holds the arrays above, except layers
} GPT;

static Reserved reserve(GPT *g, double count) { return {&g->memory, count}; }

// Finds the tensors of layer l in the array `all` (N), the weights or their gradients. out[k] is
// the one of kind k, or NULL where there is none.
template <class number>
static void find_tensors(const GPT *g, number *all, int l, number *out[NUM_KINDS]) {
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        out[k] = all && l < p->copies ? all + p->offset + (size_t)l * parameter_size(p) : NULL;
    }
}

// Places every array in GPU memory or, unless create is set, only counts their bytes. Allocates
// g->layers in both cases: call gpt_free. Sizes are doubles, since a product could overflow.
static void gpt_layout(GPT *g, const Config *cfg, int V, int B, int T, bool create) {
    memset(g, 0, sizeof *g);
    g->cfg = *cfg;
    g->cfg.vocab = g->V = V;
    int micro_batch = cfg->micro_batch ? cfg->micro_batch : B;
    g->micro_batch = least(least(micro_batch, B), 65535);    // as many as gridDim.z allows
    g->memory.creates = create;
    g->num_parameters = parameter_table(cfg, V, g->table);
    double BT = (double)g->micro_batch * T, C = cfg->d, NH = cfg->heads, HS = C / NH;
    double N = (double)g->num_parameters;
    g->padded_parameters = g->num_parameters + (size_t)(padded(V) - V) * (size_t)cfg->d;
    g->params = reserve(g, g->padded_parameters);
    g->grads = reserve(g, g->padded_parameters);
    g->m = reserve(g, N);
    g->v = reserve(g, N);
    if (BF16) g->weights = reserve(g, g->padded_parameters);
    else g->weights = (act *)g->params;
    g->cosine = reserve(g, T * HS / 2);
    g->sine = reserve(g, T * HS / 2);
    g->embedded = reserve(g, BT * C);
    g->branch = reserve(g, BT * C);
    g->max_logit = reserve(g, cfg->layers * NH);
    g->layers = (Layer *)allocate((size_t)cfg->layers, sizeof(Layer));
    for (int l = 0; l < cfg->layers; l++) {
        Layer *a = &g->layers[l];
        find_tensors(g, g->weights, l, a->w);
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
        a->max_logit = g->max_logit + l * cfg->heads;
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
        a->fc = reserve(g, BT * 4 * C);
        a->gelu = reserve(g, BT * 4 * C);
    }
    g->x = cfg->layers ? reserve(g, BT * C) : g->embedded;
    find_tensors(g, g->weights, 0, g->w);
    find_tensors(g, g->grads, 0, g->dw);
    g->ln_f = reserve(g, BT * C);
    g->ln_f_mean = reserve(g, BT);
    g->ln_f_rstd = reserve(g, BT);
    g->logits = reserve(g, BT * padded(V));
    g->losses = reserve(g, (double)B * T);
    g->log_z = reserve(g, (double)B * T);
    g->dx = reserve(g, BT * C);
    g->dnorm = reserve(g, BT * C);
    g->dqkv = reserve(g, BT * 3 * C);
    if (cfg->gate) g->dgate = reserve(g, BT * C);                               // [gate]
    if (cfg->peri_ln) g->dpost = reserve(g, BT * C);                            // [peri_ln]
    g->dfc = reserve(g, BT * 4 * C);
    g->scratch = reserve(g, BT * NH);
    if (cfg->optimizer == OPTIMIZER_MUON) g->muon = reserve(g, 10 * C * C);     // [optimizer]
    g->partial->memory = reserve(g, (double)MAX_PARTIALS * ROW_BLOCKS * row_block(C).y * C);
    g->squares = reserve(g, NUM_SUMS);
    g->sums = reserve(g, 3 * NUM_KINDS * SUM_BLOCKS);
    g->grad_rms = reserve(g, NUM_KINDS);
    if (cfg->rms_lr) g->rms = reserve(g, NUM_KINDS);                            // [rms_lr]
    g->totals = reserve(g, NUM_SUMS + 3 * NUM_KINDS);
    g->adamw = reserve(g, 1);
    g->results = reserve(g, 2);
    workspace = reserve(g, WORKSPACE);
    int *tokens = reserve(g, 3.0 * B * T + V + 1);
    if (create) batch_init(&g->batch, tokens, B, T, V);
}

static void gpt_free(GPT *g) {
    if (g->memory.creates) {
        check(cudaStreamSynchronize(stream));
        batch_free(&g->batch);
        for (int i = 0; i < 2; i++)
            if (g->graphs[i].exec) check(cudaGraphExecDestroy(g->graphs[i].exec));
        gpu_stop();
    }
    for (int i = 0; i < g->memory.count; i++) check(cudaFree(g->memory.list[i]));
    free(g->memory.list);
    free(g->layers);
}

// Makes a model of vocabulary V for up to B sequences of up to T tokens, with initial weights and
// AdamW's moments at 0. Dies if memory is short.
static void gpt_init(GPT *g, const Config *cfg, int V, int B, int T) {
    Gpu gpu = gpu_start();
    gpt_layout(g, cfg, V, B, T, false);
    double bytes = g->memory.bytes;
    gpt_free(g);
    gpu_check_memory(&gpu, bytes);
    check_memory(12 * (double)g->num_parameters);    // of the host: a checkpoint passes through it
    gpt_layout(g, cfg, V, B, T, true);
    g->gpu = gpu;
    size_t n = g->padded_parameters, table = (size_t)T * (cfg->d / cfg->heads / 2);
    real *params = (real *)allocate(n + 2 * table, sizeof(real));
    real *cosine = params + n, *sine = cosine + table;
    parameters_init(params, g->table, cfg);
    rope_table(cosine, sine, T, cfg->d / cfg->heads);
    to_gpu(g->params, params, n * sizeof(real));
    to_gpu(g->cosine, cosine, table * sizeof(real));
    to_gpu(g->sine, sine, table * sizeof(real));
    free(params);
    check(cudaMemsetAsync(g->grads, 0, n * sizeof(real), stream));
    check(cudaMemsetAsync(g->m, 0, g->num_parameters * sizeof(real), stream));
    check(cudaMemsetAsync(g->v, 0, g->num_parameters * sizeof(real), stream));
    check(cudaMemsetAsync(g->results, 0, 2 * sizeof(Results), stream));
    update_weights(g->weights, g->params, n);
}

// Normalizes the output of branch i of a layer, post[i]: 0 attention, 1 the MLP. Returns the norm's
// output. So its weight alone decides by how much the branch moves the residual stream (Peri-LN:
// Kim et al. 2025, arXiv 2502.02732).
static act *post_forward(GPT *g, const Layer *a, int i, int rows, int C) {      // [peri_ln
    residual_layernorm_forward(g->branch, a->post[i], a->post_mean[i], a->post_rstd[i], a->post[i],
                               NULL, a->w[i ? POST_2 : POST_1], rows, C);
    return g->branch;
}                                                                               // peri_ln]

// Returns the gradient of post[i], from g->dx, the gradient of the norm's output.
static act *post_backward(GPT *g, const Layer *a, int i, int rows, int C) {     // [peri_ln
    int kind = i ? POST_2 : POST_1;
    check(cudaMemsetAsync(g->dpost, 0, (size_t)rows * C * sizeof(act), stream));
    residual_layernorm_backward(g->dpost, a->dw[kind], g->dx, a->post[i], a->w[kind],
                                a->post_mean[i], a->post_rstd[i], g->partial, rows, C);
    return g->dpost;
}                                                                               // peri_ln]

// Computes g->logits (B,T,V) from tokens (B,T). statistics 1: also the max_logit of each layer, and
// g->squares, to which it adds. tokens are a part of the batch.
static void gpt_forward(GPT *g, const int *tokens, int B, int T, int statistics) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, V = g->V, rows = B * T;
    V = padded(V);                                   // products of odd sizes take twice as long
    int peri_ln = g->cfg.peri_ln;
    int measures = statistics || g->cfg.qk_clip > 0;    // QK-clip reads max_logit at each step
    size_t BTC = (size_t)rows * C;
    real scale = (real)attention_scale(&g->cfg), cap = (real)g->cfg.attn_cap;
    act *x = g->embedded, *branch = NULL;            // the residual stream is x + branch
    double (*squares)[SUM_BLOCKS] = g->squares;

    embedding_forward(x, tokens, g->w[WTE], rows, C);
    for (int l = 0; l < L; l++) {
        const Layer a = g->layers[l];                // a: activations; a copy of the pointers
        act *const *w = a.w;                         // its weights by kind
        // a.x = x + branch;  branch = attn_c_proj(attention(c_attn(ln_1(a.x))))
        residual_layernorm_forward(a.ln_1, a.x, a.ln_1_mean, a.ln_1_rstd, x, branch, w[LN_1],
                                   rows, C);
        matmul_forward(a.qkv, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        qk_norm_rope_forward(a.qk, a.qk_mean, a.qk_rstd, a.qkv, w[Q_NORM], w[K_NORM],
                             g->cosine, g->sine, B, T, NH, HS);
        attention_forward(a.att, a.softmax, measures ? a.max_logit : NULL, a.qk, a.qkv, scale,
                          cap, B, T, NH, HS);
        act *heads = a.att;
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
        matmul_gelu_forward(a.gelu, a.fc, a.ln_2, w[C_FC], rows, C, 4 * C);
        if (peri_ln) branch = a.post[1];                                        // [peri_ln]
        matmul_forward(branch, a.gelu, w[MLP_C_PROJ], rows, 4 * C, C);
        if (peri_ln) branch = post_forward(g, &a, 1, rows, C);                  // [peri_ln]
        x = a.x_mid;
        if (statistics) {
            sum_squares(squares[ACT_C_ATTN], a.qkv, 3 * BTC);
            sum_squares(squares[ACT_ATT], a.att, BTC);
            sum_squares(squares[ACT_C_FC], a.fc, 4 * BTC);
        }
    }
    // g->x = x + branch;  logits = lm_head(ln_f(g->x))
    residual_layernorm_forward(g->ln_f, g->x, g->ln_f_mean, g->ln_f_rstd, x, branch, g->w[LN_F],
                               rows, C);
    matmul_forward(g->logits, g->ln_f, g->w[LM_HEAD], rows, C, V);
    if (g->cfg.bf16_logits) round_to_bf16(g->logits, rows, V);                  // [bf16_logits]

    if (!statistics) return;
    sum_squares(squares[ACT_WTE], g->embedded, BTC);
    sum_squares(squares[ACT_RESIDUAL], g->x, BTC);
    sum_squares(squares[ACT_LOGITS], g->logits, (size_t)rows * V);
    sum_values(squares[SUM_LOGITS], g->logits, (size_t)rows * V);
}

// Computes the losses of g->logits against targets (B,T), a part of the batch.
// Overwrites g->logits: by their gradient, for gpt_backward, if gradient is 1.
static void gpt_loss(GPT *g, const int *targets, int B, int T, int gradient) {
    ptrdiff_t at = targets - g->batch.targets;
    int rows = B * T;
    cross_entropy(g->logits, g->losses + at, g->log_z + at, targets, (real)g->cfg.z_loss,
                  gradient, rows, g->batch.rows, g->V);
}

// Computes all gradients, after gpt_forward and gpt_loss on the same batch, by taking the steps of
// gpt_forward in reverse. dx is the gradient of the residual stream. At a sum x + branch it is the
// gradient of both terms. It stays in dx for x, and goes back through the branch to the branch's
// first layer, a LayerNorm, which adds its part to dx.
// Adds the gradients of the weights to g->grads.
static void gpt_backward(GPT *g, const int *tokens, int B, int T) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, V = g->V, rows = B * T;
    V = padded(V);
    int peri_ln = g->cfg.peri_ln;
    real scale = (real)attention_scale(&g->cfg), cap = (real)g->cfg.attn_cap;
    act *dx = g->dx, *dnorm = g->dnorm;
    act *dlogits = g->logits;                        // gpt_loss left them there

    matmul_backward(dnorm, g->dw[LM_HEAD], dlogits, g->ln_f, g->w[LM_HEAD], rows, C, V);
    check(cudaMemsetAsync(dx, 0, (size_t)rows * C * sizeof(act), stream));
    residual_layernorm_backward(dx, g->dw[LN_F], dnorm, g->x, g->w[LN_F], g->ln_f_mean,
                                g->ln_f_rstd, g->partial, rows, C);
    for (int l = L - 1; l >= 0; l--) {
        const Layer a = g->layers[l];
        act *const *w = a.w;
        real *const *dw = a.dw;
        // the MLP: mlp_c_proj(gelu(c_fc(ln_2(x_mid))))
        act *dbranch = dx;                           // gradient of the branch, before a norm post
        if (peri_ln) dbranch = post_backward(g, &a, 1, rows, C);                // [peri_ln]
        matmul_gelu_backward(g->dfc, dw[MLP_C_PROJ], dbranch, a.fc, a.gelu, w[MLP_C_PROJ],
                             rows, 4 * C, C);
        matmul_backward(dnorm, dw[C_FC], g->dfc, a.ln_2, w[C_FC], rows, C, 4 * C);
        residual_layernorm_backward(dx, dw[LN_2], dnorm, a.x_mid, w[LN_2], a.ln_2_mean,
                                    a.ln_2_rstd, g->partial, rows, C);
        // attention: attn_c_proj(attention(c_attn(ln_1(x))))
        act *heads = a.att;
        if (peri_ln) dbranch = post_backward(g, &a, 0, rows, C);                // [peri_ln]
        if (g->cfg.gate) heads = a.gated;                                       // [gate]
        matmul_backward(dnorm, dw[ATTN_C_PROJ], dbranch, heads, w[ATTN_C_PROJ], rows, C, C);
        if (g->cfg.gate)                                                        // [gate
            gate_backward(dnorm, g->dgate, dnorm, a.att, a.gate, rows, C);      // gate]
        attention_backward(g->dqkv, dnorm, a.att, a.softmax, a.qk, a.qkv, scale, cap, g->scratch,
                           B, T, NH, HS);
        qk_norm_rope_backward(g->dqkv, dw[Q_NORM], dw[K_NORM], a.qkv, a.qk_mean, a.qk_rstd,
                              w[Q_NORM], w[K_NORM], g->cosine, g->sine, g->partial, B, T, NH, HS);
        matmul_backward(dnorm, dw[C_ATTN], g->dqkv, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        if (g->cfg.gate)                                                        // [gate
            matmul_backward_add(dnorm, dw[GATE], g->dgate, a.ln_1, w[GATE], rows,
                                C, C);                                          // gate]
        residual_layernorm_backward(dx, dw[LN_1], dnorm, a.x, w[LN_1], a.ln_1_mean, a.ln_1_rstd,
                                    g->partial, rows, C);
        sum_partials(g->partial, C);
    }
    if (L == 0) sum_partials(g->partial, C);         // ln_f's, else added by the last layer
    embedding_backward(g->dw[WTE], dx, g->batch.order, g->batch.start,
                       (int)(tokens - g->batch.inputs), rows, C, g->V);
}

// ---------------------------------------------------------------------------
// The optimizer: AdamW (Loshchilov and Hutter 2019), or Muon for the matrices of the layers

// True from the step after the first one whose loss was not finite: then nothing changes any more.
__device__ inline bool over(const Results *results, const AdamW *o) {
    return results->diverged_step && results->diverged_step < o->step;
}

// The norm of the whole gradient before clipping, and the factor that clips it, from sums (n)
__global__ void grad_norm_kernel(Results *results, const double *sums, int n, const AdamW *o) {
    double total = 0, clip_scale = 1;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += sums[i];
    double norm = sqrt(row_sum(total));
    if (threadIdx.x || over(results, o)) return;
    if (o->clip > 0 && norm > o->clip) clip_scale = o->clip / norm;             // [clip]
    if (norm * clip_scale > LARGEST_SQUARED) clip_scale = NAN;    // v would overflow
    results->grad_norm = norm;
    results->clip_scale = (real)clip_scale;
}

// Returns the new value of a parameter whose update is u. Cautious decay (Chen et al. 2025, arXiv
// 2510.12402) spares a parameter that the update moves away from 0: decay would work against it.
__device__ inline real updated(real param, real u, real lr, const AdamW &o) {
    real decay = o.decay;
    if (o.cautious && u * param < 0) decay = 0;                                 // [cautious]
    return param - (lr * u + decay * param);
}

// One step for every parameter:
//   g = clip_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   u = m correction1 / (sqrt(v correction2) + eps);  param -= lr u + decay param
// With -rms_lr a tensor's lr is that of its kind times max(RMS(param), 1e-3) (section E.14).
// Writes weights = param as act. One launch for all tensors, since most are small. Moves 30 bytes
// per parameter (reads param, m, v, grad; writes param, m, v, weights). If statistics is 1, sums
// (NUM_KINDS,blocks) = each block's sum of u^2. With MUON, the last part of Muon's step instead: u
// is a multiple of grad, which is orthogonal by then, and m and v stay.
template <bool MUON>
__global__ void adamw_kernel(real *params, act *weights, const real *grads, real *ms, real *vs,
                             double *sums, int statistics, const Results *results,
                             real (*rms)[MAX_LAYERS], const AdamW *constants, Kinds kinds) {
    int k = blockIdx.y;
    if (over(results, constants) || (MUON && kinds.size[k] == 0)) return;
    size_t n = kinds.size[k], tensor = kinds.tensor[k], step = (size_t)gridDim.x * blockDim.x * W;
    AdamW o = *constants;
    real kind_lr = constants->lr[k], clip_scale = results->clip_scale;
    double sum = 0;
    for (size_t j = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W; j < n; j += step) {
        size_t at = kinds.offset[k] + j;
        real lr = kind_lr, param[W], grad[W], m[W], v[W];
        if (rms) lr *= rms[k][j / tensor];                                      // [rms_lr]
        load(param, params + at);
        load(grad, grads + at);
        load(m, ms + at);
        load(v, vs + at);
        for (int i = 0; i < W; i++) {
            real g = grad[i] * clip_scale;
            m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
            v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
            real u = m[i] * o.correction1 / (sqrt(v[i] * o.correction2) + o.eps);
            if (MUON) u = kinds.muon[k] * grad[i];                              // [optimizer]
            param[i] = updated(param[i], u, lr, o);
            sum += (double)u * (double)u;
        }
        store(params + at, param);
        store(ms + at, m, !MUON);
        store(vs + at, v, !MUON);
        if (BF16) store(weights + at, param);
    }
    if (!statistics) return;
    sum = row_sum(sum);
    if (threadIdx.x == 0) sums[k * gridDim.x + blockIdx.x] = sum;
}

// Momentum in Nesterov's form: m (n) = beta m + (1 - beta) g, where g = clip_scale * grad. Then
// beta m + (1 - beta) g takes the place of grad (n).
__global__ void nesterov_kernel(real *grads, real *ms, size_t n, real beta, const Results *results,
                                const AdamW *constants) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || over(results, constants)) return;
    real g = grads[i] * results->clip_scale;
    ms[i] = beta * ms[i] + (1 - beta) * g;
    grads[i] = beta * ms[i] + (1 - beta) * g;
}

#define MUON_MOMENTUM ((real)0.95)

// Takes one step of Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the layers'
// matrices. Makes their momentum, in Nesterov's form, orthogonal: equally long in every direction.
//   m = 0.95 m + 0.05 g;  u = 0.2 sqrt(the longer side) orthogonalize(0.95 m + 0.05 g)
// The factor gives u the RMS of AdamW's updates, about 0.2, so that the same lr and decay serve
// (Moonlight: Liu et al. 2025, arXiv 2502.16982). grid, sums, statistics: as adamw_kernel's. Costs
// 300 C^3 operations per layer: 4.2 C / (B T) times those of the layers' products in a step. A
// layer has six matrices (seven with -gate), 23 launches each: recorded in the graph of a step.
static void muon(GPT *g, Kinds kinds, dim3 grid, double *sums,                  // [optimizer
                 int statistics) {
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        int rows = k == C_ATTN ? p->rows / 3 : p->rows;    // q, k and v are three matrices
        size_t n = (size_t)rows * p->cols;
        kinds.size[k] *= uses_muon(&g->cfg, g->table, k);
        kinds.muon[k] = 0.2f * sqrtf(rows > p->cols ? rows : p->cols);
        for (size_t at = p->offset; at < p->offset + kinds.size[k]; at += n) {
            launch(nesterov_kernel, (n + 127) / 128, 128, g->grads + at, g->m + at, n,
                   MUON_MOMENTUM, g->results, g->adamw);
            orthogonalize(g->grads + at, rows, p->cols, g->muon, sums + grid.x * NUM_KINDS);
        }
    }
    launch(adamw_kernel<true>, grid, 128, g->params, g->weights, g->grads, g->m, g->v, sums,
           statistics, g->results, g->rms, g->adamw, kinds);
}                                                                               // optimizer]

// QK-clip (Kimi K2, arXiv 2507.20534): where the largest |score| of a head in this batch was above
// tau, multiplies the weights of its queries and keys by sqrt(tau / largest), so that its scores
// become tau / largest times as large. (K2 takes the largest score.) c_attn (L,3C,C) has the rows
// of q, k, v; weights (L,3C,C) = c_attn as act; max_logit (L,NH). A block has the queries of a
// head, or its keys.
__global__ void qk_clip_kernel(real *c_attn, act *weights,                      // [qk_clip
                               const real *max_logit, real tau, int NH, int C,
                               const Results *results, const AdamW *constants) {
    size_t head = (size_t)C / NH * C;                // weights of the queries of one head
    size_t first = ((size_t)blockIdx.y * 3 + blockIdx.z) * C * C + blockIdx.x * head;
    real largest = max_logit[blockIdx.y * NH + blockIdx.x];
    if (largest <= tau || over(results, constants)) return;
    for (size_t i = first + threadIdx.x; i < first + head; i += blockDim.x) {
        c_attn[i] *= sqrtf(tau / largest);
        round_to(weights + i, c_attn[i]);
    }
}                                                                               // qk_clip]

// A launch keeps a copy of its arguments: the host may go on and change from.
__global__ void constants_kernel(AdamW *to, AdamW from) { *to = from; }

// Brings the constants of a step (counted from 1) to the GPU, before gpt_update: a step that is
// replayed as a graph has no arguments that change.
static void gpt_constants(GPT *g, int step) {
    const Config *cfg = &g->cfg;
    double lr = learning_rate(cfg, step);
    double beta2 = 0.95, eps = 1e-8, decay = 0;      // without the lines below
    beta2 = cfg->beta2;                                                         // [beta2]
    eps = cfg->eps;                                                             // [eps]
    decay = weight_decay(cfg, step);                                            // [wd]
    AdamW o = {(real)cfg->clip, (real)cfg->beta1, (real)beta2,
               (real)(1 / (1 - pow(cfg->beta1, step))), (real)(1 / (1 - pow(beta2, step))),
               (real)eps, (real)decay, 0, {}, step};
    o.cautious = cfg->cautious;                                                 // [cautious]
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        double kind_lr = lr;
        kind_lr *= mu_lr_scale(cfg, p);                                         // [mu_param]
        o.lr[k] = (real)kind_lr;
    }
    launch(constants_kernel, 1, 1, g->adamw, o);
}

// Updates every parameter, after scaling the gradient down to norm clip if it is longer. statistics
// 1: also leaves in g->sums, as sums of squares, what gives gpt_statistics for each
// kind of tensor the RMS of its gradient (before clipping), of its update and of its new values.
static void gpt_update(GPT *g, int statistics) {
    const Config *cfg = &g->cfg;
    Kinds kinds = {};
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        kinds.offset[k] = p->offset;
        kinds.tensor[k] = parameter_size(p);
        kinds.size[k] = parameter_size(p) * (size_t)p->copies;
    }
    dim3 grid(sum_blocks(g->num_parameters), NUM_KINDS);
    int n = grid.x * NUM_KINDS;
    launch(squares_kernel, grid, 128, g->sums, g->grads, kinds);
    launch(grad_norm_kernel, 1, 1024, g->results, g->sums, n, g->adamw);
    dim3 tensors(1, NUM_KINDS, cfg->layers ? cfg->layers : 1);
    Kinds logged = kinds;                            // layer by layer: two kinds
    for (int k = 0; k < NUM_KINDS; k++) logged.size[k] *= k == C_FC || k == ATTN_C_PROJ;
    if (statistics) launch(rms_kernel, tensors, 1024, g->grad_rms, g->grads, 0, logged);
    if (g->rms) launch(rms_kernel, tensors, 1024, g->rms, g->params, 1e-3, kinds);  // [rms_lr]
    Kinds rest = kinds;                              // AdamW's
    for (int k = 0; k < NUM_KINDS; k++)                                         // [optimizer
        rest.size[k] *= !uses_muon(cfg, g->table, k);                           // optimizer]
    launch(adamw_kernel<false>, grid, 128, g->params, g->weights, g->grads, g->m, g->v,
           g->sums + n, statistics, g->results, g->rms, g->adamw, rest);
    if (g->muon) muon(g, kinds, grid, g->sums + n, statistics);                 // [optimizer]
    if (cfg->qk_clip > 0 && cfg->layers)                                        // [qk_clip
        launch(qk_clip_kernel, dim3(cfg->heads, cfg->layers, 2), 512,
               g->params + kinds.offset[C_ATTN], g->weights + kinds.offset[C_ATTN], g->max_logit,
               cfg->qk_clip, cfg->heads, cfg->d, g->results, g->adamw);         // qk_clip]
    if (statistics) launch(squares_kernel, grid, 128, g->sums + 2 * n, g->params, kinds);
}

// ---------------------------------------------------------------------------
// The training loop

// Loss and gradients of the batch that is on the GPU, one micro-batch after another. The sums equal
// the whole batch's.
static void gpt_gradient(GPT *g, int B, int T, int statistics) {
    check(cudaMemsetAsync(g->grads, 0, g->num_parameters * sizeof(real), stream));
    if (statistics) {
        size_t squares = NUM_SUMS * SUM_BLOCKS * sizeof(double);
        check(cudaMemsetAsync(g->squares, 0, squares, stream));
    }
    if (statistics || g->cfg.qk_clip > 0) {
        size_t heads = (size_t)g->cfg.layers * g->cfg.heads;
        check(cudaMemsetAsync(g->max_logit, 0, heads * sizeof(real), stream));
    }
    for (int b = 0, n; b < B; b += n) {
        n = least(g->micro_batch, B - b);
        gpt_forward(g, g->batch.inputs + b * T, n, T, statistics);
        gpt_loss(g, g->batch.targets + b * T, n, T, 1);
        gpt_backward(g, g->batch.inputs + b * T, n, T);
    }
    launch(loss_kernel, 1, 1024, g->results, g->losses, g->log_z, g->batch.rows, &g->adamw->step);
}

// A step on the batch and the constants that are on the GPU
static void gpt_step(GPT *g, int B, int T, int statistics) {
    bool records = B <= 8 * g->micro_batch;          // the graph of more would be large
    graph_run(&g->graphs[statistics], records, [=] {
        gpt_gradient(g, B, T, statistics);
        gpt_update(g, statistics);
    });
}

// totals[i] = the sum of row i of sums (rows,n): a block per row
__global__ void totals_kernel(double *totals, const double *sums, int n) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[(size_t)blockIdx.x * n + i];
    sum = row_sum(sum);
    if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

// Waits for the GPU and copies what the last step left. Returns the first step whose loss was not
// finite, or 0. statistics 1: also the RMS of gradients, updates, parameters, layer by layer, the
// RMS of the activations, and the mean output logit. Without layers the RMS of theirs is NAN: an
// empty cell of the log.
static int gpt_statistics(const GPT *g, int B, int T, int statistics, Stats *stats) {
    Results r;
    from_gpu(&r, g->results, sizeof r);
    stats->train_loss = r.loss / ((double)B * T);
    stats->log_z = r.log_z / ((double)B * T);
    stats->grad_norm = r.grad_norm;
    if (!statistics) return r.diverged_step;

    size_t L = g->cfg.layers, BTC = (size_t)B * T * g->cfg.d, BTV = (size_t)B * T * g->V;
    double total[NUM_SUMS + 3 * NUM_KINDS], *of_kinds = total + NUM_SUMS;
    size_t NH = g->cfg.heads;
    real *max_logit = (real *)allocate(L * NH, sizeof(real)), grad_rms[NUM_KINDS][MAX_LAYERS];
    launch(totals_kernel, NUM_SUMS, 128, g->totals, g->squares[0], SUM_BLOCKS);
    launch(totals_kernel, 3 * NUM_KINDS, 128, g->totals + NUM_SUMS, g->sums,
           sum_blocks(g->num_parameters));
    from_gpu(total, g->totals, sizeof total);
    from_gpu(max_logit, g->max_logit, L * NH * sizeof(real));
    from_gpu(grad_rms, g->grad_rms, sizeof grad_rms);
    for (size_t l = 0; l < L; l++) {
        for (int i = 0; i < NUM_BY_LAYER; i++) stats->by_layer[i][l] = NAN;
        real top = 0;
        for (size_t h = 0; h < NH; h++) top = fmaxf(top, max_logit[l * NH + h]);
        stats->by_layer[MAX_ATTN_LOGIT][l] = top;
        stats->by_layer[C_FC_GRAD_RMS][l] = grad_rms[C_FC][l];
        stats->by_layer[ATTN_C_PROJ_GRAD_RMS][l] = grad_rms[ATTN_C_PROJ][l];
    }
    free(max_logit);
    // in the order of the ACT_ constants; c_attn, att and c_fc are summed over the layers
    const size_t count[NUM_ACTIVATIONS] = {BTC, 3 * L * BTC, L * BTC, 4 * L * BTC, BTC, BTV};
    for (int i = 0; i < NUM_ACTIVATIONS; i++)
        stats->act_rms[i] = count[i] ? sqrt(total[i] / (double)count[i]) : NAN;
    stats->mean_logit = total[SUM_LOGITS] / (double)BTV;
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        double n = (double)parameter_size(p) * p->copies;
        stats->grad_rms[k] = sqrt(of_kinds[k] / n);
        stats->update_rms[k] = sqrt(of_kinds[NUM_KINDS + k] / n);
        stats->param_rms[k] = sqrt(of_kinds[2 * NUM_KINDS + k] / n);
    }
    return r.diverged_step;
}

// Mean loss in nats over the first `windows` sequences of T tokens of the validation data. inputs,
// targets (B,T) are scratch.
// The GPU adds the losses, and the host waits for it once.
static double evaluate(GPT *g, const DataLoader *loader, int64_t windows, int *inputs,
                       int *targets) {
    int B = g->cfg.batch, T = g->cfg.T;
    Results *results = g->results + 1, r;
    check(cudaMemsetAsync(results, 0, sizeof *results, stream));
    for (int64_t w = 0; w < windows; w += B) {
        int rows = windows - w < B ? (int)(windows - w) : B;
        dataloader_val(loader, w, rows, inputs, targets);
        batch_send(&g->batch, inputs, targets, rows, T);
        for (int b = 0, n; b < rows; b += n) {
            n = least(g->micro_batch, rows - b);
            gpt_forward(g, g->batch.inputs + b * T, n, T, 0);
            gpt_loss(g, g->batch.targets + b * T, n, T, 0);
        }
        launch(loss_kernel, 1, 1024, results, g->losses, g->log_z, rows * T, (int *)NULL);
    }
    from_gpu(&r, results, sizeof r);
    double sum = r.loss / T;
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
    if (cfg->resume || *cfg->init) {
        state = gpu_checkpoint_load(cfg, g.table, g.num_parameters, g.params, g.m, g.v);
        update_weights(g.weights, g.params, g.num_parameters);
    }
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    double entropy_floor = dataloader_entropy_floor(&loader, windows);
    Run run = run_begin(cfg, g.table, g.num_parameters, g.memory.bytes, &state,
                        dataloader_tokens(&loader), entropy_floor, g.gpu.name, threads, progress);
    if (state.log_bytes == 0) {                      // a new run
        double initial = evaluate(&g, &loader, windows, inputs, targets);
        run_initial(&run, &stats, initial);
    }

    int step = state.step;                           // steps done
    int saved = cfg->resume ? step : -1;             // step of the last checkpoint; -1: none
    int stop = interrupted;
    while (step < cfg->steps && !stop && !run.diverged_step) {
        // whether this step also validates, logs or saves a checkpoint
        step++;
        int validates = step == cfg->steps || (cfg->eval_every && step % cfg->eval_every == 0);
        int logs = validates || step % cfg->log_every == 0;
        int saves = cfg->checkpoint_every && step % cfg->checkpoint_every == 0;
        stop = interrupted;                          // a later signal waits for the next step

        // the batch, the loss, the gradients, the update
        dataloader_train(&loader, step, B, inputs, targets);
        batch_send(&g.batch, inputs, targets, B, T);
        gpt_constants(&g, step);
        gpt_step(&g, B, T, logs);
        if (!logs && !saves && !stop) continue;      // the work is queued: prepare the next batch
        run.diverged_step = gpt_statistics(&g, B, T, logs, &stats);
        if (run.diverged_step && run.diverged_step < step) {
            step = run.diverged_step;                // nothing changed since then
            validates = logs = saves = 0;
        }

        // the validation loss
        stats.val_loss = validates ? evaluate(&g, &loader, windows, inputs, targets) : NAN;
        if (validates && !isfinite(stats.val_loss)) run.diverged_step = step;

        // the log and the checkpoint
        run_step(&run, &stats, step, logs);
        if (saves) {
            saved = step;
            state = run_state(&run, step);
            gpu_checkpoint_save(cfg, g.table, g.num_parameters, g.params, g.m, g.v, &state);
        }
    }

    // finished, diverged or stopped by a signal, perhaps before the first step
    if (saved != step) {
        state = run_state(&run, step);
        gpu_checkpoint_save(cfg, g.table, g.num_parameters, g.params, g.m, g.v, &state);
    }
    int status = run_end(&run, step);
    dataloader_free(&loader);
    gpt_free(&g);
    free(inputs);
    free(targets);
    return status;
}

// ---------------------------------------------------------------------------
// From the command line

// Returns the logits (V) of the token after context (used). model: a GPT. Computes all of context
// again for each token.
static const real *logits_after(void *model, const int *context, int used) {
    GPT *g = (GPT *)model;
    size_t V = g->V, at = (size_t)(used - 1) * padded(g->V);
    static real *logits = (real *)allocate(V, sizeof(real));
    static act *row = (act *)allocate(V, sizeof(act));
    // all T positions, whatever follows: one shape per product, and attention is causal
    batch_send(&g->batch, context, context, 1, g->cfg.T);
    gpt_forward(g, g->batch.inputs, 1, g->cfg.T, 0);
    from_gpu(row, g->logits + at, V * sizeof(act));
    for (size_t j = 0; j < V; j++) logits[j] = (real)row[j];
    return logits;
}

// Writes tokens drawn from the model saved in -out.
static void sample(const Config *cfg) {
    GPT g;
    gpt_init(&g, cfg, cfg->vocab, 1, cfg->T);
    gpu_checkpoint_load(cfg, g.table, g.num_parameters, g.params, g.m, g.v);
    update_weights(g.weights, g.params, g.num_parameters);
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
    State state = gpu_checkpoint_load(cfg, g.table, g.num_parameters, g.params, g.m, g.v);
    update_weights(g.weights, g.params, g.num_parameters);
    int *inputs = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int *targets = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    double loss = evaluate(&g, &loader, windows, inputs, targets);
    eval_print(cfg, &state, loss, windows);
    dataloader_free(&loader);
    gpt_free(&g);
    free(inputs);
    free(targets);
}

// Dies, before any file is touched, if the data are missing, or if there is no GPU, or too little
// of its memory to train. Returns the bytes that a run needs. CUDA does not survive a fork, and a
// sweep forks its runs: so a child asks for the GPU.
static double check_runs(const Config *cfg) {
    DataLoader loader;
    GPT g;
    int status = 0;
    dataloader_init(&loader, cfg->data, cfg->val, cfg->vocab, cfg->T, (uint64_t)cfg->seed);
    gpt_layout(&g, cfg, loader.vocab, cfg->batch, cfg->T, false);
    pid_t child = fork();
    if (child < 0) die(FAILED, "cannot start a process: %s", strerror(errno));
    if (child == 0) {
        Gpu gpu = gpu_start();
        gpu_check_memory(&gpu, g.memory.bytes);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status != 0) exit(FAILED);    // the child said why
    gpt_free(&g);
    dataloader_free(&loader);
    return g.memory.bytes;
}

// Trains once for each learning rate, one run at a time: without NVIDIA's MPS, processes take turns
// on a GPU, so that several runs at once would take as long.
static int train_sweep(const Config *cfg, char lr[MAX_RUNS][MAX_RATE], int runs) {
    double bytes = check_runs(cfg);
    return sweep(cfg, lr, runs, 1, 1, bytes, train_run);
}

int main(int argc, char **argv) {
    Config cfg;
    char lr[MAX_RUNS][MAX_RATE];
    config_parse(&cfg, argc, argv);
    int HS = cfg.d / cfg.heads;
    if (cfg.d % W || cfg.d > MAX_C || HS % W || HS > MAX_HS)
        die(USAGE, "-d %d -heads %d: train_gpt_cu needs a width that is a multiple of %d, at most "
            "%d, and heads of a multiple of %d, at most %d; ./train_gpt trains any",
            cfg.d, cfg.heads, W, MAX_C, W, MAX_HS);
    const char *absent = cfg.kappa > 0 ? "-kappa" : NULL;                       // [kappa]
    if (cfg.attention == ATTENTION_RELU2) absent = "-attention relu2";          // [attention]
    if (cfg.qk_norm == QK_NORM_MODEL) absent = "-qk_norm model";
    if (absent) die(USAGE, "%s: train_gpt_cu does not have it; ./train_gpt does", absent);

    int runs = learning_rates(cfg.lr_text, lr, NULL);
    if (runs > 1) return train_sweep(&cfg, lr, runs);
    if (cfg.sample) sample(&cfg);
    else if (cfg.eval) eval(&cfg);
    else return train_run(&cfg, 1, NULL);
    return 0;
}

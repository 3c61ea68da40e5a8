// train_gpt.c: a small GPT, trained on the CPU in plain C and OpenMP, that shows why training a
// Transformer becomes unstable, and what cures it.
// Sections: matrix multiply; layers, each forward then backward; the model; AdamW; the training loop; main.
// Shapes: B batch, T sequence length, C channels, L layers, NH heads, HS = C/NH head size, V vocabulary.
// Arrays are row-major and a comment gives their shape, the fastest index last: x (B,T,C).
// Results do not depend on the number of threads: no sum is ever split by thread.

#ifdef _OPENMP
#include <omp.h>
#endif
#include "gpt.h"           // Config, parameter_table, learning_rate, muParam's factors, Stats
#include "dataloader.h"    // DataLoader: batches of tokens
#include "lib/sweep.h"     // config_parse, checkpoint_*, run_*, sweep, sample_text

// ---------------------------------------------------------------------------
// Scalar functions: one name for either precision

#ifdef DOUBLE
#define SQRT sqrt
#define LOG log
#define FABS fabs
static inline real exponential(real x) { return exp(x); }
static inline real reciprocal(real x) { return 1 / x; }
#else
#define SQRT sqrtf
#define LOG logf
#define FABS fabsf

// exp(x) for x <= 0, without a branch or a call, so that loops over it become vector code.
// x = n ln 2 + r with n whole and |r| <= ln(2)/2: exp(x) = 2^n exp(r), exp(r) by a polynomial (Cephes' expf,
// error below 1e-7). Adding and taking away 1.5 * 2^23 rounds to a whole number; 2^n is made in the exponent's bits.
static inline float exponential(float x) {
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;    // ln 2 in two parts: n times the first is exact
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
    bits = (bits << 23) + 0x3f800000;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -60 ? 0 : p * power;    // e^-60 = 1e-26 adds nothing to a sum of at least 1, and its products would be denormal: slow
}

// 1/x for x in [1, 2]: the parabola nearest to it (at most 1/99 off), then Newton's method, which squares the error twice.
// A division takes three times as long.
static inline float reciprocal(float x) {
    float y = 210 / 99.0f - (144 / 99.0f - 32 / 99.0f * x) * x;
    y *= 2 - x * y;
    return y * (2 - x * y);
}
#endif

// ---------------------------------------------------------------------------
// Matrix multiply: all but a few percent of the FLOPs of a step

// A tile of MR x NR sums stays in vector registers while k runs: each step of k loads NR values of B and
// MR of A, and does MR * NR multiply-adds. AVX-512 and Arm have 32 registers, AVX2 has 16.
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, MR = 8 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, MR = 6 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, MR = 8 };
#else
enum { VECTOR_BYTES = 16, MR = 6 };
#endif
enum { VL = VECTOR_BYTES / (int)sizeof(real), NR = 2 * VL, KC = 512, NC = 8 * NR, MC = 12 * MR };
typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

// The largest, the sum and the sum of products of rows of n values, in the lanes of a vector and then halved: short
// chains of dependent operations, in an order that no compiler may change. A NaN is passed over by row_max.
static inline real row_max(const real *x, int n) {
    real lane[VL];
    int j = 0;
    for (int l = 0; l < VL; l++) lane[l] = -INFINITY;
    for (; j + VL <= n; j += VL) {
        #pragma omp simd
        for (int l = 0; l < VL; l++) { real a = x[j + l], b = lane[l]; lane[l] = a > b ? a : b; }
    }
    for (; j < n; j++) lane[0] = x[j] > lane[0] ? x[j] : lane[0];
    for (int half = VL / 2; half > 0; half /= 2)
        #pragma omp simd
        for (int l = 0; l < half; l++) { real a = lane[l + half], b = lane[l]; lane[l] = a > b ? a : b; }
    return lane[0];
}

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

// A matrix in memory, possibly transposed: element (i, j) is at data[i * row + j * col].
typedef struct { const real *data; ptrdiff_t row, col; } Matrix;
static Matrix matrix(const real *data, int columns) { Matrix m = {data, columns, 1}; return m; }
static Matrix transposed(const real *data, int columns) { Matrix m = {data, 1, columns}; return m; }

// out (rows,cols) = add + a (rows,K) b (K,cols), for rows <= MR and cols <= vectors * VL; add may be NULL. ldc elements
// lead from one row of out and add to the next, ldb from one row of b. vectors, 1 or 2, is known where this is inlined.
static inline __attribute__((always_inline)) void tile(int vectors, real *out, const real *add, ptrdiff_t ldc, int rows, int cols,
                                                       Matrix a, const real *b, ptrdiff_t ldb, int K) {
    vector sum[MR][2];
    const real *row[MR];
    for (int i = 0; i < MR; i++) {
        row[i] = a.data + (i < rows ? i : rows - 1) * a.row;    // past the last row: that row again, not stored
        for (int w = 0; w < vectors; w++) sum[i][w] = (vector){0};
    }
    for (int k = 0; k < K; k++)
        for (int i = 0; i < MR; i++)
            for (int w = 0; w < vectors; w++) sum[i][w] += row[i][k * a.col] * *(const vector *)(b + k * ldb + w * VL);
    if (rows == MR && cols == vectors * VL) {    // whole: the sums go from their registers to out
        for (int i = 0; i < MR; i++)
            for (int w = 0; w < vectors; w++) {
                vector value = sum[i][w];
                if (add) value += *(const vector *)(add + i * ldc + w * VL);
                *(vector *)(out + i * ldc + w * VL) = value;
            }
        return;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) out[i * ldc + j] = (add ? add[i * ldc + j] : 0) + sum[i][j / VL][j % VL];
}

static int least(int a, int b) { return a < b ? a : b; }

// out (16,16) = in (16,16) transposed, row_out and row_in elements from one row to the next. A place in the block is 8 bits:
// 4 of its row, 4 of its column. To deal out the block's two halves in turn moves each bit up by one and the highest to
// the lowest, so that four deals exchange rows and columns; compilers make vector code of a deal, not of single elements.
static inline void transpose_block(real *out, ptrdiff_t row_out, const real *in, ptrdiff_t row_in) {
    real deal[2][256];
    for (int i = 0; i < 16; i++) memcpy(deal[0] + 16 * i, in + i * row_in, 16 * sizeof(real));
    for (int n = 0; n < 4; n++) {
        const real *from = deal[n % 2];
        real *to = deal[1 - n % 2];
        for (int i = 0; i < 128; i++) to[2 * i] = from[i], to[2 * i + 1] = from[i + 128];
    }
    for (int i = 0; i < 16; i++) memcpy(out + i * row_out, deal[0] + 16 * i, 16 * sizeof(real));
}

// out (cols,rows) = in (rows,cols) transposed
static void transpose(real *out, ptrdiff_t row_out, const real *in, ptrdiff_t row_in, int rows, int cols) {
    for (int i0 = 0; i0 < rows; i0 += 16)
        for (int j0 = 0; j0 < cols; j0 += 16)
            if (i0 + 16 <= rows && j0 + 16 <= cols) transpose_block(out + j0 * row_out + i0, row_out, in + i0 * row_in + j0, row_in);
            else for (int i = i0; i < least(rows, i0 + 16); i++) for (int j = j0; j < least(cols, j0 + 16); j++) out[j * row_out + i] = in[i * row_in + j];
}

// Panels of `width` columns of m (K,cols), one after another, each (KC,width) with zeros past the last column:
// in the order in which the tile reads.
static inline void pack(real *packed, Matrix m, int width, int cols, int K) {
    if (cols % width) memset(packed + cols / width * width * KC, 0, (size_t)K * (size_t)width * sizeof(real));
    for (int from = 0; from < K && m.col == 1; from += 16)    // 16 rows stay in the first cache while they are written, a panel after another
        for (int p = 0; p < cols; p += width) {
            int n = least(width, cols - p);
            for (int k = from; k < least(K, from + 16); k++) {
                const real *row = m.data + k * m.row + p;
                real *to = packed + p * KC + k * width;
                if (n == width) memcpy(to, row, (size_t)width * sizeof(real));
                else for (int j = 0; j < n; j++) to[j] = row[j];
            }
        }
    for (int p = 0; p < cols && m.col != 1; p += width) transpose(packed + p * KC, width, m.data + p * m.col, m.col, least(width, cols - p), K);
}

static Matrix part(Matrix m, int i, int j) { m.data += i * m.row + j * m.col; return m; }    // from row i and column j on
static Matrix flip(Matrix m) { Matrix t = {m.data, m.col, m.row}; return t; }

// out (M,N) = add + a (M,K) b (K,N) on this thread. A block of b, KC x NC, is packed and stays in the cache while
// every tile of rows of a passes over it; blocks of a transposed a, whose rows are far apart, are packed too.
static void multiply(real *out, const real *add, ptrdiff_t ldc, Matrix a, Matrix b, int M, int N, int K) {
    static _Thread_local real b_block[KC * NC] __attribute__((aligned(64))), a_block[KC * MC] __attribute__((aligned(64)));
    int a_apart = a.col != 1 && N > 2 * NR && M > 2 * MC, b_as_is = b.col == 1 && N % VL == 0 && M <= MC;    // too few rows to repay the copy
    for (int k = 0; k < K; k += KC, add = out)    // each block of k adds to the one before
        for (int j = 0; j < N; j += NC) {
            int depth = least(KC, K - k), width = least(NC, N - j);
            if (!b_as_is) pack(b_block, part(b, k, j), NR, width, depth);
            for (int i = 0; i < M; i += MR) {
                if (a_apart && i % MC == 0) pack(a_block, flip(part(a, i, k)), MR, least(MC, M - i), depth);
                Matrix rows = part(a, i, k);
                if (a_apart) rows.data = a_block + i % MC * KC, rows.row = 1, rows.col = MR;
                for (int jj = j; jj < j + width; jj += NR) {
                    real *o = out + i * ldc + jj;
                    const real *plus = add ? add + i * ldc + jj : NULL, *columns = b_as_is ? part(b, k, jj).data : b_block + (jj - j) * KC;
                    ptrdiff_t ldb = b_as_is ? b.row : NR;
                    int height = least(MR, M - i), cols = least(NR, N - jj);
                    if (cols > VL) tile(2, o, plus, ldc, height, cols, rows, columns, ldb, depth);
                    else tile(1, o, plus, ldc, height, cols, rows, columns, ldb, depth);
                }
            }
        }
}

static int max_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static int max_jobs(void) {    // processes that a sweep runs at a time
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return (int)fmax(1, (double)sysconf(_SC_NPROCESSORS_ONLN));
#endif
}

static int this_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// out (M,N) = add + a (M,K) b (K,N) on all threads, in blocks of out that are each one thread's; add may be NULL or out.
// Blocks of rows first: the layers before and after divide their rows the same way, so that a thread finds its rows
// in its own cache. Where there are too few rows, blocks of columns too. The rows of a weight gradient (a is transposed)
// are channels, and the longer side is divided: each thread packs the part of b that it needs, all of it for a block of rows.
static void matmul(real *out, const real *add, Matrix a, Matrix b, int M, int N, int K) {
    int threads = max_threads(), row_blocks = a.col != 1 && N > M ? 1 : least(threads, (M + 4 * MR - 1) / (4 * MR)), col_blocks = (threads + row_blocks - 1) / row_blocks;
    int height = ((M + row_blocks - 1) / row_blocks + MR - 1) / MR * MR, width = ((N + col_blocks - 1) / col_blocks + NR - 1) / NR * NR;
    #pragma omp parallel for collapse(2)
    for (int i = 0; i < M; i += height)
        for (int j = 0; j < N; j += width) {
            size_t at = (size_t)i * (size_t)N + (size_t)j;
            multiply(out + at, add ? add + at : NULL, N, part(a, i, 0), part(b, 0, j), least(height, M - i), least(width, N - j), K);
        }
}

// ---------------------------------------------------------------------------
// Layers, each forward then backward. "add" is what a result is added to: NULL for nothing.

// out (rows,OC) = add + inp (rows,IC) weight^T, weight (OC,IC)
static void matmul_forward(real *out, const real *add, const real *inp, const real *weight, int rows, int IC, int OC) {
    matmul(out, add, matrix(inp, IC), transposed(weight, IC), rows, OC, IC);
}

// dinp (rows,IC) = add + dout (rows,OC) weight;  dweight (OC,IC) = dout^T inp
static void matmul_backward(real *dinp, const real *add, real *dweight, const real *dout, const real *inp, const real *weight, int rows, int IC, int OC) {
    matmul(dinp, add, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
    matmul(dweight, NULL, transposed(dout, OC), matrix(inp, IC), OC, IC, rows);
}

// out (rows,C) = wte (V,C) at each token
static void embedding_forward(real *out, const int *tokens, const real *wte, int rows, int C) {
    #pragma omp parallel for
    for (int i = 0; i < rows; i++) memcpy(out + (size_t)i * C, wte + (size_t)tokens[i] * C, (size_t)C * sizeof(real));
}

// dwte (V,C): each token's row is the sum of dout (rows,C) where the token stood. A thread has channels of its own.
static void embedding_backward(real *dwte, const real *dout, const int *tokens, int rows, int C, int V) {
    memset(dwte, 0, (size_t)V * C * sizeof(real));
    #pragma omp parallel for
    for (int c = 0; c < C; c += 64)
        for (int i = 0; i < rows; i++)
            for (int j = c; j < C && j < c + 64; j++) dwte[(size_t)tokens[i] * C + j] += dout[(size_t)i * C + j];
}

// out = weight * (inp - mean) * rstd, a row of C at a time; mean, rstd (rows). Ba et al. 2016, without a bias.
// Where the squares overflow (|inp| > 1e19) 1/sqrt(infinity) would be 0, out 0, and the loss log V: a run that went wrong
// would look sound. 0 * infinity makes it NaN.
static void layernorm_forward(real *out, real *mean, real *rstd, const real *inp, const real *weight, int rows, int C) {
    enum { GROUP = 16 };    // rows that take each step together: one alone would wait for its sums, its root and its division
    #pragma omp parallel for
    for (int from = 0; from < rows; from += GROUP) {
        int end = least(rows, from + GROUP);
        for (int i = from; i < end; i++) mean[i] = row_sum(inp + (size_t)i * C, C) / C;
        for (int i = from; i < end; i++) {
            const real *x = inp + (size_t)i * C;
            real *y = out + (size_t)i * C, m = mean[i];
            #pragma omp simd
            for (int j = 0; j < C; j++) y[j] = x[j] - m;
            rstd[i] = row_dot(y, y, C) / C;
        }
        for (int i = from; i < end; i++) rstd[i] = 1 / SQRT(rstd[i] + (real)1e-6) + 0 * rstd[i];
        for (int i = from; i < end; i++) {
            real *y = out + (size_t)i * C, r = rstd[i];
            #pragma omp simd
            for (int j = 0; j < C; j++) y[j] = weight[j] * (y[j] * r);
        }
    }
}

enum { CHUNK = 64 };    // rows whose share of dweight is summed on its own, whatever the number of threads

// What an element adds to its channel's dweight and to its row's sums, see below
static inline void layernorm_sums(real x, real m, real r, real dy, real weight, real *dw, real *sum_g, real *sum_gn) {
    real n = (x - m) * r, g = dy * weight;
    *dw += dy * n;
    *sum_g += g;
    *sum_gn += g * n;
}

// With n = (inp - mean) * rstd and g = dout * weight:  dinp = add + rstd * (g - mean(g) - n * mean(g * n)),
// dweight (C) = sum over rows of dout * n. partial (rows/CHUNK,C) is scratch: each chunk's dweight. dinp may be dout.
static void layernorm_backward(real *dinp, const real *add, real *dweight, const real *dout, const real *inp, const real *weight,
                               const real *mean, const real *rstd, real *partial, int rows, int C) {
    int chunks = (rows + CHUNK - 1) / CHUNK;
    #pragma omp parallel for
    for (int c = 0; c < chunks; c++) {
        real *dw = partial + (size_t)c * C;
        memset(dw, 0, (size_t)C * sizeof(real));
        for (int i = c * CHUNK; i < rows && i < (c + 1) * CHUNK; i++) {
            const real *x = inp + (size_t)i * C, *dy = dout + (size_t)i * C, *plus = add ? add + (size_t)i * C : NULL;
            real *dx = dinp + (size_t)i * C, m = mean[i], r = rstd[i], sum_g[VL] = {0}, sum_gn[VL] = {0};
            int j = 0;
            for (; j + VL <= C; j += VL)
                #pragma omp simd
                for (int l = 0; l < VL; l++) layernorm_sums(x[j + l], m, r, dy[j + l], weight[j + l], &dw[j + l], &sum_g[l], &sum_gn[l]);
            for (; j < C; j++) layernorm_sums(x[j], m, r, dy[j], weight[j], &dw[j], sum_g, sum_gn);
            real mean_g = lane_sum(sum_g) / C, mean_gn = lane_sum(sum_gn) / C;
            #pragma omp simd
            for (int k = 0; k < C; k++) dx[k] = (plus ? plus[k] : 0) + r * (dy[k] * weight[k] - mean_g - (x[k] - m) * r * mean_gn);
        }
    }
    memcpy(dweight, partial, (size_t)C * sizeof(real));
    for (int c = 1; c < chunks; c++)
        for (int j = 0; j < C; j++) dweight[j] += partial[(size_t)c * C + j];
}

// Rotary positions: rope_table in gpt.h. out, inp (B,T,NH,HS). out may be inp.
static void rope_turn(real *out, const real *inp, const real *cosine, const real *sine, real direction, int B, int T, int NH, int HS) {
    int half = HS / 2;
    #pragma omp parallel for
    for (int row = 0; row < B * T; row++)
        for (int h = 0; h < NH; h++) {
            const real *x = inp + ((size_t)row * NH + h) * HS, *c = cosine + (size_t)(row % T) * half, *s = sine + (size_t)(row % T) * half;
            real *y = out + ((size_t)row * NH + h) * HS;
            #pragma omp simd
            for (int i = 0; i < half; i++) {
                real x0 = x[i], x1 = x[i + half], turn = direction * s[i];
                y[i] = x0 * c[i] - x1 * turn;
                y[i + half] = x0 * turn + x1 * c[i];
            }
        }
}

static void rope_forward(real *out, const real *inp, const real *cosine, const real *sine, int B, int T, int NH, int HS) {
    rope_turn(out, inp, cosine, sine, 1, B, T, NH, HS);
}

static void rope_backward(real *dinp, const real *dout, const real *cosine, const real *sine, int B, int T, int NH, int HS) {
    rope_turn(dinp, dout, cosine, sine, -1, B, T, NH, HS);    // the inverse of a rotation is its transpose
}

// Causal attention. q, k, v, out (B,T,NH,HS): out_i = sum over j <= i of p_ij v_j, p = softmax of scale * q_i k_j.
// A T x T matrix is never kept: scores exist for at most QB queries at a time, and the backward pass makes p again from
// softmax (B,NH,T,2): of each row the largest score, and 1 / the sum of exp(score - largest). (Dao et al. 2022 keep the log
// of the whole sum: at scores of 1e6 a float rounds that by 0.03, and so p by 3%.) scratch (threads,2,QB + HS + 1,T).
// max_logit (B,NH), where not NULL, gets the largest |scale * q_i k_j|.
enum { QB = 64 };
static int query_block(int T) { return T > 128 ? QB : QB / 2; }    // small where much of the causal half would be wasted

// mask (2T): added from mask + T - 1 - i on, it leaves the scores of query i and keys j <= i and makes the others -infinity
static void causal_mask(real *mask, int T) {
    for (int t = 0; t < T; t++) mask[t] = 0, mask[T + t] = -INFINITY;
}

static void attention_forward(real *out, real *softmax, real *max_logit, const real *q, const real *k, const real *v, real scale,
                              real *scratch, int B, int T, int NH, int HS) {
    int C = NH * HS, block = query_block(T);
    #pragma omp parallel for
    for (int head = 0; head < B * NH; head++) {
        size_t at = (size_t)(head / NH) * T * C + (size_t)(head % NH) * HS;
        real *s = scratch + (size_t)this_thread() * 2 * (QB + HS + 1) * T, *k_t = s + (size_t)QB * T, *mask = k_t + (size_t)HS * T, largest = 0;
        causal_mask(mask, T);
        transpose(k_t, T, k + at, C, T, HS);    // (HS,T): the product reads its rows in order
        for (int i0 = 0; i0 < T; i0 += block) {
            int rows = least(block, T - i0), cols = i0 + rows;
            real *stats = softmax + 2 * ((size_t)head * T + i0);
            multiply(s, NULL, cols, matrix(q + at + (size_t)i0 * C, C), matrix(k_t, T), rows, cols, HS);
            for (int i = 0; i < rows; i++) {
                real *p = s + (size_t)i * cols, *hide = mask + T - 1 - i0 - i;
                for (int j = 0; j < cols; j++) p[j] = scale * p[j] + hide[j];
                real top = row_max(p, cols);
                if (max_logit) for (int j = 0; j <= i0 + i; j++) largest = FABS(p[j]) > largest ? FABS(p[j]) : largest;
                for (int j = 0; j < cols; j++) p[j] = exponential(p[j] - top);
                stats[2 * i] = top, stats[2 * i + 1] = 1 / row_sum(p, cols);
            }
            multiply(out + at + (size_t)i0 * C, NULL, C, matrix(s, cols), matrix(v + at, C), rows, HS, cols);
            for (int i = 0; i < rows; i++) {
                real *o = out + at + (size_t)(i0 + i) * C, inverse = stats[2 * i + 1];
                for (int j = 0; j < HS; j++) o[j] *= inverse;
            }
        }
        if (max_logit) max_logit[head] = largest;
    }
}

// dp_ij = dout_i v_j;  ds_ij = scale * p_ij (dp_ij - dout_i out_i);  dq = ds k;  dk = ds^T q;  dv = p^T dout
static void attention_backward(real *dq, real *dk, real *dv, const real *dout, const real *out, const real *softmax, const real *q, const real *k,
                               const real *v, real scale, real *scratch, int B, int T, int NH, int HS) {
    int C = NH * HS, block = query_block(T);
    #pragma omp parallel for
    for (int head = 0; head < B * NH; head++) {
        size_t at = (size_t)(head / NH) * T * C + (size_t)(head % NH) * HS;
        real *p = scratch + (size_t)this_thread() * 2 * (QB + HS + 1) * T, *ds = p + (size_t)QB * T;
        real *k_t = ds + (size_t)QB * T, *v_t = k_t + (size_t)HS * T, *mask = v_t + (size_t)HS * T;
        causal_mask(mask, T);
        transpose(k_t, T, k + at, C, T, HS);
        transpose(v_t, T, v + at, C, T, HS);
        int last = (T - 1) / block * block;
        for (int i0 = last; i0 >= 0; i0 -= block) {    // backwards: the first block writes all of dk and dv, the others add
            int rows = least(block, T - i0), cols = i0 + rows;
            size_t from = at + (size_t)i0 * C;
            multiply(p, NULL, cols, matrix(q + from, C), matrix(k_t, T), rows, cols, HS);
            multiply(ds, NULL, cols, matrix(dout + from, C), matrix(v_t, T), rows, cols, HS);
            for (int i = 0; i < rows; i++) {
                real *pi = p + (size_t)i * cols, *dsi = ds + (size_t)i * cols, *hide = mask + T - 1 - i0 - i;
                const real *stats = softmax + 2 * ((size_t)head * T + i0 + i);
                real top = stats[0], inverse = stats[1];
                real dot = row_dot(out + from + (size_t)i * C, dout + from + (size_t)i * C, HS);
                #pragma omp simd
                for (int j = 0; j < cols; j++) {
                    pi[j] = exponential(scale * pi[j] + hide[j] - top) * inverse;
                    dsi[j] = scale * pi[j] * (dsi[j] - dot);
                }
            }
            multiply(dq + from, NULL, C, matrix(ds, cols), matrix(k + at, C), rows, HS, cols);
            multiply(dk + at, i0 == last ? NULL : dk + at, C, transposed(ds, cols), matrix(q + from, C), cols, HS, rows);
            multiply(dv + at, i0 == last ? NULL : dv + at, C, transposed(p, cols), matrix(dout + from, C), cols, HS, rows);
        }
    }
}

// GELU in its tanh form (Hendrycks and Gimpel 2016): gelu(x) = x (1 + tanh u)/2 = x s, where s = 1/(1 + exp(-2u)),
// 2u = x (A + B x^2). It is computed from e = exp(-|2u|), which is at most 1: s is 1/(1 + e) or e/(1 + e), and
// s (1 - s) = e/(1 + e)^2 on both sides, so that nothing cancels or overflows; 1 - s would leave 6e-8 where the truth
// is 0, and x^3 would make a gradient of it. Beyond |x| = 30 e is 0 and x^2 needs no following.
#define GELU_A ((real)1.5957691216057308)     // 2 sqrt(2/pi)
#define GELU_B (GELU_A * (real)0.044715)

// out = gelu(inp), and slope = gelu'(inp) = s + x s (1 - s) (2u)', which costs little here and another exponential later
static void gelu_forward(real *out, real *slope, const real *inp, size_t n) {
    #pragma omp parallel for simd schedule(static, 1024)    // whole vectors to each thread: a tail may round differently
    for (size_t i = 0; i < n; i++) {
        real x = inp[i], size = FABS(x) < 30 ? FABS(x) : 30, x2 = size * size, e = exponential(-size * (GELU_A + GELU_B * x2)), inverse = reciprocal(1 + e);
        real s = (x > 0 ? 1 : e) * inverse;
        out[i] = x * s;
        slope[i] = s + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * x2);
    }
}

// dinp = dout * slope. dinp may be dout.
static void gelu_backward(real *dinp, const real *dout, const real *slope, size_t n) {
    #pragma omp parallel for simd schedule(static, 1024)
    for (size_t i = 0; i < n; i++) dinp[i] = dout[i] * slope[i];
}

// Softmax, loss and their gradient in one pass over a row of logits (rows,V), which becomes dlogits where
// gradient is not 0. With log Z = log of the sum of exp(logits), a row's loss is log Z - logit[target], and
// dlogits = (p - [target] + 2 z_loss log Z p) / rows. losses, log_z (rows). logit_scale: muParam's.
static void cross_entropy(real *logits, real *losses, real *log_z, const int *targets, real z_loss, real logit_scale, int gradient, int rows, int V) {
    #pragma omp parallel for
    for (int i = 0; i < rows; i++) {
        real *x = logits + (size_t)i * V;
        if (logit_scale != 1) for (int j = 0; j < V; j++) x[j] *= logit_scale;            // [mu_param]
        real top = row_max(x, V), of_target = x[targets[i]];
        for (int j = 0; j < V; j++) x[j] = exponential(x[j] - top);
        real sum = row_sum(x, V);
        log_z[i] = top + LOG(sum);
        losses[i] = top - of_target + LOG(sum);
        if (!gradient) continue;
        real weight = 1;
        weight += 2 * z_loss * log_z[i];                                                  // [z_loss]
        weight *= logit_scale;                                                            // [mu_param]
        real factor = weight / sum / rows;
        #pragma omp simd
        for (int j = 0; j < V; j++) x[j] *= factor;
        x[targets[i]] -= logit_scale / rows;
    }
}

enum { SUM_CHUNK = 4096 };    // elements whose squares are summed on their own, whatever the number of threads

// The sum of squares in double, so that it overflows no sooner than the values do. sums (n/SUM_CHUNK + 1) is scratch.
static double sum_squares(const real *x, size_t n, double *sums) {
    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;
    #pragma omp parallel for
    for (size_t c = 0; c < chunks; c++) {
        size_t end = (c + 1) * SUM_CHUNK < n ? (c + 1) * SUM_CHUNK : n;
        double sum = 0;
        #pragma omp simd reduction(+:sum)
        for (size_t i = c * SUM_CHUNK; i < end; i++) sum += (double)x[i] * (double)x[i];
        sums[c] = sum;
    }
    double total = 0;
    for (size_t c = 0; c < chunks; c++) total += sums[c];
    return total;
}

// ---------------------------------------------------------------------------
// The model

typedef struct {
    Config cfg;
    int V;
    Parameter table[NUM_KINDS];
    size_t num_parameters;
    real *params, *grads, *m, *v;                    // m, v: AdamW's moments
    real *cosine, *sine;                             // (T,HS/2)
    // activations, (L, ...) where a layer has its own; mean and rstd are each norm's
    real *residual;                                  // (2L+1,B,T,C): before attention and before the MLP of each layer, and at the end
    real *ln_1, *ln_1_mean, *ln_1_rstd;              // (L,B,T,C), (L,B,T)
    real *qkv;                                       // (L,3,B,T,C)
    real *qk_mean, *qk_rstd;                         // (L,2,B,T,NH)
    real *qk;                                        // (L,2,B,T,C): q and k as attention sees them
    real *att, *softmax;                             // (L,B,T,C), (L,B,NH,T,2)
    real *ln_2, *ln_2_mean, *ln_2_rstd;
    real *gelu, *slope;                              // (L,B,T,4C)
    real *ln_f, *ln_f_mean, *ln_f_rstd;
    real *logits;                                    // (B,T,V), then their gradient
    real *losses, *log_z;                            // (B,T)
    // what lives for one layer
    real *fc, *dresidual, *dnorm, *dqkv, *dfc;       // (B,T,4C), (B,T,C), (B,T,C), (3,B,T,C), (B,T,4C)
    // scratch
    real *scratch, *partial, *max_logit;             // (threads,2,QB + HS + 1,T), (B*T/CHUNK + 2,C), (L,B,NH)
    double *sums, act_rms[NUM_ACTIVATIONS];          // (the longest array / SUM_CHUNK + 1), of the last gpt_forward with statistics
    void *memory;                                    // of all the above
    double bytes;
} GPT;

enum { CACHE_LINE = 64 };

// The one list of buffers, from which both the size and the place of each follow. Sets bytes, and where memory is not
// NULL also the buffers in it.
static void gpt_layout(GPT *g, const Config *cfg, int V, int B, int T, void *memory) {
    memset(g, 0, sizeof *g);
    g->cfg = *cfg;
    g->cfg.vocab = g->V = V;
    g->memory = memory;
    g->num_parameters = parameter_table(cfg, V, g->table);
    double L = cfg->layers, NH = cfg->heads, C = cfg->d, BT = (double)B * T, N = (double)g->num_parameters;
    const struct { real **buffer; double size; } list[] = {
        {&g->params, N}, {&g->grads, N}, {&g->m, N}, {&g->v, N}, {&g->cosine, T * C / NH / 2}, {&g->sine, T * C / NH / 2},
        {&g->residual, (2 * L + 1) * BT * C},
        {&g->ln_1, L * BT * C}, {&g->ln_1_mean, L * BT}, {&g->ln_1_rstd, L * BT},
        {&g->qkv, L * 3 * BT * C}, {&g->qk_mean, L * 2 * BT * NH}, {&g->qk_rstd, L * 2 * BT * NH}, {&g->qk, L * 2 * BT * C},
        {&g->att, L * BT * C}, {&g->softmax, L * BT * NH * 2},
        {&g->ln_2, L * BT * C}, {&g->ln_2_mean, L * BT}, {&g->ln_2_rstd, L * BT},
        {&g->gelu, L * BT * 4 * C}, {&g->slope, L * BT * 4 * C},
        {&g->ln_f, BT * C}, {&g->ln_f_mean, BT}, {&g->ln_f_rstd, BT},
        {&g->logits, BT * V}, {&g->losses, BT}, {&g->log_z, BT},
        {&g->fc, BT * 4 * C}, {&g->dresidual, BT * C}, {&g->dnorm, BT * C}, {&g->dqkv, 3 * BT * C}, {&g->dfc, BT * 4 * C},
        {&g->scratch, (double)max_threads() * 2 * (QB + C / NH + 1) * T}, {&g->partial, (BT / CHUNK + 2) * C}, {&g->max_logit, L * B * NH},
    };
    real *next = (real *)(((uintptr_t)memory + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);    // a vector that straddles two lines is slow
    g->bytes = CACHE_LINE;
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        double lines = floor(list[i].size * sizeof(real) / CACHE_LINE) + 1;
        g->bytes += lines * CACHE_LINE;
        if (!memory) continue;
        *list[i].buffer = next;
        next += (size_t)lines * CACHE_LINE / sizeof(real);
    }
}

static void gpt_init(GPT *g, const Config *cfg, int V, int B, int T) {
    gpt_layout(g, cfg, V, B, T, NULL);
    check_memory(g->bytes);
    gpt_layout(g, cfg, V, B, T, allocate((size_t)g->bytes, 1));
    g->sums = (double *)allocate((size_t)(g->bytes / sizeof(real)) / SUM_CHUNK + 1, sizeof(double));
    parameters_init(g->params, g->table, cfg->seed);
    rope_table(g->cosine, g->sine, T, cfg->d / cfg->heads);
}

static void gpt_free(GPT *g) {
    free(g->memory);
    free(g->sums);
}

// Where layer l's tensor of a kind starts, in the parameters or in their gradients.
static real *tensor(const GPT *g, real *params, int kind, int l) {
    return params + g->table[kind].offset + (size_t)l * parameter_size(&g->table[kind]);
}

// logits (B,T,V) from tokens (B,T). statistics: also the largest attention logit of each layer and the RMS of activations.
static void gpt_forward(GPT *g, const int *tokens, int B, int T, int statistics) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, rows = B * T;
    size_t BTC = (size_t)rows * C;
    real *p = g->params, scale = (real)attention_scale(&g->cfg);
    double fc_squares = 0;
    embedding_forward(g->residual, tokens, tensor(g, p, WTE, 0), rows, C);
    for (int l = 0; l < L; l++) {
        real *x = g->residual + 2 * l * BTC, *x_mid = x + BTC, *x_out = x_mid + BTC;
        real *ln_1 = g->ln_1 + l * BTC, *ln_2 = g->ln_2 + l * BTC, *qkv = g->qkv + l * 3 * BTC, *qk = g->qk + l * 2 * BTC;
        real *att = g->att + l * BTC, *softmax = g->softmax + (size_t)l * rows * NH * 2, *gelu = g->gelu + l * 4 * BTC;
        layernorm_forward(ln_1, g->ln_1_mean + (size_t)l * rows, g->ln_1_rstd + (size_t)l * rows, x, tensor(g, p, LN_1, l), rows, C);
        for (int i = 0; i < 3; i++) matmul_forward(qkv + i * BTC, NULL, ln_1, tensor(g, p, C_ATTN, l) + (size_t)i * C * C, rows, C, C);
        for (int i = 0; i < 2; i++) {    // q, then k
            real *from = qkv + i * BTC, *to = qk + i * BTC;
            if (g->cfg.qk_norm) {                                                         // [qk_norm
                size_t at = (size_t)(2 * l + i) * rows * NH;
                layernorm_forward(to, g->qk_mean + at, g->qk_rstd + at, from, tensor(g, p, i ? K_NORM : Q_NORM, l), rows * NH, HS);
                from = to;
            }                                                                             // qk_norm]
            rope_forward(to, from, g->cosine, g->sine, B, T, NH, HS);
        }
        attention_forward(att, softmax, statistics ? g->max_logit + (size_t)l * B * NH : NULL, qk, qk + BTC, qkv + 2 * BTC, scale, g->scratch, B, T, NH, HS);
        matmul_forward(x_mid, x, att, tensor(g, p, ATTN_C_PROJ, l), rows, C, C);
        layernorm_forward(ln_2, g->ln_2_mean + (size_t)l * rows, g->ln_2_rstd + (size_t)l * rows, x_mid, tensor(g, p, LN_2, l), rows, C);
        matmul_forward(g->fc, NULL, ln_2, tensor(g, p, C_FC, l), rows, C, 4 * C);
        gelu_forward(gelu, g->slope + l * 4 * BTC, g->fc, 4 * BTC);
        if (statistics) fc_squares += sum_squares(g->fc, 4 * BTC, g->sums);
        matmul_forward(x_out, x_mid, gelu, tensor(g, p, MLP_C_PROJ, l), rows, 4 * C, C);
    }
    layernorm_forward(g->ln_f, g->ln_f_mean, g->ln_f_rstd, g->residual + 2 * L * BTC, tensor(g, p, LN_F, 0), rows, C);
    matmul_forward(g->logits, NULL, g->ln_f, tensor(g, p, LM_HEAD, 0), rows, C, g->V);
    if (!statistics) return;
    const struct { int act; const real *x; size_t n; } list[] = {{ACT_WTE, g->residual, BTC}, {ACT_C_ATTN, g->qkv, 3 * L * BTC}, {ACT_ATT, g->att, L * BTC},
        {ACT_RESIDUAL, g->residual + 2 * L * BTC, BTC}, {ACT_LOGITS, g->logits, (size_t)rows * g->V}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) g->act_rms[list[i].act] = sqrt(sum_squares(list[i].x, list[i].n, g->sums) / (double)list[i].n);
    g->act_rms[ACT_C_FC] = sqrt(fc_squares / (double)(4 * L * BTC));
    g->act_rms[ACT_LOGITS] *= mu_logit_scale(&g->cfg);                                    // [mu_param]
}

// Mean cross-entropy in nats of the logits of the last gpt_forward against targets (B,T). gradient: the logits
// become the gradient of the loss, which is the cross-entropy + z_loss * mean(log Z ^ 2). log_z: the mean of log Z.
static double gpt_loss(GPT *g, const int *targets, int B, int T, int gradient, double *log_z) {
    double sum = 0, sum_log_z = 0;
    cross_entropy(g->logits, g->losses, g->log_z, targets, (real)g->cfg.z_loss, (real)mu_logit_scale(&g->cfg), gradient, B * T, g->V);
    for (int i = 0; i < B * T; i++) sum += g->losses[i], sum_log_z += g->log_z[i];
    *log_z = sum_log_z / (B * T);
    return sum / (B * T);
}

// All gradients, after gpt_forward and gpt_loss of the same batch.
static void gpt_backward(GPT *g, const int *tokens, int B, int T) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, rows = B * T;
    size_t BTC = (size_t)rows * C;
    real *p = g->params, *d = g->grads, *dx = g->dresidual, *dn = g->dnorm, *dfc = g->dfc, scale = (real)attention_scale(&g->cfg);
    matmul_backward(dn, NULL, tensor(g, d, LM_HEAD, 0), g->logits, g->ln_f, tensor(g, p, LM_HEAD, 0), rows, C, g->V);
    layernorm_backward(dx, NULL, tensor(g, d, LN_F, 0), dn, g->residual + 2 * L * BTC, tensor(g, p, LN_F, 0), g->ln_f_mean, g->ln_f_rstd, g->partial, rows, C);
    for (int l = L - 1; l >= 0; l--) {
        real *x = g->residual + 2 * l * BTC, *x_mid = x + BTC;
        real *ln_1 = g->ln_1 + l * BTC, *ln_2 = g->ln_2 + l * BTC, *qkv = g->qkv + l * 3 * BTC, *qk = g->qk + l * 2 * BTC;
        real *att = g->att + l * BTC, *softmax = g->softmax + (size_t)l * rows * NH * 2, *gelu = g->gelu + l * 4 * BTC;
        matmul_backward(dfc, NULL, tensor(g, d, MLP_C_PROJ, l), dx, gelu, tensor(g, p, MLP_C_PROJ, l), rows, 4 * C, C);
        gelu_backward(dfc, dfc, g->slope + l * 4 * BTC, 4 * BTC);
        matmul_backward(dn, NULL, tensor(g, d, C_FC, l), dfc, ln_2, tensor(g, p, C_FC, l), rows, C, 4 * C);
        layernorm_backward(dx, dx, tensor(g, d, LN_2, l), dn, x_mid, tensor(g, p, LN_2, l), g->ln_2_mean + (size_t)l * rows, g->ln_2_rstd + (size_t)l * rows, g->partial, rows, C);
        matmul_backward(dn, NULL, tensor(g, d, ATTN_C_PROJ, l), dx, att, tensor(g, p, ATTN_C_PROJ, l), rows, C, C);
        attention_backward(g->dqkv, g->dqkv + BTC, g->dqkv + 2 * BTC, dn, att, softmax, qk, qk + BTC, qkv + 2 * BTC, scale, g->scratch, B, T, NH, HS);
        for (int i = 0; i < 2; i++) {    // q, then k
            real *dq = g->dqkv + i * BTC;
            rope_backward(dq, dq, g->cosine, g->sine, B, T, NH, HS);
            if (g->cfg.qk_norm) {                                                         // [qk_norm
                size_t at = (size_t)(2 * l + i) * rows * NH;
                int kind = i ? K_NORM : Q_NORM;
                layernorm_backward(dq, NULL, tensor(g, d, kind, l), dq, qkv + i * BTC, tensor(g, p, kind, l), g->qk_mean + at, g->qk_rstd + at, g->partial, rows * NH, HS);
            }                                                                             // qk_norm]
        }
        for (int i = 0; i < 3; i++) {
            size_t at = (size_t)i * C * C;
            matmul_backward(dn, i ? dn : NULL, tensor(g, d, C_ATTN, l) + at, g->dqkv + i * BTC, ln_1, tensor(g, p, C_ATTN, l) + at, rows, C, C);
        }
        layernorm_backward(dx, dx, tensor(g, d, LN_1, l), dn, x, tensor(g, p, LN_1, l), g->ln_1_mean + (size_t)l * rows, g->ln_1_rstd + (size_t)l * rows, g->partial, rows, C);
    }
    embedding_backward(tensor(g, d, WTE, 0), dx, tokens, rows, C, g->V);
}

// ---------------------------------------------------------------------------
// AdamW (Loshchilov and Hutter 2019)

// One step for n parameters: g = grad * grad_scale;  m = beta1 m + new1 g;  v = beta2 v + new2 g^2, new = 1 - beta;
// u = m correction1 / (sqrt(v correction2) + eps);  p -= lr u + decay p.  update, where not NULL, gets u; it may be grad.
static void adamw(real *param, const real *grad, real *m, real *v, real *update, size_t n, real grad_scale, real lr,
                  real beta1, real new1, real beta2, real new2, real correction1, real correction2, real eps, real decay) {
    #pragma omp parallel for simd schedule(static, 1024)
    for (size_t i = 0; i < n; i++) {
        real g = grad[i] * grad_scale;
        m[i] = beta1 * m[i] + new1 * g;
        v[i] = beta2 * v[i] + new2 * g * g;
        real u = m[i] * correction1 / (SQRT(v[i] * correction2) + eps);
        param[i] -= lr * u + decay * param[i];
        if (update) update[i] = u;
    }
}

// Clips the gradient, updates every parameter at this step (from 1), returns the gradient's norm before clipping.
// stats, where not NULL, gets the RMS of each kind's gradient, update and new parameters; the gradients are then gone.
static double gpt_update(GPT *g, int step, Stats *stats) {
    const Config *cfg = &g->cfg;
    double squares[NUM_KINDS], total = 0, scale = 1, lr = learning_rate(cfg, step), decay = 0, eps = 1e-8, beta2 = 0.95;
    decay = weight_decay(cfg, step);                                                      // [wd]
    eps = cfg->eps;                                                                       // [eps]
    beta2 = cfg->beta2;                                                                   // [beta2]
    for (int k = 0; k < NUM_KINDS; k++) {
        squares[k] = sum_squares(g->grads + g->table[k].offset, parameter_size(&g->table[k]) * (size_t)g->table[k].copies, g->sums);
        total += squares[k];
    }
    double norm = sqrt(total);
    if (cfg->clip > 0 && norm > cfg->clip) scale = cfg->clip / norm;                      // [clip]
    for (int k = 0; k < NUM_KINDS; k++) {
        const Parameter *p = &g->table[k];
        size_t at = p->offset, n = parameter_size(p) * (size_t)p->copies;
        double kind_lr = lr;
        kind_lr *= mu_lr_scale(cfg, p);                                                   // [mu_param]
        adamw(g->params + at, g->grads + at, g->m + at, g->v + at, stats ? g->grads + at : NULL, n, (real)scale, (real)kind_lr,
              (real)cfg->beta1, (real)(1 - cfg->beta1), (real)beta2, (real)(1 - beta2),
              (real)(1 / (1 - pow(cfg->beta1, step))), (real)(1 / (1 - pow(beta2, step))), (real)eps, (real)decay);
        if (!stats || !n) continue;
        stats->grad_rms[k] = sqrt(squares[k] / (double)n);
        stats->update_rms[k] = sqrt(sum_squares(g->grads + at, n, g->sums) / (double)n);
        stats->param_rms[k] = sqrt(sum_squares(g->params + at, n, g->sums) / (double)n);
    }
    return norm;
}

// ---------------------------------------------------------------------------
// The training loop

// Copies what the last gpt_forward with statistics measured: the largest attention logit of each
// layer and the RMS of the activations.
static void gpt_statistics(const GPT *g, int B, Stats *stats) {
    int heads = B * g->cfg.heads;
    memcpy(stats->act_rms, g->act_rms, sizeof g->act_rms);
    for (int l = 0; l < g->cfg.layers; l++) {
        const real *logits = g->max_logit + (size_t)l * heads;
        double largest = 0;
        for (int i = 0; i < heads; i++)
            if (logits[i] > largest) largest = logits[i];
        stats->max_attn_logit[l] = largest;
    }
}

// Mean loss in nats over the first `windows` windows of the validation data. inputs, targets (B,T)
// are scratch.
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

// One run from its flags to its files. Returns the exit status. progress: of a run of a sweep.
static int train(const Config *flags, int threads, Progress *progress) {
    int B = flags->batch, T = flags->T;
    DataLoader loader;
    GPT g;
    Stats stats;
    State state = {0, 0, 0, 0};
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif

    // data, model, memory for a batch
    dataloader_init(&loader, flags->data, flags->val, flags->vocab, T, (uint64_t)flags->seed);
    gpt_init(&g, flags, loader.vocab, B, T);
    const Config *cfg = &g.cfg;
    int *inputs = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int *targets = (int *)allocate((size_t)B * (size_t)T, sizeof(int));

    // a new run, or one that resumes
    if (cfg->resume) state = checkpoint_load(cfg, g.table, g.params, g.m, g.v);
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    double entropy_floor = dataloader_entropy_floor(&loader, windows);
    Run run = run_begin(cfg, g.table, g.num_parameters, g.bytes, &state, entropy_floor, NULL,
                        threads, progress);
    if (state.log_bytes == 0) {
        double initial = evaluate(&g, &loader, windows, inputs, targets);
        run_initial(&run, &stats, initial);
    }

    int step = state.step;                    // steps done
    int saved = cfg->resume ? step : -1;      // steps in the checkpoint
    while (step < cfg->steps && !interrupted && !run.diverged_step) {
        // the other work of this step
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
        if (logs) gpt_statistics(&g, B, &stats);

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

// ---------------------------------------------------------------------------
// From the command line

// The logits (V) of the token after the first `used` tokens of context.
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

// Dies, before any file is touched, if there are no data or no memory for `jobs` runs at a time.
// Returns the memory of one run, in bytes.
static double check_runs(const Config *cfg, int jobs) {
    DataLoader loader;
    GPT g;
    dataloader_init(&loader, cfg->data, cfg->val, cfg->vocab, cfg->T, (uint64_t)cfg->seed);
    gpt_layout(&g, cfg, loader.vocab, cfg->batch, cfg->T, NULL);
    check_memory(g.bytes * jobs);
    dataloader_free(&loader);
    return g.bytes;
}

// Trains once for each learning rate, as many runs at a time as there are cores.
static int train_sweep(const Config *cfg, char lr[MAX_RUNS][MAX_RATE], int runs) {
    int jobs = least(runs, max_jobs()), threads = max_jobs() / jobs;
    double bytes = check_runs(cfg, jobs);
    return sweep(cfg, lr, runs, jobs, threads, bytes, train);
}

int main(int argc, char **argv) {
#ifdef _OPENMP
    // A thread that waits for others should spin for a moment and then sleep: waking takes longer than most layers of a
    // small model, but one that spins on a busy machine keeps away the thread that it waits for, and training is a
    // hundred times slower. OpenMP (GCC's, LLVM's) reads this when it is loaded, so the program starts itself again.
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) {
        setenv("GOMP_SPINCOUNT", "5000", 1);
        setenv("KMP_BLOCKTIME", "1", 0);
        execv("/proc/self/exe", argv);
    }
#endif
    Config cfg;
    char lr[MAX_RUNS][MAX_RATE];
    config_parse(&cfg, argc, argv);
    if (cfg.dtype == BF16 || cfg.micro_batch)
        die(USAGE, "-dtype bf16 and -micro_batch are train_gpt_cu's: this program computes in fp32 "
            "and the whole batch at once");
    cfg.dtype = FP32;

    int runs = learning_rates(cfg.lr_text, lr, NULL);
    if (runs > 1) return train_sweep(&cfg, lr, runs);
    if (!cfg.sample) return train(&cfg, max_threads(), NULL);
    sample(&cfg);
    return 0;
}

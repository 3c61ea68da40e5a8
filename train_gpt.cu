// train_gpt.cu: the same GPT as train_gpt.c, trained on one NVIDIA GPU in fused CUDA and cuBLAS. Read train_gpt.c first:
// this file has its sections in its order (matrix multiply; layers, each forward then backward; the model; AdamW; the
// training loop; main), and a function of the same name does the same. What differs is what a GPU makes different.
// Shapes: B batch, T sequence length, C channels, L layers, NH heads, HS = C/NH head size, V vocabulary.
// Results are the same from run to run: no sum's order is left to chance, so nothing is added atomically.
//
// Where the time must go: a token's share of a step of C 1024, L 16, T 512, V 32128 (267 million parameters) in bf16 with a
// batch of 256, and the least time on an H200 (790 TFLOP/s in bf16, 4.3 TB/s), the larger of FLOPs and bytes. Computed from
// the formulas, with n = 2 bytes an activation; nothing here was measured on a GPU yet.
//
//                               MFLOP    KB      ns    FLOPs, or bytes to and from memory
//     products of the layers     1208          1529    6 * 12 C^2 L
//     products of the head        197           250    6 V C
//     embedding, both ways                6       1    3 C n, and 4 V C a batch
//     layernorm_forward                 266      62    4 C n (2L) + 2 C n: with the residual's sum
//     qk_norm_rope_forward              131      31    4 C n L
//     attention_forward            17   131      31    2 products: 2 * 2 (T/2) C L;  4 C n L
//     cross_entropy                     129      30    2 V n
//     layernorm_backward                268      62    4 C n (2L) + 3 C n
//     attention_backward           59   393      91    7 products: 7 * 2 (T/2) C L;  12 C n L
//     qk_norm_rope_backward             197      46    6 C n L
//     adamw, gradient norm               69      16    34 bytes a parameter and batch
//     all                        1481  1592    2149    at most 465,000 tokens/s, 83% of the time in products
//
// GELU is the last step of two products there. Where it is a pass of its own (matmul_gelu says where) come to this
//     gelu_forward                      262      61    8 C n L
//     gelu_backward                     393      91    12 C n L
//
// So products must run at cuBLAS's best and everything else touch memory as rarely as it can: each kernel below is fused
// with its neighbour where that saves a pass, and says what it moves.

#ifdef CUDA_EMU
#include "test/cuda/cuda_emu.h"    // stands in for CUDA on a machine without a GPU, for the tests
#else
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <cublas_v2.h>
#include <cublasLt.h>
#endif
#include "gpt.h"           // Config, parameter_table, learning_rate, muParam's factors, Stats
#include "dataloader.h"    // DataLoader: batches of tokens
#include "lib/sweep.h"     // config_parse, checkpoint_*, run_*, sweep, sample_text

// ---------------------------------------------------------------------------
// What a GPU needs: errors, launches, 16 bytes at a time, sums over the threads of a block

typedef __nv_bfloat16 bf16;
#ifdef FP32    // the type of activations, and of the weights that products read
typedef float act;
#else
typedef bf16 act;
#endif
enum { BF16 = sizeof(act) == 2 };

static cudaStream_t stream;    // all work is queued here, in order; the host does not wait for it
static cublasHandle_t cublas;
static void *workspace;        // cuBLAS's
static bool gelu_in_products;  // whether matmul_gelu is worth asking

static void check_at(cudaError_t error, const char *call, int line) {
    if (error == cudaErrorMemoryAllocation) die(FAILED, "the GPU has no memory left (%.60s); try a smaller -micro_batch, fewer runs at a time, or ./train_gpt on the CPU", call);
    if (error != cudaSuccess) die(FAILED, "the GPU failed: %s (train_gpt.cu:%d, %.60s)", cudaGetErrorString(error), line, call);
}
static void check_at(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS) die(FAILED, "cuBLAS failed: %s (train_gpt.cu:%d, %.60s)", cublasGetStatusString(status), line, call);
}
#define check(call) check_at(call, #call, __LINE__)

template <class... Parameters, class... Arguments>
static void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

static int blocks(double n, int each) { return (int)ceil(n / each); }
__host__ __device__ inline int least(int a, int b) { return a < b ? a : b; }

enum { W = 8 };    // values that a thread takes at a time: 16 bytes of bf16, twice 16 of float

__host__ __device__ inline float value(float x) { return x; }
__host__ __device__ inline float value(bf16 x) { return __bfloat162float(x); }
__device__ inline void round_to(float *out, float x) { *out = x; }
__device__ inline void round_to(bf16 *out, float x) { *out = __float2bfloat16(x); }
__device__ inline float rounded(float x) { act y; round_to(&y, x); return value(y); }

// Memory is read and written 16 bytes at a time where the address allows it: where the rows' length is a multiple of W,
// as in every model of a size worth a GPU. A row's last values, and rows of odd lengths, go one by one.
template <class number> __device__ inline bool whole(const number *x, int n) { return n >= W && (size_t)x % 16 == 0; }

template <class number> __device__ inline void copy(number *to, const number *from, int n) {    // the first n values, at most W
    if (whole(from, n) && whole(to, n)) {
        #pragma unroll
        for (size_t i = 0; i < W * sizeof(number) / 16; i++) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    } else for (int i = 0; i < W && i < n; i++) to[i] = from[i];
}

// A bf16 is the upper half of a float. W of them, 16 bytes, are handled as four words, so that they move as one.
__device__ inline void load_whole(float (&x)[W], const bf16 *from) {
    uint4 four = *(const uint4 *)from;
    unsigned word[4] = {four.x, four.y, four.z, four.w};
    for (int i = 0; i < 4; i++) {
        unsigned low = word[i] << 16, high = word[i] & 0xffff0000;
        memcpy(&x[2 * i], &low, 4);
        memcpy(&x[2 * i + 1], &high, 4);
    }
}
__device__ inline void load_whole(float (&x)[W], const float *from) {
    for (int i = 0; i < W; i += 4) {
        float4 four = *(const float4 *)(from + i);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
}
// 16 bytes at a time as one number: four words the compiler stores one by one in places.
template <class number> __device__ inline void store_whole(number *to, const float (&x)[W]) {
    const int N = 16 / (int)sizeof(number), BITS = 8 * (int)sizeof(number);
    for (int i = 0; i < W; i += N) {
        uint64_t half[2] = {0, 0};
        for (int j = 0; j < N; j++) {
            number one;
            std::conditional_t<sizeof one == 2, uint16_t, uint32_t> bits;
            round_to(&one, x[i + j]);
            memcpy(&bits, &one, sizeof one);
            half[j * BITS / 64] |= (uint64_t)bits << j * BITS % 64;
        }
        *(unsigned __int128 *)(to + i) = (unsigned __int128)half[1] << 64 | half[0];
    }
}

template <class number> __device__ inline void load(float (&x)[W], const number *from, int n) {    // the first n of W values, then zeros
    if (whole(from, n)) load_whole(x, from);
    else for (int i = 0; i < W; i++) x[i] = i < n ? value(from[i]) : 0;
}
template <class number> __device__ inline void store(number *to, const float (&x)[W], int n) {    // the first n of W values
    if (whole(to, n)) store_whole(to, x);
    else for (int i = 0; i < W; i++) if (i < n) round_to(&to[i], x[i]);
}

enum { ALL = 0xffffffff };    // lanes of a warp

template <class number> __device__ inline number lanes_sum(number x, int lanes) {    // over groups of so many lanes, a power of 2
    for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL, x, distance);
    return x;
}

// Sums over the threads of the same threadIdx.y, in a fixed order; all threads of the block call it.
template <class number> __device__ inline number row_sum(number x) {
    __shared__ number sums[32];
    x = lanes_sum(x, 32);
    if (blockDim.x == 32) return x;
    int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x / 32;
    __syncthreads();    // the sums of the call before have been read
    if (thread % 32 == 0) sums[thread / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < warps; w++) x += sums[threadIdx.y * warps + w];
    return x;
}

__device__ inline float row_max(float x) {    // a NaN is passed over
    __shared__ float tops[32];
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, distance));
    __syncthreads();
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < (int)blockDim.x / 32; w++) x = fmaxf(x, tops[w]);
    return x;
}

#include "lib/gpu.h"    // Left, Right, multiply: products by tensor cores; power_of_2

// ---------------------------------------------------------------------------
// Matrix multiply: all but a few percent of the FLOPs of a step

template <class number> struct CudaType { static const cudaDataType_t type = CUDA_R_32F; };
template <> struct CudaType<bf16> { static const cudaDataType_t type = CUDA_R_16BF; };

// A matrix in memory, row by row, `row` elements from one to the next; possibly read transposed.
struct Matrix { const act *data; int row; bool flipped; };
static Matrix matrix(const act *data, int row) { return {data, row, false}; }
static Matrix transposed(const act *data, int row) { return {data, row, true}; }

// out (M,N) = a (M,K) b (K,N), or out += where adds; `row` elements lead from one row of out to the next. Sums are in float
// (no TF32). cuBLAS counts by columns, where a matrix stored by rows is its transpose: so it is asked for out^T = b^T a^T.
template <class number>
static void matmul(number *out, int row, bool adds, Matrix a, Matrix b, int M, int N, int K) {
    float one = 1, beta = adds;
    check(cublasGemmEx(cublas, b.flipped ? CUBLAS_OP_T : CUBLAS_OP_N, a.flipped ? CUBLAS_OP_T : CUBLAS_OP_N, N, M, K, &one,
                       b.data, CudaType<act>::type, b.row, a.data, CudaType<act>::type, a.row, &beta,
                       out, CudaType<number>::type, row, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

enum { WORKSPACE = 32 << 20 };    // bytes: what cuBLAS asks for on Hopper

// inp (M,N) = a b and out = gelu(inp), or, where `backward`, out = gelu'(inp) * (a b): GELU as the product's last step, on sums
// that are still in registers. A pass of its own would read inp again (forward), or write a b and read it again (backward):
// one and two values an element more. Returns false, and has done nothing, where that pass is to be made:
// - in fp32, which follows train_gpt.c to 1e-4. cuBLASLt's GELU has the same tanh form, but nobody promises its digits; a
//   bf16's are few.
// - on GPUs other than of compute capability 9 and 10: there cuBLASLt was seen to run GELU in a kernel of its own, slower than
//   ours (github.com/karpathy/llm.c/pull/591, 653; github.com/sgl-project/sglang/pull/34350).
// - for matrices whose rows are no multiples of 16 bytes, which it refuses, and for what else it knows no algorithm.
static bool matmul_gelu(act *out, act *inp, bool backward, Matrix a, Matrix b, int M, int N, int K) {
    if (!gelu_in_products || (a.row | b.row | N) % W || ((size_t)out | (size_t)inp | (size_t)a.data | (size_t)b.data) % 16) return false;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t left, right, result;    // by columns, as in matmul
    cublasLtMatmulPreference_t preference;
    check(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    check(cublasLtMatrixLayoutCreate(&left, CudaType<act>::type, b.flipped ? K : N, b.flipped ? N : K, b.row));
    check(cublasLtMatrixLayoutCreate(&right, CudaType<act>::type, a.flipped ? M : K, a.flipped ? K : M, a.row));
    check(cublasLtMatrixLayoutCreate(&result, CudaType<act>::type, N, M, N));
    check(cublasLtMatmulPreferenceCreate(&preference));
    cublasOperation_t op_left = b.flipped ? CUBLAS_OP_T : CUBLAS_OP_N, op_right = a.flipped ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = backward ? CUBLASLT_EPILOGUE_DGELU : CUBLASLT_EPILOGUE_GELU_AUX;
    int64_t row = N;
    const struct { cublasLtMatmulDescAttributes_t name; const void *value; size_t size; } settings[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &op_left, sizeof op_left}, {CUBLASLT_MATMUL_DESC_TRANSB, &op_right, sizeof op_right},
        {CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue},
        {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &inp, sizeof inp}, {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &row, sizeof row}};
    for (auto &s : settings) check(cublasLtMatmulDescSetAttribute(product, s.name, s.value, s.size));
    uint64_t bytes = WORKSPACE;
    uint32_t aligned = 16, reduction = CUBLASLT_REDUCTION_SCHEME_NONE;    // no sum is split: float throughout, in one order
    const struct { cublasLtMatmulPreferenceAttributes_t name; const void *value; size_t size; } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes}, {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &aligned, sizeof aligned}, {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &aligned, sizeof aligned},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &aligned, sizeof aligned}, {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &aligned, sizeof aligned}};
    for (auto &w : wishes) check(cublasLtMatmulPreferenceSetAttribute(preference, w.name, w.value, w.size));
    cublasLtHandle_t handle = (cublasLtHandle_t)cublas;    // NVIDIA lets the one stand for the other
    cublasLtMatmulHeuristicResult_t algorithm = {};
    int known = 0;
    float one = 1, zero = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, product, left, right, result, result, preference, 1, &algorithm, &known);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) check(status);
    known = known && status == CUBLAS_STATUS_SUCCESS && algorithm.state == CUBLAS_STATUS_SUCCESS;
    if (known) check(cublasLtMatmul(handle, product, &one, b.data, left, a.data, right, &zero, out, result, out, result, &algorithm.algo, workspace, WORKSPACE, stream));
    check(cublasLtMatmulPreferenceDestroy(preference));
    for (cublasLtMatrixLayout_t layout : {left, right, result}) check(cublasLtMatrixLayoutDestroy(layout));
    check(cublasLtMatmulDescDestroy(product));
    return known;
}

// ---------------------------------------------------------------------------
// Layers, each forward then backward. Activations and their gradients are `act`; a parameter's gradient is float, and is
// added to what is there where `adds` is set: by every micro-batch of a step but the first.

// out (rows,OC) = inp (rows,IC) weight^T, weight (OC,IC); `row` elements lead from one row of out to the next
static void matmul_forward(act *out, int row, const act *inp, const act *weight, int rows, int IC, int OC) {
    matmul(out, row, false, matrix(inp, IC), transposed(weight, IC), rows, OC, IC);
}

// dinp (rows,IC) = dout (rows,OC) weight;  dweight (OC,IC) = dout^T inp
static void matmul_backward(act *dinp, float *dweight, bool adds, const act *dout, int row, const act *inp, const act *weight, int rows, int IC, int OC) {
    matmul(dinp, IC, false, matrix(dout, row), matrix(weight, IC), rows, IC, OC);
    matmul(dweight, IC, adds, transposed(dout, row), matrix(inp, IC), OC, IC, rows);
}

// out (rows,C) = wte (V,C) at each token. Moves 2 C values a token: read a row, write a row.
__global__ void embedding_forward_kernel(act *out, const int *tokens, const act *wte, int rows, int C) {
    int parts = (C + W - 1) / W;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / parts;
    int c = (int)(i % parts) * W;
    if (row < (size_t)rows) copy(out + row * C + c, wte + (size_t)tokens[row] * C + c, C - c);
}

static void embedding_forward(act *out, const int *tokens, const act *wte, int rows, int C) {
    launch(embedding_forward_kernel, blocks((double)rows * ((C + W - 1) / W), 128), 128, out, tokens, wte, rows, C);
}

__device__ inline int first_from(const int *sorted, int begin, int end, int row) {    // the first place whose number is not below row
    while (begin < end) {
        int middle = (begin + end) / 2;
        if (sorted[middle] < row) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

// dwte (V,C): each token's row is the sum of dout (rows,C) where the token stood. Threads that met the same token would
// have to add atomically, in an order left to chance. So the host sorts the batch's positions by token (gpt_batch): those
// of token v are order[start[v] .. start[v + 1]), ascending, and a block has a token and 256 channels to itself.
// Moves C act a position and C float for each of V tokens; further micro-batches write only the tokens that they hold.
__global__ void embedding_backward_kernel(float *dwte, bool adds, const act *dout, const int *order, const int *start, int first, int rows, int C) {
    __shared__ float sums[8][32 * W];
    int v = blockIdx.x, c = (blockIdx.y * 32 + threadIdx.x) * W;
    int begin = first_from(order, start[v], start[v + 1], first), end = first_from(order, begin, start[v + 1], first + rows);
    if (adds && begin == end) return;
    float sum[W] = {}, x[W];
    for (int i = begin + threadIdx.y; i < end; i += 8) {
        load(x, dout + (size_t)(order[i] - first) * C + c, C - c);
        for (int j = 0; j < W; j++) sum[j] += x[j];
    }
    for (int j = 0; j < W; j++) sums[threadIdx.y][threadIdx.x * W + j] = sum[j];
    __syncthreads();
    if (threadIdx.y) return;
    load(sum, dwte + (size_t)v * C + c, adds ? C - c : 0);
    for (int y = 0; y < 8; y++)
        for (int j = 0; j < W; j++) sum[j] += sums[y][threadIdx.x * W + j];
    store(dwte + (size_t)v * C + c, sum, C - c);
}

static void embedding_backward(float *dwte, bool adds, const act *dout, const int *order, const int *start, int first, int rows, int C, int V) {
    launch(embedding_backward_kernel, dim3(V, blocks(C, 32 * W)), dim3(32, 8), dwte, adds, dout, order, start, first, rows, C);
}

// out (cols) = the sum of the rows of partial (rows,cols). Blocks that share a parameter leave a row each, this adds them.
__global__ void sum_rows_kernel(float *out, bool adds, const float *partial, int rows, int cols) {
    __shared__ float sums[8][32];
    int c = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    for (int r = threadIdx.y; r < rows && c < cols; r += 8) sum += partial[(size_t)r * cols + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= cols) return;
    sum = adds ? out[c] : 0;
    for (int y = 0; y < 8; y++) sum += sums[y][threadIdx.x];
    out[c] = sum;
}

static void sum_rows(float *out, bool adds, const float *partial, int rows, int cols) {
    launch(sum_rows_kernel, blocks(cols, 32), dim3(32, 8), out, adds, partial, rows, cols);
}

// A row of C values is kept in the registers of 32 to 512 threads, KEEP times W in each, so that it is read from memory once.
// Backward, at most ROW_BLOCKS blocks walk over all rows: four for each of an H200's 132 processors.
enum { KEEP = 2, ROW_THREADS = 512, MAX_C = ROW_THREADS * KEEP * W, ROW_BLOCKS = 4 * 132 };
static dim3 row_block(int C) {
    int x = 32 * blocks(C, 32 * KEEP * W);
    return dim3(x, x < 128 ? 128 / x : 1);
}

// out = weight * (inp - mean) * rstd, a row of C at a time; mean, rstd (rows). Ba et al. 2016, without a bias. Where add is
// not NULL, sum = inp + add, the residual after a branch, is written and normalised: fused, as sum would otherwise be
// written and read again. Moves 4 C values a row (read inp and add, write sum and out), 2 C without add.
__global__ void __launch_bounds__(ROW_THREADS) layernorm_forward_kernel(act *out, act *sum, float *mean, float *rstd, const act *inp, const act *add,
                                                                        const float *weight, int rows, int C) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    size_t at = (size_t)row * C;
    float x[KEEP][W], w[W], m = 0, r = 0;
    #pragma unroll
    for (int j = 0; j < KEEP; j++) {
        int c = (j * blockDim.x + threadIdx.x) * W, n = row < rows ? C - c : 0;
        load(x[j], inp + at + c, n);
        if (add) {
            load(w, add + at + c, n);
            for (int i = 0; i < W; i++) x[j][i] = rounded(x[j][i] + w[i]);
            store(sum + at + c, x[j], n);
        }
        for (int i = 0; i < W; i++) m += x[j][i];
    }
    m = row_sum(m) / C;
    #pragma unroll
    for (int j = 0; j < KEEP; j++)
        for (int i = 0, c = (j * blockDim.x + threadIdx.x) * W; i < W; i++)
            if (c + i < C) x[j][i] -= m, r += x[j][i] * x[j][i];
    r = row_sum(r) / C;
    r = 1 / sqrtf(r + 1e-6f) + 0 * r;    // NaN, not 0, where the squares overflow: as in train_gpt.c
    #pragma unroll
    for (int j = 0; j < KEEP; j++) {
        int c = (j * blockDim.x + threadIdx.x) * W;
        load(w, weight + c, C - c);
        for (int i = 0; i < W; i++) x[j][i] = w[i] * (x[j][i] * r);
        store(out + at + c, x[j], row < rows ? C - c : 0);
    }
    if (threadIdx.x == 0 && row < rows) mean[row] = m, rstd[row] = r;
}

static void layernorm_forward(act *out, act *sum, float *mean, float *rstd, const act *inp, const act *add, const float *weight, int rows, int C) {
    dim3 block = row_block(C);
    launch(layernorm_forward_kernel, blocks(rows, block.y), block, out, sum, mean, rstd, inp, add, weight, rows, C);
}

// With n = (inp - mean) * rstd and g = dout * weight:  dinp = add + rstd * (g - mean(g) - n * mean(g * n)),
// dweight (C) = sum over rows of dout * n. Fused with the sum of the residual's gradient and the branch's (add; dinp may be
// add): moves 4 C values a row (read dout, inp and add, write dinp). partial (blocks,C): a block's share of dweight.
__global__ void __launch_bounds__(ROW_THREADS) layernorm_backward_kernel(act *dinp, const act *add, float *partial, const act *dout, const act *inp,
                                                                         const float *weight, const float *mean, const float *rstd, int rows, int C) {
    __shared__ float others[128 * KEEP * W];
    float dw[KEEP][W] = {};
    for (int first = blockIdx.x * blockDim.y; first < rows; first += gridDim.x * blockDim.y) {
        int row = first + threadIdx.y;
        size_t at = (size_t)row * C;
        float n[KEEP][W], g[KEEP][W], w[W], m = row < rows ? mean[row] : 0, r = row < rows ? rstd[row] : 0, mean_g = 0, mean_gn = 0;
        #pragma unroll
        for (int j = 0; j < KEEP; j++) {
            int c = (j * blockDim.x + threadIdx.x) * W, left = row < rows ? C - c : 0;
            load(n[j], inp + at + c, left);
            load(g[j], dout + at + c, left);
            load(w, weight + c, C - c);
            for (int i = 0; i < W; i++) {
                n[j][i] = (n[j][i] - m) * r;
                dw[j][i] += g[j][i] * n[j][i];
                g[j][i] *= w[i];
                mean_g += g[j][i];
                mean_gn += g[j][i] * n[j][i];
            }
        }
        mean_g = row_sum(mean_g) / C;
        mean_gn = row_sum(mean_gn) / C;
        #pragma unroll
        for (int j = 0; j < KEEP; j++) {
            int c = (j * blockDim.x + threadIdx.x) * W, left = row < rows ? C - c : 0;
            load(w, add + at + c, add ? left : 0);
            for (int i = 0; i < W; i++) w[i] += r * (g[j][i] - mean_g - n[j][i] * mean_gn);
            store(dinp + at + c, w, left);
        }
    }
    for (int y = blockDim.y - 1; y >= 0; y--) {    // the block's rows add their shares, one after another
        #pragma unroll
        for (int j = 0; j < KEEP; j++)
            for (int i = 0, c = (j * blockDim.x + threadIdx.x) * W; i < W; i++) {
                if ((int)threadIdx.y != y || c + i >= C) continue;
                float sum = dw[j][i] + (y + 1 < (int)blockDim.y ? others[c + i] : 0);
                if (y) others[c + i] = sum;
                else partial[(size_t)blockIdx.x * C + c + i] = sum;
            }
        __syncthreads();
    }
}

static void layernorm_backward(act *dinp, const act *add, float *dweight, bool adds, const act *dout, const act *inp, const float *weight,
                               const float *mean, const float *rstd, float *partial, int rows, int C) {
    dim3 block = row_block(C);
    int grid = least(blocks(rows, block.y), ROW_BLOCKS);
    launch(layernorm_backward_kernel, grid, block, dinp, add, partial, dout, inp, weight, mean, rstd, rows, C);
    sum_rows(dweight, adds, partial, grid, C);
}

// A head's q or k is kept in the registers of a group of lanes, each with W pairs (i, i + HS/2): normalised, turned and
// written after it was read once. The group is a power of 2, so that a warp holds whole groups.
enum { MAX_HS = 2 * 32 * W, HEAD_BLOCKS = 3 * 132 };
static int head_lanes(int HS) {
    int lanes = 1;
    while (lanes * 2 * W < HS) lanes *= 2;
    return lanes;
}

// x = (x - mean) * rstd over a head of HS values, n pairs a lane; returns rstd.
__device__ inline float head_norm(float (&x)[2][W], int n, int HS, int lanes) {
    float m = 0, r = 0;
    for (int i = 0; i < W; i++) m += x[0][i] + x[1][i];
    m = lanes_sum(m, lanes) / HS;
    for (int i = 0; i < W; i++)
        if (i < n) x[0][i] -= m, x[1][i] -= m, r += x[0][i] * x[0][i] + x[1][i] * x[1][i];
    r = lanes_sum(r, lanes) / HS;
    r = 1 / sqrtf(r + 1e-6f) + 0 * r;
    for (int i = 0; i < W; i++) x[0][i] *= r, x[1][i] *= r;
    return r;
}

// g, the gradient of weight * head_norm(x), becomes that of x; dw += g head_norm(x). As in layernorm_backward.
__device__ inline void head_norm_backward(float (&g)[2][W], float (&dw)[2][W], float (&x)[2][W], const float *weight, int n, int HS, int lanes) {
    float w[W], r = head_norm(x, n, HS, lanes), mean_g = 0, mean_gn = 0;
    for (int part = 0; part < 2; part++) {
        load(w, weight + part * (HS / 2), n);
        for (int i = 0; i < W; i++) {
            dw[part][i] += g[part][i] * x[part][i];
            g[part][i] *= w[i];
            mean_g += g[part][i];
            mean_gn += g[part][i] * x[part][i];
        }
    }
    mean_g = lanes_sum(mean_g, lanes) / HS, mean_gn = lanes_sum(mean_gn, lanes) / HS;
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < W; i++) g[part][i] = r * (g[part][i] - mean_g - x[part][i] * mean_gn);
}

// partial (HS) = the block's sum of dw: the groups of a warp hold the same channels, and so do its four warps.
__device__ inline void head_shares(float *partial, const float (&dw)[2][W], int i0, int HS, int lanes) {
    __shared__ float shares[4][MAX_HS];
    for (int part = 0; part < 2; part++)
        for (int i = 0; i < W; i++) {
            float sum = dw[part][i];
            for (int distance = 16; distance >= lanes; distance /= 2) sum += __shfl_xor_sync(ALL, sum, distance);
            if ((int)threadIdx.x % 32 < lanes && i0 + i < HS / 2) shares[threadIdx.x / 32][part * (HS / 2) + i0 + i] = sum;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < HS; i += blockDim.x) partial[i] = shares[0][i] + shares[1][i] + shares[2][i] + shares[3][i];
}

// qk (B,T,2,NH,HS) = the q and k of qkv (B,T,3,NH,HS), normalised over HS where the weights (HS) are not NULL, then turned.
// One pass for qk-norm and RoPE, q and k: moves 4 C values a token.
__global__ void qk_norm_rope_forward_kernel(act *qk, const act *qkv, const float *q_weight, const float *k_weight, const float *cosine, const float *sine,
                                            int rows, int T, int NH, int HS, int lanes) {
    size_t head = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / lanes, row = head / (2 * NH);
    int h = (int)(head % (2 * NH)), C = NH * HS, half = HS / 2, i0 = threadIdx.x % lanes * W, n = row < (size_t)rows ? half - i0 : 0;
    const act *inp = qkv + row * 3 * C + (size_t)h * HS + i0;
    act *out = qk + row * 2 * C + (size_t)h * HS + i0;
    float x[2][W], w[W], turn[W];
    load(x[0], inp, n);
    load(x[1], inp + half, n);
    if (q_weight) {                                                                       // [qk_norm
        const float *weight = (h < NH ? q_weight : k_weight) + i0;
        head_norm(x, n, HS, lanes);
        for (int part = 0; part < 2; part++) {
            load(w, weight + part * half, n);
            for (int i = 0; i < W; i++) x[part][i] *= w[i];
        }
    }                                                                                     // qk_norm]
    load(w, cosine + row % T * half + i0, n);
    load(turn, sine + row % T * half + i0, n);
    for (int i = 0; i < W; i++) {
        float x0 = x[0][i], x1 = x[1][i];
        x[0][i] = x0 * w[i] - x1 * turn[i];
        x[1][i] = x0 * turn[i] + x1 * w[i];
    }
    store(out, x[0], n);
    store(out + half, x[1], n);
}

static void qk_norm_rope_forward(act *qk, const act *qkv, const float *q_weight, const float *k_weight, const float *cosine, const float *sine,
                                 int rows, int T, int NH, int HS) {
    int lanes = head_lanes(HS);
    launch(qk_norm_rope_forward_kernel, blocks((double)rows * 2 * NH * lanes, 128), 128, qk, qkv, q_weight, k_weight, cosine, sine, rows, T, NH, HS, lanes);
}

// dqkv's q and k (blockIdx.y) are turned back and become the gradients of qkv's, in place. Mean and rstd are computed again
// from qkv: the head is in registers anyway. Moves 6 C values a token (read dqkv and qkv, write dqkv), 4 C without qk-norm.
// partial (2,blocks,HS): each block's share of the weights' gradients.
__global__ void qk_norm_rope_backward_kernel(act *dqkv, float *partial, const act *qkv, const float *q_weight, const float *k_weight,
                                             const float *cosine, const float *sine, int rows, int T, int NH, int HS, int lanes) {
    int C = NH * HS, half = HS / 2, i0 = threadIdx.x % lanes * W, heads = rows * NH, each = blockDim.x / lanes;
    float dw[2][W] = {};
    for (int first = blockIdx.x * each; first < heads; first += gridDim.x * each) {
        int head = first + threadIdx.x / lanes, n = head < heads ? half - i0 : 0;
        size_t row = head / NH, at = row * 3 * C + (size_t)(blockIdx.y * NH + head % NH) * HS + i0;
        float g[2][W], w[W], turn[W];
        load(g[0], dqkv + at, n);
        load(g[1], dqkv + at + half, n);
        load(w, cosine + row % T * half + i0, n);
        load(turn, sine + row % T * half + i0, n);
        for (int i = 0; i < W; i++) {    // the inverse of a rotation is its transpose
            float g0 = g[0][i], g1 = g[1][i];
            g[0][i] = g0 * w[i] + g1 * turn[i];
            g[1][i] = g1 * w[i] - g0 * turn[i];
        }
        if (q_weight) {                                                                   // [qk_norm
            const float *weight = (blockIdx.y ? k_weight : q_weight) + i0;
            float x[2][W];
            load(x[0], qkv + at, n);
            load(x[1], qkv + at + half, n);
            head_norm_backward(g, dw, x, weight, n, HS, lanes);
        }                                                                                 // qk_norm]
        store(dqkv + at, g[0], n);
        store(dqkv + at + half, g[1], n);
    }
    if (q_weight) head_shares(partial + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * HS, dw, i0, HS, lanes);    // [qk_norm]
}

static void qk_norm_rope_backward(act *dqkv, float *dq_weight, float *dk_weight, bool adds, const act *qkv, const float *q_weight, const float *k_weight,
                                  const float *cosine, const float *sine, float *partial, int rows, int T, int NH, int HS) {
    int lanes = head_lanes(HS), grid = least(blocks((double)rows * NH * lanes, 128), HEAD_BLOCKS);
    launch(qk_norm_rope_backward_kernel, dim3(grid, 2), 128, dqkv, partial, qkv, q_weight, k_weight, cosine, sine, rows, T, NH, HS, lanes);
    if (!q_weight) return;
    sum_rows(dq_weight, adds, partial, grid, HS);                                         // [qk_norm]
    sum_rows(dk_weight, adds, partial + (size_t)grid * HS, grid, HS);                     // [qk_norm]
}

// Causal attention: out_i = sum over j <= i of p_ij v_j, where p_i is the softmax over j of the
// scores (attention logits) s_ij = scale * dot(q_i, k_j).
//
// Scores and p stay in registers (Dao 2023, FlashAttention-2): a warp keeps 16 queries of a head,
// or 16 keys for dk and dv, and meets the other side in tiles. The backward pass recomputes p from
// softmax (B,NH,T,2), which holds two numbers per query: the largest score, and 1 / the sum of
// exp(score - largest). One number, the log of the sum of exp(score), would not be enough: near 1e6
// a float rounds it by up to 0.03, which puts p off by 3%.
//
// A GPU computes 2^x, so scores are in units of ln 2 here, and exp(score) is 2^s. __fmul_rn rounds
// scale * dot alike in all three kernels. Fused with the subtraction of the largest score, it would
// not be rounded: above 1e9 even the largest score minus itself would be far from 0.
enum { ROWS = 64, ATTENTION_THREADS = 2 * ROWS };    // queries or keys of a block, 16 per warp
#define PER_LN_2 1.44269504f                         // 1 / ln 2

// Rows of a head in shared memory, at most 8 KB. CH is HS rounded up to 32, 64 or 128; channels
// beyond HS are zeros. The 16 bytes after each row spread a column over all banks.
template <int CH> struct Tile {
    enum { ROWS = CH * sizeof(act) < 128 ? 64 : 8192 / (CH * sizeof(act)) };
    enum { N = 16 / sizeof(act), LD = CH + N };      // elements in 16 bytes, and from row to row
    __align__(16) act x[ROWS * LD];
};

// Starts to copy `from` (rows,HS), `row` elements from one row to the next, to tile; zeros beyond
template <int CH>
__device__ inline void fetch(Tile<CH> &tile, const act *from, int row, int rows, int HS) {
    const int N = Tile<CH>::N, STEP = ATTENTION_THREADS * N / CH;
    int r = threadIdx.x * N / CH, c = threadIdx.x * N % CH;
    act *to = tile.x + r * Tile<CH>::LD + c;
    #pragma unroll
    for (int i = 0; i < Tile<CH>::ROWS; i += STEP) {
        int zeros = r + i < rows && c < HS ? 0 : 16;
        __pipeline_memcpy_async(to + i * Tile<CH>::LD, from + ((r + i) * row + c), 16, zeros);
    }
}

// Waits until the tiles that this block fetches are complete and no warp reads the others.
__device__ inline void wait_for_tiles() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
}

// The block at row i and channel c of tile, as a right factor of a product over rows or channels
template <int CH> __device__ inline Right over_rows(const Tile<CH> &tile, int i, int c) {
    return right_factor(tile.x + i * Tile<CH>::LD + c, Tile<CH>::LD);
}
template <int CH> __device__ inline Right over_channels(const Tile<CH> &tile, int i, int c) {
    return right_transposed(tile.x + i * Tile<CH>::LD + c, Tile<CH>::LD);
}

// x (rows,HS), `row` elements from one row to the next: its rows i to i + 15 = sums * their factor
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

// out (B,T,C) from q and k in qk (B,T,2,C) and v in qkv (B,T,3,C). max_logit (1), unless NULL, is
// raised to the largest |scale * dot(q_i, k_j)|. A block has ROWS queries, the longest rows first.
// Blocks of a head are neighbours: they find its keys and values in L2. Moves 4 C values a token.
template <int CH>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 ? 2 : 3)
attention_forward_kernel(act *out, float *softmax, float *max_logit, const act *qk,
                         const act *qkv, float scale, int T, int NH, int HS) {
    const int KEYS = Tile<CH>::ROWS;
    __shared__ Tile<CH> k_tile[2], v_tile[2];
    int C = NH * HS, head = blockIdx.z * NH + blockIdx.y;
    int last = (gridDim.x - blockIdx.x) * ROWS, i0 = last - ROWS + threadIdx.x / 32 * 16;
    size_t first = (size_t)blockIdx.z * T, channel = blockIdx.y * HS;
    const act *q = qk + first * 2 * C + channel, *k = q + C;
    const act *v = qkv + first * 3 * C + 2 * C + channel;
    fetch(k_tile[0], k, 2 * C, T, HS);
    fetch(v_tile[0], v, 3 * C, T, HS);
    Left qi[CH / 16];                                // this warp's queries i0 .. i0 + 15
    #pragma unroll
    for (int c = 0; c < CH / 16; c++) qi[c] = left_factor(q, 2 * C, i0, T, 16 * c, HS);
    float o[CH / 16][8] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, largest = 0;
    last = least(last, T);
    for (int j0 = 0, now = 0; j0 < last; j0 += KEYS, now ^= 1) {
        wait_for_tiles();
        if (j0 + KEYS < last) {
            fetch(k_tile[now ^ 1], k += KEYS * 2 * C, 2 * C, T - j0 - KEYS, HS);
            fetch(v_tile[now ^ 1], v += KEYS * 3 * C, 3 * C, T - j0 - KEYS, HS);
        }
        if (j0 > i0 + 15) continue;                  // no query of this warp sees these keys
        // 1. scores = q k^T
        float s[KEYS / 16][8] = {}, factor[2];
        #pragma unroll
        for (int n = 0; n < KEYS / 16; n++)
            #pragma unroll
            for (int c = 0; c < CH / 16; c++)
                multiply(s[n], qi[c], over_channels(k_tile[now], 16 * n, 16 * c));
        // 2. scale and mask, which only the diagonal needs; the largest score
        if (max_logit || j0 + KEYS - 1 > i0)
            for (int n = 0; n < KEYS / 16; n++)
                for (int e = 0; e < 8; e++) {
                    bool seen = j0 + 16 * n + block_column(e) <= i0 + block_row(e);
                    largest = fmaxf(largest, seen ? fabsf(s[n][e]) : 0);
                    s[n][e] = seen ? s[n][e] : -INFINITY;
                }
        for (int r = 0; r < 2; r++) factor[r] = top[r];
        for (int n = 0; n < KEYS / 16; n++)
            for (int e = 0; e < 8; e++) {
                s[n][e] = __fmul_rn(s[n][e], scale * PER_LN_2);
                top[e / 2 % 2] = fmaxf(top[e / 2 % 2], s[n][e]);
            }
        // 3. exponentials and their sum
        float from[2];                               // the largest score, or 0 if all are -infinity
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL, top[r], 2));
            from[r] = top[r] == -INFINITY ? 0 : top[r];
            factor[r] = power_of_2(factor[r] - from[r]);
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
    for (int r = 0; r < 2; r++) {
        int i = i0 + block_row(2 * r);
        sum[r] = 1 / lanes_sum(sum[r], 4);
        if (threadIdx.x % 4 == 0 && i < T) {
            softmax[2 * ((size_t)head * T + i)] = top[r];
            softmax[2 * ((size_t)head * T + i) + 1] = sum[r];
        }
    }
    store_rows<CH>(out + first * C + channel, C, i0, T, HS, o, sum);
    if (!max_logit) return;
    for (int distance = 16; distance > 0; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, distance));
    // a maximum is the same in any order, and floats from 0 up are ordered as their bits are
    if (threadIdx.x % 32 == 0) atomicMax((int *)max_logit, __float_as_int(scale * largest));
}

static void attention_forward(act *out, float *softmax, float *max_logit, const act *qk,
                              const act *qkv, float scale, int B, int T, int NH, int HS) {
    auto kernel = HS <= 32 ? attention_forward_kernel<32>
                : HS <= 64 ? attention_forward_kernel<64> : attention_forward_kernel<128>;
    launch(kernel, dim3(blocks(T, ROWS), NH, B), ATTENTION_THREADS, out, softmax, max_logit, qk,
           qkv, scale, T, NH, HS);
}

// dqkv (B,T,3,C), the gradients of q and k in qk and of v in qkv, from dout and out (B,T,C):
//   dp_ij = dot(dout_i, v_j);  ds_ij = scale * p_ij (dp_ij - dot(dout_i, out_i))
//   dq = ds k;  dk = ds^T q;  dv = p^T dout
// dq is a sum over keys, dk and dv are sums over queries. Two kernels keep these sums in registers,
// in a fixed order, and both compute p and ds. The scale of ds is applied to the sums.

// dq, and dot (B,NH,T): dot_i = dot(dout_i, out_i). Moves 6 C values a token.
template <int CH>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 ? 2 : 3)
attention_dq_kernel(act *dqkv, float *dot, const act *dout, const act *out, const float *softmax,
                    const act *qk, const act *qkv, float scale, int T, int NH, int HS) {
    const int KEYS = Tile<CH>::ROWS;
    __shared__ Tile<CH> k_tile[2], v_tile[2];
    int C = NH * HS, head = blockIdx.z * NH + blockIdx.y;
    int last = (gridDim.x - blockIdx.x) * ROWS, i0 = last - ROWS + threadIdx.x / 32 * 16;
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
    last = least(last, T);
    for (int j0 = 0, now = 0; j0 < last; j0 += KEYS, now ^= 1) {
        wait_for_tiles();
        if (j0 + KEYS < last) {
            fetch(k_tile[now ^ 1], k += KEYS * 2 * C, 2 * C, T - j0 - KEYS, HS);
            fetch(v_tile[now ^ 1], v += KEYS * 3 * C, 3 * C, T - j0 - KEYS, HS);
        }
        if (j0 > i0 + 15) continue;
        #pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            // 1. scores = q k^T, dp = dout v^T
            float s[8] = {}, dp[8] = {}, ds[8];
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
                s[e] = __fmul_rn(s[e], scale * PER_LN_2);
                float p = power_of_2(s[e] - top[r]) * inverse[r];
                ds[e] = p * (dp[e] - dot_i[r]);
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

// dk and dv. Rows of scores and p are keys here, columns are queries. Moves 6 C values a token.
template <int CH>
__global__ void __launch_bounds__(ATTENTION_THREADS, CH == 128 ? 2 : 3)
attention_dkv_kernel(act *dqkv, const float *dot, const act *dout, const float *softmax,
                     const act *qk, const act *qkv, float scale, int T, int NH, int HS) {
    const int QUERIES = Tile<CH>::ROWS;
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
        #pragma unroll (CH == 128 ? 1 : 2)           // 128 channels leave no registers for more
        for (int n = 0; n < QUERIES / 16; n++) {
            // 1. scores = q k^T, dp = dout v^T
            float s[8] = {}, dp[8] = {}, p[8], ds[8];
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
                s[e] = __fmul_rn(s[e], scale * PER_LN_2);
                p[e] = power_of_2(s[e] - top) * inverse;
                ds[e] = p[e] * (dp[e] - dot_tile[now][i]);
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
                               const act *qk, const act *qkv, float scale, float *scratch,
                               int B, int T, int NH, int HS) {
    dim3 grid(blocks(T, ROWS), NH, B);
    auto dq = HS <= 32 ? attention_dq_kernel<32>
            : HS <= 64 ? attention_dq_kernel<64> : attention_dq_kernel<128>;
    auto dkv = HS <= 32 ? attention_dkv_kernel<32>
             : HS <= 64 ? attention_dkv_kernel<64> : attention_dkv_kernel<128>;
    launch(dq, grid, ATTENTION_THREADS, dqkv, scratch, dout, out, softmax, qk, qkv, scale, T, NH,
           HS);
    launch(dkv, grid, ATTENTION_THREADS, dqkv, scratch, dout, softmax, qk, qkv, scale, T, NH, HS);
}

// GELU in its tanh form (Hendrycks and Gimpel 2016): gelu(x) = x s, s = 1/(1 + exp(-2u)), 2u = x (A + B x^2), computed from
// e = exp(-|2u|), which is at most 1, as in train_gpt.c. The backward pass computes e again: here memory is dearer than an
// exponential, so the slope is not kept. Moves 2 values an element forward (read inp, write out), 3 backward.
#define GELU_A 1.5957691216057308f     // 2 sqrt(2/pi)
#define GELU_B (GELU_A * 0.044715f)
__device__ inline float clamp_30(float x) { return x > 30 ? 30 : x < -30 ? -30 : x; }

__global__ void gelu_forward_kernel(act *out, const act *inp, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    int left = n - at < W ? (int)(n - at) : W;
    float y[W];
    load(y, inp + at, left);
    for (int i = 0; i < W; i++) {
        float x = clamp_30(y[i]), e = expf(-fabsf(x) * (GELU_A + GELU_B * x * x));
        y[i] *= (x > 0 ? 1 : e) / (1 + e);
    }
    store(out + at, y, left);
}

// dinp = dout * gelu'(inp), gelu' = s + x s (1 - s) (2u)'. dinp may be dout.
__global__ void gelu_backward_kernel(act *dinp, const act *dout, const act *inp, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    if (at >= n) return;
    int left = n - at < W ? (int)(n - at) : W;
    float y[W], d[W];
    load(y, inp + at, left);
    load(d, dout + at, left);
    for (int i = 0; i < W; i++) {
        float x = clamp_30(y[i]), e = expf(-fabsf(x) * (GELU_A + GELU_B * x * x)), inverse = 1 / (1 + e);
        d[i] *= (x > 0 ? 1 : e) * inverse + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * x * x);
    }
    store(dinp + at, d, left);
}

static void gelu_forward(act *out, const act *inp, size_t n) {
    launch(gelu_forward_kernel, blocks((double)n, 128 * W), 128, out, inp, n);
}
static void gelu_backward(act *dinp, const act *dout, const act *inp, size_t n) {
    launch(gelu_backward_kernel, blocks((double)n, 128 * W), 128, dinp, dout, inp, n);
}

// fc (rows,OC) = inp (rows,IC) weight^T and out = gelu(fc), in one pass where there is one
static void matmul_gelu_forward(act *out, act *fc, const act *inp, const act *weight, int rows, int IC, int OC) {
    if (matmul_gelu(out, fc, false, matrix(inp, IC), transposed(weight, IC), rows, OC, IC)) return;
    matmul_forward(fc, OC, inp, weight, rows, IC, OC);
    gelu_forward(out, fc, (size_t)rows * OC);
}

// The gradients of the product after GELU, out (rows,OC) = gelu(fc) weight^T:  dfc (rows,IC) = gelu'(fc) * (dout weight);
// dweight (OC,IC) = dout^T gelu(fc)
static void matmul_gelu_backward(act *dfc, float *dweight, bool adds, const act *dout, act *fc, const act *gelu, const act *weight, int rows, int IC, int OC) {
    if (!matmul_gelu(dfc, fc, true, matrix(dout, OC), matrix(weight, IC), rows, IC, OC)) {
        matmul(dfc, IC, false, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);
        gelu_backward(dfc, dfc, fc, (size_t)rows * IC);
    }
    matmul(dweight, IC, adds, transposed(dout, OC), matrix(gelu, IC), OC, IC, rows);
}

// Softmax, loss and their gradient over a row of logits (rows,V), which becomes dlogits where gradient is not 0; `row`
// elements lead from one row to the next. With log Z = log of the sum of exp(logits), a row's loss is log Z - logit[target],
// and dlogits = (p - [target] + 2 z_loss log Z p) / batch_rows. losses, log_z (rows). logit_scale: muParam's.
// One kernel, a block a row: the largest logit and the sum are found in one reading, and the second finds the row, 64 KB at
// V = 32128, in the cache. Moves 2 V act a token (read logits, write dlogits).
__global__ void cross_entropy_kernel(act *logits, float *losses, float *log_z, const int *targets, float z_loss, float logit_scale, int gradient,
                                     int batch_rows, int V, int row) {
    act *x = logits + (size_t)blockIdx.x * row;
    int target = targets[blockIdx.x];
    float of_target = __fmul_rn(value(x[target]), logit_scale), top = -FLT_MAX, sum = 0, y[W];
    for (int j = threadIdx.x * W; j < V; j += blockDim.x * W) {
        float old = top, total = 0;
        load(y, x + j, V - j);
        for (int i = 0; i < W; i++) {
            if (j + i >= V) y[i] = -INFINITY;
            else y[i] = __fmul_rn(y[i], logit_scale);                                                     // [mu_param]
            top = fmaxf(top, y[i]);
        }
        for (int i = 0; i < W; i++) total += expf(y[i] - top);
        sum = sum * expf(old - top) + total;
    }
    float own = top;
    top = row_max(top);
    sum = row_sum(sum * expf(own - top));
    float z = top + logf(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = top - of_target + logf(sum), log_z[blockIdx.x] = z;
    if (!gradient) return;
    float weight = 1;
    weight += 2 * z_loss * z;                                                             // [z_loss]
    weight *= logit_scale;                                                                // [mu_param]
    float factor = weight / sum / batch_rows;
    for (int j = threadIdx.x * W; j < V; j += blockDim.x * W) {
        load(y, x + j, V - j);
        for (int i = 0; i < W; i++) {
            y[i] = expf(__fmul_rn(y[i], logit_scale) - top) * factor;
            if (j + i == target) y[i] -= logit_scale / batch_rows;
        }
        store(x + j, y, V - j);
    }
}

static void cross_entropy(act *logits, float *losses, float *log_z, const int *targets, float z_loss, float logit_scale, int gradient,
                          int rows, int batch_rows, int V, int row) {
    launch(cross_entropy_kernel, rows, V > 4096 ? 512 : 128, logits, losses, log_z, targets, z_loss, logit_scale, gradient, batch_rows, V, row);
}

enum { SUM_BLOCKS = 1024 };    // the most blocks that share a sum of squares

// sums (blocks) = each block's share of the sum of squares of x (rows,cols), `row` elements from one row to the next. In
// double, so that it overflows no sooner than the values do.
__global__ void sum_squares_kernel(double *sums, const act *x, size_t rows, int cols, int row) {
    double sum = 0;
    float y[W];
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x)
        for (int c = threadIdx.x * W; c < cols; c += blockDim.x * W) {
            load(y, x + r * row + c, cols - c);
            for (int i = 0; i < W; i++) sum += (double)y[i] * y[i];
        }
    sum = row_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void add_sums_kernel(double *out, bool adds, const double *sums, int n) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = row_sum(sum);
    if (threadIdx.x == 0) *out = (adds ? *out : 0) + sum;
}

static void sum_squares(double *out, bool adds, double *sums, const act *x, size_t rows, int cols, int row) {
    int grid = rows < SUM_BLOCKS ? (int)rows : SUM_BLOCKS;
    launch(sum_squares_kernel, grid, 128, sums, x, rows, cols, row);
    launch(add_sums_kernel, 1, 128, out, adds, sums, grid);
}

// ---------------------------------------------------------------------------
// The model

// What the host reads of a step, and where the GPU notes a loss that was not finite: it stops changing the weights then,
// so that the host need not look at every step.
typedef struct {
    double loss, log_z, grad_norm;
    double grad_squares[NUM_KINDS], update_squares[NUM_KINDS], param_squares[NUM_KINDS], act_squares[NUM_ACTIVATIONS];
    float max_attn_logit[MAX_LAYERS], grad_scale;
    int diverged_step;
} Results;

typedef struct {    // what changes from step to step
    float lr[NUM_KINDS], decay, eps, clip, beta1, new1, beta2, new2, correction1, correction2;
    int step;
} Constants;

typedef struct { int *batch; Constants *constants; cudaEvent_t read; } Slot;    // in memory from which the GPU copies by itself; read: it has

typedef struct {
    Config cfg;
    int V, row, micro_batch, batch_rows;             // row: V rounded up to W, from one row of logits to the next; of the batch at hand
    Parameter table[NUM_KINDS];
    size_t num_parameters;
    float *params, *grads, *m, *v;                   // m, v: AdamW's moments
    act *weights;                                    // what products read: a bf16 copy of params, or params
    float *cosine, *sine;                            // (T,HS/2)
    // activations, (L, ...) where a layer has its own; mean and rstd are each norm's. B is the micro-batch here.
    act *residual;                                   // (2L+1,B,T,C): before attention and before the MLP of each layer, and at the end
    act *ln_1;  float *ln_1_mean, *ln_1_rstd;        // (L,B,T,C), (L,B,T)
    act *qkv, *qk;                                   // (L,B,T,3,C); (L,B,T,2,C): q and k as attention sees them
    act *att;  float *softmax;                       // (L,B,T,C), (L,B,NH,T,2)
    act *ln_2;  float *ln_2_mean, *ln_2_rstd;
    act *fc, *gelu;                                  // (L,B,T,4C)
    act *ln_f;  float *ln_f_mean, *ln_f_rstd;
    act *logits;                                     // (B,T,row), then their gradient
    float *losses, *log_z;                           // (batch,T)
    // what lives for one layer
    act *dresidual, *dnorm, *dqkv, *dfc;             // (B,T,C), (B,T,C): forward, what a branch adds; (B,T,3,C), (B,T,4C)
    // scratch
    float *scratch, *partial;                        // (B,NH,T), (ROW_BLOCKS,C) or (2,HEAD_BLOCKS,HS)
    double *sums;                                    // (3,NUM_KINDS,SUM_BLOCKS)
    // a batch on the GPU: tokens and targets (batch,T), the positions sorted by token, and where each token's begin (V+1)
    int *inputs, *targets, *order, *start;
    Constants *constants;
    Results *results;                                // of the last step, and of the last evaluation
    Slot slots[2];
    int slot, runs[2];                               // runs: of gpt_step, without and with statistics
    cudaGraphExec_t graphs[2];
    void *buffers[48];                               // all of the above that are the GPU's, to free them
    double bytes;
} GPT;

// The one list of buffers. Sets bytes, their sum, and where `create` is set allocates them on the GPU: all of them, once.
static void gpt_layout(GPT *g, const Config *cfg, int V, int B, int T, int create) {
    memset(g, 0, sizeof *g);
    g->cfg = *cfg;
    g->cfg.vocab = g->V = V;
    g->row = blocks(V, W) * W;
    g->micro_batch = least(cfg->micro_batch && cfg->micro_batch < B ? cfg->micro_batch : B, 65535);    // a grid's limit
    g->num_parameters = parameter_table(cfg, V, g->table);
    double L = cfg->layers, NH = cfg->heads, C = cfg->d, BT = (double)g->micro_batch * T, N = (double)g->num_parameters, bytes = sizeof(act);
    const struct { void *buffer; double bytes; } list[] = {
        {&g->params, 4 * N}, {&g->grads, 4 * N}, {&g->m, 4 * N}, {&g->v, 4 * N}, {&g->weights, sizeof(act) == 2 ? 2 * N : 0},
        {&g->cosine, 4 * T * C / NH / 2}, {&g->sine, 4 * T * C / NH / 2},
        {&g->residual, bytes * (2 * L + 1) * BT * C},
        {&g->ln_1, bytes * L * BT * C}, {&g->ln_1_mean, 4 * L * BT}, {&g->ln_1_rstd, 4 * L * BT},
        {&g->qkv, bytes * L * 3 * BT * C}, {&g->qk, bytes * L * 2 * BT * C}, {&g->att, bytes * L * BT * C}, {&g->softmax, 8 * L * BT * NH},
        {&g->ln_2, bytes * L * BT * C}, {&g->ln_2_mean, 4 * L * BT}, {&g->ln_2_rstd, 4 * L * BT},
        {&g->fc, bytes * L * BT * 4 * C}, {&g->gelu, bytes * L * BT * 4 * C},
        {&g->ln_f, bytes * BT * C}, {&g->ln_f_mean, 4 * BT}, {&g->ln_f_rstd, 4 * BT},
        {&g->logits, bytes * BT * g->row}, {&g->losses, 4.0 * B * T}, {&g->log_z, 4.0 * B * T},
        {&g->dresidual, bytes * BT * C}, {&g->dnorm, bytes * BT * C}, {&g->dqkv, bytes * 3 * BT * C}, {&g->dfc, bytes * BT * 4 * C},
        {&g->scratch, 4 * BT * NH}, {&g->partial, 4 * fmax(ROW_BLOCKS * C, 2 * HEAD_BLOCKS * C / NH)},
        {&g->sums, 8 * 3 * NUM_KINDS * SUM_BLOCKS}, {&workspace, WORKSPACE},
        {&g->inputs, 4 * (3.0 * B * T + V + 1)}, {&g->constants, sizeof(Constants)}, {&g->results, 2 * sizeof(Results)},
    };
    static_assert(sizeof list / sizeof list[0] <= sizeof g->buffers / sizeof g->buffers[0], "GPT needs a longer list of buffers");
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        g->bytes += list[i].bytes;
        if (!create || !list[i].bytes) continue;
        check(cudaMalloc(&g->buffers[i], (size_t)list[i].bytes));
        memcpy(list[i].buffer, &g->buffers[i], sizeof(void *));
    }
    if (sizeof(act) == 4) g->weights = (act *)g->params;
    g->targets = g->inputs + (size_t)B * T, g->order = g->targets + (size_t)B * T, g->start = g->order + (size_t)B * T;
}

static void to_gpu(void *to, const void *from, double bytes) {
    check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyHostToDevice, stream));
    check(cudaStreamSynchronize(stream));
}
static void from_gpu(void *to, const void *from, double bytes) {    // waits until all that was queued is done
    check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
}

typedef struct { char name[256]; int number; double free, total; } Gpu;    // number: 90 for compute capability 9.0; bytes of memory

// What there is, or one line that says what is missing.
static void gpu_query(Gpu *gpu) {
    int count = 0, driver = 0, runtime = 0;
    size_t free = 0, total = 0;
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver > 0)
        die(FAILED, "the NVIDIA driver is for CUDA %d.%d at most, and this program was built with %d.%d: install a newer driver, or train on the CPU with ./train_gpt",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error != cudaSuccess || count == 0)
        die(FAILED, "no NVIDIA GPU can be used here: %s; ./train_gpt trains on the CPU",
            driver == 0 ? "its driver is not installed" : error != cudaSuccess ? cudaGetErrorString(error) : "there is none");
    check(cudaSetDevice(0));
    check(cudaGetDeviceProperties(&properties, 0));
    check(cudaMemGetInfo(&free, &total));
    snprintf(gpu->name, sizeof gpu->name, "%s", properties.name);
    gpu->number = 10 * properties.major + properties.minor;
    gpu->free = (double)free, gpu->total = (double)total;
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, add_sums_kernel) != cudaSuccess)
        die(FAILED, "this program was not built for the %s: make train_gpt_cu ARCH=sm_%d", gpu->name, gpu->number);
}


static void gpu_check_memory(const Gpu *gpu, double bytes, const Config *cfg) {
    if (bytes > gpu->free)
        die(FAILED, "the run needs %.3g GB of GPU memory, and %.3g of the %s's %.3g GB are free; try a smaller -micro_batch than %d, a smaller model, or ./train_gpt on the CPU",
            1e-9 * bytes, 1e-9 * gpu->free, gpu->name, 1e-9 * gpu->total, cfg->micro_batch && cfg->micro_batch < cfg->batch ? cfg->micro_batch : cfg->batch);
}

// After params changed elsewhere than in AdamW: their copy for the products.
__global__ void weights_kernel(bf16 *weights, const float *params, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) weights[i] = __float2bfloat16(params[i]);
}
static void gpt_weights(GPT *g) {
    if (BF16) launch(weights_kernel, least(blocks((double)g->num_parameters, 128), 1024), 128, (bf16 *)g->weights, g->params, g->num_parameters);
}

static const char *gpt_init(GPT *g, const Config *flags, int V, int B, int T) {    // returns the GPU's name
    static Gpu gpu;
    Config cfg = *flags;
    gpu_query(&gpu);
    if (cfg.d > MAX_C || cfg.d / cfg.heads > MAX_HS)
        die(FAILED, "-d %d -heads %d: train_gpt_cu has widths up to %d and head sizes up to %d; ./train_gpt has all", cfg.d, cfg.heads, MAX_C, MAX_HS);
    gpt_layout(g, &cfg, V, B, T, 0);
    gpu_check_memory(&gpu, g->bytes, &cfg);
    check_memory(12 * (double)g->num_parameters);    // of the host: a checkpoint passes through it
    gpt_layout(g, &cfg, V, B, T, 1);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cublasCreate(&cublas));
    check(cublasSetStream(cublas, stream));
    check(cublasSetWorkspace(cublas, workspace, WORKSPACE));
    gelu_in_products = BF16 && gpu.number >= 90 && gpu.number < 110;
    check(cublasSetMathMode(cublas, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));    // sums of bf16 products in float throughout
    for (int i = 0; i < 2; i++) {
        check(cudaMallocHost((void **)&g->slots[i].batch, (3 * (size_t)B * T + V + 1) * sizeof(int)));
        check(cudaMallocHost((void **)&g->slots[i].constants, sizeof(Constants)));
        check(cudaEventCreateWithFlags(&g->slots[i].read, cudaEventDisableTiming));
    }
    int HS = cfg.d / cfg.heads;
    size_t table = (size_t)T * (HS / 2);
    float *host = (float *)allocate(g->num_parameters + 2 * table, sizeof(float)), *cosine = host + g->num_parameters;
    parameters_init(host, g->table, cfg.seed);
    rope_table(cosine, cosine + table, T, HS);
    to_gpu(g->params, host, 4.0 * g->num_parameters);
    to_gpu(g->cosine, cosine, 4.0 * table);
    to_gpu(g->sine, cosine + table, 4.0 * table);
    free(host);
    check(cudaMemsetAsync(g->m, 0, 4 * g->num_parameters, stream));
    check(cudaMemsetAsync(g->v, 0, 4 * g->num_parameters, stream));
    check(cudaMemsetAsync(g->results, 0, 2 * sizeof(Results), stream));
    gpt_weights(g);
    return gpu.name;
}

static void gpt_free(GPT *g) {
    check(cudaStreamSynchronize(stream));
    for (int i = 0; i < 2; i++) {
        if (g->graphs[i]) check(cudaGraphExecDestroy(g->graphs[i]));
        check(cudaFreeHost(g->slots[i].batch));
        check(cudaFreeHost(g->slots[i].constants));
        check(cudaEventDestroy(g->slots[i].read));
    }
    check(cublasDestroy(cublas));
    check(cudaStreamDestroy(stream));
    for (void *buffer : g->buffers) check(cudaFree(buffer));
}

static void gpt_load(GPT *g, State *state) {    // the checkpoint in -out
    size_t n = g->num_parameters;
    float *host = (float *)allocate(3 * n, sizeof(float));
    *state = checkpoint_load(&g->cfg, g->table, host, host + n, host + 2 * n);
    to_gpu(g->params, host, 4.0 * n);
    to_gpu(g->m, host + n, 4.0 * n);
    to_gpu(g->v, host + 2 * n, 4.0 * n);
    gpt_weights(g);
    free(host);
}

static void gpt_save(const GPT *g, const State *state) {
    size_t n = g->num_parameters;
    float *host = (float *)allocate(3 * n, sizeof(float));
    from_gpu(host, g->params, 4.0 * n);
    from_gpu(host + n, g->m, 4.0 * n);
    from_gpu(host + 2 * n, g->v, 4.0 * n);
    checkpoint_save(&g->cfg, g->table, host, host + n, host + 2 * n, state);
    free(host);
}

// Brings a batch, inputs and targets (B,T), to g->inputs and g->targets on the GPU, with its positions sorted by token for
// embedding_backward. The copy waits in one of two slots, so that the host is up to two batches ahead of the GPU.
static void gpt_batch(GPT *g, const int *inputs, const int *targets, int B, int T) {
    check(cudaEventRecord(g->slots[g->slot].read, stream));
    g->slot = !g->slot;
    check(cudaEventSynchronize(g->slots[g->slot].read));
    int *to = g->slots[g->slot].batch, *order = to + (g->order - g->inputs), *start = to + (g->start - g->inputs), rows = B * T;
    g->batch_rows = rows;
    memcpy(to, inputs, rows * sizeof(int));
    memcpy(to + (g->targets - g->inputs), targets, rows * sizeof(int));
    memset(start, 0, (g->V + 1) * sizeof(int));
    for (int i = 0; i < rows; i++) start[inputs[i] + 1]++;    // how often each token stands
    for (int v = 0; v < g->V; v++) start[v + 1] += start[v];
    for (int i = 0; i < rows; i++) order[start[inputs[i]]++] = i;
    for (int v = g->V; v > 0; v--) start[v] = start[v - 1];
    start[0] = 0;
    check(cudaMemcpyAsync(g->inputs, to, (g->start + g->V + 1 - g->inputs) * sizeof(int), cudaMemcpyHostToDevice, stream));
}

// Layer l's tensors, by kind, in params, in their gradients or in the weights. (What has no layers is layer 0's.)
template <class number> static void tensors(const GPT *g, number *params, int l, number *out[NUM_KINDS]) {
    for (int k = 0; k < NUM_KINDS; k++)
        out[k] = params + g->table[k].offset + (size_t)l * parameter_size(&g->table[k]);
}

// Layer l's activations
typedef struct {
    act *x, *ln_1, *qkv, *qk, *att, *x_mid, *ln_2, *fc, *gelu;
    float *ln_1_mean, *ln_1_rstd, *softmax, *max_logit, *ln_2_mean, *ln_2_rstd;
} Layer;

static Layer layer(const GPT *g, int l, int B, int T) {
    size_t BT = (size_t)B * T, BTC = BT * g->cfg.d, heads = BT * g->cfg.heads;
    Layer a;
    a.x = g->residual + 2 * l * BTC, a.x_mid = a.x + BTC;
    a.ln_1 = g->ln_1 + l * BTC, a.ln_1_mean = g->ln_1_mean + l * BT, a.ln_1_rstd = g->ln_1_rstd + l * BT;
    a.qkv = g->qkv + 3 * l * BTC, a.qk = g->qk + 2 * l * BTC;
    a.att = g->att + l * BTC, a.softmax = g->softmax + 2 * l * heads;
    a.max_logit = g->results->max_attn_logit + l;
    a.ln_2 = g->ln_2 + l * BTC, a.ln_2_mean = g->ln_2_mean + l * BT, a.ln_2_rstd = g->ln_2_rstd + l * BT;
    a.fc = g->fc + 4 * l * BTC, a.gelu = g->gelu + 4 * l * BTC;
    return a;
}

// logits (B,T,V) from tokens (B,T), which are at or in g->inputs: a micro-batch. statistics: also the largest attention
// logit of each layer and the sums of squares of activations; the batch's first micro-batch starts them, others add.
static void gpt_forward(GPT *g, const int *tokens, int B, int T, int statistics) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, rows = B * T, adds = tokens != g->inputs;
    size_t BTC = (size_t)rows * C;
    act *w[NUM_KINDS], *branch = NULL;
    float *p[NUM_KINDS], scale = (float)attention_scale(&g->cfg);
    tensors(g, g->weights, 0, w);
    if (statistics && !adds) check(cudaMemsetAsync(g->results->max_attn_logit, 0, L * sizeof(float), stream));
    embedding_forward(g->residual, tokens, w[WTE], rows, C);
    for (int l = 0; l < L; l++) {
        Layer a = layer(g, l, B, T);
        tensors(g, g->weights, l, w);
        tensors(g, g->params, l, p);
        const float *q_weight = NULL, *k_weight = NULL;
        if (g->cfg.qk_norm) q_weight = p[Q_NORM], k_weight = p[K_NORM];         // [qk_norm]
        layernorm_forward(a.ln_1, a.x, a.ln_1_mean, a.ln_1_rstd, l ? a.x - BTC : a.x, branch, p[LN_1], rows, C);
        matmul_forward(a.qkv, 3 * C, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        qk_norm_rope_forward(a.qk, a.qkv, q_weight, k_weight, g->cosine, g->sine, rows, T, NH, HS);
        attention_forward(a.att, a.softmax, statistics ? a.max_logit : NULL, a.qk, a.qkv, scale, B, T, NH, HS);
        branch = g->dnorm;
        matmul_forward(branch, C, a.att, w[ATTN_C_PROJ], rows, C, C);
        layernorm_forward(a.ln_2, a.x_mid, a.ln_2_mean, a.ln_2_rstd, a.x, branch, p[LN_2], rows, C);
        matmul_gelu_forward(a.gelu, a.fc, a.ln_2, w[C_FC], rows, C, 4 * C);
        matmul_forward(branch, C, a.gelu, w[MLP_C_PROJ], rows, 4 * C, C);
    }
    tensors(g, g->weights, 0, w);
    tensors(g, g->params, 0, p);
    act *x = g->residual + 2 * L * BTC;
    layernorm_forward(g->ln_f, x, g->ln_f_mean, g->ln_f_rstd, x - BTC, branch, p[LN_F], rows, C);
    matmul_forward(g->logits, g->row, g->ln_f, w[LM_HEAD], rows, C, g->V);
    if (!statistics) return;
    const struct { int act; const ::act *x; size_t rows; int cols, row; } list[] = {
        {ACT_WTE, g->residual, (size_t)rows, C, C}, {ACT_C_ATTN, g->qkv, (size_t)L * rows, 3 * C, 3 * C},
        {ACT_ATT, g->att, (size_t)L * rows, C, C}, {ACT_C_FC, g->fc, (size_t)L * rows, 4 * C, 4 * C},
        {ACT_RESIDUAL, x, (size_t)rows, C, C}, {ACT_LOGITS, g->logits, (size_t)rows, g->V, g->row}};
    for (auto &i : list) sum_squares(&g->results->act_squares[i.act], adds, g->sums, i.x, i.rows, i.cols, i.row);
}

// Cross-entropy in nats of the logits of the last gpt_forward against targets (B,T), which are at or in g->targets; the mean
// over the batch is gpt_mean_loss's. gradient: the logits become the gradient of the loss, which is the mean cross-entropy +
// z_loss * mean(log Z ^ 2).
static void gpt_loss(GPT *g, const int *targets, int B, int T, int gradient) {
    float z_loss = (float)g->cfg.z_loss, scale = (float)mu_logit_scale(&g->cfg), *losses = g->losses + (targets - g->targets), *log_z = g->log_z + (targets - g->targets);
    cross_entropy(g->logits, losses, log_z, targets, z_loss, scale, gradient, B * T, g->batch_rows, g->V, g->row);
}

// The means of the batch. Where it is a training step, constants is not NULL: the first loss that is not finite stays.
__global__ void mean_loss_kernel(Results *results, const float *losses, const float *log_z, int rows, const Constants *constants) {
    double loss = 0, z = 0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) loss += losses[i], z += log_z[i];
    loss = row_sum(loss) / rows;
    z = row_sum(z) / rows;
    if (threadIdx.x || (constants && results->diverged_step)) return;
    results->loss = loss, results->log_z = z;
    if (constants && !isfinite(loss)) results->diverged_step = constants->step;
}

static void mean_loss(GPT *g, int which, const Constants *constants) {
    launch(mean_loss_kernel, 1, 256, g->results + which, g->losses, g->log_z, g->batch_rows, constants);
}

static double gpt_mean_loss(GPT *g, double *log_z) {    // waits for the GPU
    Results results;
    mean_loss(g, 1, NULL);
    from_gpu(&results, g->results + 1, sizeof results);
    *log_z = results.log_z;
    return results.loss;
}

// All gradients, after gpt_forward and gpt_loss of the same micro-batch; the batch's first starts them, others add.
static void gpt_backward(GPT *g, const int *tokens, int B, int T) {
    int L = g->cfg.layers, NH = g->cfg.heads, C = g->cfg.d, HS = C / NH, rows = B * T;
    int first = (int)(tokens - g->inputs);
    bool adds = first > 0;
    size_t BTC = (size_t)rows * C;
    act *w[NUM_KINDS], *dx = g->dresidual, *dn = g->dnorm, *dqkv = g->dqkv, *dfc = g->dfc, *x = g->residual + 2 * L * BTC;
    float *p[NUM_KINDS], *d[NUM_KINDS], scale = (float)attention_scale(&g->cfg), *partial = g->partial;
    tensors(g, g->weights, 0, w);
    tensors(g, g->params, 0, p);
    tensors(g, g->grads, 0, d);
    matmul_backward(dn, d[LM_HEAD], adds, g->logits, g->row, g->ln_f, w[LM_HEAD], rows, C, g->V);
    layernorm_backward(dx, NULL, d[LN_F], adds, dn, x, p[LN_F], g->ln_f_mean, g->ln_f_rstd, partial, rows, C);
    for (int l = L - 1; l >= 0; l--) {
        Layer a = layer(g, l, B, T);
        tensors(g, g->weights, l, w);
        tensors(g, g->params, l, p);
        tensors(g, g->grads, l, d);
        const float *q_weight = NULL, *k_weight = NULL;
        if (g->cfg.qk_norm) q_weight = p[Q_NORM], k_weight = p[K_NORM];         // [qk_norm]
        matmul_gelu_backward(dfc, d[MLP_C_PROJ], adds, dx, a.fc, a.gelu, w[MLP_C_PROJ], rows, 4 * C, C);
        matmul_backward(dn, d[C_FC], adds, dfc, 4 * C, a.ln_2, w[C_FC], rows, C, 4 * C);
        layernorm_backward(dx, dx, d[LN_2], adds, dn, a.x_mid, p[LN_2], a.ln_2_mean, a.ln_2_rstd, partial, rows, C);
        matmul_backward(dn, d[ATTN_C_PROJ], adds, dx, C, a.att, w[ATTN_C_PROJ], rows, C, C);
        attention_backward(dqkv, dn, a.att, a.softmax, a.qk, a.qkv, scale, g->scratch, B, T, NH, HS);
        qk_norm_rope_backward(dqkv, d[Q_NORM], d[K_NORM], adds, a.qkv, q_weight, k_weight,
                              g->cosine, g->sine, partial, rows, T, NH, HS);
        matmul_backward(dn, d[C_ATTN], adds, dqkv, 3 * C, a.ln_1, w[C_ATTN], rows, C, 3 * C);
        layernorm_backward(dx, dx, d[LN_1], adds, dn, a.x, p[LN_1], a.ln_1_mean, a.ln_1_rstd, partial, rows, C);
    }
    embedding_backward(d[WTE], adds, dx, g->order, g->start, first, rows, C, g->V);
}

// Loss and gradients of the batch that gpt_batch brought, a micro-batch at a time. They equal the whole batch's.
static void gpt_gradient(GPT *g, int B, int T, int statistics) {
    for (int b = 0; b < B; b += g->micro_batch) {
        int n = least(g->micro_batch, B - b), at = b * T;
        gpt_forward(g, g->inputs + at, n, T, statistics);
        gpt_loss(g, g->targets + at, n, T, 1);
        gpt_backward(g, g->inputs + at, n, T);
    }
}

// ---------------------------------------------------------------------------
// AdamW (Loshchilov and Hutter 2019)

typedef struct { size_t offset[NUM_KINDS], size[NUM_KINDS]; } Kinds;    // blockIdx.y is a kind

// sums (NUM_KINDS,blocks) = each block's share of the sum of squares of a kind's gradient. Moves 4 bytes a parameter.
__global__ void grad_squares_kernel(double *sums, const float *grads, Kinds kinds) {
    size_t size = kinds.size[blockIdx.y];
    const float *grad = grads + kinds.offset[blockIdx.y];
    double sum = 0;
    float x[W];
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W; i < size; i += (size_t)gridDim.x * blockDim.x * W) {
        load(x, grad + i, size - i < W ? (int)(size - i) : W);
        for (int j = 0; j < W; j++) sum += (double)x[j] * x[j];
    }
    sum = row_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// The norm of the whole gradient, before clipping, and the factor that clips it: on the GPU, so that nobody waits for it.
__global__ void grad_norm_kernel(Results *results, const double *sums, int blocks, const Constants *k) {
    __shared__ double squares[NUM_KINDS];
    int kind = threadIdx.x / 32;
    double sum = 0, total = 0;
    for (int i = threadIdx.x % 32; i < blocks; i += 32) sum += sums[kind * blocks + i];
    sum = lanes_sum(sum, 32);
    if (threadIdx.x % 32 == 0) squares[kind] = sum;
    __syncthreads();
    if (threadIdx.x || (results->diverged_step && results->diverged_step < k->step)) return;
    for (int i = 0; i < NUM_KINDS; i++) total += results->grad_squares[i] = squares[i];
    double norm = results->grad_norm = sqrt(total);
    results->grad_scale = 1;
    if (k->clip > 0 && norm > k->clip) results->grad_scale = (float)(k->clip / norm);     // [clip]
}

// One step for every parameter: g = grad * grad_scale;  m = beta1 m + new1 g;  v = beta2 v + new2 g^2, new = 1 - beta;
// u = m correction1 / (sqrt(v correction2) + eps);  p -= lr u + decay p;  weight = p in bf16. One launch for all tensors, as
// most are small; with all that is done to a parameter in it: moves 30 bytes each (read p, m, v, grad; write p, m, v, weight).
// sums (2,NUM_KINDS,blocks), where statistics are wanted: each block's sums of squares of u and of the new p.
__global__ void adamw_kernel(float *params, bf16 *weights, const float *grads, float *m, float *v, double *sums, int statistics, const Results *results,
                             const Constants *constants, Kinds kinds) {
    if (results->diverged_step && results->diverged_step < constants->step) return;    // the weights stay as the first such step left them
    int kind = blockIdx.y;
    size_t at = kinds.offset[kind], size = kinds.size[kind];
    Constants k = *constants;
    float lr = constants->lr[kind], scale = results->grad_scale;
    double update_squares = 0, param_squares = 0;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W; i < size; i += (size_t)gridDim.x * blockDim.x * W) {
        int n = size - i < W ? (int)(size - i) : W;
        float p[W], g[W], mi[W], vi[W];
        load(p, params + at + i, n);
        load(g, grads + at + i, n);
        load(mi, m + at + i, n);
        load(vi, v + at + i, n);
        for (int j = 0; j < W; j++) {
            g[j] *= scale;
            mi[j] = k.beta1 * mi[j] + k.new1 * g[j];
            vi[j] = k.beta2 * vi[j] + k.new2 * g[j] * g[j];
            float u = mi[j] * k.correction1 / (sqrtf(vi[j] * k.correction2) + k.eps);
            p[j] -= lr * u + k.decay * p[j];
            if (statistics) update_squares += (double)u * u, param_squares += (double)p[j] * p[j];
        }
        store(params + at + i, p, n);
        store(m + at + i, mi, n);
        store(v + at + i, vi, n);
        if (weights) store(weights + at + i, p, n);
    }
    if (!statistics) return;
    update_squares = row_sum(update_squares), param_squares = row_sum(param_squares);
    if (threadIdx.x == 0) sums[kind * gridDim.x + blockIdx.x] = update_squares, sums[(NUM_KINDS + kind) * gridDim.x + blockIdx.x] = param_squares;
}

__global__ void update_squares_kernel(Results *results, const double *sums, int blocks, const Constants *k) {    // a warp a kind
    int kind = threadIdx.x / 32;
    double update = 0, param = 0;
    for (int i = threadIdx.x % 32; i < blocks; i += 32) update += sums[kind * blocks + i], param += sums[(NUM_KINDS + kind) * blocks + i];
    update = lanes_sum(update, 32), param = lanes_sum(param, 32);
    if (threadIdx.x % 32 || (results->diverged_step && results->diverged_step < k->step)) return;
    results->update_squares[kind] = update, results->param_squares[kind] = param;
}

// What a step (from 1) needs to know, before gpt_update: it goes to the GPU apart, as a step captured in a graph has no
// arguments that change. After gpt_batch, whose slot holds it.
static void gpt_constants(GPT *g, int step) {
    const Config *cfg = &g->cfg;
    Constants *k = g->slots[g->slot].constants;
    double decay = 0, eps = 1e-8, beta2 = 0.95;
    decay = weight_decay(cfg, step);                                                      // [wd]
    eps = cfg->eps;                                                                       // [eps]
    beta2 = cfg->beta2;                                                                   // [beta2]
    for (int i = 0; i < NUM_KINDS; i++) {
        double kind_lr = learning_rate(cfg, step);
        kind_lr *= mu_lr_scale(cfg, &g->table[i]);                                        // [mu_param]
        k->lr[i] = (float)kind_lr;
    }
    k->decay = (float)decay, k->eps = (float)eps, k->clip = (float)cfg->clip, k->step = step;
    k->beta1 = (float)cfg->beta1, k->new1 = (float)(1 - cfg->beta1), k->correction1 = (float)(1 / (1 - pow(cfg->beta1, step)));
    k->beta2 = (float)beta2, k->new2 = (float)(1 - beta2), k->correction2 = (float)(1 / (1 - pow(beta2, step)));
    check(cudaMemcpyAsync(g->constants, k, sizeof *k, cudaMemcpyHostToDevice, stream));
}

// Clips the gradient and updates every parameter. statistics: also the sums of squares of each kind's gradient, update and
// new parameters.
static void gpt_update(GPT *g, int statistics) {
    Kinds kinds;
    size_t most = 0;
    for (int k = 0; k < NUM_KINDS; k++) {
        kinds.offset[k] = g->table[k].offset, kinds.size[k] = parameter_size(&g->table[k]) * (size_t)g->table[k].copies;
        if (kinds.size[k] > most) most = kinds.size[k];
    }
    int grid = least(blocks((double)most, 128 * W), SUM_BLOCKS);
    launch(grad_squares_kernel, dim3(grid, NUM_KINDS), 128, g->sums, g->grads, kinds);
    launch(grad_norm_kernel, 1, 32 * NUM_KINDS, g->results, g->sums, grid, g->constants);
    launch(adamw_kernel, dim3(grid, NUM_KINDS), 128, g->params, BF16 ? (bf16 *)g->weights : NULL, g->grads, g->m, g->v, g->sums,
           statistics, g->results, g->constants, kinds);
    if (statistics) launch(update_squares_kernel, 1, 32 * NUM_KINDS, g->results, g->sums, grid, g->constants);
}

// ---------------------------------------------------------------------------
// The training loop

// A step on the batch and the constants that are on the GPU. Small models' kernels take less time than their launches: so
// a step is captured once as a graph and then launched whole. The first goes directly, for cuBLAS loads its kernels in it.
static void gpt_step(GPT *g, int B, int T, int statistics) {
    cudaGraphExec_t *graph = &g->graphs[statistics];
    int captured = g->runs[statistics]++ == 1;
    if (*graph) { check(cudaGraphLaunch(*graph, stream)); return; }
    if (captured) check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    gpt_gradient(g, B, T, statistics);
    mean_loss(g, 0, g->constants);
    gpt_update(g, statistics);
    if (!captured) return;
    cudaGraph_t recorded = NULL;
    check(cudaStreamEndCapture(stream, &recorded));
    check(cudaGraphInstantiate(graph, recorded, 0));
    check(cudaGraphDestroy(recorded));
    check(cudaGraphLaunch(*graph, stream));
}

// What the last step left, which is what the host waits for; of a step without statistics, its losses and gradient norm.
// Returns the first step whose loss was not finite (the results are then that step's), else 0.
static int gpt_statistics(const GPT *g, int B, int T, Stats *stats) {
    Results r;
    from_gpu(&r, g->results, sizeof r);
    double L = g->cfg.layers, BT = (double)B * T, BTC = BT * g->cfg.d;
    const double size[NUM_ACTIVATIONS] = {BTC, 3 * L * BTC, L * BTC, 4 * L * BTC, BTC, BT * g->V};
    stats->train_loss = r.loss, stats->log_z = r.log_z, stats->grad_norm = r.grad_norm;
    for (int l = 0; l < g->cfg.layers; l++) stats->max_attn_logit[l] = r.max_attn_logit[l];
    for (int a = 0; a < NUM_ACTIVATIONS; a++) stats->act_rms[a] = sqrt(r.act_squares[a] / size[a]);
    stats->act_rms[ACT_LOGITS] *= mu_logit_scale(&g->cfg);                                // [mu_param]
    for (int k = 0; k < NUM_KINDS; k++) {
        double n = (double)parameter_size(&g->table[k]) * g->table[k].copies;
        stats->grad_rms[k] = sqrt(r.grad_squares[k] / n), stats->update_rms[k] = sqrt(r.update_squares[k] / n), stats->param_rms[k] = sqrt(r.param_squares[k] / n);
    }
    return r.diverged_step;
}

// Mean loss in nats over the first `windows` windows of the validation part.
static double evaluate(GPT *g, const DataLoader *loader, int64_t windows, int *inputs, int *targets) {
    int B = g->cfg.batch, T = g->cfg.T;
    double sum = 0, log_z;
    for (int64_t w = 0; w < windows; w += B) {
        int rows = windows - w < B ? (int)(windows - w) : B;
        dataloader_val(loader, w, rows, inputs, targets);
        gpt_batch(g, inputs, targets, rows, T);
        for (int b = 0; b < rows; b += g->micro_batch) {
            gpt_forward(g, g->inputs + b * T, least(g->micro_batch, rows - b), T, 0);
            gpt_loss(g, g->targets + b * T, least(g->micro_batch, rows - b), T, 0);
        }
        sum += gpt_mean_loss(g, &log_z) * rows;
    }
    sum /= (double)windows;
    return isnan(sum) ? INFINITY : sum;    // NAN is for a loss that was not looked at
}

// One run from its flags to its files; returns the exit status.
static int train(const Config *flags, int threads, Progress *progress) {
    int B = flags->batch, T = flags->T;
    DataLoader loader;
    GPT g;
    dataloader_init(&loader, flags->data, flags->val, flags->vocab, T, (uint64_t)flags->seed);
    const char *machine = gpt_init(&g, flags, loader.vocab, B, T);
    const Config *cfg = &g.cfg;
    int *inputs = (int *)allocate((size_t)B * (size_t)T, sizeof(int)), *targets = (int *)allocate((size_t)B * (size_t)T, sizeof(int));
    int64_t windows = eval_windows(&loader, cfg->eval_tokens);
    State state = {0, 0, 0, 0};
    if (cfg->resume) gpt_load(&g, &state);
    Run run = run_begin(cfg, g.table, g.num_parameters, g.bytes, &state, dataloader_entropy_floor(&loader, windows), machine, threads, progress);
    Stats stats;
    if (state.log_bytes == 0) {
        double initial = evaluate(&g, &loader, windows, inputs, targets);
        run_initial(&run, &stats, initial);
    }
    int step = state.step, saved = cfg->resume ? step : -1, stop = interrupted;    // steps done, and those in the checkpoint
    while (step < cfg->steps && !stop && !run.diverged_step) {
        step++;
        int validated = step == cfg->steps || (cfg->eval_every && step % cfg->eval_every == 0);
        int logged = validated || step % cfg->log_every == 0, saves = cfg->checkpoint_every && step % cfg->checkpoint_every == 0;
        stop = interrupted;
        dataloader_train(&loader, step, B, inputs, targets);
        gpt_batch(&g, inputs, targets, B, T);
        gpt_constants(&g, step);
        gpt_step(&g, B, T, logged);
        if (!logged && !saves && !stop) continue;    // nobody looks at this step: it is queued, and the next is prepared meanwhile
        run.diverged_step = gpt_statistics(&g, B, T, &stats);
        if (run.diverged_step && run.diverged_step < step) step = run.diverged_step, validated = logged = saves = 0;    // since then nothing changed
        stats.val_loss = validated ? evaluate(&g, &loader, windows, inputs, targets) : NAN;
        if (validated && !isfinite(stats.val_loss)) run.diverged_step = step;
        run_step(&run, &stats, step, logged);
        if (saves) {
            state = run_state(&run, saved = step);
            gpt_save(&g, &state);
        }
    }
    if (saved != step) {    // finished, diverged or stopped by a signal, be it before the first step
        state = run_state(&run, step);
        gpt_save(&g, &state);
    }
    int status = run_end(&run, step);
    dataloader_free(&loader);
    gpt_free(&g);
    free(inputs);
    free(targets);
    return status;
}

// The logits (V) of what follows the first `used` tokens of context.
static const float *logits_after(void *model, const int *context, int used) {
    GPT *g = (GPT *)model;
    size_t V = g->V, at = (size_t)(used - 1) * g->row;
    static float *logits = (float *)allocate(V, sizeof(float));
    static act *rounded = (act *)allocate(V, sizeof(act));
    gpt_batch(g, context, context, 1, used);
    gpt_forward(g, g->inputs, 1, used, 0);
    from_gpu(rounded, g->logits + at, V * sizeof(act));
    for (size_t j = 0; j < V; j++) logits[j] = value(rounded[j]);
    return logits;
}

// Writes tokens drawn from the model saved in -out.
static void sample(const Config *cfg) {
    GPT g;
    State state;
    gpt_init(&g, cfg, cfg->vocab, 1, cfg->T);
    gpt_load(&g, &state);
    sample_text(cfg, logits_after, &g);
    gpt_free(&g);
}

// How many of so many runs the GPU takes at a time, and in *bytes the memory of one. Dies of what would stop each of them
// (data, memory, no GPU) before any file is touched. A sweep forks its runs, which is not allowed once CUDA was started: so
// it is a child that looks at the GPU.
static int check_runs(Config *cfg, int runs, double *bytes) {
    enum { MOST = 8 };               // small models leave most of a GPU idle; eight share it
    const double CONTEXT = 6e8;      // bytes that a process takes besides: CUDA's and cuBLAS's code
    DataLoader loader;
    GPT g;
    int status;
    dataloader_init(&loader, cfg->data, cfg->val, cfg->vocab, cfg->T, (uint64_t)cfg->seed);
    Gpu *gpu = (Gpu *)mmap(NULL, sizeof(Gpu), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (gpu == (Gpu *)MAP_FAILED) die(FAILED, "no memory to ask for the GPU: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0) die(FAILED, "cannot start a process: %s", strerror(errno));
    if (!child) gpu_query(gpu), _exit(0);
    waitpid(child, &status, 0);
    if (status) exit(FAILED);        // it has said why
    gpt_layout(&g, cfg, loader.vocab, cfg->batch, cfg->T, 0);
    gpu_check_memory(gpu, g.bytes, cfg);
    *bytes = g.bytes;
    double fit = floor(gpu->free / (g.bytes + CONTEXT));
    munmap(gpu, sizeof(Gpu));
    dataloader_free(&loader);
    return least(runs, fit < 1 ? 1 : fit > MOST ? MOST : (int)fit);
}

int main(int argc, char **argv) {
    Config cfg;
    char lr[MAX_RUNS][MAX_RATE];
    config_parse(&cfg, argc, argv);
    int runs = learning_rates(cfg.lr_text, lr, NULL);
    if (runs > 1) {
        double bytes;
        int jobs = check_runs(&cfg, runs, &bytes);
        return sweep(&cfg, lr, runs, jobs, 1, bytes, train);
    }
    if (cfg.sample) sample(&cfg);
    else return train(&cfg, 1, NULL);
    return 0;
}

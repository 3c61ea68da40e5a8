// lib/gpu.h: errors and launches; memory 16 bytes at a time; sums over the threads of a block;
// tensor cores; matrix multiply by cuBLASLt; the GPU.
#ifndef GPU_H
#define GPU_H

#include "base.h"    // die, real

#ifdef CUDA_EMU
#include "../test/cuda/cuda_emu.h"    // stands in for CUDA on a machine without a GPU, for tests
#else
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#endif

// The type of activations and of the weights that products read, chosen when the program is built.
// The float program is for checks: its attention does without tensor cores.
typedef __nv_bfloat16 bf16;
#ifdef FP32
typedef float act;
#else
typedef bf16 act;
#endif
enum { BF16 = sizeof(act) == sizeof(bf16) };

// ---------------------------------------------------------------------------
// Errors and launches

static cudaStream_t stream;    // queues all work, in order; the host does not wait for it

static void check_at(cudaError_t error, const char *call, int line) {
    if (error == cudaErrorMemoryAllocation)
        die(FAILED, "the GPU has no memory left (%.60s); try a smaller -micro_batch, or ./train_gpt"
            " on the CPU", call);
    if (error != cudaSuccess)
        die(FAILED, "the GPU failed: %s (line %d, %.60s)", cudaGetErrorString(error), line, call);
}

static void check_at(cublasStatus_t status, const char *call, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        die(FAILED, "cuBLAS failed: status %d (line %d, %.60s)", (int)status, line, call);
}

// Dies with the text of the call, unless it succeeded.
#define check(call) check_at(call, #call, __LINE__)

// Queues a kernel. The arguments are converted to the types of its parameters.
template <class... Parameters, class... Arguments>
static void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

static void to_gpu(void *to, const void *from, double bytes) {
    check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyHostToDevice, stream));
    check(cudaStreamSynchronize(stream));
}

// Waits until all queued work is done.
static void from_gpu(void *to, const void *from, double bytes) {
    check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
}

__host__ __device__ inline int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------
// Memory, up to 16 bytes at a time. Every row begins at a multiple of W values.

enum { W = 8 };    // values that a thread takes at a time: 16 bytes of bf16

__host__ __device__ inline int padded(int n) { return ceil_div(n, W) * W; }

__host__ __device__ inline float value(float x) { return x; }
__host__ __device__ inline float value(bf16 x) { return __bfloat162float(x); }
__device__ inline void round_to(float *out, float x) { *out = x; }
__device__ inline void round_to(bf16 *out, float x) { *out = __float2bfloat16(x); }

// x, rounded as memory would round it
__device__ inline float rounded(float x) {
    act y;
    round_to(&y, x);
    return value(y);
}

// Two values as one word of two bf16, the first in its lower half
__device__ inline unsigned bf16_pair(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    unsigned word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

// x = N values from memory, 4 or 8; zeros if not inside. A bf16 is the upper half of a float.
template <int N> __device__ inline void load(float (&x)[N], const bf16 *from, bool inside = true) {
    unsigned word[4] = {};
    if (inside && N == 8) {
        uint4 words = *(const uint4 *)from;
        word[0] = words.x;
        word[1] = words.y;
        word[2] = words.z;
        word[3] = words.w;
    }
    if (inside && N == 4) {
        uint2 words = *(const uint2 *)from;
        word[0] = words.x;
        word[1] = words.y;
    }
    for (int i = 0; i < N / 2; i++) {
        x[2 * i] = __uint_as_float(word[i] << 16);
        x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000);
    }
}

template <int N> __device__ inline void load(float (&x)[N], const float *from, bool inside = true) {
    for (int i = 0; i < N; i += 4) {
        float4 four = inside ? *(const float4 *)(from + i) : make_float4(0, 0, 0, 0);
        x[i] = four.x;
        x[i + 1] = four.y;
        x[i + 2] = four.z;
        x[i + 3] = four.w;
    }
}

template <int N> __device__ inline void store(bf16 *to, const float (&x)[N], bool inside = true) {
    if (!inside) return;
    unsigned word[4] = {};
    for (int i = 0; i < N / 2; i++) word[i] = bf16_pair(x[2 * i], x[2 * i + 1]);
    if (N == 8) *(uint4 *)to = make_uint4(word[0], word[1], word[2], word[3]);
    else *(uint2 *)to = make_uint2(word[0], word[1]);
}

template <int N> __device__ inline void store(float *to, const float (&x)[N], bool inside = true) {
    if (!inside) return;
    for (int i = 0; i < N; i += 4)
        *(float4 *)(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

// ---------------------------------------------------------------------------
// Sums over threads, in an order that is always the same

enum { ALL = 0xffffffff };    // lanes of a warp

// Sums over each group of `lanes` neighbours in a warp, a power of 2.
template <class number> __device__ inline number lanes_sum(number x, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(ALL, x, distance);
    return x;
}

// Sums over the threads of the same threadIdx.y. All threads of the block must call it.
template <class number> __device__ inline number row_sum(number x) {
    __shared__ number sums[32];
    x = lanes_sum(x, 32);
    if (blockDim.x == 32) return x;
    int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x / 32;
    __syncthreads();                                 // the sums of the last call have been read
    if (thread % 32 == 0) sums[thread / 32] = x;
    __syncthreads();
    x = 0;
    for (int warp = 0; warp < warps; warp++) x += sums[threadIdx.y * warps + warp];
    return x;
}

// The largest over a block of one row of threads. Passes over a NaN.
__device__ inline float row_max(float x) {
    __shared__ float tops[32];
    for (int distance = 16; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL, x, distance));
    __syncthreads();
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) x = fmaxf(x, tops[warp]);
    return x;
}

// ---------------------------------------------------------------------------
// Tensor cores: sums (16,16) += left (16,16) right (16,16) by the 32 lanes of a warp, in registers.
// The layout is NVIDIA's (PTX ISA, "Matrix Fragments for mma.m16n8k16"): a lane holds the eight
// elements (block_row(e), block_column(e)) of sums, and the same of left. So sums become the left
// factor of the next product without an exchange between lanes.

__device__ inline int block_row(int e) { return threadIdx.x % 32 / 4 + e / 2 % 2 * 8; }
__device__ inline int block_column(int e) { return threadIdx.x % 4 * 2 + e % 2 + e / 4 * 8; }

#ifndef CUDA_EMU
// x: this lane's part of four blocks of 8 x 8 bf16 in shared memory. Lane l gives the address of
// row l % 8 of block l / 8 (16 bytes, aligned). It gets elements 2 (l % 4) and 2 (l % 4) + 1 of
// row l / 4 of each block, or of column l / 4 where transposed.
__device__ inline void ldmatrix(unsigned (&x)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
__device__ inline void ldmatrix_transposed(unsigned (&x)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}
// sums (16,8) += a (16,16) b (16,8): four floats, four pairs and two pairs of bf16 per lane
__device__ inline void mma_16x8x16(float *sums, const unsigned *a, const unsigned *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// 2^x to 22 bits, in one instruction: 0 instead of less than 2^-126. exp2f takes four.
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

#define PER_LN_2 1.44269504f                         // 1 / ln 2
__device__ inline float exponential(float x) { return power_of_2(x * PER_LN_2); }    // e^x
__device__ inline float reciprocal(float x) { return __fdividef(1, x); }    // 1/x, in fewer steps

#ifdef FP32
typedef float2 Pair;
__device__ inline Pair pair(float x, float y) { return make_float2(x, y); }
#else
typedef __nv_bfloat162 Pair;
__device__ inline Pair pair(float x, float y) { return __floats2bfloat162_rn(x, y); }
#endif

struct Left { Pair x[4]; };    // elements 0 and 1, 2 and 3, 4 and 5, 6 and 7

__device__ inline float element(const Left &a, int e) {
    return value(e % 2 ? a.x[e / 2].y : a.x[e / 2].x);
}

__device__ inline Left left_factor(const float (&sums)[8]) {
    Left a;
    for (int i = 0; i < 4; i++) a.x[i] = pair(sums[2 * i], sums[2 * i + 1]);
    return a;
}

// The block at (i, c) of x (rows,columns) in global memory, `row` elements from one row to the
// next; zeros beyond. columns and c are even.
__device__ inline Left left_factor(const act *x, int row, int i, int rows, int c, int columns) {
    Left a;
    for (int e = 0; e < 8; e += 2) {
        int r = i + block_row(e), column = c + block_column(e);
        a.x[e / 2] = pair(0, 0);
        if (r < rows && column < columns)
            a.x[e / 2] = *(const Pair *)(x + (size_t)r * row + column);
    }
    return a;
}

// The right factor: a block in shared memory, or that block transposed. `row` elements lead from
// one row to the next; rows start at multiples of 16 bytes.
#ifdef FP32
// Tensor cores would round floats. Each multiply reads the block from shared memory: slow, exact.
struct Right { const float *x; int row, column; };
__device__ inline Right right_factor(const act *block, int row) { return {block, row, 1}; }
__device__ inline Right right_transposed(const act *block, int row) { return {block, 1, row}; }

__device__ inline void multiply(float (&sums)[8], const Left &a, const Right &b) {
    for (int k = 0; k < 16; k++) {
        int lane = threadIdx.x % 32 / 4 * 4 + k % 8 / 2;    // holds column k of left's two rows
        float x[2];
        for (int r = 0; r < 2; r++)
            x[r] = __shfl_sync(ALL, element(a, k % 2 + 2 * r + k / 8 * 4), lane);
        for (int e = 0; e < 8; e++)
            sums[e] += x[e / 2 % 2] * b.x[k * b.row + block_column(e) * b.column];
    }
}
#else
struct Right { unsigned x[4]; };
__device__ inline Right right_factor(const act *block, int row) {
    Right b;
    int lane = threadIdx.x % 32;
    ldmatrix_transposed(b.x, block + lane % 16 * row + lane / 16 * 8);
    return b;
}
__device__ inline Right right_transposed(const act *block, int row) {
    Right b;
    int lane = threadIdx.x % 32;
    ldmatrix(b.x, block + (lane / 16 * 8 + lane % 8) * row + lane / 8 % 2 * 8);
    return b;
}
__device__ inline void multiply(float (&sums)[8], const Left &a, const Right &b) {
    mma_16x8x16(sums, (const unsigned *)a.x, b.x);
    mma_16x8x16(sums + 4, (const unsigned *)a.x, b.x + 2);
}
#endif

// ---------------------------------------------------------------------------
// Matrix multiply, by cuBLASLt: all but a few percent of the FLOPs of a step

// A matrix in memory, row by row, `row` elements from one row to the next; read transposed if
// flipped.
typedef struct { const act *data; int row; bool flipped; } Matrix;
static Matrix matrix(const act *data, int row) { return {data, row, false}; }
static Matrix transposed(const act *data, int row) { return {data, row, true}; }
static Matrix flip(Matrix m) { return {m.data, m.row, !m.flipped}; }    // its transpose

// A product that cuBLASLt has been asked for: the descriptions and the algorithm that it advised
typedef struct {
    int M, N, K, a_row, b_row;
    bool a_flipped, b_flipped, adds, real_out;
} Shape;
typedef struct {
    Shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t left, right, out;
    cublasLtMatmulAlgo_t algorithm;
} Product;
enum { WORKSPACE = 32 << 20 };                       // bytes, as cuBLAS recommends for Hopper
static char *workspace;

enum { MAX_PRODUCTS = 64 };                          // a step has 14, with Muon 24; an
                                                     // evaluation has a few more
static Product products[MAX_PRODUCTS];
static int num_products;
static cublasLtHandle_t cublas;

static void products_free(void) {
    for (int i = 0; i < num_products; i++) {
        check(cublasLtMatrixLayoutDestroy(products[i].left));
        check(cublasLtMatrixLayoutDestroy(products[i].right));
        check(cublasLtMatrixLayoutDestroy(products[i].out));
        check(cublasLtMatmulDescDestroy(products[i].product));
    }
    num_products = 0;
}

static const cudaDataType_t ACT = BF16 ? CUDA_R_16BF : CUDA_R_32F;

// Describes the product to cuBLASLt, which counts by columns. A matrix stored by rows is there its
// transpose: so it is asked for out^T = b^T a^T. A sum may be split, if its parts are added in
// float and in a fixed order.
static void product_plan(Product *p) {
    const Shape s = p->shape;
    cublasOperation_t op_left = s.b_flipped ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_right = s.a_flipped ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    check(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &op_left,
                                         sizeof op_left));
    check(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSB, &op_right,
                                         sizeof op_right));
    check(cublasLtMatrixLayoutCreate(&p->left, ACT, s.b_flipped ? s.K : s.N,
                                     s.b_flipped ? s.N : s.K, s.b_row));
    check(cublasLtMatrixLayoutCreate(&p->right, ACT, s.a_flipped ? s.M : s.K,
                                     s.a_flipped ? s.K : s.M, s.a_row));
    check(cublasLtMatrixLayoutCreate(&p->out, s.real_out ? CUDA_R_32F : ACT, s.N, s.M, s.N));

    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t advice = {};
    uint64_t bytes = WORKSPACE;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, aligned = 16;
    int known = 0;
    check(cublasLtMatmulPreferenceCreate(&wish));
    check(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &bytes, sizeof bytes));
    check(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                               &reduction, sizeof reduction));
    const cublasLtMatmulPreferenceAttributes_t pointers[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (auto pointer : pointers)
        check(cublasLtMatmulPreferenceSetAttribute(wish, pointer, &aligned, sizeof aligned));
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        cublas, p->product, p->left, p->right, p->out, p->out, wish, 1, &advice, &known);
    if (status != CUBLAS_STATUS_SUCCESS || !known)
        die(FAILED, "cuBLAS knows no way to multiply (%d,%d) by (%d,%d)", s.M, s.K, s.K, s.N);
    p->algorithm = advice.algo;
    check(cublasLtMatmulPreferenceDestroy(wish));
}

// out (M,N) = add + a (M,K) b (K,N). add is NULL or out. Sums are in float. Rows begin at multiples
// of W values.
template <class number>
static void matmul(number *out, const number *add, Matrix a, Matrix b, int M, int N, int K) {
    Shape shape;
    memset(&shape, 0, sizeof shape);                 // the bytes between its members too
    shape.M = M;
    shape.N = N;
    shape.K = K;
    shape.a_row = a.row;
    shape.b_row = b.row;
    shape.a_flipped = a.flipped;
    shape.b_flipped = b.flipped;
    shape.adds = add != NULL;
    shape.real_out = sizeof(number) == sizeof(real);
    int i = 0;
    while (i < num_products && memcmp(&products[i].shape, &shape, sizeof shape) != 0) i++;
    Product *p = &products[i];
    if (i == num_products) {
        if (i == MAX_PRODUCTS) die(FAILED, "more than %d shapes of products", MAX_PRODUCTS);
        num_products++;
        p->shape = shape;
        product_plan(p);
    }
    float one = 1, beta = add ? 1 : 0;
    check(cublasLtMatmul(cublas, p->product, &one, b.data, p->left, a.data, p->right, &beta, out,
                         p->out, out, p->out, &p->algorithm, workspace, WORKSPACE, stream));
}

// out (M,N) = a (M,K) b (K,N)
template <class number>
static void product(number *out, Matrix a, Matrix b, int M, int N, int K) {
    matmul(out, (const number *)NULL, a, b, M, N, K);
}

// ---------------------------------------------------------------------------
// The GPU and its memory

typedef struct {
    char name[256];
    int number;               // 90 for compute capability 9.0
    double free, total;       // bytes of memory
} Gpu;

__global__ void empty_kernel() {}

// Starts CUDA and cuBLAS on the first GPU. Dies with one line that says what is missing.
static Gpu gpu_start(void) {
    Gpu gpu;
    int count = 0, driver = 0, runtime = 0;
    size_t free_bytes = 0, total_bytes = 0;
    cudaDeviceProp properties;
    cudaFuncAttributes built;
    cudaError_t error = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver > 0)
        die(FAILED, "the NVIDIA driver is for CUDA %d.%d at most, and this program was built with "
            "%d.%d: install a newer driver, or train on the CPU with ./train_gpt",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error != cudaSuccess || count == 0)
        die(FAILED, "no NVIDIA GPU can be used here: %s; ./train_gpt trains on the CPU",
            driver == 0 ? "its driver is not installed" :
            error != cudaSuccess ? cudaGetErrorString(error) : "there is none");
    check(cudaSetDevice(0));
    check(cudaGetDeviceProperties(&properties, 0));
    check(cudaMemGetInfo(&free_bytes, &total_bytes));
    snprintf(gpu.name, sizeof gpu.name, "%s", properties.name);
    gpu.number = 10 * properties.major + properties.minor;
    gpu.free = (double)free_bytes;
    gpu.total = (double)total_bytes;
    if (gpu.number < 80)
        die(FAILED, "the %s has compute capability %d.%d, and train_gpt_cu needs 8.0; ./train_gpt "
            "trains on the CPU", gpu.name, gpu.number / 10, gpu.number % 10);
    // Built for another GPU, or for one without tensor cores for bf16.
    if (cudaFuncGetAttributes(&built, empty_kernel) != cudaSuccess || built.ptxVersion < 80)
        die(FAILED, "this program was not built for the %s: make -B train_gpt_cu ARCH=sm_%d",
            gpu.name, gpu.number);
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cublasLtCreate(&cublas));
    return gpu;
}

static void gpu_stop(void) {
    products_free();
    check(cublasLtDestroy(cublas));
    check(cudaStreamDestroy(stream));
}

// Dies if a run that needs so many bytes does not fit.
static void gpu_check_memory(const Gpu *gpu, double bytes) {
    if (bytes > gpu->free)
        die(FAILED, "the run needs %.3g GB of GPU memory, and %.3g of the %s's %.3g GB are free; "
            "try a smaller -micro_batch, a smaller model, or ./train_gpt on the CPU",
            1e-9 * bytes, 1e-9 * gpu->free, gpu->name, 1e-9 * gpu->total);
}

#endif

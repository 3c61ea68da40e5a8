// Kernels that test the stand-in (test_emu.py): ./emu_kernels NAME [NUMBERS], values on stdin and
// stdout as raw memory. Of those with a planted mistake the first number says whether it is there.
#include "cuda_emu.h"

static long number[29];    // the command's numbers
static bool wrong() { return number[0]; }

static void check(cudaError_t e) { if (e) printf("%s\n", cudaGetErrorString(e)), exit(1); }
static void check(cublasStatus_t s) { if (s) printf("%s\n", cublasGetStatusString(s)), exit(1); }

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    check(cudaLaunchKernelEx(&config, kernel, args...));
}

template <typename T> T *device(size_t count) {
    T *p = NULL;
    check(cudaMalloc(&p, count * sizeof(T)));
    return p;
}
template <typename T> T *from_stdin(size_t count) {
    std::vector<T> host(count);
    if (fread(host.data(), sizeof(T), count, stdin) != count) exit(9);
    T *p = device<T>(count);
    check(cudaMemcpy(p, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <typename T> void to_stdout(T *p, size_t count) {    // and frees it
    std::vector<T> host(count);
    check(cudaMemcpy(host.data(), p, count * sizeof(T), cudaMemcpyDeviceToHost));
    check(cudaFree(p));
    fwrite(host.data(), sizeof(T), count, stdout);
}

// ---- missing barriers: out (128) must not depend on the order of the threads

// reads what another thread wrote
__global__ void neighbour(int *out, bool wrong, int distance) {
    __shared__ int s[128];
    int t = (int)threadIdx.x;
    s[t] = t * t;
    if (!wrong) __syncthreads();
    out[t] = s[(t + distance) & 127];
}

// writes what another thread has yet to read
__global__ void overwrite(int *out, bool wrong, int distance) {
    __shared__ int s[128];
    int t = (int)threadIdx.x;
    s[t] = t * t;
    __syncthreads();
    int seen = s[(t + distance) & 127];
    if (!wrong) __syncthreads();
    s[t] = -1;
    __syncthreads();
    out[t] = seen + s[t];
}

__global__ void broadcast(int *out, bool wrong, int writer) {    // one thread's word for all, twice
    __shared__ int word;
    int t = (int)threadIdx.x, sum = 0;
    for (int i = 0; i < 2; i++) {
        if (t == writer) word = 5 + i;
        __syncthreads();
        sum += word;
        if (!wrong) __syncthreads();
    }
    out[t] = sum;
}

__global__ void in_warp(int *out, bool wrong, int distance) {    // within a warp
    __shared__ int s[128];
    int t = (int)threadIdx.x;
    s[t] = t * t;
    if (!wrong) __syncwarp();
    out[t] = s[(t & ~31) + ((t + distance) & 31)];
}

// shared memory written, then loaded by ldmatrix
__global__ void before_load(int *out, bool wrong, int) {
    __shared__ __align__(16) __nv_bfloat16 s[256];
    unsigned x[4];
    int t = (int)threadIdx.x;
    s[t] = s[t + 128] = __float2bfloat16(1);
    if (!wrong) __syncthreads();
    ldmatrix(x, s + t % 32 * 8);
    out[t] = x[0] == 0x3f803f80 && x[0] == x[1] && x[0] == x[2] && x[0] == x[3];
}

// a copy to shared memory, of x from global memory, read by the thread at this distance; without
// its barrier, and, at distance 0, without the wait
__global__ void after_copy(int *out, bool wrong, int distance) {
    __shared__ int s[128];
    int t = (int)threadIdx.x;
    out[t] = t * t;
    __pipeline_memcpy_async(&s[t], &out[t], 4);
    __pipeline_commit();
    if (!wrong || distance) __pipeline_wait_prior(0);
    if (!wrong || !distance) __syncthreads();
    int seen = s[(t + distance) & 127];
    __pipeline_wait_prior(0);
    out[t] = seen;
}

// a copy over what another thread has yet to read
__global__ void early_copy(int *out, bool wrong, int distance) {
    __shared__ int s[128];
    int t = (int)threadIdx.x;
    out[t] = -1;
    s[t] = t * t;
    __syncthreads();
    int seen = wrong ? 0 : s[(t + distance) & 127];
    if (!wrong) __syncthreads();
    __pipeline_memcpy_async(&s[t], &out[t], 4);
    __pipeline_commit();
    if (wrong) seen = s[(t + distance) & 127];
    __pipeline_wait_prior(0);
    __syncthreads();
    out[t] = seen + s[t];
}

// Two groups of copies: the first is there when at most one is under way.
__global__ void two_groups(int *out, bool wrong, int) {
    __shared__ int s[2][128];
    int t = (int)threadIdx.x;
    out[t] = t * t;
    for (int i = 0; i < 2; i++) {
        __pipeline_memcpy_async(&s[i][t], &out[t], 4);
        __pipeline_commit();
    }
    __pipeline_wait_prior(1);
    int seen = s[wrong][t];
    __pipeline_wait_prior(0);
    out[t] = seen;
}

// ---- accesses that no kernel may make

__global__ void store_at(float *out, long i) {
    if (blockIdx.x == 1 && threadIdx.x == 5) out[i] = 1;
}
__global__ void load_at(float *out, long i) {
    if (blockIdx.x == 1 && threadIdx.x == 5) out[0] = out[i];
}
__global__ void shared_at(float *out, long i) {
    __shared__ float s[32];
    s[threadIdx.x] = 1;
    if (blockIdx.x == 1 && threadIdx.x == 5) s[i] = 1;
    out[0] = s[threadIdx.x];
}
__global__ void unwritten(float *out) {
    __shared__ float s[32];
    if (blockIdx.x == 0) s[threadIdx.x] = 1;
    out[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
}

// ---- barriers and warp calls that not all threads reach

__global__ void some_wait(bool wrong) { if (!wrong || threadIdx.x < 64) __syncthreads(); }
__global__ void some_end(bool wrong) {
    if (wrong && threadIdx.x == 127) return;
    __syncthreads();
}
__global__ void two_barriers(bool wrong) {
    if (wrong && threadIdx.x < 64) __syncthreads();
    else __syncthreads();
}
__global__ void half_shuffles(bool wrong) {
    if (!wrong || threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffffff, 1.0f, 1);
}
__global__ void two_shuffles(bool wrong) {
    if (wrong && threadIdx.x == 3) __shfl_xor_sync(0xffffffff, 1, 2);
    else __shfl_xor_sync(0xffffffff, 1, 1);
}
__global__ void mask(bool wrong) { __shfl_sync(wrong ? 0xffffu : 0xffffffffu, 1, 0); }
__global__ void width(bool wrong) { __shfl_down_sync(0xffffffff, 1, 1, wrong ? 12 : 16); }
__global__ void far_lane(bool wrong) { __shfl_down_sync(0xffffffff, 1, wrong ? 32 : 31); }
__global__ void lane_left_out(bool wrong) {
    __shared__ __align__(16) __nv_bfloat16 s[256];
    unsigned x[4];
    if (!wrong || threadIdx.x != 7) ldmatrix(x, s + threadIdx.x % 32 * 8);
}
__global__ void misaligned(bool wrong) {
    __shared__ __align__(16) __nv_bfloat16 s[264];
    unsigned x[4];
    ldmatrix(x, s + threadIdx.x % 32 * 8 + (wrong && threadIdx.x == 5 ? 4 : 0));
}
__global__ void copy_misaligned(bool wrong) {
    __shared__ __align__(16) float s[136];
    __pipeline_memcpy_async(s + 4 + (wrong ? 2 : 0), s, 16, 16);
    __pipeline_commit();
    __pipeline_wait_prior(0);
}
__global__ void copy_left(bool wrong) {
    __shared__ __align__(16) float s[128];
    __pipeline_memcpy_async(s + threadIdx.x, s, 4, 4);
    __pipeline_commit();
    if (!wrong) __pipeline_wait_prior(0);
}
// ---- what must come out right

__global__ void shuffles(float *out, double *sums) {
    int lane = (int)threadIdx.x;
    float x = (float)lane;
    double sum = lane + 0.25;
    // five exchanges, one after another
    for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffff, sum, bits);
    out[lane] = __shfl_sync(0xffffffff, x, (lane * 7 + 3) % 32);
    sums[lane] = sum;
}

// What the lanes of two warps get from each other: out (WARP_CALLS,64)
enum { WARP_CALLS = 16 };
__global__ void warp_calls(int *out) {
    int t = (int)threadIdx.x, x = t * t + 1;
    const unsigned all = 0xffffffff;
    int results[WARP_CALLS] = {
        __shfl_sync(all, x, 5), __shfl_sync(all, x, t % 4 + 9, 8), __shfl_sync(all, x, 35),
        __shfl_up_sync(all, x, 3), __shfl_up_sync(all, x, 1, 4),
        __shfl_down_sync(all, x, 3), __shfl_down_sync(all, x, 1, 4),
        __shfl_xor_sync(all, x, 5), __shfl_xor_sync(all, x, 8, 8),
        (int)__ballot_sync(all, t % 3 == 0), __any_sync(all, t == 40), __all_sync(all, t < 32),
        __reduce_add_sync(all, x), __reduce_max_sync(all, x), __reduce_min_sync(all, x), warpSize};
    for (int i = 0; i < WARP_CALLS; i++) out[i * 64 + t] = results[i];
}

// out (128): the sum over a warp, in its first lane, as books write it
__global__ void books_sum(float *out, const float *x) {
    float sum = x[threadIdx.x];
    for (int lanes = warpSize / 2; lanes > 0; lanes /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, lanes);
    out[threadIdx.x] = sum;
}

// Of 128 threads: sums of int, unsigned long long, float and double; the largest, the smallest;
// the number of threads that each found the counter as it was; the last exchange's thread
__global__ void atomics(double *out, int *whole, unsigned long long *large, float *f, double *d) {
    int t = (int)threadIdx.x, old;
    atomicAdd(&whole[0], t);
    atomicSub(&whole[1], t);
    atomicMax(&whole[2], t * 37 % 128);
    atomicMin(&whole[3], t - 200);
    do old = whole[4];
    while (atomicCAS(&whole[4], old, old + 2) != old);
    atomicAdd(large, 1ull << 33);
    atomicAdd(f, 0.5f);
    atomicAdd(d, 0.25);
    bool mine = atomicExch(&whole[5], t) == (t ? t - 1 : 0);    // in forward order
    __syncthreads();
    if (t) return;
    for (int i = 0; i < 6; i++) out[i] = whole[i];
    out[6] = (double)*large;
    out[7] = *f;
    out[8] = *d;
    out[9] = mine;
}

// out (FUNCTIONS,128) of x (128), which is positive
enum { FUNCTIONS = 22 };
__global__ void functions(float *out, const float *x) {
    float a = __ldg(x + threadIdx.x), b = a + 1;
    float results[FUNCTIONS] = {
        rsqrtf(a), (float)rsqrt((double)a), __expf(a), __logf(a), __log2f(a), __log10f(a),
        __powf(a, b), __sinf(a), __cosf(a), __fdividef(a, b), __frcp_rn(a), __fsqrt_rn(a),
        __frsqrt_rn(a), __fmaf_rn(a, b, a), __fadd_rn(a, b), __saturatef(a - 1), max(a, NAN),
        min(a, 1.0f), (float)max((int)a, 2), (float)__popc((unsigned)a), (float)__clz((int)a),
        make_float4(a, b, a, b).y};
    for (int i = 0; i < FUNCTIONS; i++) out[i * 128 + threadIdx.x] = results[i];
}

__global__ void indices(unsigned *out) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

__global__ void round_to_bf16(__nv_bfloat16 *out, float *back, const float *x, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        out[i] = __float2bfloat16(x[i]);
        back[i] = __bfloat162float(out[i]);
    }
}

// out (16,8) = 2 a (16,16) b (16,8) + c (16,8), each element where the PTX ISA says. b_by_columns:
// b is stored (8,16)
__global__ void product(float *out, const __nv_bfloat16 *a, const __nv_bfloat16 *b, const float *c,
                        int b_by_columns) {
    __shared__ __align__(16) __nv_bfloat16 s[512];
    unsigned x[4], y[4];
    float sums[4];
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) s[i] = a[i];
    for (int i = lane; i < 128; i += 32) s[256 + i] = s[384 + i] = b[i];
    __syncwarp();
    ldmatrix(x, s + lane % 16 * 16 + lane / 16 * 8);
    // the second half of y is the first again
    if (b_by_columns) ldmatrix(y, s + 256 + lane / 16 * 128 + lane % 8 * 16 + lane / 8 % 2 * 8);
    else ldmatrix_transposed(y, s + 256 + lane * 8);
    for (int e = 0; e < 4; e++) sums[e] = c[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2];
    mma_16x8x16(sums, x, y);
    mma_16x8x16(sums, x, y + 2);
    for (int e = 0; e < 4; e++) out[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sums[e];
}

// out (32,4): of 16 bytes of x (32,4) all but the last zeros are copied
__global__ void copies(float *out, const float *x) {
    __shared__ __align__(16) float s[128];
    int t = (int)threadIdx.x;
    __pipeline_memcpy_async(s + 4 * t, x + 4 * t, 16, (size_t)(t % 5 * 4));
    __pipeline_commit();
    __pipeline_wait_prior(0);
    for (int i = 0; i < 4; i++) out[4 * t + i] = s[4 * t + i];
}

__global__ void powers(float *out, const float *x) {
    out[threadIdx.x] = power_of_2(x[threadIdx.x]);
}

__global__ void maximum(int *top, float *out) {
    atomicMax(top, __float_as_int((float)((threadIdx.x * 37 + 11) % 128)));
    out[threadIdx.x] = 0;
}

__global__ void add_one(float *x) { x[threadIdx.x] += 1; }
__global__ void on_two(float *x, const float *y) { x[threadIdx.x] = y ? y[threadIdx.x] : 0; }

// ---- cuBLASLt

// D = op(A) op(B) / 2 + beta C, as PROBLEM and USE of test_emu.py list it
struct Problem { long ta, tb, m, n, k, lda, ldb, ldd, in16, out16; };
struct Use {
    Problem asked, done;    // of the algorithm and of the product
    // beta; whether C is not D; the operand (A, B, C, D: 1 .. 4) that is an element short, and the
    // one that starts 8 bytes late; the alignment that is promised; the workspace's bytes in the
    // product; the type of sums; whether a graph of the product runs three times; a mistake
    long beta, apart, short_one, late, promise, workspace, compute, graph, mistake;
};
enum {
    NO_HANDLE_ASKS = 1,
    NO_HANDLE,
    STRANGE_STREAM,
    LATE_WORKSPACE,
    C_UNLIKE_D,
    B_UNLIKE_A,
    ANY_SCHEME,
    NO_ALGORITHM,
    HALF_A_SETTING,
    ANOTHER_SETTING
};
enum { WORKSPACE = 1024 };

struct Product {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c, d;
    std::array<cublasLtMatrixLayout_t, 3> made;
    Product(const Problem &p, long compute) {
        cublasOperation_t op_a = p.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
        cublasOperation_t op_b = p.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
        cudaDataType_t in = p.in16 ? CUDA_R_16BF : CUDA_R_32F;
        cudaDataType_t out = p.out16 ? CUDA_R_16BF : CUDA_R_32F;
        check(cublasLtMatmulDescCreate(&desc, (cublasComputeType_t)compute, CUDA_R_32F));
        check(cublasLtMatrixLayoutCreate(&a, in, (uint64_t)(p.ta ? p.k : p.m),
                                         (uint64_t)(p.ta ? p.m : p.k), p.lda));
        check(cublasLtMatrixLayoutCreate(&b, in, (uint64_t)(p.tb ? p.n : p.k),
                                         (uint64_t)(p.tb ? p.k : p.n), p.ldb));
        check(cublasLtMatrixLayoutCreate(&d, out, (uint64_t)p.m, (uint64_t)p.n, p.ldd));
        c = d;
        made = {a, b, d};
        set(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
        set(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
    }
    template <typename T> void set(cublasLtMatmulDescAttributes_t name, T value) {
        check(cublasLtMatmulDescSetAttribute(desc, name, &value, sizeof value));
    }
    ~Product() {
        for (cublasLtMatrixLayout_t x : made) check(cublasLtMatrixLayoutDestroy(x));
        check(cublasLtMatmulDescDestroy(desc));
    }
};

// A, B and C come from stdin with all of their columns' ends; D goes to stdout. Each allocation is
// as long as the product needs.
static void product_of_stdin() {
    Use use;
    static_assert(sizeof use == sizeof number, "a number for each field");
    memcpy(&use, number, sizeof use);
    const Problem &p = use.done;
    long rows[4] = {p.ta ? p.k : p.m, p.tb ? p.n : p.k, p.m, p.m};
    long cols[4] = {p.ta ? p.m : p.k, p.tb ? p.k : p.n, p.n, p.n};
    long ld[4] = {p.lda, p.ldb, p.ldd, p.ldd};
    size_t bytes[4];
    char *base[4], *x[4];
    for (int i = 0; i < 4; i++) {
        size_t size = (i < 2 ? p.in16 : p.out16) ? 2 : 4, late = use.late == i + 1 ? 8 : 0;
        std::vector<char> host((size_t)(ld[i] * cols[i]) * size, (char)0xFF);
        if (i != 3 && fread(host.data(), 1, host.size(), stdin) != host.size()) exit(9);
        long count = cols[i] ? ld[i] * (cols[i] - 1) + rows[i] : 0;
        bytes[i] = (size_t)(count - (use.short_one == i + 1)) * size;
        base[i] = device<char>(late + bytes[i]);
        x[i] = base[i] + late;
        check(cudaMemcpy(x[i], host.data(), bytes[i], cudaMemcpyHostToDevice));
    }
    const char *c = use.beta && !use.apart ? x[3] : x[2];
    if (c == x[3]) check(cudaMemcpy(x[3], x[2], bytes[3], cudaMemcpyDeviceToDevice));

    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t known = {};
    int count;
    uint64_t most = WORKSPACE;
    uint32_t promise = (uint32_t)use.promise, scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    float alpha = 0.5f, beta = (float)use.beta;
    int shift = use.mistake == LATE_WORKSPACE ? 16 : 0;
    char *workspace = device<char>((size_t)(WORKSPACE + shift));
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cublasLtCreate(&handle));
    check(cublasLtMatmulPreferenceCreate(&preference));
    check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &most, sizeof most));
    if (use.mistake != ANY_SCHEME)
        check(cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme,
            use.mistake == HALF_A_SETTING ? 2 : sizeof scheme));
    for (auto name : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        check(cublasLtMatmulPreferenceSetAttribute(preference, name, &promise, sizeof promise));
    {
        Product asked(use.asked, use.compute), done(p, use.compute);
        if (use.mistake == ANOTHER_SETTING) done.set((cublasLtMatmulDescAttributes_t)7, 1);
        for (Product *x : {&asked, &done}) {
            if (use.mistake == C_UNLIKE_D) x->c = x->a;
            if (use.mistake == B_UNLIKE_A) x->b = x->d;
        }
        check(cublasLtMatmulAlgoGetHeuristic(use.mistake == NO_HANDLE_ASKS ? NULL : handle,
                                             asked.desc, asked.a, asked.b, asked.c, asked.d,
                                             preference, 1, &known, &count));
        if (use.graph) check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        check(cublasLtMatmul(use.mistake == NO_HANDLE ? NULL : handle, done.desc, &alpha, x[0],
                             done.a, x[1], done.b, &beta, c, done.c, x[3], done.d,
                             use.mistake == NO_ALGORITHM ? NULL : &known.algo, workspace + shift,
                             (size_t)use.workspace,
                             use.mistake == STRANGE_STREAM ? (cudaStream_t)&use : stream));
    }
    if (use.graph) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        check(cudaStreamEndCapture(stream, &graph));
        check(cudaGraphInstantiate(&exec, graph, 0));
        for (int i = 0; i < 3; i++) check(cudaGraphLaunch(exec, stream));
        check(cudaGraphExecDestroy(exec));
        check(cudaGraphDestroy(graph));
    }
    to_stdout(x[3], bytes[3]);
    for (int i = 0; i < 3; i++) check(cudaFree(base[i]));
    check(cudaFree(workspace));
    check(cublasLtMatmulPreferenceDestroy(preference));
    check(cublasLtDestroy(handle));
    check(cudaStreamDestroy(stream));
}

int main(int argc, char **argv) {
    std::string name = argc > 1 ? argv[1] : "";
    for (int i = 2; i < argc && i < 31; i++) number[i - 2] = atol(argv[i]);
    const std::map<std::string, void (*)(int *, bool, int)> missing = {
        {"neighbour", neighbour},     {"overwrite", overwrite},   {"broadcast", broadcast},
        {"in_warp", in_warp},         {"after_copy", after_copy}, {"early_copy", early_copy},
        {"before_load", before_load}, {"two_groups", two_groups}};
    const std::map<std::string, void (*)(bool)> divergent = {
        {"some_wait", some_wait},             {"some_end", some_end},
        {"two_barriers", two_barriers},       {"half_shuffles", half_shuffles},
        {"two_shuffles", two_shuffles},       {"mask", mask},
        {"width", width},                     {"far_lane", far_lane},
        {"lane_left_out", lane_left_out},     {"misaligned", misaligned},
        {"copy_misaligned", copy_misaligned}, {"copy_left", copy_left}};
    const std::map<std::string, void (*)(float *, long)> access = {
        {"store_at", store_at}, {"load_at", load_at}, {"shared_at", shared_at}};
    if (missing.count(name)) {
        int *out = device<int>(128);
        launch(missing.at(name), 1, 128, out, wrong(), (int)number[1]);
        to_stdout(out, 128);
    } else if (divergent.count(name)) {
        launch(divergent.at(name), 1, 128, wrong());
        check(cudaDeviceSynchronize());
    } else if (name == "small_warp") {
        launch(half_shuffles, 1, wrong() ? 16 : 32, false);
        check(cudaDeviceSynchronize());
    } else if (access.count(name)) {
        float *out = device<float>(70);
        launch(access.at(name), 2, 32, out, number[0]);
        to_stdout(out, 70);
    } else if (name == "freed") {
        float *out = device<float>(32);
        launch(add_one, 1, 32, out);
        check(cudaFree(out));
        if (wrong()) launch(on_two, 1, 32, device<float>(32), (const float *)out);
    } else if (name == "host_reads") {
        float *out = device<float>(32);
        float x = wrong() ? out[3] : 1;
        check(cudaFree(out));
        return x == 2;
    } else if (name == "host_pointer") {
        float *out = device<float>(32), host[32] = {0};
        launch(on_two, 1, 32, out, wrong() ? (const float *)host : NULL);
        to_stdout(out, 32);
    } else if (name == "unwritten") {
        float *out = device<float>(70);
        launch(unwritten, 2, 32, out);
        to_stdout(out, 70);
    } else if (name == "too_early") {    // the result before and after the host waits for it
        float *out = device<float>(32), *pinned, early;
        check(cudaMallocHost(&pinned, 32 * sizeof(float)));
        check(cudaMemset(out, 0, 32 * sizeof(float)));
        launch(add_one, 1, 32, out);
        check(cudaMemcpyAsync(pinned, out, 32 * sizeof(float), cudaMemcpyDeviceToHost));
        early = pinned[0];
        check(cudaStreamSynchronize(NULL));
        printf("%g %g\n", early, pinned[0]);
        check(cudaFreeHost(pinned));
        check(cudaFree(out));
    } else if (name == "graph") {    // captured once, launched three times
        cudaStream_t stream;
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        float *out = device<float>(32);
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        check(cudaMemsetAsync(out, 0, 32 * sizeof(float), stream));
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        launch(add_one, 1, 32, out);
        if (wrong()) check(cudaStreamSynchronize(stream));
        check(cudaStreamEndCapture(stream, &graph));
        check(cudaGraphInstantiate(&exec, graph, 0));
        for (int i = 0; i < 3; i++) check(cudaGraphLaunch(exec, stream));
        to_stdout(out, 32);
        check(cudaGraphExecDestroy(exec));
        check(cudaGraphDestroy(graph));
        check(cudaStreamDestroy(stream));
    } else if (name == "fork") {
        check(cudaDeviceSynchronize());
        if (!fork()) check(cudaDeviceSynchronize());
    } else if (name == "launch") {
        launch(add_one, dim3((unsigned)number[0], (unsigned)number[1]), dim3((unsigned)number[2]),
               (float *)NULL);
    } else if (name == "copy") {
        float *p = device<float>(32), host[33];
        check(cudaMemcpy(host, p, (size_t)number[0], cudaMemcpyDeviceToHost));
    } else if (name == "shuffles") {
        float *out = device<float>(32);
        double *sums = device<double>(32);
        launch(shuffles, 1, 32, out, sums);
        to_stdout(out, 32);
        to_stdout(sums, 32);
    } else if (name == "warp_calls") {
        int *out = device<int>(WARP_CALLS * 64);
        launch(warp_calls, 1, 64, out);
        to_stdout(out, WARP_CALLS * 64);
    } else if (name == "atomics") {
        double *out = device<double>(10), *d = device<double>(1);
        int *whole = device<int>(6);
        unsigned long long *large = device<unsigned long long>(1);
        float *f = device<float>(1);
        check(cudaMemset(whole, 0, 6 * sizeof(int)));
        check(cudaMemset(large, 0, sizeof *large));
        check(cudaMemset(f, 0, sizeof *f));
        check(cudaMemset(d, 0, sizeof *d));
        launch(atomics, 1, 128, out, whole, large, f, d);
        to_stdout(out, 10);
    } else if (name == "functions") {
        float *x = from_stdin<float>(128), *out = device<float>(FUNCTIONS * 128);
        launch(functions, 1, 128, out, x);
        to_stdout(out, FUNCTIONS * 128);
    } else if (name == "indices") {
        unsigned *out = device<unsigned>(24 * 30);
        launch(indices, dim3(2, 3, 4), dim3(5, 3, 2), out);
        to_stdout(out, 24 * 30);
    } else if (name == "bf16") {
        int n = (int)number[0];
        float *x = from_stdin<float>((size_t)n), *back = device<float>((size_t)n);
        __nv_bfloat16 *out = device<__nv_bfloat16>((size_t)n);
        launch(round_to_bf16, dim3((unsigned)(n + 255) / 256), 256, out, back, x, n);
        to_stdout(out, (size_t)n);
        to_stdout(back, (size_t)n);
        check(cudaFree(x));
    } else if (name == "mma") {
        __nv_bfloat16 *a = from_stdin<__nv_bfloat16>(256), *b = from_stdin<__nv_bfloat16>(128);
        float *c = from_stdin<float>(128), *out = device<float>(128);
        launch(product, 1, 32, out, a, b, c, (int)number[0]);
        to_stdout(out, 128);
        check(cudaFree(a));
        check(cudaFree(b));
        check(cudaFree(c));
    } else if (name == "attributes") {
        cudaFuncAttributes attributes;
        check(cudaFuncGetAttributes(&attributes, add_one));
        printf("%d %d\n", attributes.ptxVersion, attributes.binaryVersion);
    } else if (name == "product") {
        product_of_stdin();
    } else if (name == "copies" || name == "powers" || name == "books_sum") {
        float *x = from_stdin<float>(128), *out = device<float>(128);
        auto kernel = name == "copies" ? copies : name == "powers" ? powers : books_sum;
        launch(kernel, 1, name == "copies" ? 32 : 128, out, x);
        to_stdout(out, 128);
        check(cudaFree(x));
    } else if (name == "maximum") {
        int *top = from_stdin<int>(1);
        float *out = device<float>(128);
        launch(maximum, 1, 128, top, out);
        check(cudaFree(out));
        to_stdout(top, 1);
    } else return 8;
    return 0;
}

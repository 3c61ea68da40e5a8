// The speed of train_gpt.cu on this machine's GPU, and the share of each of its kernels in a step.
// Random tokens and medians.
// usage: bench_gpu N bytes [flags of train_gpt_cu: -d, -layers, -heads, -T, -batch, -vocab,
//                           -steps ...]
// prints    gpu NAME
//           model C L NH T B V parameters
//           step seconds FLOPs peak_bytes
//               a training step; its model FLOPs; the GPU memory in use
//           limits FLOP/s bytes/s
//               of cuBLAS's product of N cubed; of a copy of `bytes`, read and written
//           kernel NAME launches seconds FLOPs bytes
//               for each kernel of a step: all of its launches
#ifdef CUDA_EMU
#include "../cuda/cuda_emu.h"
#else
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#endif
#include <cxxabi.h>
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

// The trainer's calls that start kernels go through these, which note the time before and after
// where `timing` is set.
struct Span { std::string name; double flops, bytes; cudaEvent_t begin, end; };
static std::vector<Span> spans;
static bool timing;

template <class Call>
static auto timed(cudaStream_t stream, const std::string &name, double flops, double bytes,
                  Call call) {
    if (!timing) return call();
    Span span = {name, flops, bytes, NULL, NULL};
    for (cudaEvent_t *event : {&span.begin, &span.end})
        if (cudaEventCreateWithFlags(event, cudaEventDefault)) abort();
    cudaEventRecord(span.begin, stream);
    auto status = call();
    cudaEventRecord(span.end, stream);
    spans.push_back(span);
    return status;
}

static std::string kernel_name(const void *kernel) {    // without its template's arguments
    const char *mangled = NULL;
    if (cudaFuncGetName(&mangled, kernel)) abort();
    char *plain = abi::__cxa_demangle(mangled, NULL, NULL, NULL);
    std::string name = plain ? plain : mangled;
    free(plain);
    name.erase(0, name.compare(0, 5, "void ") ? 0 : 5);
    return name.substr(0, name.find_first_of("<("));
}

template <class... P, class... A>
static cudaError_t timed_kernel(const cudaLaunchConfig_t *config, void (*kernel)(P...),
                                A... arguments) {
    return timed(config->stream, timing ? kernel_name((const void *)kernel) : "", 0, 0,
                 [&] { return cudaLaunchKernelEx(config, kernel, static_cast<P>(arguments)...); });
}

static cudaError_t timed_memset(void *to, int value, size_t bytes, cudaStream_t stream) {
    return timed(stream, "memset", 0, (double)bytes,
                 [&] { return cudaMemsetAsync(to, value, bytes, stream); });
}

template <class... A>
static cublasStatus_t timed_product(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                    A... arguments);

#define cudaLaunchKernelEx timed_kernel
#define cudaMemsetAsync timed_memset
#define cublasLtMatmul timed_product
#define main train_gpt_main
#include "../../train_gpt.cu"
#undef main
#undef cublasLtMatmul

// A product with the FLOPs and bytes of its shape, under a name that says what it is for
template <class... A>
static cublasStatus_t timed_product(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                    A... arguments) {
    int i = 0;
    while (products[i].product != product) i++;
    const Shape s = products[i].shape;
    const char *name = s.b_flipped   ? "product_forward"
                       : s.a_flipped ? "product_backward_weight"
                                     : "product_backward_input";
    double M = s.M, N = s.N, K = s.K, n = sizeof(act), out = s.real_out ? sizeof(real) : n;
    double bytes = n * (M * K + K * N) + out * M * N * (s.adds ? 2 : 1);
    return timed(stream, name, 2 * M * N * K, bytes,
                 [&] { return cublasLtMatmul(handle, product, arguments...); });
}

// What a step must compute and move, for each kernel: the formulas that stand beside the kernels.
// Products and memsets count themselves. tokens: different ones in the batch.
struct Cost { const char *kernel; double flops, bytes; };
static std::vector<Cost> costs(const GPT *g, int B, size_t tokens) {
    const Config *cfg = &g->cfg;
    double L = cfg->layers, C = cfg->d, T = cfg->T, V = g->V, HS = C / cfg->heads;
    double N = (double)g->num_parameters, rows = B * T, n = sizeof(act), x = n * rows * C;
    int normed = cfg->qk_norm != 0, heads = B * cfg->T * cfg->heads;
    int block_rows = row_block(cfg->d).y;
    int row_grid = least(ceil_div(B * cfg->T, block_rows), ROW_BLOCKS) * block_rows;
    int head_grid = least(ceil_div(heads, HEAD_THREADS / head_lanes((int)HS)), ROW_BLOCKS);
    return {
        {"embedding_forward_kernel", 0, 2 * x},
        {"residual_layernorm_forward_kernel", 0, (4 * 2 * L + 2) * x},
        {"qk_norm_rope_forward_kernel", 0, 4 * L * x},
        {"attention_forward_kernel", 2 * rows * T * C * L, 4 * L * x},
        {"gelu_forward_kernel", 0, 8 * L * x},
        {"cross_entropy_kernel", 0, 2 * n * rows * V},
        {"residual_layernorm_backward_kernel", 0, 4 * (2 * L + 1) * x},
        {"gelu_backward_kernel", 0, 12 * L * x},
        {"attention_dq_kernel", 3 * rows * T * C * L, 6 * L * x},
        {"attention_dkv_kernel", 4 * rows * T * C * L, 6 * L * x},
        {"qk_norm_rope_backward_kernel", 0, (normed ? 6 : 4) * L * x},
        {"sum_partials_kernel", 0,
         sizeof(real) * ((2 * L + 1) * row_grid * C + normed * 2 * L * head_grid * HS)},
        {"embedding_backward_kernel", 0, x + 2 * sizeof(real) * (double)tokens * C},
        {"loss_kernel", 0, 2 * sizeof(real) * rows},
        {"squares_kernel", 0, sizeof(real) * N},
        {"grad_norm_kernel", 0, 0},
        {"adamw_kernel", 0, (7 * sizeof(real) + (BF16 ? sizeof(act) : 0)) * N},
    };
}

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

static double seconds(cudaEvent_t begin, cudaEvent_t end) {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    return 1e-3 * ms;
}

static cudaEvent_t event_now(void) {
    cudaEvent_t event = NULL;
    check(cudaEventCreateWithFlags(&event, cudaEventDefault));
    check(cudaEventRecord(event, stream));
    return event;
}

template <class Work> static double time_of(int times, Work work) {    // the median, after warm-up
    std::vector<double> x;
    for (int i = -3; i < times; i++) {
        cudaEvent_t begin = event_now();
        work();
        cudaEvent_t end = event_now();
        check(cudaStreamSynchronize(stream));
        if (i >= 0) x.push_back(seconds(begin, end));
        for (cudaEvent_t event : {begin, end}) check(cudaEventDestroy(event));
    }
    return median(x);
}

int main(int argc, char **argv) {
    char *end;
    int cube = argc > 2 ? (int)strtol(argv[1], &end, 10) : 0;
    size_t copied = cube > 0 && !*end ? (size_t)strtod(argv[2], &end) / 2 / 16 * 16 : 0;
    if (!copied || *end || cube % W)
        die(USAGE, "usage: bench_gpu N bytes [flags of train_gpt_cu], N a multiple of %d", W);
    Config cfg;
    config_parse(&cfg, argc - 2, argv + 2);
    int B = cfg.batch, T = cfg.T, V = cfg.vocab ? cfg.vocab : 256, steps = cfg.steps;
    if (steps < 1) die(USAGE, "-steps: at least one is measured");
    GPT g;
    gpt_init(&g, &cfg, V, B, T);
    printf("gpu %s\n", g.gpu.name);
    printf("model %d %d %d %d %d %d %zu\n", cfg.d, cfg.layers, cfg.heads, T, B, V,
           g.num_parameters);
    int *tokens = (int *)allocate((size_t)B * T, sizeof(int));
    int *targets = (int *)allocate((size_t)B * T, sizeof(int));
    int step = 0;
    uint64_t random = 1;
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (int)random_below(&random, (uint32_t)V);
        targets[i] = (int)random_below(&random, (uint32_t)V);
    }
    auto prepare = [&] {
        step = step % cfg.steps + 1;
        batch_send(&g.batch, tokens, targets, B, T);
        gpt_constants(&g, step);
    };

    // Steps as train makes them: one behind another, from the third on a graph. A step lasts from
    // its end before to its end.
    std::vector<cudaEvent_t> ends;
    std::vector<double> lasted;
    for (int i = 0; i <= steps + 3; i++) {
        prepare();
        gpt_step(&g, B, T, 0);
        if (i >= 3) ends.push_back(event_now());
    }
    check(cudaStreamSynchronize(stream));
    Stats stats;
    if (gpt_statistics(&g, B, T, 0, &stats))
        die(FAILED, "the loss is not finite, and AdamW did nothing since: try a smaller -lr");
    for (int i = 0; i < steps; i++) lasted.push_back(seconds(ends[i], ends[i + 1]));
    for (cudaEvent_t event : ends) check(cudaEventDestroy(event));
    size_t free_bytes = 0, total = 0;
    check(cudaMemGetInfo(&free_bytes, &total));
    // a token, forward and backward
    size_t multiplied = g.num_parameters - parameter_size(&g.table[WTE]);
    double flops = 6.0 * (double)multiplied + 12.0 * cfg.layers * T / 2 * cfg.d;
    printf("step %g %g %zu\n", median(lasted), flops * B * T, total - free_bytes);

    // The same steps, kernel by kernel, each between two events
    struct Row { int launches; double flops, bytes; std::vector<double> lasted; };
    std::map<std::string, Row> rows;
    for (int i = 0; i < std::min(steps, 10); i++) {
        std::map<std::string, double> sums;
        prepare();
        // keep the GPU busy while the next step is queued: it waits for no launch
        for (int j = 0; j < 4; j++) gpt_step(&g, B, T, 0);
        timing = true;
        gpt_gradient(&g, B, T, 0);
        gpt_update(&g, 0);
        timing = false;
        check(cudaStreamSynchronize(stream));
        for (auto &row : rows) {
            row.second.launches = 0;
            row.second.flops = 0;
            row.second.bytes = 0;
        }
        for (const Span &s : spans) {
            Row &row = rows[s.name];
            row.launches++;
            row.flops += s.flops;
            row.bytes += s.bytes;
            sums[s.name] += seconds(s.begin, s.end);
            check(cudaEventDestroy(s.begin));
            check(cudaEventDestroy(s.end));
        }
        spans.clear();
        for (auto &sum : sums) rows[sum.first].lasted.push_back(sum.second);
    }
    for (const Cost &cost : costs(&g, B, std::set<int>(tokens, tokens + B * T).size()))
        if (rows.count(cost.kernel)) {
            rows[cost.kernel].flops += cost.flops;
            rows[cost.kernel].bytes += cost.bytes;
        }
    for (auto &row : rows)
        printf("kernel %s %d %g %.17g %.17g\n", row.first.c_str(), row.second.launches,
               median(row.second.lasted), row.second.flops, row.second.bytes);
    gpt_free(&g);

    // What the GPU can do, while it is as warm as the steps made it. A small model brings cuBLAS.
    cfg.d = W;
    cfg.heads = cfg.layers = cfg.T = cfg.batch = 1;
    cfg.micro_batch = 0;
    gpt_init(&g, &cfg, V, 1, 1);
    size_t size = (size_t)cube * cube;
    act *matrices = NULL, *host = (act *)allocate(size, sizeof(act));
    char *memory = NULL;
    for (size_t i = 0; i < size; i++) host[i] = (act)(float)(random_uniform(&random) - 0.5);
    check(cudaMalloc(&matrices, 2 * size * sizeof(act)));
    check(cudaMalloc(&memory, 2 * copied));
    check(cudaMemset(memory, 0, 2 * copied));
    to_gpu(matrices, host, (double)(size * sizeof(act)));
    Matrix square = matrix(matrices, cube);
    double product = time_of(20, [&] {
        matmul(matrices + size, (act *)NULL, square, square, cube, cube, cube);
    });
    double copy = time_of(20, [&] {
        check(cudaMemcpyAsync(memory + copied, memory, copied, cudaMemcpyDeviceToDevice, stream));
    });
    printf("limits %g %g\n", 2 * pow(cube, 3) / product, 2 * (double)copied / copy);
    check(cudaFree(matrices));
    check(cudaFree(memory));
    gpt_free(&g);
    free(host);
    free(tokens);
    free(targets);
    return 0;
}

// cuda_emu.h: stands in for what train_gpt.cu uses of CUDA, so that g++ alone builds and runs it on
// the CPU, to test it:
//     g++ -std=c++17 -O3 -rdynamic -DCUDA_EMU -x c++ train_gpt.cu
// It is slow, and stricter than a GPU. Whatever is not here does not compile; a mistake that only
// shows in a run stops the program with one line that names the kernel, the block and the thread.
//
// What there is
//   Kernels: __global__ functions without `static`, started by cudaLaunchKernelEx; threadIdx,
//     blockIdx, blockDim, gridDim; __shared__ arrays; __syncthreads; __syncwarp, __shfl_sync and
//     __shfl_xor_sync by whole warps; float4, uint4; bf16 as a format to store numbers in; the
//     instructions of lib/gpu.h (ldmatrix, mma.m16n8k16, ex2); cp.async; atomicMax.
//   Host: device and pinned memory, copies, one stream, events, graphs captured from the stream,
//     cuBLAS's GemmEx in float and bf16, cuBLASLt's products in bf16 that end with GELU or its
//     gradient.
// What it looks for
//   A missing barrier: a block's threads run one after another, each until a barrier, in the order
//     that CUDA_EMU_ORDER names: forward (the default), reverse, or random, in which warps take
//     turns too. Blocks run in that order as well. ldmatrix reads a lane's row when that lane
//     comes, as CUDA promises no barrier. A shuffle is one, though CUDA promises none.
//   A copy to shared memory (cp.async) that nobody waits for, or that is read or begun too early:
//     from its start to its thread's wait the memory holds NaN.
//   Threads at different barriers, or past their end while others wait at one; a warp's call that
//     some lanes leave out.
//   Memory that nobody wrote: device and pinned memory starts as NaN (0xFF), a block's shared
//     memory too (static arrays: not in an AddressSanitizer build, which instead watches their
//     ends).
//   With -fsanitize=address: every access outside of an allocation, and the host's to device
//     memory.
//   Work runs only when the host waits for it, so that reading its results too early shows.
//   A kernel's argument that points to the host's memory; a process that used CUDA before fork;
//     work in a capture that cannot be captured; products that reach outside of an allocation;
//     addresses that ldmatrix and cp.async refuse.
// What it pretends: CUDA_EMU_DEVICES=0 no device, =old a driver that is too old;
// CUDA_EMU_MEMORY=bytes of the device (default 8 GiB); CUDA_EMU_CAPABILITY=its compute capability
// (default 90: 9.0); CUDA_EMU_EPILOGUES=0 cuBLASLt knows no algorithm; CUDA_EMU_FAIL=n the n-th
// call to CUDA or cuBLAS returns an error.
#ifndef CUDA_EMU_H
#define CUDA_EMU_H

#undef _FORTIFY_SOURCE    // its longjmp refuses to change stacks
#include <dlfcn.h>
#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <algorithm>
#include <cxxabi.h>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDA_EMU_ASAN(statement) statement
#else
#define CUDA_EMU_ASAN(statement)
#endif

// ---------------------------------------------------------------------------
// Words of the language

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static                 // the sanitizer watches the ends of static memory
#else
// all of a program's thread_local memory is its shared memory: shared_reset finds it
#define __shared__ static thread_local
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// ---------------------------------------------------------------------------
// Threads: fibers that a scheduler resumes one by one

namespace cuda_emu {
namespace {    // two libraries built from this header share nothing

enum { WARP = 32, MAX_THREADS = 1024, STACK = 256 << 10 };
enum Order { FORWARD, REVERSE, RANDOM };

// Where a thread waits. The line tells one call from another, wherever the compiler moves its
// copies.
struct Here { int line; static constexpr Here at(int line = __builtin_LINE()) { return {line}; } };
enum Scope { THREAD, WHOLE_WARP, WHOLE_BLOCK };
struct Barrier { Scope scope; const char *name; int line; };

struct Fiber { jmp_buf context; ucontext_t start; void *stack, *fake; bool fresh; };
struct Words { unsigned word[6]; };    // what a lane gives to the others
// in turns: a lane may be at the next exchange while others still read this one
struct Warp { Words words[2][WARP]; };
struct Copy { char *to; const char *from; size_t bytes, zeros; unsigned group; };
struct Thread {
    uint3 index;
    Fiber *fiber;
    Barrier at;
    bool ended;
    unsigned turn, groups;        // groups: of copies that are committed
    std::vector<Copy> copies;     // to shared memory, under way
};

jmp_buf scheduler;
std::vector<Fiber *> &idle = *new std::vector<Fiber *>;
Thread threads[MAX_THREADS], *current;
Warp warps[MAX_THREADS / WARP];
int num_threads;
std::function<void()> body;    // the kernel with its arguments
const void *kernel_address;
#ifdef __SANITIZE_ADDRESS__
void *scheduler_fake;
const void *scheduler_stack;
size_t scheduler_stack_size;
#endif

inline const char *setting(const char *name, const char *otherwise) {
    const char *s = getenv(name);
    return s && *s ? s : otherwise;
}

inline std::string name_of(const void *function) {
    Dl_info info;
    if (!dladdr(function, &info) || !info.dli_sname)
        return "(nameless: it is static, or the program was linked without -rdynamic)";
    char *plain = abi::__cxa_demangle(info.dli_sname, NULL, NULL, NULL);
    std::string name = plain ? plain : info.dli_sname;
    free(plain);
    size_t end = name.find('(');
    if (!name.compare(0, 5, "void ")) {
        name.erase(0, 5);
        end -= 5;
    }
    return name.substr(0, end);
}

inline void print_place() {
    if (!kernel_address) return;
    fprintf(stderr, "cuda_emu: kernel %s, block (%u,%u,%u)", name_of(kernel_address).c_str(),
            blockIdx.x, blockIdx.y, blockIdx.z);
    if (current) fprintf(stderr, ", thread (%u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z);
    fputc('\n', stderr);
}

__attribute__((format(printf, 1, 2), noreturn)) inline void stop(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("cuda_emu: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    print_place();
    abort();
}

// the same sequence in every run, so that what it finds can be found again
uint64_t random_state;
inline unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 33) % n);
}

inline Order order() {
    static const char *names[] = {"forward", "reverse", "random"};
    // read at each launch, so that a test can change it
    const char *s = setting("CUDA_EMU_ORDER", "forward");
    for (int i = 0; i < 3; i++) if (!strcmp(s, names[i])) return (Order)i;
    stop("CUDA_EMU_ORDER is %s; it must be forward, reverse or random", s);
}

// 0 .. n-1 in the given order
inline std::vector<int> sequence(int n, Order order) {
    std::vector<int> s((size_t)n);
    for (int i = 0; i < n; i++) s[(size_t)i] = order == REVERSE ? n - 1 - i : i;
    for (int i = n; order == RANDOM && i > 1; i--)
        std::swap(s[(size_t)i - 1], s[random_below((unsigned)i)]);
    return s;
}

// Leaves this thread's stack for the scheduler's, until the scheduler comes back.
__attribute__((noinline)) inline void leave() {
    Fiber *f = current->fiber;
    CUDA_EMU_ASAN(__sanitizer_start_switch_fiber(&f->fake, scheduler_stack, scheduler_stack_size));
    if (!_setjmp(f->context)) _longjmp(scheduler, 1);
    CUDA_EMU_ASAN(
        __sanitizer_finish_switch_fiber(f->fake, &scheduler_stack, &scheduler_stack_size));
}

inline void fiber_main() {
    CUDA_EMU_ASAN(__sanitizer_finish_switch_fiber(NULL, &scheduler_stack, &scheduler_stack_size));
    for (;;) {    // one thread after another, as the scheduler hands them over
        body();
        if (!current->copies.empty()) stop("a thread ends and has not waited for its copies");
        current->ended = true;
        leave();
    }
}

inline Fiber *new_fiber() {
    Fiber *f = new Fiber();
    char *memory = (char *)mmap(NULL, STACK + 4096, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // a stack that overflows crashes
    if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE))
        stop("no memory for a thread's stack");
    f->stack = memory + 4096;
    f->fresh = true;
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack;
    f->start.uc_stack.ss_size = STACK;
    makecontext(&f->start, fiber_main, 0);
    return f;
}

// Runs a thread until it waits or ends.
__attribute__((noinline)) inline void resume(int thread) {
    current = &threads[thread];
    threadIdx = current->index;
    if (!current->fiber) {
        if (idle.empty()) idle.push_back(new_fiber());
        current->fiber = idle.back();
        idle.pop_back();
    }
    Fiber *f = current->fiber;
    CUDA_EMU_ASAN(__sanitizer_start_switch_fiber(&scheduler_fake, f->stack, STACK));
    if (!_setjmp(scheduler)) {
        if (!f->fresh) _longjmp(f->context, 1);
        f->fresh = false;
        setcontext(&f->start);
    }
    CUDA_EMU_ASAN(__sanitizer_finish_switch_fiber(scheduler_fake, NULL, NULL));
    if (current->ended) {
        idle.push_back(current->fiber);
        current->fiber = NULL;
    }
    current = NULL;
}

inline void wait(Scope scope, const char *name, Here here) {
    if (!current) stop("%s outside of a kernel", name);
    current->at = {scope, name, here.line};
    leave();
}

inline std::string place_of(int thread) {
    char text[160];
    const Thread &t = threads[thread];
    uint3 i = t.index;
    if (t.ended) snprintf(text, sizeof text, "thread (%u,%u,%u) has ended", i.x, i.y, i.z);
    else
        snprintf(text, sizeof text, "thread (%u,%u,%u) waits at %s of line %d", i.x, i.y, i.z,
                 t.at.name, t.at.line);
    return text;
}

// Stops unless the threads [first, last) wait at one barrier, or all have ended.
inline void must_agree(int first, int last, const char *group) {
    const Thread &a = threads[first];
    for (int t = first + 1; t < last; t++) {
        const Thread &b = threads[t];
        if (a.ended != b.ended || (!a.ended && (a.at.name != b.at.name || a.at.line != b.at.line)))
            stop("divergent barriers in a %s: %s, %s", group, place_of(first).c_str(),
                 place_of(t).c_str());
    }
}

// Runs a warp's threads until each waits or ends; returns whether the warp can go on by itself.
inline bool run_warp(int w, Order order) {
    int first = w * WARP, last = std::min(first + WARP, num_threads);
    for (int lane : sequence(last - first, order)) resume(first + lane);
    must_agree(first, last, "warp");
    const Thread &t = threads[first];
    if (t.ended || t.at.scope == WHOLE_BLOCK) return false;
    if (last - first < WARP)
        stop("%s of line %d in a warp of %d threads; 32 are needed", t.at.name, t.at.line,
             last - first);
    return true;
}

// Fills the shared memory that the block before left with NaN.
inline void shared_reset() {
#ifndef __SANITIZE_ADDRESS__
    // a library's thread_local memory is made when it is first used
    static thread_local volatile char touch;
    static std::pair<void *, size_t> memory;
    touch = 0;
    (void)touch;
    if (!memory.second) dl_iterate_phdr([](struct dl_phdr_info *info, size_t, void *) {
        bool mine = false;
        const ElfW(Phdr) *p = info->dlpi_phdr;
        for (int i = 0; i < info->dlpi_phnum; i++)
            mine |= p[i].p_type == PT_LOAD
                    && (uintptr_t)&scheduler - info->dlpi_addr - p[i].p_vaddr < p[i].p_memsz;
        for (int i = 0; mine && i < info->dlpi_phnum; i++)
            if (p[i].p_type == PT_TLS) memory = {info->dlpi_tls_data, p[i].p_memsz};
        return (int)mine;
    }, NULL);
    memset(memory.first, 0xFF, memory.second);
#endif
}

inline void run_block(Order order) {
    shared_reset();
    for (unsigned t = 0; t < (unsigned)num_threads; t++)
        threads[t] = {{t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y},
                      NULL, {}, false, 0, 0, {}};
    do {
        std::vector<int> ready = sequence((num_threads + WARP - 1) / WARP, order);
        // each warp runs until the block's barrier; in random order they take turns
        while (!ready.empty()) {
            size_t i = order == RANDOM ? random_below((unsigned)ready.size()) : 0;
            if (!run_warp(ready[i], order)) ready.erase(ready.begin() + (ptrdiff_t)i);
        }
        must_agree(0, num_threads, "block");
    } while (!threads[0].ended);
}

inline void run_grid(const void *address, dim3 grid, dim3 block) {
    Order how = order();
    random_state = 1;
    kernel_address = address;
    gridDim = grid;
    blockDim = block;
    num_threads = (int)(block.x * block.y * block.z);
    for (int i : sequence((int)(grid.x * grid.y * grid.z), how)) {
        unsigned b = (unsigned)i;
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block(how);
    }
    kernel_address = NULL;
}

// Gives each lane's words to all lanes; the result is the warp's.
inline const Words *exchange(const char *name, unsigned mask, const Words &mine, Here here) {
    if (mask != 0xffffffff)
        stop("%s of line %d with mask 0x%x; only whole warps are supported", name, here.line, mask);
    if (!current) stop("%s outside of a kernel", name);
    int thread = (int)(current - threads);
    Words *words = warps[thread / WARP].words[current->turn++ % 2];
    words[thread % WARP] = mine;
    wait(WHOLE_WARP, name, here);
    return words;
}

template <typename T> T shuffle(const char *name, unsigned mask, T value, int source, Here here) {
    static_assert(std::is_arithmetic<T>::value, "shuffles of this type are not supported");
    Words words = {};
    memcpy(&words, &value, sizeof value);
    if (source < 0 || source >= WARP)
        stop("%s of line %d from lane %d; there are 32", name, here.line, source);
    words = exchange(name, mask, words, here)[source];
    memcpy(&value, &words, sizeof value);
    return value;
}

inline int lane() { return (int)(current - threads) % WARP; }

}}    // namespace cuda_emu

inline void __syncthreads(cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::wait(cuda_emu::WHOLE_BLOCK, "__syncthreads", here);
}
inline void __syncwarp(unsigned mask = 0xffffffff, cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::exchange("__syncwarp", mask, {}, here);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, cuda_emu::Here here = cuda_emu::Here::at()) {
    return cuda_emu::shuffle("__shfl_sync", mask, value, source, here);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, cuda_emu::Here here = cuda_emu::Here::at()) {
    return cuda_emu::shuffle("__shfl_xor_sync", mask, value, cuda_emu::lane() ^ bits, here);
}
// ---------------------------------------------------------------------------
// bf16: the upper half of a float. No arithmetic: CUDA rounds each operation on two of them to
// bf16.

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {
        unsigned u;
        memcpy(&u, &x, sizeof u);
        // to nearest, halves to even
        bits = x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    explicit operator float() const {
        unsigned u = (unsigned)bits << 16;
        float x;
        memcpy(&x, &u, sizeof x);
        return x;
    }
};
inline float2 make_float2(float x, float y) { return {x, y}; }
// never fused with a sum
inline float __fmul_rn(float x, float y) {
    volatile float product = x * y;
    return product;
}
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }

// ---------------------------------------------------------------------------
// The instructions of lib/gpu.h, lane by lane as the PTX ISA documents them

struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16(x), __float2bfloat16(y)};
}

namespace cuda_emu {
namespace {

// half 0 (low) or 1 (high) of a word, as bf16
inline unsigned half(unsigned word, int which) { return which ? word >> 16 : word & 0xffff; }
inline float bf16_of(unsigned word, int which) {
    unsigned bits = half(word, which) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// Four blocks of 8 x 8. Lane l reads row l % 8 of block l / 8; it gets elements 2 (l % 4) and the
// next of row l / 4, or of column l / 4 where transposed.
inline void load_blocks(const char *name, unsigned (&x)[4], const void *row, bool transposed,
                        Here here) {
    if ((uintptr_t)row % 16)
        stop("%s of line %d: the address of a row is not a multiple of 16", name, here.line);
    Words words = {};
    memcpy(&words, row, 16);
    const Words *rows = exchange(name, 0xffffffff, words, here);
    int group = lane() / 4, pair = lane() % 4;
    for (int b = 0; b < 4; b++) {
        x[b] = rows[8 * b + group].word[pair];
        if (!transposed) continue;
        unsigned low = half(rows[8 * b + 2 * pair].word[group / 2], group % 2);
        unsigned high = half(rows[8 * b + 2 * pair + 1].word[group / 2], group % 2);
        x[b] = low | high << 16;
    }
}

}}    // namespace cuda_emu

inline void ldmatrix(unsigned (&x)[4], const void *row,
                     cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::load_blocks("ldmatrix", x, row, false, here);
}
inline void ldmatrix_transposed(unsigned (&x)[4], const void *row,
                                cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::load_blocks("ldmatrix_transposed", x, row, true, here);
}

// Element (i, k) of a is in lane 4 (i % 8) + k % 8 / 2, word i / 8 + 2 (k / 8), half k % 2;
// element (k, j) of b in lane 4 j + k % 8 / 2, word k / 8, half k % 2; sum e of a lane is element
// (lane / 4 + 8 (e / 2), 2 (lane % 4) + e % 2).
inline void mma_16x8x16(float *sums, const unsigned *a, const unsigned *b,
                        cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::Words words = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const cuda_emu::Words *given = cuda_emu::exchange("mma", 0xffffffff, words, here);
    int lane = cuda_emu::lane();
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++) {
            const unsigned *left = given[lane / 4 * 4 + k % 8 / 2].word;
            const unsigned *right = given[4 * (lane % 4 * 2 + e % 2) + k % 8 / 2].word + 4;
            sums[e] = fmaf(cuda_emu::bf16_of(left[e / 2 + k / 8 * 2], k % 2),
                           cuda_emu::bf16_of(right[k / 8], k % 2), sums[e]);
        }
}

inline float power_of_2(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y;
}

// cp.async: a copy of 4, 8 or 16 bytes to shared memory, the last `zeros` of them zeros, that is
// done when its thread has waited for it
inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes, size_t zeros = 0) {
    if (!cuda_emu::current) cuda_emu::stop("cp.async outside of a kernel");
    if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes)
        cuda_emu::stop("cp.async of %zu bytes, %zu of them zeros", bytes, zeros);
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes)
        cuda_emu::stop("cp.async of %zu bytes: an address is not a multiple of that", bytes);
    memset(to, 0xFF, bytes);
    cuda_emu::Thread &t = *cuda_emu::current;
    t.copies.push_back({(char *)to, (const char *)from, bytes, zeros, t.groups});
}
inline void __pipeline_commit() { cuda_emu::current->groups++; }
// until at most the last `groups` committed groups are under way
inline void __pipeline_wait_prior(unsigned groups) {
    cuda_emu::Thread &t = *cuda_emu::current;
    std::vector<cuda_emu::Copy> later;
    for (const cuda_emu::Copy &c : t.copies)
        if (c.group + groups < t.groups) {
            memcpy(c.to, c.from, c.bytes - c.zeros);
            memset(c.to + c.bytes - c.zeros, 0, c.zeros);
        } else later.push_back(c);
    t.copies.swap(later);
}

inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline int atomicMax(int *p, int x) {
    int old = *p;
    *p = std::max(old, x);
    return old;
}

// ---------------------------------------------------------------------------
// The runtime: errors, memory, the stream

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorUnknown = 999,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    struct cuda_emu_stream *stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor;
};
typedef struct cuda_emu_stream { std::vector<std::function<void()>> work; } *cudaStream_t;
typedef struct cuda_emu_graph {
    std::vector<std::function<void()>> work;
} *cudaGraph_t, *cudaGraphExec_t;
typedef struct cuda_emu_event { unsigned flags; bool pending; double seconds; } *cudaEvent_t;

namespace cuda_emu {
namespace {

struct Allocation { size_t size; char *block; bool device; };
enum { REDZONE = 4096, CUDA_ALIGN = 256 };

std::map<uintptr_t, Allocation> allocations;    // by address
size_t used;
cudaError_t last_error;
// all streams: there is one, and the NULL stream waits for it anyway
cuda_emu_stream queue;
cuda_emu_graph *capture;
cudaStream_t the_stream;
int num_calls;
pid_t process;

inline size_t device_bytes() {
    return (size_t)strtoull(setting("CUDA_EMU_MEMORY", "8589934592"), NULL, 10);
}
inline int capability() { return atoi(setting("CUDA_EMU_CAPABILITY", "90")); }
inline const char *devices() { return setting("CUDA_EMU_DEVICES", "1"); }
inline bool planned_failure() { return ++num_calls == atoi(setting("CUDA_EMU_FAIL", "0")); }

// What every call starts with. waits: it may not be made while the stream is captured.
inline cudaError_t call(bool waits) {
    if (!process) {
        process = getpid();
        CUDA_EMU_ASAN(__sanitizer_set_death_callback(print_place));
    }
    if (planned_failure()) return cudaErrorUnknown;
    if (process != getpid()) return cudaErrorInitializationError;    // CUDA does not survive a fork
    if (!strcmp(devices(), "old")) return cudaErrorInsufficientDriver;
    if (!strcmp(devices(), "0")) return cudaErrorNoDevice;
    return waits && capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
inline cudaError_t result(cudaError_t e) { return e ? last_error = e : e; }
#define CUDA_EMU_CALL(waits) \
    do { \
        cudaError_t e = cuda_emu::call(waits); \
        if (e) return cuda_emu::result(e); \
    } while (0)

// The allocation that holds [p, p + size), or NULL.
inline const Allocation *find(const void *p, size_t size) {
    auto next = allocations.upper_bound((uintptr_t)p);
    if (next == allocations.begin()) return NULL;
    --next;
    size_t offset = (uintptr_t)p - next->first;
    return offset <= next->second.size && size <= next->second.size - offset ? &next->second : NULL;
}
inline bool on_device(const void *p, size_t size) {
    const Allocation *a = find(p, size);
    return a && a->device;
}

inline void host_access(bool allowed) {
    (void)allowed;
    CUDA_EMU_ASAN(for (auto &a : allocations) if (a.second.device) {
        if (allowed) ASAN_UNPOISON_MEMORY_REGION((void *)a.first, a.second.size);
        else ASAN_POISON_MEMORY_REGION((void *)a.first, a.second.size);
    })
}

inline void synchronize() {
    if (queue.work.empty()) return;
    host_access(true);
    for (auto &work : queue.work) work();
    host_access(false);
    queue.work.clear();
}
inline void enqueue(std::function<void()> work) {
    (capture ? capture->work : queue.work).push_back(std::move(work));
}

inline cudaError_t allocate(void **out, size_t size, bool device) {
    CUDA_EMU_CALL(true);
    *out = NULL;
    if (device && (size > device_bytes() || used > device_bytes() - size))
        return result(cudaErrorMemoryAllocation);
    size_t room = (size + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
    char *block = (char *)aligned_alloc(CUDA_ALIGN, room + 2 * REDZONE);
    if (!block) return result(cudaErrorMemoryAllocation);
    memset(block, 0xFF, room + 2 * REDZONE);
    CUDA_EMU_ASAN(ASAN_POISON_MEMORY_REGION(block, room + 2 * REDZONE));
    if (!device) { CUDA_EMU_ASAN(ASAN_UNPOISON_MEMORY_REGION(block + REDZONE, size)); }
    *out = block + REDZONE;
    allocations[(uintptr_t)*out] = {size, block, device};
    used += device ? size : 0;
    return cudaSuccess;
}
inline cudaError_t release(void *p, bool device) {
    CUDA_EMU_CALL(true);
    if (!p) return cudaSuccess;
    synchronize();
    auto a = allocations.find((uintptr_t)p);
    if (a == allocations.end() || a->second.device != device) return result(cudaErrorInvalidValue);
    used -= device ? a->second.size : 0;
    CUDA_EMU_ASAN(ASAN_UNPOISON_MEMORY_REGION(
        a->second.block,
        (a->second.size + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN + 2 * REDZONE));
    free(a->second.block);
    allocations.erase(a);
    return cudaSuccess;
}

template <typename T> void check_argument(const void *, int, const T &) {}
template <typename T> void check_argument(const void *kernel, int i, T *const &p) {
    if (p && !find(p, 1))
        stop("kernel %s: argument %d points to no device or pinned memory", name_of(kernel).c_str(),
             i);
}
template <typename Tuple, size_t... I>
void check_arguments(const void *kernel, const Tuple &arguments, std::index_sequence<I...>) {
    (check_argument(kernel, (int)I + 1, std::get<I>(arguments)), ...);
}

}}    // namespace cuda_emu

inline const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInitializationError: return "initialization error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    default: return "unknown error";
    }
}
inline cudaError_t cudaGetLastError() {
    cudaError_t e = cuda_emu::last_error;
    cuda_emu::last_error = cudaSuccess;
    return e;
}

inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    CUDA_EMU_CALL(false);
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    CUDA_EMU_CALL(false);
    return cuda_emu::result(device ? cudaErrorInvalidDevice : cudaSuccess);
}
inline cudaError_t cudaDriverGetVersion(int *version) {
    *version = strcmp(cuda_emu::devices(), "old") ? 13000 : 10000;
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    CUDA_EMU_CALL(false);
    if (device) return cuda_emu::result(cudaErrorInvalidDevice);
    *p = {"stand-in for CUDA on the CPU", cuda_emu::device_bytes(), cuda_emu::capability() / 10,
          cuda_emu::capability() % 10};
    return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    CUDA_EMU_CALL(false);
    *total = cuda_emu::device_bytes();
    *available = *total - std::min(*total, cuda_emu::used);
    return cudaSuccess;
}

template <typename T> cudaError_t cudaMalloc(T **p, size_t size) {
    return cuda_emu::allocate((void **)p, size, true);
}
template <typename T> cudaError_t cudaMallocHost(T **p, size_t size) {
    return cuda_emu::allocate((void **)p, size, false);
}
inline cudaError_t cudaFree(void *p) { return cuda_emu::release(p, true); }
inline cudaError_t cudaFreeHost(void *p) { return cuda_emu::release(p, false); }

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    CUDA_EMU_CALL(true);
    if (cuda_emu::the_stream) cuda_emu::stop("a second stream is not supported");
    *stream = cuda_emu::the_stream = new cuda_emu_stream;
    return cudaSuccess;
}
inline bool cuda_emu_known(cudaStream_t stream) {
    return !stream || stream == cuda_emu::the_stream;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CUDA_EMU_CALL(true);
    if (!cuda_emu_known(stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    cuda_emu::synchronize();
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(NULL); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    CUDA_EMU_CALL(true);
    if (!stream || stream != cuda_emu::the_stream)
        return cuda_emu::result(cudaErrorInvalidResourceHandle);
    cuda_emu::synchronize();
    delete stream;
    cuda_emu::the_stream = NULL;
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream = NULL) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu_known(stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    if (size && !cuda_emu::on_device(p, size)) return cuda_emu::result(cudaErrorInvalidValue);
    cuda_emu::enqueue([=] { memset(p, value, size); });
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void *p, int value, size_t size) {
    return cudaMemsetAsync(p, value, size);
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t stream = NULL) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu_known(stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!size) return cudaSuccess;
    if (to_device != cuda_emu::on_device(to, size)
        || from_device != cuda_emu::on_device(from, size))
        return cuda_emu::result(cudaErrorInvalidValue);
    bool pageable = (!to_device && !cuda_emu::find(to, size))
                    || (!from_device && !cuda_emu::find(from, size));
    if (pageable && cuda_emu::capture) return cuda_emu::result(cudaErrorStreamCaptureUnsupported);
    // as CUDA does: the copy from it is made at once, the rest later
    if (pageable && !from_device) {
        std::string staged((const char *)from, size);
        cuda_emu::enqueue([=] { memcpy(to, staged.data(), size); });
    } else cuda_emu::enqueue([=] { memmove(to, from, size); });
    if (pageable && from_device) cuda_emu::synchronize();
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    if (cuda_emu::capture) return cuda_emu::result(cudaErrorStreamCaptureUnsupported);
    cudaError_t e = cudaMemcpyAsync(to, from, size, kind);
    if (!e) cuda_emu::synchronize();
    return e;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    CUDA_EMU_CALL(false);
    *event = new cuda_emu_event{flags, false, NAN};
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = NULL) {
    CUDA_EMU_CALL(true);
    if (!cuda_emu_known(stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    event->pending = true;
    cuda_emu::enqueue([=] {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        event->pending = false;
        event->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    });
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    CUDA_EMU_CALL(true);
    if (event->pending) cuda_emu::synchronize();
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    CUDA_EMU_CALL(true);
    if ((begin->flags | end->flags) & cudaEventDisableTiming || isnan(begin->seconds)
        || isnan(end->seconds))
        return cuda_emu::result(cudaErrorInvalidResourceHandle);
    if (begin->pending || end->pending) return cuda_emu::result(cudaErrorNotReady);
    *ms = (float)(1e3 * (end->seconds - begin->seconds));
    return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    CUDA_EMU_CALL(true);
    cuda_emu::synchronize();
    delete event;
    return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    CUDA_EMU_CALL(true);
    if (!stream || !cuda_emu_known(stream))
        return cuda_emu::result(cudaErrorStreamCaptureUnsupported);
    cuda_emu::capture = new cuda_emu_graph;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu::capture) return cuda_emu::result(cudaErrorInvalidValue);
    *graph = cuda_emu::capture;
    cuda_emu::capture = NULL;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                        unsigned long long = 0) {
    CUDA_EMU_CALL(true);
    *exec = new cuda_emu_graph(*graph);
    return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    CUDA_EMU_CALL(true);
    if (!cuda_emu_known(stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    for (auto &work : exec->work) cuda_emu::enqueue(work);
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    CUDA_EMU_CALL(false);
    delete graph;
    return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    CUDA_EMU_CALL(false);
    delete exec;
    return cudaSuccess;
}

struct cudaFuncAttributes { int binaryVersion; };
// as the linker knows it
inline cudaError_t cudaFuncGetName(const char **name, const void *function) {
    CUDA_EMU_CALL(false);
    Dl_info info;
    if (!dladdr(function, &info) || !info.dli_sname) return cuda_emu::result(cudaErrorInvalidValue);
    *name = info.dli_sname;
    return cudaSuccess;
}
template <typename T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, T *) {
    CUDA_EMU_CALL(false);
    a->binaryVersion = cuda_emu::capability();
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    CUDA_EMU_CALL(false);
    static_assert((sizeof(Parameters) + ... + 0) <= 4096,
                  "a kernel's arguments are more than 4096 bytes");
    static_assert((std::is_trivially_copyable<Parameters>::value && ... && true),
                  "a kernel's argument is not plain memory");
    const void *address = (const void *)kernel;
    dim3 grid = config->gridDim, block = config->blockDim;
    if (config->numAttrs || config->dynamicSmemBytes)
        cuda_emu::stop("kernel %s: launch attributes and dynamic shared memory are not supported",
                       cuda_emu::name_of(address).c_str());
    if (!cuda_emu_known(config->stream)) return cuda_emu::result(cudaErrorInvalidResourceHandle);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535
        || !block.x || !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64
        || block.x * block.y * block.z > cuda_emu::MAX_THREADS)
        return cuda_emu::result(cudaErrorInvalidConfiguration);
    std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
    cuda_emu::check_arguments(address, values, std::index_sequence_for<Parameters...>());
    cuda_emu::enqueue([=] {
        cuda_emu::body = [&] { std::apply(kernel, values); };
        cuda_emu::run_grid(address, grid, block);
    });
    return cudaSuccess;
}

// ---------------------------------------------------------------------------
// cuBLAS: products of matrices by columns, as Fortran keeps them

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
typedef cudaDataType_t cudaDataType;
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
enum cublasMath_t {
    CUBLAS_DEFAULT_MATH = 0,
    CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
};
typedef struct cuda_emu_blas { cudaStream_t stream; } *cublasHandle_t;

namespace cuda_emu {
namespace {

inline cublasStatus_t blas_call() {
    if (planned_failure()) return CUBLAS_STATUS_EXECUTION_FAILED;
    return process == getpid() && !strcmp(devices(), "1") ? CUBLAS_STATUS_SUCCESS
                                                          : CUBLAS_STATUS_NOT_INITIALIZED;
}

// out (cols,rows), floats one column after another = op(x)
inline std::vector<float> columns(const void *x, cudaDataType type, int ld, bool transpose,
                                  int rows, int cols) {
    std::vector<float> out((size_t)rows * (size_t)cols);
    for (int j = 0; j < cols; j++)
        for (int i = 0; i < rows; i++) {
            size_t at = transpose ? (size_t)i * (size_t)ld + (size_t)j
                                  : (size_t)j * (size_t)ld + (size_t)i;
            float &to = out[(size_t)j * (size_t)rows + (size_t)i];
            if (type == CUDA_R_32F) to = ((const float *)x)[at];
            else to = (float)((const __nv_bfloat16 *)x)[at];
        }
    return out;
}

inline void check_matrix(const char *name, const void *p, cudaDataType type, int ld, int rows,
                         int cols) {
    size_t size = type == CUDA_R_32F ? 4 : 2;
    size_t count = (size_t)ld * (size_t)(cols - 1) + (size_t)rows;
    if (!on_device(p, count * size))
        stop("cublasGemmEx: %s, %d x %d with a leading dimension of %d, is not inside of an"
             " allocation", name, rows, cols, ld);
    if ((uintptr_t)p % size) stop("cublasGemmEx: %s is not aligned", name);
}

}}    // namespace cuda_emu

inline const char *cublasGetStatusString(cublasStatus_t s) {
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "the operation completed successfully";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return "the GPU program failed to execute";
    }
}
inline cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    cublasStatus_t s = cuda_emu::blas_call();
    if (!s) *handle = new cuda_emu_blas();
    return s;
}
inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    cublasStatus_t s = cuda_emu::blas_call();
    if (!s) delete handle;
    return s;
}
inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return cuda_emu::blas_call();
}
inline cublasStatus_t cublasGetStream(cublasHandle_t handle, cudaStream_t *stream) {
    *stream = handle->stream;
    return cuda_emu::blas_call();
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return cuda_emu::blas_call();
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *p, size_t size) {
    cublasStatus_t s = cuda_emu::blas_call();
    bool good = cuda_emu::on_device(p, size) && (uintptr_t)p % 256 == 0;
    return s ? s : good ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

namespace cuda_emu {
namespace {

struct Operand { void *data; cudaDataType type; int ld; cublasOperation_t op; };

inline float read(const Operand &x, size_t at) {
    return x.type == CUDA_R_32F ? ((const float *)x.data)[at]
                                : (float)((const __nv_bfloat16 *)x.data)[at];
}
inline void write(const Operand &x, size_t at, float value) {
    if (x.type == CUDA_R_32F) ((float *)x.data)[at] = value;
    else ((__nv_bfloat16 *)x.data)[at] = __nv_bfloat16(value);
}

// c (m,n) = alpha op(a) (m,k) op(b) (k,n) + beta c;  last (value, its place's row and column) is
// what is stored instead
inline cublasStatus_t multiply(Operand a, Operand b, Operand c, int m, int n, int k, float alpha,
                               float beta,
                               std::function<float(float, size_t, size_t)> last = nullptr) {
    if (m < 0 || n < 0 || k < 0 || a.ld < std::max(1, a.op ? k : m)
        || b.ld < std::max(1, b.op ? n : k) || c.ld < std::max(1, m))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a.type != b.type || (a.type == CUDA_R_32F && c.type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!m || !n) return CUBLAS_STATUS_SUCCESS;
    if (k) {
        check_matrix("a", a.data, a.type, a.ld, a.op ? k : m, a.op ? m : k);
        check_matrix("b", b.data, b.type, b.ld, b.op ? n : k, b.op ? k : n);
    }
    check_matrix("c", c.data, c.type, c.ld, m, n);
    enqueue([=] {
        std::vector<float> x = columns(a.data, a.type, a.ld, a.op, m, k);
        std::vector<float> y = columns(b.data, b.type, b.ld, b.op, k, n);
        std::vector<float> sum((size_t)m);
        for (int j = 0; j < n; j++) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int l = 0; l < k; l++) {
                const float *column = &x[(size_t)l * (size_t)m];
                float factor = y[(size_t)j * (size_t)k + (size_t)l];
                for (int i = 0; i < m; i++) sum[(size_t)i] += column[i] * factor;
            }
            for (int i = 0; i < m; i++) {
                size_t at = (size_t)j * (size_t)c.ld + (size_t)i;
                float value = alpha * sum[(size_t)i];
                // what is multiplied by 0 is not read
                if (beta != 0) value += beta * read(c, at);
                write(c, at, last ? last(value, (size_t)i, (size_t)j) : value);
            }
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}

}}    // namespace cuda_emu

inline cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a,
                                   cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                                   const void *a, cudaDataType type_a, int lda, const void *b,
                                   cudaDataType type_b, int ldb, const void *beta, void *c,
                                   cudaDataType type_c, int ldc, cublasComputeType_t,
                                   cublasGemmAlgo_t) {
    cublasStatus_t s = cuda_emu::blas_call();
    if (s) return s;
    if (!cuda_emu_known(handle->stream)) return CUBLAS_STATUS_INVALID_VALUE;
    return cuda_emu::multiply({(void *)a, type_a, lda, op_a}, {(void *)b, type_b, ldb, op_b},
                              {c, type_c, ldc, CUBLAS_OP_N}, m, n, k, *(const float *)alpha,
                              *(const float *)beta);
}

// ---------------------------------------------------------------------------
// cuBLASLt: a product that applies GELU, or multiplies by its gradient, before it stores. The input
// of GELU is `aux`: written, or read. As NVIDIA documents it, and no more than train_gpt.cu needs:
// bf16, one order of sums, all settings made.

enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_GELU_AUX = 160, CUBLASLT_EPILOGUE_DGELU = 192 };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};
enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0 };
typedef struct cuda_emu_lt { int unused; } *cublasLtHandle_t;
typedef struct cuda_emu_product {
    uint32_t op_a, op_b, epilogue;
    char *aux;
    int64_t aux_ld;
} *cublasLtMatmulDesc_t;
typedef struct cuda_emu_layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
} *cublasLtMatrixLayout_t;
typedef struct cuda_emu_preference {
    uint64_t workspace;
    uint32_t reduction, aligned[4];
} *cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t { uint64_t workspace; uint32_t aligned[4]; };
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
};

namespace cuda_emu {
namespace {

template <typename T, typename... A> cublasStatus_t blas_create(T **out, A... values) {
    cublasStatus_t s = blas_call();
    if (!s) *out = new T{values...};
    return s;
}
template <typename T> cublasStatus_t blas_destroy(T *x) {
    cublasStatus_t s = blas_call();
    if (!s) delete x;
    return s;
}

// gelu(x) = x (1 + tanh u) / 2, u = sqrt(2/pi) (x + 0.044715 x^3), of a product that is kept in
// aux; or gelu'(aux) times a product
inline std::function<float(float, size_t, size_t)> gelu_of(Operand aux, bool gradient) {
    return [=](float product, size_t i, size_t j) {
        size_t at = j * (size_t)aux.ld + i;
        double root = sqrt(2 / M_PI), x = gradient ? read(aux, at) : product;
        double t = tanh(root * (x + 0.044715 * x * x * x));
        double slope = (1 + t) / 2 + x * (1 - t * t) / 2 * root * (1 + 3 * 0.044715 * x * x);
        if (gradient) return (float)(product * slope);
        write(aux, at, product);
        return (float)(x * (1 + t) / 2);
    };
}

struct Field { void *value; size_t size; };
inline cublasStatus_t blas_set(Field field, const void *value, size_t size) {
    if (!field.value || field.size != size) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field.value, value, size);
    return blas_call();
}

}}    // namespace cuda_emu

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t,
                                               cudaDataType) {
    return cuda_emu::blas_create(p);
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) {
    return cuda_emu::blas_destroy(p);
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    return cuda_emu::blas_create(l, type, rows, cols, ld);
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return cuda_emu::blas_destroy(l);
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    cublasStatus_t s = cuda_emu::blas_create(p);
    if (!s) **p = {0, 0xffffffff, {256, 256, 256, 256}};
    return s;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return cuda_emu::blas_destroy(p);
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t p,
                                                     cublasLtMatmulDescAttributes_t name,
                                                     const void *value, size_t size) {
    switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return cuda_emu::blas_set({&p->op_a, sizeof p->op_a}, value, size);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return cuda_emu::blas_set({&p->op_b, sizeof p->op_b}, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return cuda_emu::blas_set({&p->epilogue, sizeof p->epilogue}, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return cuda_emu::blas_set({&p->aux, sizeof p->aux}, value, size);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        return cuda_emu::blas_set({&p->aux_ld, sizeof p->aux_ld}, value, size);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name, const void *value,
    size_t size) {
    if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return cuda_emu::blas_set({&p->workspace, sizeof p->workspace}, value, size);
    if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        return cuda_emu::blas_set({&p->reduction, sizeof p->reduction}, value, size);
    return cuda_emu::blas_set(
        {&p->aligned[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], sizeof p->aligned[0]},
        value, size);
}

// Whether there is an algorithm: it is the one, with what the preference promised.
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int,
    cublasLtMatmulHeuristicResult_t *result, int *count) {
    cublasStatus_t s = cuda_emu::blas_call();
    *count = 0;
    if (s) return s;
    for (cublasLtMatrixLayout_t x : {a, b, c, d})
        if (x->type != CUDA_R_16BF || x->ld < (int64_t)x->rows) return CUBLAS_STATUS_INVALID_VALUE;
    if (preference->reduction != CUBLASLT_REDUCTION_SCHEME_NONE)
        cuda_emu::stop(
            "cublasLtMatmulAlgoGetHeuristic: only CUBLASLT_REDUCTION_SCHEME_NONE is supported");
    if (!strcmp(cuda_emu::setting("CUDA_EMU_EPILOGUES", "1"), "0"))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *result = {{preference->workspace, {}}, preference->workspace, CUBLAS_STATUS_SUCCESS};
    std::copy(preference->aligned, preference->aligned + 4, result->algo.aligned);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t p, const void *alpha,
                                     const void *a, cublasLtMatrixLayout_t la, const void *b,
                                     cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                                     cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                                     const cublasLtMatmulAlgo_t *algo, void *workspace,
                                     size_t workspace_bytes, cudaStream_t stream) {
    cublasStatus_t s = cuda_emu::blas_call();
    if (s) return s;
    int m = (int)ld->rows, n = (int)ld->cols, k = (int)(p->op_a ? la->rows : la->cols);
    bool gelu = p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX;
    bool dgelu = p->epilogue == CUBLASLT_EPILOGUE_DGELU;
    const void *pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)pointers[i] % algo->aligned[i]) return CUBLAS_STATUS_INVALID_VALUE;
    if (!cuda_emu_known(stream) || c != d || lc != ld || (int)(p->op_a ? la->cols : la->rows) != m
        || (int)(p->op_b ? lb->rows : lb->cols) != n || (int)(p->op_b ? lb->cols : lb->rows) != k
        || !(gelu || dgelu))
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((la->ld | lb->ld | ld->ld) % 8) return CUBLAS_STATUS_NOT_SUPPORTED;    // 16 bytes
    if (p->aux_ld % 8 || p->aux_ld < m || (uintptr_t)p->aux % 16)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (workspace_bytes < algo->workspace || (uintptr_t)workspace % 16
        || !cuda_emu::on_device(workspace, workspace_bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    cuda_emu::check_matrix("aux", p->aux, ld->type, (int)p->aux_ld, m, n);
    return cuda_emu::multiply(
        {(void *)a, la->type, (int)la->ld, (cublasOperation_t)p->op_a},
        {(void *)b, lb->type, (int)lb->ld, (cublasOperation_t)p->op_b},
        {d, ld->type, (int)ld->ld, CUBLAS_OP_N}, m, n, k, *(const float *)alpha,
        *(const float *)beta,
        cuda_emu::gelu_of({p->aux, ld->type, (int)p->aux_ld, CUBLAS_OP_N}, dgelu));
}

#endif

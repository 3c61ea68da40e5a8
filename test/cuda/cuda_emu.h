// cuda_emu.h: stands in for what train_gpt.cu uses of CUDA, so that g++ alone builds and runs it on
// the CPU, to test it:
//     g++ -std=c++17 -O3 -rdynamic -DCUDA_EMU -x c++ train_gpt.cu
// It is slow, and stricter than a GPU. Whatever is not here does not compile; a mistake that only
// shows in a run stops the program with one line that names the kernel, the block and the thread.
//
// What there is
//   Kernels: __global__ functions without `static`, started by cudaLaunchKernelEx; threadIdx,
//     blockIdx, blockDim, gridDim, warpSize; __shared__ arrays; __syncthreads; __syncwarp, the four
//     shuffles, votes (__ballot_sync) and __reduce_add_sync by whole warps; atomicAdd and the other
//     atomics; float4 and its like; __ldg; rsqrtf, __expf and their like, more exact than a GPU's;
//     bf16 as a format to store numbers in; the instructions of lib/gpu.h (ldmatrix,
//     mma.m16n8k16, ex2); cp.async.
//   Host: device and pinned memory, copies, one stream, events, graphs captured from the stream,
//     cuBLASLt's products in float and bf16.
// What there is not: kernel<<<grid, block>>>, dynamic and constant memory, masks of some lanes,
//   cooperative groups, half, textures, inline assembly.
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
//     work in a capture that cannot be captured; products that reach outside of an allocation, or
//     use the algorithm of another problem; addresses that ldmatrix and cp.async refuse.
// What it pretends: CUDA_EMU_DEVICES=0 no device, =old a driver that is too old;
// CUDA_EMU_MEMORY=bytes of the device (default 8 GiB); CUDA_EMU_TAKEN=bytes of them that another
// program holds (default 0); CUDA_EMU_CAPABILITY=its compute capability (default 90: 9.0);
// CUDA_EMU_PTX=the PTX version that kernels were built for (default 80); CUDA_EMU_FAIL=n the n-th
// call to CUDA or cuBLASLt returns an error.
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
#include <array>
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
// Before each _longjmp of libc AddressSanitizer clears its notes on the whole stack, which takes
// ten times as long as all the rest; of the compiler's own it knows nothing.
#define CUDA_EMU_SWITCHES __attribute__((noinline, no_sanitize_address))
#define _setjmp(context) __builtin_setjmp((void **)(context))
#define _longjmp(context, value) __builtin_longjmp((void **)(context), value)
#else
#define CUDA_EMU_ASAN(statement)
#define CUDA_EMU_SWITCHES __attribute__((noinline))
#endif

// ---------------------------------------------------------------------------
// Words of the language

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
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
struct int3 { int x, y, z; };
struct float3 { float x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
namespace cuda_emu { static int warp_size = 32; }
static const int &warpSize = cuda_emu::warp_size;    // nvcc too refuses float x[warpSize]

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
CUDA_EMU_SWITCHES inline void leave() {
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
CUDA_EMU_SWITCHES inline void resume(int thread) {
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

inline int lane() { return (int)(current - threads) % WARP; }

// A shuffle within groups of `width` lanes, as the PTX ISA defines shfl.sync. source(lane, start):
// the lane that is read, for a group whose first lane is start. A lane reads itself where that is
// past the group's end or, if up is true, before its start.
template <typename T, typename Source>
T shuffle(const char *name, unsigned mask, T value, int width, bool up, Source source, Here here) {
    static_assert(std::is_arithmetic<T>::value, "shuffles of this type are not supported");
    if (width < 1 || width > WARP || (width & (width - 1)))
        stop("%s of line %d: width %d; it must be 1, 2, 4, 8, 16 or 32", name, here.line, width);
    Words words = {};
    memcpy(&words, &value, sizeof value);
    const Words *given = exchange(name, mask, words, here);
    int start = lane() / width * width, from = source(lane(), start);
    if (from >= start + width || (up && from < start)) from = lane();
    memcpy(&value, &given[from], sizeof value);
    return value;
}

inline int distance(const char *name, unsigned lanes, Here here) {
    if (lanes >= WARP) stop("%s of line %d by %u lanes; there are 32", name, here.line, lanes);
    return (int)lanes;
}

// All lanes' values folded into one by f
template <typename T, typename F>
T fold(const char *name, unsigned mask, T value, F f, Here here) {
    Words words = {};
    memcpy(&words, &value, sizeof value);
    const Words *given = exchange(name, mask, words, here);
    T all;
    memcpy(&all, &given[0], sizeof all);
    for (int i = 1; i < WARP; i++) {
        memcpy(&value, &given[i], sizeof value);
        all = f(all, value);
    }
    return all;
}

inline unsigned ballot(const char *name, unsigned mask, bool vote, Here here) {
    unsigned mine = vote ? 1u << lane() : 0;
    return fold(name, mask, mine, [](unsigned a, unsigned b) { return a | b; }, here);
}

// *p = f(*p); returns what *p was. Threads run one after another, so that nobody comes between.
template <typename T, typename F> T atomic(T *p, F f) {
    static_assert(sizeof(T) >= 4 && std::is_arithmetic<T>::value,
                  "atomics of this type are not supported");
    T old = *p;
    *p = f(old);
    return old;
}
template <typename T> struct same { typedef T type; };

}}    // namespace cuda_emu

inline void __syncthreads(cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::wait(cuda_emu::WHOLE_BLOCK, "__syncthreads", here);
}
inline void __syncwarp(unsigned mask = 0xffffffff, cuda_emu::Here here = cuda_emu::Here::at()) {
    cuda_emu::exchange("__syncwarp", mask, {}, here);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_emu::Here here = cuda_emu::Here::at()) {
    auto from = [=](int, int start) { return start + (source & (width - 1)); };
    return cuda_emu::shuffle("__shfl_sync", mask, value, width, false, from, here);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                 cuda_emu::Here here = cuda_emu::Here::at()) {
    int by = cuda_emu::distance("__shfl_up_sync", lanes, here);
    auto from = [=](int lane, int) { return lane - by; };
    return cuda_emu::shuffle("__shfl_up_sync", mask, value, width, true, from, here);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                   cuda_emu::Here here = cuda_emu::Here::at()) {
    int by = cuda_emu::distance("__shfl_down_sync", lanes, here);
    auto from = [=](int lane, int) { return lane + by; };
    return cuda_emu::shuffle("__shfl_down_sync", mask, value, width, false, from, here);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_emu::Here here = cuda_emu::Here::at()) {
    int by = cuda_emu::distance("__shfl_xor_sync", (unsigned)bits, here);
    auto from = [=](int lane, int) { return lane ^ by; };
    return cuda_emu::shuffle("__shfl_xor_sync", mask, value, width, false, from, here);
}
inline unsigned __ballot_sync(unsigned mask, int vote,
                              cuda_emu::Here here = cuda_emu::Here::at()) {
    return cuda_emu::ballot("__ballot_sync", mask, vote, here);
}
inline int __any_sync(unsigned mask, int vote, cuda_emu::Here here = cuda_emu::Here::at()) {
    return cuda_emu::ballot("__any_sync", mask, vote, here) != 0;
}
inline int __all_sync(unsigned mask, int vote, cuda_emu::Here here = cuda_emu::Here::at()) {
    return cuda_emu::ballot("__all_sync", mask, vote, here) == 0xffffffff;
}
// of int and unsigned, as on a GPU
template <typename T>
T __reduce_add_sync(unsigned mask, T x, cuda_emu::Here here = cuda_emu::Here::at()) {
    static_assert(std::is_integral<T>::value && sizeof(T) == 4, "it takes int or unsigned");
    auto add = [](T a, T b) { return (T)((unsigned)a + (unsigned)b); };
    return cuda_emu::fold("__reduce_add_sync", mask, x, add, here);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T x, cuda_emu::Here here = cuda_emu::Here::at()) {
    static_assert(std::is_integral<T>::value && sizeof(T) == 4, "it takes int or unsigned");
    return cuda_emu::fold("__reduce_max_sync", mask, x, [](T a, T b) { return std::max(a, b); },
                          here);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T x, cuda_emu::Here here = cuda_emu::Here::at()) {
    static_assert(std::is_integral<T>::value && sizeof(T) == 4, "it takes int or unsigned");
    return cuda_emu::fold("__reduce_min_sync", mask, x, [](T a, T b) { return std::min(a, b); },
                          here);
}
// needs to know which lanes are at the same instruction: the fibers do not
__attribute__((error("the stand-in has no __activemask; all 32 lanes are 0xffffffff")))
unsigned __activemask();

template <typename T> T atomicAdd(T *p, typename cuda_emu::same<T>::type x) {
    return cuda_emu::atomic(p, [=](T old) { return (T)(old + x); });
}
template <typename T> T atomicSub(T *p, typename cuda_emu::same<T>::type x) {
    static_assert(sizeof(T) == 4 && std::is_integral<T>::value, "atomicSub takes int or unsigned");
    return cuda_emu::atomic(p, [=](T old) { return (T)(old - x); });
}
template <typename T> T atomicMax(T *p, typename cuda_emu::same<T>::type x) {
    static_assert(std::is_integral<T>::value, "atomicMax takes whole numbers");
    return cuda_emu::atomic(p, [=](T old) { return std::max(old, x); });
}
template <typename T> T atomicMin(T *p, typename cuda_emu::same<T>::type x) {
    static_assert(std::is_integral<T>::value, "atomicMin takes whole numbers");
    return cuda_emu::atomic(p, [=](T old) { return std::min(old, x); });
}
template <typename T> T atomicExch(T *p, typename cuda_emu::same<T>::type x) {
    return cuda_emu::atomic(p, [=](T) { return x; });
}
template <typename T>
T atomicCAS(T *p, typename cuda_emu::same<T>::type expected, typename cuda_emu::same<T>::type x) {
    static_assert(std::is_integral<T>::value, "atomicCAS takes whole numbers");
    return cuda_emu::atomic(p, [=](T old) { return old == expected ? x : old; });
}

// ---------------------------------------------------------------------------
// Numbers. __expf and its like are as exact as the CPU's, not rounded as on a GPU.

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline unsigned __float_as_uint(float x) { return (unsigned)__float_as_int(x); }

inline float rsqrtf(float x) { return (float)(1 / sqrt((double)x)); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }    // NaN becomes 0
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// never fused with another operation
inline float __fmul_rn(float x, float y) {
    volatile float product = x * y;
    return product;
}
inline float __fadd_rn(float x, float y) {
    volatile float sum = x + y;
    return sum;
}
inline float __fsub_rn(float x, float y) { return __fadd_rn(x, -y); }

// of whole numbers, or of floats; a NaN loses
template <typename A, typename B> constexpr typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    static_assert(std::is_floating_point<A>::value == std::is_floating_point<B>::value,
                  "max of a whole number and a float: nvcc asks for a cast");
    return (T)a > (T)b || b != b ? (T)a : (T)b;
}
template <typename A, typename B> constexpr typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    static_assert(std::is_floating_point<A>::value == std::is_floating_point<B>::value,
                  "min of a whole number and a float: nvcc asks for a cast");
    return (T)a < (T)b || b != b ? (T)a : (T)b;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

// loads and stores that a GPU caches in other ways
template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldcs(const T *p) { return *p; }
template <typename T> T __ldcg(const T *p) { return *p; }
template <typename T> void __stcs(T *p, typename cuda_emu::same<T>::type x) { *p = x; }
template <typename T> void __stcg(T *p, typename cuda_emu::same<T>::type x) { *p = x; }

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
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}

// ---------------------------------------------------------------------------
// The instructions of lib/gpu.h, lane by lane as the PTX ISA documents them


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
// all streams: there is one, and the NULL stream waits for it anyway
cuda_emu_stream queue;
cuda_emu_graph *capture;
cudaStream_t the_stream;
int num_calls;
pid_t process;

inline size_t device_bytes() {
    return (size_t)strtoull(setting("CUDA_EMU_MEMORY", "8589934592"), NULL, 10);
}
inline size_t taken() { return (size_t)strtoull(setting("CUDA_EMU_TAKEN", "0"), NULL, 10); }
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
#define CUDA_EMU_CALL(waits) \
    do { \
        cudaError_t e = cuda_emu::call(waits); \
        if (e) return e; \
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
        return cudaErrorMemoryAllocation;
    size_t room = (size + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
    char *block = (char *)aligned_alloc(CUDA_ALIGN, room + 2 * REDZONE);
    if (!block) return cudaErrorMemoryAllocation;
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
    if (a == allocations.end() || a->second.device != device) return cudaErrorInvalidValue;
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

inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    CUDA_EMU_CALL(false);
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    CUDA_EMU_CALL(false);
    return device ? cudaErrorInvalidDevice : cudaSuccess;
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
    if (device) return cudaErrorInvalidDevice;
    *p = {"stand-in for CUDA on the CPU", cuda_emu::device_bytes(), cuda_emu::capability() / 10,
          cuda_emu::capability() % 10};
    return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    CUDA_EMU_CALL(false);
    *total = cuda_emu::device_bytes();
    *available = *total - std::min(*total, cuda_emu::used + cuda_emu::taken());
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
    if (!cuda_emu_known(stream)) return cudaErrorInvalidResourceHandle;
    cuda_emu::synchronize();
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(NULL); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    CUDA_EMU_CALL(true);
    if (!stream || stream != cuda_emu::the_stream)
        return cudaErrorInvalidResourceHandle;
    cuda_emu::synchronize();
    delete stream;
    cuda_emu::the_stream = NULL;
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream = NULL) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu_known(stream)) return cudaErrorInvalidResourceHandle;
    if (size && !cuda_emu::on_device(p, size)) return cudaErrorInvalidValue;
    cuda_emu::enqueue([=] { memset(p, value, size); });
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void *p, int value, size_t size) {
    return cudaMemsetAsync(p, value, size);
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, cudaMemcpyKind kind,
                                   cudaStream_t stream = NULL) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu_known(stream)) return cudaErrorInvalidResourceHandle;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!size) return cudaSuccess;
    if (to_device != cuda_emu::on_device(to, size)
        || from_device != cuda_emu::on_device(from, size))
        return cudaErrorInvalidValue;
    bool pageable = (!to_device && !cuda_emu::find(to, size))
                    || (!from_device && !cuda_emu::find(from, size));
    if (pageable && cuda_emu::capture) return cudaErrorStreamCaptureUnsupported;
    // as CUDA does: the copy from it is made at once, the rest later
    if (pageable && !from_device) {
        std::string staged((const char *)from, size);
        cuda_emu::enqueue([=] { memcpy(to, staged.data(), size); });
    } else cuda_emu::enqueue([=] { memmove(to, from, size); });
    if (pageable && from_device) cuda_emu::synchronize();
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind kind) {
    if (cuda_emu::capture) return cudaErrorStreamCaptureUnsupported;
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
    if (!cuda_emu_known(stream)) return cudaErrorInvalidResourceHandle;
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
        return cudaErrorInvalidResourceHandle;
    if (begin->pending || end->pending) return cudaErrorNotReady;
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
        return cudaErrorStreamCaptureUnsupported;
    cuda_emu::capture = new cuda_emu_graph;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    CUDA_EMU_CALL(false);
    if (!cuda_emu::capture) return cudaErrorInvalidValue;
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
    if (!cuda_emu_known(stream)) return cudaErrorInvalidResourceHandle;
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

struct cudaFuncAttributes { int ptxVersion, binaryVersion; };
// as the linker knows it
inline cudaError_t cudaFuncGetName(const char **name, const void *function) {
    CUDA_EMU_CALL(false);
    Dl_info info;
    if (!dladdr(function, &info) || !info.dli_sname) return cudaErrorInvalidValue;
    *name = info.dli_sname;
    return cudaSuccess;
}
template <typename T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, T *) {
    CUDA_EMU_CALL(false);
    *a = {atoi(cuda_emu::setting("CUDA_EMU_PTX", "80")), cuda_emu::capability()};
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
    if (!cuda_emu_known(config->stream)) return cudaErrorInvalidResourceHandle;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535
        || !block.x || !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64
        || block.x * block.y * block.z > cuda_emu::MAX_THREADS)
        return cudaErrorInvalidConfiguration;
    std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
    cuda_emu::check_arguments(address, values, std::index_sequence_for<Parameters...>());
    cuda_emu::enqueue([=] {
        cuda_emu::body = [&] { std::apply(kernel, values); };
        cuda_emu::run_grid(address, grid, block);
    });
    return cudaSuccess;
}

// ---------------------------------------------------------------------------
// cuBLASLt: D = alpha op(A) op(B) + beta C for matrices that are stored by columns, in Fortran's
// way. As NVIDIA documents it, and no more than train_gpt.cu needs: one order of sums, all settings
// made.

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};
// sums may be split, in parts that are added in the type of the computation, in a fixed order
enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };

typedef struct cuda_emu_lt {} *cublasLtHandle_t;
typedef struct cuda_emu_product {
    uint32_t op_a, op_b;
} *cublasLtMatmulDesc_t;
typedef struct cuda_emu_layout {
    cudaDataType_t type;
    int64_t rows, cols, ld;
} *cublasLtMatrixLayout_t;
typedef struct cuda_emu_preference {
    uint64_t workspace;
    uint32_t reduction, aligned[4];
} *cublasLtMatmulPreference_t;
struct cublasLtMatmulAlgo_t {
    // The problem that it was asked for: ops; then type, rows, cols and ld of A, B, C and D.
    std::array<int64_t, 18> problem;
    uint64_t workspace;
    uint32_t aligned[4];
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
};

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

namespace cuda_emu {
namespace {

inline cublasStatus_t blas_call() {
    if (planned_failure()) return CUBLAS_STATUS_EXECUTION_FAILED;
    return process == getpid() && !strcmp(devices(), "1") ? CUBLAS_STATUS_SUCCESS
                                                          : CUBLAS_STATUS_NOT_INITIALIZED;
}
template <typename T> cublasStatus_t blas_create(T **out, T value) {
    cublasStatus_t s = blas_call();
    if (!s) *out = new T(value);
    return s;
}
template <typename T> cublasStatus_t blas_destroy(T *x) {
    cublasStatus_t s = blas_call();
    if (!s) delete x;
    return s;
}
template <typename T> cublasStatus_t blas_set(T &field, const void *value, size_t size) {
    if (size != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&field, value, size);
    return blas_call();
}

inline int64_t size_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

struct Matrix : cuda_emu_layout {
    void *data;

    float read(int64_t row, int64_t col) const {
        int64_t at = col * ld + row;
        return type == CUDA_R_32F ? ((const float *)data)[at]
                                  : (float)((const __nv_bfloat16 *)data)[at];
    }
    void write(int64_t row, int64_t col, float value) const {
        int64_t at = col * ld + row;
        if (type == CUDA_R_32F) ((float *)data)[at] = value;
        else ((__nv_bfloat16 *)data)[at] = __nv_bfloat16(value);
    }
    // op(this), (rows,cols), in float, by columns
    std::vector<float> columns(bool transposed) const {
        std::vector<float> out((size_t)(rows * cols));
        float *to = out.data();
        for (int64_t j = 0; j < (transposed ? rows : cols); j++)
            for (int64_t i = 0; i < (transposed ? cols : rows); i++)
                *to++ = transposed ? read(j, i) : read(i, j);
        return out;
    }
    void must_be_allocated(const char *name) const {
        if (!on_device(data, (size_t)((ld * (cols - 1) + rows) * size_of(type))))
            stop("cublasLtMatmul: %s, %ld x %ld with a leading dimension of %ld, is not inside of"
                 " an allocation", name, (long)rows, (long)cols, (long)ld);
    }
};

// Queues d (m,n) = alpha op(a) (m,k) op(b) (k,n) + beta c. c is not read where beta is 0.
inline void multiply(cuda_emu_product p, float alpha, Matrix a, Matrix b, float beta, Matrix c,
                     Matrix d) {
    if (beta != 0 && beta != 1) stop("cublasLtMatmul: beta is %g; it must be 0 or 1", beta);
    a.must_be_allocated("a");
    b.must_be_allocated("b");
    if (beta != 0) c.must_be_allocated("c");
    d.must_be_allocated("d");
    enqueue([=] {
        std::vector<float> x = a.columns(p.op_a), y = b.columns(p.op_b), sum((size_t)d.rows);
        size_t m = sum.size(), k = x.size() / m;
        for (int64_t j = 0; j < d.cols; j++) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (size_t l = 0; l < k; l++) {
                const float *column = &x[l * m];
                float factor = y[(size_t)j * k + l];
                for (size_t i = 0; i < m; i++) sum[i] += column[i] * factor;
            }
            for (int64_t i = 0; i < d.rows; i++) {
                float value = alpha * sum[(size_t)i];
                if (beta != 0) value += beta * c.read(i, j);
                d.write(i, j, value);
            }
        }
    });
}

// Writes down the problem, and says whether cuBLASLt solves it.
inline cublasStatus_t describe(std::array<int64_t, 18> *problem, cublasLtMatmulDesc_t p,
                               const std::array<cublasLtMatrixLayout_t, 4> &layouts) {
    auto [a, b, c, d] = layouts;
    *problem = {p->op_a, p->op_b};
    int64_t *next = &(*problem)[2];
    for (cublasLtMatrixLayout_t x : layouts) {
        for (int64_t value : {(int64_t)x->type, x->rows, x->cols, x->ld}) *next++ = value;
        if (x->rows < 1 || x->cols < 1 || x->ld < x->rows) return CUBLAS_STATUS_INVALID_VALUE;
        // 16 bytes: else the tensor cores are not used, or nothing is
        if (x->ld * size_of(x->type) % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    bool c_is_d = std::equal(next - 4, next, next - 8);
    if (!c_is_d || (p->op_a ? a->cols : a->rows) != d->rows
        || (p->op_b ? b->rows : b->cols) != d->cols
        || (p->op_a ? a->rows : a->cols) != (p->op_b ? b->cols : b->rows))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a->type != b->type || (a->type == CUDA_R_32F && d->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

}}    // namespace cuda_emu

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    return cuda_emu::blas_create(handle, {});
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return cuda_emu::blas_destroy(handle);
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        cuda_emu::stop("cublasLtMatmulDescCreate: only CUBLAS_COMPUTE_32F with factors of"
                       " CUDA_R_32F is supported");
    return cuda_emu::blas_create(p, {CUBLAS_OP_N, CUBLAS_OP_N});
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) {
    return cuda_emu::blas_destroy(p);
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *x, cudaDataType_t type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    return cuda_emu::blas_create(x, {type, (int64_t)rows, (int64_t)cols, ld});
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t x) {
    return cuda_emu::blas_destroy(x);
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return cuda_emu::blas_create(p, {0, 0xffffffff, {256, 256, 256, 256}});
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return cuda_emu::blas_destroy(p);
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t p,
                                                     cublasLtMatmulDescAttributes_t name,
                                                     const void *value, size_t size) {
    switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return cuda_emu::blas_set(p->op_a, value, size);
    case CUBLASLT_MATMUL_DESC_TRANSB: return cuda_emu::blas_set(p->op_b, value, size);
    }
    cuda_emu::stop("cublasLtMatmulDescSetAttribute: attribute %d; only TRANSA and TRANSB are"
                   " supported", (int)name);
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name, const void *value,
    size_t size) {
    switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return cuda_emu::blas_set(p->workspace, value, size);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return cuda_emu::blas_set(p->reduction, value, size);
    default:
        return cuda_emu::blas_set(p->aligned[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                                  value, size);
    }
}

// There is one algorithm or none. It serves this problem alone, and relies on the preference.
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int, cublasLtMatmulHeuristicResult_t *result,
    int *count) {
    cublasStatus_t s = handle ? cuda_emu::blas_call() : CUBLAS_STATUS_NOT_INITIALIZED;
    *count = 0;
    if (!s) s = cuda_emu::describe(&result->algo.problem, p, {a, b, c, d});
    if (s) return s;
    if (preference->reduction != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
        cuda_emu::stop(
            "cublasLtMatmulAlgoGetHeuristic: only CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE is"
            " supported");
    for (uint32_t bytes : preference->aligned) if (bytes % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    std::copy(preference->aligned, preference->aligned + 4, result->algo.aligned);
    result->algo.workspace = result->workspaceSize = preference->workspace;
    result->state = CUBLAS_STATUS_SUCCESS;
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t p,
                                     const void *alpha, const void *a, cublasLtMatrixLayout_t la,
                                     const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                                     const void *c, cublasLtMatrixLayout_t lc, void *d,
                                     cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo,
                                     void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    std::array<int64_t, 18> problem;
    cublasStatus_t s = handle ? cuda_emu::blas_call() : CUBLAS_STATUS_NOT_INITIALIZED;
    if (!s) s = cuda_emu::describe(&problem, p, {la, lb, lc, ld});
    if (s) return s;
    if (!algo || algo->problem != problem || !cuda_emu_known(stream))
        return CUBLAS_STATUS_INVALID_VALUE;
    const void *pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)pointers[i] % algo->aligned[i]) return CUBLAS_STATUS_INVALID_VALUE;
    if (workspace_bytes < algo->workspace || (uintptr_t)workspace % 256
        || !cuda_emu::on_device(workspace, workspace_bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    cuda_emu::multiply(*p, *(const float *)alpha, {*la, (void *)a}, {*lb, (void *)b},
                       *(const float *)beta, {*lc, (void *)c}, {*ld, d});
    return CUBLAS_STATUS_SUCCESS;
}

#endif

// gpu.h: what train_gpt.cu needs of a GPU beside the layers.
#ifndef GPU_H
#define GPU_H

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

#endif

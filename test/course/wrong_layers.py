"""Wrong solutions of the exercises that are a layer or a kernel, as in wrong_interventions.py, and
right ones of other kinds (right_..., which lose nothing)."""

from wrong_interventions import wrong

BACK_V = "        const real *v = qkv + first * 3 * C + 2 * C + channel;\n        real *dq = dqkv"
BACK_LOOP = (
    "    #pragma omp taskloop\n    for (int head = 0; head < B * NH; head++) {\n"
    "        size_t first = (size_t)(head / NH) * T, channel = (size_t)(head % NH) * HS;\n"
    "        const real *q = qk + first * 2 * C + channel, *k = q + C;\n" + BACK_V
)
# The four loops of the handout in place of a task of blocks, with a helper and arrays on the stack
BACK_LOOPS = """        for (int i = 0; i < T; i++)
            for (int c = 0; c < HS; c++)
                for (int part = 0; part < 3; part++)
                    dqkv[(first + i) * 3 * C + part * C + channel + c] = 0;
        for (int i = 0; i < T; i++) {
            const real *doi = dout + (first + i) * C + channel;
            const real *oi = out + (first + i) * C + channel;
            const real *stats = softmax + 2 * ((size_t)head * T + i);
            real p[T], dp[T], dot = 0;
            for (int c = 0; c < HS; c++) dot += doi[c] * oi[c];
            for (int j = 0; j <= i; j++) {
                real score = 0;
                dp[j] = 0;
                for (int c = 0; c < HS; c++) {
                    score += q[i * 2 * C + c] * k[j * 2 * C + c];
                    dp[j] += doi[c] * qkv[(first + j) * 3 * C + 2 * C + channel + c];
                }
                p[j] = exp(scale * score - stats[0]) * stats[1];
                real ds = scale * p[j] * (dp[j] - dot), *to = dqkv + first * 3 * C + channel;
                for (int c = 0; c < HS; c++) {
                    to[i * 3 * C + c] += ds * k[j * 2 * C + c];
                    to[j * 3 * C + C + c] += ds * q[i * 2 * C + c];
                    to[j * 3 * C + 2 * C + c] += p[j] * doi[c];
                }
            }
        }
        continue;
"""
NOT_A_NUMBER = "not a number|not written"
NORM_DX = "dx[j] = (add ? add[j] : 0) + rstd * (g[j] - mean_g - n[j] * mean_gn);"
SAMPLE_H = '#include "lib/sample.h"    // sample_text\n'
HELPERS = "get put model init update attention layernorm products layer some compute".split()
CHUNKS = "    int chunks = ceil_div(rows, CHUNK);\n"
CHUNK_LOOP = (
    "    #pragma omp taskloop\n    for (int chunk = 0; chunk < chunks; chunk++) {\n"
    "        real *dw = partial + (size_t)chunk * 3 * C;\n"
)
CHUNK_DW = "        real *dw = partial + (size_t)chunk * 3 * C;\n"
GELU_LOOP = (
    "static void gelu_forward(real *out, real *slope, const real *inp, int rows, int C) {\n"
    "    #pragma omp taskloop\n"
)
KAPPA_LOOP = " " * 26 + "int NH, int HS) {\n    #pragma omp taskloop\n"
SUM_LOOP = (
    "static double sum_squares(const real *x, size_t n, double *sums) {\n"
    "    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;\n    double total = 0;\n"
    "    #pragma omp taskloop\n    for (size_t chunk = 0; chunk < chunks; chunk++) {\n"
    "        size_t from = chunk * SUM_CHUNK, end = n - from < SUM_CHUNK ? n : from + SUM_CHUNK;\n"
)
SUM_EACH = "(size_t)omp_get_num_threads(), each = (n + chunks - 1) / chunks;"
SUM_LAST = "n < from + each ? n : from + each"
SUM_SQUARE = "        for (size_t i = from; i < end; i++) sum += (double)x[i] * (double)x[i];\n"
SUM_END = (
    SUM_SQUARE + "        sums[chunk] = sum;\n    }\n"
    "    for (size_t chunk = 0; chunk < chunks; chunk++) total += sums[chunk];\n"
)
SUM_ATOMIC = SUM_SQUARE + "        #pragma omp atomic\n        total += sum;\n    }\n"
NORM_START = (
    "residual_layernorm_forward_kernel(act *out, act *x, real *mean, real *rstd, const act *inp,\n"
    "                                  const act *branch, const act *weight, int rows, int C) {\n"
    "    int row = blockIdx.x * blockDim.y + threadIdx.y;\n"
)
GELU_BOUND = (
    "    if (at >= n) return;\n    float x[W], slope;\n    load(x, inp + at);\n"
    "    for (int i = 0; i < W; i++) x[i] = gelu(x[i], &slope);\n"
)
SQUARES = (
    "            y[part][i] = c < C ? y[part][i] - m : 0;\n"
    "            variance += y[part][i] * y[part][i];\n"
)
MEAN, VARIANCE = "    m = row_sum(m) / C;\n", "    variance = row_sum(variance) / C;\n"
RSTD = (
    "    // NaN if the squares overflow, as in train_gpt.c\n"
    "    float r = 1 / sqrtf(variance + 1e-6f) + 0 * variance;\n"
)
STORE_X = "store(x + (size_t)row * C + c, y[part], row < rows && c < C && branch);"
STORE_MEAN = (
    "    if (threadIdx.x == 0 && row < rows) {\n"
    "        mean[row] = m;\n        rstd[row] = r;\n    }\n"
    "}\n\nstatic void residual_layernorm_forward("
)
SHUFFLES = """    __shared__ float sums{n}[32];
    int thread{n} = threadIdx.y * blockDim.x + threadIdx.x;
    for (int lanes = warpSize / 2; lanes > 0; lanes /= 2)
        {x} += __shfl_down_sync(0xffffffff, {x}, lanes);
    if (thread{n} % warpSize == 0) sums{n}[thread{n} / warpSize] = {x};
    __syncthreads();
    {x} = 0;
    for (int warp = 0; warp < (int)blockDim.x / warpSize; warp++)
        {x} += sums{n}[threadIdx.y * blockDim.x / warpSize + warp];
    {x} /= C;
"""
ATOMICS = """    __shared__ float sums{n}[32];
    if (threadIdx.x == 0) sums{n}[threadIdx.y] = 0;
    __syncthreads();
    atomicAdd(&sums{n}[threadIdx.y], {x});
    __syncthreads();
    {x} = sums{n}[threadIdx.y] / C;
"""


def cuda(lost, *patches, **more):
    return wrong(lost, *patches, file="train_gpt.cu", **more)


def by_hand(text):
    return (MEAN, text.format(n=1, x="m")), (VARIANCE, text.format(n=2, x="variance"))


WRONG = {
    "attention_backward": {
        "no_scale": wrong(
            [1, 2, 3], ("scale * p[j] * (dp[j] - dot)", "p[j] * (dp[j] - dot)"), says="missing"
        ),
        "scale_twice": wrong(
            [1, 2, 3],
            ("scale * p[j] * (dp[j] - dot)", "scale * scale * p[j] * (dp[j] - dot)"),
            says="there twice",
        ),
        "not_through_the_sum": wrong(
            [1, 2, 3], ("(dp[j] - dot)", "dp[j]"), says="normalisation is left out"
        ),
        "no_p": wrong(
            [1, 2, 3],
            ("scale * p[j] * (dp[j] - dot)", "scale * (dp[j] - dot)"),
            either=[4],
            says="multiplied by p",
        ),
        "not_divided": wrong(
            [0, 1, 2, 3], ("+ mask[j] - top) * inverse", "+ mask[j] - top)"), says="not divided"
        ),
        "not_masked": wrong(
            [0, 1, 2, 3],
            ("p[j] = exponential(scale * p[j] + mask[j] - top)", "p[j] = exp(scale * p[j] - top)"),
            either=[4],
            says="after the query",
        ),
        "dv_of_ds": wrong(
            [0, 2, 3],
            ("transposed(s.p, cols), matrix(doi", "transposed(s.dp, cols), matrix(doi"),
            says="made of ds",
        ),
        "own_scale": wrong(
            [2, 3], (BACK_V, "scale = 1 / sqrt((real)HS);\n" + BACK_V), says="the argument"
        ),
        "right_plain_loops": wrong([], (BACK_V, BACK_LOOPS + BACK_V)),
        "blocks_overwrite": wrong([2], ("*dk_add = i0 == last ? NULL : dk,", "*dk_add = NULL,")),
        "queries_of_the_product": wrong(
            [0, 1, 2, 3],
            (BACK_V, "q = qkv + first * 3 * C + channel;\n" + BACK_V),
        ),
        "keys_of_another_head": wrong([2, 3], (BACK_V, "k = qk + first * 2 * C + C;\n" + BACK_V)),
        "rows_of_2C": wrong(
            [1, 2, 3],
            (
                "multiply(dq + (size_t)i0 * 3 * C, NULL, 3 * C,",
                "multiply(dq + (size_t)i0 * 2 * C, NULL, 2 * C,",
            ),
            either=[4],
            says=NOT_A_NUMBER,
        ),
        "rows_of_HS": wrong(
            [2, 3],
            ("matrix(doi, C), matrix(s.v_t, T)", "matrix(doi, HS), matrix(s.v_t, T)"),
            either=[4],
        ),
        "adds_to_what_was_there": wrong(
            [1, 2, 3, 4],
            (
                "multiply(dq + (size_t)i0 * 3 * C, NULL, 3 * C,",
                "multiply(dq + (size_t)i0 * 3 * C, dq + (size_t)i0 * 3 * C, 3 * C,",
            ),
            says=NOT_A_NUMBER,
        ),
        "one_scratch_for_all_threads": wrong(
            [0, 1, 2],
            (
                BACK_V,
                "scratch -= omp_get_thread_num() * attention_scratch_size(T, HS);\n" + BACK_V,
            ),
            either=[3, 4],
            says="one scratch",
        ),
        "last_block_is_empty": wrong([2, 4], ("last = (T - 1) / block", "last = T / block")),
    },
    "layernorm": {
        "mean_is_constant": wrong(
            [1, 2, 3, 4], ("g[j] - mean_g - n[j]", "g[j] - n[j]"), says="mean depends"
        ),
        "variance_is_constant": wrong(
            [1, 2, 3, 4],
            ("(g[j] - mean_g - n[j] * mean_gn)", "(g[j] - mean_g)"),
            says="variance depends",
        ),
        "no_rstd": wrong([1, 2, 3, 4], ("0) + rstd * (g[j]", "0) + (g[j]"), says="but for rstd"),
        "no_weight": wrong(
            [1, 2, 3, 4], ("g[j] = dout[j] * weight[j];", "g[j] = dout[j];"), says="by the weight"
        ),
        "sums": wrong(
            [1, 2, 3, 4],
            ("row_sum(g, C) / C", "row_sum(g, C)"),
            ("row_dot(g, n, C) / C", "row_dot(g, n, C)"),
            says="not divided by C",
        ),
        "weight_of_g": wrong(
            [0, 2, 3, 4],
            ("dweight[j] += dout[j] * n[j];", "dweight[j] += g[j] * n[j];"),
            says="one factor too many",
        ),
        "weight_of_x": wrong(
            [0, 2, 3, 4],
            ("dweight[j] += dout[j] * n[j];", "dweight[j] += dout[j] * x[j];"),
            says="dout . x",
        ),
        "weight_replaced": wrong(
            [0, 2, 3, 4],
            ("dweight[j] += dout[j] * n[j];", "dweight[j] = dout[j] * n[j];"),
            says="replaced",
        ),
        "add_left_out": wrong(
            [2, 3, 4], ("(add ? add[j] : 0) + rstd", "rstd"), either=[5], says="add is left out"
        ),
        "add_is_never_null": wrong([1, 2, 4], ("(add ? add[j] : 0)", "add[j]"), either=[0, 5]),
        "dx_before_dout_is_read": wrong(
            [2],
            (NORM_DX, NORM_DX.replace("g[j] -", "dout[j] * weight[j] -")),
            (
                "    real mean_g = row_sum(g, C) / C;",
                "    dx[0] = 0;\n    real mean_g = row_sum(g, C) / C;",
            ),
            either=[3, 4],
        ),
        "first_chunk_alone": wrong(
            [3, 4],
            (
                "sum_chunks(dweight, partial, (size_t)3 * C, chunks, C);",
                "sum_chunks(dweight, partial, (size_t)3 * C, 1, C);",
            ),
        ),
        "chunks_start_with_anything": wrong(
            [3, 4, 5],
            (CHUNK_DW + "        memset(dw, 0, (size_t)C * sizeof(real));\n", CHUNK_DW),
            says=NOT_A_NUMBER,
        ),
        "past_the_last_row": wrong(
            [3, 4],
            (
                "i < least(rows, (chunk + 1) * CHUNK); i++) {\n            size_t at",
                "i < (chunk + 1) * CHUNK; i++) {\n            size_t at",
            ),
            either=[5],
        ),
        "one_scratch_for_all_chunks": wrong(
            [3],
            ("rstd[i], dw + C, C);", "rstd[i], partial + C, C);"),
            either=[4, 5],
            says="one scratch",
        ),
        "last_chunk_left_out": wrong(
            [3, 4],
            (
                CHUNKS + CHUNK_LOOP,
                CHUNKS.replace("ceil_div(rows, CHUNK)", "rows / CHUNK") + CHUNK_LOOP,
            ),
            either=[5],
        ),
        "right_names_of_helpers": wrong(
            [],
            (
                SAMPLE_H,
                SAMPLE_H
                + "".join(f"static real {name}(real x) {{ return x; }}\n" for name in HELPERS),
            ),
            (NORM_DX, NORM_DX.replace("rstd *", "layernorm(update(rstd)) *")),
        ),
        "right_plain_loops": wrong(
            [],
            (
                "    real mean_g = row_sum(g, C) / C;\n    real mean_gn = row_dot(g, n, C) / C;\n",
                "    real mean_g = 0, mean_gn = 0;\n"
                "    for (int j = 0; j < C; j++) {\n"
                "        mean_g += g[j] / C;\n"
                "        mean_gn += g[j] * n[j] / C;\n"
                "    }\n",
            ),
        ),
    },
    "matmul": {
        "one_buffer_for_all_threads": wrong(
            [0, 1, 2, 3],
            ("static _Thread_local real a_block", "static real a_block"),
            ("static _Thread_local real b_block", "static real b_block"),
        ),
        "no_add_at_edges": wrong(
            [0, 1, 2, 3],
            ("(add ? add[i * ldc + j] : 0) + sum[i][j / VL][j % VL]", "sum[i][j / VL][j % VL]"),
            says="add is left out",
        ),
        "last_rows": wrong(
            [0, 1, 2, 3],
            (
                "for (int i = i0; i < i0 + height; i += MR)",
                "for (int i = i0; i + MR <= i0 + height; i += MR)",
            ),
            says=NOT_A_NUMBER,
        ),
        "long_products": wrong([0, 1, 2, 3], ("k0 += KC, add = out)", "k0 += KC)")),
        "first_block_of_rows": wrong(
            [0, 1, 2, 3],
            (
                "if (pack_a) pack(a_block, flip(part(a, i0, k0))",
                "if (pack_a) pack(a_block, flip(part(a, 0, k0))",
            ),
        ),
        "first_block_of_columns": wrong(
            [0, 1, 2, 3], ("pack(b_block, part(b, k0, j0)", "pack(b_block, part(b, k0, 0)")
        ),
        "rows_without_a_gap": wrong(
            [0, 1, 2, 3],
            ("real *to = out + i * ldc + j;", "real *to = out + i * N + j;"),
        ),
        "whole_vectors_at_edges": wrong(
            [0, 1, 2, 3], ("if (m == MR && n == vectors * VL)", "if (m == MR)")
        ),
        "rows_of_a_are_K_apart": wrong(
            [0, 1, 2, 3],
            (
                "row[i] = a.data + least(i, m - 1) * a.row;",
                "row[i] = a.data + least(i, m - 1) * K;",
            ),
        ),
        "out_is_cleared": wrong(
            [1, 2, 3],
            (
                "    int pack_a = a.col != 1",
                "    for (int i = 0; i < M; i++) memset(out + i * ldc, 0, N * sizeof(real));\n"
                "    int pack_a = a.col != 1",
            ),
            says="add is left out",
        ),
        "add_twice": wrong(
            [0, 1, 2, 3],
            (
                "if (add) value += *(const vector *)(add + i * ldc + w * VL);",
                "if (add) value += 2 * *(const vector *)(add + i * ldc + w * VL);",
            ),
            says="added twice",
        ),
        "past_the_end_of_k": wrong(
            [0, 1, 2, 3], ("int depth = least(KC, K - k0);", "int depth = KC;")
        ),
        "right_without_packing_a": wrong(
            [], ("int pack_a = a.col != 1 && M", "int pack_a = 0 && M"), either=[3]
        ),
    },
    "parallel": {
        "gelu_is_serial": wrong(
            [0],
            (
                GELU_LOOP,
                GELU_LOOP.replace("    #pragma omp taskloop\n", ""),
            ),
        ),
        "products_are_serial": wrong(
            [3, 6],
            ("    #pragma omp taskloop collapse(2) nogroup\n", ""),
            either=[5],
            says="have nothing to do",
        ),
        "rows_of_the_embedding": wrong(
            [1],
            (
                "        for (int i = 0; i < rows; i++)\n"
                "            for (int c = from; c < end; c++)\n"
                "                dwte[(size_t)tokens[i] * C + c] +=",
                "        #pragma omp taskloop\n"
                "        for (int i = 0; i < rows; i++)\n"
                "            for (int c = from; c < end; c++)\n"
                "                dwte[(size_t)tokens[i] * C + c] +=",
            ),
            either=[5, 6],
        ),
        "sums_by_thread": wrong(
            [2, 5, 6],
            (
                SUM_LOOP,
                SUM_LOOP.replace("(n + SUM_CHUNK - 1) / SUM_CHUNK;", SUM_EACH)
                .replace("chunk * SUM_CHUNK", "chunk * each")
                .replace("n - from < SUM_CHUNK ? n : from + SUM_CHUNK", SUM_LAST),
            ),
        ),
        "order_of_the_threads": wrong(
            [2, 5, 6],
            (SUM_LOOP, SUM_LOOP.replace("taskloop", "taskloop shared(total)")),
            (SUM_END, SUM_ATOMIC),
        ),
        "each_task_has_a_copy": wrong([2, 5, 6], (SUM_END, SUM_ATOMIC), says="no task adds"),
        "nobody_waits_for_products": wrong(
            [3, 5, 6],
            (
                "    #pragma omp taskgroup\n    matmul(out, NULL, matrix(inp, IC)",
                "    matmul(out, NULL, matrix(inp, IC)",
            ),
        ),
        "nobody_waits_for_gelu": wrong(
            [0],
            (
                GELU_LOOP,
                GELU_LOOP.replace("taskloop", "taskloop nogroup"),
            ),
            either=[5, 6],
        ),
        "nobody_waits_for_kappa": wrong(
            [4], (KAPPA_LOOP, KAPPA_LOOP.replace("taskloop", "taskloop nogroup"))
        ),
        "one_scratch": wrong(
            [4, 5, 6],
            (
                "s.p = memory + omp_get_thread_num() * attention_scratch_size(T, HS);",
                "s.p = memory;",
            ),
        ),
        "one_scratch_for_all_rows": wrong(
            [4, 5, 6], ("rstd[i], dw + C, C);", "rstd[i], partial + C, C);"), either=[4, 6]
        ),
        "one_partial_sum": wrong(
            [4, 5, 6],
            (
                CHUNK_DW,
                "        real *dw = partial + 0 * (size_t)chunk * 3 * C;\n",
            ),
        ),
        "another_gelu": wrong([5], ("out[j] = x * s;", "out[j] = x * s * (real)1.001;")),
        "right_products_wait": wrong(
            [], ("taskloop collapse(2) nogroup", "taskloop collapse(2)"), either=[6]
        ),
        "right_small_tasks": wrong(
            [], (BACK_LOOP, BACK_LOOP.replace("taskloop", "taskloop grainsize(1)"))
        ),
    },
    "cuda": {
        "half_of_them": cuda(
            [0, 5],
            (
                "for (int i = 0; i < W; i++) x[i] = gelu(x[i], &slope);",
                "for (int i = 0; i < W / 2; i++) x[i] = gelu(x[i], &slope);",
            ),
            says="first half",
        ),
        "no_product_rule": cuda(
            [1, 5],
            ("*slope = s + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * a2);", "*slope = s;"),
            says="product rule",
        ),
        "dout_left_out": cuda([1, 5], ("d[i] *= slope;", "d[i] = slope;"), says="dout is left out"),
        "no_cube": cuda(
            [0, 1, 5],
            ("#define GELU_B (GELU_A * (real)0.044715)", "#define GELU_B (GELU_A * (real)0)"),
            says="is left out",
        ),
        "no_bound": cuda(
            [0], (GELU_BOUND, GELU_BOUND.replace("    if (at >= n) return;\n", "")), either=[5]
        ),
        "overflow": cuda(
            [1],
            (
                "real a = fabsf(x) < 30 ? fabsf(x) : 30;\n    real a2 = a * a;",
                "real a = x, a2 = x * x;",
            ),
            ("real s = (x > 0 ? 1 : e) * inverse", "real s = inverse"),
        ),
        "returns_before_the_sum": cuda(
            [2, 3, 4], (NORM_START, NORM_START + "    if (row >= rows) return;\n"), either=[5]
        ),
        "mean_of_squares": cuda(
            [2, 3, 4, 5],
            (SQUARES, "".join(SQUARES.splitlines(True)[::-1])),
            says="must be squared",
        ),
        "squares_past_the_end": cuda(
            [2, 3, 4, 5], ("y[part][i] = c < C ? y[part][i] - m : 0;", "y[part][i] -= m;")
        ),
        "no_barrier": cuda(
            [2, 3, 4, 5],
            (
                MEAN,
                "    __shared__ float t[1024];\n"
                "    t[threadIdx.y * blockDim.x + threadIdx.x] = m, m = 0;\n"
                "    for (unsigned i = 0; i < blockDim.x; i++) m += t[threadIdx.y *"
                " blockDim.x + i] / C;\n",
            ),
        ),
        "sum_of_one_warp": cuda(
            [2, 3, 4],
            (MEAN, MEAN.replace("row_sum(m)", "lanes_sum(m, 32)")),
            (VARIANCE, VARIANCE.replace("row_sum(variance)", "lanes_sum(variance, 32)")),
            says="over 32 threads",
        ),
        "x_not_written": cuda([3, 5], (STORE_X, ""), either=[4], says=NOT_A_NUMBER),
        "x_is_inp": cuda(
            [3, 5],
            (STORE_X, STORE_X.replace("y[part]", "b[part]")),
            either=[4],
        ),
        "branch_left_out": cuda(
            [3, 5],
            (
                "load(b[part], branch + (size_t)row * C + c, inside && branch);",
                "load(b[part], inp, false);",
            ),
            either=[4],
            says="branch is left out",
        ),
        "no_epsilon": cuda(
            [2], (RSTD, RSTD.replace("variance + 1e-6f", "variance")), says="1e-6 is not added"
        ),
        "divided_by_C_minus_1": cuda(
            [2, 3, 4, 5], (VARIANCE, VARIANCE.replace("/ C", "/ (C - 1)")), says="C - 1"
        ),
        "statistics_of_no_row": cuda(
            [2, 3], (STORE_MEAN, STORE_MEAN.replace(" && row < rows", "")), either=[4, 5]
        ),
        "rstd_not_written": cuda(
            [2, 3, 4, 5],
            (STORE_MEAN, STORE_MEAN.replace("        rstd[row] = r;\n", "")),
            says=NOT_A_NUMBER,
        ),
        "right_shuffles": cuda(
            [],
            *by_hand(SHUFFLES),
            (RSTD, "    float r = rsqrtf(variance + 1e-6f);\n"),
            ("load(b[part], branch", "load(b[part], (const act *)branch"),
        ),
        "right_atomics": cuda(
            [],
            *by_hand(ATOMICS),
            ("exponential(-a * (GELU_A + GELU_B * a2))", "__expf(-a * (GELU_A + GELU_B * a2))"),
            ("real inverse = reciprocal(1 + e)", "real inverse = __fdividef(1, 1 + e)"),
        ),
    },
}

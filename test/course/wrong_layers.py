"""Wrong solutions of the exercises that are a layer or a kernel, as in wrong_interventions.py."""

from wrong_interventions import wrong

BACK_V = "        const real *v = qkv + first * 3 * C + 2 * C + channel;\n        real *dq = dqkv"
WRONG = {
    "attention_backward": {
        "no_scale": wrong(
            [1, 2, 3], ("scale * p[j] * (dp[j] - dot)", "p[j] * (dp[j] - dot)"), says="missing"
        ),
        "not_through_the_sum": wrong([1, 2, 3], ("(dp[j] - dot)", "dp[j]")),
        "dv_of_ds": wrong(
            [0, 2, 3],
            ("transposed(s.p, cols), matrix(doi", "transposed(s.dp, cols), matrix(doi"),
        ),
        "blocks_overwrite": wrong(
            [2], ("*dk_add = i0 == last ? NULL : dk,", "*dk_add = NULL,"), says="add up"
        ),
        "queries_of_the_product": wrong(
            [0, 1, 2, 3],
            (BACK_V, "q = qkv + first * 3 * C + channel;\n" + BACK_V),
            says="not of qkv",
        ),
        "keys_of_another_head": wrong([2, 3], (BACK_V, "k = qk + first * 2 * C + C;\n" + BACK_V)),
        "rows_of_2C": wrong(
            [1, 2, 3],
            (
                "multiply(dq + (size_t)i0 * 3 * C, NULL, 3 * C,",
                "multiply(dq + (size_t)i0 * 2 * C, NULL, 2 * C,",
            ),
        ),
    },
    "matmul": {
        "no_add_at_edges": wrong(
            [0, 1, 2],
            ("(add ? add[i * ldc + j] : 0) + sum[i][j / VL][j % VL]", "sum[i][j / VL][j % VL]"),
            says="added to a matrix",
        ),
        "last_rows": wrong(
            [0, 1, 2],
            (
                "for (int i = i0; i < i0 + height; i += MR)",
                "for (int i = i0; i + MR <= i0 + height; i += MR)",
            ),
        ),
        "long_products": wrong([0, 1, 2], ("k0 += KC, add = out)", "k0 += KC)"), says="600"),
        "first_block_of_rows": wrong(
            [0, 1, 2],
            (
                "if (pack_a) pack(a_block, flip(part(a, i0, k0))",
                "if (pack_a) pack(a_block, flip(part(a, 0, k0))",
            ),
            says="(448,24)",
        ),
        "first_block_of_columns": wrong(
            [0, 1, 2],
            ("pack(b_block, part(b, k0, j0)", "pack(b_block, part(b, k0, 0)"),
        ),
    },
    "cuda": {
        "half_of_them": wrong(
            [0, 4],
            (
                "train_gpt.cu",
                "for (int i = 0; i < W; i++) x[i] = gelu(x[i], &slope);",
                "for (int i = 0; i < W / 2; i++) x[i] = gelu(x[i], &slope);",
            ),
            says="A thread has W of them",
        ),
        "no_product_rule": wrong(
            [1, 4],
            (
                "train_gpt.cu",
                "*slope = s + x * e * inverse * inverse * (GELU_A + 3 * GELU_B * a2);",
                "*slope = s;",
            ),
            says="product rule",
        ),
        "mean_of_squares": wrong(
            [2, 3, 4],
            (
                "train_gpt.cu",
                (
                    "            y[part][i] = c < C ? y[part][i] - m : 0;\n"
                    "            variance += y[part][i] * y[part][i];\n"
                ),
                (
                    "            variance += y[part][i] * y[part][i];\n"
                    "            y[part][i] = c < C ? y[part][i] - m : 0;\n"
                ),
            ),
        ),
        "no_barrier": wrong(
            [2, 3, 4],
            (
                "train_gpt.cu",
                "    m = row_sum(m) / C;\n",
                (
                    "    __shared__ float t[1024];\n"
                    "    t[threadIdx.y * blockDim.x + threadIdx.x] = m, m = 0;\n"
                    "    for (unsigned i = 0; i < blockDim.x; i++) m += t[threadIdx.y *"
                    " blockDim.x + i] / C;\n"
                ),
            ),
        ),
    },
}

"""Breaks the sources in small ways, one at a time, in a copy of the tree, and shows that a test
fails for each: `make mutate`.

A mutant is a row of MUTANTS: a text that stands just once in its file, what it becomes, and the
tests that should see it. Those run first, then the wider ones of WIDER; the first failure ends it.
Beside them every barrier of WITH_BARRIERS is taken out. First the untouched tree must pass all the
tests. Words on the command line choose the mutants whose file or text has one of them.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600  # a test run that takes longer hangs
STRICT = "-Wall -Wextra -Werror"  # a mutant of which the compiler warns needs no test

CUDA = (
    "test_attention.py",
    "test_cuda.py::test_fp32",
    "test_cuda.py::test_rounds",
    "test_cuda.py::test_bf16",
    "test_cuda.py -k 'micro or layernorm or bf16_is or gelu or 1e6 or norm_of'",
    "test_cuda.py -k 'test_log or checkpoint or sweep or diverged or resumed'",
)

# The wider tests of each file, after a row's own.
WIDER = {
    "train_gpt.c": (
        "test_layers.py",
        "test_gradients.py -k 'every_coordinate or C64_L1 and 0.1-full'",
        "test_oracle.py -k 'double and not one_batch and (odd or full or everything)'",
        "test_cli.py",
        "test_runs.py",
    ),
    "gpt.h": (
        "test_cli.py",
        "test_oracle.py -k 'not five_steps'",
        "test_oracle.py -k 'double and not one_batch and (full or everything)'",
        "test_runs.py",
    ),
    "dataloader.h": ("test_data.py", "test_runs.py -k 'validation or entropy'"),
    "lib/base.h": (
        "test_data.py",
        "test_checkpoint.py",
        "test_cli.py",
        "test_runs.py",
        "test_terminal.py",
    ),
    "lib/flags.h": ("test_cli.py", "test_checkpoint.py", "test_runs.py"),
    "lib/checkpoint.h": ("test_checkpoint.py", "test_cli.py", "test_runs.py"),
    "lib/run.h": ("test_runs.py", "test_cli.py", "test_terminal.py"),
    "lib/sample.h": ("test_cli.py -k sample", "test_terminal.py -k sample"),
    "lib/sweep.h": ("test_runs.py -k sweep", "test_cli.py", "test_terminal.py"),
    "train_gpt.cu": CUDA,
    "lib/gpu.h": CUDA,
}
GRADIENTS, DIRECTIONS = (
    "test_gradients.py::test_every_coordinate",
    "test_gradients.py -k 'C64_L1 and 0.1-full'",
)
STEPS = (
    "test_oracle.py -k 'double-everything-batches or double-decay_standard-batches or"
    " double-one_layer-batches or double-unclipped-batches'"
)
FP32, BF16 = "'test_cuda.py::test_fp32[everything]'", "'test_cuda.py::test_bf16[everything]'"
ATTENTION = "test_attention.py -k 'test_shapes and fp32'"
RMS = "test_runs.py -k rms_columns"
THREADS = "test_runs.py -k threads"

# file, the tests that run first, (text, what it becomes)
MUTANTS = [
    (
        "train_gpt.c",
        "test_layers.py -k 'soft_cap or attention'",
        [
            ("exponential(-2 * fabs(s) / cap)", "exponential(-fabs(s) / cap)"),
            ("exponential(-2 * fabs(s) / cap)", "exponential(-2 * s / cap)"),
            ("*slope = 4 * e * inverse * inverse;", "*slope = 2 * e * inverse * inverse;"),
            ("(s < 0 ? -cap : cap) * (1 - e) * inverse", "cap * (1 - e) * inverse"),
            ("s.mask = s.slope + T;", "s.mask = s.slope + T - 1;"),
            (
                "p[j] = soft_cap(p[j], cap / scale, s.slope + j);        // attn_cap]\n"
                "                for (int j",
                "p[j] = soft_cap(p[j], cap, s.slope + j);\n                for (int j",
            ),
            (
                "p[j] = soft_cap(p[j], cap / scale, s.slope + j);        // attn_cap]\n"
                "                real top",
                "p[j] = soft_cap(p[j], cap, s.slope + j);\n                real top",
            ),
            ("dp[j] *= s.slope[j];", "dp[j] *= s.slope[0];"),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k gate",
        [
            ("    *slope = e * inverse * inverse;", "    *slope = e * inverse;"),
            ("return (x > 0 ? 1 : e) * inverse;", "return (x > 0 ? e : 1) * inverse;"),
            ("exponential(-fabs(x)), inverse", "exponential(-2 * fabs(x)), inverse"),
            ("out[j] = att[j] * sigmoid(", "out[j] = att[j] + sigmoid("),
            ("dgate[j] = d * att[j] * slope;", "dgate[j] = d * (att[j] + slope);"),
            ("dgate[j] = d * att[j] * slope;", "dgate[j] = d * att[j] * s;"),
            ("datt[j] = d * s;", "datt[j] = d + s;"),
        ],
    ),
    (
        "train_gpt.c",
        "test_gradients.py -k every_coordinate",
        [
            ("matmul(dinp, dinp, matrix(dout, OC)", "matmul(dinp, NULL, matrix(dout, OC)"),
            ("dw[GATE], g->dgate, a.ln_1", "dw[GATE], g->dgate, a.att"),
            ("if (g->cfg.gate) heads = a.gated;", ""),
            (
                "gate_backward(dnorm, g->dgate, dnorm, a.att,",
                "gate_backward(dnorm, g->dgate, dnorm, heads,",
            ),
            ("memset(g->dpost, 0, (size_t)rows", "memset(g->dpost, 0, 0 * (size_t)rows"),
            ("int kind = i ? POST_2 : POST_1;", "int kind = i ? POST_1 : POST_2;"),
            ("dbranch = post_backward(g, &a, 1,", "dbranch = post_backward(g, &a, 0,"),
            ("a->dw[kind], g->dx, a->post[i]", "a->dw[kind], g->dnorm, a->post[i]"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'double-gate-batches or double-peri_ln-batches or double-cures-batches'",
        [
            ("a->w[i ? POST_2 : POST_1]", "a->w[i ? POST_1 : POST_2]"),
            ("matmul_forward(a.gate, a.ln_1,", "matmul_forward(a.gate, a.x,"),
            ("gate_forward(heads, a.att, a.gate,", "gate_forward(heads, a.att, a.ln_1,"),
            ("if (peri_ln) branch = post_forward(g, &a, 1, rows, C);", ""),
            ("if (peri_ln) branch = post_forward(g, &a, 0, rows, C);", ""),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k orthogonalize",
        [
            ("a = (real)3.4445,", "a = (real)3.4545,"),
            ("b = (real)-4.7750", "b = (real)-4.7570"),
            ("c = (real)2.0315;", "c = (real)2.0135;"),
            ("turn < 5;", "turn < 4;"),
            ("turn < 5;", "turn < 6;"),
            ("sums)) + 1e-30)", "sums)))"),
            ("sums)) + 1e-30)", "sums)) + 1e-7)"),
            ("1 / (sqrt(sum_squares(x, size, sums))", "1 / (sum_squares(x, size, sums)"),
            ("int tall = rows > cols,", "int tall = rows < cols,"),
            ("p[i] = b * g[i] + c * p[i];", "p[i] = b * g[i] + c * g[i];"),
            ("i < square; i += n + 1) p[i] += a;", "i < square - 1; i += n + 1) p[i] += a;"),
            ("product(y, tall ? X : P, tall ? P : X,", "product(y, tall ? X : P, tall ? G : X,"),
            ("    #pragma omp taskgroup\n    matmul(out, NULL, a, b", "    matmul(out, NULL, a, b"),
            (
                "memcpy(x, y, size * sizeof(real));",
                "memcpy(x, y, (size_t)(size - 1) * sizeof(real));",
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'double and not one_batch and (muon or cautious)'",
        [
            ("MUON_MOMENTUM ((real)0.95)", "MUON_MOMENTUM ((real)0.9)"),
            (
                "m[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;",
                "m[j] = MUON_MOMENTUM * m[j] + g;",
            ),
            ("x[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;", "x[j] = m[j];"),
            ("real g = grad[j] * o.clip_scale;", "real g = grad[j];"),
            ("sqrt((real)(rows > cols ? rows : cols))", "sqrt((real)(rows > cols ? cols : rows))"),
            ("updated(param[j], size * x[j], lr, o)", "updated(param[j], x[j], lr, o)"),
            ("updated(param[j], size * x[j], lr, o)", "param[j] - lr * size * x[j]"),
            ("return size * size * sum_squares(x, n", "return size * sum_squares(x, n"),
            ("int parts = k == C_ATTN ? 3 : 1;", "int parts = k == C_ATTN ? 1 : 1;"),
            ("if (o.cautious && u * param < 0)", "if (o.cautious && u * param > 0)"),
            ("if (o.cautious && u * param < 0)", "if (u * param < 0)"),
            ("o.cautious = cfg->cautious;", "o.cautious = 0;"),
            ("(real)tensor_lr, o, g->muon", "(real)lr, o, g->muon"),
        ],
    ),
    (
        "train_gpt.c",
        RMS,
        [
            ("updates += muon(", "updates = muon("),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'double and not one_batch and (qk_clip or muon_clip)'",
        [
            ("size_t head = (size_t)C / NH * C;", "size_t head = (size_t)C * C;"),
            ("larger(max_logit[b * NH + h], largest)", "larger(max_logit[h], largest)"),
            ("larger(max_logit[b * NH + h], largest)", "larger(max_logit[b + B * h], largest)"),
            ("if (largest <= tau) continue;", ""),
            ("*k = q + (size_t)C * C, factor", "*k = q + head, factor"),
            ("factor = sqrt(tau / largest);", "factor = tau / largest;"),
            ("            k[i] *= factor;\n", "            k[i] *= 1;\n"),
            ("max_logit, (real)cfg->qk_clip, cfg->batch,", "max_logit, (real)cfg->qk_clip, 1,"),
            ("qk_clip(params, g->layers[l].max_logit", "qk_clip(params, g->layers[0].max_logit"),
        ],
    ),
    (
        "train_gpt.c",
        "test_numbers.py -k logged",
        [
            ("int measures = statistics || g->cfg.qk_clip > 0;", "int measures = statistics;"),
        ],
    ),
    (
        "gpt.h",
        "test_oracle.py -k 'double-muon-batches or double-all_cures-batches'",
        [
            ("table[k].role == LINEAR && k != LM_HEAD", "table[k].role == LINEAR"),
            ("table[k].role == LINEAR && k != LM_HEAD", "table[k].role != NORM && k != LM_HEAD"),
            ("table[k].role == LINEAR && k != LM_HEAD", "table[k].role == LINEAR && k == C_FC"),
            ("cfg->gate * L, C, C, LINEAR,", "cfg->gate * L, C, C, EMBEDDING,"),
        ],
    ),
    (
        "gpt.h",
        "'test_numbers.py::test_golden[gate]'",
        [("LINEAR, 11, 0},", "LINEAR, 5, 0},")],
    ),
    (
        "lib/flags.h",
        "test_cli.py -k 'wrong_command or without_effect'",
        [
            (
                "cfg->qk_clip > 0 && (cfg->qk_norm || cfg->kappa > 0)",
                "cfg->qk_clip > 0 && cfg->qk_norm",
            ),
            (
                "cfg->qk_clip > 0 && (cfg->qk_norm || cfg->kappa > 0)",
                "cfg->qk_norm || cfg->kappa > 0",
            ),
            ('cfg->qk_norm ? "qk-norm" : "-kappa"', 'cfg->qk_norm ? "-kappa" : "qk-norm"'),
            (
                'cfg->qk_norm ? "-qk_norm 0" : "-kappa 0"',
                'cfg->qk_norm ? "-kappa 0" : "-qk_norm 0"',
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k 'gelu or cross_entropy'",
        [
            ("n * 0.693359375f + n * 2.12194440e-4f", "n * 0.693359375f - n * 2.12194440e-4f"),
            ("1.3981999507e-3f", "1.3981999507e-2f"),
            ("x < -60 ? 0", "x < -6 ? 0"),
            ("    return y * (2 - x * y);", "    return y;"),
            ("GELU_A * (real)0.044715", "GELU_A * (real)0.044175"),
            ("fabs(x) < 30 ? fabs(x) : 30", "fabs(x) < 3 ? fabs(x) : 3"),
            ("real s = (x > 0 ? 1 : e) * inverse;", "real s = (x > 0 ? e : 1) * inverse;"),
            ("(GELU_A + 3 * GELU_B * a2)", "(GELU_A + GELU_B * a2)"),
            ("slope[j] = s + x * e", "slope[j] = s - x * e"),
            ("dinp[j] = dout[j] * slope[j]", "dinp[j] = dout[j] + slope[j]"),
            ("j < (size_t)(i + 1) * C; j++) dinp", "j < (size_t)(i + 1) * C - 1; j++) dinp"),
            ("j < n; j++) lane[0] = larger", "j < n - 1; j++) lane[0] = larger"),
            ("j < n; j++) lane[0] += x[j];", "j < n - 1; j++) lane[0] += x[j];"),
            ("lane[l] = larger(lane[l + half], lane[l])", "lane[l] = larger(lane[half], lane[l])"),
            ("log_z[i] = top + log(sum)", "log_z[i] = log(sum)"),
            ("losses[i] = top - target + log(sum)", "losses[i] = log_z[i] - target"),
            ("weight += 2 * z_loss * log_z[i]", "weight += z_loss * log_z[i]"),
            ("weight += 2 * z_loss * log_z[i]", "weight -= 2 * z_loss * log_z[i]"),
            ("weight += 2 * z_loss * log_z[i]", "weight += 2 * z_loss"),
            ("weight += 2 * z_loss * log_z[i]", "weight += 2 * z_loss * losses[i]"),
            ("real factor = weight / sum / rows", "real factor = weight / sum"),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k bf16",
        [
            ("0x7fff + (bits >> 16 & 1)", "0x8000"),
            ("0x7fff + (bits >> 16 & 1)", "0"),
            ("0x7fff + (bits >> 16 & 1)", "0x7fff"),
            ("if (!isnan(logits[j])) logits[j] = x;", "logits[j] = x;"),
            ("j < (size_t)(i + 1) * V; j++) {", "j < (size_t)(i + 1) * V - 1; j++) {"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'double and not one_batch and (rounded or odd)'",
        [
            ("if (g->cfg.bf16_logits) round", "if (!g->cfg.bf16_logits) round"),
            ("+= row_sum(g->logits + (size_t)i * V, V)", "+= row_sum(g->logits, V)"),
        ],
    ),
    (
        "train_gpt.c",
        GRADIENTS,
        [
            ("x[targets[i]] -= (real)1 / rows", "x[targets[i]] -= (real)1"),
            ("for (int v = 0; v < V; v++)", "for (int v = 0; v < V - 1; v++)"),
            ("dwte[(size_t)tokens[i] * C + c] += dout", "dwte[(size_t)tokens[i] * C + c] = dout"),
            ("(add ? add[j] : 0) + rstd *", "(add ? 0 * add[j] : 0) + rstd *"),
            (
                "memset(dw, 0, (size_t)C * sizeof(real));",
                "memset(dw, 0, (size_t)(C - 1) * sizeof(real));",
            ),
            (
                "memset(dw, 0, (size_t)2 * over * sizeof(real));",
                "memset(dw, 0, (size_t)over * sizeof(real));",
            ),
            (
                "if (q_weight) {                                                 // [qk_norm\n"
                "                    size_t head",
                "if (q_weight && i) {\n                    size_t head",
            ),
            (
                "qkv + at + h * over, i ? k_weight : q_weight",
                "qkv + at + h * over, i ? q_weight : k_weight",
            ),
            ("dw + i * over, d + h * over", "dw, d + h * over"),
            ("                rope_row(d, d,", "                if (i) rope_row(d, d,"),
            ("sine + angles, -1, NH, HS);", "sine + angles, 1, NH, HS);"),
            (
                "size_t angles = (size_t)(row % T) * (HS / 2);\n                real *d",
                "size_t angles = (size_t)(row / B) * (HS / 2);\n                real *d",
            ),
            ("backward(dx + at, dx + at, dw", "backward(dx + at, NULL, dw"),
            ("(dx, dw[LN_1], dnorm, a.x,", "(dx, dw[LN_1], dnorm, a.x_mid,"),
            ("(dx, dw[LN_2], dnorm, a.x_mid,", "(dx, dw[LN_2], dnorm, a.x,"),
            ("g->dw[LN_F], dnorm, g->x,", "g->dw[LN_F], dnorm, g->embedded,"),
            ("x[j] = inp[j] + branch[j];", "x[j] = 0 * inp[j] + branch[j];"),
            ("        x = a.x_mid;", "        x = a.x;"),
            (
                "gelu_backward(dfc, dfc, slope, rows, IC)",
                "gelu_backward(dfc, dfc, slope, rows - 1, IC)",
            ),
            ("dweight, dout, gelu, weight, rows", "dweight, dout, gelu + 1, weight, rows"),
            ("a->slope = reserve(g, BT * 4 * C)", "a->slope = reserve(g, BT * C)"),
            ("+ 1) * CACHE_LINE;", "- 1) * CACHE_LINE;"),
            ("a->qk_mean = reserve(g, BT * 2 * NH)", "a->qk_mean = reserve(g, BT * NH)"),
            ("a->softmax = reserve(g, BT * NH * 2)", "a->softmax = reserve(g, BT * NH)"),
            ("a->gelu = reserve(g, BT * 4 * C)", "a->gelu = reserve(g, BT * C)"),
            ("all && l < p->copies ?", "all ?"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'no_layers or kappa'",
        [
            ("cfg->layers ? reserve(g, BT * C) : g->embedded", "reserve(g, BT * C)"),
            ("if (kappa > 0) kappa_forward", "if (kappa < 0) kappa_forward"),
            ("sqrt(kappa / (square + (real)1e-6))", "kappa / sqrt(square + (real)1e-6)"),
            ("sqrt(kappa / (square + (real)1e-6))", "sqrt(kappa / (square + (real)1e-5))"),
            ("real square = row_dot(z, z, HS) / HS;", "real square = row_dot(z, z, HS);"),
            ("i % (2 * NH)) * HS;\n        real square", "i % NH) * HS;\n        real square"),
            ("i % (2 * NH)) * HS;\n        real mean", "i % NH) * HS;\n        real mean"),
            ("j < HS; j++) z[j] *= factor[i]", "j < HS - 1; j++) z[j] *= factor[i]"),
            ("(dqkv[j] - qkv[j] * mean / kappa)", "(dqkv[j] + qkv[j] * mean / kappa)"),
            ("(dqkv[j] - qkv[j] * mean / kappa)", "(dqkv[j] - qkv[j] * mean)"),
            ("(dqkv[j] - qkv[j] * mean / kappa)", "dqkv[j]"),
            ("row_dot(dqkv + at, qkv + at, HS) / HS", "row_dot(dqkv + at, qkv + at, HS)"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k relu2",
        [
            ("p[j] = p[j] < 0 ? 0 : p[j] * p[j];", "p[j] = p[j] * p[j];"),
            ("p[j] = p[j] < 0 ? 0 : p[j] * p[j];", "p[j] = p[j] < 0 ? 0 : p[j];"),
            ("stats[2 * i + 1] = relu2;", "stats[2 * i + 1] = 1;"),
            ("score = score < 0 ? 0 : score;", "score = fabs(score);"),
            ("p[j] = relu2 * score * score;", "p[j] = score * score;"),
            ("dp[j] *= 2 * relu2 * score * scale;", "dp[j] *= relu2 * score * scale;"),
            ("dp[j] *= 2 * relu2 * score * scale;", "dp[j] *= 2 * relu2 * score;"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'double and over_all'",
        [
            ("i ? k_weight : q_weight, over);", "i ? k_weight : q_weight, HS);"),
            (
                "h < C / over; h++)\n                        layernorm_row_backward(",
                "h < NH; h++)\n                        layernorm_row_backward(",
            ),
        ],
    ),
    (
        "gpt.h",
        "test_oracle.py -k 'double and over_all'",
        [("== QK_NORM_MODEL ? cfg->d :", "== QK_NORM_HEADS ? cfg->d :")],
    ),
    (
        "gpt.h",
        "test_oracle.py -k relu2",
        [("== ATTENTION_RELU2 ? 1 / sqrt((double)cfg->T)", "== ATTENTION_RELU2 ? 1.0 / cfg->T")],
    ),
    (
        "train_gpt.c",
        "test_numbers.py -k overflow",
        [(" + 0 * square;", ";")],
    ),
    (
        "train_gpt.c",
        DIRECTIONS,
        [
            ("end = least(C, from + CHANNELS)", "end = least(C, from + CHANNELS - 1)"),
            (
                "partial, (size_t)4 * over, chunks, over)",
                "partial, (size_t)2 * over, chunks, over)",
            ),
            ("partial + over, (size_t)4 * over", "partial, (size_t)4 * over"),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k matmul",
        [
            ("(add ? add[i * ldc + j] : 0) + sum", "sum"),
            ("if (add) value += *", "if (add) value = *"),
            ("k0 += KC, add = out)", "k0 += KC)"),
            ("depth = least(KC, K - k0)", "depth = least(KC, K)"),
            ("least(height, M - i), least(width, N - j), K);", "height, least(width, N - j), K);"),
            ("const real *row = m.data + k * m.row + j;", "const real *row = m.data + k * m.row;"),
            ("panel, width, m.data + j * m.col", "panel, width, m.data"),
            ("{m.data, m.col, m.row}; }", "{m.data, m.row, m.col}; }"),
            ("m.data + i * m.row + j * m.col", "m.data + i * m.col + j * m.row"),
            ("a_block + (i - i0) * KC", "a_block + 0 * (i - i0) * KC"),
            ("size_t at = (size_t)i * N + j;", "size_t at = (size_t)i * N;"),
            ("out[j * ldo + i] = in[i * ldi + j];", "out[j * ldo + i] = in[i * ldi + j0];"),
            ("to[2 * i + 1] = from[i + 128];", "to[2 * i + 1] = from[i + 127];"),
            ("for (int n = 0; n < 4; n++)", "for (int n = 0; n < 2; n++)"),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k tasks",
        [
            (
                "    #pragma omp taskgroup\n    matmul(out, NULL, matrix",
                "    matmul(out, NULL, matrix",
            ),
            (
                "\n                            const real *weight, int rows, int IC, int OC) {"
                "\n    #pragma omp taskgroup",
                "\n                            const real *weight, int rows, int IC, int OC) {",
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k layernorm",
        [
            ("1 / sqrt(variance + (real)1e-6)", "1 / sqrt(variance + (real)1e-5)"),
            ("1 / sqrt(variance + (real)1e-6)", "1 / (sqrt(variance) + (real)1e-6)"),
            (" + 0 * variance;", ";"),
            ("row_dot(out, out, C) / C;", "row_dot(out, out, C) / (C - 1);"),
            ("out[j] = x[j] - m;", "out[j] = x[j] + m;"),
            ("out[j] = weight[j] * (out[j] * r)", "out[j] = weight[j] * out[j] + r"),
            ("real m = row_sum(x, C) / C;", "real m = row_sum(x, C);"),
            ("real mean_g = row_sum(g, C) / C;", "real mean_g = row_sum(g, C);"),
            ("(g[j] - mean_g - n[j] * mean_gn)", "(g[j] + mean_g - n[j] * mean_gn)"),
            ("(g[j] - mean_g - n[j] * mean_gn)", "(g[j] - mean_g + n[j] * mean_gn)"),
            ("row_dot(g, n, C) / C;", "row_dot(g, n, C);"),
            ("g[j] = dout[j] * weight[j];", "g[j] = dout[j] + weight[j];"),
            ("dweight[j] += dout[j] * n[j];", "dweight[0] += dout[j] * n[j];"),
            ("dweight[j] += dout[j] * n[j];", "dweight[j] = dout[j] * n[j];"),
            ("lane[l] += x[j + l] * y[j + l];", "lane[l] = x[j + l] * y[j + l];"),
            ("j < n; j++) lane[0] += x[j] * y[j];", "j < n - 1; j++) lane[0] += x[j] * y[j];"),
            (
                "chunk < chunks; chunk++)\n        for (int j",
                "chunk < chunks - 1; chunk++)\n        for (int j",
            ),
            ("partial, (size_t)3 * C, chunks, C)", "partial, (size_t)C, chunks, C)"),
            (
                "i < least(rows, (chunk + 1) * CHUNK); i++",
                "i < least(rows, (chunk + 1) * CHUNK - 1); i++",
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k rope",
        [
            ("x0 * cosine[i] - x1 * s", "x0 * cosine[i] + x1 * s"),
            ("x0 * s + x1 * cosine[i]", "x1 * s + x0 * cosine[i]"),
            ("s = direction * sine[i]", "s = direction * direction * sine[i]"),
        ],
    ),
    (
        "train_gpt.c",
        "test_layers.py -k attention",
        [
            ("cols, *mask = s.mask + T - 1 - (i0 + i);", "cols, *mask = s.mask + T - (i0 + i);"),
            (
                "cols, *mask = s.mask + T - 1 - (i0 + i);",
                "cols, *mask = s.mask + T - 2 - (i0 + i);",
            ),
            ("real *mask = s.mask + T - 1 - (i0 + i);", "real *mask = s.mask + T - 2 - (i0 + i);"),
            ("p[j] = scale * p[j] + mask[j]", "p[j] = scale * scale * p[j] + mask[j]"),
            ("j <= i0 + i; j++)", "j < i0 + i; j++)"),
            ("larger(fabs(scale * p[j]), largest)", "larger(scale * p[j], largest)"),
            ("stats[2 * i + 1] = 1 / row_sum(p, cols)", "stats[2 * i + 1] = row_sum(p, cols)"),
            ("*= stats[2 * i + 1];", "*= stats[1];"),
            ("- top) * inverse;", "- top - inverse);"),
            ("dp[j] = scale * p[j] * (dp[j] - dot)", "dp[j] = p[j] * (dp[j] - dot)"),
            ("(dp[j] - dot)", "(dp[j] + dot)"),
            ("*dk_add = i0 == last ? NULL : dk", "*dk_add = NULL"),
            ("*dk_add = i0 == last ? NULL : dk", "*dk_add = dk"),
            ("*dv_add = i0 == last ? NULL : dv", "*dv_add = NULL"),
            ("*dv_add = i0 == last ? NULL : dv", "*dv_add = dv"),
            ("transposed(s.p, cols), matrix(doi", "transposed(s.dp, cols), matrix(doi"),
            ("matrix(s.dp, cols), matrix(k, 2 * C)", "matrix(s.dp, cols), matrix(q, 2 * C)"),
            ("3 * C + 2 * C + channel;\n        real *o", "3 * C + C + channel;\n        real *o"),
            ("*dk = dq + C, *dv = dk + C;", "*dv = dq + C, *dk = dv + C;"),
        ],
    ),
    (
        "train_gpt.c",
        STEPS,
        [
            (
                "size_t n, double *sums) {\n    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;",
                "size_t n, double *sums) {\n    size_t chunks = n / SUM_CHUNK;",
            ),
            (
                "                    double *sums) {\n"
                "    size_t chunks = (n + SUM_CHUNK - 1) / SUM_CHUNK;",
                "                    double *sums) {\n    size_t chunks = n / SUM_CHUNK;",
            ),
            ("o.beta1 * m[i] + (1 - o.beta1) * g;", "(1 - o.beta1) * m[i] + o.beta1 * g;"),
            ("(1 - o.beta2) * g * g;", "(1 - o.beta2) * g;"),
            ("(sqrt(v[i] * o.correction2) + o.eps)", "sqrt(v[i] * o.correction2 + o.eps)"),
            ("sqrt(v[i] * o.correction2) + o.eps", "sqrt(v[i]) * o.correction2 + o.eps"),
            ("m[i] * o.correction1 /", "m[i] / o.correction1 /"),
            ("(lr * u + decay * param)", "lr * (u + decay * param)"),
            ("(lr * u + decay * param)", "(lr * u - decay * param)"),
            ("real g = grad[i] * o.clip_scale", "real g = grad[i] / o.clip_scale"),
            ("1 - pow(cfg->beta1, step)", "1 - pow(cfg->beta1, step + 1)"),
            ("1 - pow(beta2, step)", "1 - pow(beta2, step - 1)"),
            ("cfg->clip > 0 && norm > cfg->clip", "norm > cfg->clip"),
            ("cfg->clip > 0 && norm > cfg->clip", "cfg->clip > 0 && norm < cfg->clip"),
            ("clip_scale = cfg->clip / norm;", "clip_scale = cfg->clip / (norm * norm);"),
            ("if (norm * clip_scale > LARGEST_SQUARED) clip_scale = NAN;", ""),
            ("kind_lr *= mu_lr_scale", "kind_lr /= mu_lr_scale"),
            ("decay = weight_decay(cfg, step);", "decay = weight_decay(cfg, 1);"),
            ("eps = cfg->eps;", "eps = cfg->eps * cfg->eps;"),
            ("beta2 = cfg->beta2;", "beta2 = cfg->beta1;"),
            ("{BTC, 3 * L * BTC, L * BTC,", "{BTC, 2 * L * BTC, L * BTC,"),
            ("{BTC, 3 * L * BTC, L * BTC,", "{BTC, 3 * L * BTC, BTC,"),
            ("4 * L * BTC, BTC, BTV}", "L * BTC, BTC, BTV}"),
            ("4 * L * BTC, BTC, BTV}", "4 * L * BTC, BTC, BTC + 0 * BTV}"),
            ("row_max(a->max_logit, B * g->cfg.heads)", "row_max(a->max_logit, B)"),
            ("a.ln_2_rstd, a.x, branch,", "a.ln_2_rstd, x, branch,"),
            (
                "gelu_forward(out, slope, fc, rows, OC)",
                "gelu_forward(out, slope, fc, rows - 1, OC)",
            ),
            ("memset(dx, 0, (size_t)rows", "memset(dx, 0, (size_t)(rows - 1)"),
            (
                "squares[ACT_C_ATTN] += sum_squares(a.qkv, 3 * BTC",
                "squares[ACT_C_ATTN] += sum_squares(a.qkv, BTC",
            ),
            ("squares[ACT_ATT] +=", "squares[ACT_ATT] ="),
            (
                "squares[ACT_RESIDUAL] = sum_squares(g->x,",
                "squares[ACT_RESIDUAL] = sum_squares(g->embedded,",
            ),
            ("tensor_lr *= fmax(rms, 1e-3)", "tensor_lr *= rms * rms"),
            ("g->params + i, size, g->sums)", "g->params + at, size, g->sums)"),
            ("size_t i = at + (size_t)l * size", "size_t i = at"),
            ("*log_z = sum_log_z / rows", "*log_z = sum / rows"),
            (
                "const real *from = qkv + ((size_t)row * 3 + i) * C",
                "const real *from = qkv + ((size_t)row * 3 + 1 - i) * C",
            ),
            ("i ? k_weight : q_weight, over);", "i ? q_weight : k_weight, over);"),
            ("a.qkv, w[Q_NORM], w[K_NORM]", "a.qkv, w[Q_NORM], w[Q_NORM]"),
            ("g->cosine, g->sine, B, T, NH, HS);", "g->sine, g->cosine, B, T, NH, HS);"),
            ("sine + angles, 1, NH, HS);", "sine + angles, i ? 1 : -1, NH, HS);"),
            (
                "size_t angles = (size_t)(row % T) * (HS / 2);\n            if (q_weight)",
                "size_t angles = (size_t)(row / B) * (HS / 2);\n            if (q_weight)",
            ),
            (
                "const Layer *a = &g->layers[l];\n        const real *output",
                "const Layer *a = g->layers;\n        const real *output",
            ),
            ("output = l + 1 < L ? a[1].x : g->x", "output = a->x"),
            ("squares[i % 2] += row_dot", "squares[0] += row_dot"),
            (
                "if (a->max_logit[i] > a->max_logit[head])",
                "if (a->max_logit[i] < a->max_logit[head])",
            ),
            ("*q = a->qk + (size_t)(head / NH)", "*q = a->qk + (size_t)(head % NH)"),
            ("if (!(fabs(dot) > largest))", "if (!(dot > largest))"),
            ("sqrt(squares[1] / ((double)B * T * C))", "sqrt(squares[1] / ((double)B * T))"),
            (
                "k == C_FC ? C_FC_GRAD_RMS : ATTN_C_PROJ_GRAD_RMS",
                "k == C_FC ? ATTN_C_PROJ_GRAD_RMS : C_FC_GRAD_RMS",
            ),
            ("by_layer[to + 1][l] = sqrt(updates", "by_layer[to + 1][l] = sqrt(grads"),
            ("p->offset + (size_t)l * parameter_size(p) : NULL", "p->offset : NULL"),
        ],
    ),
    (
        "train_gpt.c",
        "test_oracle.py -k 'squares or initial_weights'",
        [
            ("(double)x[i] * (double)x[i]", "(double)(x[i] * x[i])"),
            (
                "parameters_init(g->params, g->table, cfg)",
                "parameters_init(g->params, g->table, &(Config){.seed = 1, .d = 1, .base_d = 1})",
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_cli.py -k 'sample or no_steps'",
        [
            (
                "return g->logits + (size_t)(used - 1) * g->V",
                "return g->logits + (size_t)(used / 2) * g->V",
            ),
            ("saved = cfg->resume ? step : -1;", "saved = step;"),
        ],
    ),
    (
        "train_gpt.c",
        RMS,
        [
            ("sum += (double)u * (double)u;", "sum += (double)u;"),
            ("sum += (double)u * (double)u;", "sum += (double)(lr * u) * (double)u;"),
            ("sqrt(squares / (double)n)", "sqrt(squares)"),
            ("sum_squares(g->params + at, n", "sum_squares(g->m + at, n"),
            ("sum_squares(g->grads + at, n", "sum_squares(g->grads, n"),
        ],
    ),
    (
        "train_gpt.c",
        "test_runs.py -k 'eval or init'",
        [
            ("if (cfg->resume || *cfg->init)", "if (cfg->resume)"),
            (
                "    State state = checkpoint_load(cfg, g.table, g.params, g.m, g.v);",
                "    State state = {0, 0, 0, 0};",
            ),
            ("eval_print(cfg, &state, loss, windows)", "eval_print(cfg, &state, loss, 1)"),
        ],
    ),
    (
        "train_gpt.c",
        "test_runs.py -k validation_loss",
        [
            ("T, 0, &log_z) * rows;", "T, 0, &log_z) * B;"),
            ("dataloader_val(loader, w, rows", "dataloader_val(loader, 0, rows"),
            ("windows - w < B ? (int)(windows - w) : B", "B"),
        ],
    ),
    (
        "train_gpt.c",
        "test_numbers.py -k list",
        [("        omp_set_num_threads(threads); ", "        ")],
    ),
    (
        "train_gpt.c",
        THREADS,
        [
            (
                "memory + omp_get_thread_num() * attention",
                "memory + 0 * omp_get_thread_num() * attention",
            ),
        ],
    ),
    (
        "train_gpt.c",
        "test_runs.py -k 'test_log or seed or diverges or resume_of or signal_stops'",
        [
            ("return isnan(sum) ? INFINITY : sum;", "return sum;"),
            ("|| step % cfg->log_every == 0;", "|| step % cfg->log_every == 1;"),
            ("int validates = step == cfg->steps ||", "int validates ="),
            ("dataloader_train(&loader, step, B", "dataloader_train(&loader, step - state.step, B"),
            ("gpt_update(&g, step, logs", "gpt_update(&g, step - state.step, logs"),
            (
                "if (!isfinite(stats.train_loss) || (validates && !isfinite(stats.val_loss)))",
                "if (validates && !isfinite(stats.val_loss))",
            ),
            (
                "if (!isfinite(stats.train_loss) || (validates && !isfinite(stats.val_loss)))",
                "if (!isfinite(stats.train_loss))",
            ),
            ("if (state.log_bytes == 0) {", "if (state.log_bytes >= 0) {"),
            (
                "            state = run_state(&run, step);\n            checkpoint_save",
                "            state = run_state(&run, step - 1);\n            checkpoint_save",
            ),
            (
                "    if (saved != step) {\n        state = run_state(&run, step);",
                "    if (saved != step) {\n        state = run_state(&run, step - 1);",
            ),
            ("flags->vocab, T, (uint64_t)flags->seed", "flags->vocab, T, 1"),
        ],
    ),
    (
        "gpt.h",
        "test_oracle.py -k 'initial_weights or schedule or independent_decay'",
        [
            ('"wte.weight", 1, V, C, EMBEDDING', '"wte.weight", 1, V, C, LINEAR'),
            ("L, 4 * C, C, LINEAR", "L, 4 * C, C, EMBEDDING"),
            ('"lm_head.weight", 1, V, C, LINEAR', '"lm_head.weight", 1, V, C, EMBEDDING'),
            ("std /= sqrt(mu_m(cfg))", "std /= mu_m(cfg)"),
            ("k == LM_HEAD && cfg", "p->role == LINEAR && cfg"),
            ("k == LM_HEAD && cfg->mu_param >= MU_I", "k == LM_HEAD && cfg->mu_param > MU_I"),
            ("k == C_ATTN && cfg->mu_param >= MU_FULL", "k == C_ATTN && cfg->mu_param >= MU_OFF"),
            ("memset(out, 0, parameter_size(p) / 3", "memset(out, 0, parameter_size(p) / 9"),
            ("1 / sqrt((double)p->cols)", "1 / sqrt((double)p->rows)"),
            ("std /= truncated_std", "std *= truncated_std"),
            ("fabs(z) > 2)", "fabs(z) > 3)"),
            ("(uint64_t)p->stream, (uint64_t)l)", "(uint64_t)p->stream, 0)"),
            (
                "random_stream(~(uint64_t)cfg->seed, (uint64_t)p->stream",
                "random_stream(~(uint64_t)1, (uint64_t)p->stream",
            ),
            ("return cfg->lr * step / cfg->warmup", "return cfg->lr * (step - 1) / cfg->warmup"),
            (
                "(double)(step - cfg->warmup) / (cfg->steps - cfg->warmup)",
                "(double)(step - cfg->warmup) / cfg->steps",
            ),
            ("0.5 * (1 + cos(", "0.5 * (1 - cos("),
            ("fmin(cfg->min_lr, cfg->lr)", "cfg->min_lr"),
            ("if (cfg->schedule == SCHEDULE_CONSTANT)", "if (cfg->schedule == SCHEDULE_WSD)"),
            ("if (cfg->schedule == SCHEDULE_WSD) {", "if (0) {"),
            ("fmin(cfg->steps / 5.0, cfg->steps - cfg->warmup)", "cfg->steps / 5.0"),
            ("fmin(cfg->steps / 5.0, cfg->steps - cfg->warmup)", "cfg->steps - cfg->warmup"),
            ("fmin(cfg->steps / 5.0,", "fmin(cfg->steps / 5,"),
            ("left < fifth ? end + (cfg->lr - end) * left / fifth", "left < fifth ? end"),
            ("end + (cfg->lr - end) * left / fifth", "cfg->lr * left / fifth"),
            ("lr / cfg->lr : lr)", "lr : lr / cfg->lr)"),
        ],
    ),
    (
        "gpt.h",
        STEPS,
        [
            (
                "C_ATTN, Q_NORM, K_NORM, GATE, ATTN_C_PROJ",
                "C_ATTN, K_NORM, Q_NORM, GATE, ATTN_C_PROJ",
            ),
            ("(double)cfg->d / cfg->base_d", "(double)cfg->base_d / cfg->d"),
            ("MU_SIMPLE && p->role == LINEAR", "MU_SIMPLE && p"),
            ("p->role == LINEAR ? 1 / mu_m", "p->role == LINEAR && p->name[0] == 'h' ? 1 / mu_m"),
            ("cfg->mu_param >= MU_FULL) scale = 1 / HS", "cfg->mu_param >= MU_FULL) scale /= HS"),
            ("scale = 1 / sqrt(HS)", "scale = 1 / HS"),
        ],
    ),
    (
        "gpt.h",
        "test_oracle.py -k 'double-scale-batches or double-intermediate-batches'",
        [
            ("if (cfg->scale == SCALE_D_H) scale = 1 / HS;", ""),
            ("cfg->mu_param >= MU_FULL) scale", "cfg->mu_param >= MU_INTERMEDIATE) scale"),
        ],
    ),
    (
        "gpt.h",
        "test_runs.py -k test_mu_param",
        [
            ("C_ATTN && cfg->mu_param >= MU_FULL", "C_ATTN && cfg->mu_param >= MU_INTERMEDIATE"),
            ("cfg->mu_param >= MU_INTERMEDIATE", "cfg->mu_param >= MU_SIMPLE"),
        ],
    ),
    (
        "gpt.h",
        "test_layers.py -k rope",
        [
            ("pow(10000, -2.0 * i / HS)", "pow(10000, -1.0 * i / HS)"),
            ("pow(10000, -2.0 * i / HS)", "pow(1000, -2.0 * i / HS)"),
            ("double angle = t * pow", "double angle = (t + 1) * pow"),
            ("(real)sin(angle)", "(real)-sin(angle)"),
        ],
    ),
    (
        "gpt.h",
        "test_cli.py -k help",
        [
            ('NUMBER(z_loss, REAL, "1e-4"', 'NUMBER(z_loss, REAL, "1e-3"'),
            ('NUMBER(layers, INT, "2", 0,', 'NUMBER(layers, INT, "2", 1,'),
            ('NUMBER(wd_independent, INT, "1"', 'NUMBER(wd_independent, INT, "0"'),
        ],
    ),
    (
        "gpt.h",
        STEPS,
        [
            (
                'NUMBER(beta2, REAL, "0.95", 0, BELOW_1,',
                'FLAG_IN(beta1, beta2, REAL, "0.95", NULL, 0, BELOW_1, NULL, THE_RUN,',
            ),
        ],
    ),
    (
        "lib/base.h",
        "test_data.py -k 'rows_depend or text_is_the_same'",
        [
            ("z ^ (z >> 30)", "z ^ (z >> 31)"),
            ("random_u64(&state) ^ b;", "random_u64(&state) ^ (b >> 1);"),
            ("((random_u64(state) >> 32) * n) >> 32", "((random_u64(state) >> 33) * n) >> 32"),
        ],
    ),
    (
        "lib/base.h",
        "test_oracle.py -k initial_weights",
        [
            ("* 0x1p-53", "* 0x1p-54"),
            ("sqrt(-2 * log(u))", "sqrt(-log(u))"),
        ],
    ),
    (
        "lib/base.h",
        "test_checkpoint.py -k full_disk",
        [
            ("if (ferror(file) || fflush(file)", "if (fflush(file)"),
            ("    unlink(atomic_tmp);", ""),
        ],
    ),
    (
        "lib/base.h",
        "test_cli.py -k behind_a_link",
        [
            ("unlink(atomic_tmp) && errno != ENOENT;", "0;"),
        ],
    ),
    (
        "lib/base.h",
        "test_cli.py -k 'folder or cannot_be_done or wrong_command'",
        [
            ("errno != EEXIST)", "errno == EEXIST)"),
            ("|| !S_ISDIR(info.st_mode))", "|| S_ISFIFO(info.st_mode))"),
            ("n < 0 || (size_t)n >= size", "n < 0 || (size_t)n > 2 * size"),
        ],
    ),
    (
        "lib/base.h",
        "test_runs.py -k wider_than",
        [("bool fits = !column || column", "bool fits = column")],
    ),
    (
        "lib/base.h",
        "test_survive.py -k 'without_end or threads_wait or on_the_disk'",
        [
            ("dirname(folder)", "folder"),
            ("fflush(file) || fsync(fileno(file))", "fflush(file)"),
            ("settings[i][1], 0)) return;", "settings[i][1], 0)) continue;"),
            ("execvp(argv[0], argv)", "execv(argv[0], argv)"),
            ("execvp(argv[0], argv)", 'execv("/proc/self/exe", argv)'),
        ],
    ),
    (
        "lib/base.h",
        "test_terminal.py -k 'validations or long_run or diverges or file or chart or pasted'",
        [
            ("columns > 2 ? columns - 2", "columns > 2 ? columns + 12"),
            ("bool known = !ioctl", "bool known = 0 && !ioctl"),
            ("length = end;    // two", "length = end + 9;    // two"),
            ("strlen(word) <= TEXT_WIDTH", "strlen(word) <= TEXT_WIDTH + 2"),
            ("!isatty(STDOUT_FILENO) ? length", "!isatty(STDOUT_FILENO) ? 80"),
            ("to = stpcpy(to, \"'\\\\'\");", "*to++ = '\\\\';"),
            ("*text && !text[plain]) return", "*text && plain) return"),
        ],
    ),
    (
        "lib/run.h",
        "test_terminal.py -k 'long_run or validations'",
        [
            ("if (live) printf", "if (live && step < 0) printf"),
            ("if (stays) putchar", "if (stays && step) putchar"),
            (
                "bool live = isatty(STDOUT_FILENO);\n    bool stays",
                "bool live = 0;\n    bool stays",
            ),
        ],
    ),
    (
        "lib/sweep.h",
        "test_terminal.py -k 'sweep or resize or sample or pasted'",
        [
            ("if (drawn) printf", "if (drawn > 30) printf"),
            ("n >= rows && (state != RUNNING", "n > rows && (state != RUNNING"),
            ("n >= rows && (state != RUNNING", "n >= rows && (state == DONE"),
            ("lines >= rows - 2)", "lines >= rows)"),
            ("return lines + 1;", "return lines;"),
            ("70 / n : LABEL", "LABEL : LABEL"),
            ("int every = (LABEL + width - 1) / width;", "int every = 1;"),
            ('"%.0e", runs[i].cfg.lr)', '"%.6s", text)'),
        ],
    ),
    (
        "lib/flags.h",
        (
            "test_cli.py -k 'schedule or learning_rates or help or range or names or"
            " wrong_command or folder'"
        ),
        [
            ("warmup / 100 * cfg->steps + 0.5", "warmup / 100 * cfg->steps"),
            ("value > first * (1 + 1e-9)", "value > first * (1 - 1e-9)"),
            ("value < last * (1 - 1e-9)", "value < last * (1 + 1e-9)"),
            ("odd ? 3 : 1", "odd ? 5 : 1"),
            (
                "value >= flag->least && value <= flag->most",
                "value > flag->least && value <= flag->most",
            ),
            (
                "value >= flag->least && value <= flag->most",
                "value >= flag->least || value <= flag->most",
            ),
            ("value != floor(value)", "value < 0"),
            (
                "if (!strcmp(word, text)) value = i;",
                "if (!strncmp(word, text, strlen(word))) value = i;",
            ),
            ("same_name(OTHER_NAMES[i].theirs, name)", "strcmp(OTHER_NAMES[i].theirs, name) == 0"),
            ("flag->scope == THE_COMMAND || !strcmp", "!strcmp"),
            ("bool bare = i + 1 == argc || is_flag(argv[i + 1]);", "bool bare = i + 1 == argc;"),
        ],
    ),
    (
        "lib/flags.h",
        "test_cli.py -k 'share_no_folder or shows_the_end or default_folder'",
        [
            ("hash = random_stream(hash, (unsigned char)*text, 0);", "hash++;"),
            ("hash_text(hash, flag->name)", "hash"),
            ("exact &= !text[strspn(", "exact |= !text[strspn("),
            ("exact &= end - name <= LONGEST;", ""),
            ("slashes++) break", "slashes + 1) break"),
            ('"._+,-"', '"._,-"'),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_cli.py -k 'of_others or no_obstacle or not_a_file'",
        [
            ("if (size && !strstr(", "if (!strstr("),
            ("if (size && !strstr(", "if (size && strlen(text) < 99 && !strstr("),
            ('{"log.csv.new", "step,', '{"log.csv", "step,'),
            ('{"summary.csv.tmp",', '{"summary.csv",'),
            ('{"model.safetensors.tmp",', '{"model.safetensors",'),
            ('{"model.safetensors.new.tmp",', '{"model.safetensors.new",'),
            ("if (!text[j]) text[j]", "if (0) text[j]"),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_cli.py -k saved_model_replaces",
        [
            (
                "    if (access(from, F_OK)) return;\n    results_check(cfg);",
                "if (access(from, F_OK)) return;",
            ),
        ],
    ),
    (
        "lib/flags.h",
        "test_cuda.py -k its_folders",
        [
            ('"runs/" FOLDER_PREFIX', '"runs/"'),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_survive.py -k 'killed_while or over_an_old or replaces_an_old'",
        [
            (
                'first ? "model.safetensors.new" : "model.safetensors"',
                '"model.safetensors"',
            ),
            (
                "i < 2 && !failed; i++) {\n        path_in(cfg, moves[i]",
                "i < 2 && !failed; i++) {\n        path_in(cfg, moves[1 - i]",
            ),
            ("    static Metadata meta;\n    results_replace(cfg);", "    static Metadata meta;"),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_runs.py -k 'says_what_changed or jump'",
        [
            ("if (!strcmp(was, is)) continue;", ""),
            ("step && before != after", "step"),
            ("saved.micro_batch = 1;", "saved.micro_batch = 0;\n    saved.steps = cfg->steps;"),
        ],
    ),
    (
        "lib/flags.h",
        "test_cli.py -k wrong_command",
        [
            ("if (runs > 1 && (cfg->sample || cfg->eval))", "if (runs > 1 && cfg->sample)"),
            ("if (!!cfg->sample + cfg->eval + cfg->resume > 1)", "if (cfg->sample && cfg->eval)"),
            ('if (!cfg->sample && given[flag_index("sample")])', "if (0)"),
            ("if (!cfg->sample && (*cfg->prompt || *cfg->tokenizer))", "if (*cfg->tokenizer)"),
        ],
    ),
    (
        "lib/flags.h",
        "test_cli.py -k wrong_command",
        [("if (cfg->kappa > 0 && cfg->qk_norm)", "if (cfg->kappa > 0 && !cfg->qk_norm)")],
    ),
    (
        "lib/flags.h",
        "test_runs.py -k all_digits",
        [
            ('"%.17g", value', '"%.7g", value'),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_checkpoint.py",
        [
            ("sum != s.data_size)", "sum > s.data_size)"),
            ("if (place[1] > s->data_size)", "if (place[1] > 2 * s->data_size)"),
            ("place[0] < other->end && other->begin < place[1]", "place[0] == other->end + 1"),
            ("if (!t->end) die(", "if (t->end > s.data_size) die("),
            ("|| memcmp(shape, t->shape, sizeof shape))", ")"),
            ("if (strcmp(dtype, DTYPE))", "if (strlen(dtype) != strlen(DTYPE))"),
            ("position % 8; position++", "position % 4; position++"),
            ("strspn(++s->at, ", 'strspn(++s->at, "nu" '),
            ("if (*text == '\"' || *text", "if (*text"),
            ("else if (s->meta->count) json_fail", "else if (s->meta->count > 99) json_fail"),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_runs.py -k 'init or eval or older'",
        [
            ("text ? text : flag->initial, path)", 'text ? text : "0", path)'),
            ("return cfg->resume || cfg->sample || cfg->eval; }", "return cfg->resume; }"),
            ("saved.batch * saved.T", "cfg->batch * cfg->T"),
            ("if (!isfinite(tensors[i].data[j]))", "if (0)"),
            ("if (exists && !S_ISREG(info.st_mode))", "if (0)"),
            ("tensors, count, count / 3, &meta)", "tensors, count, count, &meta)"),
            ("tensors, count, count / 3, &meta)", "tensors, count, count / 4, &meta)"),
            ("i < count; i++) memset(tensors", "i < count - 1; i++) memset(tensors"),
            ("for (int i = count / 3; i < count;", "for (int i = 2 * count / 3; i < count;"),
            ("!stat(own, &ours) && theirs.st_dev", "stat(own, &ours) && theirs.st_dev"),
            ('if (strcmp(cfg->init, init ? init : ""))', "if (!init)"),
            (
                '"mu_param", "base_d", "scale", "att',
                '"mu_param", "base_d", "d", "att',
            ),
            ('"attention", "attn_cap"', '"attention"'),
            ("NUM_SHAPES = 7,", "NUM_SHAPES = 6,"),
            ("NUM_SHAPES = 7,", "NUM_SHAPES = 8,"),
            ("if (!given[at]) *cfg", "if (!given[at] || i >= NUM_SHAPES) *cfg"),
            ("if (*cfg->init) config_init(cfg, given);", ""),
        ],
    ),
    (
        "lib/checkpoint.h",
        "test_runs.py -k 'resume or rms_columns or model_holds'",
        [
            ("groups[3] = {params, m, v}", "groups[3] = {params, v, m}"),
            (
                "safetensors_write(path, tensors, count, &meta)",
                "safetensors_write(path, tensors, count - 1, &meta)",
            ),
            ("(long)number[2], (int)number[3], number", "(long)number[2], 0, number"),
            ("{(int)number[0], number[1], (long)", "{(int)number[0], 0, (long)"),
            (
                "metadata_add(&meta, FLAGS[i].name)",
                "metadata_add(&meta, FLAGS[i ? i - 1 : 0].name)",
            ),
        ],
    ),
    (
        "lib/run.h",
        "test_survive.py -k 'over_an_old or replaces_an_old or killed_while or one_run'",
        [
            ("bool replaces = !resumed &&", "bool replaces = resumed &&"),
            ("if ((unlink(fresh) && errno != ENOENT) ||", "if ("),
            ("|| (unlink(part) && errno != ENOENT))", ")"),
            ("(flock(file, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)", "file < 0"),
        ],
    ),
    (
        "lib/run.h",
        "test_runs.py -k 'overflow or grown or counting_tokens'",
        [
            ("(cfg->clip == 0 || cfg->clip > LARGEST_SQUARED)", "cfg->clip == 0"),
            ("data_tokens != state->data_tokens", "data_tokens < state->data_tokens"),
            ("run->start.tokens + steps *", "steps *"),
            ("s.tokens_per_second = run_tokens(run, step)", "s.tokens_per_second = step"),
        ],
    ),
    (
        "lib/run.h",
        (
            "test_runs.py -k 'resume_of or rms_columns or another_run or does_not_fit or summary or"
            " test_log or diverge'"
        ),
        [
            (
                "ftruncate(fileno(log), state->log_bytes)",
                "ftruncate(fileno(log), state->log_bytes * 0)",
            ),
            ("if (at != state->log_bytes || line", "if (at < state->log_bytes || line"),
            ("line[n - 1] != '\\n' || strtol", "strtol"),
            ("NULL, 10) > state->step)", "NULL, 10) < 0)"),
            (
                "log_number(run->log, s->grad_norm);\n    log_number(run->log, s->log_z);",
                "log_number(run->log, s->log_z);\n    log_number(run->log, s->grad_norm);",
            ),
            ("measured ? s->mean_logit : NAN", "measured ? s->log_z : NAN"),
            (
                "groups[3] = {s->grad_rms, s->param_rms, s->update_rms}",
                "groups[3] = {s->grad_rms, s->update_rms, s->param_rms}",
            ),
            ("double steps = step - run->start.step;", "double steps = step;"),
            ("if (logged || fatal) log_row", "if (logged) log_row"),
            ('csv_extreme(&log, "val_loss", -1)', 'csv_extreme(&log, "val_loss", 1)'),
            ("run->num_parameters - parameter_size", "run->num_parameters - 2 * parameter_size"),
            ("- parameter_size(&run->table[LM_HEAD]);", "- 0;"),
            (
                "return !(s->final_loss < s->initial_loss);",
                "return s->final_loss > s->initial_loss;",
            ),
            ("most = fmax(most, csv_extreme", "most = fmin(most, csv_extreme"),
            ("s.final_loss = run->diverged_step ? NAN :", "s.final_loss ="),
        ],
    ),
    (
        "lib/run.h",
        "test_runs.py -k 'eval or init or written'",
        [
            ("if (!isfinite(loss))", "if (loss < 0)"),
            ("loss, exp(loss));", "loss, exp2(loss));"),
            ("(double)windows * cfg->T, *cfg->val", "(double)windows, *cfg->val"),
            ("*cfg->val ? cfg->val : cfg->data", "cfg->data"),
            ("else if (*cfg->init) print", "else print"),
        ],
    ),
    (
        "lib/run.h",
        "test_diagnosis.py",
        [
            ("> limit)\n                return", "> 2.5 * limit)\n                return"),
            ("> limit) || f->cfg->kappa > 0 ||", "> limit) ||"),
            ("f->cfg->attention != ATTENTION_SOFTMAX ||", ""),
            (
                '!strcmp(f->cfg->data, "bigram"))\n        return false;',
                "0)\n        return false;",
            ),
            ("? 10 * f->cfg->attn_cap :", "? f->cfg->attn_cap :"),
            ("f->cfg->attn_cap > 0 ? 10", "f->cfg->attn_cap < 0 ? 10"),
            ("l + 1, layers,\n", "l, layers,\n"),
            ('bounded ? "a lower -lr"', '!bounded ? "a lower -lr"'),
            ("f->cfg->qk_norm || f->cfg->qk_clip > 0;", "f->cfg->qk_norm;"),
            (" ||\n            uses_muon(f->cfg, table, k)) continue;", ") continue;"),
            ("if (f->final < f->initial) return false;\n    const", "const"),
            ("if (cfg->kappa > 1e4)", "if (0)"),
            ("if (decay > 1) ", "if (0) "),
            ("(cfg->wd_independent ? 1 : cfg->lr), square", "1, square"),
            ("if (cfg->beta2 < square)", "if (0)"),
            ("return f->cfg->z_loss > f->initial &&", "return 0 &&"),
            ("return f->cfg->z_loss > f->initial &&", "return f->cfg->z_loss > 0.5 &&"),
            ("return gradient_overflows(f->cfg, norm) &&", "return 0 &&"),
            ("return !isfinite(f->final) &&", "return 0 &&"),
            ("f->final > f->best + 0.5 &&", ""),
            ("f->best < f->initial && f->final", "f->final"),
            ("f->cfg->layers ? C_ATTN : WTE", "C_ATTN"),
            ("cols) < 0.3)) return", "cols) < 0.03)) return"),
            ("cols) < 0.3)) return", "cols) < 1.1)) return"),
            ("norm > f->cfg->clip ?", "0 ?"),
            ("!(rms * scale < 0.1 * eps)", "!(rms * scale < 1e5 * eps)"),
            ("table[k].role == NORM || !(rms", "!(rms"),
            ('rms < 0.1 * eps ? "smaller -eps"', 'rms > 0.1 * eps ? "smaller -eps"'),
            ("return !(f->final < f->initial) &&", "return 0 &&"),
            ('near ? "higher"', '0 ? "higher"'),
            ('near ? "higher"', '1 ? "higher"'),
            (" && !(near && *f->cfg->init)", ""),
            ("if (loss > f->initial + noise)", "if (0)"),
            ("double noise = 0.5 + 10 / sqrt", "double noise = 0.5 + 0 / sqrt"),
            ("step <= 0.1 * f->cfg->steps ?", "0 ?"),
            ("fmax(s->entropy_floor, 0) + 0.05", "0"),
            ("fmax(s->entropy_floor, 0) + 0.05", "0.05"),
        ],
    ),
    (
        "lib/run.h",
        "test_phenomena.py -k of_bfloat16",
        [
            ("(f->cfg->bf16_logits || BF16_LOGITS) &&", ""),
            ("fabs(log_z) > 128 &&", "log_z > 128 &&"),
        ],
    ),
    (
        "lib/flags.h",
        "test_cli.py -k without_effect",
        [
            ("standard && cfg->d == cfg->base_d", "standard"),
            ("standard && cfg->d == cfg->base_d", "cfg->d == cfg->base_d"),
            ('{"base_d", cfg->mu_param == MU_OFF,', '{"base_d", false,'),
            ('{"scale", cfg->mu_param == MU_FULL,', '{"scale", cfg->mu_param > MU_OFF,'),
            ('{"wd_independent", cfg->wd == 0,', '{"wd_independent", true,'),
            ('{"cautious", cfg->wd == 0,', '{"cautious", true,'),
            ('{"attn_cap", no_layers,', '{"attn_cap", true,'),
            ('{"qk_clip", no_layers,', '{"qk_clip", false,'),
            ('{"gate", no_layers,', '{"gate", true,'),
            ('{"peri_ln", no_layers,', '{"peri_ln", false,'),
            ('{"optimizer", no_layers,', '{"optimizer", true,'),
            ("cfg->warmup == cfg->steps,", "true,"),
            ('{"temperature", !cfg->sample,', '{"temperature", true,'),
            ('cfg->schedule == SCHEDULE_CONSTANT, "with', 'false, "with'),
            ("rows[i].idle && given[flag_index(rows[i].flag)]", "rows[i].idle"),
        ],
    ),
    (
        "lib/run.h",
        "test_runs.py -k 'folder_is_of_one or test_sweep'",
        [
            ("if (access(path, F_OK) && !access(summary, F_OK))", "if (0)"),
            ("run->progress->summary = summary;", "run->progress->summary.cfg = *cfg;"),
        ],
    ),
    (
        "lib/run.h",
        "test_survive.py -k 'locked or ignored'",
        [
            (
                "= run_summary(run, step);",
                "= run_summary(run, step);\n        flock(fileno(run->log), LOCK_UN);",
            ),
            (" && old.sa_handler != SIG_IGN)", ")"),
        ],
    ),
    (
        "lib/sweep.h",
        "test_runs.py -k init_of_a_sweep",
        [("        init_check(cfg, path);\n", "")],
    ),
    (
        "lib/sweep.h",
        "test_runs.py -k 'test_sweep or sweep_fails or one_sweep'",
        [
            ("sum / NUM_RATES - best)", "sum / NUM_RATES)"),
            ("cfg.lr != rates[j]) continue", "cfg.lr > 1.2 * rates[j]) continue"),
            ("3e-2, 1e-1, 3e-1}", "3e-2, 1e-1, 1}"),
            ("if (count < NUM_RATES)", "if (count < NUM_RATES - 1)"),
            ("    if (n == 0) return;\n    summary_write", "    summary_write"),
            ('all ? "" : "else "', '""'),
            ("            count++;\n", "            count = i + 1;\n"),
            ("if (!access(path, F_OK))", "if (0)"),
            ("s->final_loss < s->initial_loss ?", "s->final_loss > s->initial_loss ?"),
            ("summary_diverged(&runs[i]) ? 'x' : 'o'", "summary_diverged(&runs[i]) ? 'o' : 'x'"),
            ("strcpy(run.lr_text, lr);", "strcpy(run.lr_text, cfg->lr_text);"),
            ("run.lr = strtod(lr, NULL);", "run.lr = cfg->lr;"),
            ("status == 0 ? DONE :", "status >= 0 ? DONE :"),
            (": count < n ? FAILED : 0;", ": 0;"),
        ],
    ),
    (
        "lib/sample.h",
        "test_terminal.py -k sample",
        [
            ("if (!isfinite(logits[i]))", "if (isinf(logits[i]))"),
            ("return iscntrl(byte)", "return iscntrl(byte / 2)"),
            ("byte < 0xa0 &&", "byte < 0x9b &&"),
            ("before == 0xc2", "before == 0xc3"),
            ("before < 0x80 ||", ""),
        ],
    ),
    (
        "lib/sample.h",
        "test_cli.py -k 'sample or prompt or tokenizer'",
        [
            ("if (logits[i] > logits[best]) best = i;", "if (logits[i] < logits[best]) best = i;"),
            ("sample_token(logits, drawn, cfg->temperature,", "sample_token(logits, drawn, 1,"),
            ("sample_token(logits, drawn,", "sample_token(logits, V,"),
            ('V <= 256 && strcmp(cfg->data, "bigram")', "V <= 256"),
            ("memmove(context, context + 1,", "memmove(context, context,"),
            ("if (used == T) memmove", "if (used > T / 2) memmove"),
            ("if (used == T) memmove", "if (used == T - 1) memmove"),
            (
                "target = random_uniform(random) * sum",
                "target = 0.5 * random_uniform(random) * sum",
            ),
            (
                "target -= exp((logits[i] - logits[best]) / temperature)",
                "target -= exp((logits[i] - logits[best]) * temperature)",
            ),
            ("uint64_t random = (uint64_t)cfg->seed;", "uint64_t random = (uint64_t)cfg->vocab;"),
            ("if (n == 0) context[used++] =", "context[used++] ="),
            ("if (i < n) token = prompt[i];", "if (i < n) token = prompt[0];"),
            ("if (tokens[n] >= V)", "if (tokens[n] > V)"),
            ("number >= 0 && number < V &&", "number >= 0 && number <= V &&"),
            ("number < V && number == floor(number)", "number < V"),
            ("if (!*word) continue;", ""),
            ("if (bytes && *cfg->tokenizer)", "if (0)"),
            (": tokenizer.end_of_text;", ": V - 1;"),
            ("if (header[1] == 2) end_of_text", "if (header[1] == 3) end_of_text"),
            ("header[0] != MAGIC ||", "header[0] < MAGIC ||"),
            ("header[1] > 2)", "header[1] > 3)"),
            ("if (count > V || ", "if ("),
            ("V >= count + PADDING || ", ""),
            ("V >= count + PADDING", "V > count + PADDING"),
            (" || end_of_text >= count)", ")"),
            ("if (length <= 0 ||", "if (length < 0 ||"),
            ("if (getc(file) != EOF)", "if (0)"),
            ("t->token[token] + 1 : &byte", "t->token[token] : &byte"),
        ],
    ),
    (
        "dataloader.h",
        (
            "test_data.py -k 'grammar or lexicon or text_is_the_same or mean_surprise or"
            " sums_to_one or entropy'"
        ),
        [
            ("nats / ((double)windows * T)", "nats / ((double)windows * (T + 1))"),
            ("FOLLOWER_SHARE = 3", "FOLLOWER_SHARE = 4"),
            ("share >= AFTER_SHARES - END_SHARE", "share > AFTER_SHARES - END_SHARE"),
            ("AFTER_SHARES - COMMA_SHARE - end", "AFTER_SHARES - COMMA_SHARE"),
            ("line->words + 1 >= SHORTEST_LINE", "line->words >= SHORTEST_LINE"),
            ("line->remembered[i] < hi) shares++;", "line->remembered[i] <= hi) shares++;"),
            ("line->words++ % N_REMEMBERED", "line->words++ % (N_REMEMBERED - 1)"),
            ("(GRAMMAR_SHARE - remembered)", "GRAMMAR_SHARE"),
            ("(uint32_t)(place[next] * place[next])", "(uint32_t)place[next]"),
            ("lang->words[word].kind % 3", "lang->words[word].kind % 2"),
            ("(share - GRAMMAR_SHARE) / FOLLOWER_SHARE", "(share - GRAMMAR_SHARE) % N_FOLLOWERS"),
        ],
    ),
    (
        "dataloader.h",
        (
            "test_data.py -k 'windows or rows or shards or bad_input or good_input or shortest or"
            " larger'"
        ),
        [
            ("shard->count - T - 1) / stride + 1", "shard->count - T - 1) / stride"),
            ("shard->count - T - 1) / stride + 1", "shard->count - T) / stride + 1"),
            ("split = tokens - tokens / 10", "split = tokens - tokens / 11"),
            ("from -= shard->count;", "from = 0;"),
            ("while (row >= shard->rows)", "while (row > shard->rows)"),
            ("if (t > 0) targets[t - 1] = token;", "if (t < loader->T) targets[t] = token;"),
            ("shard->first + row * part->stride", "row * part->stride"),
            ("token >= (uint32_t)vocab", "token > (uint32_t)vocab"),
            ("number = number << 8 | bytes[width]", "number = number << 7 | bytes[width]"),
            ("(uint64_t)step, (uint64_t)b)", "(uint64_t)step, 0 * (uint64_t)b)"),
            ("random_stream(loader->seed,", "random_stream(1,"),
            (
                "random_stream(0, (uint64_t)window, (uint64_t)-1)",
                "random_stream(loader->seed, (uint64_t)window, (uint64_t)-1)",
            ),
            (
                "random_u64(&random) % (uint64_t)loader->train.rows",
                "random_below(&random, (uint32_t)loader->train.rows)",
            ),
            (
                'validation" : "validation (the last tenth)", T, T)',
                'validation" : "validation (the last tenth)", T, T + 1)',
            ),
            ("if (info.st_size != size)", "if (info.st_size < size)"),
            ("if (c == 0) return false;", ""),
            ("strange += c < ' ' &&", "strange += c < '\\t' &&"),
            ("&& c <= '\\r')", "&& c <= '\\n')"),
            ("&& c != ESCAPE", ""),
            ("strange <= size / 64", "true"),
            ("if (i % 2 && bytes[i]) return false;", ""),
            ("any |= bytes[i] != 0;", "any = true;"),
            ("size % 2 == 0 && looks_like", "looks_like"),
            ("vocab > 256 ||", "vocab > 120 ||"),
            ("vocab > 256 ||", "vocab > 257 ||"),
            ("if (!said) print_sentence(", "print_sentence("),
            ("UINT16 : BYTES]", "BYTES : UINT16]"),
            ("bytes + place, kind->magic", "bytes, kind->magic"),
            ("if (version != kind->version)", "if (version > kind->version)"),
            ("HEADER + kind->width * shard->count", "HEADER + 2 * shard->count"),
            ("if (!kind->version && info.st_size % kind->width)", "if (0)"),
            ("if (shard->kind != first->kind)", "if (shard->kind->width != first->kind->width)"),
            ("part_check_kind(train, &train->shards[0]);", ""),
            ("part_check_kind(validation, &train->shards[0]);", ""),
            ("if (!vocab) loader->vocab = train", "if (vocab < 3) loader->vocab = train"),
            ("1, 50257, NULL}", "1, 256, NULL}"),
            ("7, 128256, NULL}", "7, 65536, NULL}"),
            ('MAGIC("1AY&SY"), 4,', 'MAGIC("BZh"), 0,'),
            ('MAGIC("\\xff\\xfe\\0\\0"), 0,', 'MAGIC("\\xff\\xfe\\0\\0"), 1,'),
            ("loader->language ? '\\n' :", "loader->language ? ' ' :"),
        ],
    ),
    (
        "dataloader.h",
        "test_data.py -k bigram",
        [
            ("FOLLOWER_TENTHS = 9", "FOLLOWER_TENTHS = 8"),
            ("(uint32_t)(10 * rank + 37)", "(uint32_t)(10 * rank + 47)"),
            ("source->follower[v] = source->follower[place];", "source->follower[v] = v;"),
            ("draw(&random, bigram->below, bigram->V)", "0"),
            ("last = draw(random, source->below, source->V)", "last = 0"),
            ("if (next == source->follower[last]) p", "if (next == last) p"),
            ("double p = (1 - follower) * mass", "double p = follower * mass"),
            ("i < n; last = tokens[i++])", "i < n; i++)"),
            ("if (!vocab) loader->vocab = 4096;", ""),
            ("if (vocab == 1)", "if (vocab > 65536)"),
        ],
    ),
    (
        "dataloader.h",
        "test_data.py -k text_is_the_same",
        [("random_below(&random, (uint32_t)v + 1)", "random_below(&random, 4096) % (v + 1)")],
    ),
    (
        "dataloader.h",
        "test_runs.py -k 'validation or entropy'",
        [
            (
                "eval_tokens / loader->T > 0 ? eval_tokens / loader->T : 1",
                "eval_tokens / loader->T + 1",
            ),
            (
                "windows < loader->val_windows ? windows : loader->val_windows",
                "windows <= loader->val_windows ? windows : 1",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        FP32,
        [
            ("tokens[row] * C + c);\n    store(out", "tokens[0] * C + c);\n    store(out"),
            ("if (row >= rows) return;", "if (row + 1 >= rows) return;"),
            ("row >= 0 && row < rows && c < C);", "row > 0 && row < rows && c < C);"),
            ("row >= 0 && row < rows && c < C);", "row >= 0 && row < rows - 1 && c < C);"),
            (
                "if (threadIdx.y || c >= C) return;\n    load(sum",
                "if (c >= C) return;\n    load(sum",
            ),
            ("rounded(y[part][i] + b[part][i])", "rounded(y[part][i])"),
            ("row < rows && c < C && branch);", "row < rows && c < C && !branch);"),
            ("p->used += (size_t)rows * cols;", "p->used += (size_t)cols;"),
            ("auto entry = p.list[blockIdx.y];", "auto entry = p.list[0];"),
            ("ceil_div(C, 32), p->count)", "ceil_div(C, 32), p->count - 1)"),
            ("d[part][i] += r * (g[part][i]", "d[part][i] = r * (g[part][i]"),
            ("store(partial + c, dw[part], c < C);", "store(partial + c, dw[part]);"),
            (
                "NULL, matrix(dout, OC), matrix(weight, IC), rows, IC, OC);",
                "NULL, matrix(dout, OC), matrix(weight, IC), rows, IC, OC - 1);",
            ),
            ("while (lanes * 2 * PAIRS < HS)", "while (lanes * 4 * PAIRS < HS)"),
            ("load(h.x[1], from + HS / 2, inside);", "load(h.x[1], from + HS / 4, inside);"),
            ("store(to + HS / 2, h.x[1], inside);", "store(to + HS / 4, h.x[1], inside);"),
            ("s = direction * sine[i];", "s = direction * direction * sine[i];"),
            ("x0 * cosine[i] - x1 * s;", "x0 * cosine[i] + x1 * s;"),
            ("x0 * s + x1 * cosine[i];", "x1 * s + x0 * cosine[i];"),
            ("m = lanes_sum(m, lanes) / HS;", "m = lanes_sum(m, lanes);"),
            (
                "variance = lanes_sum(variance, lanes) / HS;",
                "variance = lanes_sum(variance, lanes);",
            ),
            ("= weight.x[part][i] * (h.x[part][i] * r);", "= weight.x[0][i] * (h.x[part][i] * r);"),
            ("        *rstd = r;", "        *rstd = m;"),
            (
                "int angles = row % T * (HS / 2) + i0;\n    size_t from",
                "int angles = row / T * (HS / 2) + i0;\n    size_t from",
            ),
            (
                "k = load_head(qkv + from + C, HS, inside);",
                "k = load_head(qkv + from, HS, inside);",
            ),
            (
                "Head k_w = load_head(k_weight + i0,",
                "Head k_w = load_head((k_weight ? q_weight : k_weight) + i0,",
            ),
            ("layernorm_head(k, mean + stat + NH, r", "layernorm_head(k, mean + stat, r"),
            ("rope_head(k, cos_t, sin_t, 1);", "rope_head(q, cos_t, sin_t, 1);"),
            ("lanes), HEAD_THREADS,\n           qk,", "lanes) - 1, HEAD_THREADS,\n           qk,"),
            ("(k ? k_weight : q_weight) + i0", "(k ? q_weight : k_weight) + i0"),
            (
                "h = head % NH, angles = row % T * (HS / 2)",
                "h = head % NH, angles = row / T * (HS / 2)",
            ),
            ("((size_t)row * 2 + k) * NH + h;", "(size_t)row * 2 * NH + h;"),
            ("rope_head(g, cos_t, sin_t, -1);", "rope_head(g, cos_t, sin_t, 1);"),
            (
                "n.x[part][i] = (x.x[part][i] - mean) * rstd;",
                "n.x[part][i] = x.x[part][i] * rstd + 0 * mean;",
            ),
            ("            g.x[part][i] *= weight.x[part][i];\n", "            (void)weight;\n"),
            ("mean_g = lanes_sum(mean_g, lanes) / HS;", "mean_g = lanes_sum(mean_g, lanes);"),
            ("mean_gn = lanes_sum(mean_gn, lanes) / HS;", "mean_gn = lanes_sum(mean_gn, lanes);"),
            ("(g.x[part][i] - mean_g - n.x[part][i]", "(g.x[part][i] - mean_g + n.x[part][i]"),
            ("distance >= lanes; distance /= 2)", "distance > lanes; distance /= 2)"),
            ("warp < HEAD_THREADS / 32; warp++)", "warp < HEAD_THREADS / 64; warp++)"),
            ("[part * (HS / 2) + i0 + i] = sum;", "[i0 + i] = sum;"),
            ("i < HS; i += HEAD_THREADS)", "i < HS / 2; i += HEAD_THREADS)"),
            ("((size_t)k * gridDim.x + blockIdx.x) * HS;", "(size_t)blockIdx.x * HS;"),
            (
                "sums = partials_add(partial, dq_weight, grid, HS);\n"
                "        partials_add(partial, dk_weight,",
                "sums = partials_add(partial, dk_weight, grid, HS);\n"
                "        partials_add(partial, dq_weight,",
            ),
            ("real s = (x > 0 ? 1 : e) * inverse;", "real s = (x > 0 ? e : 1) * inverse;"),
            ("*slope = s + x * e", "*slope = s - x * e"),
            ("(GELU_A + 3 * GELU_B * a2)", "(GELU_A + GELU_B * a2)"),
            ("    return x * s;", "    return s;"),
            ("d[i] *= slope;", "d[i] = slope;"),
            ("(n / W + 127) / 128, 128, out, inp, n)", "n / W / 128, 128, out, inp, n)"),
            ("gelu_backward(dfc, dfc, fc, rows, IC)", "gelu_backward(dfc, dfc, gelu, rows, IC)"),
            ("x[j] = value(__float2bfloat16(x[j]));", "x[j] = x[j];"),
            ("ceil_div(rows * (V / W), 128), 128, logits", "rows * (V / W) / 128, 128, logits"),
            ("    if (BF16) return;\n    launch(round", "    if (!BF16) return;\n    launch(round"),
            ("weight += 2 * z_loss * z;", "weight += z_loss * z;"),
            ("float factor = weight / sum / batch_rows", "float factor = weight / sum"),
            ("y[i] -= 1.0f / batch_rows", "y[i] -= 1.0f"),
            ("top - target_logit + logf(sum)", "top + target_logit + logf(sum)"),
            ("row_sum(sum * exponential(own - top))", "row_sum(sum * exponential(top - own))"),
            ("if (j + i >= V) y[i] = -INFINITY;", ""),
            ("- top) * factor : 0;", "- top) * factor : 1;"),
            ("log_z[blockIdx.x] = z;", "log_z[blockIdx.x] = logf(sum);"),
            (
                "i < rows; i += blockDim.x) {\n        loss",
                "i < rows - 1; i += blockDim.x) {\n        loss",
            ),
            ("results->log_z = z;", "results->log_z = loss;"),
            ("? (double)y[j] * y[j] : y[j];", "? (double)y[j] : y[j];"),
            ("? (double)y[j] * y[j] : y[j];", "? (double)y[j] * y[j] : y[j] * y[j];"),
            ("sums[blockIdx.x] += sum;", "sums[blockIdx.x] = sum;"),
            ("all + kinds.offset[blockIdx.y], kinds", "all, kinds"),
            ("sums[blockIdx.y * gridDim.x + blockIdx.x] = sum", "sums[blockIdx.x] = sum"),
            (
                "targets - b->inputs), targets, b->rows",
                "targets - b->inputs), inputs + 0 * *targets, b->rows",
            ),
            ("order[start[inputs[i]]++] = i", "order[start[targets[i]]++] = i"),
            ("start[inputs[i] + 1]++", "start[inputs[i]]++"),
            ("p->offset + (size_t)l * parameter_size(p) : NULL", "p->offset : NULL"),
            ("a->max_logit = g->max_logit + l * cfg->heads;", "a->max_logit = g->max_logit;"),
            ("to_gpu(g->sine, sine, table", "to_gpu(g->sine, cosine, table"),
            ("check(cudaMemsetAsync(g->v, 0, g->num", "check(cudaMemsetAsync(g->m, 0, g->num"),
            ("to_gpu(g->params, params, n * s", "to_gpu(g->params, params, g->num_parameters * s"),
            ("V = padded(V);                     ", "V = g->V;              "),
            (
                "V = padded(V);\n    int peri_ln = g->cfg.peri_ln;\n    real",
                "V = g->V;\n    int peri_ln = g->cfg.peri_ln;\n    real",
            ),
            (
                "squares[ACT_LOGITS], g->logits, (size_t)rows * V);",
                "squares[ACT_LOGITS], g->logits, (size_t)rows * g->V);",
            ),
            ("= total[SUM_LOGITS] /", "= total[ACT_LOGITS] /"),
            ("a.ln_2_rstd, a.x, branch,", "a.ln_2_rstd, x, branch,"),
            ("        x = a.x_mid;", "        x = a.x;"),
            (
                "g->sine, B, T, NH, HS);\n        attention_f",
                "g->cosine, B, T, NH, HS);\n        attention_f",
            ),
            ("squares[ACT_C_ATTN], a.qkv, 3 * BTC", "squares[ACT_C_ATTN], a.qkv, BTC"),
            ("squares[ACT_RESIDUAL], g->x,", "squares[ACT_RESIDUAL], g->embedded,"),
            ("    check(cudaMemsetAsync(dx, 0, (size_t)rows * C * sizeof(act), stream));", ""),
            ("g->dw[LN_F], dnorm, g->x,", "g->dw[LN_F], dnorm, g->embedded,"),
            ("dw[LN_1], dnorm, a.x,", "dw[LN_1], dnorm, a.x_mid,"),
            ("dw[LN_2], dnorm, a.x_mid,", "dw[LN_2], dnorm, a.x,"),
            ("clip_scale = o->clip / norm;", "clip_scale = o->clip / (norm * norm);"),
            ("if (norm * clip_scale > LARGEST_SQUARED) clip_scale = NAN;", ""),
            ("results->grad_norm = norm;", "results->grad_norm = norm * clip_scale;"),
            ("real g = grad[i] * clip_scale;", "real g = grad[i] / clip_scale;"),
            ("o.beta1 * m[i] + (1 - o.beta1) * g;", "(1 - o.beta1) * m[i] + o.beta1 * g;"),
            ("(1 - o.beta2) * g * g;", "(1 - o.beta2) * g;"),
            ("m[i] * o.correction1 /", "m[i] / o.correction1 /"),
            ("(sqrt(v[i] * o.correction2) + o.eps)", "sqrt(v[i] * o.correction2 + o.eps)"),
            ("lr * u + decay * param", "lr * (u + decay * param)"),
            ("kind_lr = constants->lr[k]", "kind_lr = constants->lr[0]"),
            ("1 - pow(cfg->beta1, step)", "1 - pow(cfg->beta1, step + 1)"),
            ("1 - pow(beta2, step)", "1 - pow(beta2, step - 1)"),
            ("kind_lr *= mu_lr_scale", "kind_lr /= mu_lr_scale"),
            ("beta2 = cfg->beta2;", "beta2 = cfg->beta1;"),
            ("eps = cfg->eps;", "eps = cfg->eps * cfg->eps;"),
            ("decay = weight_decay(cfg, step);", "decay = weight_decay(cfg, 1);"),
            ("parameter_size(p) * (size_t)p->copies;\n    }", "parameter_size(p);\n    }"),
            (
                "check(cudaMemsetAsync(g->grads, 0, g->num",
                "check(cudaMemsetAsync(g->grads, 0, 0 * g->num",
            ),
            (
                "check(cudaMemsetAsync(g->squares, 0, squares",
                "check(cudaMemsetAsync(g->squares, 0, squares / 2",
            ),
            ("g->max_logit, 0, heads * s", "g->max_logit, 0, (heads - 1) * s"),
            ("4 * L * BTC, BTC, BTV}", "L * BTC, BTC, BTV}"),
            ("sum += sums[(size_t)blockIdx.x * n + i];", "sum += sums[i];"),
            ("totals[blockIdx.x] = sum;", "totals[blockIdx.x] += sum;"),
            ("g->squares[0], SUM_BLOCKS);", "g->squares[0], SUM_BLOCKS / 2);"),
            ("real)fmax(sqrt(sum / n), lowest);", "real)sqrt(sum / n);"),
            ("kinds.offset[k] + l * n, n)", "kinds.offset[k], n)"),
            ("rms[k][j / tensor];", "rms[k][0];"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'no_layers or not_have'",
        [
            ("cfg->layers ? reserve(g, BT * C) : g->embedded", "reserve(g, BT * C)"),
            ("if (L == 0) sum_partials(g->partial, C);", ""),
            ("if (absent) die(", "if (0) die("),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_layernorm",
        [
            ("32 * ceil_div(C, 32 * PARTS * W)", "32 * ceil_div(C, 64 * PARTS * W)"),
            ("m = row_sum(m) / C;", "m = row_sum(m);"),
            ("c < C ? y[part][i] - m : 0;", "y[part][i] - m;"),
            ("variance = row_sum(variance) / C;", "variance = row_sum(variance) / (C - 1);"),
            (
                "train_gpt.c\n    float r = 1 / sqrtf(variance + 1e-6f)",
                "train_gpt.c\n    float r = 1 / (sqrtf(variance) + 1e-3f)",
            ),
            ("y[part][i] = w[part][i] * (y[part][i] * r)", "y[part][i] = y[part][i] * r"),
            ("y[part], row < rows && c < C);", "y[part], row < rows - 1 && c < C);"),
            ("        mean[row] = m;\n        rstd", "        mean[row] = r;\n        rstd"),
            ("int c = blockIdx.x * 32 + threadIdx.x;", "int c = threadIdx.x;"),
            ("r < entry.rows; r += 8)", "r < entry.rows - 1; r += 8)"),
            ("for (int y = 0; y < 8; y++) sum +=", "for (int y = 0; y < 7; y++) sum +="),
            ("\n                g[part][i] *= w[part][i];", ""),
            ("mean_g = row_sum(mean_g) / C;", "mean_g = row_sum(mean_g);"),
            ("mean_gn = row_sum(mean_gn) / C;", "mean_gn = row_sum(mean_gn);"),
            (
                "d[part][i] += r * (g[part][i] - mean_g -",
                "d[part][i] += r * (g[part][i] - mean_g +",
            ),
            (
                "partials_add(partial, dweight, grid * block.y, C)",
                "partials_add(partial, dweight, grid, C)",
            ),
            (
                "((size_t)blockIdx.x * blockDim.y + threadIdx.y) * C;",
                "((size_t)blockIdx.x * blockDim.y) * C;",
            ),
            ("((size_t)blockIdx.x * blockDim.y + threadIdx.y) * C;", "(size_t)threadIdx.y * C;"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_a_norm_of_what_overflows_is_not_a_number",
        [
            (" + 0 * variance;\n    #pragma", ";\n    #pragma"),
            (" + 0 * variance;\n    for", ";\n    for"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_rounds",
        [
            ("\n                dw[part][i] += g[part]", "\n                dw[part][i] = g[part]"),
            ("dweight.x[part][i] += g.x[part][i]", "dweight.x[part][i] = g.x[part][i]"),
            (
                "return n < (size_t)128 * W * SUM_BLOCKS ?",
                "return n < (size_t)256 * W * SUM_BLOCKS ?",
            ),
            ("first += gridDim.x * blockDim.y)", "first += 2 * gridDim.x * blockDim.y)"),
            ("first += gridDim.x * each)", "first += 2 * gridDim.x * each)"),
            ("i += step) {\n        load(y,", "i += 2 * step) {\n        load(y,"),
            ("j < n; j += step) {", "j < n; j += 2 * step) {"),
        ],
    ),
    (
        "train_gpt.cu",
        "'test_cuda.py::test_fp32[two_symbols]'",
        [
            (
                "i < start[v + 1]; i += EMBEDDING_ROWS)",
                "i < start[v + 1]; i += EMBEDDING_ROWS + 1)",
            ),
            ("i = start[v] + threadIdx.y;", "i = start[v] + threadIdx.y / 2;"),
            ("y < EMBEDDING_ROWS; y++)", "y < EMBEDDING_ROWS - 1; y++)"),
            ("dim3(V, ceil_div(C, 32 * W))", "dim3(V - 1, ceil_div(C, 32 * W))"),
            ("for (int v = V; v > 0; v--)", "for (int v = V; v > 1; v--)"),
            ("    start[0] = 0;", ""),
            ("(b->start + V + 1 - b->inputs)", "(b->start + V - b->inputs)"),
        ],
    ),
    (
        "train_gpt.cu",
        "'test_cuda.py::test_fp32[many_symbols]'",
        [
            (
                "sum = sum * exponential(old - top) + total",
                "sum = sum * exponential(top - old) + total",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        "'test_cuda.py::test_fp32[head_of_80]'",
        [
            ("inside ? h.x[part][i] - m : 0", "h.x[part][i] - m"),
            ("bool inside = row < rows && i0 < HS / 2;", "bool inside = row < rows;"),
            ("bool inside = head < heads && i0 < HS / 2;", "bool inside = head < heads;"),
        ],
    ),
    (
        "train_gpt.cu",
        "'test_cuda.py::test_fp32[wide]'",
        [
            ("c = (blockIdx.y * 32 + threadIdx.x) * W", "c = threadIdx.x * W"),
            ("dim3(V, ceil_div(C, 32 * W))", "dim3(V, 1)"),
        ],
    ),
    (
        "train_gpt.cu",
        "'test_cuda.py::test_fp32[unclipped]'",
        [
            ("if (o->clip > 0 && norm > o->clip)", "if (norm > o->clip)"),
        ],
    ),
    (
        "train_gpt.cu",
        ATTENTION,
        [
            ("i += STEP) {", "i += 2 * STEP) {"),
            ("    __pipeline_commit();", ""),
            ("__pipeline_wait_prior(0);", "__pipeline_wait_prior(1);"),
            ("sums[c][e + 1] * factor[e / 2 % 2])", "sums[c][e + 1] * factor[0])"),
            ("if (r < rows && column < HS) *(Pair", "if (r < rows && HS > 0) *(Pair"),
            ("if (r < rows && column < HS) *(Pair", "if (rows > 0 && column < HS) *(Pair"),
            (
                "fetch(v_tile[now ^ 1], v, 3 * C, T - j0 - KEYS, HS);\n"
                "        }\n"
                "        if (j0 > i0 + 15) continue;     ",
                "fetch(v_tile[now], v, 3 * C, T - j0 - KEYS, HS);\n"
                "        }\n"
                "        if (j0 > i0 + 15) continue;     ",
            ),
            ("if (j0 > i0 + 15) continue;     ", "if (j0 >= i0) continue;     "),
            ("block_column(e) <= i0 + block_row(e);", "block_column(e) < i0 + block_row(e);"),
            ("block_column(e) <= i0 + block_row(e);", "block_column(e) <= i0 + block_row(e) + 1;"),
            ("seen ? fabsf(s[n][e]) : 0", "seen ? s[n][e] : 0"),
            ("seen ? s[n][e] : -INFINITY", "seen ? s[n][e] : 0"),
            ("old[2] = {top[0], top[1]};", "old[2] = {top[0], top[0]};"),
            (
                "factor[r] = power_of_2(old[r] - from[r]);",
                "factor[r] = power_of_2(from[r] - old[r]);",
            ),
            ("__shfl_xor_sync(ALL, top[r], 1)", "__shfl_xor_sync(ALL, top[r], 2)"),
            ("__shfl_xor_sync(ALL, top[r], 2)", "__shfl_xor_sync(ALL, top[r], 1)"),
            ("            sum[r] *= factor[r];", ""),
            ("o[c][e] *= factor[e / 2 % 2];", "o[c][e] *= factor[0];"),
            ("multiply(o[c], p, over_rows(v_tile[now]", "multiply(o[c], p, over_rows(k_tile[now]"),
            ("inverse[r] = 1 / lanes_sum(sum[r], 4)", "inverse[r] = 1 / lanes_sum(sum[r], 2)"),
            ("head * T + i)] = top[r];", "head * T + i)] = 0;"),
            ("head * T + i) + 1] = inverse[r];", "head * T + i) + 1] = top[r];"),
            ("__float_as_int(scale * largest)", "__float_as_int(largest)"),
            ("(HS <= 32 ? f", "(HS <= 40 ? f"),
            ("HS <= 64 ? f", "HS <= 80 ? f"),
            ("element(doi[c], e) * element(oi, e)", "element(oi, e) * element(oi, e)"),
            ("dot_i[r] = lanes_sum(dot_i[r], 4)", "dot_i[r] = lanes_sum(dot_i[r], 2)"),
            ("inverse[r] = softmax[2 * at + 1]", "inverse[r] = softmax[2 * at]"),
            ("dot[at] = dot_i[r];", "dot[at] = 0;"),
            (
                "fetch(v_tile[now ^ 1], v, 3 * C, T - j0 - KEYS, HS);\n"
                "        }\n"
                "        if (j0 > i0 + 15) continue;\n",
                "fetch(v_tile[now], v, 3 * C, T - j0 - KEYS, HS);\n"
                "        }\n"
                "        if (j0 > i0 + 15) continue;\n",
            ),
            (
                "multiply(dp, doi[c], over_channels(v_tile",
                "multiply(dp, doi[c], over_channels(k_tile",
            ),
            ("if (j0 + 16 * n + 15 > i0)", "if (j0 + 16 * n > i0)"),
            (
                "block_column(e) > i0 + block_row(e)) s[e]",
                "block_column(e) >= i0 + block_row(e)) s[e]",
            ),
            ("power_of_2(s[e] - top[r]) * inverse[r]", "power_of_2(s[e] - top[r]) * inverse[0]"),
            ("ds[e] = p * (dp[e] - dot_i[r])", "ds[e] = p * (dp[e] + dot_i[r])"),
            ("factor[2] = {scale, scale};", "factor[2] = {1, 1};"),
            ("q += QUERIES * 2 * C;", "q += QUERIES * C;"),
            ("if (i0 + QUERIES <= j0) continue;", "if (i0 + QUERIES <= j0 + 16) continue;"),
            (
                "multiply(dp, vj[c], over_channels(do_tile",
                "multiply(dp, vj[c], over_channels(q_tile",
            ),
            ("if (i0 + 16 * n < j0 + 15)", "if (i0 + 16 * n < j0)"),
            ("if (j0 + block_row(e) > i0", "if (j0 + block_row(e) >= i0"),
            ("inverse = softmax_tile[now][2 * i + 1]", "inverse = softmax_tile[now][2 * i]"),
            ("(dp[e] - dot_tile[now][i])", "(dp[e] + dot_tile[now][i])"),
            ("p_j = left_factor(p);", "p_j = left_factor(ds);"),
            (
                "factor[2] = {scale, scale}, one[2] = {1, 1};",
                "factor[2] = {1, 1}, one[2] = {1, 1};",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        "test_attention.py -k 'fp32 and (without_the or minus_infinity or large_scores)'",
        [
            ("if (CAP || max_logit || j0 + KEYS - 1 > i0)", "if (CAP || max_logit || j0 > i0)"),
            ("top[r] == -INFINITY ? 0 : top[r];", "top[r];"),
            ("zeros = i0 + i < T ? 0 : 4;", "zeros = 0;"),
        ],
    ),
    (
        "train_gpt.cu",
        BF16,
        [
            (
                "load(x, params + i);\n    store(weights + i",
                "load(x, params);\n    store(weights + i",
            ),
            (
                "update_weights(g->weights, g->params, n);",
                "update_weights(g->weights, g->params, n - 8);",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'test_micro_batches and fp32'",
        [
            ("row >= 0 && row < rows && c < C);", "row < rows && c < C);"),
            ("row >= 0 && row < rows && c < C);", "row >= 0 && rows > 0 && c < C);"),
            ("int row = order[i] - first;", "int row = order[i] - 0 * first;"),
            ("load(sum, dwte + (size_t)v * C + c);", "load(sum, dwte + (size_t)v * C + c, false);"),
            ("    sum = entry.out[c];", "    sum = 0;"),
            (
                "matrix(inp, IC), OC, IC, rows);\n}\n\n// Like matmul_backward",
                "matrix(inp, IC), OC, IC, rows - 1);\n}\n\n// The same",
            ),
            ("g->losses + at, g->log_z + at,", "g->losses, g->log_z + at,"),
            ("g->losses + at, g->log_z + at,", "g->losses + at, g->log_z,"),
            ("gradient, rows, g->batch.rows, g->V);", "gradient, rows, rows, g->V);"),
            ("(tokens - g->batch.inputs), rows", "(0 * (tokens - g->batch.inputs)), rows"),
            ("inputs + b * T, n, T, statistics);", "inputs, n, T, statistics);"),
            ("targets + b * T, n, T, 1);", "targets, n, T, 1);"),
            ("gpt_backward(g, g->batch.inputs + b * T,", "gpt_backward(g, g->batch.inputs,"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'gelu and 1e'",
        [
            ("fabsf(x) < 30 ? fabsf(x) : 30", "fabsf(x)"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_log",
        [
            ("    if (!step) loss += results->loss;", ""),
            ("    if (!step) loss += results->loss;", "    loss += results->loss;"),
            ("check(cudaEventSynchronize(b->copied[b->turn]));", ""),
            ("    check(cudaEventRecord(b->copied[b->turn], stream));", ""),
            ("*host = b->host[b->turn],", "*host = b->host[0],"),
            ("    check(cudaGraphLaunch(graph->exec, stream));", ""),
            ("graph_run(&g->graphs[statistics]", "graph_run(&g->graphs[0]"),
            (
                "check(cudaMemsetAsync(g->results, 0, 2 * s",
                "check(cudaMemsetAsync(g->results, 1, 2 * s",
            ),
            ("sum += (double)u * (double)u;", "sum += (double)u * (double)(lr * u);"),
            (
                "g->sums + 2 * n, g->params, kinds);",
                "g->sums + 2 * n, g->grads, kinds);",
            ),
            ("stats->log_z = r.log_z /", "stats->log_z = r.loss /"),
            (
                "launch(totals_kernel, 3 * NUM_KINDS, 128,",
                "launch(totals_kernel, 2 * NUM_KINDS, 128,",
            ),
            ("of_kinds[NUM_KINDS + k]", "of_kinds[k]"),
            ("of_kinds[2 * NUM_KINDS + k]", "of_kinds[NUM_KINDS + k]"),
            ("sum_blocks(g->num_parameters));\n    from_gpu", "SUM_BLOCKS);\n    from_gpu"),
            ("    check(cudaMemsetAsync(results, 0, sizeof *results, stream));", ""),
            ("dataloader_val(loader, w, rows", "dataloader_val(loader, 0, rows"),
            ("windows - w < B ? (int)(windows - w) : B", "B"),
            ("targets + b * T, n, T, 0);", "targets, n, T, 0);"),
            ("g->log_z, rows * T, (int *)NULL", "g->log_z, B * T, (int *)NULL"),
            ("double sum = r.loss / T;", "double sum = r.loss;"),
            ("|| step % cfg->log_every == 0;", "|| step % cfg->log_every == 1;"),
            (
                "eval_every && step % cfg->eval_every == 0",
                "eval_every && step % cfg->eval_every == 1",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_diverged",
        [
            (
                "if (threadIdx.x || (step && results->diverged_step)) return;",
                "if (threadIdx.x) return;",
            ),
            ("if (step && !isfinite(loss))", "if (step && isnan(loss) && 0)"),
            ("results->diverged_step < o->step;", "results->diverged_step <= o->step;"),
            ("if (over(results, constants) || (MUON", "if ((MUON"),
            ("            step = run.diverged_step;   ", "            "),
        ],
    ),
    (
        "train_gpt.cu",
        "test_attention.py -k 'fp32 and cap'",
        [
            ("return s == -INFINITY ? s : copysignf", "return copysignf"),
            ("= exponential(-2 * reciprocal(cap)", "= exponential(-1 * reciprocal(cap)"),
            ("*slope = 4 * (e * inverse) * inverse;", "*slope = 4 * e * inverse;"),
            ("s[n][e] = soft_cap(s[n][e], cap, &slope)", "s[n][e] += 0 * (cap + slope)"),
            ("ds[e] = p * (dp[e] - dot_i[r]);", "ds[e] = p * (dp[e] - dot_i[r]) / slope;"),
            ("(int *)max_logit + blockIdx.y,", "(int *)max_logit,"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'test_cures and not bf16 or of_the_cures or qk_clip'",
        [
            ("(at / n == at % n + i ? a : 0)", "(at / n == at % n + i ? 1 : 0)"),
            ("    for (int i = 0; i < W; i++) y[i] *= factor;\n    store(out", "    store(out"),
            ("turn < 5; turn++)", "turn < 3; turn++)"),
            ("    ms[i] = beta * ms[i] + (1 - beta) * g;", "    ms[i] = beta * ms[i] + g;"),
            ("rows = k == C_ATTN ? p->rows / 3 :", "rows = k == C_FC ? p->rows / 4 :"),
            ("kinds.muon[k] = 0.2f *", "kinds.muon[k] = 0.3f *"),
            ("store(ms + at, m, !MUON);", "store(ms + at, m);"),
            ("o.cautious && u * param < 0", "o.cautious && u * param > 0"),
            ("c_attn[i] *= sqrtf(tau / largest);", "c_attn[i] *= tau / largest;"),
            ("dim3(cfg->heads, cfg->layers, 2)", "dim3(cfg->heads, cfg->layers, 1)"),
            ("statistics || g->cfg.qk_clip > 0)", "statistics)"),
            ("    y[i] *= d[i] * slope;", "    y[i] *= d[i];"),
            ("matmul(dinp, dinp, matrix(dout", "matmul(dinp, (act *)NULL, matrix(dout"),
            ("    int kind = i ? POST_2 : POST_1;", "    int kind = i ? POST_1 : POST_2;"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'test_resumed or goes_on'",
        [
            ("to_gpu(m, host + n, n", "to_gpu(m, host + 2 * n, n"),
            ("from_gpu(host + n, m, n", "from_gpu(host + 2 * n, m, n"),
            (
                "if (BF16) store(weights + at, param);",
                "if (BF16 && !j) store(weights + at, param);",
            ),
            (
                "update_weights(g.weights, g.params, g.num_parameters);\n    }\n    int64_t",
                "}\n    int64_t",
            ),
            ("gpt_constants(&g, step);", "gpt_constants(&g, step - state.step);"),
            ("at = (size_t)(used - 1) * padded(g->V);", "at = (size_t)(used / 2) * padded(g->V);"),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py -k 'shapes_it_does_not_take or no_gpu'",
        [
            ("HS % W || HS > MAX_HS)", "HS % W)"),
            ("|| HS % W || HS > MAX_HS)", "|| HS > MAX_HS)"),
            ("cfg.d > MAX_C ||", ""),
            (
                "        gpu_check_memory(&gpu, g.memory.bytes);\n        _exit(0);",
                "        _exit(gpu.number > 999);",
            ),
        ],
    ),
    (
        "train_gpt.cu",
        "test_cuda.py::test_inside_of_every_allocation",
        [
            ("r + i < rows && c < HS ? 0 : 16", "r + i < rows && HS > 0 ? 0 : 16"),
            ("r + i < rows && c < HS ? 0 : 16", "rows > 0 && c < HS ? 0 : 16"),
            ("ceil(count * sizeof(number) / 512)", "floor(count * sizeof(number) / 512)"),
            ("a->fc = reserve(g, BT * 4 * C)", "a->fc = reserve(g, BT * C)"),
            ("g->num_parameters + (size_t)(padded(V) - V) * (size_t)cfg->d", "g->num_parameters"),
            ("bool inside = row < rows && i0 < HS / 2;", "bool inside = rows > 0 && i0 < HS / 2;"),
            ("bool inside = head < heads && i0 < HS / 2;", "bool inside = i0 < HS / 2;"),
            ("if (inside && threadIdx.x % lanes == 0) {", "if (threadIdx.x % lanes == 0) {"),
            ("g->logits = reserve(g, BT * padded(V))", "g->logits = reserve(g, BT * V / 2)"),
            ("        batch_free(&g->batch);", ""),
        ],
    ),
    (
        "lib/gpu.h",
        FP32,
        [
            (
                "four = inside ? *(const float4 *)(from + i) :",
                "four = inside ? *(const float4 *)from :",
            ),
            (": make_float4(0, 0, 0, 0);", ": make_float4(1, 1, 1, 1);"),
            ("x[i + 3] = four.w;", "x[i + 3] = four.z;"),
            ("x[i + 1], x[i + 2], x[i + 3])", "x[i + 1], x[i + 2], x[i + 2])"),
            ("if (!inside) return;\n    for (int i", "(void)inside;\n    for (int i"),
            ("return ceil_div(n, W) * W; }", "return n / W * W; }"),
            ("return power_of_2(x * PER_LN_2); }", "return power_of_2(x); }"),
            ("return __fdividef(1, x); }", "return __fdividef(x, 1); }"),
            (
                "x = fmaxf(x, __shfl_xor_sync(ALL, x, distance))",
                "x = fmaxf(x, __shfl_xor_sync(ALL, x, 16))",
            ),
            ("s.b_flipped ? CUBLAS_OP_T : CUBLAS_OP_N", "s.a_flipped ? CUBLAS_OP_T : CUBLAS_OP_N"),
            (
                "memcmp(&products[i].shape, &shape, sizeof shape) != 0",
                "products[i].shape.M != shape.M",
            ),
            ("shape.a_row = a.row;", "shape.a_row = b.row;"),
            ("beta = add ? 1 : 0;", "beta = add ? 0 : 1;"),
            ("aligned = 16;", "aligned = 1024;"),
            ("    num_products = 0;", ""),
        ],
    ),
    (
        "lib/gpu.h",
        "test_cuda.py::test_layernorm",
        [
            ("int distance = lanes / 2;", "int distance = lanes / 4;"),
            ("sums[threadIdx.y * warps + warp]", "sums[warp]"),
            ("warp < warps; warp++) x +=", "warp < warps - 1; warp++) x +="),
        ],
    ),
    (
        "lib/gpu.h",
        "'test_cuda.py::test_fp32[many_symbols]'",
        [
            (
                "warp < (int)blockDim.x / 32; warp++) x = fmaxf",
                "warp < (int)blockDim.x / 64; warp++) x = fmaxf",
            ),
        ],
    ),
    (
        "lib/gpu.h",
        ATTENTION,
        [
            ("threadIdx.x % 32 / 4 + e / 2 % 2 * 8", "threadIdx.x % 32 / 4 + e / 4 * 8"),
            ("#define PER_LN_2 1.44269504f", "#define PER_LN_2 1.4426f"),
            (
                "threadIdx.x % 4 * 2 + e % 2 + e / 4 * 8",
                "threadIdx.x % 4 * 2 + e % 2 + e / 2 % 2 * 8",
            ),
            ("e % 2 ? a.x[e / 2].y : a.x[e / 2].x", "e % 2 ? a.x[e / 2].x : a.x[e / 2].y"),
            ("pair(sums[2 * i], sums[2 * i + 1])", "pair(sums[2 * i + 1], sums[2 * i])"),
            ("k % 2 + 2 * r + k / 8 * 4", "k % 2 + 4 * r + k / 8 * 2"),
            (
                "b.x[k * b.row + block_column(e) * b.column]",
                "b.x[k * b.column + block_column(e) * b.row]",
            ),
        ],
    ),
    (
        "lib/gpu.h",
        "test_attention.py -k 'test_shapes and bf16'",
        [
            ("block + lane % 16 * row + lane / 16 * 8", "block + lane % 8 * row + lane / 8 * 8"),
            (
                "(lane / 16 * 8 + lane % 8) * row + lane / 8 % 2 * 8",
                "(lane / 8 % 2 * 8 + lane % 8) * row + lane / 16 * 8",
            ),
            ("(const unsigned *)a.x, b.x + 2);", "(const unsigned *)a.x, b.x);"),
        ],
    ),
    (
        "lib/gpu.h",
        BF16,
        [
            ("if (inside && N == 8) {", "if (N == 8) {"),
            ("word[2] = words.z;", "word[2] = words.x;"),
            ("word[1] = words.y;\n    }\n    for", "word[1] = words.x;\n    }\n    for"),
            ("__uint_as_float(word[i] << 16)", "__uint_as_float(word[i] & 0xffff0000)"),
            ("bf16_pair(x[2 * i], x[2 * i + 1])", "bf16_pair(x[2 * i + 1], x[2 * i])"),
            ("if (!inside) return;\n    unsigned", "(void)inside;\n    unsigned"),
            ("make_uint2(word[0], word[1]);", "make_uint2(word[1], word[0]);"),
            ("shape.real_out = sizeof(number) == sizeof(real);", "shape.real_out = false;"),
        ],
    ),
    (
        "lib/gpu.h",
        "'test_cuda.py::test_bf16[head_of_80]'",
        [
            ("if (inside && N == 4) {", "if (N == 4) {"),
        ],
    ),
    (
        "lib/gpu.h",
        "test_cuda.py::test_no_gpu",
        [
            ("error == cudaErrorInsufficientDriver && driver > 0", "driver < 0"),
            ("if (error != cudaSuccess || count == 0)", "if (count < 0)"),
            (
                "10 * properties.major + properties.minor",
                "100 * properties.major + properties.minor",
            ),
            ("if (gpu.number < 80)", "if (gpu.number < 70)"),
            ("built.ptxVersion < 80)", "built.ptxVersion < 50)"),
            ("if (bytes > gpu->free)", "if (bytes > gpu->total)"),
        ],
    ),
    (
        "lib/gpu.h",
        "test_cuda.py::test_every_call_is_checked",
        [
            ("if (error != cudaSuccess)\n", "if (error == cudaErrorNoDevice)\n"),
            (
                "if (status != CUBLAS_STATUS_SUCCESS)\n",
                "if (status == CUBLAS_STATUS_NOT_INITIALIZED)\n",
            ),
        ],
    ),
    (
        "lib/gpu.h",
        "test_cuda.py::test_inside_of_every_allocation",
        [
            ("if (r < rows && column < columns)", "if (r < rows && columns > 0)"),
            ("if (r < rows && column < columns)", "if (rows > 0 && column < columns)"),
        ],
    ),
]

# Every barrier of these is taken out in turn; the tests that see it, in every order of the threads.
WITH_BARRIERS = "train_gpt.cu", "lib/gpu.h"
BARRIERS = (
    "test_cuda.py::test_layernorm 'test_cuda.py::test_fp32[everything]'",
    ATTENTION,
    "'test_cuda.py::test_fp32[long]' 'test_cuda.py::test_fp32[many_symbols]'",
)
# But for these, and why:
NEEDLESS = {
    "__syncthreads();  before  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x; __syn": (
        "row_max: keeps a call from writing over what the call before still reads; so far no kernel"
        " calls it twice"
    ),
}


class Mutant(NamedTuple):
    file: str
    what: str  # to show
    text: str  # the whole file
    tests: tuple


def mutants():
    """All of them; exits where a row's text is not there, or more than once."""
    sources, found, wrong = {file: (ROOT / file).read_text() for file in WIDER}, [], []
    for file, tests, rows in MUTANTS:
        for old, new in rows:
            count = sources[file].count(old)
            if count != 1 or old == new:
                wrong.append(f"{file}: stands {count} times: {old!r}")
            found.append(
                Mutant(
                    file,
                    f"{old}  ->  {new or '(nothing)'}",
                    sources[file].replace(old, new),
                    (tests, *WIDER[file]),
                )
            )
    places = [
        (file, match)
        for file in WITH_BARRIERS
        for match in re.finditer(r"__sync(threads|warp)\(\);", sources[file])
    ]
    barriers = []
    for file, match in places:
        before, after = sources[file][: match.start()], sources[file][match.end() :]
        place = f"{match[0]}  before  {' '.join(after.split())[:60]}"
        if place in NEEDLESS:
            barriers.append(place)
        else:
            found.append(
                Mutant(file, f"{place}  ->  (nothing)", before + after, (*BARRIERS, *WIDER[file]))
            )
    wrong += [f"NEEDLESS, but not there: {place!r}" for place in NEEDLESS if place not in barriers]
    if wrong:
        sys.exit("mutate.py: " + "\n".join(wrong))
    return found


def copy_tree(folder):
    shutil.copytree(
        ROOT,
        folder,
        ignore=shutil.ignore_patterns(
            "build", "runs", ".git", "train_gpt", "train_gpt_cu*", "__pycache__", ".*_cache"
        ),
    )
    return folder


def environment():
    return {
        "CFLAGS": "-O1 -march=native",
        "CXXFLAGS": "-O0",
        "PYTHONDONTWRITEBYTECODE": "1",
        **os.environ,
    }


def compiles(folder, file):
    """What the compiler complains of, or nothing; in CUDA, in either precision."""
    commands = [["gcc", "-std=gnu11", "-fopenmp", "train_gpt.c"]]
    if WIDER[file] is CUDA:
        emu = "g++ -std=c++17 -Wno-unknown-pragmas -Wno-unused-function -DCUDA_EMU".split()
        commands = [[*emu, *flags, "-x", "c++", "train_gpt.cu"] for flags in ([], ["-DFP32"])]
    return "".join(
        subprocess.run(
            [*command, *STRICT.split(), "-fsyntax-only"], cwd=folder, capture_output=True, text=True
        ).stderr
        for command in commands
    )


def build(folder):
    """The program that some of the tests run."""
    subprocess.run(
        ["make", "-s", "train_gpt", f"CFLAGS={environment()['CFLAGS']}"], cwd=folder, check=True
    )


def fails(folder, tests):
    """What the first test that failed is called, "timeout", or None."""
    if re.search("numbers|cli|checkpoint|runs|survive|terminal|cuda", tests):
        build(folder)
    words = [
        re.sub(r"^test_\w+\.py", lambda file: str(next(folder.glob("test/*/" + file[0]))), word)
        for word in shlex.split(tests)
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "timeout"
    first = re.search(r"^(?:FAILED|ERROR) (?:[\w/.-]*/)?(\S+)", out, re.M)
    return (
        process.returncode
        and (
            first[1]
            if first
            else f"{tests}: pytest ended with status {process.returncode}: {out.strip()[-200:]}"
        )
        or None
    )


def judge(mutant, folder):
    """(caught, timeout, survived or error; by which test or why; seconds)"""
    start, original = time.time(), (folder / mutant.file).read_text()
    (folder / mutant.file).write_text(mutant.text)
    try:
        said = compiles(folder, mutant.file)
        if said:
            return "error", "does not compile: " + said, time.time() - start
        for tests in mutant.tests:
            failed = fails(folder, tests)
            if failed:
                return "timeout" if failed == "timeout" else "caught", failed, time.time() - start
        return "survived", "", time.time() - start
    finally:
        (folder / mutant.file).write_text(original)


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-j", type=int, default=1, metavar="N", help="mutants at a time, a copy of the tree each"
    )
    parser.add_argument("words", nargs="*", help="only mutants whose file or text has one of these")
    arguments = parser.parse_args()
    chosen = [
        m
        for m in mutants()
        if not arguments.words or any(word in f"{m.file}: {m.what}" for word in arguments.words)
    ]
    if not chosen:
        sys.exit("mutate.py: no such mutant")
    with tempfile.TemporaryDirectory() as temporary:
        folders, results, start = queue.Queue(), [], time.time()
        for i in range(arguments.j):
            folders.put(copy_tree(pathlib.Path(temporary) / str(i)))

        def each(function, things):
            """(thing, function(thing, a folder)) as they end."""

            def one(thing):
                folder = folders.get()
                try:
                    return thing, function(thing, folder)
                finally:
                    folders.put(folder)

            with concurrent.futures.ThreadPoolExecutor(arguments.j) as pool:
                for future in concurrent.futures.as_completed(
                    [pool.submit(one, thing) for thing in things]
                ):
                    yield future.result()

        tests = sorted({t for m in chosen for t in m.tests})
        print(
            f"{len(chosen)} mutants; first {len(tests)} choices of tests on the untouched tree",
            flush=True,
        )
        for test, failed in each(lambda t, folder: fails(folder, t), tests):
            if failed:
                sys.exit(f"mutate.py: the untouched tree fails {test}: {failed}")
        begun = time.time()
        print(f"they pass, {minutes(begun - start)}", flush=True)
        for mutant, (verdict, by, seconds) in each(judge, chosen):
            results.append((mutant, verdict, by))
            left = (time.time() - begun) / len(results) * (len(chosen) - len(results))
            print(
                f"{len(results):3}/{len(chosen)}  {minutes(left):>6} left  {seconds:5.1f} s "
                f" {verdict:8}  {mutant.file}: {' '.join(mutant.what.split())}\n{'':36}{by}",
                flush=True,
            )
    print(
        f"\n{'file':14}  {'mutants':>7}  {'caught':>7}  {'timeout':>7}  {'survived':>8} "
        f" {'error':>7}"
    )
    for file in [*dict.fromkeys(mutant.file for mutant in chosen), ""]:
        of = [verdict for mutant, verdict, _ in results if mutant.file == file or not file]
        print(
            f"{file or 'all':14}  {len(of):7}  {of.count('caught'):7}  {of.count('timeout'):7} "
            f" {of.count('survived'):8}  {of.count('error'):7}"
        )
    for mutant, verdict, by in results:
        if verdict != "caught":
            print(f"{verdict}: {mutant.file}: {mutant.what}  {by}")
    return any(verdict in ("survived", "error") for _, verdict, _ in results)


if __name__ == "__main__":
    sys.exit(main())

"""Wrong solutions of the exercises that are an intervention: the solution with these texts
replaced. lost: the tests that must fail, by number. All others must pass, except that those in
`either` may fail. says: part of the hint that names the mistake; where it is empty, no test may
name one."""


def wrong(lost, *patches, either=(), says="", file="train_gpt.c"):
    return dict(
        lost=set(lost),
        patches=[(file, *patch) if len(patch) == 2 else patch for patch in patches],
        either=set(either),
        says=says,
    )


ALL = range(7)


def one_line(file, line, rows):
    """Wrong solutions that differ in one line: {name: (line, lost, says)}."""
    return {
        name: wrong(lost, (line, instead), file=file, says=says)
        for name, (instead, lost, says) in rows.items()
    }


# ---- qk-norm

MARGIN = " " * 53  # between `if (q_weight) {` and its marker in the loop of the forward pass
FORWARD = "            if (q_weight) {" + MARGIN + "// [qk_norm\n"
BACKWARD = "                if (q_weight) {" + MARGIN[4:] + "// [qk_norm\n"
TURN = "            rope_row(to, from, cosine + angles, sine + angles, 1, NH, HS);\n"
TURN_BACK = "                rope_row(d, d, cosine + angles, sine + angles, -1, NH, HS);\n"
END_BACKWARD = (
    "mean[head + h], rstd[head + h], dw + 2 * over, over);\n"
    "                }                                                               // qk_norm]\n"
)
HEADS = "for (int h = 0; h < C / over; h++)\n                    layernorm_row("
NORM_CALL = (
    "layernorm_row(to + h * over, mean + head + h, rstd + head + h, from + h * over,\n"
    + " " * 34
    + "i ? k_weight : q_weight, over);"
)
NORM_LOOPS = """{
    const real *x = from + h * over, *w = i ? k_weight : q_weight;
    real m = 0, squares = 0;
    for (int j = 0; j < over; j++) m += x[j] / over;
    for (int j = 0; j < over; j++) squares += (x[j] - m) * (x[j] - m) / over;
    mean[head + h] = m;
    rstd[head + h] = 1 / sqrt(squares + EPSILON);
    for (int j = 0; j < over; j++) to[h * over + j] = w[j] * (x[j] - m) * rstd[head + h];
}
"""
SUM_Q = "sum_chunks(dq_weight, partial, (size_t)4 * over, chunks, over)"
SUM_K = "sum_chunks(dk_weight, partial + over, (size_t)4 * over, chunks, over)"
BACK = [1, 2, 3]
QK_NORM = {
    "flag_ignored": wrong(ALL, (FORWARD, FORWARD.replace("q_weight", "1"))),
    "right_plain_loops": wrong([], (NORM_CALL, NORM_LOOPS.replace("EPSILON", "(real)1e-6"))),
    "no_epsilon": wrong(
        [0, 1], (NORM_CALL, NORM_LOOPS.replace("EPSILON", "0")), either=[2, 3], says="not added"
    ),
    "another_epsilon": wrong(
        [0, 1],
        (NORM_CALL, NORM_LOOPS.replace("EPSILON", "(real)1e-5")),
        either=[2, 3],
        says="1e-5 is added",
    ),
    "only_queries": wrong(
        ALL,
        (FORWARD, FORWARD.replace("(q_weight)", "(q_weight && i == 0)")),
        says="Only the queries",
    ),
    "after_rope": wrong(
        ALL,
        (FORWARD, TURN + "from = to;\n" + FORWARD),
        ("// qk_norm]\n" + TURN, "// qk_norm]\nif (!q_weight)\n" + TURN),
        says="after RoPE",
    ),
    "queries_weight": wrong(
        ALL,
        (
            "from + h * over,\n                                  i ? k_weight : q_weight, over",
            "from + h * over, q_weight, over",
        ),
        says="weight of the queries",
    ),
    "turns_what_was_not_normalised": wrong(
        ALL, ("                from = to;\n", ""), says="flag off"
    ),
    "only_the_first_head": wrong(ALL, (HEADS, HEADS.replace("C / over", "1"))),
    "rotation_again_after_it": wrong(ALL, ("                from = to;\n", "from = to;\n" + TURN)),
    "in_place": wrong(
        ALL,
        ("                    layernorm_row(to + h", "layernorm_row((real *)from + h"),
        ("                from = to;\n", ""),
    ),
    "mean_of_another_head": wrong(
        BACK,
        (
            "size_t head = ((size_t)row * 2 + i) * NH;\n                for",
            "size_t head = (size_t)row * NH;\n                for",
        ),
        (
            "size_t head = ((size_t)row * 2 + i) * NH;\n                    for",
            "size_t head = (size_t)row * NH;\n                    for",
        ),
    ),
    "no_backward": wrong(
        BACK, (BACKWARD, BACKWARD.replace("(q_weight)", "(0 && q_weight)")), says="without it"
    ),
    "scratch_of_the_first_chunk": wrong(
        [1],
        ("rstd[head + h], dw + 2 * over, over)", "rstd[head + h], partial + 2 * over, over)"),
        either=[2, 3],
        says="use one scratch",
    ),
    "backward_of_output": wrong(BACK, ("qkv + at + h * over, i ?", "d + h * over, i ?")),
    "no_turning_back": wrong(BACK, (TURN_BACK, ""), says="not turned back"),
    "turning_back_last": wrong(BACK, (TURN_BACK, ""), (END_BACKWARD, END_BACKWARD + TURN_BACK)),
    "backward_with_queries_weight": wrong(
        BACK,
        ("qkv + at + h * over, i ? k_weight : q_weight", "qkv + at + h * over, q_weight"),
        says="through the weight of the queries",
    ),
    "one_gradient_for_both_weights": wrong(
        BACK, ("NULL, dw + i * over, d + h", "NULL, dw, d + h"), says="that of k_weight too"
    ),
    "gradients_exchanged": wrong(
        BACK, ("NULL, dw + i * over, d + h", "NULL, dw + (1 - i) * over, d + h"), says="exchanged"
    ),
    "gradient_of_one_weight": wrong(BACK, (SUM_K + ";", "")),
    "only_the_first_chunk": wrong(
        BACK,
        (SUM_Q, SUM_Q.replace("chunks, over", "1, over")),
        (SUM_K, SUM_K.replace("chunks, over", "1, over")),
        says="first chunk only",
    ),
    "all_but_the_last_chunk": wrong(
        BACK, (SUM_Q, SUM_Q.replace("chunks, over", "chunks > 1 ? chunks - 1 : 1, over"))
    ),
}

# ---- the soft cap

CAP = "p[j] = soft_cap(p[j], cap / scale, s.slope + j);"
CAP_LOOP = (
    "                if (cap > 0)                                                    // [attn_cap\n"
    "                    for (int j = 0; j < cols; j++)\n"
    "                        " + CAP + "        // attn_cap]\n"
)
SCALED = "                for (int j = 0; j < cols; j++) p[j] = scale * p[j] + mask[j];\n"
CAP_FORWARD = CAP_LOOP + SCALED
CAP_BACKWARD = CAP_LOOP + "                real top = stats"
CAP_SLOPE = "*slope = 4 * e * inverse * inverse;"
CAP_VALUE = "return (s < 0 ? -cap : cap) * (1 - e) * inverse;"
CAP_E = "real e = exponential(-2 * fabs(s) / cap), inverse"
CAP_DP = "dp[j] *= s.slope[j];"
MEASURE = (
    "                if (max_logit)\n"
    "                    for (int j = 0; j <= i0 + i; j++) largest ="
    " larger(fabs(scale * p[j]), largest);\n"
)


def both_caps(instead, *more, lost=ALL, says=""):
    """Wrong in the same way in both passes."""
    patches = [(text, text.replace(CAP, instead)) for text in (CAP_FORWARD, CAP_BACKWARD)]
    return wrong(lost, *patches, *more, says=says)


# the third test is of the gradient of queries and keys alone
CAP_FORTH, CAP_BACK = [0, 1, 3, 4], [1, 2, 3, 4]
ATTN_CAP = {
    "right_tanh": wrong(
        [],
        (CAP_SLOPE, "*slope = 1 / (cosh(s / cap) * cosh(s / cap));"),
        (CAP_VALUE, "(void)e, (void)inverse; return cap * tanh(s / cap);"),
    ),
    "one_minus_a_square": wrong(
        [2],
        (CAP_SLOPE, "real t = tanh(s / cap); *slope = 1 - t * t;"),
        says="few right digits",
    ),
    "overflows": wrong(
        [0, 1, 3],
        (CAP_SLOPE, "*slope = 4 * e * inverse * inverse; e = exp(2 * s / cap);"),
        (CAP_VALUE, "return cap * (e - 1) / (e + 1);"),
    ),
    "flag_off_ignored": wrong(CAP_FORTH, (CAP_FORWARD, CAP_FORWARD.replace("cap > 0", "cap >= 0"))),
    "hard_limit": wrong(
        ALL,
        (CAP_SLOPE, "*slope = fabs(s) < cap;"),
        (CAP_VALUE, "(void)e, (void)inverse; return fmax(-cap, fmin(cap, s));"),
        says="hard limit",
    ),
    "cap_not_multiplied": both_caps(
        CAP.replace(";", " / cap;"),
        (CAP_DP, "dp[j] *= s.slope[j] / cap;"),
        says="between -1 and 1",
    ),
    "not_divided_by_the_cap": both_caps(
        CAP.replace("cap / scale", "1 / scale").replace(";", " * cap;"),
        (CAP_DP, "dp[j] *= s.slope[j] * cap;"),
        says="not divided by the cap",
    ),
    "cap_of_the_products": both_caps(
        CAP.replace("cap / scale", "cap"), says="before they are scaled"
    ),
    "scaled_twice": both_caps(
        CAP.replace("cap / scale", "cap / scale / scale"), says="scale is there twice"
    ),
    "sign_lost": wrong(ALL, ("(s < 0 ? -cap : cap)", "cap"), says="become positive"),
    "after_the_mask": wrong(
        CAP_FORTH,
        (CAP_FORWARD, SCALED + CAP_LOOP.replace("cap / scale", "cap")),
        says="hidden before the cap",
    ),
    "logged_after_it": wrong(
        [0, 3, 4],
        (MEASURE + CAP_FORWARD, CAP_LOOP + MEASURE + SCALED),
        says="max_logit is that after",
    ),
    "not_with_relu2": wrong(
        [0, 1, 3],
        (CAP_FORWARD, CAP_FORWARD.replace("cap > 0", "cap > 0 && !relu2")),
        says="flag off",
    ),
    "float": wrong(
        [0, 1],
        (CAP_VALUE, "return (float)(" + CAP_VALUE[7:-1] + ");"),
        either=[2, 3, 4],
        says="float",
    ),
    "no_backward": wrong(
        CAP_BACK,
        (CAP_BACKWARD, CAP_BACKWARD.removeprefix(CAP_LOOP)),
        (CAP_DP, "(void)dp;"),
        says="knows nothing",
    ),
    "no_derivative": wrong(CAP_BACK, (CAP_DP, "(void)dp;"), says="does not go through the cap"),
    "softmax_of_what_was_not_capped": wrong(
        CAP_BACK,
        (CAP_BACKWARD, CAP_BACKWARD.replace("p[j] = soft_cap(", "soft_cap(")),
        says="scores before the cap",
    ),
    "derivative_at_the_capped_score": wrong(
        CAP_BACK,
        (CAP_BACKWARD, CAP_BACKWARD.replace(CAP, "{ " + CAP + CAP.replace("p[j] =", "") + " }")),
        says="at the capped score",
    ),
    "not_squared": wrong(
        CAP_BACK, (CAP_SLOPE, "*slope = 1 - (1 - e) * inverse;"), says="not squared"
    ),
    "derivative_over_the_cap": wrong(
        CAP_BACK, (CAP_DP, "dp[j] *= s.slope[j] / cap;"), says="divided by the cap"
    ),
    "derivative_of_the_first_key": wrong(CAP_BACK, (CAP_DP, "dp[j] *= s.slope[0];")),
    "dv_through_the_cap": wrong([1, 3, 4], (CAP_DP, "p[j] *= s.slope[j], dp[j] *= s.slope[j];")),
}

# ---- QK-clip

CLIP_LARGEST = "for (int b = 0; b < B; b++) largest = larger(max_logit[b * NH + h], largest);"
CLIP_Q, CLIP_K = "            q[i] *= factor;\n", "            k[i] *= factor;\n"
CLIP_ROWS = "real *q = c_attn + h * head, *k = q + (size_t)C * C, factor = sqrt(tau / largest);"
CLIP_ROOT = "factor = sqrt(tau / largest);"
CLIP_CALL = (
    "            if (k == C_ATTN && cfg->qk_clip > 0)                                // [qk_clip\n"
    "                qk_clip(params, g->layers[l].max_logit, (real)cfg->qk_clip, cfg->batch,\n"
    "                        cfg->heads, p->cols);                                   // qk_clip]\n"
)
CLIP_LOOP = "        for (size_t i = 0; i < head; i++) {\n" + CLIP_Q + CLIP_K + "        }\n"
CLIP_COLUMNS = """
        (void)q, (void)k;
        for (int r = 0; r < 2 * C; r++)
            for (int j = 0; j < C / NH; j++) c_attn[r * C + h * (C / NH) + j] *= factor;
"""
NO_UPDATE = "            double updates = 0;\n"
QK_CLIP = {
    "whole_factor": wrong(ALL, (CLIP_ROOT, "factor = tau / largest;"), says="shrink twice"),
    "root_of_the_root": wrong(
        ALL, (CLIP_ROOT, "factor = sqrt(sqrt(tau / largest));"), says="half as many"
    ),
    "upside_down": wrong(ALL, (CLIP_ROOT, "factor = sqrt(largest / tau);"), says="upside down"),
    "float": wrong(
        [0], (CLIP_ROOT, "factor = (float)sqrt(tau / largest);"), either=[1, 2], says="float"
    ),
    "only_queries": wrong(ALL, (CLIP_K, ""), says="Only the queries"),
    "only_keys": wrong(ALL, (CLIP_Q, ""), says="Only the keys"),
    "queries_take_all": wrong(
        ALL, (CLIP_Q + CLIP_K, CLIP_Q + CLIP_Q + "(void)k;\n"), says="the keys nothing"
    ),
    "values_too": wrong(
        ALL, (CLIP_K, CLIP_K + "k[i + (size_t)C * C] *= factor;\n"), says="values shrink"
    ),
    "below_the_limit_too": wrong(
        ALL, ("        if (largest <= tau) continue;\n", ""), says="below the limit"
    ),
    "largest_of_all_heads": wrong(
        ALL,
        (CLIP_LARGEST, "for (int b = 0; b < B * NH; b++) largest = larger(max_logit[b], largest);"),
        says="layer's largest",
    ),
    "first_sequence": wrong(
        ALL, (CLIP_LARGEST, "(void)B; largest = max_logit[h];"), says="first sequence"
    ),
    "last_sequence": wrong(
        ALL, (CLIP_LARGEST, "largest = max_logit[(B - 1) * NH + h];"), says="last sequence"
    ),
    "mean": wrong(
        ALL,
        (CLIP_LARGEST, CLIP_LARGEST.replace("= larger(", "+= (").replace(", largest)", ") / B")),
        says="mean over the batch",
    ),
    "transposed": wrong(
        ALL, (CLIP_LARGEST, CLIP_LARGEST.replace("b * NH + h", "h * B + b")), says="read as"
    ),
    "largest_so_far": wrong(
        ALL, ("real largest = 0;\n        for (int b", "static real largest;\nfor (int b")
    ),
    "another_layout": wrong(
        ALL,
        (CLIP_ROWS, "real *q = c_attn + 3 * h * head, *k = q + head, " + CLIP_ROOT),
        says="another layout",
    ),
    "columns": wrong(ALL, (CLIP_LOOP, CLIP_COLUMNS), says="Columns shrink"),
    "one_row_of_a_head": wrong(ALL, ("size_t head = (size_t)C / NH * C;", "size_t head = C;")),
    "first_layer": wrong(
        ALL, (CLIP_CALL, CLIP_CALL.replace("layers[l]", "layers[0]")), says="first layer"
    ),
    "before_the_step": wrong(
        ALL,
        (NO_UPDATE, CLIP_CALL + NO_UPDATE),
        (CLIP_CALL + "            squares +=", "            squares +="),
        says="before the optimizer's step",
    ),
    "always_at_100": wrong(
        ALL, (CLIP_CALL, CLIP_CALL.replace("(real)cfg->qk_clip,", "100,")), says="flag off"
    ),
    "flag_off_ignored": wrong([1, 2], (CLIP_CALL, CLIP_CALL.replace(" && cfg->qk_clip > 0", ""))),
}

# ---- z-loss

Z_LINE = "weight += 2 * z_loss * log_z[i];"
Z_LOSS = one_line(
    "train_gpt.c",
    Z_LINE,
    {
        "half": ("weight += z_loss * log_z[i];", ALL, "half"),
        "sign": ("weight -= 2 * z_loss * log_z[i];", ALL, "sign"),
        "not_times_log_z": ("weight += 2 * z_loss;", ALL, "lacks the row's log Z"),
        "square": ("weight += z_loss * 2 * log_z[i] * log_z[i];", ALL, "square"),
        "divided_by_rows_again": ("weight += 2 * z_loss * log_z[i] / rows;", ALL, "by the rows"),
        "divided_by_vocabulary": ("weight += 2 * z_loss * log_z[i] / V;", ALL, "vocabulary"),
        "whole_number": ("weight += 2 * (int)z_loss * log_z[i];", ALL, "flag off"),
        "first_row": ("weight += 2 * z_loss * log_z[0];", ALL, "first row"),
        "row_before": ("weight += 2 * z_loss * log_z[i ? i - 1 : 0];", ALL, ""),
        "largest_logit": ("weight += 2 * z_loss * top;", ALL, "largest logit"),
        "log_of_the_sum": ("weight += 2 * z_loss * log(sum);", ALL, ""),
        "flag_off_ignored": (
            "weight += 2 * (z_loss > 0 ? z_loss : (real)1e-4) * log_z[i];",
            ALL,
            "",
        ),
        "float": ("weight += (float)(2 * z_loss * log_z[i]);", [0, 1], "float"),
        "state": (
            "static real z; if (z == 0) z = log_z[i]; weight += 2 * z_loss * z;",
            ALL,
            "first row",
        ),
        "reported": (
            Z_LINE + " losses[i] += z_loss * log_z[i] * log_z[i];",
            [0, 2, 3],
            "in the loss that is reported",
        ),
        "log_z_changed": ("log_z[i] *= 2 * z_loss; weight += log_z[i];", [0, 2, 3], ""),
        "gradient_of_the_target": (Z_LINE + " x[targets[i]] -= 2 * z_loss * log_z[i];", ALL, ""),
    },
)

Z_LOSS["size"] = wrong(
    [0, 1, 2],
    (Z_LINE, "weight += 2 * z_loss * fabs(log_z[i]);"),
    either=[3],
    says="without its sign",
)

# ---- warm-up

WARMUP_LINE = "if (step < cfg->warmup) return cfg->lr * step / cfg->warmup;"
RETURN = "if (step < cfg->warmup) return "
WARMUP = one_line(
    "gpt.h",
    WARMUP_LINE,
    {
        "one_late": (RETURN + "cfg->lr * (step - 1) / cfg->warmup;", ALL, "One step late"),
        "one_early": (RETURN + "cfg->lr * (step + 1) / cfg->warmup;", ALL, "One step early"),
        "whole_numbers": (RETURN + "cfg->lr * (step / cfg->warmup);", ALL, "whole numbers"),
        "from_end": (RETURN + "end + (cfg->lr - end) * step / cfg->warmup;", ALL, "from min_lr"),
        "parabola": (
            RETURN + "cfg->lr * step / cfg->warmup * step / cfg->warmup;",
            ALL,
            "parabola",
        ),
        "over_all_steps": (RETURN + "cfg->lr * step / cfg->steps;", [0, 1], "over all steps"),
        "without_the_peak": (RETURN + "(double)step / cfg->warmup;", ALL, "peak is not"),
        "peak": (RETURN + "cfg->lr;", ALL, "the peak from"),
        "ends_one_early": (
            "if (step < cfg->warmup - 1) return cfg->lr * step / cfg->warmup;",
            [0, 1],
            "",
        ),
        "runs_on": ("return cfg->lr * step / (cfg->warmup ? cfg->warmup : 1);", ALL, ""),
        "counts_its_calls": (
            "static int calls; " + RETURN + "cfg->lr * ++calls / cfg->warmup;",
            ALL,
            "",
        ),
    },
)
WARMUP["float"] = wrong(
    [0],
    (WARMUP_LINE, RETURN + "cfg->lr * ((float)step / cfg->warmup);"),
    either=[1],
    says="float",
    file="gpt.h",
)
WARMUP["after_the_other_schedules"] = wrong(
    [0, 1],
    (WARMUP_LINE, ""),
    ("    if (cfg->steps > cfg->warmup)\n", WARMUP_LINE + "\n    if (cfg->steps > cfg->warmup)\n"),
    file="gpt.h",
    says="flag off",
)

# ---- weight decay

WD_LINE = "return cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr);"
WD = one_line(
    "gpt.h",
    WD_LINE,
    {
        "swapped": (
            "return cfg->wd * (cfg->wd_independent ? lr : lr / cfg->lr);",
            ALL,
            "-wd_independent 0",
        ),
        "constant": ("return cfg->wd + 0 * lr;", ALL, "same at every step"),
        "always_independent": ("return cfg->wd * lr / cfg->lr;", ALL, "-wd_independent 1"),
        "never_independent": ("return cfg->wd * lr;", ALL, "-wd_independent 0"),
        "sign": ("return -cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr);", ALL, "grow"),
        "half": ("return cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr) / 2;", ALL, "half"),
        "peak": ("return cfg->wd * cfg->lr + 0 * lr;", ALL, "peak"),
        "whole_number": (
            "return cfg->wd * (cfg->wd_independent ? (int)(lr / cfg->lr) : lr);",
            ALL,
            "flag off",
        ),
        "float": (
            "return (float)(cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr));",
            [0],
            "float",
        ),
        "default_of_no_decay": (
            "return (cfg->wd > 0 ? cfg->wd : 1e-4) * (cfg->wd_independent ? lr / cfg->lr : lr);",
            ALL,
            "",
        ),
    },
)
WD |= one_line(
    "train_gpt.c",
    "    decay = weight_decay(cfg, step);",
    {
        "not_called": ("", ALL, "flag off"),
        "first_step": ("decay = weight_decay(cfg, 1);", ALL, "first step"),
        "step_before": ("decay = weight_decay(cfg, step - 1);", ALL, "step before"),
        "state": (
            "static double kept; if (kept == 0) kept = weight_decay(cfg, step); decay = kept;",
            [1, 2],
            "",
        ),
    },
)

# ---- muParam

M_LINE = "return (double)cfg->d / cfg->base_d;"
LR_LINE = "return cfg->mu_param >= MU_SIMPLE && p->role == LINEAR ? 1 / mu_m(cfg) : 1;"
SCALE_LINE = "if (cfg->mu_param >= MU_FULL) scale = 1 / HS;"
STD_LINE = "std /= sqrt(mu_m(cfg));"
ZERO_LINE = "memset(out, 0, parameter_size(p) / 3 * sizeof(real));"
MU_PARAM = {
    **one_line(
        "gpt.h",
        M_LINE,
        {
            "upside_down": ("return (double)cfg->base_d / cfg->d;", [0, 2, 3, 4], "upside down"),
            "whole_number": (
                "return cfg->d / cfg->base_d;",
                [0, 2, 3],
                "division of whole numbers",
            ),
            "head_sizes": (
                "return (double)(cfg->d / cfg->heads) / (cfg->base_d / cfg->heads);",
                [0, 2, 3],
                "",
            ),
            "float": ("return (float)cfg->d / cfg->base_d;", [0, 2], "float"),
        },
    ),
    **one_line(
        "gpt.h",
        LR_LINE,
        {
            "all_tensors": (
                "return cfg->mu_param >= MU_SIMPLE && p ? 1 / mu_m(cfg) : 1;",
                [2, 3, 4],
                "Every tensor",
            ),
            "without_the_head": (
                "return cfg->mu_param >= MU_SIMPLE && p->role == LINEAR &&"
                ' strcmp(p->kind, "lm_head") ? 1 / mu_m(cfg) : 1;',
                [2, 3, 4],
                "head's learning rate",
            ),
            "fan_in_of_each": (
                "return cfg->mu_param >= MU_SIMPLE && p->role == LINEAR ?"
                " (double)cfg->base_d / p->cols : 1;",
                [2, 3, 4],
                "second matrix",
            ),
            "root_of_m": (
                "return cfg->mu_param >= MU_SIMPLE && p->role == LINEAR ? 1 / sqrt(mu_m(cfg)) : 1;",
                [2, 3, 4],
                "power of m in the learning rate",
            ),
            "flag_ignored": ("return p->role == LINEAR ? 1 / mu_m(cfg) : 1;", [2, 3, 4], "'full'"),
        },
    ),
    **one_line(
        "gpt.h",
        SCALE_LINE,
        {
            "scale_from_the_base": (
                "if (cfg->mu_param >= MU_FULL) scale /= sqrt(mu_m(cfg));",
                [1, 3, 4],
                "depends on base_d",
            ),
            "scale_with_the_bases_head_size": (
                "if (cfg->mu_param >= MU_FULL) scale = (double)cfg->base_d / cfg->heads / HS;",
                [1, 3, 4],
                "base's head size",
            ),
            "scale_of_all_channels": (
                "if (cfg->mu_param >= MU_FULL) scale = 1.0 / cfg->d;",
                [1, 3, 4],
                "C where the head size",
            ),
            "scale_of_whole_numbers": (
                "if (cfg->mu_param >= MU_FULL) scale = 1 / (cfg->d / cfg->heads);",
                [1, 3, 4],
                "",
            ),
            "scale_over_its_root": (
                "if (cfg->mu_param >= MU_FULL) scale /= sqrt(HS);",
                [1, 3],
                "",
            ),
            "scale_without_the_flag": (
                "scale = cfg->mu_param >= MU_FULL ? 1 / HS : 1 / sqrt(HS);",
                [1, 3],
                "",
            ),
            "scale_always": ("if (cfg->mu_param >= MU_OFF) scale = 1 / HS;", [1, 3, 4], "'full'"),
        },
    ),
    **one_line(
        "gpt.h",
        STD_LINE,
        {
            "head_by_m": ("std /= mu_m(cfg);", [0], "power of m in the head"),
        },
    ),
    **one_line(
        "gpt.h",
        ZERO_LINE,
        {
            "queries_as_they_were": ("(void)0;", [0], "'intermediate'"),
            "keys_too": (ZERO_LINE.replace("/ 3", "/ 3 * 2"), [0], "keys start at 0 too"),
            "bytes": (ZERO_LINE.replace(" * sizeof(real)", ""), [0], ""),
            "first_layer": ("if (l == 0) " + ZERO_LINE, [0], ""),
        },
    ),
    "head_of_simple": wrong(
        [0],
        (
            "k == LM_HEAD && cfg->mu_param >= MU_INTERMEDIATE",
            "k == LM_HEAD && cfg->mu_param >= MU_SIMPLE",
        ),
        file="gpt.h",
        says="'intermediate'",
    ),
    "queries_of_every_model": wrong(
        [0], ("k == C_ATTN && cfg->mu_param >= MU_FULL", "k == C_ATTN"), file="gpt.h"
    ),
    "not_multiplied": wrong(
        [2, 3, 4], ("        kind_lr *= mu_lr_scale(cfg, p);", ""), says="flag off"
    ),
    "factors_pile_up": wrong([2, 3, 4], ("kind_lr *= mu_lr_scale", "kind_lr = lr *= mu_lr_scale")),
    "in_the_update": wrong(
        [2, 3, 4],
        (
            "        kind_lr *= mu_lr_scale(cfg, p);",
            "o.correction1 = (real)(mu_lr_scale(cfg, p) / (1 - pow(cfg->beta1, step)));",
        ),
    ),
}

# ---- AdamW

EPS_USE = "(sqrt(v[i] * o.correction2) + o.eps)"
EPS = {
    **one_line(
        "train_gpt.c",
        "    eps = cfg->eps;",
        {
            "squared": ("eps = cfg->eps * cfg->eps;", ALL, "squared"),
            "another": ("eps = 1e-4;", ALL, "-eps 0.0001"),
            "added_to_the_default": ("eps += cfg->eps;", ALL, "1e-8 is added"),
            "negative": ("eps = -cfg->eps;", ALL, "subtracted"),
            "whole_number": ("eps = (int)cfg->eps;", ALL, "-eps 0"),
            "float": ("eps = (float)cfg->eps;", [0], "float"),
            "never_below_1e-8": ("eps = fmax(eps, cfg->eps);", [0, 1], "flag off"),
            "never_above_1": ("eps = fmin(1, cfg->eps);", [0, 1], "-eps 1"),
            "a_copy": ("double eps = cfg->eps;\n(void)eps;", ALL, ""),
        },
    ),
    **one_line(
        "train_gpt.c",
        EPS_USE,
        {
            "in_the_root": ("sqrt(v[i] * o.correction2 + o.eps)", ALL, "inside of the root"),
            "before_the_correction": (
                "((sqrt(v[i]) + o.eps) * sqrt(o.correction2))",
                ALL,
                "before v is corrected",
            ),
            "least": ("fmax(sqrt(v[i] * o.correction2), o.eps)", ALL, "least value"),
        },
    ),
}
BETA2 = {
    **one_line(
        "train_gpt.c",
        "    beta2 = cfg->beta2;",
        {
            "beta1": ("beta2 = cfg->beta1;", ALL, "beta1 in place"),
            "square": ("beta2 = cfg->beta2 * cfg->beta2;", ALL, "square of beta2"),
            "one_minus": ("beta2 = 1 - cfg->beta2;", ALL, "1 - beta2"),
            "whole_number": ("beta2 = (int)cfg->beta2;", ALL, ""),
            "float": ("beta2 = (float)cfg->beta2;", [0, 2], "float"),
            "at_most_the_default": ("beta2 = fmin(beta2, cfg->beta2);", ALL, "flag off"),
            "zero_is_the_default": ("if (cfg->beta2 > 0) beta2 = cfg->beta2;", [0, 1], "flag off"),
        },
    ),
    **one_line(
        "train_gpt.c",
        "(real)(1 / (1 - pow(beta2, step)))",
        {
            "not_in_correction": ("(real)(1 / (1 - pow(0.95, step)))", ALL, "of -beta2 0.95"),
            "correction_of_m": ("(real)(1 / (1 - pow(cfg->beta1, step)))", ALL, "that of m"),
            "no_correction": ("1", ALL, "not corrected"),
        },
    ),
    **one_line(
        "train_gpt.c",
        "v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;",
        {
            "not_in_new": (
                "v[i] = o.beta2 * v[i] + (real)0.05 * g * g;",
                ALL,
                "new square has the factor",
            ),
            "not_in_old": (
                "v[i] = (real)0.95 * v[i] + (1 - o.beta2) * g * g;",
                ALL,
                "old v decays",
            ),
            "whole_square": ("v[i] = o.beta2 * v[i] + g * g;", ALL, "no factor"),
        },
    ),
}
CLIP_LINE = "if (cfg->clip > 0 && norm > cfg->clip) clip_scale = cfg->clip / norm;"
LARGE = "if (cfg->clip > 0 && norm > cfg->clip) "
CLIP = one_line(
    "train_gpt.c",
    CLIP_LINE,
    {
        "always": ("if (cfg->clip > 0) clip_scale = cfg->clip / norm;", [0, 1], "below the limit"),
        "0_clips_all": ("if (norm > cfg->clip) clip_scale = cfg->clip / norm;", [0, 1], "0 means"),
        "below": (
            "if (cfg->clip > 0 && norm < cfg->clip) clip_scale = cfg->clip / norm;",
            ALL,
            "flag off",
        ),
        "squares": (LARGE + "clip_scale = cfg->clip / (norm * norm);", ALL, "divides twice"),
        "no_norm": (LARGE + "clip_scale = cfg->clip;", ALL, "norm is missing"),
        "upside_down": (LARGE + "clip_scale = norm / cfg->clip;", ALL, "upside down"),
        "thrown_away": (LARGE + "clip_scale = 0;", ALL, "becomes 0"),
        "plus_1e-6": (LARGE + "clip_scale = cfg->clip / (norm + 1e-6);", [0], "1e-6 is added"),
        "sign": (LARGE + "clip_scale = -cfg->clip / norm;", ALL, "changes its sign"),
        "float": (LARGE + "clip_scale = (float)(cfg->clip / norm);", [0], "float"),
        "compares_with_1": (
            "if (cfg->clip > 0 && norm > 1) clip_scale = cfg->clip / norm;",
            [0, 1],
            "below the limit",
        ),
        "norm_after": (
            LARGE + "{ clip_scale = cfg->clip / norm; norm = cfg->clip; }",
            ALL,
            "after clipping",
        ),
        "gradients_in_place": (
            LARGE + "for (size_t i = 0; i < g->num_parameters; i++)"
            " g->grads[i] *= (real)(cfg->clip / norm);",
            ALL,
            "logged are those after",
        ),
        "largest_norm_so_far": (
            "static double most; if (norm > most) most = norm;"
            " if (cfg->clip > 0 && norm > cfg->clip) clip_scale = cfg->clip / most;",
            [1, 2],
            "",
        ),
    },
)

# ---- the same in train_gpt.cu: the tests of train_gpt.c come first, and pass

CU = "train_gpt.cu"
NORM_K = "layernorm_head(k, mean + stat + NH, rstd + stat + NH, k_w, inside, HS, lanes);"
QK_NORM_CUDA = {
    "queries_weight": wrong(
        [4, 5, 6], (NORM_K, NORM_K.replace("k_w,", "q_w,")), file=CU, says="weight of the queries"
    ),
    "backward_with_queries_weight": wrong(
        [5, 6],
        ("(k ? k_weight : q_weight)", "q_weight"),
        says="through the weight of the queries",
        file=CU,
    ),
    "sums_of_keys_over_those_of_queries": wrong(
        [5, 6],
        (
            "partial += ((size_t)k * gridDim.x + blockIdx.x) * HS;",
            "partial += (size_t)blockIdx.x * HS;",
        ),
        file=CU,
    ),
}
CAP_DQ = "    if (cap > 0) dq = FOR_HEADS(attention_dq_kernel, true);"
CAP_DKV = "    if (cap > 0) dkv = FOR_HEADS(attention_dkv_kernel, true);"
ATTN_CAP_CUDA = {
    "no_backward": wrong([6, 7], (CAP_DQ, ""), (CAP_DKV, ""), file=CU, says="knows nothing"),
    "keys_without_it": wrong([6, 7], (CAP_DKV, ""), file=CU),
    "hidden_scores_come_back": wrong([6, 7], ("return s == -INFINITY ? s :", "return"), file=CU),
}
CLIP_GRID = "dim3(cfg->heads, cfg->layers, 2), 512,"
QK_CLIP_CUDA = {
    "only_queries": wrong([3], (CLIP_GRID, CLIP_GRID.replace("2)", "1)")), file=CU),
    "first_layer": wrong([3], (CLIP_GRID, CLIP_GRID.replace("cfg->layers", "1")), file=CU),
    "whole_factor": wrong([3], ("*= sqrtf(tau / largest)", "*= tau / largest"), file=CU),
    "always": wrong([3], ("if (largest <= tau || over(", "if (over("), file=CU),
    "0_clips_all": wrong(
        [3], ("if (cfg->qk_clip > 0 && cfg->layers)", "if (cfg->layers)"), file=CU
    ),
}
Z_LOSS_CUDA = one_line(
    CU,
    "weight += 2 * z_loss * z;",
    {
        "top": ("weight += 2 * z_loss * top;", [4, 5, 6], "largest logit"),
        "first_thread": ("if (threadIdx.x == 0) weight += 2 * z_loss * z;", [4, 5, 6], ""),
    },
)
ADAMW_CUDA = {
    "eps cuda": one_line(
        CU,
        "    eps = cfg->eps;",
        {
            "forgotten": ("", [3], ""),
        },
    ),
    "beta2 cuda": one_line(
        CU,
        "    beta2 = cfg->beta2;",
        {
            "forgotten": ("", [3], ""),
        },
    ),
    "clip cuda": one_line(
        CU,
        "if (o->clip > 0 && norm > o->clip) clip_scale = o->clip / norm;",
        {
            "always": ("if (o->clip > 0) clip_scale = o->clip / norm;", [3], ""),
            "0_clips_all": ("if (norm > o->clip) clip_scale = o->clip / norm;", [3], ""),
        },
    ),
    "wd cuda": one_line(
        CU,
        "decay = weight_decay(cfg, step);",
        {
            "never_independent": ("decay = cfg->wd * learning_rate(cfg, step);", [3], ""),
            "always_independent": ("decay = cfg->wd * lr / cfg->lr;", [3], ""),
        },
    ),
    "mu_param cuda": one_line(
        CU,
        "kind_lr *= mu_lr_scale(cfg, p);",
        {
            "flag_ignored": ("if (p->role == LINEAR) kind_lr /= mu_m(cfg);", [7], ""),
            "full_alone": (
                "if (cfg->mu_param == MU_FULL) kind_lr *= mu_lr_scale(cfg, p);",
                [7],
                "",
            ),
        },
    ),
}

WRONG = {
    "qk_norm": QK_NORM,
    "attn_cap": ATTN_CAP,
    "qk_clip": QK_CLIP,
    "z_loss": Z_LOSS,
    "warmup": WARMUP,
    "wd": WD,
    "mu_param": MU_PARAM,
    "eps": EPS,
    "beta2": BETA2,
    "clip": CLIP,
    "qk_norm cuda": QK_NORM_CUDA,
    "attn_cap cuda": ATTN_CAP_CUDA,
    "qk_clip cuda": QK_CLIP_CUDA,
    "z_loss cuda": Z_LOSS_CUDA,
    **ADAMW_CUDA,
}

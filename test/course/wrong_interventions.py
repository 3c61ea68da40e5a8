"""Wrong solutions of the exercises that are an intervention: the solution with these texts
replaced. lost: the tests that must fail, by number. All others must pass, except that those in
`either` may fail. says: part of a message."""


def wrong(lost, *patches, either=(), says="", file="train_gpt.c"):
    return dict(
        lost=set(lost),
        patches=[(file, *patch) if len(patch) == 2 else patch for patch in patches],
        either=set(either),
        says=says,
    )


MARGIN = " " * 53  # between `if (q_weight) {` and its marker in the loop of the forward pass
FORWARD = "            if (q_weight) {" + MARGIN + "// [qk_norm\n"
BACKWARD = "                if (q_weight) {" + MARGIN[4:] + "// [qk_norm\n"
TURN = "            rope_row(to, from, cosine + angles, sine + angles, 1, NH, HS);\n"
TURN_BACK = "                rope_row(d, d, cosine + angles, sine + angles, -1, NH, HS);\n"
END_BACKWARD = (
    "mean[head + h], rstd[head + h], dw + 2 * over, over);\n"
    "                }                                                               // qk_norm]\n"
)
ALL = [0, 1, 2, 3]
WRONG = {
    "qk_norm": {
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
            says="k_weight, K_NORM",
        ),
        "turns_what_was_not_normalised": wrong(
            ALL, ("                from = to;\n", ""), says="flag off"
        ),
        "only_the_first_head": wrong(
            ALL,
            (
                "for (int h = 0; h < C / over; h++)\n                    layernorm_row(",
                "for (int h = 0; h < 1; h++)\n                    layernorm_row(",
            ),
        ),
        "rotation_again_after_it": wrong(
            ALL, ("                from = to;\n", "from = to;\n" + TURN)
        ),
        "mean_of_another_head": wrong(
            [1, 2],
            (
                "size_t head = ((size_t)row * 2 + i) * NH;\n                for",
                "size_t head = (size_t)row * NH;\n                for",
            ),
            (
                "size_t head = ((size_t)row * 2 + i) * NH;\n                    for",
                "size_t head = (size_t)row * NH;\n                    for",
            ),
            either=[3],
            says="(B,T,2,NH)",
        ),
        "no_backward": wrong(
            [1, 2], (BACKWARD, BACKWARD.replace("(q_weight)", "(0 && q_weight)")), either=[3]
        ),
        "backward_of_output": wrong(
            [1, 2],
            ("qkv + at + h * over, i ?", "d + h * over, i ?"),
            either=[3],
            says="in qkv",
        ),
        "no_turning_back": wrong([1, 2], (TURN_BACK, ""), either=[3], says="turns back"),
        "turning_back_last": wrong(
            [1, 2],
            (TURN_BACK, ""),
            (END_BACKWARD, END_BACKWARD + TURN_BACK),
            either=[3],
            says="turns back",
        ),
        "backward_with_queries_weight": wrong(
            [1, 2],
            ("qkv + at + h * over, i ? k_weight : q_weight", "qkv + at + h * over, q_weight"),
            either=[3],
        ),
        "one_gradient_for_both_weights": wrong(
            [1, 2], ("NULL, dw + i * over, d + h", "NULL, dw, d + h"), either=[3]
        ),
        "only_the_first_chunk": wrong(
            [1, 2],
            (
                "sum_chunks(dq_weight, partial, (size_t)4 * over, chunks, over)",
                "sum_chunks(dq_weight, partial, (size_t)4 * over, 1, over)",
            ),
            either=[3],
            says="all chunks",
        ),
    },
    "z_loss": {
        "half": wrong([0, 1, 2], ("weight += 2 * z_loss", "weight += z_loss"), says="Half"),
        "sign": wrong([0, 1, 2, 3], ("weight += 2 * z_loss", "weight -= 2 * z_loss")),
        "not_times_log_z": wrong([0, 1, 2, 3], ("2 * z_loss * log_z[i];", "2 * z_loss;")),
        "mean_twice": wrong(
            [0, 1, 2], ("2 * z_loss * log_z[i];", "2 * z_loss * log_z[i] / rows;"), either=[3]
        ),
    },
    "warmup": {
        "one_late": wrong(
            [0, 1],
            ("cfg->lr * step /", "cfg->lr * (step - 1) /"),
            file="gpt.h",
            says="One step late",
        ),
        "whole_numbers": wrong(
            [0, 1], ("cfg->lr * step / cfg->warmup", "cfg->lr * (step / cfg->warmup)"), file="gpt.h"
        ),
        "from_end": wrong(
            [0],
            (
                "return cfg->lr * step / cfg->warmup",
                "return end + (cfg->lr - end) * step / cfg->warmup",
            ),
            file="gpt.h",
            either=[1],
        ),
    },
    "wd": {
        "swapped": wrong(
            [0, 1, 2],
            ("lr / cfg->lr : lr)", "lr : lr / cfg->lr)"),
            file="gpt.h",
            says="-wd_independent 0",
        ),
        "constant": wrong(
            [0, 1, 2],
            ("cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr)", "cfg->wd + 0 * lr"),
            file="gpt.h",
            says="same at every step",
        ),
        "always_independent": wrong(
            [0, 2], ("(cfg->wd_independent ? lr / cfg->lr : lr)", "lr / cfg->lr"), file="gpt.h"
        ),
        "first_step": wrong([0, 1, 2], ("weight_decay(cfg, step)", "weight_decay(cfg, 1)")),
    },
    "mu_param": {
        "upside_down": wrong(
            [0, 2, 3, 4],
            ("(double)cfg->d / cfg->base_d", "(double)cfg->base_d / cfg->d"),
            file="gpt.h",
            says="upside down",
        ),
        "whole_number": wrong(
            [0, 2, 3],
            ("(double)cfg->d / cfg->base_d", "cfg->d / cfg->base_d"),
            file="gpt.h",
            says="not a whole number",
        ),
        "all_tensors": wrong(
            [2, 3],
            ("MU_SIMPLE && p->role == LINEAR", "MU_SIMPLE && p"),
            file="gpt.h",
            either=[4],
            says="Every tensor",
        ),
        "without_the_head": wrong(
            [2, 3],
            ("&& p->role == LINEAR", '&& p->role == LINEAR && strcmp(p->kind, "lm_head")'),
            file="gpt.h",
            either=[4],
            says="The head is a linear layer too",
        ),
        "factors_pile_up": wrong(
            [2, 3], ("kind_lr *= mu_lr_scale", "kind_lr = lr *= mu_lr_scale"), either=[4]
        ),
        "scale_from_the_base": wrong(
            [1, 3],
            (
                "if (cfg->mu_param >= MU_FULL) scale = 1 / HS;",
                "if (cfg->mu_param >= MU_FULL) scale /= sqrt(mu_m(cfg));",
            ),
            file="gpt.h",
            says="whatever the base width",
        ),
        "scale_always": wrong(
            [1],
            ("if (cfg->mu_param >= MU_FULL) scale", "if (cfg->mu_param >= MU_OFF) scale"),
            file="gpt.h",
        ),
        "head_by_m": wrong(
            [0],
            ("std /= sqrt(mu_m(cfg))", "std /= mu_m(cfg)"),
            file="gpt.h",
            says="1 / sqrt(m)",
        ),
        "head_of_simple": wrong(
            [0],
            (
                "k == LM_HEAD && cfg->mu_param >= MU_INTERMEDIATE",
                "k == LM_HEAD && cfg->mu_param >= MU_SIMPLE",
            ),
            file="gpt.h",
            says="This is the value of 'intermediate'",
        ),
        "queries_as_they_were": wrong(
            [0],
            ("memset(out, 0, parameter_size(p) / 3", "memset(out, 0, 0 * parameter_size(p)"),
            file="gpt.h",
        ),
        "queries_of_every_model": wrong(
            [0],
            ("k == C_ATTN && cfg->mu_param >= MU_FULL", "k == C_ATTN"),
            file="gpt.h",
            says="with -mu_param off",
        ),
        "keys_too": wrong(
            [0],
            ("parameter_size(p) / 3 * sizeof", "parameter_size(p) / 3 * 2 * sizeof"),
            file="gpt.h",
        ),
    },
    "eps": {
        "squared": wrong([0, 1], ("    eps = cfg->eps;", "    eps = cfg->eps * cfg->eps;")),
        "in_the_root": wrong(
            [0, 1],
            ("(sqrt(v[i] * o.correction2) + o.eps)", "sqrt(v[i] * o.correction2 + o.eps)"),
        ),
        "another": wrong([0, 1, 2], ("    eps = cfg->eps;", "    eps = 1e-4;")),
    },
    "beta2": {
        "not_in_new": wrong([0, 1, 2], ("(1 - o.beta2) * g * g", "(real)0.05 * g * g")),
        "not_in_correction": wrong([0, 1], ("pow(beta2, step)", "pow(0.95, step)")),
        "beta1": wrong([0, 1, 2], ("    beta2 = cfg->beta2;", "    beta2 = cfg->beta1;")),
    },
    "clip": {
        "always": wrong(
            [0], ("cfg->clip > 0 && norm > cfg->clip", "cfg->clip > 0"), says="below the limit"
        ),
        "0_clips_all": wrong([0], ("cfg->clip > 0 && norm", "norm")),
        "squares": wrong([0, 1], ("cfg->clip / norm; ", "cfg->clip / (norm * norm); "), either=[2]),
    },
}

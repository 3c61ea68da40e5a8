"""Wrong solutions of the exercise muon, as in wrong_interventions.py, and right ones of other kinds
(right_..., which lose nothing)."""

from wrong_interventions import wrong

WIDE, TALL, SCALES, STEP, UPDATE, STEPS, EFFECT = ALL = range(7)
MODEL = UPDATE, STEPS, EFFECT

SCALE = "    #pragma omp taskloop\n    for (size_t i = 0; i < size; i++) x[i] *= factor;\n"
COEFFICIENTS = "a = (real)3.4445, b = (real)-4.7750, c = (real)2.0315;"
GRAM = "        product(g, tall ? flip(X) : X, tall ? X : flip(X), n, n, tall ? rows : cols);\n"
TURNS = GRAM + (
    "        product(p, G, G, n, n, n);\n"
    "        #pragma omp taskloop\n"
    "        for (size_t i = 0; i < square; i++) p[i] = b * g[i] + c * p[i];\n"
    "        for (size_t i = 0; i < square; i += n + 1) p[i] += a;\n"
    "        product(y, tall ? X : P, tall ? P : X, rows, cols, n);\n"
    "        memcpy(x, y, size * sizeof(real));\n"
)
# No matrix is multiplied but x: x, G x and G G x, in loops, with memory on the stack
LOOPS = """        real gram[n][n], once[size], twice[size];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                gram[i][j] = 0;
                for (int k = 0; k < (tall ? rows : cols); k++)
                    gram[i][j] += tall ? x[k * cols + i] * x[k * cols + j]
                                       : x[i * cols + k] * x[j * cols + k];
            }
        for (int again = 0; again < 2; again++)
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < cols; j++) {
                    const real *from = again ? once : x;
                    real sum = 0;
                    for (int k = 0; k < n; k++)
                        sum += tall ? from[i * cols + k] * gram[k][j]
                                    : gram[i][k] * from[k * cols + j];
                    (again ? twice : once)[i * cols + j] = sum;
                }
        for (size_t i = 0; i < size; i++) x[i] = a * x[i] + b * once[i] + c * twice[i];
"""
PARTS = """    double square = 0;
    int each = (int)size / omp_get_num_threads() + 1;
    for (int from = 0; from < (int)size; from += each) {
        double sum = 0;
        for (int i = from; i < least((int)size, from + each); i++)
            sum += (double)x[i] * (double)x[i];
        square += sum;
    }
    real factor = (real)(1 / (sqrt(square) + 1e-30));
"""
NORM = "    real factor = (real)(1 / (sqrt(sum_squares(x, size, sums)) + 1e-30));\n"
MOMENTUM = "            m[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;\n"
AHEAD = "            x[j] = MUON_MOMENTUM * m[j] + (1 - MUON_MOMENTUM) * g;\n"
CLIPPED = "            real g = grad[j] * o.clip_scale;\n            m[j] = MUON"
SIZE = "size = (real)0.2 * sqrt((real)(rows > cols ? rows : cols));"
MOVED = "            param[j] = updated(param[j], size * x[j], lr, o);\n"
RESULT = "return size * size * sum_squares(x, n, sums);"
USES = "if (uses_muon(cfg, g->table, k)) {"
CALL = "updates += muon(params + j, grads + j, m + j, p->rows / parts, p->cols,\n"
LR = " " * 36 + "(real)tensor_lr, o, g->muon, g->sums);\n"
SECOND_MOMENT = """                for (size_t j = 0; j < size; j++) {
                    real clipped = grads[j] * o.clip_scale;
                    g->v[i + j] = o.beta2 * g->v[i + j] + (1 - o.beta2) * clipped * clipped;
                }
"""


def moved(update):
    """A step that ends with another line."""
    return MOVED, f"            param[j] {update};\n"


MUON = {
    # orthogonalize
    "not_scaled": wrong(ALL, (SCALE, "    (void)factor;\n"), says="is not scaled"),
    "no_root_of_the_norm": wrong(
        ALL,
        ("(sqrt(sum_squares(x, size, sums)) +", "(sum_squares(x, size, sums) +"),
        says="the root",
    ),
    "zeros_become_nan": wrong([SCALES, STEP], (" + 1e-30));", "));")),
    "small_ones_stay_small": wrong(ALL, (" + 1e-30));", " + 1e-7));"), either=[], says="1e-7"),
    "four_turns": wrong(ALL, ("turn < 5", "turn < 4"), says="Four turns"),
    "six_turns": wrong(ALL, ("turn < 5", "turn < 6"), says="Six turns"),
    "coefficients_exchanged": wrong(
        ALL,
        (COEFFICIENTS, "a = (real)3.4445, b = (real)2.0315, c = (real)-4.7750;"),
        says="are exchanged",
    ),
    "one_product_for_all_turns": wrong(
        ALL, (GRAM, "        if (turn == 0)\n    " + GRAM), says="first turn"
    ),
    "a_in_every_element": wrong(ALL, ("i < square; i += n + 1) p", "i < square; i++) p")),
    "tall_as_if_wide": wrong(
        [TALL, SCALES, STEP, *MODEL], ("int tall = rows > cols,", "int tall = 0,")
    ),
    "product_onto_itself": wrong(
        ALL, ("*p = g + square, *y = p + square;", "*p = g, *y = p + square;")
    ),
    "past_the_scratch": wrong(ALL, ("*y = p + square;", "*y = p + 2 * square;")),
    "norm_by_threads": wrong([WIDE, TALL], (NORM, PARTS), either=ALL),
    "right_loops": wrong([], (TURNS, LOOPS)),
    # muon
    "not_nesterov": wrong(
        [STEP, *MODEL], (AHEAD, "            x[j] = m[j];\n"), says="must be the one a step ahead"
    ),
    "sum_of_gradients": wrong(
        [STEP, *MODEL], (MOMENTUM, "            m[j] = MUON_MOMENTUM * m[j] + g;\n"), says="a sum"
    ),
    "adams_beta": wrong(
        [STEP, *MODEL],
        (MOMENTUM + AHEAD, (MOMENTUM + AHEAD).replace("MUON_MOMENTUM", "o.beta1")),
        says="beta1",
    ),
    "not_clipped": wrong(
        [STEP, *MODEL], (CLIPPED, CLIPPED.replace(" * o.clip_scale", "")), says="not clipped"
    ),
    "shorter_side": wrong(
        [STEP, *MODEL], (SIZE, SIZE.replace("rows > cols", "rows < cols")), says="the shorter side"
    ),
    "same_factor_for_all": wrong(
        [STEP, *MODEL], (SIZE, "size = (real)0.2;"), says="does not depend on the shape"
    ),
    "factor_of_the_first_version": wrong(
        [STEP, *MODEL],
        (SIZE, "size = (real)0.2 * sqrt(fmax(1, (real)rows / cols));"),
        says="the ratio of the sides",
    ),
    "no_decay": wrong([STEP, *MODEL], moved("-= lr * size * x[j]"), says="do not decay"),
    "not_cautious": wrong(
        [STEP, UPDATE, STEPS],
        moved("-= lr * size * x[j] + o.decay * param[j]"),
        says="-cautious 1 changes nothing",
    ),
    "lr_twice": wrong(
        [STEP, *MODEL], moved("= updated(param[j], lr * size * x[j], lr, o)"), says="there twice"
    ),
    "squares_before_the_factor": wrong(
        [STEP, *MODEL], (RESULT, "return sum_squares(x, n, sums);"), says="before the factor"
    ),
    "clips_the_gradient_itself": wrong(
        MODEL,
        (
            CLIPPED,
            "            ((real *)grad)[j] *= o.clip_scale;\n"
            + CLIPPED.replace(" * o.clip_scale", ""),
        ),
    ),
    "right_plain_loops": wrong(
        [],
        (
            "    #pragma omp taskloop\n    for (int i = 0; i < rows; i++)\n"
            + " " * 8
            + "for (size_t j = (size_t)i * cols; j < (size_t)(i + 1) * cols; j++) {\n",
            "        for (size_t j = 0; j < n; j++) {\n",
        ),
        (
            RESULT,
            "double sum = 0;\n    for (size_t j = 0; j < n; j++) sum += x[j] * x[j];\n"
            "    return size * size * sum;",
        ),
    ),
    # gpt_update
    "flag_ignored": wrong(MODEL, (USES, "if (p->role == LINEAR && k != LM_HEAD) {")),
    "one_matrix_for_q_k_v": wrong(
        MODEL, ("int parts = k == C_ATTN ? 3 : 1; ", "int parts = 1; "), says="c_attn is one matrix"
    ),
    "head_too": wrong(
        MODEL,
        (USES, "if (cfg->optimizer == OPTIMIZER_MUON && p->role == LINEAR) {"),
        says="lm_head has Muon's step too",
    ),
    "second_moment": wrong([UPDATE], (USES, USES + "\n" + SECOND_MOMENT), says="v was changed"),
    "without_muparam": wrong([UPDATE, STEPS], (LR, LR.replace("tensor_lr", "lr")), says="muParam"),
    "one_momentum_for_q_k_v": wrong(MODEL, (CALL, CALL.replace("m + j", "m"))),
    "last_matrix_alone_is_logged": wrong(MODEL, (CALL, CALL.replace("+=", "="))),
}
WRONG = {"muon": MUON}

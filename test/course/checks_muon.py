"""The tests of the exercise muon: the matrix that is made orthogonal, a step of one matrix, a step
of the whole model, training."""

import numpy as np

import reference as ref
from checks import AGAIN, OFF, claim, steps, training, update
from checks_layers import same
from student import differs

# (mistake, as reference.py computes it; what HINT=1 says of it)
OF_MATRIX = [
    ("no_norm", "The matrix is not scaled first: singular values above 1 grow in each turn."),
    ("spectral", "The largest singular value was made 1; the root of the sum of squares must be."),
    ("entry", "The largest element was made 1; the root of the sum of squares must be."),
    ("squared", "The matrix is divided by the sum of its squares, without the root."),
    ("guarded", "1e-7 is added to the norm: a small matrix stays small."),
    ("four", "Four turns were made; there are five."),
    ("six", "Six turns were made; there are five."),
    ("swapped", "The second and the third coefficient are exchanged."),
    ("cubic", "The coefficients are 1.5, -0.5 and 0, those of the older iteration."),
    ("once", "The product of the matrix with its transpose is that of the first turn, each time."),
    ("linear", "The third coefficient multiplies the product; it must multiply its square."),
]
OF_STEP = [
    ("no_clip", "The gradient is not clipped."),
    ("clip_twice", "The gradient is clipped twice."),
    ("beta1", "The momentum decays with beta1; Muon has a constant for it."),
    ("sum", "The momentum is a sum of gradients; it must be a mean of them."),
    ("plain", "The new momentum is made orthogonal; it must be the one a step ahead (Nesterov)."),
    ("ahead", "The look ahead gives the gradient the factor 1."),
    ("gradient", "The gradient is made orthogonal; it must be the momentum."),
    ("shorter", "The factor has the shorter side where the longer should be."),
    ("no_root", "The factor does not depend on the shape of the matrix."),
    ("no_size", "The factor gives the RMS 1."),
    ("no_factor", "The orthogonal matrix itself is the step: the factor is missing."),
    ("original", "The factor is that of Muon's first version, by the ratio of the two sides."),
    (
        "ratio",
        "The factor has the ratio of the sides under its root; it must have the longer side.",
    ),
    ("linear_side", "The factor has the longer side itself where its root should be."),
    ("no_decay", "The weights do not decay."),
    ("decay_lr", "The decay is multiplied by the learning rate, which it holds already."),
    ("not_cautious", "-cautious 1 changes nothing."),
    ("sign_of_g", "-cautious 1 asks for the sign of the gradient; it must be that of the update."),
    ("no_lr", "The learning rate is missing."),
    ("lr_twice", "The learning rate is there twice."),
    ("log_x", "The sum of squares is that of the orthogonal matrix, before the factor."),
    ("log_lr", "The sum of squares has the learning rate in it."),
]
OF_MODEL = [
    ("whole", "c_attn is one matrix; queries, keys and values must be three."),
    ("heads", "Each head's queries, keys and values are matrices of their own."),
    ("head", "lm_head has Muon's step too; it must have AdamW's."),
    ("ends", "lm_head and wte have Muon's step too; they must have AdamW's."),
    ("v", "v was changed: Muon has one moment."),
    ("kind", "muParam's factor is missing in the learning rate: take that of the tensor."),
]

MATRIX_HINTS = (
    "Take it in two parts. The scale: which norm is 1 before the first turn? A turn: which of its"
    " three products are square, of which size, and which side do they multiply from? Print the"
    " singular values of a matrix of one row: there is one, and each turn moves it.",
    "x /= sqrt(sum of x^2); five times: g = x x^T, p = a + b g + c g g, x = p x. For a tall x: g ="
    " x^T x, x = x p.",
)
STEP_HINTS = dict(
    m=(
        "The momentum: the clipped gradient, and a mean with the constant that stands above muon.",
        "m = 0.95 m + 0.05 g, with g = o.clip_scale * grad",
    ),
    param=(
        "The step: what is made orthogonal, which factor gives it its RMS, and where lr and decay"
        " come in.",
        "u = 0.2 sqrt(longer side) orthogonalize(0.95 m + 0.05 g), then updated(param, u, lr, o)",
    ),
    squares=(
        "What is returned: the sum of the squares of u, the update without the learning rate.",
        "factor^2 * sum_squares(x, rows * cols, sums), where x is the orthogonal matrix",
    ),
)


def orthogonalized(s, matrices):
    """matrices: (what it is, x)"""
    for what, x in matrices:
        sent = np.concatenate([x.shape, x.ravel()])
        flat, _ = s.answer(x.size, "orthogonalize", 1, {}, sent)
        right = lambda wrong="", x=x: dict(x=ref.orthogonalize(x, wrong))
        case = f"of a matrix ({x.shape[0]},{x.shape[1]}){what}"
        same(right, dict(x=flat.reshape(x.shape)), case, OF_MATRIX, MATRIX_HINTS, 1e-9)


def random(s, shapes, size=0.25):
    return [("", size * s.rng.standard_normal(shape)) for shape in shapes]


def wide(s, ex):
    orthogonalized(s, random(s, [(3, 5), (1, 4), (6, 6), (7, 28), (40, 113)]))


def tall(s, ex):
    orthogonalized(s, random(s, [(5, 3), (4, 1), (28, 7), (113, 40)]))


def scales(s, ex):
    (_, x), (_, y) = random(s, [(6, 9), (9, 5)])
    low = s.rng.standard_normal((7, 2)) @ s.rng.standard_normal((2, 9))
    row = np.where(np.arange(7)[:, None] == 3, low, 0)
    orthogonalized(
        s,
        [
            (" of zeros", 0 * x),
            (", tall, of zeros", 0 * y),
            (" of numbers near 1e-9", 1e-9 * x),
            (", tall, of numbers near 1e-20", 1e-20 * y),
            (" of numbers near 1e9", 1e9 * x),
            (" of rank 2", low),
            (" of rank 2, tall", low.T),
            (" with one row that is not 0", row),
        ],
    )


def one_matrix(s, ex):
    """A step by muon itself. The first case shows every mistake."""
    for (rows, cols), lr, clip, decay, cautious, zero in (
        ((8, 5), 0.3, 0.4, 0.1, 1, ""),
        ((5, 8), 0.03, 1, 0.2, 0, ""),
        ((6, 6), 0.1, 0.01, 0, 0, ""),
        ((20, 5), 0.2, 1, 0.05, 1, ""),
        ((72, 70), 0.02, 1, 0, 0, ""),
        ((6, 7), 0.1, 1, 0.3, 0, "gradient and momentum are 0"),
        ((3, 7), 0.1, 1, 0.1, 1, "the gradient is 0"),
    ):
        p, g, m = 0.3 * s.rng.standard_normal((3, rows, cols))
        g, m = g * (not zero), m * ("and" not in zero)
        rest = lr, clip, decay, cautious, ref.number({}, "muon_size")
        sent = np.concatenate([[rows, cols, *rest[:4]], *(x.ravel() for x in (p, g, m))])

        def named(flat):
            param, m, squares = np.split(flat, [p.size, 2 * p.size])
            return dict(m=m.reshape(p.shape), param=param.reshape(p.shape), squares=squares)

        def right(wrong=""):
            param, momentum, u = ref.muon(p, m, g, *rest, wrong)
            with np.errstate(all="ignore"):
                return dict(m=momentum, param=param, squares=np.atleast_1d((u * u).sum()))

        flat, _ = s.answer(2 * p.size + 1, "muon", 1, {}, sent, named=named)
        case = f"({rows},{cols}), lr {lr}, clip_scale {clip}, decay {decay}, cautious {cautious}"
        case += f"; {zero}" * bool(zero)
        at = differs(right(), named(flat), 1e-9)
        if at:
            same(right, named(flat), case, OF_MATRIX + OF_STEP, STEP_HINTS[at[0]], 1e-9)


def effect(s, ex):
    """Muon trains better, and bounds no attention logit."""
    adamw, muon, bare = (
        training(s, dict(optimizer=o, qk_norm=n), 0.3, 100, ex)
        for o, n in (("adamw", 1), ("muon", 1), ("muon", 0))
    )
    claim(
        muon["loss"] < adamw["loss"] - 0.05,
        f"after 100 steps at LR 0.3 with qk-norm the loss is {muon['loss']:.3f} with Muon,"
        f" {adamw['loss']:.3f} with AdamW",
        "expected that it is lower by more than 0.05",
    )
    claim(
        bare["max_attn_logit"] > 5 * muon["max_attn_logit"],
        f"after 100 steps at LR 0.3 with Muon the largest attention logit is"
        f" {bare['max_attn_logit']:.3g} without qk-norm, {muon['max_attn_logit']:.3g} with it",
        "expected more than 5 times as much without",
    )


EXERCISES = {
    "muon": dict(
        tests=[
            (15, "orthogonalize: wide and square matrices", wide),
            (10, "orthogonalize: tall matrices", tall),
            (10, "orthogonalize: zeros, low rank, any scale", scales),
            (25, "muon: one matrix", one_matrix),
            (20, "value: one update of the model", update),
            (10, "five steps of training", steps),
            (10, "effect: a lower loss, and no bound on logits", effect),
        ],
        # the first shows every mistake; the flag off; no layer; a tensor of more than 4,096 values
        cases=[
            dict(optimizer="muon", cautious=1, wd=0.1, mu_param="simple", base_d=5, steps=20),
            dict(optimizer="muon", d=12, heads=3, layers=3, clip=0, steps=6, qk_norm=0, wd=0.2),
            dict(optimizer="adamw", layers=2, cautious=1, wd=0.3, steps=6),
            dict(optimizer="muon", layers=0, steps=6),
            dict(optimizer="muon", d=40, heads=5, clip=1e6, steps=6, warmup=0),
        ],
        mistakes=[
            ({"optimizer": "adamw"}, OFF),
            *(({"wrong_muon": name}, words) for name, words in OF_MODEL + OF_STEP + OF_MATRIX),
        ],
        hints=dict(
            update={
                "v: ": (
                    "Muon has one moment: v stays as it is.",
                    "Only AdamW's step gets g->v + i.",
                ),
                "log.csv": (
                    "The log: update_rms follows from updates, the sum over the whole tensor.",
                    "updates += the result of muon, for each matrix",
                ),
                "c_attn": (
                    "gpt_update, at C_ATTN: three matrices, each with its part of params, of grads"
                    " and of m.",
                    "for each third, from j on: updates += muon(params + j, grads + j, m + j,"
                    " p->rows / 3, p->cols, (real)tensor_lr, o, g->muon, g->sums)",
                ),
                "": (
                    "gpt_update: which tensors does uses_muon name? All others have AdamW's step,"
                    " also with -optimizer muon.",
                    "if (uses_muon(cfg, g->table, k)) Muon's step, else updates = adamw(...)",
                ),
            },
            steps=(AGAIN, ""),
        ),
    ),
}

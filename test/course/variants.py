"""make exercise-NAME VARIANT=7: other names, another order of the questions and another number, so
that a solution from elsewhere does not fit. The seed, 7, draws all three from the tables below; the
folder's kit/exercise holds it, so that the grading knows the number.

exercise.py writes the variant; reference.py computes with its number."""

import random
import re
import textwrap

import reference

SEED = r"[\w-]+"  # what a seed may be
# exercise: (the number's name in reference.py, the values that a seed draws from, the cuts of a
# file whose comments say it, the sentence)
NUMBERS = {
    "clip": (
        "clip_to",
        (0.25, 0.5, 0.8),
        ("train_gpt.c", (0,)),
        "A gradient that is too long gets the norm {} * cfg->clip, not cfg->clip.",
    ),
    "eps": (
        "eps_power",
        (0.25, 0.5, 0.75),
        ("train_gpt.c", (0,)),
        "Gradients shrink with the width, and epsilon with them: it is cfg->eps / C^{}, where C is"
        " cfg->d.",
    ),
    "beta2": (
        "beta2_power",
        (1.5, 2, 3),
        ("train_gpt.c", (0,)),
        "The flag was tuned for batches {} times smaller, and v is to remember as many tokens as"
        " there: take cfg->beta2 to the power of {}.",
    ),
    "warmup": (
        "warmup_start",
        (0.05, 0.1, 0.15),
        ("gpt.h", (0,)),
        "The straight line starts at {} * cfg->lr at step 0, not at 0.",
    ),
    "wd": (
        "wd_peak",
        (0.02, 0.03, 0.05),
        ("gpt.h", (0,)),
        "With -wd_independent 0 the share is cfg->wd times the learning rate over {}, so that both"
        " kinds are the same at a peak of {}.",
    ),
    "z_loss": (
        "z_target",
        (0.2, 0.3, 0.5),
        ("train_gpt.c", (0,)),
        "The z-loss pulls log Z to {}, not to 0: its term is z_loss * mean over rows of"
        " (log Z - {})^2.",
    ),
    "qk_norm": (
        "qk_scale",
        (0.5, 0.75, 1.5),
        ("train_gpt.c", (0, 1)),
        "The normalised heads, those of q and those of k, are {} * LayerNorm.",
    ),
    "attn_cap": (
        "cap_slope",
        (0.5, 0.75, 1.5),
        ("train_gpt.c", (1,)),
        "The cap is steeper or flatter: a score becomes cap tanh({} score / cap).",
    ),
    "qk_clip": (
        "qk_clip_to",
        (0.25, 0.5, 0.8),
        ("train_gpt.c", (1,)),
        "A head that is above the limit is shrunk further, so that its largest score would have"
        " been {} * cfg->qk_clip.",
    ),
    "mu_param": (
        "mu_power",
        (0.75, 1.25, 1.5),
        ("gpt.h", (1,)),
        "The factor of (i) is taken to the power of {}.",
    ),
    "muon": (
        "muon_size",
        (0.15, 0.18, 0.25),
        ("train_gpt.c", (1,)),
        "The update has the RMS {}, not 0.2, where all singular values are 1.",
    ),
}
# exercise: {a name in the functions around its cuts: what it may be called}
UPDATE = {
    "clip_scale": ("shrink", "rescale", "grad_factor"),
    "kind_lr": ("kind_rate", "rate_of_kind", "step_of_kind"),
    "tensor_lr": ("tensor_rate", "rate_here", "own_lr"),
    "squares": ("total_squares", "sum_sq", "squared"),
}
NAMES = {
    "clip": UPDATE,
    "eps": UPDATE,
    "beta2": UPDATE,
    "mu_param": {**UPDATE, "std": ("sigma", "spread", "deviation")},
    "muon": {
        **UPDATE,
        "param": ("weight", "value", "p_now"),
        "grad": ("slope", "dparam", "g_raw"),
    },
    "warmup": {
        "step": ("t", "now", "at_step"),
        "end": ("low", "last_lr", "floor_lr"),
        "done": ("share", "progress", "fraction"),
    },
    "wd": {**UPDATE, "step": ("t", "now", "at_step"), "lr": ("rate", "lr_t", "lr_now")},
    "z_loss": {
        "log_z": ("lse", "log_norm", "log_total"),
        "top": ("peak", "highest", "biggest"),
        "factor": ("multiplier", "times", "ratio"),
    },
    "qk_norm": {
        "rstd": ("inv_std", "inverse", "rsigma"),
        "q_weight": ("q_gain", "wq", "query_scale"),
        "k_weight": ("k_gain", "wk", "key_scale"),
        "from": ("source", "read_at", "inp"),
        "to": ("target", "write_at", "dest"),
        "over": ("span", "group", "width"),
        "partial": ("by_chunk", "parts", "sums"),
        "angles": ("turn", "at_angle", "phase"),
    },
    "attn_cap": {
        "largest": ("biggest", "highest", "most"),
        "stats": ("kept", "of_row", "two"),
        "block": ("chunk", "many", "at_once"),
        "first": ("base", "row_0", "begin"),
        "channel": ("offset", "column", "lane"),
    },
    "qk_clip": UPDATE,
    "attention_backward": {
        "dout": ("d_out", "grad_out", "out_grad"),
        "dqkv": ("d_qkv", "grad_qkv", "qkv_grad"),
        "scratch": ("workspace", "memory", "room"),
    },
    "layernorm": {
        "rstd": ("inv_std", "inverse", "rsigma"),
        "dout": ("d_out", "grad_out", "out_grad"),
        "dweight": ("d_weight", "grad_weight", "weight_grad"),
    },
}
# English words, and letters that prose uses for something else
ENGLISH = "from to over step end done lr top factor squares angles largest block first".split()


def drawn(name, seed):
    return random.Random(f"{name} {seed}")


def number(name, seed):
    """{name in reference.py: value}; {} for the standard variant and where it has no number."""
    if seed is None or name not in NUMBERS:
        return {}
    key, values, *_ = NUMBERS[name]
    return {key: drawn(name, seed).choice(values)}


def names(name, seed):
    """{the name in the sources: the variant's}"""
    if seed is None:
        return {}
    draw = drawn(name, seed)
    return {old: draw.choice(new) for old, new in NAMES.get(name, {}).items()}


def sentence(name, seed):
    """What differs from the standard variant; "" where no number does."""
    return "".join(
        f"Variant {seed}: {NUMBERS[name][3].replace('{}', f'{value:g}')}"
        for value in number(name, seed).values()
    )


# of the variant that is graded: its names, and the mistakes to look for first
renamed, mistakes = {}, []


def use(name, words):
    """Makes the grading and the reference those of the variant that words name, the words after the
    exercise in kit/exercise."""
    global renamed, mistakes
    (seed,) = [word[8:] for word in words if word.startswith("variant=")] or [None]
    renamed, reference.VARIANT = names(name, seed), number(name, seed)
    standard = ({"wrong_standard": 1}, "This is the solution of the standard variant.")
    mistakes = [standard] * bool(reference.VARIANT)


def in_code(code, names):
    """Code with other names; fields of structs keep theirs."""
    for old, new in names.items():
        code = re.sub(rf"(?<![\w.>\"]){old}(?!\w)", new, code)
    return code


def in_prose(text, names):
    """Prose with other names. One that is an English word is changed only between backquotes and as
    a size, (over)."""
    for old, new in names.items():
        before, after = (r"(?<=[`(,])", r"(?=[`),])") if old in ENGLISH else (r"(?<!\w)", r"(?!\w)")
        text = re.sub(before + old + after, new, text)
    return text


def in_function(text, names):
    """A function and its comments with other names; comments keep their column."""
    lines = []
    for line in text.split("\n"):
        code, slashes, comment = line.partition("//")
        new = in_code(code, names)
        if slashes and code.strip():
            new = new.rstrip().ljust(len(code) - 1) + " "
        lines.append(new + slashes + in_prose(comment, names))
    return "\n".join(lines)


def handout(text, name, seed):
    """The handout of a variant: it says the number, and has the questions in another order."""
    title, rest = in_prose(text, names(name, seed)).split("\n", 1)
    says = sentence(name, seed)
    note = (
        says and f"{says} That replaces the usual form here, in comments and in `./train_gpt -h`."
    )
    note = textwrap.fill(note, 100, break_long_words=False, break_on_hyphens=False) + "\n" * bool(
        says
    )
    head, explain, questions = rest.partition("\n## Explain\n")
    questions, *after = re.split(r"(?m)^(?=## )", questions, maxsplit=1)
    before, *items = re.split(r"(?m)^\d+\. +", questions)
    items = [item.rstrip("\n") for item in items]
    drawn(name, seed).shuffle(items)
    numbered = "".join(f"{i}. {item}\n" for i, item in enumerate(items, 1))
    end = ["\n" * bool(after)] + after
    return (
        "\n".join([title, "", note] if note else [title, ""])
        + head
        + explain
        + before
        + numbered
        + "".join(end)
    )

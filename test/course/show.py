"""make show, make show-FLAG: the lines that an intervention adds, found by their markers, with the
formula.

A marker ends a line: `// [flag]` marks that line, `// [flag` opens a block and `// flag]` closes
it.
"""

import os
import pathlib
import re
import shutil
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = "gpt.h", "train_gpt.c", "train_gpt.cu"
MOST_LINES = 25  # flagged lines that an intervention may have in a file

# The formula of every intervention. Its section and its line of help are in gpt.h's table of flags.
FORMULA = {
    "qk_norm": (
        "q = LayerNorm(q) * w_q, k = LayerNorm(k) * w_k, over the HS values of each head, before"
        " RoPE; w_q, w_k (HS).\n"
        "LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + 1e-6)."
        " Then |scale q.k| <= sqrt(HS) max|w_q| max|w_k|.\n"
        "model: over all C values of q and of k; w_q, w_k (C). The bound is NH times as large."
    ),
    "kappa": (
        "q = sqrt(kappa) q / RMS(q), k alike, over the HS values of each head, before RoPE.\n"
        "RMS(q) = sqrt(average(q^2) + 1e-6). Then |q.k| / sqrt(HS) <= kappa sqrt(HS), and about"
        " kappa in unrelated directions."
    ),
    "z_loss": (
        "loss = cross-entropy + z_loss * mean(log Z ^ 2), Z = sum_j exp(logit_j).\n"
        "d loss / d logit_j = (p_j - [j = target] + 2 z_loss log Z p_j) / rows,"
        " as d log Z / d logit_j = p_j."
    ),
    "bf16_logits": (
        "logit = the nearest of 8 significant bits, the even one of two as near; spacing"
        " 2^(floor(log2 |logit|) - 7).\n"
        "The gradient is that of the rounded logits, passed on unchanged. At |logit| 600 the"
        " spacing is 4: softmax sees steps of 4."
    ),
    "warmup": (
        "lr_t = lr * t / warmup for t < warmup; from there on half a cosine to min_lr at the last"
        " step. t counts from 1."
    ),
    "schedule": (
        "cosine: after warm-up lr_t = min_lr + (lr - min_lr) (1 + cos(pi s)) / 2, where s runs from"
        " 0 to 1. constant: lr_t = lr.\n"
        "wsd: lr_t = lr, and in the last fifth of the steps lr_t = min_lr + (lr - min_lr) *"
        " (steps - t) / (steps / 5), in what warm-up leaves of it."
    ),
    "wd": (
        "p -= lr_t u + decay_t p, where u is Adam's update."
        " decay_t = wd * lr_t / lr (independent) or wd * lr_t (PyTorch's)."
    ),
    "wd_independent": (
        "1: decay_t = wd * lr_t / lr, which is wd at the peak whatever lr is."
        " 0: decay_t = wd * lr_t, as PyTorch's AdamW."
    ),
    "d": "the width C: every matrix is C x C, 4C x C, C x 4C or V x C.",
    "layers": "the depth L: x += proj(attention(norm(x))); x += fc2(gelu(fc1(norm(x)))), L times.",
    "heads": "NH heads of size HS = C / NH: attention's scale is 1 / sqrt(HS).",
    "scale": "score = q.k / sqrt(HS) or, with d_h (the paper's name for HS), q.k / HS.",
    "attention": (
        "weight_ij = max(0, score_ij)^2 / sqrt(T) for j <= i, in place of the softmax over j of"
        " score_ij.\n"
        "d loss / d score_ij = 2 max(0, score_ij) / sqrt(T) * dout_i.v_j."
    ),
    "mu_param": (
        "m = C / base_d. simple: every linear layer, the head too, learns at lr / m.\n"
        "intermediate: also the head's initial standard deviation is sqrt(base_d) / C.\n"
        "full: also attention's scale is 1 / HS, and queries start at 0."
    ),
    "base_d": "m = C / base_d: at C = base_d simple and intermediate are the standard model.",
    "rms_lr": "p -= lr_t max(RMS(p), 1e-3) u + decay_t p: each tensor p has a rate of its size.",
    "eps": (
        "u = m^ / (sqrt(v^) + eps), m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t)."
        " |gradient| << eps: u = gradient / eps, nearly 0."
    ),
    "beta2": "v_t = beta2 v_(t-1) + (1 - beta2) g^2;  v^ = v / (1 - beta2^t).",
    "clip": "g *= clip / |g| where |g| > clip, |g| the norm of all gradients together; 0: never.",
    "attn_cap": (
        "score = cap tanh(score / cap), within +-cap, before the mask and the softmax (Gemma 2,"
        " arXiv 2408.00118).\n"
        "d score / d before = 1 - tanh^2 = 4 e / (1 + e)^2, e = exp(-2 |before| / cap):"
        " a score far past the cap has no gradient."
    ),
    "qk_clip": (
        "After the update, in each head whose largest |score| of the batch passed tau:"
        " W_q *= sqrt(tau / largest), W_k alike.\n"
        "A score is bilinear in W_q and W_k: it becomes tau / largest times as large.\n"
        "Kimi K2 (arXiv 2507.20534) takes the largest score; here it is the largest |score|."
    ),
    "optimizer": (
        "muon (Jordan et al. 2024): m = 0.95 m + 0.05 g; u = 0.2 sqrt(max(rows, cols)) U V^T, where"
        " U S V^T = 0.95 m + 0.05 g; for q, k, v and every other matrix inside the layers."
        " MUON_MOMENTUM = 0.95; the factor is Moonlight's (Liu et al. 2025, arXiv 2502.16982).\n"
        "U V^T by five turns of X = a X + b (X X^T) X + c (X X^T)^2 X, from X = U S V^T / |S|;"
        " a, b, c = 3.4445, -4.7750, 2.0315. |S| is the root of the sum of squares."
    ),
    "gate": (
        "out = attention(x) sigmoid(W x), element by element, before the output matrix; x is ln_1's"
        " output, W (C,C) (Qiu et al. 2025, arXiv 2505.06708).\n"
        "sigmoid' = sigmoid (1 - sigmoid)."
    ),
    "peri_ln": (
        "x += norm(attention(norm(x))); x += norm(mlp(norm(x))): the outer norms are what the flag"
        " adds (Kim et al. 2025, arXiv 2502.02732)."
    ),
    "cautious": (
        "p -= lr_t u + decay_t p [u p >= 0]: no decay where the update moves p away from 0"
        " (Chen et al. 2025, arXiv 2510.12402)."
    ),
    "batch": "B sequences of T tokens a step: the loss is their mean.",
    "steps": "the cosine ends at the last step.",
}
ONE, OPEN, CLOSE = (
    re.compile(r"\s*//\s*" + p + r"\s*$") for p in (r"\[(\w+)\]", r"\[(\w+)", r"(\w+)\]")
)


def chunks(text, where=""):
    """The flagged chunks of a file: (flag, first line, last line), counted from 1. Exits where a
    marker has no partner."""
    found, opened = [], {}
    for n, line in enumerate(text.splitlines(), 1):
        if m := ONE.search(line):
            found.append((m[1], n, n))
        elif m := OPEN.search(line):
            if m[1] in opened:
                sys.exit(
                    f"{where}:{n}: [{m[1]} is opened again; it was opened at line {opened[m[1]]}"
                )
            opened[m[1]] = n
        elif m := CLOSE.search(line):
            if m[1] not in opened:
                sys.exit(f"{where}:{n}: {m[1]}] closes what was not opened")
            found.append((m[1], opened.pop(m[1]), n))
    for flag, n in opened.items():
        sys.exit(f"{where}:{n}: [{flag} is not closed")
    return sorted(found, key=lambda c: c[1])


def enclosing(lines, n):
    """The name of the function that holds line n (from 1); "" outside of any."""
    for i in range(n - 1, -1, -1):
        line = re.sub(r"\s*//.*", "", lines[i])
        if i < n - 1 and re.match(r"}|\w.*[;}]$", line):
            return ""
        if m := re.match(
            r"(?!typedef|enum|struct|extern|template\b.*;)(?=[A-Za-z_]).*?(\w+)\s*\((?!\()",
            re.sub(r"__(launch_bounds|attribute)__\s*\([^()]*\)", "", line),
        ):
            return m[1]
    return ""


def unmarked(line):
    for marker in ONE, OPEN, CLOSE:
        line = marker.sub("", line)
    return line


def read(name, root=ROOT):
    path = root / name
    return path.read_text() if path.exists() else ""


def flags(root=ROOT):
    """{flag: (section, help)}, from gpt.h's table of flags."""
    rows = read("gpt.h", root).split("FLAGS[] = {")[1].split("\n};")[0]
    row = r'^    (?:FLAG_IN\(\w+, |FLAG\(|NUMBER\()(\w+),[^;]*?"([^"]*)",\s+"([^"]*)"\),$'
    return {name: (section, text) for name, section, text in re.findall(row, rows, re.M)}


def helpers(name, flag, root=ROOT):
    """{function: first line}: the functions of a file that only the flagged lines call, and those
    that only these functions call."""
    lines = [re.sub(r"//.*", "", line) for line in read(name, root).splitlines()]
    marked = {
        n
        for f, first, last in chunks(read(name, root), name)
        for n in range(first, last + 1)
        if f == flag
    }
    if not marked:
        return {}
    bodies, calls, allowed, found = {}, {}, set(marked), set()
    for n in range(1, len(lines) + 1):
        bodies.setdefault(enclosing(lines, n), set()).add(n)
    for function in bodies.keys() - {""}:
        word = re.compile(rf"(?<![.>\w]){function}\b")
        with_it = {n for n, line in enumerate(lines, 1) if word.search(line)}
        calls[function] = with_it - bodies[function]
    while more := {f for f in calls.keys() - found if calls[f] and calls[f] <= allowed}:
        found |= more
        allowed |= set().union(*map(bodies.get, more))
    # a declaration may stand above the definition
    first = {f: max(n for n in bodies[f] if n - 1 not in bodies[f]) for f in found}
    return {f: n for f, n in sorted(first.items(), key=lambda f: f[1]) if n not in marked}


def listing(name, flag, width, root=ROOT):
    """The flagged lines of a file. A size has none: the lines that read its field of Config."""
    lines, out, function = read(name, root).splitlines(), [], None
    places = [c[1:] for c in chunks("\n".join(lines), name) if c[0] == flag]
    if not places:
        reads = re.compile(rf"\b(?:cfg|flags)(?:->|\.){flag}\b")
        places = [
            (n, n) for n, line in enumerate(lines, 1) if reads.search(line) and enclosing(lines, n)
        ]
    for first, last in places:
        if (now := enclosing(lines, first) or "(outside of functions)") != function or last > first:
            out.append(f"{name}, {now}:")
            function = now
        body = [unmarked(line) for line in lines[first - 1 : last]]
        indent = min(len(line) - len(line.lstrip()) for line in body if line)
        for n, line in enumerate(body, first):
            left = len(line) - len(line.lstrip()) - indent
            out += textwrap.wrap(
                line[indent:].strip(),
                width,
                initial_indent=f"{n:5}  " + " " * left,
                subsequent_indent=" " * (11 + left),
                break_long_words=True,
            ) or [f"{n:5}"]
    if needed := helpers(name, flag, root):
        where = ", ".join(map(str, needed.values()))
        text = f"Only these lines need {', '.join(needed)} ({name}:{where})."
        out += textwrap.wrap(text, width, break_on_hyphens=False)
    return out


def show(flag, width, root=ROOT):
    if flag not in FORMULA:
        sys.exit(f"show: no intervention '{flag}'; there are: {' '.join(FORMULA)}")
    section, text = flags(root)[flag]
    place = "not in the paper" if section in ("ours", "later") else "the paper, section " + section
    print(textwrap.fill(f"-{flag}: {text} ({place})", width), end="\n\n")
    for line in FORMULA[flag].splitlines():
        print(
            textwrap.fill(line.strip(), width, initial_indent="    ", subsequent_indent="        ")
        )
    marked = any(c[0] == flag for name in FILES for c in chunks(read(name, root), name))
    print("" if marked else "\nIt has no flagged lines. These lines read it.\n", end="")
    wide = width >= 160 and read("train_gpt.cu", root)
    each = (width - 3) // 2 if wide else width
    column = [listing(name, flag, each if name != "gpt.h" else width, root) for name in FILES]
    if column[0]:
        print("", *column[0], sep="\n")
    if wide and (column[1] or column[2]):
        print()
        for i in range(max(map(len, column[1:]))):
            a, b = (c[i] if i < len(c) else "" for c in column[1:])
            print(f"{a:{each}} | {b}".rstrip())
        return
    for lines in column[1:]:
        if lines:
            print("", *lines, sep="\n")


def count(name, flag, root=ROOT):
    return sum(last - first + 1 for f, first, last in chunks(read(name, root), name) if f == flag)


def table(width, root=ROOT):
    columns = "{:<16}{:<9}{:>5}{:>13}{:>14}  "
    print(columns.format("flag", "section", *FILES) + "meaning")
    for flag in FORMULA:
        section, text = flags(root)[flag]
        counts = (count(name, flag, root) or "-" for name in FILES)
        row = columns.format("-" + flag, section, *counts)
        indent = " " * len(row)
        print(textwrap.fill(row + text, width, subsequent_indent=indent, break_on_hyphens=False))
    end = "make show-FLAG prints the lines with the formula; make exercise-FLAG takes them out."
    print("\n" + textwrap.fill("A number counts the flagged lines of a file. " + end, width))


if __name__ == "__main__":
    width = int(os.environ.get("COLUMNS") or shutil.get_terminal_size((100, 24)).columns)
    if len(sys.argv) > 1:
        show(sys.argv[1], width)
    else:
        table(width)

"""make exercise-NAME [DIR=...] [CUDA=1]: a folder to hand out, from which the lines of an
intervention are missing.

Each row of EXERCISES lists the cuts. A comment takes the place of each cut and says what to
compute; where the rest would not compile, a stub follows. No solution is written in this file."""

import argparse
import pathlib
import re
import shlex
import shutil
import sys
import textwrap

import show

HERE, ROOT = pathlib.Path(__file__).resolve().parent, show.ROOT

# cut: {file: [(comment, stub), ...]}, one for each flagged chunk in the order of the file; a chunk
# counts if its flag is in `flags` (default: the exercise's name).
# functions: {file: {name: (comment, stub of the body)}}. remove: {file: names of the solution's
# helpers}.
EXERCISES = {
    "qk_norm": dict(
        title="qk-norm",
        section="3.1.1",
        read=(
            "gpt_forward and gpt_backward (train_gpt.c); layernorm_row, layernorm_row_backward and"
            " sum_chunks; rope_row and the comments on qk_norm_rope_forward and"
            " qk_norm_rope_backward; Q_NORM and K_NORM in gpt.h's parameter_table"
        ),
        cut={
            "train_gpt.c": [
                (
                    (
                        "The forward pass (section 3.1.1). Without qk-norm q_weight is NULL: then"
                        " change nothing. Otherwise normalise each of the NH heads of this row's q"
                        " (i is 0) or k (i is 1): LayerNorm over its HS values, with the weight"
                        " q_weight or k_weight (HS). `over` is HS: -qk_norm model, where it is C,"
                        " is not part of this exercise. `from` (C) is the q or k of the product."
                        " Write the result to `to` (C), and let `from` point to it, so that"
                        " rope_row turns the normalised values. Keep each head's mean and"
                        " 1/sqrt(variance)"
                        " for the backward pass, in mean and rstd (B,T,2,NH)."
                    ),
                    "(void)mean, (void)rstd, (void)q_weight, (void)k_weight, (void)over;",
                ),
                (
                    (
                        "The backward pass. rope_row has turned the gradient back: d (C) is now"
                        " the gradient of the normalised q (i is 0) or k (i is 1). Where q_weight"
                        " is not NULL, replace it with the gradient of the q or k of the product,"
                        " which is in qkv (B,T,3,C). Add the gradient of q_weight to dw (HS), that"
                        " of k_weight to dw + HS (HS): all heads of all rows share these weights."
                        " dw + 2 * HS (2,HS) is scratch."
                    ),
                    "(void)mean, (void)rstd, (void)k_weight, (void)qkv;",
                ),
                (
                    (
                        "The gradients of the weights. Where q_weight is not NULL,"
                        " dq_weight and dk_weight (HS) are the sums over all chunks of the dw that"
                        " each chunk has left in partial (chunks,4,HS)."
                    ),
                    "(void)q_weight, (void)dq_weight, (void)dk_weight;",
                ),
            ],
            "train_gpt.cu": [
                (
                    (
                        "The forward pass. Where q_weight is not NULL, normalise q and k, a head of"
                        " HS values each, multiply them by q_weight and k_weight (HS), and write"
                        " their means and rstds (B,T,2,NH). load_head and layernorm_head do the"
                        " work."
                    ),
                    "(void)mean, (void)rstd, (void)q_weight, (void)k_weight, (void)h;",
                ),
                (
                    (
                        "The backward pass. Where q_weight is not NULL, load into weight this"
                        " lane's values of q_weight or, if k is 1, of k_weight."
                    ),
                    "(void)k_weight, (void)weight;",
                ),
                (
                    (
                        "Where q_weight is not NULL, replace g, the gradient of the normalised q or"
                        " k, with that of x, the q or k in qkv, and add to dweight the weight's"
                        " (layernorm_head_backward). m and r are its mean and rstd."
                    ),
                    "(void)x, (void)m, (void)r;",
                ),
                (
                    (
                        "Where q_weight is not NULL, write the block's sum of dweight (sum_heads)"
                        " to partial (2,blocks,HS): q's blocks, then k's."
                    ),
                    "(void)partial, (void)q_weight, (void)dweight;",
                ),
                (
                    (
                        "Where q_weight is not NULL, ask partials_add for the memory of the blocks'"
                        " sums: dq_weight's, where the kernel writes q's and behind them k's, then"
                        " dk_weight's."
                    ),
                    "(void)dq_weight, (void)dk_weight, (void)partial;\nq_weight = NULL;",
                ),
            ],
        },
        plot=(
            "./train_gpt -lr -qk_norm 0 -out runs/off and ./train_gpt -lr -qk_norm 1 -out runs/on:"
            " loss and largest attention logit against the learning rate"
        ),
        explain=[
            (
                "Why does softmax of large logits stop learning? Give the gradient of softmax where"
                " one weight is 1."
            ),
            "Why does the loss end on a plateau, and not at infinity?",
            "How large can a logit be with qk-norm? Which parameter can still make it larger?",
            "Why does the norm come before RoPE? What would change if it came after?",
        ],
    ),
    "z_loss": dict(
        title="z-loss",
        section="3.1.2",
        read="cross_entropy (train_gpt.c) and the comment above it; gpt_loss",
        cut={
            "train_gpt.c": [
                (
                    (
                        "The z-loss (section 3.1.2). The loss is the cross-entropy + z_loss * mean"
                        " over rows of (log Z)^2, where Z = sum of exp(logits), and d log Z / d"
                        " logit_j = p_j, the softmax. The lines below multiply the softmax of this"
                        " row (V) by weight / rows. Add to weight what the z-loss needs. log_z[i]"
                        " is the row's log Z."
                    ),
                    "(void)z_loss;",
                )
            ],
            "train_gpt.cu": [
                (
                    (
                        "The z-loss (section 3.1.2). As in train_gpt.c, add to weight what the"
                        " z-loss needs. z is the row's log Z."
                    ),
                    "(void)z_loss;",
                )
            ],
        },
        plot=(
            "./train_gpt -lr 1e-2 -z_loss 0, then -z_loss 1e-4 and 1e-2: log_z in log.csv against"
            " the step (python3 plot.py log RUN)"
        ),
        explain=[
            "Why does the cross-entropy not care about log Z?",
            "What goes wrong when log Z drifts far from 0, in bf16 for instance?",
            "What does z_loss 1 do to the loss, and why?",
        ],
    ),
    "warmup": dict(
        title="Learning-rate warm-up",
        section="3.2.1",
        read="learning_rate (gpt.h) and the comment above it; where gpt_update calls it",
        cut={
            "gpt.h": [
                (
                    (
                        "Warm-up (section 3.2.1). Before step cfg->warmup the learning rate rises"
                        " in a straight line from 0 at step 0 to the peak, cfg->lr, at step"
                        " cfg->warmup. The first step is number 1."
                    ),
                    "",
                )
            ]
        },
        plot=(
            "./train_gpt -lr -qk_norm 0 -warmup 1%, 5% and 25%: the final loss against the learning"
            " rate"
        ),
        explain=[
            "Adam's first update is +-lr for every weight. Why?",
            "At which learning rates does a longer warm-up help, and at which does it cost?",
            "Why does LR sensitivity hide part of the effect of warm-up?",
        ],
    ),
    "wd": dict(
        title="Independent weight decay",
        section="3.2.2",
        flags=("wd", "wd_independent"),
        read="weight_decay (gpt.h), adamw and gpt_update (train_gpt.c)",
        cut={
            "gpt.h": [
                (
                    (
                        "Section 3.2.2. Return the share of a weight that decays at"
                        " this step. With -wd_independent 1 it is cfg->wd at the peak of the"
                        " learning rate, whatever that peak is, and follows the shape of the"
                        " schedule. With 0 it is cfg->wd times the learning rate."
                    ),
                    "(void)lr;\nreturn 0;",
                )
            ],
            "train_gpt.c": [("The share of each parameter that decays at this step", "")],
            "train_gpt.cu": [("The share of each parameter that decays at this step", "")],
        },
        plot=(
            "./train_gpt -lr -wd 1e-2 -wd_independent 1 and 0: final loss and param_rms_c_fc"
            " against the learning rate"
        ),
        explain=[
            "Write both decays as p *= 1 - x. How does x depend on the peak learning rate?",
            "At LR 1e-2, which standard decay equals an independent decay of 1e-4?",
            "Why does decoupling the decay lower LR sensitivity?",
        ],
    ),
    "mu_param": dict(
        title="muParam",
        section="3.2.4",
        read=(
            "the comment on muParam in gpt.h; the roles in parameter_table; gpt_update"
            " (train_gpt.c)"
        ),
        cut={
            "gpt.h": [
                (
                    "m = C / base_d (section 3.2.4)",
                    "static double mu_m(const Config *cfg) {\n    (void)cfg;\n    return 1;\n}",
                ),
                (
                    (
                        "(i) The factor of a tensor's learning rate: 1 / m for linear layers"
                        " (p->role) with simple, intermediate and full"
                    ),
                    (
                        "static double mu_lr_scale(const Config *cfg, const Parameter *p) {\n"
                        "    (void)p;\n"
                        "    return mu_m(cfg);\n"
                        "}"
                    ),
                ),
                ("(iii) Attention's scale with full", ""),
                ("(ii) The standard deviation of LM_HEAD with intermediate and full", ""),
                (
                    (
                        "(iv) With full, set the weights of the queries to 0: the first C rows of"
                        " c_attn (3C,C), whose values start at out"
                    ),
                    "",
                ),
            ],
            "train_gpt.c": [
                ("Multiply the learning rate of this kind of tensor by its factor", "")
            ],
            "train_gpt.cu": [
                ("Multiply the learning rate of this kind of tensor by its factor", "(void)p;")
            ],
        },
        plot=(
            "./train_gpt -lr -base_d 32 with -d 32 -heads 2, -d 64 -heads 4 and -d 128 -heads 8,"
            " each with -mu_param off and full: final loss against the learning rate"
        ),
        explain=[
            (
                "Adam moves every weight by lr. By how much does a step move the output of a matrix"
                " with fan-in C? So why lr / m?"
            ),
            "Why is the embedding's learning rate not divided?",
            "The queries start at 0. Which weights of c_attn have a gradient in the first step?",
            "The best learning rate stays the same. Does LR sensitivity fall? (the paper: hardly)",
        ],
    ),
    "eps": dict(
        title="AdamW's epsilon",
        section="3.4",
        read="adamw and gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [("The value of the flag, in place of 1e-8", "")],
            "train_gpt.cu": [("The value of the flag, in place of 1e-8", "")],
        },
        plot=(
            "./train_gpt -lr 0.3 -eps 1e-8, 1e-4 and 1e-2: update_rms_c_fc and grad_rms_c_fc in"
            " log.csv against the step"
        ),
        explain=[
            "What is the update where |gradient| is far below epsilon? Far above?",
            "Gradients shrink with the width. At which width do yours meet 1e-8, by extrapolation?",
            "Why not epsilon 0?",
        ],
    ),
    "beta2": dict(
        title="AdamW's beta2",
        section="2.1",
        read="adamw and gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [("The value of the flag, in place of 0.95", "")],
            "train_gpt.cu": [("The value of the flag, in place of 0.95", "")],
        },
        plot="./train_gpt -lr -beta2 0.9, 0.95 and 0.999: final loss against the learning rate",
        explain=[
            "How many steps does v remember?",
            (
                "A gradient grows a thousandfold in one step. How large can Adam's update be, as a"
                " function of beta2?"
            ),
            "What is the correction 1 - beta2^t for?",
        ],
    ),
    "clip": dict(
        title="Gradient clipping",
        section="2.1",
        read="gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [
                (
                    (
                        "norm is the norm of all gradients together, and adamw multiplies"
                        " each gradient by clip_scale. Where cfg->clip is not 0 and norm is larger,"
                        " choose clip_scale so that the norm becomes cfg->clip."
                    ),
                    "",
                )
            ],
            "train_gpt.cu": [
                (
                    (
                        "norm is the norm of all gradients together, and"
                        " results->grad_scale multiplies each gradient. Where k->clip is not 0 and"
                        " norm is larger, choose it so that the norm becomes k->clip."
                    ),
                    "(void)norm;",
                )
            ],
        },
        plot=(
            "./train_gpt -lr -clip 1, 0.1 and 0: final loss and grad_norm against the learning rate"
        ),
        explain=[
            "Adam divides by the size of the gradient. So what does clipping change at all?",
            "Why one norm for all tensors, and not one for each?",
            "What does clipping do to a gradient with one infinite element?",
        ],
    ),
    "attention_backward": dict(
        title="Attention's backward pass",
        section="2.1",
        read=(
            "attention_forward (train_gpt.c) and the comments above it; AttentionScratch; multiply,"
            " matrix and transposed, which it calls for products of small blocks"
        ),
        functions={
            "train_gpt.c": {
                "attention_backward": (
                    (
                        "The gradients of causal attention. Read: dout (B,T,C), the gradient of"
                        " out; the inputs and results of attention_forward, which are q and k in qk"
                        " (B,T,2,C), v in qkv (B,T,3,C), out (B,T,C) and softmax (B,NH,T,2), each"
                        " row's largest score and 1 / the sum of exp(score - largest). Write dq,"
                        " dk, dv to dqkv (B,T,3,C), which holds no values yet. With p_i = the"
                        " softmax over j <= i of scale * q_i k_j, and out_i = sum over j <= i of"
                        " p_ij v_j: compute p again from softmax. Then, in this order: dv, from p"
                        " and dout; the gradient of p; the gradient of the scores, through the"
                        " softmax (the sum over j of p_ij dp_ij is dout_i out_i: why?); dq and dk."
                        " Four loops for each head are enough. For speed, use multiply() on blocks"
                        " of at most QB queries; scratch holds attention_scratch_size reals for"
                        " each thread. relu2, of -attention relu2, is 0 here."
                    ),
                    (
                        "(void)dout, (void)out, (void)softmax, (void)qk, (void)qkv, (void)scale,"
                        " (void)scratch, (void)relu2;\n"
                        "memset(dqkv, 0, (size_t)B * T * 3 * NH * HS * sizeof(real));"
                    ),
                )
            }
        },
        plot=(
            "./train_gpt -lr 1e-2 before and after: the loss that a model reaches without learning"
            " to attend"
        ),
        explain=[
            "Why is a T x T matrix never kept? How much memory would it be at T 2048, NH 16, B 8?",
            "Why is the sum over j of p_ij dp_ij equal to dout_i out_i?",
            "Where do gradients vanish when one p_ij is 1?",
        ],
    ),
    "matmul": dict(
        title="A matrix multiply ten times faster",
        section="2.1",
        read=(
            "Matrix, matrix and transposed at the top of train_gpt.c; multiply and matmul at its"
            " end, and the layers that call them"
        ),
        functions={
            "train_gpt.c": {
                "multiply": (
                    (
                        "out (M,N) = add + a (M,K) b (K,N), where ldc is the distance between two"
                        " rows of out and add; add may be NULL, which adds nothing, or out. Element"
                        " (i,j) of a is at a.data[i * a.row + j * a.col]: a and b may be"
                        " transposed. The loops below are right and slow: make them ten times"
                        " faster, on one thread, for any M, N, K from 1 on. Ideas: run along rows"
                        " in the innermost loop; keep a tile of sums, MR x NR, in vector registers"
                        " while k runs (a `vector` holds VL reals); copy blocks of b and a to"
                        " memory in the order in which the loops read them."
                    ),
                    (
                        "for (int i = 0; i < M; i++)\n"
                        "    for (int j = 0; j < N; j++) {\n"
                        "        real sum = 0;\n"
                        "        for (int k = 0; k < K; k++)\n"
                        "            sum += a.data[i * a.row + k * a.col]"
                        " * b.data[k * b.row + j * b.col];\n"
                        "        out[i * ldc + j] = (add ? add[i * ldc + j] : 0) + sum;\n"
                        "    }"
                    ),
                )
            }
        },
        remove={"train_gpt.c": ("KC", "tile", "pack", "flip")},
        plot=(
            "tokens a second of ./train_gpt -lr 1e-2 -d 128 -layers 4 -heads 4 after each of your"
            " ideas"
        ),
        explain=[
            (
                "How many floating-point operations and how many loads are in the innermost loop,"
                " before and after?"
            ),
            (
                "What is the processor's peak (clock, width of its vectors, multiply-adds per"
                " cycle), and what share of it do you reach?"
            ),
            "Why does another order of k loops change the last bits of a sum?",
        ],
    ),
    "cuda": dict(
        title="CUDA kernels",
        section="2.1",
        read=(
            "load, store and row_sum in lib/gpu.h; gelu_forward and layernorm_row in train_gpt.c;"
            " the comment at the top of kit/cuda_emu.h"
        ),
        functions={
            "train_gpt.cu": {
                "gelu": (
                    "Returns gelu(x); *slope = gelu'(x). The formulas are those of train_gpt.c.",
                    "(void)x;\n*slope = 0;\nreturn 0;",
                ),
                "gelu_forward_kernel": (
                    (
                        "out = gelu(inp), n values. A thread computes W of them, from"
                        " (blockIdx.x * blockDim.x + threadIdx.x) * W on; the last threads may have"
                        " none. load and store move W values."
                    ),
                    "(void)out, (void)inp, (void)n;",
                ),
                "gelu_backward_kernel": (
                    "dinp = dout * gelu'(inp), n values, W of them by each thread",
                    "(void)dinp, (void)dout, (void)inp, (void)n;",
                ),
                "residual_layernorm_forward_kernel": (
                    (
                        "Where branch is not NULL, x = inp + branch; else x is inp. out = weight *"
                        " (x - mean) * rstd for rows of C values; mean, rstd (rows). The blockDim.x"
                        " threads of one threadIdx.y share a row: a thread has the W values from"
                        " (part * blockDim.x + threadIdx.x) * W on, for part < PARTS, where these"
                        " are below C. row_sum sums over a row's threads and waits for the whole"
                        " block, so every thread of the block must call it. The last block may have"
                        " rows to spare. Normalise rounded(x), which memory holds."
                    ),
                    (
                        "(void)out, (void)x, (void)mean, (void)rstd, (void)inp;\n"
                        "(void)branch, (void)weight, (void)rows, (void)C;"
                    ),
                ),
            }
        },
        plot=(
            "Nothing without a GPU: the stand-in is slow. On a machine with a GPU: the time of each"
            " kernel against the bytes that it moves"
        ),
        explain=[
            (
                "How many bytes does each kernel move, and how long must that take on a GPU with 3"
                " TB/s?"
            ),
            (
                "What goes wrong without a barrier in row_sum? In which order of the threads does"
                " it show?"
            ),
            "Why is W 8?",
        ],
    ),
}


def commented(text, indent, width=100):
    return "\n".join(
        textwrap.wrap(
            text,
            width - len(indent),
            initial_indent=indent + "// ",
            subsequent_indent=indent + "// ",
        )
    )


def indented(code, indent):
    return "".join("\n" + indent + line for line in code.splitlines())


def cut_chunks(text, flags, pieces, name):
    lines, chunks = text.split("\n"), [c for c in show.chunks(text, name) if c[0] in flags]
    if len(chunks) != len(pieces):
        sys.exit(
            f"exercise: {name} has {len(chunks)} chunks of {', '.join(flags)}, but exercise.py has"
            f" comments for {len(pieces)}"
        )
    for (flag, first, last), (comment, stub) in reversed(list(zip(chunks, pieces))):
        indent = re.match(r" *", lines[first - 1])[0]
        code = indented(stub, indent)
        lines[first - 1 : last] = [commented(f"[{flag}] TO WRITE: {comment}", indent) + code]
    return "\n".join(lines)


def definition(lines, name):
    """First line (with template or attributes), line of the opening brace and last line, from 0, of
    a function, or of the enum whose first constant has this name."""
    for i, line in enumerate(lines):
        if line.startswith(f"enum {{ {name} "):
            return i, i, i
        if not re.match(rf"(?:[a-zA-Z_].*)?\b{name}\(", line):
            continue
        brace = i
        while not lines[brace].rstrip().endswith(("{", "}", ";")):
            brace += 1
        if lines[brace].rstrip().endswith(";"):  # only declared here
            continue
        start, end = i, brace
        while re.match(r"template|.*\b__(attribute|launch_bounds)__\S*$", lines[start - 1]):
            start -= 1
        if lines[brace].rstrip().endswith("{"):
            end = lines.index("}", brace)
        return start, brace, end
    sys.exit(f"exercise: no definition of {name}")


def cut_functions(text, bodies, removed):
    lines = text.split("\n")
    for name in [*bodies, *removed]:
        start, brace, end = definition(lines, name)
        above = start
        while lines[above - 1].startswith("//"):  # the comment above is part of the solution
            above -= 1
        stub = []
        if name in bodies:
            comment, body = bodies[name]
            todo = commented(f"[{name}] TO WRITE: {comment}", "    ")
            stub = [*lines[start : brace + 1], todo + indented(body, "    "), "}"]
        lines[above : end + 1] = stub
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def sources(name, cuda=False):
    """{file: text with the exercise's lines taken out}, for the files that the exercise changes."""
    ex, out = EXERCISES[name], {}
    for file, pieces in ex.get("cut", {}).items():
        if file != "train_gpt.cu" or cuda:
            out[file] = cut_chunks(show.read(file), ex.get("flags", (name,)), pieces, file)
    for file, bodies in ex.get("functions", {}).items():
        out[file] = cut_functions(show.read(file), bodies, ex.get("remove", {}).get(file, ()))
    return out


def readme(name, changed, cuda):
    ex = EXERCISES[name]
    fill = lambda text: textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
    questions = "\n".join(
        textwrap.fill(f"{i}. {q}", 100, subsequent_indent="   ")
        for i, q in enumerate(ex["explain"], 1)
    )
    import grade

    points = "\n".join(f"{test[0]:6}  {test[1]}" for test in grade.tests(name, cuda))
    formula = "".join(
        "\n" + textwrap.fill(line.strip(), 100, initial_indent="    ", subsequent_indent="        ")
        for line in show.FORMULA.get(name, "").splitlines()
    )
    formula = formula and "\n" + formula
    flag = f"The flag is `-{name}` (`./train_gpt -h` lists all). " if name in show.FORMULA else ""
    runs_cuda = (
        "\n"
        "\n"
        "`make train_gpt_cu_emu` builds train_gpt.cu for the CPU, slow but exact; the grading"
        " runs it."
        if "train_gpt.cu" in changed
        else ""
    )
    return f"""# {ex["title"]}

{
        fill(
            "An exercise from *Small-scale proxies for large-scale Transformer training"
            " instabilities* (Wortsman et al., ICLR 2024, arXiv 2309.14322), section"
            f" {ex['section']}. Lines are missing from {' and '.join(sorted(changed))}; the"
            f" program compiles and trains without them. Write them. {flag}"
        )
    }{formula}

## Read

{
        fill(
            ex["read"]
            + ". A shape such as (B,T,C) is batch, sequence, channels; L layers, NH heads of size"
            " HS, V vocabulary."
        )
    }

## Write

{
        fill(
            "A comment marks each place: `grep -n 'TO WRITE' "
            + " ".join(sorted(changed))
            + "`. Change nothing else: the grading reads only "
            + ("these files" if len(changed) > 1 else "this file")
            + " and uses fresh copies of the others."
        )
    }

## Test

    make            builds train_gpt
    make grade      tests your lines, the easiest test first, and writes grade.json

{points}

The program compiles with `cc`. The grading needs Python with numpy; where numpy is missing, `make
grade` installs it into build/venv. Each grading draws new inputs; `SEED=n make grade` repeats the
one whose grade.json holds the seed n.{runs_cuda}

## Plot

{
        fill(
            ex["plot"]
            + ". (`./train_gpt -lr` sweeps the learning rate and draws a chart; `python3 plot.py`"
            " makes pictures, with matplotlib.)"
        )
    }

## Explain

{questions}
"""


MAKEFILE = """# make          train_gpt, for this machine
# make grade    points, and what is wrong; writes grade.json
# make clean
{head}

train_gpt: train_gpt.c $(HEADERS)
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm

train_gpt_cu_emu: train_gpt.cu $(HEADERS) test/cuda/cuda_emu.h
	$(CXX) -std=c++17 $(CFLAGS) $(MARCH) -Wno-unknown-pragmas -fno-strict-aliasing -rdynamic \\
	-DCUDA_EMU -DFP32 -x c++ train_gpt.cu -o $@ -lm

# python3 where it has numpy, else a virtual environment that does
PYTHON := $(shell python3 -c 'import numpy' 2>/dev/null && echo python3 \\
	|| echo build/venv/bin/python)
build/venv/bin/python:
	python3 -m venv build/venv && build/venv/bin/pip install -q --disable-pip-version-check {numpy}

.PHONY: grade clean
grade: $(filter build/%,$(PYTHON))
	@$(PYTHON) kit/grade.py .

clean:
	rm -rf train_gpt train_gpt_cu_emu build
"""


def write(name, folder, cuda=False):
    changed = sources(name, cuda)
    if cuda and "train_gpt.cu" not in changed:
        sys.exit(f"exercise: {name} has no lines in train_gpt.cu; leave CUDA=1 out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"exercise: {folder} is there and not empty; name another with DIR=")
    kit, needs_cuda = folder / "kit", "train_gpt.cu" in changed
    kit.mkdir(parents=True)
    for file in ["train_gpt.c", "gpt.h", "dataloader.h", "plot.py"]:
        (folder / file).write_text(changed.get(file) or show.read(file))
    files = ["grade.py", "reference.py", "driver.c", "naive.c"] + ["driver.cu"] * needs_cuda
    for file in files:
        shutil.copy(HERE / file, kit)
    for file in ["dataloader.h"] + ["gpt.h"] * ("gpt.h" not in changed):
        shutil.copy(ROOT / file, kit)
    for place in folder, kit:
        (place / "lib").mkdir()
        for header in ROOT.glob("lib/*.h"):
            shutil.copy(header, place / "lib")
    if needs_cuda:
        (folder / "train_gpt.cu").write_text(changed["train_gpt.cu"])
        (folder / "test" / "cuda").mkdir(parents=True)
        for place in folder / "test" / "cuda", kit:
            shutil.copy(ROOT / "test" / "cuda" / "cuda_emu.h", place)
    makefile = show.read("Makefile")
    head = makefile[makefile.index("ifeq ($(origin CC)") : makefile.index("\nSOURCES :=")]
    head = re.sub(r"^#.*\n", "", head, flags=re.M)  # they cite the project's README.md
    numpy = re.search(r"^numpy==\S+", (ROOT / "test" / "requirements.txt").read_text(), re.M)[0]
    text = MAKEFILE.replace("{head}", head).replace("{numpy}", numpy)
    if not needs_cuda:
        text = re.sub(r"train_gpt_cu_emu: .*?\n\n", "", text, flags=re.S)
    (folder / "Makefile").write_text(text)
    (kit / "exercise").write_text(name + (" cuda" if cuda else "") + "\n")
    (folder / "README.md").write_text(readme(name, changed, cuda))
    return folder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--dir")
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    if args.name not in EXERCISES:
        sizes = " (it has no flagged lines)" if args.name in show.FORMULA else ""
        sys.exit(
            f"exercise: there is none on '{args.name}'{sizes}; there are: {' '.join(EXERCISES)}"
        )
    folder = write(
        args.name,
        pathlib.Path(args.dir or f"exercise-{args.name}"),
        args.cuda and args.name != "cuda",
    )
    print(
        f"{folder}: hand it out; its README.md says what to do. Grade it with:\n"
        f"make grade DIR={shlex.quote(str(folder))}"
    )


if __name__ == "__main__":
    main()

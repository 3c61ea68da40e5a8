"""make exercise-NAME [DIR=...] [CUDA=1]: a folder to hand out, in which an intervention's lines are
to be written.

Each row of EXERCISES says what is cut out of which file, with the comment that takes its place and,
where the rest would not compile, a stub. The texts say what is to be computed; nothing here is a
solution."""

import argparse
import pathlib
import re
import shutil
import sys
import textwrap

import show

HERE, ROOT = pathlib.Path(__file__).resolve().parent, show.ROOT

# cut: {file: [(comment, stub), ...]}, one for each flagged chunk in the order of the file; a chunk
# is one of the flags that `flags` names (default: the exercise's name). functions: {file: {name:
# (comment, body)}}: the body is to be written.
EXERCISES = {
    "qk_norm": dict(
        title="qk-norm",
        section="3.1.1",
        read=(
            "gpt_forward and gpt_backward (train_gpt.c); layernorm_forward, layernorm_backward and"
            " what their arguments are; Q_NORM and K_NORM in gpt.h's parameter_table"
        ),
        cut={
            "train_gpt.c": [
                (
                    (
                        "qk-norm, forward (section 3.1.1): where cfg.qk_norm is 1, `from`, q or k"
                        " (B,T,NH,HS), is normalised over the HS values of each head, with the"
                        " scale Q_NORM or K_NORM (HS) of layer l, before RoPE turns it. Leave each"
                        " head's mean and 1/sqrt(variance) for the backward pass: qk_mean, qk_rstd"
                        " (L,2,B,T,NH)."
                    ),
                    "",
                ),
                (
                    (
                        "qk-norm, backward: dq is now the gradient of what was normalised. Make it"
                        " the gradient of what came before, qkv (L,3,B,T,C), and write the gradient"
                        " of the scale (HS), which is one for all heads and positions."
                    ),
                    "(void)qkv;",
                ),
            ],
            "train_gpt.cu": [
                (
                    (
                        "qk-norm, forward: where q_weight is not NULL, this head's q or k, x[0] and"
                        " x[1] (its two halves; a group of `lanes` lanes holds HS values), is"
                        " normalised over HS and scaled with q_weight or k_weight (HS). lanes_sum"
                        " sums over the group."
                    ),
                    "(void)q_weight, (void)k_weight, (void)NH;",
                ),
                (
                    (
                        "qk-norm, backward: g[0], g[1] become the gradient of what was normalised"
                        " (mean and rstd are computed again from qkv), dw[0], dw[1] collect g * n"
                        " for the scale."
                    ),
                    "(void)qkv, (void)k_weight;",
                ),
                (
                    (
                        "qk-norm, the scale's gradient: where q_weight is not NULL, the block's sum"
                        " of dw over its groups goes to partial (2,blocks,HS)."
                    ),
                    "(void)q_weight, (void)partial, (void)dw;",
                ),
                ("qk-norm: dq_weight = the sum over partial's rows", ""),
                ("and dk_weight", "(void)dq_weight, (void)dk_weight, (void)adds;"),
                ("qk-norm: this layer's Q_NORM and K_NORM where cfg.qk_norm is 1", ""),
                ("qk-norm: this layer's Q_NORM and K_NORM where cfg.qk_norm is 1", ""),
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
            "Why is the norm taken before RoPE? What would change after it?",
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
                        "z-loss (section 3.1.2): the loss is the cross-entropy + z_loss * mean over"
                        " rows of (log Z)^2, Z = sum of exp(logits). The softmax p of a row (V) is"
                        " multiplied by weight / rows further down, as d log Z / d logit_j = p_j."
                        " What does the z term add to weight? log_z[i] is the row's log Z."
                    ),
                    "(void)z_loss;",
                )
            ],
            "train_gpt.cu": [
                (
                    (
                        "z-loss (section 3.1.2): as in train_gpt.c, what the z term adds to weight;"
                        " z is the row's log Z."
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
                        "warm-up (section 3.2.1): before step `warmup` the learning rate rises on a"
                        " line from 0 at step 0 to the peak, cfg->lr, at step `warmup`. Steps count"
                        " from 1."
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
            "Why does LR sensitivity hide part of its effect?",
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
                        "weight decay (section 3.2.2): the share of a weight that decays at this"
                        " step. With -wd_independent 1 it is wd at the peak of the schedule and"
                        " follows its shape, whatever the peak is; with 0 it is wd times the"
                        " learning rate."
                    ),
                    "(void)lr;\nreturn 0;",
                )
            ],
            "train_gpt.c": [
                ("weight decay: the share of each parameter that adamw takes away at this step", "")
            ],
            "train_gpt.cu": [
                ("weight decay: the share of each parameter that adamw takes away at this step", "")
            ],
        },
        plot=(
            "./train_gpt -lr -wd 1e-2 -wd_independent 1 and 0: final loss and param_rms_c_fc"
            " against the learning rate"
        ),
        explain=[
            "Write both decays as p *= 1 - x. How does x depend on the peak learning rate?",
            "Which wd of the one kind is the same as 1e-4 of the other at LR 1e-2?",
            "Why does decoupling the decay lower LR sensitivity?",
        ],
    ),
    "mu_param": dict(
        title="muParam",
        section="3.2.4",
        read=(
            "the comment on muParam in gpt.h; Parameter.hidden in parameter_table; cross_entropy"
            " and gpt_update (train_gpt.c)"
        ),
        cut={
            "gpt.h": [
                (
                    "muParam (section 3.2.4): m = C / base_d",
                    "static double mu_m(const Config *cfg) { (void)cfg; return 1; }",
                ),
                (
                    (
                        "muParam: the factor of a tensor's learning rate (simple and above: hidden"
                        " matrices, p->hidden, learn at lr / m), and that of the logits"
                        " (intermediate and full: 1 / m)"
                    ),
                    (
                        "static double mu_lr_scale(const Config *cfg, const Parameter *p) {"
                        " (void)p; return mu_m(cfg); }\n"
                        "static double mu_logit_scale(const Config *cfg) { (void)cfg; return"
                        " 1; }"
                    ),
                ),
                (
                    (
                        "muParam, full: attention's scale is sqrt(HS_base) / HS, HS_base the head"
                        " size at C = base_d with as many heads"
                    ),
                    "",
                ),
            ],
            "train_gpt.c": [
                ("muParam: logits x (V) of this row times logit_scale", ""),
                (
                    (
                        "muParam: the gradient passes through that factor too; weight multiplies"
                        " the softmax"
                    ),
                    "",
                ),
                ("muParam: the RMS of the logits that is logged is of the scaled ones", ""),
                ("muParam: this kind's learning rate times its factor", ""),
            ],
            "train_gpt.cu": [
                ("muParam: y[i] times logit_scale", ""),
                ("muParam: the gradient passes through that factor too", ""),
                ("muParam: this kind's learning rate times its factor", ""),
                ("muParam: the RMS of the logits that is logged is of the scaled ones", ""),
            ],
        },
        plot=(
            "./train_gpt -lr -base_d 32 -d 32, 64 and 128 (as many heads), with -mu_param off and"
            " full: final loss against the learning rate"
        ),
        explain=[
            (
                "Adam moves every weight by lr. By how much does a step move the output of a matrix"
                " with fan-in C? So why lr / m?"
            ),
            "Why is the embedding's learning rate not divided?",
            "The best learning rate stays put. Does LR sensitivity fall? (the paper: hardly)",
        ],
    ),
    "eps": dict(
        title="AdamW's epsilon",
        section="3.4",
        read="adamw and gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [("epsilon (section 3.4): the one that the flag says, not 1e-8", "")],
            "train_gpt.cu": [("epsilon (section 3.4): the one that the flag says, not 1e-8", "")],
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
        section="the appendix",
        read="adamw and gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [("beta2: the one that the flag says, not 0.95", "")],
            "train_gpt.cu": [("beta2: the one that the flag says, not 0.95", "")],
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
        section="the appendix",
        read="gpt_update (train_gpt.c)",
        cut={
            "train_gpt.c": [
                (
                    (
                        "clipping: where cfg->clip is not 0 and norm, of all gradients together, is"
                        " larger, scale makes it cfg->clip"
                    ),
                    "",
                )
            ],
            "train_gpt.cu": [
                (
                    (
                        "clipping: where k->clip is not 0 and norm, of all gradients together, is"
                        " larger, results->grad_scale makes it k->clip"
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
            "Why one norm for all tensors, and not one each?",
            "What does clipping do to a gradient with one infinite element?",
        ],
    ),
    "attention_backward": dict(
        title="Attention's backward pass",
        section="2.1",
        read=(
            "attention_forward (train_gpt.c) and the comment above it; multiply, whose products of"
            " small blocks it uses"
        ),
        functions={
            "train_gpt.c": {
                "attention_backward": (
                    (
                        "The gradients of causal attention. Given are dout, the gradient of out,"
                        " with what attention_forward had and left: q, k, v, out (B,T,NH,HS) and"
                        " softmax (B,NH,T,2), each row's largest score and 1 / its sum of exp(score"
                        " - largest). With p_ij = softmax of scale * q_i k_j over j <= i (0"
                        " elsewhere) and out_i = sum over j of p_ij v_j, write dq, dk, dv"
                        " (B,T,NH,HS); what is there before is not to be read. p is not kept:"
                        " compute it again from softmax. In this order: dv, from dout and p; then"
                        " the gradient of p; then that of the scores, through the softmax (the sum"
                        " over j of p_ij dp_ij is dout_i out_i: why?); then dq and dk. Four loops"
                        " per head are enough; with multiply() in blocks of QB queries it is fast."
                        " scratch (threads,2,QB + HS + 1,T)."
                    ),
                    (
                        "(void)dout, (void)out, (void)softmax, (void)q, (void)k, (void)v,"
                        " (void)scale, (void)scratch;\n"
                        "size_t bytes = (size_t)B * T * NH * HS * sizeof(real);\n"
                        "memset(dq, 0, bytes), memset(dk, 0, bytes), memset(dv, 0, bytes);"
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
            "the section on the matrix multiply (train_gpt.c): Matrix, multiply, matmul, and who"
            " calls them"
        ),
        functions={
            "train_gpt.c": {
                "multiply": (
                    (
                        "out (M,N) = add + a (M,K) b (K,N), ldc elements from one row of out and"
                        " add to the next; add may be NULL or out. Element (i, j) of a is at"
                        " a.data[i * a.row + j * a.col]: either may be transposed. These loops are"
                        " right and slow: make them ten times faster. One thread; any M, N, K from"
                        " 1 on. Ideas: run along rows in the innermost loop; keep a tile of sums,"
                        " MR x NR, in vector registers (`vector` holds VL reals) while k runs; copy"
                        " blocks of b and a to where they lie in the order in which they are read."
                    ),
                    (
                        "for (int i = 0; i < M; i++)\n"
                        "    for (int j = 0; j < N; j++) {\n"
                        "        real sum = 0;\n"
                        "        for (int k = 0; k < K; k++) sum += a.data[i * a.row + k *"
                        " a.col] * b.data[k * b.row + j * b.col];\n"
                        "        out[i * ldc + j] = (add ? add[i * ldc + j] : 0) + sum;\n"
                        "    }"
                    ),
                )
            }
        },
        remove={"train_gpt.c": ("tile", "pack", "flip")},
        plot=(
            "tokens a second of ./train_gpt -lr 1e-2 -d 128 -layers 4 -heads 4 against each idea,"
            " one by one"
        ),
        explain=[
            (
                "How many floating-point operations and how many loads are in the innermost loop,"
                " before and after?"
            ),
            (
                "What is the processor's peak (clock, width of its vectors, multiply-adds a cycle),"
                " and how much of it is reached?"
            ),
            "Why does another order of k loops change the last bits of a sum?",
        ],
    ),
    "cuda": dict(
        title="CUDA kernels",
        section="2.1",
        read=(
            "the first section of train_gpt.cu (load, store, row_sum), gelu_forward and"
            " layernorm_forward in train_gpt.c; the head of kit/cuda_emu.h"
        ),
        functions={
            "train_gpt.cu": {
                "gelu_forward_kernel": (
                    (
                        "out = gelu(inp), n values, as gelu_forward of train_gpt.c. A thread takes"
                        " W of them, from (blockIdx.x * blockDim.x + threadIdx.x) * W on; the last"
                        " may have fewer, or none. load and store move up to W values."
                    ),
                    "(void)out, (void)inp, (void)n;",
                ),
                "gelu_backward_kernel": (
                    "dinp = dout * gelu'(inp), n values, W a thread",
                    "(void)dinp, (void)dout, (void)inp, (void)n;",
                ),
                "layernorm_forward_kernel": (
                    (
                        "out = weight * (inp - mean) * rstd for a row of C values a threadIdx.y;"
                        " mean, rstd (rows). Where add is not NULL, sum = inp + add is written and"
                        " normalised instead of inp. blockDim.x threads share a row: thread x takes"
                        " the values from (j * blockDim.x + threadIdx.x) * W on, for j < KEEP."
                        " row_sum adds over a row's threads and holds the barriers, so that all"
                        " threads of the block must call it. rows need not fill the last block."
                    ),
                    (
                        "(void)out, (void)sum, (void)mean, (void)rstd, (void)inp, (void)add,"
                        " (void)weight, (void)rows, (void)C;"
                    ),
                ),
            }
        },
        plot=(
            "nothing: the stand-in is slow. On a machine with a GPU: the time of each kernel"
            " against the bytes that it moves"
        ),
        explain=[
            (
                "How many bytes does each kernel move, and how long must that take on a GPU with 3"
                " TB/s?"
            ),
            (
                "What happens without a barrier in row_sum, and in which order of the threads does"
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
            f"exercise: {name} has {len(chunks)} chunks of {', '.join(flags)}, and exercise.py says"
            f" what {len(pieces)} compute"
        )
    for (flag, first, last), (comment, stub) in reversed(list(zip(chunks, pieces))):
        indent = re.match(r" *", lines[first - 1])[0]
        code = indented(stub, indent)
        lines[first - 1 : last] = [commented(f"[{flag}] TO WRITE: {comment}", indent) + code]
    return "\n".join(lines)


def function_lines(lines, name):
    """First line (with template, __global__ and attributes), line of the opening brace, last line;
    from 0."""
    for i, line in enumerate(lines):
        if re.match(rf"[a-zA-Z_].*\b{name}\(", line) and not line.rstrip().endswith(";"):
            start = i
            while lines[start - 1].startswith("template"):
                start -= 1
            brace = i
            while not lines[brace].rstrip().endswith(("{", "}")):
                brace += 1
            end = (
                brace
                if lines[brace].rstrip().endswith("}")
                else next(j for j in range(brace, len(lines)) if lines[j] == "}")
            )
            return start, brace, end
    sys.exit(f"exercise: no function {name}")


def cut_functions(text, bodies, removed):
    lines = text.split("\n")
    for name, (comment, body) in bodies.items():
        start, brace, end = function_lines(lines, name)
        above = start
        while lines[above - 1].startswith("//"):  # the comment above is part of the solution
            above -= 1
        lines[brace + 1 : end] = [
            commented(f"[{name}] TO WRITE: {comment}", "    ") + indented(body, "    ")
        ]
        lines[above:start] = []
    for name in removed:
        start, _, end = function_lines(lines, name)
        while start and lines[start - 1].startswith("//"):
            start -= 1
        lines[start : end + 1] = []
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
    where = ex["section"] if ex["section"].startswith("the") else "section " + ex["section"]
    formula = (
        "\n\n" + textwrap.indent(re.sub(r"\n +", "\n", show.FORMULA[name]), "    ")
        if name in show.FORMULA
        else ""
    )
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
            f" instabilities* (Wortsman et al., ICLR 2024, arXiv 2309.14322), {where}. "
            f"In {' and '.join(sorted(changed))} lines are missing; the program compiles and trains"
            f" without them. Write them. {flag}"
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

What is missing stands where it is missing: `grep -n 'TO WRITE' {
        " ".join(sorted(changed))
    }`. Change nothing else: the
grading takes only {
        "these files" if len(changed) > 1 else "this file"
    } and has the others of its own.

## Test

    make            builds train_gpt
    make grade      says what is right and what is wrong, in the order of difficulty, and writes
                    grade.json

{points}

It compiles with `cc` and needs Python with numpy (which `make grade` installs into build/venv where
it is missing). Inputs are drawn anew each time; `SEED=n make grade` repeats a grading, whose seed
is in grade.json.{runs_cuda}

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
train_gpt: train_gpt.c gpt.h dataloader.h $(wildcard lib/*.h)
	$(CC) $(FLAGS) -o $@ train_gpt.c -lm

train_gpt_cu_emu: train_gpt.cu gpt.h dataloader.h $(wildcard lib/*.h) test/cuda/cuda_emu.h
	$(CXX) -std=c++17 $(CFLAGS) $(ARCH) -Wno-unknown-pragmas -fno-strict-aliasing -rdynamic \\
	-DCUDA_EMU -x c++ train_gpt.cu -o $@ -lm

# python3 where it has numpy, else a virtual environment that does
PYTHON := $(shell python3 -c 'import numpy' 2>/dev/null && echo python3 \\
	|| echo build/venv/bin/python)
build/venv/bin/python:
	python3 -m venv build/venv && build/venv/bin/pip install -q --disable-pip-version-check {numpy}

.PHONY: grade clean
grade: $(filter build/%,$(PYTHON))
	@$(PYTHON) kit/grade.py .

clean:
	rm -rf train_gpt train_gpt_cu_emu build runs grade.json
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
    head = makefile[makefile.index("ifeq ($(origin CC)") :]
    head = head[: head.index("\n", head.index("\nFLAGS :=") + 1)]
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
        sizes = " (it has no lines of its own)" if args.name in show.FORMULA else ""
        sys.exit(
            f"exercise: there is none on '{args.name}'{sizes}; there are: {' '.join(EXERCISES)}"
        )
    folder = write(
        args.name,
        pathlib.Path(args.dir or f"exercise-{args.name}"),
        args.cuda and args.name != "cuda",
    )
    print(
        f"{folder}: hand it out; its README.md says what to do. Grade it with: make grade"
        f" DIR={folder}"
    )


if __name__ == "__main__":
    main()

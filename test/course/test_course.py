"""The course kit, as teacher and as student: every exercise scores zero as it is handed out and all
points with the solution; wrong solutions lose the points of the tests that they should fail, and no
others. Hostile programs get a verdict, and the grader survives.
"""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import exercise
import grade
import show
from conftest import ROOT, TEST

SIZES = "d layers heads batch steps base_d".split()  # interventions without flagged lines
# neither trainer has a line of theirs
IN_GPT_H = "warmup schedule wd_independent base_d scale".split()


# ---- show


def test_markers():
    for name in show.FILES:
        show.chunks(show.read(name), name)  # exits where one is not closed
    for text in ("x // [a\n", "x // a]\n", "// [a\n// [a\n"):
        with pytest.raises(SystemExit):
            show.chunks(text)


@pytest.mark.parametrize("name", show.FILES)
def test_few_lines(name):
    """An intervention has at most 25 flagged lines a file."""
    for flag in {c[0] for c in show.chunks(show.read(name), name)}:
        assert show.count(name, flag) <= show.MOST_LINES, flag


def test_same_flags():
    """C and CUDA flag the same interventions, and each of them is in show's table."""
    c, cuda, shared = (
        {chunk[0] for chunk in show.chunks(show.read(name), name)}
        for name in ("train_gpt.c", "train_gpt.cu", "gpt.h")
    )
    assert c == cuda
    assert c | shared | set(SIZES) == set(show.FORMULA)
    assert set(show.FORMULA) <= set(show.flags())


def run(*command, **more):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("flag", show.FORMULA)
def test_show(flag, width):
    out = run(
        sys.executable, TEST / "course" / "show.py", flag, env={**os.environ, "COLUMNS": str(width)}
    )
    assert not out.returncode, out.stderr
    assert all(len(line) <= width for line in out.stdout.splitlines())
    wanted = [
        f"{n:5}  "
        for name in show.FILES
        for f, n, _ in show.chunks(show.read(name), name)
        if f == flag
    ]
    assert all(n in out.stdout for n in wanted) and "[" + flag not in out.stdout
    assert ("no flagged lines" in out.stdout) == (flag in SIZES)
    assert (" | " in out.stdout) or width < 160 or flag in IN_GPT_H


def test_show_table():
    """Every intervention with its section and help, within the terminal's width."""
    env = {**os.environ, "COLUMNS": "80"}
    out = run(sys.executable, TEST / "course" / "show.py", env=env)
    assert not out.returncode, out.stderr
    assert all(len(line) <= 80 for line in out.stdout.splitlines())
    words = " ".join(line[58:].strip() for line in out.stdout.splitlines())
    for flag, (section, text) in show.flags().items():
        if flag in show.FORMULA:
            assert re.search(rf"^-{flag} +{re.escape(section)} ", out.stdout, re.M), flag
            assert text in words, flag


def test_flags_table():
    """show reads every row of gpt.h's table of flags."""
    rows = show.read("gpt.h").split("FLAGS[] = {")[1].split("\n};")[0]
    assert len(show.flags()) == len(re.findall(r"^    (?:FLAG|NUMBER)", rows, re.M))


def test_show_functions():
    lines = show.read("train_gpt.c").splitlines()
    where = {flag: show.enclosing(lines, n) for flag, n, _ in show.chunks("\n".join(lines))}
    assert where == dict(
        qk_norm="qk_norm_rope_backward",
        kappa="gpt_backward",
        attention="attention_backward",
        z_loss="cross_entropy",
        bf16_logits="gpt_forward",
        mu_param="gpt_update",
        rms_lr="gpt_update",
        wd="gpt_update",
        eps="gpt_update",
        beta2="gpt_update",
        clip="gpt_update",
    )


# ---- exercises: the solution with these texts replaced. lost: the tests that must fail, by number.
# All others must pass, except that those in `either` may fail. says: part of a message.


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
BACK_V = "        const real *v = qkv + first * 3 * C + 2 * C + channel;\n        real *dq = dqkv"
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
NEAR_ZERO = 0
GRADINGS = [
    (name, variant) for name in WRONG for variant in ("untouched", "solution", *WRONG[name])
] + [("z_loss cuda", "untouched"), ("z_loss cuda", "solution"), ("beta2 cuda", "untouched")]
GRADINGS += [("qk_norm cuda", "solution"), ("mu_param cuda", "solution")]


def student_folder(where, name, variant):
    name, cuda = name.split()[0], "cuda" in name.split()[1:]
    folder = exercise.write(name, where, cuda)
    if variant == "untouched":
        return folder
    changed = exercise.sources(name, cuda)
    texts = {file: show.read(file) for file in changed}
    for file, old, new in WRONG[name][variant]["patches"] if variant != "solution" else []:
        assert texts[file].count(old) == 1, (
            f"{name} {variant}: {texts[file].count(old)} times in {file}: {old}"
        )
        texts[file] = texts[file].replace(old, new)
    for file, text in texts.items():
        (folder / file).write_text(text)
    return folder


def graded(folder, *arguments, kit=None, **environment):
    out = run(
        sys.executable,
        (kit or folder / "kit") / "grade.py",
        folder,
        *arguments,
        env={**os.environ, "CC": "cc", "SEED": "", **environment},
    )
    assert not out.returncode, out.stderr
    result = json.loads((folder / "grade.json").read_text())
    assert (
        result["score"] == sum(t["score"] for t in result["tests"])
        and result["max_score"] == sum(t["max_score"] for t in result["tests"]) == 100
    )
    assert f"of 100, {result['execution_time']} s" in out.stdout
    return result


@pytest.fixture(scope="module")
def gradings(request, tmp_path_factory):
    """The gradings of the selected tests, two at a time: {(exercise, variant): future}."""
    where = tmp_path_factory.mktemp("course")
    wanted = [
        item.callspec.params["grading"]
        for item in request.session.items
        if item.fspath == request.fspath
        and "grading" in getattr(item, "callspec", request).__dict__.get("params", {})
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {
            g: pool.submit(
                lambda g: graded(
                    student_folder(where / "-".join(g).replace(" ", "_"), *g), SEED="1"
                ),
                g,
            )
            for g in wanted
        }


@pytest.mark.parametrize("grading", GRADINGS, ids="-".join)
def test_grading(grading, gradings):
    name, variant = grading
    result = gradings[grading].result()
    failed = {
        i for i, t in enumerate(result["tests"]) if t["score"] < t["max_score"] or t["output"]
    }
    report = json.dumps(result["tests"], indent=1)
    if variant == "untouched":
        assert result["score"] <= NEAR_ZERO, report
    elif variant == "solution":
        assert result["score"] == 100 and not failed, report
    else:
        case = WRONG[name][variant]
        assert failed - case["either"] == case["lost"] - case["either"], report
        assert case["says"] in report, report


def test_three_wrong_solutions():
    assert set(WRONG) == set(exercise.EXERCISES) == set(grade.EXERCISES)
    assert all(len(cases) >= 3 for cases in WRONG.values())


# ---- the folder


@pytest.mark.parametrize(
    "name",
    [
        *exercise.EXERCISES,
        *(
            n + " cuda"
            for n, ex in exercise.EXERCISES.items()
            if "train_gpt.cu" in ex.get("cut", {})
        ),
    ],
)
def test_exercise(name, tmp_path):
    """The folder compiles without a warning; neither it nor its kit holds a line of the solution;
    its README is one page."""
    folder, (name, *cuda) = tmp_path / "handed out", name.split()
    exercise.write(name, folder, bool(cuda))
    compilers = {
        "train_gpt.c": ("cc", "-std=gnu11"),
        "train_gpt.cu": ("g++", "-std=c++17", "-DCUDA_EMU", "-DFP32", "-x", "c++"),
    }
    changed = exercise.sources(name, bool(cuda))
    for file, command in compilers.items():
        if (folder / file).exists():
            out = run(
                *command,
                "-fsyntax-only",
                "-Wall",
                "-Wextra",
                "-Wno-unknown-pragmas",
                "-fopenmp-simd",
                folder / file,
            )
            assert not out.returncode and not out.stderr, out.stderr
    ex = exercise.EXERCISES[name]
    for file in changed:
        assert "TO WRITE" in changed[file]
        for flag, first, last in show.chunks(show.read(file), file):
            if flag in ex.get("flags", (name,)):
                lines = [
                    show.unmarked(line).strip()
                    for line in show.read(file).splitlines()[first - 1 : last]
                ]
                # some stand a second time, in another layer
                assert not any(
                    changed[file].count(line) >= show.read(file).count(line)
                    for line in lines
                    if len(line) > 24 and not line.endswith(("{", "++)"))
                ), lines
    assert len((folder / "README.md").read_text().splitlines()) < 70
    kit = {path.name for path in (folder / "kit").iterdir()}
    assert not kit & {"train_gpt.c", "train_gpt.cu", *changed, "exercise.py"}
    again = run(sys.executable, TEST / "course" / "exercise.py", name, "--dir", folder)
    assert again.returncode and "not empty" in again.stderr


def test_make(tmp_path):
    """The commands of the README, in the project and in the folder."""
    folder = tmp_path / "out"
    assert (
        "3.1.2" in run("make", "-s", "show", cwd=ROOT).stdout
        and "cross_entropy" in run("make", "-s", "show-z_loss", cwd=ROOT).stdout
    )
    assert (
        run("make", "-s", "exercise-nothing", cwd=ROOT).returncode
        and run("make", "-s", "show-nothing", cwd=ROOT).returncode
    )
    assert not run("make", "-s", "exercise-eps", f"DIR={folder}", cwd=ROOT).returncode
    built = run("make", "CFLAGS=-O0 -Wall -Wextra -Werror", cwd=folder)
    assert not built.returncode, built.stderr
    trained = run(
        "./train_gpt", "-steps", "3", "-d", "8", "-heads", "1", "-eval_tokens", "64", cwd=folder
    )
    assert not trained.returncode, trained.stderr
    path = {**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    for command, where in (
        (("make", "-s", "grade"), folder),
        (("make", "-s", "grade", f"DIR={folder}", "EXERCISE=eps"), ROOT),
    ):
        out = run(*command, cwd=where, env=path)
        assert not out.returncode and "0 of 100" in out.stdout, out.stdout + out.stderr
        assert json.loads((folder / "grade.json").read_text())["exercise"] == "eps"
    assert run("make", "-s", "grade", f"DIR={tmp_path}", cwd=ROOT).returncode


# ---- programs that are not to be trusted

START = "#include <sys/socket.h>\n__attribute__((constructor)) static void first(void) { %s }\n"
HOSTILE = {  # the program's last lines, and a part of the verdict
    "loops": (START % "for (;;);", "does not end"),
    "waits": (START % "for (;;) pause();", "does not end"),
    "crashes": (START % "volatile int *volatile nowhere = 0; *nowhere = 1;", "crashed"),
    "aborts": (START % "abort();", "ended by signal|aborted|crashed"),
    "prints": (START % 'for (;;) puts("100 of 100, all is right");', "prints without end"),
    "fills_memory": (START % "for (;;) memset(malloc(1 << 24), 1, 1 << 24);", "crashed|killed"),
    "exits": (START % 'puts("100 of 100"); exit(0);', "answered 0 bytes"),
    "answers": (
        START
        % "double x[4096]; for (int i = 0; i < 4096; i++) x[i] = 2.5; for (int fd = 3; fd < 20;"
        " fd++) if (write(fd, x, sizeof x) < 0) continue; exit(0);",
        "answered|expected",
    ),
    "does_not_compile": ("int x = ;\n", "does not compile"),
    "endless_include": ('#include "train_gpt.c"\n', "does not compile"),
    "reads_dev_zero": ('#include "/dev/zero"\n', "does not compile"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case, tmp_path):
    text, says = HOSTILE[case]
    folder = student_folder(tmp_path / "x", "eps", "solution")
    with open(folder / "train_gpt.c", "a") as file:
        file.write(text)
    result = graded(folder, SECONDS_A_TEST="1")
    assert result["score"] == 0, result
    assert all(
        re.search(says, t["output"]) or "does not end" in t["output"] for t in result["tests"]
    ), result


def test_nan(tmp_path):
    folder = student_folder(tmp_path / "x", "eps", "solution")
    text = (folder / "train_gpt.c").read_text()
    (folder / "train_gpt.c").write_text(text.replace("    eps = cfg->eps;", "    eps = NAN;"))
    result = graded(folder)
    assert result["score"] == 0 and all(
        "ot a number" in t["output"] or "not finite" in t["output"] for t in result["tests"]
    ), result


def test_confined(tmp_path):
    """A right program that also tries what is forbidden: it does no harm, and gets all points."""
    victim = tmp_path / "victim"
    victim.write_text("here")
    victim.chmod(0o666)
    tmp_path.chmod(0o777)
    folder = student_folder(tmp_path / "x", "eps", "solution")
    with open(folder / "train_gpt.c", "a") as file:
        file.write(
            START
            % "kill(getppid(), 9); kill(-1, 9); for (int i = 0; i < 1000; i++) if (!fork()) for"
            f' (;;); if (truncate("{victim}", 0) == 0) puts("truncated"); FILE *f ='
            f' fopen("{victim}", "w"); if (f) fputs("gone", f); f = fopen("{tmp_path}/new", "w");'
            f' if (f) fputs("new", f); rename("{victim}", "{tmp_path}/other");'
            f' unlink("{victim}"); if (socket(AF_INET, SOCK_STREAM, 0) >= 0) abort();'
        )
    assert graded(folder)["score"] == 100
    assert victim.read_text() == "here" and not (tmp_path / "new").exists()


def test_edited_kit(tmp_path):
    """The student edits the tests in the folder to give all points: the teacher's kit does not look
    at them."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    honest = graded(folder)
    for name in "driver.c", "reference.py", "gpt.h":
        (folder / "kit" / name).write_text("#error\n")
    shutil.copy(folder / "kit" / "gpt.h", folder / "gpt.h")
    kit = folder / "kit" / "grade.py"
    kit.write_text(
        kit.read_text()
        .replace('one["score"] = points', "pass")
        .replace("score=0, max_score=points", "score=points, max_score=points")
    )
    result = graded(folder, "eps", kit=TEST / "course")
    assert result["score"] == 0 and [t["max_score"] for t in result["tests"]] == [
        t["max_score"] for t in honest["tests"]
    ]
    assert result["kit"] == honest["kit"]


def test_seed(tmp_path):
    """Inputs are drawn anew each time; a seed repeats them."""
    folder = student_folder(tmp_path / "x", "eps", "untouched")
    first, second = graded(folder), graded(folder)
    again = graded(folder, SEED=str(first["seed"]))
    outputs = lambda result: [t["output"] for t in result["tests"]]
    assert outputs(first) == outputs(again) != outputs(second)

"""What each exercise takes out of the sources. No solution is written here: a comment takes the
place of each cut and says what to compute; where the rest would not compile, a stub follows."""

# cut: {file: [(comment, stub), ...]}, one for each flagged chunk in the order of the file; a chunk
# counts if its flag is in `flags` (default: the exercise's name); None leaves it as it is.
# hides: {file: patterns}: parts of comments that would say too much. In these files the comment
# above a flagged function goes too.
# functions: {file: {name: (comment, stub of the body)}}. remove: {file: names of the solution's
# helpers}. pragmas: {file: (name, comment)}: the OpenMP tasks in all functions.
EXERCISES = {
    "qk_norm": dict(
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
    ),
    "z_loss": dict(
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
    ),
    "warmup": dict(
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
    ),
    "wd": dict(
        flags=("wd", "wd_independent"),
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
    ),
    "mu_param": dict(
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
    ),
    "eps": dict(
        cut={
            "train_gpt.c": [("The value of the flag, in place of 1e-8", "")],
            "train_gpt.cu": [("The value of the flag, in place of 1e-8", "")],
        },
    ),
    "beta2": dict(
        cut={
            "train_gpt.c": [("The value of the flag, in place of 0.95", "")],
            "train_gpt.cu": [("The value of the flag, in place of 0.95", "")],
        },
    ),
    "clip": dict(
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
                        "norm is the norm of all gradients together, and each gradient is"
                        " multiplied by clip_scale. Where o->clip is not 0 and norm is larger,"
                        " choose clip_scale so that the norm becomes o->clip."
                    ),
                    "(void)norm;",
                )
            ],
        },
    ),
    "attn_cap": dict(
        hides={
            "train_gpt.c": [
                r"If cap is not 0, .*?cap / scale\. ",
                r" With a cap, ds_ij .*?derivative\.",
            ],
            "train_gpt.cu": [
                r"// If cap is not 0, .*?costs\n// nothing\.\n",
                r"// With a cap, ds_ij .*?derivative\.\n",
            ],
        },
        cut={
            "train_gpt.c": [
                (
                    (
                        "A function of one score, if you like: its capped value and the derivative"
                        " of that, for both passes. No score may be too large for it. Its"
                        " derivative must have all digits also where tanh is nearly 1."
                        " exponential(x), for x <= 0, and reciprocal(x), for 1 <= x <= 2, become"
                        " vector instructions in a loop; tanh does not."
                    ),
                    "",
                ),
                (
                    (
                        "The forward pass. p (cols) holds the products q.k of a query with the keys"
                        " from 0 on. The next loop makes scores of them and hides the later keys."
                        " Where cap is not 0, let cap tanh(score / cap) take the place of each"
                        " score. max_logit is that of the scores before the cap."
                    ),
                    "(void)cap;",
                ),
                (
                    (
                        "The backward pass. p (cols) holds the products again. Where cap is not 0,"
                        " treat them as in the forward pass. s.slope (T) is memory for the"
                        " derivatives of this row."
                    ),
                    "(void)cap;",
                ),
                (
                    (
                        "dp (cols) is the gradient of the products as if there were no cap. Where"
                        " cap is not 0, make it right."
                    ),
                    "",
                ),
            ],
            "train_gpt.cu": [
                (
                    (
                        "A function of one score, if you like, as in train_gpt.c. In both backward"
                        " kernels, a hidden score is -infinity before the cap, and must stay so."
                    ),
                    "",
                ),
                (
                    (
                        "The forward kernel. CAP is false where the cap is 0. s[n][e] is a product"
                        " q.k, and cap is the argument of attention_forward over the scale: cap the"
                        " product, before it is hidden."
                    ),
                    "(void)cap, (void)slope;",
                ),
                ("The kernel with CAP where cap is not 0", ""),
                (
                    (
                        "dq: cap the product s[e], as in the forward kernel, and keep the"
                        " derivative."
                    ),
                    "(void)cap, (void)slope;",
                ),
                ("The gradient of the product, through the cap", ""),
                (
                    (
                        "dk and dv: cap the product s[e], as in the forward kernel, and keep the"
                        " derivative."
                    ),
                    "(void)cap, (void)slope;",
                ),
                ("The gradient of the product, through the cap", ""),
                ("The kernels with CAP where cap is not 0: dq", ""),
                ("and dkv", ""),
            ],
        },
    ),
    "qk_clip": dict(
        hides={"train_gpt.c": [], "train_gpt.cu": []},
        cut={
            "train_gpt.c": [
                (
                    (
                        "A function that clips a layer, if you like: from its c_attn (3C,C), whose"
                        " C rows of queries come first, then C rows of keys, then C rows of values;"
                        " and from its max_logit (B,NH), the largest |score| of each head in each"
                        " sequence of the last batch."
                    ),
                    "",
                ),
                (
                    (
                        "params is a tensor of layer l, after this step of the optimizer. Where it"
                        " is c_attn and cfg->qk_clip is above 0: for each head whose largest score"
                        " in the last batch was above cfg->qk_clip, shrink the weights of its"
                        " queries and those of its keys by the same factor, so that this score"
                        " would have been cfg->qk_clip. g->layers[l].max_logit (B,NH) was measured"
                        " before this step, as in every step with -qk_clip; B is cfg->batch."
                    ),
                    "",
                ),
            ],
            "train_gpt.cu": [
                (
                    (
                        "A kernel that clips all layers, if you like. g->max_logit (L,NH) has the"
                        " largest of each head over the whole batch. It does nothing where the step"
                        " is left out: where over(results, constants), which are g->results and"
                        " g->adamw. round_to(to, x) writes x to *to as act."
                    ),
                    "",
                ),
                (
                    (
                        "Where cfg->qk_clip is above 0, clip the heads of all layers: c_attn"
                        " (L,3C,C), from g->params + kinds.offset[C_ATTN] on, and its copy as act,"
                        " from g->weights + kinds.offset[C_ATTN] on, which the next forward pass"
                        " reads."
                    ),
                    "",
                ),
            ],
        },
    ),
    "attention_backward": dict(
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
                        " each thread, and attention_scratch finds this thread's. Heads may be"
                        " tasks of `omp taskloop`. cap, of -attn_cap, and relu2, of -attention"
                        " relu2, are 0 here."
                    ),
                    (
                        "(void)dout, (void)out, (void)softmax, (void)qk, (void)qkv, (void)scale,"
                        " (void)cap, (void)scratch, (void)relu2;\n"
                        "memset(dqkv, 0, (size_t)B * T * 3 * NH * HS * sizeof(real));"
                    ),
                )
            }
        },
    ),
    "matmul": dict(
        functions={
            "train_gpt.c": {
                "multiply": (
                    (
                        "out (M,N) = add + a (M,K) b (K,N), where ldc is the distance between two"
                        " rows of out and add; add may be NULL, which adds nothing, or out. Element"
                        " (i,j) of a is at a.data[i * a.row + j * a.col]: a and b may be"
                        " transposed. The loops below are right and slow: make them ten times"
                        " faster, on one thread, for any M, N, K from 1 on. Tasks on several"
                        " threads call it for parts of out, as many as there are threads: so each"
                        " needs memory to itself (_Thread_local), and the order of an element's sum"
                        " must not depend on M or N. Ideas: run along rows"
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
        remove={"train_gpt.c": ("KC", "tile", "pack")},
    ),
    "layernorm": dict(
        functions={
            "train_gpt.c": {
                "layernorm_row_backward": (
                    (
                        "The gradients of one row of LayerNorm, out = weight * n with n = (x -"
                        " mean) * rstd, from dout, that of out; dx, add, dout, x, weight, dweight"
                        " (C). Write add + the gradient of x to dx. mean and rstd depend on every"
                        " x of the row too. Add the gradient of weight to dweight. add may be NULL,"
                        " which adds nothing, or dx; dx may be dout. scratch (2,C) is yours."
                    ),
                    (
                        "(void)dx, (void)add, (void)dweight, (void)dout, (void)x, (void)weight,\n"
                        "(void)mean, (void)rstd, (void)scratch, (void)C;"
                    ),
                ),
                "residual_layernorm_backward": (
                    (
                        "All rows: add to dx (rows,C) the gradient that reaches x (rows,C) through"
                        " its LayerNorm, from dout (rows,C); set dweight (C). mean, rstd (rows)."
                        " All rows share dweight. So that threads can share the rows, the rows of a"
                        " chunk (CHUNK of them, the last perhaps fewer) add to a dweight that is"
                        " the chunk's alone, in partial (chunks,3,C), whose other 2 C are scratch;"
                        " then sum_chunks adds these. partial holds anything. A chunk may be a task"
                        " of `omp taskloop`."
                    ),
                    (
                        "(void)dx, (void)dout, (void)x, (void)weight, (void)mean, (void)rstd,\n"
                        "(void)partial, (void)rows;\n"
                        "memset(dweight, 0, (size_t)C * sizeof(real));"
                    ),
                ),
            }
        },
    ),
    "parallel": dict(
        pragmas={"train_gpt.c": ("parallel", "TO WRITE: tasks of this loop, or the wait for them")},
        functions={
            "train_gpt.c": {
                "embedding_backward": (
                    (
                        "Two positions may hold the same token. Which loop can be cut into tasks,"
                        " so that no two add to the same number, and each sum keeps its order?"
                    ),
                    (
                        "memset(dwte, 0, (size_t)V * C * sizeof(real));\n"
                        "for (int i = 0; i < rows; i++)\n"
                        "    for (int c = 0; c < C; c++)\n"
                        "        dwte[(size_t)tokens[i] * C + c] += dout[(size_t)i * C + c];"
                    ),
                )
            }
        },
    ),
    "muon": dict(
        flags=("optimizer",),
        cut={
            "train_gpt.c": [
                None,  # the memory
                None,  # the function below
                (
                    (
                        "Where uses_muon(cfg, g->table, k), Muon's step in place of AdamW's below:"
                        " updates is the sum of u^2. The tensor is a matrix (p->rows,p->cols); the"
                        " queries, keys and values in c_attn (3C,C) are three matrices, one below"
                        " the other. g->muon (10,C,C) is the scratch."
                    ),
                    "(void)muon;",
                ),
            ]
        },
        functions={
            "train_gpt.c": {
                "orthogonalize": (
                    (
                        "Divide x by the root of the sum of its squares. A matrix of zeros stays 0;"
                        " any other, however small, gets the norm 1. Then, five times, x becomes"
                        " a x + b (x x^T) x + c (x x^T)^2 x, with a = 3.4445, b = -4.7750, c ="
                        " 2.0315. Where x is taller than wide, multiply from the other side, so"
                        " that the square matrices are (n,n) with the shorter side n. product(out,"
                        " a, b, M, N, K) writes a (M,K) b (K,N) to out (M,N), which must not be a"
                        " or b. matrix(x, cols) is x as a Matrix, flip(m) is m transposed."
                        " sum_squares needs sums."
                    ),
                    "(void)x, (void)rows, (void)cols, (void)scratch, (void)sums, (void)product;",
                ),
                "muon": (
                    (
                        "A step for the matrix param (rows,cols) with the gradient grad and the"
                        " momentum m. g = o.clip_scale * grad; m = beta m + (1 - beta) g, where"
                        " beta is MUON_MOMENTUM; the momentum one step ahead is beta m + (1 - beta)"
                        " g, with this new m and the same g. Make it orthogonal, and multiply it by"
                        " the factor that would give it the RMS 0.2 if all singular values were 1:"
                        " that is u. The new weight is updated(param, u, lr, o), which also decays."
                        " Return the sum of u^2. grad must stay as it is. scratch (10,C,C), where C"
                        " is the shorter side, holds the matrix u and behind it the scratch of"
                        " orthogonalize, if no side is longer than 4 C. sums is for sum_squares."
                    ),
                    (
                        "(void)param, (void)grad, (void)m, (void)rows, (void)cols, (void)lr,"
                        " (void)o;\n"
                        "(void)scratch, (void)sums;\n"
                        "return 0;"
                    ),
                ),
            }
        },
    ),
    "cuda": dict(
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
                        " rows to spare. Normalise rounded(x), which memory holds, and write it to"
                        " x where branch is not NULL. lib/gpu.h has load, store and row_sum;"
                        " shuffles, atomics and rsqrtf work on the stand-in too. Until the three"
                        " kernels are written the program prints nan."
                    ),
                    (
                        "(void)out, (void)x, (void)mean, (void)rstd, (void)inp;\n"
                        "(void)branch, (void)weight, (void)rows, (void)C;"
                    ),
                ),
            }
        },
    ),
}

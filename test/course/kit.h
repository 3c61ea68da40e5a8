// kit.h: what driver.c and driver.cu share. First guards round the arrays that a student's
// functions get. A guard's words are NaN: reading them, or memory that was never written, shows in
// the results. guards_check finds a write, even of a number computed from a guard: these are
// signaling NaNs, and computing makes quiet ones of them.

#ifdef DOUBLE
typedef uint64_t GuardWord;
static const GuardWord NOTHING = 0x7FF4DEADDEADDEAD;
#else
typedef uint32_t GuardWord;
static const GuardWord NOTHING = 0x7FA0DEAD;
#endif

// before, after: the bytes of the guards. name: NULL for an array of the model
enum { GUARD = 4096, MOST_GUARDED = 4096, OUTSIDE = 99 /* the exit status */ };
typedef struct {
    const char *name;
    unsigned char *start;
    size_t size, before, after;
} Guarded;
static Guarded guarded[MOST_GUARDED];
static int num_guarded;

static void guard_fill(void *start, size_t size) {
    for (size_t i = 0; i < size / sizeof(GuardWord); i++) ((GuardWord *)start)[i] = NOTHING;
}

static void guard(const char *name, void *start, size_t size, size_t before, size_t after) {
    if (num_guarded == MOST_GUARDED) die(FAILED, "driver: more than %d arrays", MOST_GUARDED);
    Guarded a = {name, (unsigned char *)start, size, before, after};
    guard_fill(a.start - before, before);
    guard_fill(a.start + size, after);
    guarded[num_guarded++] = a;
}

// Memory of `size` bytes, all NaN, between two guards. It is never freed.
static void *guarded_memory(const char *name, size_t size) {
    char *start = (char *)allocate(size + 2 * GUARD, 1) + GUARD;
    guard_fill(start, size);
    guard(name, start, size, GUARD, GUARD);
    return start;
}

// The arrays of the model, to name them in a message
typedef struct {
    const char *name;
    size_t place;
} Field;
#define GPT_FIELD(name) {#name, offsetof(GPT, name)}
#define LAYER_FIELD(name) {#name, offsetof(Layer, name)}
static const Field gpt_fields[] = {
    GPT_FIELD(params), GPT_FIELD(grads), GPT_FIELD(m), GPT_FIELD(v), GPT_FIELD(cosine),
    GPT_FIELD(sine), GPT_FIELD(embedded), GPT_FIELD(branch), GPT_FIELD(x), GPT_FIELD(ln_f),
    GPT_FIELD(ln_f_mean), GPT_FIELD(ln_f_rstd), GPT_FIELD(logits), GPT_FIELD(losses),
    GPT_FIELD(log_z), GPT_FIELD(dx), GPT_FIELD(dnorm), GPT_FIELD(dqkv), GPT_FIELD(dfc),
    GPT_FIELD(scratch), GPT_FIELD(sums), GPT_FIELD(partial),
#ifndef __cplusplus
    GPT_FIELD(fc), GPT_FIELD(dgate), GPT_FIELD(dpost), GPT_FIELD(muon),
#endif
};
static const Field layer_fields[] = {
    LAYER_FIELD(x), LAYER_FIELD(ln_1), LAYER_FIELD(ln_1_mean), LAYER_FIELD(ln_1_rstd),
    LAYER_FIELD(qkv), LAYER_FIELD(qk_mean), LAYER_FIELD(qk_rstd), LAYER_FIELD(qk),
    LAYER_FIELD(softmax), LAYER_FIELD(max_logit), LAYER_FIELD(att), LAYER_FIELD(x_mid),
    LAYER_FIELD(ln_2), LAYER_FIELD(ln_2_mean), LAYER_FIELD(ln_2_rstd), LAYER_FIELD(gelu),
#ifdef __cplusplus
    LAYER_FIELD(fc),
#else
    LAYER_FIELD(slope), LAYER_FIELD(gate), LAYER_FIELD(gated), LAYER_FIELD(post[0]),
    LAYER_FIELD(post[1]), LAYER_FIELD(post_mean[0]), LAYER_FIELD(post_mean[1]),
    LAYER_FIELD(post_rstd[0]), LAYER_FIELD(post_rstd[1]),
#endif
};

enum {
    GPT_FIELDS = sizeof gpt_fields / sizeof *gpt_fields,
    LAYER_FIELDS = sizeof layer_fields / sizeof *layer_fields
};

static const char *field_at(const Field *fields, int count, const void *of, const void *start) {
    for (int i = 0; i < count; i++)
        if (*(void *const *)((const char *)of + fields[i].place) == start) return fields[i].name;
    return NULL;
}

static void guard_outside(const GPT *g, const Guarded *a, size_t bytes, const char *where) {
    const char *name = a->name;
    fprintf(stderr, "it writes %zu bytes %s of ", bytes, where);
    if (!name && g) name = field_at(gpt_fields, GPT_FIELDS, g, a->start);
    if (name) fprintf(stderr, "%s\n", name);
    for (int l = 0; !name && g && l < g->cfg.layers; l++) {
        name = field_at(layer_fields, LAYER_FIELDS, &g->layers[l], a->start);
        if (name) fprintf(stderr, "%s of layer %d\n", name, l);
    }
    if (!name) fprintf(stderr, "an array of the model\n");
    exit(OUTSIDE);
}

// Ends the program with a message if a guard was written to. g: the model, or NULL
static void guards_check(const GPT *g) {
    for (int i = 0; i < num_guarded; i++) {
        const Guarded *a = &guarded[i];
        const GuardWord *start = (const GuardWord *)a->start;
        const GuardWord *end = (const GuardWord *)(a->start + a->size);
        for (size_t n = a->after / sizeof(GuardWord); n; n--)
            if (end[n - 1] != NOTHING) guard_outside(g, a, n * sizeof(GuardWord), "past the end");
        for (size_t n = a->before / sizeof(GuardWord); n; n--)
            if (start[-(ptrdiff_t)n] != NOTHING)
                guard_outside(g, a, n * sizeof(GuardWord), "before the start");
    }
}

static FILE *answers;

static void kit_put_one(double x) { fwrite(&x, sizeof x, 1, answers); }

// The columns of log.csv that a step measures, in their order, without those of absent tensors.
// train_gpt.cu measures fewer.
static void put_log(const GPT *g, const Stats *stats) {
    const double *groups[3] = {stats->grad_rms, stats->param_rms, stats->update_rms};
    kit_put_one(stats->val_loss);
    kit_put_one(stats->mean_logit);
    for (int i = 0; i < NUM_BY_LAYER; i++)
        for (int l = 0; l < g->cfg.layers; l++) kit_put_one(stats->by_layer[i][l]);
    for (int i = 0; i < NUM_ACTIVATIONS; i++) kit_put_one(stats->act_rms[i]);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < NUM_KINDS; k++)
            if (g->table[k].copies) kit_put_one(groups[i][k]);
}

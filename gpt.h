// gpt.h: the part of the lesson that train_gpt.c and train_gpt.cu share. The flags and their
// defaults; the parameters and their initial values; the learning rate, the weight decay and
// muParam's factors; the angles of RoPE; the measurements of a run.
#ifndef GPT_H
#define GPT_H

#include "lib/base.h"    // real, random_stream, random_normal, MAX_TEXT

// ---------------------------------------------------------------------------
// Flags. A row of the table says everything about a flag: the parser, -h, the checks, the folder's
// name and the columns of summary.csv all follow from it.

enum { MU_OFF, MU_SIMPLE, MU_INTERMEDIATE, MU_FULL };    // -mu_param
enum { MAX_LAYERS = 1024 };

typedef struct {    // the values of the flags, described in the table below
    // the model
    int d, layers, heads, T, vocab;
    int qk_norm, mu_param, base_d;
    // training
    int batch, steps, seed;
    char lr_text[MAX_TEXT], warmup_text[MAX_TEXT];    // -lr and -warmup as given
    double lr;                                        // the peak learning rate, from lr_text
    int warmup;                                       // steps of warm-up, from warmup_text
    double min_lr, beta1, beta2, eps, clip, wd, z_loss;
    int wd_independent, bf16_logits;
    // data, files and commands
    char data[MAX_TEXT], val[MAX_TEXT], out[MAX_TEXT];
    int eval_tokens, eval_every, log_every, checkpoint_every;
    int micro_batch;
    int resume, sample;
    double temperature;
} Config;

typedef enum { INT, REAL, TEXT, CHOICE } FlagType;

// The subject of a flag. Flags of the run name its folder and are saved in its checkpoint. Flags of
// the machine name the folder too, but are not saved: a checkpoint continues on any machine.
typedef enum { THE_RUN, THE_MACHINE, THE_COMMAND } FlagScope;

typedef struct {
    const char *name;
    FlagType type;
    size_t offset;           // of the field in Config
    const char *initial;     // the default
    const char *bare;        // the value of a flag that is given without one; NULL: it needs one
    double least, most;      // of a number
    const char *choices;     // the words of a CHOICE, by number; the form of a TEXT
    FlagScope scope;
    const char *section;     // of the paper
    const char *help;
} Flag;

#define BELOW_1 (1 - DBL_EPSILON)
#define ANY DBL_MAX
#define FLAG_IN(field, name, type, ...) {#name, type, offsetof(Config, field), __VA_ARGS__}
#define FLAG(name, type, ...) FLAG_IN(name, name, type, __VA_ARGS__)
#define NUMBER(name, type, initial, least, most, section, help) \
    FLAG(name, type, initial, NULL, least, most, NULL, THE_RUN, section, help)

static const Flag FLAGS[] = {
    // FLAG(name, type, default, bare, least, most, choices, scope, section, help)
    // NUMBER(name, type, default, least, most, section, help): of the run
    FLAG_IN(lr_text, lr, TEXT, "1e-2", "3e-4:1", 0, 0, "X | X,Y | X:Y", THE_RUN, "2.2",
        "peak learning rate; several are a sweep; alone: 3e-4:1, by half-decades"),
    NUMBER(d, INT, "64", 2, 65536, "3.2.3", "width C of the model (channels)"),
    NUMBER(layers, INT, "2", 1, MAX_LAYERS, "3.2.3", "depth L"),
    NUMBER(heads, INT, "4", 1, 4096, "3.2.3", "attention heads NH of size HS = C/NH"),
    NUMBER(T, INT, "32", 1, 65536, "2.1", "sequence length, tokens"),
    NUMBER(batch, INT, "16", 1, 65536, "app.", "batch size B, sequences per step"),
    NUMBER(steps, INT, "1000", 0, 1e9, "app.", "training steps"),
    FLAG_IN(warmup_text, warmup, TEXT, "5%", NULL, 0, 0, "N | P%", THE_RUN, "3.2.1",
        "linear warm-up, in steps or as a share of them"),
    NUMBER(min_lr, REAL, "1e-5", 0, ANY, "2.1",
        "learning rate at the last step, the end of the cosine"),
    NUMBER(beta1, REAL, "0.9", 0, BELOW_1, "2.1", "AdamW's decay of the first moment"),
    NUMBER(beta2, REAL, "0.95", 0, BELOW_1, "app.", "AdamW's decay of the second moment"),
    NUMBER(eps, REAL, "1e-8", 1e-30, ANY, "3.4", "AdamW's epsilon"),
    NUMBER(clip, REAL, "1", 0, ANY, "app.", "largest global norm of the gradient; 0: no clipping"),
    NUMBER(wd, REAL, "1e-4", 0, ANY, "3.2.2", "weight decay"),
    NUMBER(wd_independent, INT, "1", 0, 1, "3.2.2",
        "1: decay by wd * lr_t/lr_peak; 0: by wd * lr_t, as PyTorch does"),
    NUMBER(qk_norm, INT, "1", 0, 1, "3.1.1",
        "LayerNorm on every query and key: attention logits stay small"),
    NUMBER(z_loss, REAL, "1e-4", 0, ANY, "3.1.2",
        "weight of log(Z)^2 in the loss: output logits stay log-probabilities"),
    NUMBER(bf16_logits, INT, "0", 0, 1, "3.1.2",
        "1: round the output logits to bfloat16, as train_gpt_cu always does in bf16"),
    FLAG(mu_param, CHOICE, "off", NULL, 0, 3, "off simple intermediate full", THE_RUN, "3.2.4",
        "muParam: the best learning rate stays the same across widths"),
    NUMBER(base_d, INT, "64", 1, 65536, "3.2.4",
        "the width at which muParam is the standard model"),
    NUMBER(seed, INT, "1", 0, 2147483647, "", "of the initial weights and of the batches"),
    FLAG(data, TEXT, "synthetic", NULL, 0, 0, "synthetic | bigram | FILE", THE_RUN, "",
        "an invented language, pairs of tokens, a text file, or .bin token shards (a glob)"),
    FLAG(val, TEXT, "", NULL, 0, 0, "FILE", THE_RUN, "",
        "validation file; default: the last tenth of -data"),
    NUMBER(vocab, INT, "0", 0, 65536, "",
        "vocabulary V; 0: 256 for text (bytes), 4096 for bigram, 50257 for .bin"),
    NUMBER(eval_tokens, INT, "16384", 1, 2147483647, "",
        "tokens over which the validation loss is the mean"),
    NUMBER(eval_every, INT, "250", 0, 1e9, "",
        "steps between validations; 0: at the start and the end only"),
    NUMBER(log_every, INT, "10", 1, 1e9, "", "steps between rows of log.csv"),
    NUMBER(checkpoint_every, INT, "0", 0, 1e9, "",
        "steps between checkpoints; 0: at the end only"),
    FLAG(micro_batch, INT, "0", NULL, 0, 65536, NULL, THE_MACHINE, "",
        "train_gpt_cu: sequences at a time, to save memory; 0: the whole batch"),
    FLAG(resume, INT, "0", "1", 0, 1, NULL, THE_COMMAND, "", "go on from the checkpoint in -out"),
    FLAG(sample, INT, "0", "200", 0, 1e9, NULL, THE_COMMAND, "",
        "write this many tokens from the model saved in -out"),
    FLAG(temperature, REAL, "1", NULL, 0, ANY, NULL, THE_COMMAND, "",
        "of sampling; 0: always the most likely token"),
    FLAG(out, TEXT, "", NULL, 0, 0, "DIR", THE_COMMAND, "",
        "folder of the run; default: runs/, named by the flags that differ from the defaults"),
};
enum { NUM_FLAGS = sizeof(FLAGS) / sizeof(FLAGS[0]) };

// ---------------------------------------------------------------------------
// The model's parameters: one row per kind of tensor. Memory, initial values, the optimizer, the
// log and the checkpoints follow from it.

enum {
    WTE, LN_1, C_ATTN, Q_NORM, K_NORM, ATTN_C_PROJ, LN_2, C_FC, MLP_C_PROJ, LN_F, LM_HEAD, NUM_KINDS
};

typedef enum { ONES, NORMAL, TRUNCATED_NORMAL } Initial;    // both normals have variance 1/cols

typedef struct {
    const char *kind;      // in log.csv
    const char *name;      // in the checkpoint; %d is the layer
    int copies;            // L, 1, or 0 if the model has none
    int rows, cols;        // out x in; a vector has one row
    Initial initial;
    int hidden;            // 1: its fan-in and its fan-out grow with the width
    size_t offset;         // of the first copy, in reals from the start of all parameters
} Parameter;

// Fills the table for this model (V: vocabulary). Returns the number of parameters.
static size_t parameter_table(const Config *cfg, int V, Parameter table[NUM_KINDS]) {
    int C = cfg->d, L = cfg->layers, HS = C / cfg->heads;
    int QK = cfg->qk_norm ? L : 0;                                              // [qk_norm]
    const Parameter rows[NUM_KINDS] = {
        {"wte", "wte.weight", 1, V, C, NORMAL, 0, 0},
        {"ln_1", "h.%d.ln_1.weight", L, 1, C, ONES, 0, 0},
        {"c_attn", "h.%d.attn.c_attn.weight", L, 3 * C, C, TRUNCATED_NORMAL, 1, 0},
        {"q_norm", "h.%d.attn.q_norm.weight", QK, 1, HS, ONES, 0, 0},           // [qk_norm]
        {"k_norm", "h.%d.attn.k_norm.weight", QK, 1, HS, ONES, 0, 0},           // [qk_norm]
        {"attn_c_proj", "h.%d.attn.c_proj.weight", L, C, C, TRUNCATED_NORMAL, 1, 0},
        {"ln_2", "h.%d.ln_2.weight", L, 1, C, ONES, 0, 0},
        {"c_fc", "h.%d.mlp.c_fc.weight", L, 4 * C, C, TRUNCATED_NORMAL, 1, 0},
        {"mlp_c_proj", "h.%d.mlp.c_proj.weight", L, C, 4 * C, TRUNCATED_NORMAL, 1, 0},
        {"ln_f", "ln_f.weight", 1, 1, C, ONES, 0, 0},
        {"lm_head", "lm_head.weight", 1, V, C, TRUNCATED_NORMAL, 0, 0},
    };
    size_t total = 0;
    for (int k = 0; k < NUM_KINDS; k++) {
        table[k] = rows[k];
        table[k].offset = total;
        total += (size_t)rows[k].copies * (size_t)rows[k].rows * (size_t)rows[k].cols;
    }
    return total;
}

// Elements of one copy.
static size_t parameter_size(const Parameter *p) {
    return (size_t)p->rows * (size_t)p->cols;
}

// Initial values (section 2.1 of the paper): embedding N(0, 1/C); matrices truncated at two
// standard deviations and rescaled to variance 1/fan_in; norms 1. Each tensor has a separate random
// stream, so that an intervention does not change the initial values of the other tensors.
static void parameters_init(real *params, const Parameter table[NUM_KINDS], int seed) {
    const double truncated_std = 0.87962566103423978;    // of a standard normal cut at 2
    for (int k = 0; k < NUM_KINDS; k++)
        for (int l = 0; l < table[k].copies; l++) {
            const Parameter *p = &table[k];
            real *out = params + p->offset + (size_t)l * parameter_size(p);
            uint64_t stream = random_stream(~(uint64_t)seed, (uint64_t)k, (uint64_t)l);
            double std = 1 / sqrt(p->cols);
            if (p->initial == TRUNCATED_NORMAL) std /= truncated_std;
            for (size_t i = 0; i < parameter_size(p); i++) {
                double z = random_normal(&stream);
                while (p->initial == TRUNCATED_NORMAL && fabs(z) > 2) z = random_normal(&stream);
                out[i] = (real)(p->initial == ONES ? 1 : std * z);
            }
        }
}

// ---------------------------------------------------------------------------
// The schedule and muParam's factors

// Learning rate at a step, counted from 1: linear warm-up from 0, then a cosine that ends in
// min_lr at the last step (section 2.1).
static double learning_rate(const Config *cfg, int step) {
    double end = fmin(cfg->min_lr, cfg->lr), done = 0;
    if (step < cfg->warmup) return cfg->lr * step / cfg->warmup;                // [warmup]
    if (cfg->steps > cfg->warmup)
        done = (double)(step - cfg->warmup) / (cfg->steps - cfg->warmup);
    return end + (cfg->lr - end) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

// The fraction of each weight that a step subtracts (section 3.2.2).
static double weight_decay(const Config *cfg, int step) {
    double lr = learning_rate(cfg, step);
    return cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr);                 // [wd_independent]
}

// muParam (section 3.2.4), with m = C/base_d. Each factor is 1 at C = base_d: there the model is
// the standard one, bit for bit. simple: hidden matrices learn at lr/m. intermediate: the logits
// are divided by m as well. full: attention's scale is multiplied by sqrt(1/m) as well, which makes
// it sqrt(HS_base)/HS, since the number of heads is the same at both widths.
static double mu_m(const Config *cfg) { return (double)cfg->d / cfg->base_d; }  // [mu_param]
static double mu_lr_scale(const Config *cfg, const Parameter *p) {              // [mu_param
    return cfg->mu_param >= MU_SIMPLE && p->hidden ? 1 / mu_m(cfg) : 1;
}
static double mu_logit_scale(const Config *cfg) {
    return cfg->mu_param >= MU_INTERMEDIATE ? 1 / mu_m(cfg) : 1;
}                                                                               // mu_param]
static double attention_scale(const Config *cfg) {
    double scale = 1 / sqrt((double)cfg->d / cfg->heads);
    if (cfg->mu_param >= MU_FULL) scale *= sqrt(1 / mu_m(cfg));                 // [mu_param]
    return scale;
}

// ---------------------------------------------------------------------------
// Rotary positions (Su et al. 2021)

// At position t the pair (i, i + HS/2) of a head turns by the angle t * 10000^(-2i/HS).
// cosine, sine (T,HS/2).
static void rope_table(real *cosine, real *sine, int T, int HS) {
    for (int t = 0; t < T; t++)
        for (int i = 0; i < HS / 2; i++) {
            double angle = t * pow(10000, -2.0 * i / HS);
            size_t at = (size_t)t * (size_t)(HS / 2) + (size_t)i;
            cosine[at] = (real)cos(angle);
            sine[at] = (real)sin(angle);
        }
}

// ---------------------------------------------------------------------------
// The measurements of a run: the columns of log.csv

// Activations whose RMS over a batch and over the layers is logged. ACT_C_ATTN is q, k and v before
// qk-norm, ACT_ATT the output of attention, ACT_C_FC the MLP before GELU, ACT_RESIDUAL the last
// residual, ACT_LOGITS the logits with muParam's factor.
enum { ACT_WTE, ACT_C_ATTN, ACT_ATT, ACT_C_FC, ACT_RESIDUAL, ACT_LOGITS, NUM_ACTIVATIONS };
static const char *const ACTIVATIONS[NUM_ACTIVATIONS] = {
    "wte", "c_attn", "att", "c_fc", "residual", "logits"
};

typedef struct {
    double train_loss, val_loss;            // nats per token; NAN: not measured at this step
    double grad_norm;                       // of all gradients together, before clipping
    double log_z;                           // the mean of log Z
    // of logged steps only
    double mean_logit;                      // of the output logits, over rows and vocabulary
    double max_attn_logit[MAX_LAYERS];      // the largest |scale q.k| of each layer
    double act_rms[NUM_ACTIVATIONS];
    double grad_rms[NUM_KINDS];             // of the gradient, before clipping
    double param_rms[NUM_KINDS];
    double update_rms[NUM_KINDS];           // of AdamW's update without the learning rate
} Stats;

#endif

// gpt.h: what train_gpt.c and train_gpt.cu share of the lesson. Plain C that is also valid C++.
#ifndef GPT_H
#define GPT_H

#include "lib/base.h"    // real, random numbers

// ---------------------------------------------------------------------------
// Flags: everything about a flag stands in its row of the table

enum { MU_OFF, MU_SIMPLE, MU_INTERMEDIATE, MU_FULL };
enum { AUTO, BF16, FP32 };
enum { MAX_LAYERS = 1024, MAX_RUNS = 64, MAX_TEXT = 512 };

typedef struct {
    char lr_text[MAX_TEXT], size[16], warmup_text[16], data[MAX_TEXT], val[MAX_TEXT], out[MAX_TEXT];
    int d, layers, heads, T, batch, steps, wd_independent, qk_norm, mu_param, base_d, seed, vocab;
    int eval_tokens, eval_every, log_every, checkpoint_every, dtype, micro_batch, resume, sample;
    double min_lr, beta1, beta2, eps, clip, wd, z_loss, temperature;
    double lr;       // derived: the peak learning rate of this run, from lr_text
    int warmup;      // derived: steps of warm-up, from warmup_text
} Config;

typedef enum { INT, REAL, TEXT, CHOICE } FlagType;
// What a flag describes. A run's flags name its folder and travel with its checkpoint; how a machine computes the run also
// names the folder, but stays behind: the checkpoint goes on anywhere.
typedef enum { THE_RUN, THE_MACHINE, THE_COMMAND } FlagScope;

typedef struct {
    const char *name;
    FlagType type;
    size_t offset;           // of its field in Config
    const char *initial;     // the default
    const char *bare;        // the value when the flag stands alone; NULL: it needs one
    double least, most;      // of a number
    const char *choices;     // of a CHOICE, by number; for the others, how to write a value
    const char *section;     // of the paper
    FlagScope scope;
    const char *help;
} Flag;

#define FIELD(name) offsetof(Config, name)
#define BELOW_1 (1 - DBL_EPSILON)
#define ANY DBL_MAX
static const Flag FLAGS[] = {
    // name, type, field, default, bare, least, most, choices, section, scope, help
    {"lr", TEXT, FIELD(lr_text), "1e-2", "3e-4:1", 0, 0, "X | X,Y | X:Y", "2.2", THE_RUN, "peak learning rate; several are a sweep; alone: 3e-4:1, by half-decades"},
    {"d", INT, FIELD(d), "64", NULL, 2, 65536, NULL, "3.2.3", THE_RUN, "width C of the model (channels)"},
    {"layers", INT, FIELD(layers), "2", NULL, 1, MAX_LAYERS, NULL, "3.2.3", THE_RUN, "depth L"},
    {"heads", INT, FIELD(heads), "4", NULL, 1, 4096, NULL, "3.2.3", THE_RUN, "attention heads NH of size HS = C/NH"},
    {"size", TEXT, FIELD(size), "", NULL, 0, 0, "10k .. 100m", "2.1", THE_RUN, "a rung of the ladder of sizes: sets -d, -layers and -heads"},
    {"T", INT, FIELD(T), "32", NULL, 1, 65536, NULL, "2.1", THE_RUN, "sequence length, tokens"},
    {"batch", INT, FIELD(batch), "16", NULL, 1, 65536, NULL, "app.", THE_RUN, "batch size B, sequences a step"},
    {"steps", INT, FIELD(steps), "1000", NULL, 0, 1e9, NULL, "app.", THE_RUN, "training steps"},
    {"warmup", TEXT, FIELD(warmup_text), "5%", NULL, 0, 0, "N | P%", "3.2.1", THE_RUN, "linear warm-up, in steps or as a share of them"},
    {"min_lr", REAL, FIELD(min_lr), "1e-5", NULL, 0, ANY, NULL, "2.1", THE_RUN, "learning rate at the last step, the cosine's end"},
    {"beta1", REAL, FIELD(beta1), "0.9", NULL, 0, BELOW_1, NULL, "2.1", THE_RUN, "AdamW's decay of the first moment"},
    {"beta2", REAL, FIELD(beta2), "0.95", NULL, 0, BELOW_1, NULL, "app.", THE_RUN, "AdamW's decay of the second moment"},
    {"eps", REAL, FIELD(eps), "1e-8", NULL, 1e-30, ANY, NULL, "3.4", THE_RUN, "AdamW's epsilon"},
    {"clip", REAL, FIELD(clip), "1", NULL, 0, ANY, NULL, "app.", THE_RUN, "largest global norm of the gradient; 0: no clipping"},
    {"wd", REAL, FIELD(wd), "1e-4", NULL, 0, ANY, NULL, "3.2.2", THE_RUN, "weight decay"},
    {"wd_independent", INT, FIELD(wd_independent), "1", NULL, 0, 1, NULL, "3.2.2", THE_RUN, "1: decay by wd * lr_t/lr_peak; 0: by wd * lr_t, as PyTorch does"},
    {"qk_norm", INT, FIELD(qk_norm), "1", NULL, 0, 1, NULL, "3.1.1", THE_RUN, "LayerNorm on every query and key: attention logits stay small"},
    {"z_loss", REAL, FIELD(z_loss), "1e-4", NULL, 0, ANY, NULL, "3.1.2", THE_RUN, "weight of log(Z)^2 in the loss: output logits stay log-probabilities"},
    {"mu_param", CHOICE, FIELD(mu_param), "off", NULL, 0, 3, "off simple intermediate full", "3.2.4", THE_RUN, "muParam: the best learning rate stays put across widths"},
    {"base_d", INT, FIELD(base_d), "64", NULL, 1, 65536, NULL, "3.2.4", THE_RUN, "the width at which muParam is the standard model"},
    {"seed", INT, FIELD(seed), "1", NULL, 0, 2147483647, NULL, "", THE_RUN, "of the initial weights and of the batches"},
    {"data", TEXT, FIELD(data), "synthetic", NULL, 0, 0, "synthetic | FILE", "", THE_RUN, "an invented language, a text file, or .bin token shards (a glob)"},
    {"val", TEXT, FIELD(val), "", NULL, 0, 0, "FILE", "", THE_RUN, "validation file; default: the last tenth of -data"},
    {"vocab", INT, FIELD(vocab), "0", NULL, 0, 65536, NULL, "", THE_RUN, "vocabulary V; 0: 256 for text (bytes), 50257 for .bin"},
    {"eval_tokens", INT, FIELD(eval_tokens), "16384", NULL, 1, 2147483647, NULL, "", THE_RUN, "tokens of the validation part that the loss is the mean of"},
    {"eval_every", INT, FIELD(eval_every), "250", NULL, 0, 1e9, NULL, "", THE_RUN, "steps between validations; 0: at the start and the end only"},
    {"log_every", INT, FIELD(log_every), "10", NULL, 1, 1e9, NULL, "", THE_RUN, "steps between rows of log.csv"},
    {"checkpoint_every", INT, FIELD(checkpoint_every), "0", NULL, 0, 1e9, NULL, "", THE_RUN, "steps between checkpoints; 0: at the end only"},
    {"dtype", CHOICE, FIELD(dtype), "auto", NULL, 0, 2, "auto bf16 fp32", "", THE_MACHINE, "train_gpt_cu: of products and activations; auto: bf16 where the GPU has it"},
    {"micro_batch", INT, FIELD(micro_batch), "0", NULL, 0, 65536, NULL, "", THE_MACHINE, "train_gpt_cu: sequences at a time, to save memory; 0: the whole batch"},
    {"resume", INT, FIELD(resume), "0", "1", 0, 1, NULL, "", THE_COMMAND, "go on from the checkpoint in -out"},
    {"sample", INT, FIELD(sample), "0", "200", 0, 1e9, NULL, "", THE_COMMAND, "write this many tokens from the model saved in -out"},
    {"temperature", REAL, FIELD(temperature), "1", NULL, 0, ANY, NULL, "", THE_COMMAND, "of sampling; 0: always the likeliest token"},
    {"out", TEXT, FIELD(out), "", NULL, 0, 0, "DIR", "", THE_COMMAND, "folder of the run; default: runs/, named by what differs from the defaults"},
};
enum { NUM_FLAGS = sizeof(FLAGS) / sizeof(FLAGS[0]) };

// The ladder of sizes; parameters counted at V = 256.
static const struct { const char *name; int d, layers, heads; } LADDER[] = {
    {"10k", 16, 1, 1}, {"40k", 32, 2, 2}, {"130k", 64, 2, 4}, {"500k", 96, 4, 6}, {"2m", 192, 4, 6},
    {"6m", 256, 8, 8}, {"25m", 448, 10, 8}, {"100m", 768, 14, 12},
};
enum { NUM_RUNGS = sizeof(LADDER) / sizeof(LADDER[0]) };

// ---------------------------------------------------------------------------
// The model's parameters: a row for each kind of tensor, from which allocation, initial values,
// the optimizer, the log and the checkpoint are derived

enum { WTE, LN_1, C_ATTN, Q_NORM, K_NORM, ATTN_C_PROJ, LN_2, C_FC, MLP_C_PROJ, LN_F, LM_HEAD, NUM_KINDS };

typedef enum { ONES, NORMAL, TRUNCATED_NORMAL } Initial;    // the variance of both normals is 1/cols

typedef struct {
    const char *kind;      // in log.csv
    const char *name;      // in the checkpoint; %d is the layer
    int copies;            // L, 1, or 0 where the model has none
    int rows, cols;        // out x in; a vector has one row
    Initial initial;
    int hidden;            // its fan-in and its fan-out grow with the width
    size_t offset;         // of the first copy, in reals from the start of all parameters
} Parameter;

// Fills the table for this model (V: vocabulary); returns the number of parameters.
static size_t parameter_table(const Config *cfg, int V, Parameter table[NUM_KINDS]) {
    int C = cfg->d, L = cfg->layers, HS = C / cfg->heads;
    int QK = cfg->qk_norm ? L : 0;                                                        // [qk_norm]
    const Parameter rows[NUM_KINDS] = {
        {"wte", "wte.weight", 1, V, C, NORMAL, 0, 0},
        {"ln_1", "h.%d.ln_1.weight", L, 1, C, ONES, 0, 0},
        {"c_attn", "h.%d.attn.c_attn.weight", L, 3 * C, C, TRUNCATED_NORMAL, 1, 0},
        {"q_norm", "h.%d.attn.q_norm.weight", QK, 1, HS, ONES, 0, 0},                     // [qk_norm]
        {"k_norm", "h.%d.attn.k_norm.weight", QK, 1, HS, ONES, 0, 0},                     // [qk_norm]
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

static size_t parameter_size(const Parameter *p) { return (size_t)p->rows * (size_t)p->cols; }

// Initial values (section 2.1 of the paper): embedding N(0, 1/C); matrices truncated at two standard
// deviations and rescaled to variance 1/fan_in; norms 1. Every tensor has a stream of its own, so
// that switching an intervention on leaves the values of the others as they are.
static void parameters_init(real *params, const Parameter table[NUM_KINDS], int seed) {
    for (int k = 0; k < NUM_KINDS; k++)
        for (int l = 0; l < table[k].copies; l++) {
            const Parameter *p = &table[k];
            real *out = params + p->offset + (size_t)l * parameter_size(p);
            uint64_t stream = random_stream(~(uint64_t)seed, (uint64_t)k, (uint64_t)l);
            double std = 1 / sqrt(p->cols);
            if (p->initial == TRUNCATED_NORMAL) std /= 0.87962566103423978;    // of a normal cut at 2 sigma
            for (size_t i = 0; i < parameter_size(p); i++) {
                double z = random_normal(&stream);
                while (p->initial == TRUNCATED_NORMAL && fabs(z) > 2) z = random_normal(&stream);
                out[i] = (real)(p->initial == ONES ? 1 : std * z);
            }
        }
}

// ---------------------------------------------------------------------------
// The schedule and muParam's factors

// Learning rate at a step, counted from 1: linear warm-up from 0, then a cosine that ends in min_lr
// at the last step (section 2.1).
static double learning_rate(const Config *cfg, int step) {
    double end = fmin(cfg->min_lr, cfg->lr);
    if (step < cfg->warmup) return cfg->lr * step / cfg->warmup;                          // [warmup]
    double done = cfg->steps > cfg->warmup ? (double)(step - cfg->warmup) / (cfg->steps - cfg->warmup) : 0;
    return end + (cfg->lr - end) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

// The share of a weight that decays at a step (section 3.2.2).
static double weight_decay(const Config *cfg, int step) {
    double lr = learning_rate(cfg, step);
    return cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr);                           // [wd_independent]
}

// muParam (section 3.2.4): each is 1 at d = base_d, so that the model there is the standard one, bit for bit.
// m = C/base_d. simple: a hidden matrix learns at lr/m. intermediate: also logits/m. full: also attention's
// scale is sqrt(HS_base)/HS, which is 1/sqrt(HS) * sqrt(1/m) as the number of heads is the same in both.
static double mu_m(const Config *cfg) { return (double)cfg->d / cfg->base_d; }            // [mu_param]
static double mu_lr_scale(const Config *cfg, const Parameter *p) {                        // [mu_param
    return cfg->mu_param >= MU_SIMPLE && p->hidden ? 1 / mu_m(cfg) : 1;
}
static double mu_logit_scale(const Config *cfg) {
    return cfg->mu_param >= MU_INTERMEDIATE ? 1 / mu_m(cfg) : 1;
}                                                                                         // mu_param]
static double attention_scale(const Config *cfg) {
    double scale = 1 / sqrt((double)cfg->d / cfg->heads);
    if (cfg->mu_param >= MU_FULL) scale *= sqrt(1 / mu_m(cfg));                           // [mu_param]
    return scale;
}

// Rotary positions (Su et al. 2021): at position t the pair (i, i + HS/2) of a head turns by the angle
// t * 10000^(-2i/HS). cosine, sine (T,HS/2).
static void rope_table(real *cosine, real *sine, int T, int HS) {
    for (int t = 0; t < T; t++)
        for (int i = 0; i < HS / 2; i++) {
            double angle = t * pow(10000, -2.0 * i / HS);
            size_t at = (size_t)t * (size_t)(HS / 2) + (size_t)i;
            cosine[at] = (real)cos(angle);
            sine[at] = (real)sin(angle);
        }
}


// Activations whose RMS over a batch, and over the layers, is logged: the embedding, q k v before qk-norm, attention's
// output, the MLP before GELU, the last residual, the logits with muParam's factor.
enum { ACT_WTE, ACT_C_ATTN, ACT_ATT, ACT_C_FC, ACT_RESIDUAL, ACT_LOGITS, NUM_ACTIVATIONS };
static const char *const ACTIVATIONS[NUM_ACTIVATIONS] = {"wte", "c_attn", "att", "c_fc", "residual", "logits"};

typedef struct {           // what a step knows (NAN: not known), then what only a logged step knows
    double train_loss, val_loss, grad_norm, log_z;
    double max_attn_logit[MAX_LAYERS], act_rms[NUM_ACTIVATIONS], grad_rms[NUM_KINDS], param_rms[NUM_KINDS], update_rms[NUM_KINDS];
} Stats;

#endif

// gpt.h: the part of the lesson that train_gpt.c and train_gpt.cu share. The flags and their
// defaults; the parameters, muParam's factors and the initial values; the learning rate and the
// weight decay; the angles of RoPE.
#ifndef GPT_H
#define GPT_H

#include "lib/base.h"    // real, random_stream, random_normal, MAX_TEXT

// ---------------------------------------------------------------------------
// Flags. A row of the table says everything about a flag: the parser, -h, the checks, the folder's
// name and the columns of summary.csv all follow from it.

enum { QK_NORM_OFF, QK_NORM_HEADS, QK_NORM_MODEL };       // -qk_norm
enum { MU_OFF, MU_SIMPLE, MU_INTERMEDIATE, MU_FULL };    // -mu_param
enum { SCALE_SQRT, SCALE_D_H };                          // -scale
enum { ATTENTION_SOFTMAX, ATTENTION_RELU2 };             // -attention
enum { OPTIMIZER_ADAMW, OPTIMIZER_MUON };                // -optimizer
enum { SCHEDULE_COSINE, SCHEDULE_CONSTANT, SCHEDULE_WSD };    // -schedule
enum { MAX_LAYERS = 1024 };

typedef struct {    // the values of the flags, described in the table below
    // the model
    int d, layers, heads, T, vocab;
    int qk_norm, mu_param, base_d, scale, attention, gate, peri_ln;
    // training
    int batch, steps, seed, schedule, optimizer;
    char lr_text[MAX_TEXT], warmup_text[MAX_TEXT];    // -lr and -warmup as given
    double lr;                                        // the peak learning rate, from lr_text
    int warmup;                                       // steps of warm-up, from warmup_text
    double min_lr, beta1, beta2, eps, clip, wd, z_loss, kappa, attn_cap, qk_clip;
    int wd_independent, cautious, rms_lr, bf16_logits;
    // data, files and commands
    char data[MAX_TEXT], val[MAX_TEXT], init[MAX_TEXT], out[MAX_TEXT];
    int eval_tokens, eval_every, log_every, checkpoint_every;
    int micro_batch;
    int resume, eval, sample;
    char prompt[MAX_TEXT], tokenizer[MAX_TEXT];
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
    const char *section;     // of the paper; later: found since; ours: neither
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
    FLAG_IN(lr_text, lr, TEXT, "1e-2", "3e-4:1", 0, 0, "X X,Y X:Y", THE_RUN, "2.2",
        "peak learning rate, or several: a sweep"),
    NUMBER(d, INT, "64", 2, 65536, "3.2.3", "width C of the model (channels)"),
    NUMBER(layers, INT, "2", 0, MAX_LAYERS, "3.2.3", "depth L; 0: a bigram model"),
    NUMBER(heads, INT, "4", 1, 4096, "3.2.3", "attention heads NH of size HS = C/NH"),
    NUMBER(T, INT, "32", 1, 65536, "2.1", "sequence length, tokens"),
    NUMBER(batch, INT, "16", 1, 65536, "E.9", "batch size B, sequences per step"),
    NUMBER(steps, INT, "1000", 0, 1e9, "E.7", "training steps"),
    FLAG_IN(warmup_text, warmup, TEXT, "5%", NULL, 0, 0, "N P%", THE_RUN, "3.2.1",
        "linear warm-up, steps or a share of them"),
    FLAG(schedule, CHOICE, "cosine", NULL, 0, 2, "cosine constant wsd", THE_RUN, "ours",
        "after warm-up; wsd: a late decay"),
    FLAG(optimizer, CHOICE, "adamw", NULL, 0, 1, "adamw muon", THE_RUN, "later",
        "muon: orthogonal steps of hidden matrices"),
    NUMBER(min_lr, REAL, "1e-5", 0, ANY, "2.1", "learning rate at the end of cosine and wsd"),
    NUMBER(beta1, REAL, "0.9", 0, BELOW_1, "2.1", "AdamW's decay of the first moment"),
    NUMBER(beta2, REAL, "0.95", 0, BELOW_1, "ours", "AdamW's decay of the second moment"),
    NUMBER(eps, REAL, "1e-8", 1e-30, ANY, "3.4", "AdamW's epsilon"),
    NUMBER(clip, REAL, "1", 0, ANY, "ours", "largest norm of the gradient; 0: no limit"),
    NUMBER(wd, REAL, "1e-4", 0, ANY, "3.2.2", "weight decay"),
    NUMBER(wd_independent, INT, "1", 0, 1, "3.2.2", "wd times lr_t/lr_peak; 0: lr_t, as PyTorch"),
    NUMBER(cautious, INT, "0", 0, 1, "later", "1: decay only where the update agrees"),
    NUMBER(rms_lr, INT, "0", 0, 1, "E.14", "1: lr times the tensor's RMS, >= 1e-3"),
    FLAG(qk_norm, CHOICE, "1", NULL, 0, 2, "0 1 model", THE_RUN, "3.1.1",
        "LayerNorm on q and k by head; model: all C"),
    NUMBER(kappa, REAL, "0", 0, ANY, "3.3", "> 0: scores near kappa; 0: any size"),
    NUMBER(attn_cap, REAL, "0", 0, 1e4, "later", "> 0: scores become cap tanh(score / cap)"),
    NUMBER(qk_clip, REAL, "0", 0, ANY, "later", "> 0: shrinks q, k of a head above this"),
    NUMBER(gate, INT, "0", 0, 1, "later", "1: attention's output times sigmoid(x W)"),
    NUMBER(peri_ln, INT, "0", 0, 1, "later", "1: LayerNorm after each sublayer, too"),
    NUMBER(z_loss, REAL, "1e-4", 0, ANY, "3.1.2", "weight of log(Z)^2 in the loss"),
    NUMBER(bf16_logits, INT, "0", 0, 1, "3.1.2", "1: round logits to bf16, as train_gpt_cu"),
    FLAG(mu_param, CHOICE, "off", NULL, 0, 3, "off simple intermediate full", THE_RUN, "3.2.4",
        "one best -lr at any d"),
    NUMBER(base_d, INT, "64", 1, 65536, "3.2.4", "muParam's base width"),
    FLAG(scale, CHOICE, "sqrt", NULL, 0, 1, "sqrt d_h", THE_RUN, "E.6",
        "scores: q.k / sqrt(HS); d_h: q.k / HS"),
    FLAG(attention, CHOICE, "softmax", NULL, 0, 1, "softmax relu2", THE_RUN, "E.11",
        "relu2: weights max(0, score)^2/sqrt(T)"),
    NUMBER(seed, INT, "1", 0, 1e9, "", "of the initial weights and of the batches"),
    FLAG(data, TEXT, "synthetic", NULL, 0, 0, "FILE", THE_RUN, "",
        "or bigram, a text, or 'DIR/*.bin'"),
    FLAG(val, TEXT, "", NULL, 0, 0, "FILE", THE_RUN, "",
        "validation file; else -data's last tenth"),
    FLAG(init, TEXT, "", NULL, 0, 0, "FILE", THE_RUN, "",
        "model.safetensors to take the weights from"),
    NUMBER(vocab, INT, "0", 0, 131072, "", "V; 0: text 256, bigram 4096, GPT-2 50257"),
    NUMBER(eval_tokens, INT, "16384", 1, 1e9, "", "tokens in a validation loss"),
    NUMBER(eval_every, INT, "250", 0, 1e9, "", "steps between validations; 0: start, end"),
    NUMBER(log_every, INT, "10", 1, 1e9, "", "steps between rows of log.csv"),
    NUMBER(checkpoint_every, INT, "0", 0, 1e9, "", "steps between checkpoints; 0: at the end"),
    FLAG(micro_batch, INT, "0", NULL, 0, 65536, NULL, THE_MACHINE, "",
        "train_gpt_cu: sequences at a time; 0: all"),
    FLAG(resume, INT, "0", "1", 0, 1, NULL, THE_COMMAND, "", "go on from the checkpoint in -out"),
    FLAG(eval, INT, "0", "1", 0, 1, NULL, THE_COMMAND, "",
        "loss and perplexity of the model in -out"),
    FLAG(sample, INT, "0", "200", 0, 1e9, NULL, THE_COMMAND, "",
        "tokens to write, by the model in -out"),
    FLAG(prompt, TEXT, "", NULL, 0, 0, "TEXT", THE_COMMAND, "",
        "text (or numbers of tokens) to go on from"),
    FLAG(tokenizer, TEXT, "", NULL, 0, 0, "FILE", THE_COMMAND, "",
        "gpt2_tokenizer.bin: shows tokens as text"),
    FLAG(temperature, REAL, "1", NULL, 0, ANY, NULL, THE_COMMAND, "",
        "of sampling; 0: the most likely token"),
    FLAG(out, TEXT, "", NULL, 0, 0, "DIR", THE_COMMAND, "",
        "folder; default: runs/, named by the flags"),
};
enum { NUM_FLAGS = sizeof(FLAGS) / sizeof(FLAGS[0]) };

// ---------------------------------------------------------------------------
// The model's parameters: one row per kind of tensor. Memory, initial values, the optimizer, the
// log and the checkpoints follow from it.

enum {
    WTE, LN_1, C_ATTN, Q_NORM, K_NORM, GATE, ATTN_C_PROJ, POST_1, LN_2, C_FC, MLP_C_PROJ, POST_2,
    LN_F, LM_HEAD, NUM_KINDS
};

// A tensor's role decides its initial values, and whether muParam scales its learning rate.
typedef enum { NORM, EMBEDDING, LINEAR } Role;

typedef struct {
    const char *kind;      // in log.csv
    const char *name;      // in the checkpoint; %d is the layer
    int copies;            // L, 1, or 0 if the model has none
    int rows, cols;        // out x in; a vector has one row
    Role role;
    int stream;            // of random numbers, for the initial values
    size_t offset;         // of the first copy, in reals from the start of all parameters
} Parameter;

// The number of values that qk-norm normalizes together: a head's or, with -qk_norm model (section
// E.8), all C of q or of k
static int qk_norm_over(const Config *cfg) {                                    // [qk_norm
    return cfg->qk_norm == QK_NORM_MODEL ? cfg->d : cfg->d / cfg->heads;
}                                                                               // qk_norm]

// Fills the table for this model (V: vocabulary). Returns the number of parameters.
static size_t parameter_table(const Config *cfg, int V, Parameter table[NUM_KINDS]) {
    int C = cfg->d, L = cfg->layers, over = qk_norm_over(cfg);
    int QK = cfg->qk_norm ? L : 0;                                              // [qk_norm]
    const Parameter rows[NUM_KINDS] = {
        {"wte", "wte.weight", 1, V, C, EMBEDDING, 0, 0},
        {"ln_1", "h.%d.ln_1.weight", L, 1, C, NORM, 1, 0},
        {"c_attn", "h.%d.attn.c_attn.weight", L, 3 * C, C, LINEAR, 2, 0},
        {"q_norm", "h.%d.attn.q_norm.weight", QK, 1, over, NORM, 3, 0},         // [qk_norm]
        {"k_norm", "h.%d.attn.k_norm.weight", QK, 1, over, NORM, 4, 0},         // [qk_norm]
        {"gate", "h.%d.attn.gate.weight", cfg->gate * L, C, C, LINEAR, 11, 0},  // [gate]
        {"attn_c_proj", "h.%d.attn.c_proj.weight", L, C, C, LINEAR, 5, 0},
        {"post_1", "h.%d.post_1.weight", cfg->peri_ln * L, 1, C, NORM, 12, 0},  // [peri_ln]
        {"ln_2", "h.%d.ln_2.weight", L, 1, C, NORM, 6, 0},
        {"c_fc", "h.%d.mlp.c_fc.weight", L, 4 * C, C, LINEAR, 7, 0},
        {"mlp_c_proj", "h.%d.mlp.c_proj.weight", L, C, 4 * C, LINEAR, 8, 0},
        {"post_2", "h.%d.post_2.weight", cfg->peri_ln * L, 1, C, NORM, 13, 0},  // [peri_ln]
        {"ln_f", "ln_f.weight", 1, 1, C, NORM, 9, 0},
        {"lm_head", "lm_head.weight", 1, V, C, LINEAR, 10, 0},
    };
    size_t total = 0;
    for (int k = 0; k < NUM_KINDS; k++) {
        table[k] = rows[k];
        table[k].offset = total;
        total += (size_t)rows[k].copies * (size_t)rows[k].rows * (size_t)rows[k].cols;
    }
    return total;
}

// Whether Muon trains this kind: the matrices inside the layers. AdamW trains the others.
static int uses_muon(const Config *cfg, const Parameter *table, int k) {        // [optimizer
    return cfg->optimizer == OPTIMIZER_MUON && table[k].role == LINEAR && k != LM_HEAD;
}                                                                               // optimizer]

// Elements of one copy.
static size_t parameter_size(const Parameter *p) {
    return (size_t)p->rows * (size_t)p->cols;
}

// muParam (section 3.2.4) scales with m = C/base_d, which is the fan-in of every linear layer over
// its fan-in at the width base_d:
//   (i)   a linear layer, the head included, learns at lr/m (with Muon too, which no paper says)
//   (ii)  the head's initial standard deviation is sqrt(base_d)/C, not 1/sqrt(C)
//   (iii) attention's scale is 1/HS, not 1/sqrt(HS)
//   (iv)  the weights of the queries start at 0
// simple is (i), intermediate (i) and (ii), full all four. m is 1 at C = base_d: there simple and
// intermediate are the standard model, bit for bit.
static double mu_m(const Config *cfg) { return (double)cfg->d / cfg->base_d; }  // [mu_param]
static double mu_lr_scale(const Config *cfg, const Parameter *p) {              // [mu_param
    return cfg->mu_param >= MU_SIMPLE && p->role == LINEAR ? 1 / mu_m(cfg) : 1;
}                                                                               // mu_param]

// The scale of attention's scores
static double attention_scale(const Config *cfg) {
    double HS = (double)cfg->d / cfg->heads, scale = 1 / sqrt(HS);
    if (cfg->scale == SCALE_D_H) scale = 1 / HS;                                // [scale]
    if (cfg->mu_param >= MU_FULL) scale = 1 / HS;                               // [mu_param]
    return scale;
}

// The factor of the squares in -attention relu2 (section E.11): 1/sqrt(T), with the T of training
// also where a sample has fewer tokens; 0 with softmax
static double attention_relu2(const Config *cfg) {                              // [attention
    return cfg->attention == ATTENTION_RELU2 ? 1 / sqrt((double)cfg->T) : 0;
}                                                                               // attention]

// Initial values (section 2.1 of the paper): embedding N(0, 1/C); linear layers truncated at two
// standard deviations and rescaled to variance 1/fan_in; norms 1. Each tensor has a separate random
// stream, so that an intervention does not change the initial values of the other tensors.
static void parameters_init(real *params, const Parameter table[NUM_KINDS], const Config *cfg) {
    const double truncated_std = 0.87962566103423978;    // of a standard normal cut at 2
    for (int k = 0; k < NUM_KINDS; k++)
        for (int l = 0; l < table[k].copies; l++) {
            const Parameter *p = &table[k];
            real *out = params + p->offset + (size_t)l * parameter_size(p);
            uint64_t stream = random_stream(~(uint64_t)cfg->seed, (uint64_t)p->stream, (uint64_t)l);
            double std = 1 / sqrt((double)p->cols);
            if (p->role == LINEAR) std /= truncated_std;
            if (k == LM_HEAD && cfg->mu_param >= MU_INTERMEDIATE)               // [mu_param
                std /= sqrt(mu_m(cfg));                                         // mu_param]
            for (size_t i = 0; i < parameter_size(p); i++) {
                double z = random_normal(&stream);
                while (p->role == LINEAR && fabs(z) > 2) z = random_normal(&stream);
                out[i] = (real)(p->role == NORM ? 1 : std * z);
            }
            // the queries are the first C rows of c_attn (3C,C)
            if (k == C_ATTN && cfg->mu_param >= MU_FULL)                        // [mu_param
                memset(out, 0, parameter_size(p) / 3 * sizeof(real));           // mu_param]
        }
}

// ---------------------------------------------------------------------------
// The schedule

// Learning rate at a step, counted from 1: linear warm-up from 0, then a cosine that ends in
// min_lr at the last step (section 2.1). -schedule has two others. constant stays at the peak; wsd,
// warm-up, stable, decay, leaves it in the last fifth of the steps, on a line to min_lr (Hu et al.
// 2024, MiniCPM; Haegele et al. 2024).
static double learning_rate(const Config *cfg, int step) {
    double end = fmin(cfg->min_lr, cfg->lr), done = 0;
    if (step < cfg->warmup) return cfg->lr * step / cfg->warmup;                // [warmup]
    if (cfg->schedule == SCHEDULE_CONSTANT) return cfg->lr;                     // [schedule
    if (cfg->schedule == SCHEDULE_WSD) {
        double left = cfg->steps - step;
        double fifth = fmin(cfg->steps / 5.0, cfg->steps - cfg->warmup);
        return left < fifth ? end + (cfg->lr - end) * left / fifth : cfg->lr;
    }                                                                           // schedule]
    if (cfg->steps > cfg->warmup)
        done = (double)(step - cfg->warmup) / (cfg->steps - cfg->warmup);
    return end + (cfg->lr - end) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}

// The fraction of each weight that a step subtracts (section 3.2.2).
static double weight_decay(const Config *cfg, int step) {
    double lr = learning_rate(cfg, step);
    return cfg->wd * (cfg->wd_independent ? lr / cfg->lr : lr);                 // [wd_independent]
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

#endif

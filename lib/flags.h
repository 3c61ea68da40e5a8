// lib/flags.h: from a command line to a checked Config, and from a Config back to text.
#ifndef FLAGS_H
#define FLAGS_H

#include "../gpt.h"    // Config, FLAGS; die, format_text

// Whether the program rounds output logits to bfloat16 whatever -bf16_logits says: train_gpt_cu,
// unless it is built in fp32. How the names of its folders begin.
#if !defined(__CUDACC__) && !defined(CUDA_EMU)
enum { BF16_LOGITS = 0 };
#define FOLDER_PREFIX ""
#elif defined(FP32)
enum { BF16_LOGITS = 0 };
#define FOLDER_PREFIX "cu_fp32_"
#else
enum { BF16_LOGITS = 1 };
#define FOLDER_PREFIX "cu_"
#endif

enum { MAX_RUNS = 64, MAX_RATE = 16 };    // learning rates of a sweep; bytes of one as text

// Dies because of a wrong value. file: the checkpoint that holds it; NULL: the command line.
#define flag_fail(file, format, ...) \
    die((file) ? FAILED : USAGE, "%s%s" format, (file) ? (file) : "", (file) ? ": " : "", \
        __VA_ARGS__)

// ---------------------------------------------------------------------------
// One value

// The flag's value as text. flag_set reads it back to the same bits.
static void flag_text(const Config *cfg, const Flag *flag, char out[MAX_TEXT]) {
    const void *field = (const char *)cfg + flag->offset;
    const char *word = flag->choices;
    if (flag->type == TEXT) strcpy(out, (const char *)field);
    else if (flag->type == INT) snprintf(out, MAX_TEXT, "%d", *(const int *)field);
    else if (flag->type == REAL) {
        double value = *(const double *)field;
        snprintf(out, MAX_TEXT, "%g", value);
        if (strtod(out, NULL) != value) snprintf(out, MAX_TEXT, "%.17g", value);
    } else {
        for (int i = *(const int *)field; i > 0; i--) word = strchr(word, ' ') + 1;
        snprintf(out, MAX_TEXT, "%.*s", (int)strcspn(word, " "), word);
    }
}

// The values that the flag accepts, for -h and for messages.
static void flag_range(const Flag *flag, char out[64]) {
    if (flag->choices) snprintf(out, 64, "%s", flag->choices);
    else if (flag->most == ANY) snprintf(out, 64, ">= %g", flag->least);
    else if (flag->most == BELOW_1) snprintf(out, 64, "%g <= x < 1", flag->least);
    else snprintf(out, 64, "%g .. %g", flag->least, flag->most);
}

// The text as a number; NAN unless all of it is one.
static double parse_number(const char *text) {
    char *end;
    double value = strtod(text, &end);
    return end == text || *end || isspace((unsigned char)*text) ? NAN : value;
}

// Sets the flag's field of cfg from text. Dies if the flag does not accept it. file: the checkpoint
// that holds the text; NULL: the command line.
static void flag_set(Config *cfg, const Flag *flag, const char *text, const char *file) {
    static const char *const kinds[4] = {"a whole number, ", "a number, ", "", "one of: "};
    void *field = (char *)cfg + flag->offset;
    char range[64], word[MAX_TEXT];
    double value = flag->type == CHOICE ? NAN : parse_number(text);
    if (flag->type == TEXT) {
        size_t length = 0;
        while (text[length] && !iscntrl((unsigned char)text[length])) length++;
        if (text[length] || length >= MAX_TEXT)
            flag_fail(file, "-%s: the value is longer than %d characters or contains a control "
                      "character, such as a newline", flag->name, MAX_TEXT - 1);
        strcpy((char *)field, text);
        return;
    }
    for (int i = 0; flag->type == CHOICE && i <= flag->most; i++) {
        *(int *)field = i;
        flag_text(cfg, flag, word);
        if (!strcmp(word, text)) value = i;
    }
    flag_range(flag, range);
    if (!(value >= flag->least && value <= flag->most) ||
        (flag->type != REAL && value != floor(value)))
        flag_fail(file, "-%s: '%s' is not accepted; expected %s%s", flag->name, text,
                  kinds[flag->type], range);
    if (flag->type == REAL) *(double *)field = value;
    else *(int *)field = (int)value;
}

// ---------------------------------------------------------------------------
// Names

// Other names of our flags, in nanoGPT, llm.c, PyTorch and elsewhere. NULL: we do not have it.
static const struct { const char *theirs, *ours; } OTHER_NAMES[] = {
    {"learning_rate", "lr"}, {"lr_max", "lr"}, {"max_lr", "lr"},
    {"max_iters", "steps"}, {"max_steps", "steps"}, {"num_iterations", "steps"},
    {"n_embd", "d"}, {"d_model", "d"}, {"hidden_size", "d"}, {"channels", "d"},
    {"n_layer", "layers"}, {"num_layers", "layers"}, {"layer", "layers"}, {"depth", "layers"},
    {"n_head", "heads"}, {"num_heads", "heads"}, {"head", "heads"},
    {"block_size", "T"}, {"seq_len", "T"}, {"sequence_length", "T"}, {"context_length", "T"},
    {"batch_size", "batch"}, {"vocab_size", "vocab"}, {"weight_decay", "wd"}, {"epsilon", "eps"},
    {"warmup_iters", "warmup"}, {"warmup_steps", "warmup"}, {"warmup_iterations", "warmup"},
    {"grad_clip", "clip"}, {"max_grad_norm", "clip"}, {"eval_interval", "eval_every"},
    {"eval_iters", "eval_tokens"}, {"log_interval", "log_every"}, {"dataset", "data"},
    {"input_bin", "data"}, {"out_dir", "out"}, {"output_dir", "out"},
    {"start", "prompt"}, {"max_new_tokens", "sample"}, {"eval_only", "eval"}, {"init_from", "init"},
    {"lr_scheduler_type", "schedule"}, {"lr_decay_style", "schedule"},
    {"dropout", NULL}, {"bias", NULL},
};
enum { NUM_OTHER_NAMES = sizeof(OTHER_NAMES) / sizeof(OTHER_NAMES[0]) };

// Whether two names differ in nothing but capitals, '-' and '_'.
static bool same_name(const char *a, const char *b) {
    for (;; a++, b++) {
        a += strspn(a, "-_");
        b += strspn(b, "-_");
        if (tolower((unsigned char)*a) != tolower((unsigned char)*b)) return false;
        if (!*a) return true;
    }
}

// The row of a flag in FLAGS. Dies on any other name, and names the flag that is meant if it can.
static int flag_index(const char *name) {
    for (int i = 0; i < NUM_FLAGS; i++)
        if (!strcmp(FLAGS[i].name, name)) return i;
    for (int i = 0; i < NUM_FLAGS; i++)
        if (same_name(FLAGS[i].name, name))
            die(USAGE, "-%s is not a flag; did you mean -%s? (-h lists all)", name, FLAGS[i].name);
    for (int i = 0; i < NUM_OTHER_NAMES; i++) {
        if (!same_name(OTHER_NAMES[i].theirs, name)) continue;
        if (!OTHER_NAMES[i].ours)
            die(USAGE, "-%s is not a flag: this model does not have it", name);
        die(USAGE, "-%s is not a flag; it is called -%s here (-h lists all)", name,
            OTHER_NAMES[i].ours);
    }
    die(USAGE, "-%s is not a flag (-h lists all)", name);
}

// The table of flags, as -h prints it.
static void print_help(void) {
    printf("usage: %s [-flag value ...]\n\n"
           "Trains a small GPT and shows when, and why, training is unstable. The paper is\n"
           "\"Small-scale proxies for large-scale Transformer training instabilities\",\n"
           "arXiv 2309.14322; beside each flag stands its section (later: found since).\n\n"
           "  %s -lr               sweep the learning rate, 3e-4:1 by half-decades\n"
           "  %s -lr -qk_norm 0    the same without qk-norm: the instability\n"
           "  %s -lr 1e-2          train once\n\n", program, program, program, program);
    printf("%-19s %-5s %-10s  %s\n", "flag and default", "paper", "range", "meaning");
    for (int i = 0; i < NUM_FLAGS; i++) {
        const Flag *flag = &FLAGS[i];
        char name[64], range[64];
        snprintf(name, sizeof name, "-%s %s", flag->name, flag->initial);
        flag_range(flag, range);
        printf("%-19s %-5s %-10s  %s\n", name, flag->section, range, flag->help);
    }
}

// ---------------------------------------------------------------------------
// The learning rates of -lr

// Appends a learning rate, the first `length` bytes of text. Dies if it is not one, if it is given
// twice, or if there are more than MAX_RUNS.
static void rate_add(char out[MAX_RUNS][MAX_RATE], int *count, const char *text, int length,
                     const char *file) {
    if (*count == MAX_RUNS) flag_fail(file, "-lr: more than %d learning rates", MAX_RUNS);
    char *rate = out[*count];
    snprintf(rate, MAX_RATE, "%.*s", length, text);
    double value = parse_number(rate);
    if (length >= MAX_RATE || !(value > 0 && value <= 1e30))
        flag_fail(file, "-lr: '%.*s' is not a learning rate; expected a number above 0 of at most "
                  "%d characters, several (1e-3,1e-2) or a range (3e-4:3e-1)", length, text,
                  MAX_RATE - 1);
    for (int i = 0; i < *count; i++)
        if (strtod(out[i], NULL) == value)
            flag_fail(file, "-lr: '%s' is given twice; each run needs its own folder", rate);
    ++*count;
}

// The learning rates that -lr names, as texts: "X", "X,Y,Z", or "X:Y" for X, the half-decades
// between (1, 3, 10, 30 ...), and Y. Returns their number.
// file: the checkpoint that holds the flag; NULL: the command line.
static int learning_rates(const char *spec, char out[MAX_RUNS][MAX_RATE], const char *file) {
    int count = 0;
    const char *colon = strchr(spec, ':');
    if (!colon) {
        int length;
        for (const char *item = spec; item; item = item[length] ? item + length + 1 : NULL) {
            length = (int)strcspn(item, ",");
            rate_add(out, &count, item, length, file);
        }
        return count;
    }
    double first = strtod(spec, NULL), last = strtod(colon + 1, NULL);
    if (!(first > 0 && first < last && last <= 1e30))
        flag_fail(file, "-lr: '%s' is not a range; expected two numbers above 0, the smaller "
                  "first, like 3e-4:3e-1", spec);
    rate_add(out, &count, spec, (int)(colon - spec), file);
    for (int half = 2 * (int)floor(log10(first)); half <= 2 * (int)ceil(log10(last)); half++) {
        int odd = half & 1, exponent = (half - odd) / 2;
        char text[MAX_RATE];
        snprintf(text, sizeof text, exponent ? "%de%d" : "%d", odd ? 3 : 1, exponent);
        double value = strtod(text, NULL);
        if (value > first * (1 + 1e-9) && value < last * (1 - 1e-9))
            rate_add(out, &count, text, (int)strlen(text), file);
    }
    rate_add(out, &count, colon + 1, (int)strlen(colon + 1), file);
    return count;
}

// ---------------------------------------------------------------------------
// All flags

// Fills the fields that follow from others, and checks the flags that depend on each other.
// file: the checkpoint that the flags are from; NULL: the command line.
static void config_finish(Config *cfg, const char *file) {
    char *end;
    cfg->lr = strtod(cfg->lr_text, NULL);
    double warmup = strtod(cfg->warmup_text, &end);
    bool a_number = end != cfg->warmup_text, a_share = a_number && !strcmp(end, "%");
    bool in_range = warmup >= 0 && warmup <= (a_share ? 100 : cfg->steps);
    if (a_share) warmup = floor(warmup / 100 * cfg->steps + 0.5);
    if (!a_number || (*end && !a_share) || !in_range || warmup != floor(warmup))
        flag_fail(file, "-warmup: '%s' is not a length of warm-up; expected steps from 0 to %d, "
                  "or a share from 0%% to 100%%", cfg->warmup_text, cfg->steps);
    cfg->warmup = (int)warmup;
    int sequences = cfg->micro_batch ? cfg->micro_batch : cfg->batch;
    if ((double)sequences * cfg->T * cfg->heads > INT32_MAX)    // an int counts the rows of a layer
        flag_fail(file, "-batch: %d sequences of %d tokens with %d heads are too many; "
                  "expected a product below 2^31", sequences, cfg->T, cfg->heads);
    if (cfg->d % cfg->heads)
        flag_fail(file, "-heads: %d heads do not divide -d %d", cfg->heads, cfg->d);
    int head_size = cfg->d / cfg->heads;
    if (head_size % 2)
        flag_fail(file, "-heads: the head size %d/%d = %d is odd; RoPE turns pairs and needs an "
                  "even one", cfg->d, cfg->heads, head_size);
    if (cfg->kappa > 0 && cfg->qk_norm)
        flag_fail(file, "-kappa %g: qk-norm fixes the size of q and k already; add -qk_norm 0",
                  cfg->kappa);
    if (cfg->qk_clip > 0 && (cfg->qk_norm || cfg->kappa > 0))
        flag_fail(file, "-qk_clip %g: %s gives q and k their size, whatever their weights are; "
                  "leave -qk_clip out, or add %s", cfg->qk_clip,
                  cfg->qk_norm ? "qk-norm" : "-kappa", cfg->qk_norm ? "-qk_norm 0" : "-kappa 0");
    const struct { const char *flag; double value; } sizes[] = {
        {"kappa", cfg->kappa}, {"attn_cap", cfg->attn_cap}, {"qk_clip", cfg->qk_clip},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)    // a float would take it for 0
        if (sizes[i].value > 0 && sizes[i].value < 1e-30)
            flag_fail(file, "-%s %g: expected 0, or at least 1e-30", sizes[i].flag, sizes[i].value);
}

// Mixes a text and its end into a hash.
static uint64_t hash_text(uint64_t hash, const char *text) {
    do hash = random_stream(hash, (unsigned char)*text, 0);
    while (*text++);
    return hash;
}

// runs/, then the flags that differ from their defaults: runs/lr3e-2_qk_norm0. Two commands, those
// of train_gpt_cu among them, share no folder: a hash of all values ends a name that is cut, or in
// which a path is (it shows its last folder and its file), or that has letters that a file system
// may not tell apart.
static void default_folder(const Config *cfg, char out[MAX_TEXT]) {
    enum { LONGEST = 200 };    // bytes of a name; most file systems take 255
    static char name[NUM_FLAGS * 2 * MAX_TEXT];
    char *end = name;
    uint64_t hash = 0;
    bool exact = true;
    for (int i = 0; i < NUM_FLAGS; i++) {
        const Flag *flag = &FLAGS[i];
        char text[MAX_TEXT], initial[MAX_TEXT];
        Config standard = *cfg;
        flag_set(&standard, flag, flag->initial, NULL);
        flag_text(&standard, flag, initial);    // the default in this form: 1e-08 for 1e-8
        flag_text(cfg, flag, text);
        if (flag->scope == THE_COMMAND || !strcmp(text, initial)) continue;
        hash = hash_text(hash_text(hash, flag->name), text);
        const char *shown = text;
        if (flag->choices && !strcmp(flag->choices, "FILE")) {
            exact &= !text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789.-")];
            shown += strlen(text);
            for (int slashes = 0; shown > text; shown--)
                if (shown[-1] == '/' && slashes++) break;
        }
        end += sprintf(end, "%s%s", end > name ? "_" : "", flag->name);
        for (; *shown; shown++)
            *end++ = isalnum((unsigned char)*shown) || strchr("._+,-", *shown) ? *shown : '-';
    }
    if (end == name) end += sprintf(end, "default");
    exact &= end - name <= LONGEST;
    snprintf(out, MAX_TEXT, "runs/" FOLDER_PREFIX "%.*s",
             (int)fmin((double)(end - name), LONGEST), name);
    if (!exact) sprintf(out + strlen(out), "_%08" PRIx32, (uint32_t)hash);
}

static bool is_flag(const char *word) {    // a negative number is not
    return word[0] == '-' && isalpha((unsigned char)word[1]);
}

// Sets cfg to the defaults and then to the flags given. given: each flag's text, NULL if the
// command line does not have it. Dies (USAGE) on anything wrong; -h prints the help and exits.
static void flags_parse(Config *cfg, const char *given[NUM_FLAGS], int argc, char **argv) {
    char rates[MAX_RUNS][MAX_RATE], path[MAX_TEXT];
    program = argv[0];
    for (int i = 0; i < NUM_FLAGS; i++) given[i] = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "-help") || !strcmp(argv[i], "--help")) {
            print_help();
            exit(0);
        }
        if (!is_flag(argv[i]))
            die(USAGE, "'%s' is not a flag; flags look like -lr 1e-2 (-h lists all)", argv[i]);
        int flag = flag_index(argv[i] + 1);
        bool bare = i + 1 == argc || is_flag(argv[i + 1]);
        if (bare && !FLAGS[flag].bare) die(USAGE, "-%s needs a value", FLAGS[flag].name);
        given[flag] = bare ? FLAGS[flag].bare : argv[++i];
    }
    memset(cfg, 0, sizeof *cfg);
    for (int i = 0; i < NUM_FLAGS; i++) flag_set(cfg, &FLAGS[i], FLAGS[i].initial, NULL);
    for (int i = 0; i < NUM_FLAGS; i++)
        if (given[i]) flag_set(cfg, &FLAGS[i], given[i], NULL);
    if (!*cfg->out) default_folder(cfg, cfg->out);
    int runs = learning_rates(cfg->lr_text, rates, NULL);
    if (runs > 1 && (cfg->sample || cfg->eval))
        die(USAGE, "-%s: name one learning rate, or the run's folder with -out",
            cfg->sample ? "sample" : "eval");
    if (!!cfg->sample + cfg->eval + cfg->resume > 1)
        die(USAGE, "-sample, -eval and -resume: give one of them, since each is a command");
    if (!cfg->sample && given[flag_index("sample")])    // else a run, perhaps over the model's
        die(USAGE, "-sample 0: would write nothing; give 1 or more, or leave -sample out");
    if (!cfg->sample && (*cfg->prompt || *cfg->tokenizer))
        die(USAGE, "-%s: goes with -sample; add -sample 200",
            *cfg->prompt ? "prompt" : "tokenizer");
    if (runs > 1 && cfg->resume) {
        format_text(path, sizeof path, "%s/lr%s", cfg->out, rates[0]);
        die(USAGE, "-resume: continues a single run, such as -resume -out %s; sweep.sh continues "
            "whole sweeps", shell_word(path));
    }
}

// Says on stderr which of the flags given have no effect beside the others.
static void say_no_effect(const Config *cfg, const char *given[NUM_FLAGS]) {
    bool standard = cfg->mu_param == MU_SIMPLE || cfg->mu_param == MU_INTERMEDIATE;
    bool no_layers = cfg->layers == 0;
    const struct { const char *flag; bool idle; const char *why; } rows[] = {
        {"mu_param", standard && cfg->d == cfg->base_d, "where -d is -base_d"},
        {"base_d", cfg->mu_param == MU_OFF, "without -mu_param"},
        {"scale", cfg->mu_param == MU_FULL, "with -mu_param full, which has d_h"},
        {"wd_independent", cfg->wd == 0, "with -wd 0"},
        {"cautious", cfg->wd == 0, "with -wd 0"},
        {"min_lr", cfg->warmup == cfg->steps, "where warm-up takes all steps"},
        {"min_lr", cfg->schedule == SCHEDULE_CONSTANT, "with -schedule constant"},
        {"bf16_logits", BF16_LOGITS, "in this program, which always rounds them"},
        {"micro_batch", cfg->micro_batch >= cfg->batch, "unless it is less than -batch"},
        {"heads", no_layers, "without layers"},
        {"qk_norm", no_layers, "without layers"},
        {"kappa", no_layers, "without layers"},
        {"scale", no_layers, "without layers"},
        {"attention", no_layers, "without layers"},
        {"attn_cap", no_layers, "without layers"},
        {"qk_clip", no_layers, "without layers"},
        {"gate", no_layers, "without layers"},
        {"peri_ln", no_layers, "without layers"},
        {"optimizer", no_layers, "without layers"},
        {"temperature", !cfg->sample, "without -sample"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].idle && given[flag_index(rows[i].flag)])
            fprintf(stderr, "%s: note: -%s has no effect %s\n", program_name(), rows[i].flag,
                    rows[i].why);
}

#endif

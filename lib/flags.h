// lib/flags.h: flags, from their text to a checked Config and back.
#ifndef FLAGS_H
#define FLAGS_H

#include "../gpt.h"    // Config, the table of flags

// The flag's value as text that flag_set reads back to the same bits.
static void flag_text(const Config *cfg, const Flag *flag, char out[MAX_TEXT]) {
    const char *field = (const char *)cfg + flag->offset;
    int number;
    double value;
    switch (flag->type) {
    case TEXT: strcpy(out, field); break;
    case INT: memcpy(&number, field, sizeof number); snprintf(out, MAX_TEXT, "%d", number); break;
    case REAL:
        memcpy(&value, field, sizeof value);
        snprintf(out, MAX_TEXT, "%g", value);
        if (strtod(out, NULL) != value) snprintf(out, MAX_TEXT, "%.17g", value);
        break;
    case CHOICE: {
        const char *word = flag->choices;
        memcpy(&number, field, sizeof number);
        while (number--) word = strchr(word, ' ') + 1;
        snprintf(out, MAX_TEXT, "%.*s", (int)strcspn(word, " "), word);
    } }
}

static void flag_range(const Flag *flag, char out[64]) {
    if (flag->choices) snprintf(out, 64, "%s", flag->choices);
    else if (flag->most == ANY) snprintf(out, 64, ">= %g", flag->least);
    else if (flag->most == BELOW_1) snprintf(out, 64, "%g <= x < 1", flag->least);
    else snprintf(out, 64, "%.10g .. %.10g", flag->least, flag->most);
}

// Sets the flag's field from text; dies with the flag, the text and the range if it is not a value of it.
// file: the checkpoint that the text stands in; NULL: the command line.
static void flag_set(Config *cfg, const Flag *flag, const char *text, const char *file) {
    char range[64], where[MAX_TEXT], *end, *field = (char *)cfg + flag->offset;
    int status = file ? FAILED : USAGE;
    flag_range(flag, range);
    format_text(where, sizeof where, "%s%s-%s", file ? file : "", file ? ": " : "", flag->name);
    if (flag->type == TEXT) {
        size_t room = MAX_TEXT;
        if (flag->offset == FIELD(size)) room = sizeof cfg->size;
        if (flag->offset == FIELD(warmup_text)) room = sizeof cfg->warmup_text;
        if (strlen(text) >= room || strchr(text, '\n')) die(status, "%s: the value is longer than %zu characters or has a newline", where, room - 1);
        strcpy(field, text);
    } else if (flag->type == CHOICE) {
        int i = 0;
        size_t length = strlen(text);
        for (const char *word = flag->choices; ; word = strchr(word, ' ') + 1, i++) {
            if (length && strcspn(word, " ") == length && !strncmp(word, text, length)) break;
            if (!strchr(word, ' ')) die(status, "%s: '%s' is none of: %s", where, text, range);
        }
        memcpy(field, &i, sizeof i);
    } else {
        double value = strtod(text, &end);
        if (end == text || *end || isspace((unsigned char)*text)) die(status, "%s: '%s' is not a number; expected %s", where, text, range);
        if (!(value >= flag->least && value <= flag->most)) die(status, "%s: %s is out of range; expected %s", where, text, range);
        int number = (int)(flag->type == INT ? value : 0);
        if (flag->type == INT && number != value) die(status, "%s: %s is not a whole number; expected %s", where, text, range);
        memcpy(field, flag->type == INT ? (void *)&number : (void *)&value, flag->type == INT ? sizeof number : sizeof value);
    }
}

// Levenshtein's distance between two short words, for the suggestion of a name that is nearly a flag's.
static int edit_distance(const char *a, const char *b) {
    int row[32], n = (int)strlen(b);
    if (n > 30) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; *a; a++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = diagonal + (*a != b[j - 1]), skip = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < skip ? change : skip;
        }
    }
    return row[n];
}

static int flag_index(const char *name) {
    int nearest = 0;
    for (int i = 0; i < NUM_FLAGS; i++) {
        if (!strcmp(FLAGS[i].name, name)) return i;
        if (edit_distance(FLAGS[i].name, name) < edit_distance(FLAGS[nearest].name, name)) nearest = i;
    }
    die(USAGE, "-%s is not a flag; did you mean -%s? (-h lists all)", name, FLAGS[nearest].name);
}

static void print_help(const char *program) {
    printf("usage: %s [-flag value ...]\n\n"
           "Trains a small GPT and shows when, and why, training is unstable. Sections are of\n"
           "\"Small-scale proxies for large-scale Transformer training instabilities\", arXiv 2309.14322.\n\n"
           "  %s -lr               sweep the learning rate\n"
           "  %s -lr -qk_norm 0    the same without qk-norm: the instability\n"
           "  %s -lr 1e-2          train once\n\n"
           "%-17s %-10s %-29s %-8s %s\n", program, program, program, program, "flag", "default", "range", "section", "");
    for (int i = 0; i < NUM_FLAGS; i++) {
        char range[64];
        flag_range(&FLAGS[i], range);
        printf("-%-16s %-10s %-29s %-8s %s\n", FLAGS[i].name, *FLAGS[i].initial ? FLAGS[i].initial : "-", range, FLAGS[i].section, FLAGS[i].help);
    }
    printf("\nsizes (-size):");
    for (int i = 0; i < NUM_RUNGS; i++) printf("%s %s (d %d, layers %d, heads %d)", i ? "," : "", LADDER[i].name, LADDER[i].d, LADDER[i].layers, LADDER[i].heads);
    printf("\n");
}

// The learning rates that -lr names, as texts: "X", "X,Y,Z", or "X:Y" with the half-decades 1 and 3 between.
static int learning_rates(const char *spec, char out[MAX_RUNS][16], const char *file) {
    char copy[MAX_TEXT], where[MAX_TEXT], *rest = copy, *item;
    int count = 0, status = file ? FAILED : USAGE;
    double ends[2] = {0, 0};
    format_text(copy, sizeof copy, "%s", spec);
    format_text(where, sizeof where, "%s%s", file ? file : "", file ? ": " : "");
    char *colon = strchr(copy, ':');
    if (colon) *colon = ',';
    while ((item = rest)) {
        if ((rest = strchr(item, ','))) *rest++ = 0;
        char *end;
        double value = strtod(item, &end);
        if (end == item || *end || !(value > 0) || value > 1e30 || strlen(item) > 15 || isspace((unsigned char)*item))
            die(status, "%s-lr: '%s' is not a learning rate; expected a number above 0, several (1e-3,1e-2) or a range (3e-4:3e-1)", where, item);
        if (count == MAX_RUNS) die(status, "%s-lr: more than %d learning rates", where, MAX_RUNS);
        for (int i = 0; i < count && !colon; i++)
            if (strtod(out[i], NULL) == value) die(status, "%s-lr: '%s' stands twice; each needs a folder of its own", where, item);
        if (count < 2) ends[count] = value;
        strcpy(out[count++], item);
    }
    if (!colon) return count;
    if (count != 2 || ends[0] >= ends[1]) die(status, "%s-lr: '%s' is not a range; expected two numbers, the smaller first, like 3e-4:3e-1", where, spec);
    char last[16];
    strcpy(last, out[1]);
    count = 1;
    for (int i = 2 * (int)floor(log10(ends[0])); i <= 2 * (int)ceil(log10(ends[1])); i++) {
        char text[16];
        int exponent = (i - (i & 1)) / 2;
        snprintf(text, sizeof text, exponent ? "%de%d" : "%d", i & 1 ? 3 : 1, exponent);
        double value = strtod(text, NULL);
        if (value <= ends[0] * (1 + 1e-9) || value >= ends[1] * (1 - 1e-9)) continue;
        if (count == MAX_RUNS - 1) die(status, "%s-lr: '%s' has more than %d half-decades", where, spec, MAX_RUNS);
        strcpy(out[count++], text);
    }
    strcpy(out[count++], last);
    return count;
}

// ---------------------------------------------------------------------------
// From the command line to a checked Config

// Sets what follows from the flags and checks what no single row of the table can.
static void config_finish(Config *cfg, const char *file) {
    char where[MAX_TEXT], *end;
    int status = file ? FAILED : USAGE;
    format_text(where, sizeof where, "%s%s", file ? file : "", file ? ": " : "");
    cfg->lr = strtod(cfg->lr_text, NULL);
    double warmup = strtod(cfg->warmup_text, &end);
    int share = end != cfg->warmup_text && !strcmp(end, "%");
    int in_range = warmup >= 0 && warmup <= (share ? 100 : cfg->steps);
    if (share) warmup = floor(warmup / 100 * cfg->steps + 0.5);
    if (end == cfg->warmup_text || (*end && !share) || !in_range || warmup != floor(warmup))
        die(status, "%s-warmup: '%s' is not a length of warm-up; expected steps from 0 to %d, or a share from 0%% to 100%%", where, cfg->warmup_text, cfg->steps);
    cfg->warmup = (int)warmup;
    if ((double)(cfg->micro_batch ? cfg->micro_batch : cfg->batch) * cfg->T * cfg->heads > INT32_MAX)    // an int counts the rows of a layer
        die(status, "%s-batch: %d sequences of %d tokens with %d heads are too many; expected a product below 2^31", where, cfg->batch, cfg->T, cfg->heads);
    if (cfg->d % cfg->heads) die(status, "%s-heads: %d heads do not divide -d %d", where, cfg->heads, cfg->d);
    if (cfg->d / cfg->heads % 2)
        die(status, "%s-heads: the head size %d/%d = %d is odd; RoPE turns pairs and needs an even one", where, cfg->d, cfg->heads, cfg->d / cfg->heads);
}

static void size_set(Config *cfg, const char *name) {
    for (int i = 0; i < NUM_RUNGS; i++)
        if (!strcmp(LADDER[i].name, name)) {
            cfg->d = LADDER[i].d, cfg->layers = LADDER[i].layers, cfg->heads = LADDER[i].heads;
            return;
        }
    char names[128] = "";
    for (int i = 0; i < NUM_RUNGS; i++) strcat(strcat(names, " "), LADDER[i].name);
    die(USAGE, "-size: '%s' is none of:%s", name, names);
}

// runs/, then what differs from the defaults: runs/lr3e-2_qk_norm0
static void default_folder(const Config *cfg, char out[MAX_TEXT]) {
    char name[MAX_TEXT] = "", text[MAX_TEXT];
    for (int i = 0; i < NUM_FLAGS; i++) {
        flag_text(cfg, &FLAGS[i], text);
        if (FLAGS[i].scope == THE_COMMAND || !strcmp(text, FLAGS[i].initial)) continue;
        Config standard = *cfg;
        char initial[MAX_TEXT];
        flag_set(&standard, &FLAGS[i], FLAGS[i].initial, NULL);    // 1e-08 is the default 1e-8
        flag_text(&standard, &FLAGS[i], initial);
        if (!strcmp(text, initial)) continue;
        const char *base = strrchr(text, '/') ? strrchr(text, '/') + 1 : text;
        size_t used = strlen(name);
        format_text(name + used, sizeof name - used, "%s%s%s", used ? "_" : "", FLAGS[i].name, base);
    }
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c)) *c = '-';
    format_text(out, MAX_TEXT, "runs/%s", *name ? name : "default");
}

#endif

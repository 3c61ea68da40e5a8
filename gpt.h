// gpt.h: what train_gpt.c and train_gpt.cu share and neither should repeat: errors, random numbers,
// flags, the table of parameters, the schedule, checkpoints, the run's log, its summary and diagnosis,
// and the sweep over learning rates. Plain C that is also valid C++, so that nvcc compiles the same text.
#ifndef GPT_H
#define GPT_H

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef DOUBLE            // the gradient check compiles everything in double precision
typedef double real;
#else
typedef float real;
#endif

// ---------------------------------------------------------------------------
// Errors: one line that says what, where, and what would be right

enum { FAILED = 1, USAGE = 2 };    // exit status: a run that failed, a command that is wrong

__attribute__((format(printf, 2, 3), noreturn))
static void die(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("train_gpt: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die(FAILED, "cannot allocate %.1f MB; try a smaller -d, -T or -batch", 1e-6 * (double)count * (double)size);
    return memory;
}

// snprintf into an array that must be large enough: a path that does not fit is an error, not a cut.
__attribute__((format(printf, 3, 4)))
static void format_text(char *out, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out, size, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= size) die(USAGE, "a path or value is longer than %zu characters: %.60s...", size - 1, out);
}

static double now(void) {    // seconds
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---------------------------------------------------------------------------
// Random numbers

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the state is a counter, so any place of the
// stream can be reached at once, and a run resumes without a saved generator.
static uint64_t random_u64(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// An independent stream for each (seed, a, b): for instance (seed, step, row of the batch).
static uint64_t random_stream(uint64_t seed, uint64_t a, uint64_t b) {
    uint64_t state = seed;
    state = random_u64(&state) ^ a;
    state = random_u64(&state) ^ b;
    return random_u64(&state);
}

// An integer in [0, n), n < 2^32: the high half of a 32 x 32 bit product.
static uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(((random_u64(state) >> 32) * n) >> 32);
}

// A real number in [0, 1): the top 53 bits.
static double random_uniform(uint64_t *state) {
    return (double)(random_u64(state) >> 11) * 0x1p-53;
}

// A standard normal number (Box and Muller, 1958).
static double random_normal(uint64_t *state) {
    double u = 1 - random_uniform(state), v = random_uniform(state);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

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
// Files that appear whole or not at all: written beside (path.tmp), synced, renamed

enum { PATH_BYTES = 4096 };

static FILE *atomic_open(const char *path) {
    char temporary[PATH_BYTES];
    format_text(temporary, sizeof temporary, "%s.tmp", path);
    FILE *file = fopen(temporary, "wb");
    if (!file) die(FAILED, "cannot write %s: %s", temporary, strerror(errno));
    return file;
}

static void atomic_fail(const char *path) {
    int reason = errno;
    char temporary[PATH_BYTES];
    format_text(temporary, sizeof temporary, "%s.tmp", path);
    unlink(temporary);
    die(FAILED, "cannot write %s: %s (an older one, if any, is untouched)", path, strerror(reason));
}

// The folder is opened before the rename, so that whatever can fail fails while the old file
// stands, and synced after it, for it holds the new name. Some file systems sync no folder: EINVAL.
static void atomic_close(FILE *file, const char *path) {
    char temporary[PATH_BYTES], folder[PATH_BYTES];
    format_text(temporary, sizeof temporary, "%s.tmp", path);
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (ferror(file) || fflush(file) || fsync(fileno(file)) || fclose(file)) atomic_fail(path);
    int handle = open(folder, O_RDONLY);
    if (handle < 0 || rename(temporary, path)) atomic_fail(path);
    if ((fsync(handle) && errno != EINVAL) || close(handle))
        die(FAILED, "wrote %s, but cannot sync its folder: %s", path, strerror(errno));
}

// mkdir -p. Tries before it looks: another run of the same sweep may make the folder meanwhile.
static void make_folders(const char *path) {
    struct stat info;
    for (size_t n = strspn(path, "/"); path[n]; n += strspn(path + n, "/")) {
        char folder[PATH_BYTES];
        n += strcspn(path + n, "/");
        format_text(folder, sizeof folder, "%.*s", (int)n, path);
        if (mkdir(folder, 0777) && errno != EEXIST) die(FAILED, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    if (stat(path, &info)) die(FAILED, "cannot make the folder %s: %s", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) die(FAILED, "cannot make the folder %s: a file has that name", path);
}

// ---------------------------------------------------------------------------
// Checkpoints: the safetensors format (https://github.com/huggingface/safetensors)
//
//   8 bytes   length of the header, a little-endian integer
//   header    {"__metadata__": {"key": "value", ...},
//              "name": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...}
//             padded with spaces to a multiple of 8; offsets count from the header's end
//   data      the tensors, each byte belonging to exactly one

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little-endian, and this machine is not"
#endif

typedef struct { char name[96]; int rows, cols; real *data; } Tensor;    // rows 0: a vector of cols
typedef struct { char key[32]; char value[1024]; } Metadata;

static const char *const DTYPE = sizeof(real) == 8 ? "F64" : "F32";

static size_t tensor_elements(const Tensor *t) {
    return (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols;
}

static void tensor_shape(char *text, size_t size, const Tensor *t) {
    if (t->rows) snprintf(text, size, "[%d,%d]", t->rows, t->cols);
    else snprintf(text, size, "[%d]", t->cols);
}

static void json_write_string(FILE *file, const char *text) {
    putc('"', file);
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20) fprintf(file, "\\u%04x", *text);
        else fprintf(file, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    }
    putc('"', file);
}

// A write that failed leaves its mark on the FILE, where atomic_close finds it. The header's
// length is written last, when it is known.
static void safetensors_write(const char *path, const Tensor *tensors, int count,
                              const Metadata *meta, int meta_count) {
    FILE *file = atomic_open(path);
    uint64_t length = 0, begin = 0;
    fwrite(&length, sizeof length, 1, file);
    fputs("{\"__metadata__\":{", file);
    for (int i = 0; i < meta_count; i++) {
        if (i) putc(',', file);
        json_write_string(file, meta[i].key);
        putc(':', file);
        json_write_string(file, meta[i].value);
    }
    putc('}', file);
    for (int i = 0; i < count; i++) {
        char shape[48];
        tensor_shape(shape, sizeof shape, &tensors[i]);
        uint64_t end = begin + tensor_elements(&tensors[i]) * sizeof(real);
        putc(',', file);
        json_write_string(file, tensors[i].name);
        fprintf(file, ":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                DTYPE, shape, begin, end);
        begin = end;
    }
    putc('}', file);
    off_t position = ftello(file);
    if (position < 0) atomic_fail(path);
    for (; position % 8; position++) putc(' ', file);
    for (int i = 0; i < count; i++)
        fwrite(tensors[i].data, sizeof(real), tensor_elements(&tensors[i]), file);
    length = (uint64_t)position - sizeof length;
    if (fseeko(file, 0, SEEK_SET)) atomic_fail(path);
    fwrite(&length, sizeof length, 1, file);
    atomic_close(file, path);
}

// The reader trusts nothing. It takes only the JSON that the format needs, so nothing recurses,
// and a NUL ends the header: no rule below accepts one, so none reads past it.
typedef struct { char name[96], dtype[16], shape[176]; uint64_t begin, end; } StoredTensor;
typedef struct {
    const char *path;
    FILE *file;
    char *header, *at;
    uint64_t header_size, data_size;
    StoredTensor *tensors;
    Metadata *meta;    // NULL: not wanted
    int count, meta_count, meta_max;
} Safetensors;

enum { TENSORS_MAX = 32768 };

__attribute__((noreturn))
static void json_fail(const Safetensors *s, const char *what) {
    die(FAILED, "%s is damaged: %s at byte %td of its header", s->path, what, s->at - s->header);
}

static char json_next(Safetensors *s) {
    s->at += strspn(s->at, " \t\r\n");
    return *s->at;
}

static bool json_accept(Safetensors *s, char c) {
    if (json_next(s) != c) return false;
    s->at++;
    return true;
}

static void json_expect(Safetensors *s, char c) {
    char what[] = "no ' '";
    what[4] = c;
    if (!json_accept(s, c)) json_fail(s, what);
}

static void json_string(Safetensors *s, char *text, size_t size) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    size_t n = 0;
    json_expect(s, '"');
    for (; *s->at != '"'; s->at++) {
        char c = *s->at, digits[5] = "";
        if ((unsigned char)c < 0x20) json_fail(s, "a string that does not end");
        if (n + 1 == size) json_fail(s, "a longer string than this program keeps");
        if (c == '\\' && *++s->at == 'u') {    // only ASCII: the official writer escapes nothing else
            if (strspn(s->at + 1, "0123456789abcdefABCDEF") >= 4) memcpy(digits, s->at + 1, 4);
            unsigned long code = strtoul(digits, NULL, 16);
            if (code == 0 || code > 127) json_fail(s, "an escape that is not ASCII");
            c = (char)code;
            s->at += 4;
        } else if (c == '\\') {
            const char *letter = strchr(letters, *s->at);
            if (*s->at == 0 || !letter) json_fail(s, "an unknown escape");
            c = meanings[letter - letters];
        }
        text[n++] = c;
    }
    s->at++;
    text[n] = 0;
}

static int json_numbers(Safetensors *s, uint64_t *numbers, int max) {
    int n = 0;
    json_expect(s, '[');
    if (json_accept(s, ']')) return 0;
    do {
        char c = json_next(s);
        if (n == max || c < '0' || c > '9') json_fail(s, "no whole number, or one too many");
        errno = 0;
        const char *start = s->at;
        numbers[n++] = strtoull(start, &s->at, 10);
        if (errno || (c == '0' && s->at > start + 1)) json_fail(s, "a number out of range");
    } while (json_accept(s, ','));
    json_expect(s, ']');
    return n;
}

static void parse_metadata(Safetensors *s) {
    Metadata pair;
    json_expect(s, '{');
    if (json_accept(s, '}')) return;
    do {
        json_string(s, pair.key, sizeof pair.key);
        json_expect(s, ':');
        json_string(s, pair.value, sizeof pair.value);
        if (!s->meta) continue;
        for (int i = 0; i < s->meta_count; i++)
            if (!strcmp(s->meta[i].key, pair.key)) json_fail(s, "metadata given twice");
        if (s->meta_count == s->meta_max) json_fail(s, "more metadata than this program keeps");
        s->meta[s->meta_count++] = pair;
    } while (json_accept(s, ','));
    json_expect(s, '}');
}

static void parse_tensor(Safetensors *s, StoredTensor *t) {
    int dtype = 0, shape = 0, offsets = 0;    // how often each was given
    uint64_t elements = 1, numbers[8];
    char key[16];
    json_expect(s, '{');
    do {
        json_string(s, key, sizeof key);
        json_expect(s, ':');
        if (!strcmp(key, "dtype")) {
            dtype++;
            json_string(s, t->dtype, sizeof t->dtype);
        } else if (!strcmp(key, "shape")) {
            shape++;
            int rank = json_numbers(s, numbers, 8), n = snprintf(t->shape, sizeof t->shape, "[");
            for (int i = 0; i < rank; elements *= numbers[i++]) {
                if (numbers[i] && elements > UINT64_MAX / sizeof(real) / numbers[i])
                    json_fail(s, "a shape that overflows");
                n += snprintf(t->shape + n, sizeof t->shape - n, i ? ",%" PRIu64 : "%" PRIu64, numbers[i]);
            }
            snprintf(t->shape + n, sizeof t->shape - n, "]");
        } else if (!strcmp(key, "data_offsets")) {
            offsets++;
            if (json_numbers(s, numbers, 2) != 2) json_fail(s, "no two data_offsets");
            t->begin = numbers[0];
            t->end = numbers[1];
        } else json_fail(s, "an unknown field of a tensor");
    } while (json_accept(s, ','));
    json_expect(s, '}');
    if (dtype != 1 || shape != 1 || offsets != 1)
        json_fail(s, "a tensor without just one dtype, shape and data_offsets");
    if (t->begin > t->end) json_fail(s, "data_offsets that end before they begin");
    if (!strcmp(t->dtype, DTYPE) && t->end - t->begin != elements * sizeof(real))
        json_fail(s, "data_offsets that do not fit the shape");
}

static void parse_header(Safetensors *s) {
    uint64_t sum = 0, last = 0;    // the tensors' bytes, and where the last one ends
    bool has_metadata = false;
    json_expect(s, '{');
    if (json_next(s) != '}') do {
        if (s->count == TENSORS_MAX) json_fail(s, "more tensors than this program keeps");
        StoredTensor *t = &s->tensors[s->count];
        json_string(s, t->name, sizeof t->name);
        json_expect(s, ':');
        if (!strcmp(t->name, "__metadata__")) {
            if (has_metadata) json_fail(s, "__metadata__ given twice");
            has_metadata = true;
            parse_metadata(s);
            continue;
        }
        parse_tensor(s, t);
        for (const StoredTensor *other = s->tensors; other < t; other++)
            if (!strcmp(t->name, other->name) || (t->begin < other->end && other->begin < t->end))
                json_fail(s, "a tensor with the name or the bytes of another");
        s->count++;
        sum += t->end - t->begin;
        if (t->end > last) last = t->end;
    } while (json_accept(s, ','));
    json_expect(s, '}');
    json_next(s);
    if (s->at != s->header + s->header_size) json_fail(s, "something after the last '}'");
    if (last != s->data_size || sum != last)    // no overlaps, so an equal sum means no holes
        die(FAILED, "%s is %s: its header says %" PRIu64 " bytes of tensors up to byte %" PRIu64
            ", the file has %" PRIu64, s->path, last > s->data_size ? "truncated" : "damaged",
            sum, last, s->data_size);
}

static Safetensors safetensors_open(const char *path, Metadata *meta, int meta_max) {
    const uint64_t limit = 100000000;    // the format's own, for a header
    struct stat info;                    // looked at first: opening a FIFO waits for its writer
    uint64_t length;
    Safetensors s;
    memset(&s, 0, sizeof s);
    s.path = path;
    s.meta = meta;
    s.meta_max = meta_max;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) die(FAILED, "%s is not a file", path);
    s.file = fopen(path, "rb");
    if (!s.file || fstat(fileno(s.file), &info)) die(FAILED, "cannot read %s: %s", path, strerror(errno));
    if (fread(&length, sizeof length, 1, s.file) != 1 || length > limit)
        die(FAILED, "%s is not a safetensors file: it does not begin with the 8-byte length of a header "
            "(of at most %" PRIu64 " bytes)", path, limit);
    if (length + sizeof length > (uint64_t)info.st_size)
        die(FAILED, "%s is truncated: its header should end at byte %" PRIu64 ", the file at %" PRIu64,
            path, length + (uint64_t)sizeof length, (uint64_t)info.st_size);
    s.header_size = length;
    s.data_size = (uint64_t)info.st_size - sizeof length - length;
    s.header = s.at = (char *)allocate(length + 1, 1);
    s.tensors = (StoredTensor *)allocate(TENSORS_MAX, sizeof *s.tensors);
    if (fread(s.header, 1, length, s.file) != length) die(FAILED, "cannot read the header of %s", path);
    parse_header(&s);
    return s;
}

static void safetensors_close(Safetensors *s) {
    fclose(s->file);
    free(s->header);
    free(s->tensors);
}

static int safetensors_read_metadata(const char *path, Metadata *meta, int max) {
    Safetensors s = safetensors_open(path, meta, max);
    safetensors_close(&s);
    return s.meta_count;
}

#define OTHER_MODEL ": it was made with another -d, -heads, -layers, -vocab or -qk_norm; -resume and -sample take them from it: leave them out"

static void safetensors_read(const char *path, const Tensor *wanted, int count) {
    Safetensors s = safetensors_open(path, NULL, 0);
    for (int i = 0; i < count; i++) {
        const StoredTensor *t = s.tensors, *end = s.tensors + s.count;
        char shape[48];
        tensor_shape(shape, sizeof shape, &wanted[i]);
        while (t < end && strcmp(t->name, wanted[i].name)) t++;
        if (t == end) die(FAILED, "%s has no tensor %s" OTHER_MODEL, path, wanted[i].name);
        if (strcmp(t->dtype, DTYPE)) die(FAILED, "%s: the tensor %s is not of dtype %s", path, t->name, DTYPE);
        if (strcmp(t->shape, shape))
            die(FAILED, "%s: the tensor %s has shape %s, this model's has %s" OTHER_MODEL, path, t->name, t->shape, shape);
        size_t elements = tensor_elements(&wanted[i]);
        if (fseeko(s.file, (off_t)(8 + s.header_size + t->begin), SEEK_SET) ||
            fread(wanted[i].data, sizeof(real), elements, s.file) != elements)
            die(FAILED, "cannot read the tensor %s of %s: %s", t->name, path,
                ferror(s.file) ? strerror(errno) : "the file has become shorter");
    }
    if (s.count != count) die(FAILED, "%s has %d tensors, this model has %d" OTHER_MODEL, path, s.count, count);
    safetensors_close(&s);
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

static void checkpoint_path(const Config *cfg, char out[MAX_TEXT]) { format_text(out, MAX_TEXT, "%s/model.safetensors", cfg->out); }

// The flags saved in the checkpoint that -resume and -sample name, but for those given on the command line.
static void config_load(Config *cfg, const char *given[NUM_FLAGS]) {
    char path[MAX_TEXT], rates[MAX_RUNS][16];
    static Metadata saved[NUM_FLAGS + 16];
    checkpoint_path(cfg, path);
    if (access(path, F_OK)) die(FAILED, "%s: there is no saved model: -out names the folder of a run, or of one run of a sweep (%s/lr1e-2)", path, cfg->out);
    int count = safetensors_read_metadata(path, saved, NUM_FLAGS + 16);
    for (int i = 0; i < NUM_FLAGS; i++) {
        int j = 0;
        if (given[i] || FLAGS[i].scope != THE_RUN) continue;
        while (j < count && strcmp(saved[j].key, FLAGS[i].name)) j++;
        if (j == count) die(FAILED, "%s: no checkpoint of this program: its metadata has no '%s'", path, FLAGS[i].name);
        flag_set(cfg, &FLAGS[i], saved[j].value, path);
    }
    if (learning_rates(cfg->lr_text, rates, path) > 1) die(FAILED, "%s: -lr: '%s' is not one learning rate", path, cfg->lr_text);
    config_finish(cfg, path);
}

// The defaults, then -size or the flags saved in the checkpoint that -resume and -sample name, then the
// flags given. Exits with a message on anything wrong; -h prints the help and exits.
static void config_parse(Config *cfg, int argc, char **argv) {
    const char *given[NUM_FLAGS] = {NULL};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "-help") || !strcmp(argv[i], "--help")) print_help(argv[0]), exit(0);
        if (argv[i][0] != '-' || !isalpha((unsigned char)argv[i][1])) die(USAGE, "'%s' is not a flag; flags look like -lr 1e-2 (-h lists all)", argv[i]);
        int flag = flag_index(argv[i] + 1);
        int stands_alone = i + 1 == argc || (argv[i + 1][0] == '-' && isalpha((unsigned char)argv[i + 1][1]));
        if (stands_alone && !FLAGS[flag].bare) die(USAGE, "-%s needs a value", FLAGS[flag].name);
        given[flag] = stands_alone ? FLAGS[flag].bare : argv[++i];
    }
    memset(cfg, 0, sizeof *cfg);
    for (int i = 0; i < NUM_FLAGS; i++) flag_set(cfg, &FLAGS[i], FLAGS[i].initial, NULL);
    const char *size = given[flag_index("size")];
    if (size) size_set(cfg, size);
    for (int i = 0; i < NUM_FLAGS; i++)
        if (given[i]) flag_set(cfg, &FLAGS[i], given[i], NULL);
    if (!*cfg->out) default_folder(cfg, cfg->out);
    char rates[MAX_RUNS][16];
    int runs = learning_rates(cfg->lr_text, rates, NULL);
    if (cfg->sample && runs > 1) die(USAGE, "-sample: name one learning rate, or the run's folder with -out");
    if (size && (cfg->resume || cfg->sample)) die(USAGE, "-size: a saved model has its own size; leave it out");
    if ((cfg->resume && runs == 1) || cfg->sample) config_load(cfg, given);
    config_finish(cfg, NULL);
}

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

// ---------------------------------------------------------------------------
// Checkpoints: model.safetensors holds the weights, AdamW's moments and what an exact resume needs

typedef struct { int step; double seconds; long log_bytes; uint32_t log_hash; int diverged_step; } State;    // steps done, time spent, log.csv then, 0 or where it diverged

// FNV-1a of a file's bytes (as many as there are), which tells whether a log is the one of a checkpoint; or, from where one
// ended, its continuation: hashing all of a long log at each checkpoint would make the run slower and slower.
static const uint32_t HASH_OF_NOTHING = 2166136261u;
static uint32_t file_hash(const char *path, uint32_t hash, long from, long to) {
    FILE *file = fopen(path, "rb");
    if (file) fseek(file, from, SEEK_SET);
    for (int c; file && from++ < to && (c = getc(file)) != EOF; ) hash = (hash ^ (uint32_t)c) * 16777619u;
    if (file) fclose(file);
    return hash;
}

static int checkpoint_tensors(const Parameter table[NUM_KINDS], real *params, real *m, real *v, Tensor **out) {
    real *groups[3] = {params, m, v};
    static const char *prefix[3] = {"", "adam.m.", "adam.v."};
    int count = 0;
    for (int k = 0; k < NUM_KINDS; k++) count += 3 * table[k].copies;
    *out = (Tensor *)allocate((size_t)count, sizeof(Tensor));
    Tensor *t = *out;
    for (int g = 0; g < 3; g++)
        for (int k = 0; k < NUM_KINDS; k++)
            for (int l = 0; l < table[k].copies; l++, t++) {
                char name[64];
                snprintf(name, sizeof name, table[k].name, l);
                snprintf(t->name, sizeof t->name, "%s%s", prefix[g], name);
                t->rows = table[k].initial == ONES ? 0 : table[k].rows;
                t->cols = table[k].cols;
                t->data = groups[g] + table[k].offset + (size_t)l * parameter_size(&table[k]);
            }
    return count;
}

static void checkpoint_save(const Config *cfg, const Parameter table[NUM_KINDS], real *params, real *m, real *v, const State *state) {
    char path[MAX_TEXT];
    static Metadata meta[NUM_FLAGS + 5];
    int count = 0;
    for (int i = 0; i < NUM_FLAGS; i++) {
        if (FLAGS[i].scope != THE_RUN) continue;
        strcpy(meta[count].key, FLAGS[i].name);
        flag_text(cfg, &FLAGS[i], meta[count++].value);
    }
    strcpy(meta[count].key, "step"), snprintf(meta[count++].value, MAX_TEXT, "%d", state->step);
    strcpy(meta[count].key, "seconds"), snprintf(meta[count++].value, MAX_TEXT, "%.3f", state->seconds);
    strcpy(meta[count].key, "log_bytes"), snprintf(meta[count++].value, MAX_TEXT, "%ld", state->log_bytes);
    strcpy(meta[count].key, "log_hash"), snprintf(meta[count++].value, MAX_TEXT, "%u", state->log_hash);
    strcpy(meta[count].key, "diverged_step"), snprintf(meta[count++].value, MAX_TEXT, "%d", state->diverged_step);
    checkpoint_path(cfg, path);
    Tensor *tensors;
    int tensor_count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_write(path, tensors, tensor_count, meta, count);
    free(tensors);
}

static State checkpoint_load(const Config *cfg, const Parameter table[NUM_KINDS], real *params, real *m, real *v) {
    char path[MAX_TEXT];
    static Metadata meta[NUM_FLAGS + 16];
    static const char *keys[5] = {"step", "seconds", "log_bytes", "log_hash", "diverged_step"};
    static const double most[5] = {2147483647, 1e15, 1e15, 4294967295, 2147483647};
    double values[5] = {-1, -1, -1, -1, -1};
    checkpoint_path(cfg, path);
    int count = safetensors_read_metadata(path, meta, NUM_FLAGS + 16);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 5; j++)
            if (!strcmp(meta[i].key, keys[j])) values[j] = strtod(meta[i].value, NULL);
    for (int j = 0; j < 5; j++)
        if (!(values[j] >= 0 && values[j] <= most[j])) die(FAILED, "%s: no checkpoint of this program: '%s' is missing from its metadata or not a count", path, keys[j]);
    if (values[0] > cfg->steps) die(FAILED, "%s: %.0f steps are done, more than -steps %d", path, values[0], cfg->steps);
    Tensor *tensors;
    int tensor_count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_read(path, tensors, tensor_count);
    free(tensors);
    State state = {(int)values[0], values[1], (long)values[2], (uint32_t)values[3], (int)values[4]};
    return state;
}

// Dies where the checkpoint of a sweep's run was made with other flags: it is neither done nor to be gone on with.
static void checkpoint_check_flags(const Config *cfg) {
    char path[MAX_TEXT], text[MAX_TEXT];
    static Metadata meta[NUM_FLAGS + 16];
    checkpoint_path(cfg, path);
    int count = safetensors_read_metadata(path, meta, NUM_FLAGS + 16);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < NUM_FLAGS; j++) {
            if (FLAGS[j].scope != THE_RUN || strcmp(meta[i].key, FLAGS[j].name)) continue;
            flag_text(cfg, &FLAGS[j], text);
            if (strcmp(text, meta[i].value) && (FLAGS[j].offset != FIELD(vocab) || cfg->vocab))
                die(FAILED, "%s: made with -%s %s, not %s: -resume goes on with a sweep of the same flags", path, FLAGS[j].name, meta[i].value, text);
        }
}

// ---------------------------------------------------------------------------
// Reading CSV: the program derives its summary, its diagnosis and a sweep's table from the files it wrote

typedef struct { int rows, cols; char (*names)[64]; double *values; } Csv;    // an empty or a text cell is NAN

static char *csv_cell(char **rest) {    // the next cell of a line, unquoted in place; NULL at its end
    char *cell = *rest, *out = cell, *in = cell;
    if (!cell) return NULL;
    for (int quoted = 0; *in && (quoted || *in != ','); in++) {
        if (*in == '"' && quoted && in[1] == '"') *out++ = *in++;
        else if (*in == '"') quoted = !quoted;
        else *out++ = *in;
    }
    *rest = *in ? in + 1 : NULL;
    *out = 0;
    return cell;
}

static Csv csv_read(const char *path) {
    Csv csv = {-1, 0, NULL, NULL};    // rows: -1 before the header
    char *line = NULL, *rest, *cell;
    size_t room = 0, capacity = 0;
    FILE *file = fopen(path, "r");
    if (!file) die(FAILED, "%s: %s", path, strerror(errno));
    for (; getline(&line, &room, file) > 0; csv.rows++) {
        line[strcspn(line, "\r\n")] = 0;
        rest = line;
        if (csv.rows < 0) {
            for (char *c = line; *c; c++) csv.cols += *c == ',';
            csv.names = (char (*)[64])allocate((size_t)++csv.cols, 64);
            for (int j = 0; (cell = csv_cell(&rest)) != NULL; j++) snprintf(csv.names[j], 64, "%s", cell);
            continue;
        }
        size_t used = (size_t)csv.rows * (size_t)csv.cols;
        if (used + (size_t)csv.cols > capacity) {
            capacity = 2 * used + (size_t)csv.cols;
            csv.values = (double *)realloc(csv.values, capacity * sizeof(double));
            if (!csv.values) die(FAILED, "%s: no memory to read it", path);
        }
        for (int j = 0; j < csv.cols; j++) {
            char *end;
            cell = csv_cell(&rest);
            double value = cell ? strtod(cell, &end) : 0;
            csv.values[used + (size_t)j] = cell && *cell && !*end ? value : NAN;
        }
    }
    if (ferror(file) || csv.rows < 0) die(FAILED, "%s: cannot be read, or has no header", path);
    fclose(file);
    free(line);
    return csv;
}

static double csv_value(const Csv *csv, int row, const char *name) {    // NAN where there is no such row or column
    for (int j = 0; j < csv->cols; j++)
        if (!strcmp(csv->names[j], name)) return row >= 0 && row < csv->rows ? csv->values[(size_t)row * (size_t)csv->cols + (size_t)j] : NAN;
    return NAN;
}

static void csv_free(Csv *csv) { free(csv->names); free(csv->values); }

static void csv_write_text(FILE *file, const char *text) {
    if (!strpbrk(text, ",\"\n")) { fputs(text, file); return; }
    fputc('"', file);
    for (; *text; text++) { if (*text == '"') fputc('"', file); fputc(*text, file); }
    fputc('"', file);
}

// ---------------------------------------------------------------------------
// A run: its folder, its log, its live line, its summary

// Activations whose RMS over a batch, and over the layers, is logged: the embedding, q k v before qk-norm, attention's
// output, the MLP before GELU, the last residual, the logits with muParam's factor.
enum { ACT_WTE, ACT_C_ATTN, ACT_ATT, ACT_C_FC, ACT_RESIDUAL, ACT_LOGITS, NUM_ACTIVATIONS };
static const char *const ACTIVATIONS[NUM_ACTIVATIONS] = {"wte", "c_attn", "att", "c_fc", "residual", "logits"};

typedef struct {           // what a step knows (NAN: not known), then what only a logged step knows
    double train_loss, val_loss, grad_norm, log_z;
    double max_attn_logit[MAX_LAYERS], act_rms[NUM_ACTIVATIONS], grad_rms[NUM_KINDS], param_rms[NUM_KINDS], update_rms[NUM_KINDS];
} Stats;

typedef enum { WAITING, RUNNING, DONE, BROKEN } RunState;
typedef struct { int step; double loss, seconds_left; RunState state; pid_t sweep; } Progress;    // of a sweep's run, in memory shared with the sweep

typedef struct {
    const Config *cfg;
    const Parameter *table;
    size_t num_parameters;
    double entropy_floor, started, seconds_before, shown;
    int first_step, diverged_step, threads;
    const char *machine;
    FILE *log;
    long log_bytes;        // of log.csv, up to the last checkpoint, and their hash
    uint32_t log_hash;
    Progress *progress;    // NULL: a single run, which shows itself
} Run;

static volatile sig_atomic_t interrupted = 0;
static void on_signal(int number) { interrupted = number; }

static void catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;    // a checkpoint that is being written goes on
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (numbers[i] != SIGHUP || sigaction(SIGHUP, NULL, &old) || old.sa_handler != SIG_IGN)    // nohup ignores it
            sigaction(numbers[i], &action, NULL);
    signal(SIGXFSZ, SIG_IGN);        // a file grown too large is an error of write, not a death
    signal(SIGCHLD, SIG_DFL);        // who started this may have it ignored: then nobody could wait for a sweep's runs
}

static FILE *listener(void) { return interrupted == SIGPIPE ? stderr : stdout; }    // nobody reads a broken pipe

static void path_in(const Config *cfg, const char *file, char out[MAX_TEXT]) { format_text(out, MAX_TEXT, "%s/%s", cfg->out, file); }

__attribute__((unused))    // a GPU has another
static const char *machine_name(void) {    // the processor's name, else the system's word for its kind
    static char name[256];
    struct utsname system;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(name, sizeof name, file)) {
        char *value = strchr(name, ':');
        if (strncmp(name, "model name", 10) || !value) continue;
        value[strcspn(value, "\n")] = 0;
        fclose(file);
        return value + 1 + strspn(value + 1, " \t");
    }
    if (file) fclose(file);
    snprintf(name, sizeof name, "%s", uname(&system) ? "unknown" : system.machine);
    return name;
}

static double number_in(const char *path, const char *name) {    // what stands after this name at the start of a line; else NAN
    double number = NAN;
    char line[128];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && sscanf(line + strlen(name), "%lf", &number) == 1) break;
    if (file) fclose(file);
    return number;
}

// Bytes: what the machine has left, or less where the limit of a control group (a container's, a cluster's job's) or of one
// above it leaves less. A group's page cache does not count: it is given back when memory is needed.
static double available_memory(void) {
    static const struct { const char *mark, *root, *limit, *used; } versions[2] = {
        {"0::", "/sys/fs/cgroup", "memory.max", "anon "}, {":memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss "}};
    double least = 1024 * number_in("/proc/meminfo", "MemAvailable:");
    char line[PATH_BYTES], path[2 * PATH_BYTES];
    FILE *groups = fopen("/proc/self/cgroup", "r");
    while (groups && fgets(line, sizeof line, groups))
        for (int v = 0; v < 2; v++) {
            char *group = strstr(line, versions[v].mark), *end;
            if (!group) continue;
            group += strlen(versions[v].mark);
            group[strcspn(group, "\n")] = 0;
            do {    // from its own group up; a container sees its own as the root
                format_text(path, sizeof path, "%s%s/%s", versions[v].root, group, versions[v].limit);
                double limit = number_in(path, "");
                format_text(path, sizeof path, "%s%s/memory.stat", versions[v].root, group);
                least = fmin(least, limit - number_in(path, versions[v].used));    // fmin ignores NAN: where one of them is not known
                end = strrchr(group, '/');
                if (end) *end = 0;
            } while (end);
        }
    if (groups) fclose(groups);
    return least;
}

// Refuses a model that does not fit before anything is allocated.
static void check_memory(double bytes) {
    double available = available_memory();
    if (bytes > available)
        die(FAILED, "the run needs %.3g GB of memory and %.3g GB are free; try a smaller -d, -layers, -T or -batch", 1e-9 * bytes, 1e-9 * available);
}

// Opens log.csv, new or cut back to the checkpoint's length, and says what will run. The order of the
// columns here is the order in run_log.
static Run run_begin(const Config *cfg, const Parameter *table, size_t num_parameters, double bytes, const State *state, double entropy_floor,
                     const char *machine, int threads, Progress *progress) {
    long log_bytes = state->log_bytes;
    Run run = {cfg, table, num_parameters, entropy_floor, now(), state->seconds, 0, state->step + 1, state->diverged_step, threads, machine,
               NULL, log_bytes, log_bytes ? state->log_hash : HASH_OF_NOTHING, progress};
    char path[MAX_TEXT], old[MAX_TEXT];
    make_folders(cfg->out);
    path_in(cfg, "log.csv", path);
    path_in(cfg, "summary.csv", old);
    if (access(path, F_OK) && !access(old, F_OK)) die(FAILED, "%s: of a sweep, as there is no log.csv beside it: choose another -out", old);
    catch_signals();    // from the first file on a signal ends the run in order
    run.log = fopen(path, log_bytes ? "r+" : "a");
    if (!run.log) die(FAILED, "%s: cannot be written%s: %s", path, log_bytes ? ", and is needed to resume" : "", strerror(errno));
    for (int tries = 0; flock(fileno(run.log), LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK; tries++) {    // what was killed may take a moment to die
        if (tries == 50 || interrupted) die(FAILED, "%s: another process is writing it; wait until that has ended, or choose another -out", path);
        usleep(100000);
    }
    if (log_bytes && file_hash(path, HASH_OF_NOTHING, 0, log_bytes) != run.log_hash)
        die(FAILED, "%s: not the log that the checkpoint was written beside; it is needed to resume", path);
    for (int i = 0; i < (log_bytes ? 1 : 2); i++) {    // a new run leaves none of an old one's files beside its log
        path_in(cfg, i ? "model.safetensors" : "summary.csv", old);
        if (unlink(old) && errno != ENOENT) die(FAILED, "%s: cannot replace it: %s", old, strerror(errno));
    }
    if (ftruncate(fileno(run.log), state->log_bytes) || fseek(run.log, 0, SEEK_END)) die(FAILED, "%s: cannot be cut back: %s", path, strerror(errno));
    if (!state->log_bytes) {
        fprintf(run.log, "step,tokens,lr,train_loss,val_loss,grad_norm,log_z");
        for (int l = 0; l < cfg->layers; l++) fprintf(run.log, ",max_attn_logit_%d", l);
        for (int a = 0; a < NUM_ACTIVATIONS; a++) fprintf(run.log, ",act_rms_%s", ACTIVATIONS[a]);
        static const char *what[3] = {"grad", "param", "update"};
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < NUM_KINDS; k++)
                if (run.table[k].copies) fprintf(run.log, ",%s_rms_%s", what[i], run.table[k].kind);
        fprintf(run.log, ",tokens_per_second\n");
    }
    if (progress) return run;
    printf("%s: %zu parameters, %d layers of width %d, %d heads, on %s, %d thread%s, %.1f MB of memory\n", cfg->out, run.num_parameters, cfg->layers,
           cfg->d, cfg->heads, run.machine, run.threads, run.threads > 1 ? "s" : "", 1e-6 * bytes);
    if (!isnan(run.entropy_floor)) printf("no model can go below a validation loss of %.4f: the entropy of the language\n", run.entropy_floor);
    if (state->step) printf("resuming after step %d\n", state->step);
    return run;
}

static void log_number(FILE *file, double value) {
    if (isnan(value)) fputs(",", file);
    else fprintf(file, ",%.9g", value);
}

static void run_log(Run *run, const Stats *s, int step, int logged) {
    const Config *cfg = run->cfg;
    double tokens = (double)cfg->batch * cfg->T;
    fprintf(run->log, "%d,%.0f", step, step * tokens);
    log_number(run->log, step ? learning_rate(cfg, step) : NAN);
    if (step && isnan(s->train_loss)) fputs(",nan", run->log);    // known, and not a number
    else log_number(run->log, s->train_loss);
    log_number(run->log, s->val_loss);
    log_number(run->log, s->grad_norm);
    log_number(run->log, s->log_z);
    for (int l = 0; l < cfg->layers; l++) log_number(run->log, logged ? s->max_attn_logit[l] : NAN);
    for (int a = 0; a < NUM_ACTIVATIONS; a++) log_number(run->log, logged ? s->act_rms[a] : NAN);
    const double *what[3] = {s->grad_rms, s->param_rms, s->update_rms};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < NUM_KINDS; k++)
            if (run->table[k].copies) log_number(run->log, logged ? what[i][k] : NAN);
    log_number(run->log, step ? tokens * (step - run->first_step + 1) / (now() - run->started) : NAN);
    fputc('\n', run->log);
    if (fflush(run->log) || ferror(run->log)) die(FAILED, "%s/log.csv: cannot be written: %s; the last checkpoint is intact", cfg->out, strerror(errno));
}

static void time_text(double seconds, char out[16]) {
    snprintf(out, 16, seconds < 3600 ? "%d:%02d" : "%dh%02d", (int)(seconds / (seconds < 3600 ? 60 : 3600)), (int)fmod(seconds / (seconds < 3600 ? 1 : 60), 60));
}

// A live line on a terminal, a plain line at each validation; in a sweep, the figures for the sweep's own line.
static void run_show(Run *run, const Stats *s, int step) {
    const Config *cfg = run->cfg;
    double t = now(), seconds = t - run->started, left = step ? seconds / (step - run->first_step + 1) * (cfg->steps - step) : 0;
    if (run->progress) {
        run->progress->step = step, run->progress->loss = step ? s->train_loss : s->val_loss, run->progress->seconds_left = left;
        if (getppid() != run->progress->sweep) interrupted = SIGTERM;    // the sweep was killed
        return;
    }
    int live = isatty(STDOUT_FILENO), kept = !isnan(s->val_loss) || step == cfg->steps || run->diverged_step;
    if (!kept && (!live || t - run->shown < 0.2)) return;
    char text[16];
    time_text(left, text);
    run->shown = t;
    printf("%sstep %*d/%d", live ? "\r\033[K" : "", (int)log10(cfg->steps + 1.0) + 1, step, cfg->steps);
    if (step) printf("  loss %.4f", fabs(s->train_loss));    // fabs: nan, not -nan
    if (!isnan(s->val_loss)) printf("  val %.4f", s->val_loss);
    if (step) printf("  lr %.2e  grad %.3g  %.0f tokens/s  %s left", learning_rate(cfg, step), fabs(s->grad_norm), (step - run->first_step + 1.0) * cfg->batch * cfg->T / seconds, text);
    fputs(kept ? "\n" : "", stdout);
    fflush(stdout);
}

static void run_step(Run *run, const Stats *s, int step, int logged) {
    if (logged || run->diverged_step) run_log(run, s, step, logged);
    run_show(run, s, step);
}

// Step 0: the loss at initialisation, before any update.
static void run_initial(Run *run, Stats *s, double val_loss) {
    s->train_loss = s->grad_norm = s->log_z = NAN;
    s->val_loss = val_loss;
    run_log(run, s, 0, 0);
    run_show(run, s, 0);
    run->started = now();
}

// The state after a step, with log.csv on the disk up to there.
static State run_state(Run *run, int step) {
    long bytes = fflush(run->log) || fsync(fileno(run->log)) ? -1 : ftell(run->log);
    if (bytes < 0) die(FAILED, "%s/log.csv: cannot be written: %s; the last checkpoint is intact", run->cfg->out, strerror(errno));
    char path[MAX_TEXT];
    path_in(run->cfg, "log.csv", path);
    run->log_hash = file_hash(path, run->log_hash, run->log_bytes, bytes);
    run->log_bytes = bytes;
    State state = {step, run->seconds_before + now() - run->started, bytes, run->log_hash, run->diverged_step};
    return state;
}

static double log_extreme(const Csv *log, const char *name, double sign) {    // the largest (1) or least (-1) value of a column
    double best = NAN;
    for (int i = 0; i < log->rows; i++) {
        double x = csv_value(log, i, name);
        if (!isnan(x) && !(sign * x <= sign * best)) best = x;
    }
    return best;
}

static double log_last(const Csv *log, const char *name) {
    for (int i = log->rows - 1; i >= 0; i--)
        if (!isnan(csv_value(log, i, name))) return csv_value(log, i, name);
    return NAN;
}

// summary.csv, one row, derived from log.csv.
static void run_summary(Run *run, int step) {
    const Config *cfg = run->cfg;
    char path[MAX_TEXT], text[MAX_TEXT];
    path_in(cfg, "log.csv", path);
    Csv log = csv_read(path);
    double initial = csv_value(&log, 0, "val_loss"), final = run->diverged_step ? NAN : log_last(&log, "val_loss"), logit = 0;
    for (int l = 0; l < cfg->layers; l++) {
        snprintf(text, sizeof text, "max_attn_logit_%d", l);
        logit = fmax(logit, log_extreme(&log, text, 1));
    }
    size_t embedding = parameter_size(&run->table[WTE]);
    double seconds = run->seconds_before + now() - run->started;
    path_in(cfg, "summary.csv", path);
    FILE *file = atomic_open(path);
    for (int i = 0; i < NUM_FLAGS; i++) fprintf(file, "%s,", FLAGS[i].name);
    fprintf(file, "machine,threads,parameters,parameters_non_embedding,initial_loss,best_loss,final_loss,entropy_floor,diverged,diverged_step,"
                  "max_attn_logit,log_z,grad_norm,seconds,tokens_per_second\n");
    for (int i = 0; i < NUM_FLAGS; i++) {
        flag_text(cfg, &FLAGS[i], text);
        csv_write_text(file, FLAGS[i].scope == THE_COMMAND && FLAGS[i].offset != FIELD(out) ? FLAGS[i].initial : text);
        fputc(',', file);
    }
    csv_write_text(file, run->machine);
    fprintf(file, ",%d,%zu,%zu", run->threads, run->num_parameters, run->num_parameters - embedding);
    log_number(file, initial);
    log_number(file, log_extreme(&log, "val_loss", -1));
    fprintf(file, isnan(final) ? ",nan" : ",%.9g", final);
    log_number(file, run->entropy_floor);
    fprintf(file, ",%d,", !(final < initial));
    if (run->diverged_step) fprintf(file, "%d", run->diverged_step);
    log_number(file, logit);
    log_number(file, log_last(&log, "log_z"));
    log_number(file, log_last(&log, "grad_norm"));
    fprintf(file, ",%.3f,%.0f\n", seconds, (double)step * cfg->batch * cfg->T / fmax(seconds, 1e-9));
    atomic_close(file, path);
    csv_free(&log);
}

// ---------------------------------------------------------------------------
// The diagnosis: what a run that went wrong looks like in its log, and the flag that treats it

static int first_row_past(const Csv *log, const char *name, double limit) {
    for (int i = 0; i < log->rows; i++)
        if (csv_value(log, i, name) > limit) return i;
    return -1;
}

// Prints a line, after the prefix, for each thing that log.csv shows; returns how many.
static int diagnose(const Config *cfg, const char *prefix) {
    enum { LOGIT_LIMIT = 100, LOG_Z_LIMIT = -5 };
    char path[MAX_TEXT], name[64];
    int found = 0, worst_layer = -1;
    double worst = LOGIT_LIMIT;
    path_in(cfg, "log.csv", path);
    Csv log = csv_read(path);
    for (int l = 0; l < cfg->layers; l++) {
        snprintf(name, sizeof name, "max_attn_logit_%d", l);
        double largest = log_extreme(&log, name, 1);
        if (largest > worst) worst = largest, worst_layer = l;
    }
    if (worst_layer >= 0) {
        snprintf(name, sizeof name, "max_attn_logit_%d", worst_layer);
        int row = first_row_past(&log, name, LOGIT_LIMIT);
        printf("%sattention logits grew past %d in layer %d from step %.0f on, up to %.3g: %s\n", prefix, LOGIT_LIMIT, worst_layer,
               csv_value(&log, row, "step"), worst, cfg->qk_norm ? "a lower -lr treats it (-qk_norm is on)" : "-qk_norm 1 treats it");
        found++;
    }
    double lowest = log_extreme(&log, "log_z", -1);
    if (lowest < LOG_Z_LIMIT) {
        printf("%smean log Z fell to %.3g: %s treats it\n", prefix, lowest, cfg->z_loss > 0 ? "a larger -z_loss" : "-z_loss 1e-4");
        found++;
    }
    for (int row = log.rows - 1, j = 0; j < log.cols && row > 0; j++) {
        const char *update = log.names[j];
        if (strncmp(update, "update_rms_", 11)) continue;
        snprintf(name, sizeof name, "grad_rms_%.40s", update + 11);
        double now_rms = csv_value(&log, row, update), most = log_extreme(&log, update, 1), gradient = csv_value(&log, row, name);
        if (!(now_rms < 0.3 * most && gradient < 10 * cfg->eps)) continue;
        printf("%sthe update of %s collapsed to %.2g (RMS, from %.2g) while its gradient's RMS, %.2g, met epsilon %.2g: a smaller -eps treats it\n",
               prefix, update + 11, now_rms, most, gradient, cfg->eps);
        found++;
        break;
    }
    double least = INFINITY;
    for (int i = 0; i < log.rows; i++) {
        double loss = csv_value(&log, i, "train_loss"), step = csv_value(&log, i, "step");
        if (step > cfg->warmup) break;
        least = fmin(least, isnan(loss) ? INFINITY : loss);
        if (!(loss > least + 0.5)) continue;
        printf("%sthe loss spiked from %.2f to %.2f at step %.0f, within warm-up: a longer -warmup or a lower -lr treats it\n", prefix, least, loss, step);
        found++;
        break;
    }
    double last = csv_value(&log, log.rows - 1, "train_loss"), initial = csv_value(&log, 0, "val_loss");
    if (log.rows > 1 && (!isfinite(last) || isinf(csv_value(&log, log.rows - 1, "val_loss")))) printf("%sthe loss was not finite at step %.0f: a lower -lr treats it\n", prefix, csv_value(&log, log.rows - 1, "step")), found++;
    else if (log.rows > 1 && !(log_last(&log, "val_loss") < initial)) printf("%sthe final loss is not below the initial %.3f: a lower -lr treats it\n", prefix, initial), found++;
    csv_free(&log);
    return found;
}

// Ends a run after its last step: finished, diverged, or stopped by a signal. Returns the exit status.
static int run_end(Run *run, int step) {
    const Config *cfg = run->cfg;
    if (fclose(run->log)) die(FAILED, "%s/log.csv: cannot be written: %s", cfg->out, strerror(errno));
    if (interrupted && step < cfg->steps && !run->diverged_step) {
        if (!run->progress) fprintf(listener(), "\nstopped after step %d; go on with: ./train_gpt -resume -out %s\n", step, cfg->out);
        return 128 + interrupted;
    }
    run_summary(run, step);
    if (run->progress) return 0;
    printf("\nwrote log.csv, summary.csv and model.safetensors to %s\n", cfg->out);
    diagnose(cfg, "diagnosis: ");
    return 0;
}

// ---------------------------------------------------------------------------
// The sweep over learning rates

// Section 2.2: the mean over the grid of min(final loss, loss at initialisation) - the best final loss.
// count: of the learning rates in [from, to]; NAN where there is none.
static double lr_sensitivity(const double *lr, const double *loss, int n, double from, double to, int *count) {
    double best = INFINITY, sum = 0;
    *count = 0;
    for (int i = 0; i < n; i++) {
        if (lr[i] < from * (1 - 1e-9) || lr[i] > to * (1 + 1e-9) || isnan(loss[i])) continue;
        best = fmin(best, loss[i]);
        sum += loss[i];
        ++*count;
    }
    return *count ? sum / *count - best : NAN;
}

static void sweep_chart(char lr[MAX_RUNS][16], const double *loss, const double *diverged, int n, double entropy_floor) {
    enum { HEIGHT = 12, WIDTH = 7 };
    double least = INFINITY, most = -INFINITY;
    for (int i = 0; i < n; i++)
        if (!isnan(loss[i])) least = fmin(least, loss[i]), most = fmax(most, loss[i]);
    if (!isfinite(least)) return;
    if (!isnan(entropy_floor)) least = fmin(least, entropy_floor);
    double step = fmax(most - least, 1e-3) / HEIGHT;
    printf("\nfinal loss, nats (x: diverged%s)\n", isnan(entropy_floor) ? "" : "; dots: the entropy of the language");
    for (int row = HEIGHT; row >= 0; row--) {
        printf("%7.3f |", least + row * step);
        int at_floor = !isnan(entropy_floor) && row == (int)floor((entropy_floor - least) / step + 0.5);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < WIDTH; j++)
                putchar(j == WIDTH / 2 && !isnan(loss[i]) && row == (int)floor((loss[i] - least) / step + 0.5) ? diverged[i] ? 'x' : 'o' : at_floor ? '.' : ' ');
        putchar('\n');
    }
    printf("         ");
    for (int i = 0; i < n; i++) {
        int indent = strlen(lr[i]) < WIDTH ? (WIDTH - (int)strlen(lr[i])) / 2 : 0;
        printf("%*s%-*.*s", indent, "", WIDTH - indent, WIDTH - indent, lr[i]);
    }
    printf(" learning rate\n");
}

// Reads the runs' summaries, joins them into DIR/summary.csv, and shows table, chart, sensitivity, diagnosis.
static void sweep_report(const Config *cfg, const Config *runs, const Progress *progress, char lr[MAX_RUNS][16], int n) {
    char path[MAX_TEXT], *line = NULL;
    size_t room = 0;
    double rate[MAX_RUNS], loss[MAX_RUNS], diverged[MAX_RUNS], entropy_floor = NAN;
    path_in(cfg, "summary.csv", path);
    FILE *joined = atomic_open(path);
    printf("\n%9s  %11s  %19s  %8s  %13s  %8s  %8s\n", "LR", "final loss", "max attention logit", "log Z", "gradient norm", "diverged", "seconds");
    for (int i = 0, header = 0; i < n; i++) {
        char from[MAX_TEXT];
        path_in(&runs[i], "summary.csv", from);
        rate[i] = strtod(lr[i], NULL), loss[i] = diverged[i] = NAN;
        FILE *file = progress[i].state == DONE ? fopen(from, "r") : NULL;
        if (!file) { printf("%9s  failed: see the message above\n", lr[i]); continue; }
        for (int row = 0; getline(&line, &room, file) > 0; row++)
            if (row || !header) fputs(line, joined);
        header = 1;
        fclose(file);
        Csv csv = csv_read(from);
        double final = csv_value(&csv, 0, "final_loss"), initial = csv_value(&csv, 0, "initial_loss");
        diverged[i] = csv_value(&csv, 0, "diverged");
        entropy_floor = csv_value(&csv, 0, "entropy_floor");
        loss[i] = final < initial ? final : initial;
        printf("%9s  %11.4f  %19.4g  %8.4g  %13.3g  %8s  %8.1f\n", lr[i], fabs(final), csv_value(&csv, 0, "max_attn_logit"), csv_value(&csv, 0, "log_z"),
               csv_value(&csv, 0, "grad_norm"), diverged[i] ? "yes" : "no", csv_value(&csv, 0, "seconds"));
        csv_free(&csv);
    }
    atomic_close(joined, path);
    free(line);
    sweep_chart(lr, loss, diverged, n, entropy_floor);
    printf("\nLR sensitivity, nats (0: the learning rate does not matter)\n");
    static const char *const from[2] = {"3e-4", "3e-3"};
    for (int g = 0; g < 2; g++) {
        int count;
        double value = lr_sensitivity(rate, loss, n, strtod(from[g], NULL), 0.3, &count);
        if (count < 2) printf("  %s to 3e-1: needs two learning rates of that range\n", from[g]);
        else printf("  %s to 3e-1: %.3f (of %d learning rates)\n", from[g], value, count);
    }
    printf("\nthe runs are in %s\n", cfg->out);
    int found = 0;
    for (int i = 0; i < n; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "%s lr %s: ", found ? "          " : "diagnosis:", lr[i]);
        if (!isnan(loss[i])) found += diagnose(&runs[i], prefix);
    }
    if (!found) printf("diagnosis: nothing went wrong\n");
}

// Trains once for each learning rate, `jobs` at a time, a process of so many threads each; returns the exit status.
// train(cfg, threads, progress) is one run.
static int sweep(const Config *cfg, char lr[MAX_RUNS][16], int n, int jobs, int threads, double bytes, int (*train)(const Config *, int, Progress *)) {
    Config *runs = (Config *)allocate((size_t)n, sizeof(Config));
    pid_t pid[MAX_RUNS];
    Progress *progress = (Progress *)mmap(NULL, sizeof(Progress) * MAX_RUNS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == (Progress *)MAP_FAILED) die(FAILED, "no memory for the sweep: %s", strerror(errno));
    catch_signals();
    char path[MAX_TEXT];
    make_folders(cfg->out);
    path_in(cfg, "log.csv", path);
    if (!access(path, F_OK)) die(FAILED, "%s: of a single run: choose another -out for a sweep", path);
    for (int i = 0; i < n; i++) {
        runs[i] = *cfg;
        progress[i].sweep = getpid();
        strcpy(runs[i].lr_text, lr[i]);
        runs[i].lr = strtod(lr[i], NULL);
        format_text(runs[i].out, MAX_TEXT, "%s/lr%s", cfg->out, lr[i]);
        path_in(&runs[i], "summary.csv", path);
        if (cfg->resume && !access(path, F_OK)) progress[i].state = DONE;
        checkpoint_path(&runs[i], path);
        runs[i].resume = cfg->resume && !access(path, F_OK);
        if (runs[i].resume) checkpoint_check_flags(&runs[i]);
        pid[i] = 0;
    }
    int live = isatty(STDOUT_FILENO), drawn = 0, failed = 0;
    printf("%d learning rates, %d at a time, %d steps each, %.1f MB of memory a run\n", n, jobs, cfg->steps, 1e-6 * bytes);
    for (int running = 0, waiting = 1; running || waiting; ) {
        waiting = 0;
        for (int i = 0; i < n; i++) {
            if (progress[i].state != WAITING) continue;
            if (interrupted || running >= jobs) { waiting = !interrupted; break; }
            fflush(stdout);
            pid[i] = fork();
            if (pid[i] < 0 && running) { waiting = 1; break; }    // too many processes: later
            if (pid[i] < 0) die(FAILED, "cannot start a process: %s", strerror(errno));
            if (!pid[i]) exit(train(&runs[i], threads, &progress[i]));
            progress[i].state = RUNNING;
            running++;
        }
        usleep(50000);
        for (int i = 0; i < n; i++) {
            int status;
            if (progress[i].state != RUNNING) continue;
            if (interrupted) kill(pid[i], SIGTERM);    // Ctrl-C reaches all, a SIGTERM only this process
            if (waitpid(pid[i], &status, WNOHANG) != pid[i]) continue;
            progress[i].state = status ? BROKEN : DONE;
            if (WIFSIGNALED(status)) fprintf(stderr, "train_gpt: the run at -lr %s was killed by signal %d\n", lr[i], WTERMSIG(status));
            failed |= status && !interrupted;
            running--;
            if (!live && !status) printf("lr %-6s done: step %d/%d  loss %.4f\n", lr[i], progress[i].step, cfg->steps, progress[i].loss), fflush(stdout);
        }
        for (int i = 0; live && i < n; i++) {
            static const char *word[4] = {"waiting", "", "done", "stopped"};
            char left[16];
            time_text(progress[i].seconds_left, left);
            if (i == 0 && drawn) printf("\033[%dA", n);
            printf("\r\033[Klr %-6s  step %*d/%d  loss %6.4f  ", lr[i], (int)log10(cfg->steps + 1.0) + 1, progress[i].step, cfg->steps, progress[i].loss);
            printf(progress[i].state == RUNNING ? "%s left\n" : "%s\n", progress[i].state == RUNNING ? left : word[progress[i].state]);
        }
        drawn = 1;
        fflush(stdout);
    }
    if (interrupted) fprintf(listener(), "\nstopped; go on with the same command and -resume\n");
    else sweep_report(cfg, runs, progress, lr, n);
    free(runs);
    return interrupted ? 128 + interrupted : failed ? FAILED : 0;
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

// A token drawn from softmax(logits / temperature) (V); at temperature 0 the likeliest.
static int sample_token(const real *logits, int V, double temperature, uint64_t *random) {
    int best = 0;
    double sum = 0;
    for (int i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    if (temperature == 0) return best;
    for (int i = 0; i < V; i++) sum += exp((logits[i] - logits[best]) / temperature);
    double target = random_uniform(random) * sum;
    for (int i = 0; i < V; i++)
        if ((target -= exp((logits[i] - logits[best]) / temperature)) < 0) return i;
    return best;
}

// Writes -sample tokens, each drawn from the logits that logits_after(model, context, used) gives for the token after the first
// `used` of context: bytes as they are, the tokens of a larger vocabulary as numbers.
static void sample_text(const Config *cfg, const real *(*logits_after)(void *, const int *, int), void *model) {
    int T = cfg->T, V = cfg->vocab, *context = (int *)allocate((size_t)T, sizeof(int)), used = 1;
    uint64_t random = (uint64_t)cfg->seed;
    context[0] = V <= 256 ? '\n' % V : V - 1;    // a text starts with a line; GPT-2's texts with its last token
    for (int i = 0; i < cfg->sample; i++) {
        int token = sample_token(logits_after(model, context, used), V, cfg->temperature / mu_logit_scale(cfg), &random);
        if (V <= 256) putchar(token);
        else printf("%d ", token);
        if (used == T) memmove(context, context + 1, (size_t)(T - 1) * sizeof(int));
        else used++;
        context[used - 1] = token;
    }
    putchar('\n');
    if (fflush(stdout) || ferror(stdout)) die(FAILED, "cannot write the sample: %s", strerror(errno));
    free(context);
}

#endif

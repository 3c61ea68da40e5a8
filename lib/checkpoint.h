// lib/checkpoint.h: model.safetensors. It holds the weights, AdamW's moments and everything that an
// exact resume needs. -resume, -sample and -eval take their flags from it, -init its weights.
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "flags.h"    // flags_parse, flag_set, flag_text, learning_rates, config_finish

// ---------------------------------------------------------------------------
// The safetensors format (https://github.com/huggingface/safetensors)
//
//   8 bytes   length of the header, a little-endian integer
//   header    {"__metadata__": {"key": "value", ...},
//              "name": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...}
//             padded with spaces to a multiple of 8; offsets count from the header's end
//   data      the tensors' bytes, each of which belongs to exactly one tensor

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little-endian, and this machine is not"
#endif

typedef struct {
    char name[96];
    int rank;               // 1: a vector; 2: a matrix
    uint64_t shape[2];
    real *data;
    uint64_t begin, end;    // its data_offsets in a file; end 0: not found yet
} Tensor;

enum { MAX_METADATA = NUM_FLAGS + 16 };

typedef struct {
    int count;
    struct { char key[32], value[MAX_TEXT]; } pair[MAX_METADATA];
} Metadata;

static const char *const DTYPE = sizeof(real) == 8 ? "F64" : "F32";

static uint64_t tensor_bytes(const Tensor *t) {
    return t->shape[0] * (t->rank == 2 ? t->shape[1] : 1) * sizeof(real);
}

// The shape in JSON: [rows,cols] or [length].
static void shape_text(char out[64], int rank, const uint64_t shape[2]) {
    if (rank == 1) snprintf(out, 64, "[%" PRIu64 "]", shape[0]);
    else snprintf(out, 64, "[%" PRIu64 ",%" PRIu64 "]", shape[0], shape[1]);
}

// Adds a key. Returns the room for its value.
static char *metadata_add(Metadata *meta, const char *key) {
    strcpy(meta->pair[meta->count].key, key);
    return meta->pair[meta->count++].value;
}

static const char *metadata_value(const Metadata *meta, const char *key) {    // NULL: not found
    for (int i = 0; i < meta->count; i++)
        if (!strcmp(meta->pair[i].key, key)) return meta->pair[i].value;
    return NULL;
}

// flag_set accepts no control character, so only these two need an escape.
static void json_write_string(FILE *file, const char *text) {
    putc('"', file);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putc('\\', file);
        putc(*text, file);
    }
    putc('"', file);
}

// A failed write sets the FILE's error, which atomic_close checks. The header's length is known
// last, and written last.
static void safetensors_write(const char *path, const Tensor *tensors, int count,
                              const Metadata *meta) {
    FILE *file = atomic_open(path);
    uint64_t length = 0, begin = 0;
    fwrite(&length, sizeof length, 1, file);
    fputs("{\"__metadata__\":{", file);
    for (int i = 0; i < meta->count; i++) {
        if (i) putc(',', file);
        json_write_string(file, meta->pair[i].key);
        putc(':', file);
        json_write_string(file, meta->pair[i].value);
    }
    putc('}', file);
    for (int i = 0; i < count; i++) {
        const Tensor *t = &tensors[i];
        uint64_t end = begin + tensor_bytes(t);
        char shape[64];
        shape_text(shape, t->rank, t->shape);
        fprintf(file, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRIu64
                ",%" PRIu64 "]}", t->name, DTYPE, shape, begin, end);
        begin = end;
    }
    putc('}', file);
    off_t position = ftello(file);
    if (position < 0) atomic_fail(path);
    for (; position % 8; position++) putc(' ', file);
    for (int i = 0; i < count; i++) fwrite(tensors[i].data, 1, tensor_bytes(&tensors[i]), file);
    length = (uint64_t)position - sizeof length;
    if (fseeko(file, 0, SEEK_SET)) atomic_fail(path);
    fwrite(&length, sizeof length, 1, file);
    atomic_close(file, path);
}

// ---------------------------------------------------------------------------
// Reading it. The reader trusts nothing. It accepts only the JSON that the format needs, so nothing
// recurses. A NUL ends the header; no rule accepts one, so none reads past it.

typedef struct {
    const char *path;
    char *header, *at;
    uint64_t data_size;
    Tensor *tensors;    // the wanted ones; NULL: only the metadata is wanted
    int count;
    Metadata *meta;
} Safetensors;

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
    size_t n = 0;
    json_expect(s, '"');
    for (; *s->at != '"'; s->at++) {
        if ((unsigned char)*s->at < 0x20)
            json_fail(s, "a control character, or no end, in a string");
        if (n + 1 == size) json_fail(s, "a string too long for this program");
        if (*s->at == '\\' && !strspn(++s->at, "\"\\/"))
            json_fail(s, "an escape other than \\\", \\\\ and \\/");
        text[n++] = *s->at;
    }
    s->at++;
    text[n] = 0;
}

// A list of one or two numbers. Returns how many.
static int json_numbers(Safetensors *s, uint64_t numbers[2]) {
    int n = 0;
    json_expect(s, '[');
    do {
        char c = json_next(s);
        if (n == 2 || c < '0' || c > '9') json_fail(s, "not a whole number, or a third one");
        errno = 0;
        const char *start = s->at;
        numbers[n++] = strtoull(start, &s->at, 10);
        if (errno || (c == '0' && s->at > start + 1)) json_fail(s, "a number out of range");
    } while (json_accept(s, ','));
    json_expect(s, ']');
    return n;
}

static void parse_metadata(Safetensors *s) {
    char key[sizeof s->meta->pair->key];
    json_expect(s, '{');
    if (json_accept(s, '}')) return;
    do {
        json_string(s, key, sizeof key);
        if (metadata_value(s->meta, key)) json_fail(s, "a metadata key given twice");
        if (s->meta->count == MAX_METADATA) json_fail(s, "too much metadata for this program");
        json_expect(s, ':');
        json_string(s, metadata_add(s->meta, key), MAX_TEXT);
    } while (json_accept(s, ','));
    json_expect(s, '}');
}

#define OTHER_MODEL ": it was saved with another -d, -heads, -layers, -vocab, -qk_norm, -gate or " \
    "-peri_ln; -resume, -sample, -eval and -init read these from the file, so leave them out"

// One tensor's fields. Unless only the metadata is wanted, the tensor must be a wanted one that was
// not found yet, with its dtype and shape, in bytes of the file that no other tensor has.
static void parse_tensor(Safetensors *s, const char *name) {
    uint64_t shape[2] = {0, 0}, place[2] = {0, 0};
    int rank = 0, places = 0;    // numbers in each; 0: not given
    char key[16], dtype[16] = "", theirs[64], ours[64];
    json_expect(s, '{');
    do {
        json_string(s, key, sizeof key);
        json_expect(s, ':');
        if (!strcmp(key, "dtype") && !*dtype) json_string(s, dtype, sizeof dtype);
        else if (!strcmp(key, "shape") && !rank) rank = json_numbers(s, shape);
        else if (!strcmp(key, "data_offsets") && !places) places = json_numbers(s, place);
        else json_fail(s, "an unknown or repeated field of a tensor");
    } while (json_accept(s, ','));
    json_expect(s, '}');
    if (!*dtype || !rank || places != 2 || place[0] > place[1])
        json_fail(s, "a tensor without a dtype, a shape or two data_offsets in order");
    if (!s->tensors) return;
    Tensor *t = NULL;
    for (int i = 0; i < s->count; i++) {
        Tensor *other = &s->tensors[i];
        if (!strcmp(other->name, name)) t = other;
        if (place[0] < other->end && other->begin < place[1])
            json_fail(s, "a tensor with another one's bytes");
    }
    if (!t) die(FAILED, "%s has a tensor that this model does not have" OTHER_MODEL, s->path);
    if (strcmp(dtype, DTYPE))
        die(FAILED, "%s: the tensor %s is not of dtype %s", s->path, name, DTYPE);
    if (rank != t->rank || memcmp(shape, t->shape, sizeof shape)) {
        shape_text(theirs, rank, shape);
        shape_text(ours, t->rank, t->shape);
        die(FAILED, "%s: the tensor %s has shape %s, this model's has %s" OTHER_MODEL, s->path,
            name, theirs, ours);
    }
    if (t->end || place[1] - place[0] != tensor_bytes(t))
        json_fail(s, "a tensor given twice, or data_offsets that do not fit the shape");
    if (place[1] > s->data_size)
        die(FAILED, "%s is truncated: the tensor %s should end at byte %" PRIu64 " of %" PRIu64,
            s->path, name, place[1], s->data_size);
    t->begin = place[0];
    t->end = place[1];
}

static void parse_header(Safetensors *s, const char *end) {
    char name[96];
    json_expect(s, '{');
    do {
        json_string(s, name, sizeof name);
        json_expect(s, ':');
        if (strcmp(name, "__metadata__")) parse_tensor(s, name);
        else if (s->meta->count) json_fail(s, "__metadata__ given twice");
        else parse_metadata(s);
    } while (json_accept(s, ','));
    json_expect(s, '}');
    json_next(s);
    if (s->at != end) json_fail(s, "something after the last '}'");
}

// Reads the metadata and, unless tensors is NULL, these tensors into their memory. Dies unless the
// file has these and no others; only those after the first `needed` may be missing.
static void safetensors_read(const char *path, Tensor *tensors, int count, int needed,
                             Metadata *meta) {
    struct stat info;
    uint64_t length, sum = 0;
    meta->count = 0;
    bool exists = stat(path, &info) == 0;
    if (exists && S_ISDIR(info.st_mode))
        die(FAILED, "%s is a folder: give the model.safetensors in it", path);
    if (exists && !S_ISREG(info.st_mode))    // opening a pipe would wait for its writer
        die(FAILED, "%s is a pipe or a device: give a file, which can be read in any order", path);
    FILE *file = fopen(path, "rb");
    if (!exists || !file) die(FAILED, "cannot read %s: %s", path, strerror(errno));
    uint64_t size = (uint64_t)info.st_size;
    if (fread(&length, sizeof length, 1, file) != 1 || length > size - 8)
        die(FAILED, "%s is truncated, or not a safetensors file: its first 8 bytes should be the "
            "length of a header that follows them", path);
    char *header = (char *)allocate(length + 1, 1);
    if (fread(header, 1, length, file) != length)
        die(FAILED, "cannot read the header of %s", path);
    Safetensors s = {path, header, header, size - 8 - length, tensors, count, meta};
    parse_header(&s, header + length);
    for (int i = 0; i < count; i++) {
        const Tensor *t = &tensors[i];
        if (!t->end && i >= needed) continue;
        if (!t->end) die(FAILED, "%s has no tensor %s" OTHER_MODEL, path, t->name);
        sum += tensor_bytes(t);
        if (fseeko(file, (off_t)(8 + length + t->begin), SEEK_SET) ||
            fread(t->data, 1, tensor_bytes(t), file) != tensor_bytes(t))
            die(FAILED, "cannot read the tensor %s of %s: %s", t->name, path,
                ferror(file) ? strerror(errno) : "the file has become shorter");
    }
    if (tensors && sum != s.data_size)    // nothing overlaps, so equal sums mean no gaps
        die(FAILED, "%s is damaged: its tensors take %" PRIu64 " bytes, it has %" PRIu64, path, sum,
            s.data_size);
    free(header);
    fclose(file);
}

// ---------------------------------------------------------------------------
// The state of a run

typedef struct {    // all zeros: of a new run
    int step;             // steps done
    double seconds;       // spent on them
    long log_bytes;       // the length of log.csv
    int diverged_step;    // 0: not diverged
    double tokens;        // trained on
    double data_tokens;   // in the data's files; 0: invented data
} State;

// State's numbers in the metadata, and their range. log.csv has at least its header.
enum { NUM_STATE = 6, NUM_OLD_STATE = 4 };    // an older checkpoint has the first four
static const struct { const char *name; double least, most; } STATE[NUM_STATE] = {
    {"step", 0, INT32_MAX}, {"seconds", 0, 1e15}, {"log_bytes", 1, 1e15},
    {"diverged_step", 0, INT32_MAX}, {"tokens", 0, 1e19}, {"data_tokens", 0, 1e15},
};

// ---------------------------------------------------------------------------
// The files of a run

static void path_in(const Config *cfg, const char *file, char out[MAX_TEXT]) {
    format_text(out, MAX_TEXT, "%s/%s", cfg->out, file);
}

// The files, and a text near the start of each that shows that this program wrote it. Until its
// first checkpoint, a new run over an older one's results writes log.csv.new. The names in .tmp are
// those of base.h's atomic_open.
static const struct { const char *name, *sign; } RESULTS[] = {
    {"log.csv", "step,tokens,lr,train_loss,val_loss,"},
    {"log.csv.new", "step,tokens,lr,train_loss,val_loss,"},
    {"summary.csv", ",threads,parameters,parameters_non_embedding,"},
    {"model.safetensors", "\"log_bytes\""},
    {"model.safetensors.new", "\"log_bytes\""},
    {"summary.csv.tmp", ",threads,parameters,parameters_non_embedding,"},
    {"model.safetensors.tmp", "\"log_bytes\""},
    {"model.safetensors.new.tmp", "\"log_bytes\""},
};
enum { NUM_RESULTS = sizeof RESULTS / sizeof RESULTS[0] };

// Dies if a file in the run's folder has a name that the run needs, and this program did not write
// it. An empty file may be replaced.
static void results_check(const Config *cfg) {
    static char text[1 << 16];
    char path[MAX_TEXT];
    for (int i = 0; i < NUM_RESULTS; i++) {
        path_in(cfg, RESULTS[i].name, path);
        int file = open(path, O_RDONLY | O_NONBLOCK);    // a pipe must not wait for its writer
        if (file < 0 && errno == ENOENT) continue;
        ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (size < 0)
            die(FAILED, "cannot read %s: %s; choose another -out", path, strerror(errno));
        close(file);
        text[size] = 0;
        for (ssize_t j = 0; j < size; j++)
            if (!text[j]) text[j] = ' ';    // strstr must not end there
        if (size && !strstr(text, RESULTS[i].sign))
            die(FAILED, "%s: this program did not write it, or it is damaged; choose another -out, "
                "or remove it", path);
    }
}

// Replaces an older run's results with a new run's, if the new one has its first checkpoint, which
// is model.safetensors.new. If the program is killed half-way, the next one that uses the folder
// does the rest: so the model's name changes last.
static void results_replace(const Config *cfg) {
    static const char *const moves[2][2] = {
        {"log.csv.new", "log.csv"}, {"model.safetensors.new", "model.safetensors"}
    };
    char from[MAX_TEXT], to[MAX_TEXT];
    path_in(cfg, "model.safetensors.new", from);
    if (access(from, F_OK)) return;
    results_check(cfg);
    path_in(cfg, "summary.csv", to);
    int folder = open(cfg->out, O_RDONLY);
    bool failed = folder < 0 || (unlink(to) && errno != ENOENT);
    for (int i = 0; i < 2 && !failed; i++) {
        path_in(cfg, moves[i][0], from);
        path_in(cfg, moves[i][1], to);
        failed = (rename(from, to) && errno != ENOENT) || folder_sync(folder);
    }
    if (failed) die(FAILED, "cannot replace %s: %s", to, strerror(errno));
    close(folder);
}

// ---------------------------------------------------------------------------
// Saving a model, and loading one

// The weights, then both moments, as tensors with a name. Allocates *out; returns their number.
static int checkpoint_tensors(const Parameter table[NUM_KINDS], real *params, real *m, real *v,
                              Tensor **out) {
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
                t->rank = table[k].role == NORM ? 1 : 2;
                t->shape[t->rank - 1] = (uint64_t)table[k].cols;
                if (t->rank == 2) t->shape[0] = (uint64_t)table[k].rows;
                t->data = groups[g] + table[k].offset + (size_t)l * parameter_size(&table[k]);
            }
    return count;
}

// Writes model.safetensors to the run's folder, whole or not at all. A new run's first one replaces
// an older run's results.
static void checkpoint_save(const Config *cfg, const Parameter table[NUM_KINDS], real *params,
                            real *m, real *v, const State *state) {
    const double numbers[NUM_STATE] = {
        (double)state->step, state->seconds, (double)state->log_bytes,
        (double)state->diverged_step, state->tokens, state->data_tokens
    };
    char path[MAX_TEXT];
    static Metadata meta;
    Tensor *tensors;
    meta.count = 0;
    for (int i = 0; i < NUM_FLAGS; i++)
        if (FLAGS[i].scope == THE_RUN)
            flag_text(cfg, &FLAGS[i], metadata_add(&meta, FLAGS[i].name));
    for (int i = 0; i < NUM_STATE; i++)
        snprintf(metadata_add(&meta, STATE[i].name), MAX_TEXT, "%.15g", numbers[i]);
    path_in(cfg, "log.csv.new", path);
    bool first = !access(path, F_OK);
    path_in(cfg, first ? "model.safetensors.new" : "model.safetensors", path);
    int count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_write(path, tensors, count, &meta);
    free(tensors);
    results_replace(cfg);
}

static char resume_changes[4 * MAX_TEXT];    // the flags that -resume changed, as a text

// Appends to resume_changes, as much as it has room for.
__attribute__((format(printf, 1, 2)))
static void resume_change(const char *format, ...) {
    size_t used = strlen(resume_changes);
    va_list args;
    va_start(args, format);
    vsnprintf(resume_changes + used, sizeof resume_changes - used, format, args);
    va_end(args);
}

// Compares the flags with those of the checkpoint, and the learning rates at its last step. Returns
// the flags of the checkpoint.
static Config resume_compare(const Config *cfg, const Metadata *meta, int step, const char *path) {
    Config saved = *cfg;
    *resume_changes = 0;
    for (int i = 0; i < NUM_FLAGS; i++) {
        char was[MAX_TEXT], is[MAX_TEXT];
        const char *text = metadata_value(meta, FLAGS[i].name);
        if (FLAGS[i].scope != THE_RUN || !text) continue;
        flag_set(&saved, &FLAGS[i], text, path);
        flag_text(&saved, &FLAGS[i], was);
        flag_text(cfg, &FLAGS[i], is);
        if (!strcmp(was, is)) continue;
        resume_change("%s -%s %s -> %s", *resume_changes ? "," : "; changed:", FLAGS[i].name,
                      *was ? was : "none", *is ? is : "none");
    }
    saved.micro_batch = 1;    // unknown, and of no consequence here
    config_finish(&saved, path);
    double before = learning_rate(&saved, step), after = learning_rate(cfg, step);
    if (step && before != after)
        resume_change("; so the learning rate jumps from %.3g to %.3g", before, after);
    return saved;
}

// Whether the command uses the model that is saved in -out.
static bool uses_saved(const Config *cfg) { return cfg->resume || cfg->sample || cfg->eval; }

// Dies if a new run in this folder would replace the file of -init.
static void init_check(const Config *cfg, const char *folder) {
    char own[MAX_TEXT];
    struct stat theirs, ours;
    format_text(own, MAX_TEXT, "%s/model.safetensors", folder);
    if (!stat(cfg->init, &theirs) && !stat(own, &ours) && theirs.st_dev == ours.st_dev &&
        theirs.st_ino == ours.st_ino)
        die(FAILED, "-init %s: the new run would replace this file; choose another -out",
            cfg->init);
}

// Reads into params the weights of -init, for a new run: m and v become 0, and so does the State.
// Dies if a weight is not finite: no flag could make a run from it converge.
static State weights_load(const Config *cfg, const Parameter table[NUM_KINDS], real *params,
                          real *m, real *v) {
    static Metadata meta;
    Tensor *tensors;
    State start = {0, 0, 0, 0, 0, 0};
    init_check(cfg, cfg->out);
    int count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_read(cfg->init, tensors, count, count / 3, &meta);
    for (int i = 0; i < count / 3; i++)
        for (size_t j = 0; j < tensor_bytes(&tensors[i]) / sizeof(real); j++)
            if (!isfinite(tensors[i].data[j]))
                die(FAILED, "-init %s: its tensor %s is not finite: the run diverged; choose "
                    "another file", cfg->init, tensors[i].name);
    for (int i = count / 3; i < count; i++) memset(tensors[i].data, 0, tensor_bytes(&tensors[i]));
    free(tensors);
    return start;
}

// Reads model.safetensors from the run's folder into params, m and v. For a new run: the weights
// of -init.
static State checkpoint_load(const Config *cfg, const Parameter table[NUM_KINDS], real *params,
                             real *m, real *v) {
    char path[MAX_TEXT];
    static Metadata meta;
    double number[NUM_STATE];
    Tensor *tensors;
    if (!uses_saved(cfg)) return weights_load(cfg, table, params, m, v);
    path_in(cfg, "model.safetensors", path);
    int count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_read(path, tensors, count, count, &meta);
    free(tensors);
    for (int i = 0; i < NUM_STATE; i++) {
        const char *text = metadata_value(&meta, STATE[i].name);
        number[i] = text ? parse_number(text) : i < NUM_OLD_STATE ? NAN : 0;
        if (!(number[i] >= STATE[i].least && number[i] <= STATE[i].most))
            die(FAILED, "%s: not a checkpoint of this program: '%s' is missing from its metadata, "
                "or out of range", path, STATE[i].name);
    }
    State state = {(int)number[0], number[1], (long)number[2], (int)number[3], number[4],
                   number[5]};
    if (state.step > cfg->steps)
        die(FAILED, "%s: %d steps are done, more than -steps %d", path, state.step, cfg->steps);
    Config saved = resume_compare(cfg, &meta, state.step, path);
    if (state.tokens == 0) state.tokens = (double)state.step * saved.batch * saved.T;
    return state;
}

// ---------------------------------------------------------------------------
// From the command line and a saved model to a Config

// Reads the flags of a saved model. Dies if this program did not save it.
static void flags_read(const char *path, Metadata *meta) {
    safetensors_read(path, NULL, 0, 0, meta);
    if (!metadata_value(meta, "d"))
        die(FAILED, "%s: not a checkpoint of this program: its metadata has no 'd'", path);
}

// Sets a flag from the metadata of this file. A file without it is older than the flag, whose
// default then stands.
static void flag_load(Config *cfg, const Flag *flag, const Metadata *meta, const char *path) {
    const char *text = metadata_value(meta, flag->name);
    flag_set(cfg, flag, text ? text : flag->initial, path);
}

// Sets the flags of the run in -out from its checkpoint, except for those given.
static void config_load(Config *cfg, const char *given[NUM_FLAGS]) {
    char path[MAX_TEXT], rates[MAX_RUNS][MAX_RATE];
    static Metadata meta;
    results_replace(cfg);
    path_in(cfg, "model.safetensors", path);
    if (access(path, F_OK))
        die(FAILED, "%s: no saved model: -out must be the folder of a run, or of one run of a "
            "sweep, such as %s/lr1e-2", path, cfg->out);
    flags_read(path, &meta);
    for (int i = 0; i < NUM_FLAGS; i++)
        if (!given[i] && FLAGS[i].scope == THE_RUN) flag_load(cfg, &FLAGS[i], &meta, path);
    const char *init = metadata_value(&meta, "init");
    if (strcmp(cfg->init, init ? init : ""))
        die(FAILED, "-init %s: starts a new run, but %s is the model of an older one; leave out "
            "-init, or -resume, -sample and -eval", cfg->init, path);
    if (learning_rates(cfg->lr_text, rates, path) > 1)
        die(FAILED, "%s: -lr: '%s' is not one learning rate", path, cfg->lr_text);
    config_finish(cfg, path);
}

// The flags that describe a model. The first NUM_SHAPES give its tensors their number and shapes.
static const char *const MODEL_FLAGS[] = {
    "d", "layers", "heads", "vocab", "qk_norm", "gate", "peri_ln",
    "kappa", "mu_param", "base_d", "scale", "attention", "attn_cap"
};
enum { NUM_SHAPES = 7, NUM_MODEL_FLAGS = sizeof MODEL_FLAGS / sizeof MODEL_FLAGS[0] };

// Sets the flags of the model from the file of -init, except for those given. A shape that is given
// must be the file's; the other flags may be changed.
static void config_init(Config *cfg, const char *given[NUM_FLAGS]) {
    static Metadata meta;
    flags_read(cfg->init, &meta);
    for (int i = 0; i < NUM_MODEL_FLAGS; i++) {
        int at = flag_index(MODEL_FLAGS[i]);
        char ours[MAX_TEXT], theirs[MAX_TEXT];
        Config file = *cfg;
        flag_load(&file, &FLAGS[at], &meta, cfg->init);
        flag_text(cfg, &FLAGS[at], ours);
        flag_text(&file, &FLAGS[at], theirs);
        if (!given[at]) *cfg = file;
        else if (i < NUM_SHAPES && strcmp(ours, theirs))
            die(USAGE, "-%s %s: the model of -init %s has -%s %s; leave -%s out", MODEL_FLAGS[i],
                ours, cfg->init, MODEL_FLAGS[i], theirs, MODEL_FLAGS[i]);
    }
}

// The Config of a command line: the defaults, then, with -resume, -sample or -eval, the flags saved
// in the checkpoint, or with -init those of its model, then the flags given. Exits with a message
// on anything wrong; -h prints the help.
static void config_parse(Config *cfg, int argc, char **argv) {
    const char *given[NUM_FLAGS];
    flags_parse(cfg, given, argc, argv);
    if (uses_saved(cfg)) config_load(cfg, given);
    else {
        if (*cfg->init) config_init(cfg, given);
        config_finish(cfg, NULL);
    }
    say_no_effect(cfg, given);
}

#endif

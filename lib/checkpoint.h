// lib/checkpoint.h: model.safetensors. It holds the weights, AdamW's moments and all that an exact
// resume needs; -resume and -sample take their flags from it.
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "flags.h"    // flags_parse, flag_set, flag_text, learning_rates, config_finish

// ---------------------------------------------------------------------------
// Writing the safetensors format (https://github.com/huggingface/safetensors)
//
//   8 bytes   length of the header, a little-endian integer
//   header    {"__metadata__": {"key": "value", ...},
//              "name": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...}
//             padded with spaces to a multiple of 8; offsets count from the header's end
//   data      the tensors, each byte belonging to exactly one

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little-endian, and this machine is not"
#endif

typedef struct {
    char name[96];
    int rows, cols;    // rows 0: a vector of cols
    real *data;
} Tensor;

typedef struct { char key[32], value[1024]; } Metadata;

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
        if (*text == '"' || *text == '\\') fprintf(file, "\\%c", *text);
        else if ((unsigned char)*text < 0x20) fprintf(file, "\\u%04x", *text);
        else putc(*text, file);
    }
    putc('"', file);
}

// Writes tensors and metadata. A failed write sets the FILE's error, which atomic_close checks. The
// header's length is known last, and written last.
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

// ---------------------------------------------------------------------------
// Reading it. The reader trusts nothing. It accepts only the JSON that the format needs, so that
// nothing recurses. A NUL ends the header; no rule accepts one, so that none reads past it.

typedef struct {
    char name[96], dtype[16], shape[176];
    uint64_t begin, end;
} StoredTensor;

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
        if (c == '\\' && *++s->at == 'u') {    // ASCII only: the official writer escapes no more
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
    int dtype = 0, shape = 0, offsets = 0;    // the number of times that each was given
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
            int rank = json_numbers(s, numbers, 8);
            size_t n = 0;
            for (int i = 0; i < rank; i++) {
                if (numbers[i] && elements > UINT64_MAX / sizeof(real) / numbers[i])
                    json_fail(s, "a shape that overflows");
                elements *= numbers[i];
                n += (size_t)snprintf(t->shape + n, sizeof t->shape - n, "%c%" PRIu64,
                                      i ? ',' : '[', numbers[i]);
            }
            snprintf(t->shape + n, sizeof t->shape - n, rank ? "]" : "[]");
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
    uint64_t sum = 0, last = 0;    // the bytes of all tensors; the end of the last one
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
    if (last != s->data_size || sum != last)    // without overlaps, an equal sum means no holes
        die(FAILED, "%s is %s: its header says %" PRIu64 " bytes of tensors up to byte %" PRIu64
            ", the file has %" PRIu64, s->path, last > s->data_size ? "truncated" : "damaged",
            sum, last, s->data_size);
}

static Safetensors safetensors_open(const char *path, Metadata *meta, int meta_max) {
    const uint64_t limit = 100000000;    // of the format, for a header
    struct stat info;                    // checked first: opening a FIFO waits for its writer
    uint64_t length;
    Safetensors s;
    memset(&s, 0, sizeof s);
    s.path = path;
    s.meta = meta;
    s.meta_max = meta_max;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) die(FAILED, "%s is not a file", path);
    s.file = fopen(path, "rb");
    if (!s.file || fstat(fileno(s.file), &info))
        die(FAILED, "cannot read %s: %s", path, strerror(errno));
    if (fread(&length, sizeof length, 1, s.file) != 1 || length > limit)
        die(FAILED, "%s is not a safetensors file: it does not begin with the 8-byte length of a "
            "header (of at most %" PRIu64 " bytes)", path, limit);
    if (length + sizeof length > (uint64_t)info.st_size)
        die(FAILED, "%s is truncated: its header should end at byte %" PRIu64
            ", but the file ends at byte %" PRIu64,
            path, length + (uint64_t)sizeof length, (uint64_t)info.st_size);
    s.header_size = length;
    s.data_size = (uint64_t)info.st_size - sizeof length - length;
    s.header = s.at = (char *)allocate(length + 1, 1);
    s.tensors = (StoredTensor *)allocate(TENSORS_MAX, sizeof *s.tensors);
    if (fread(s.header, 1, length, s.file) != length)
        die(FAILED, "cannot read the header of %s", path);
    parse_header(&s);
    return s;
}

static void safetensors_close(Safetensors *s) {
    fclose(s->file);
    free(s->header);
    free(s->tensors);
}

// Reads the metadata of a file, at most max pairs. Returns their number.
static int safetensors_read_metadata(const char *path, Metadata *meta, int max) {
    Safetensors s = safetensors_open(path, meta, max);
    safetensors_close(&s);
    return s.meta_count;
}

#define OTHER_MODEL ": it was made with another -d, -heads, -layers, -vocab or -qk_norm; " \
    "-resume and -sample take them from it: leave them out"

// Reads the wanted tensors into their memory. Dies unless the file has these and no others.
static void safetensors_read(const char *path, const Tensor *wanted, int count) {
    Safetensors s = safetensors_open(path, NULL, 0);
    for (int i = 0; i < count; i++) {
        const StoredTensor *t = s.tensors, *end = s.tensors + s.count;
        char shape[48];
        tensor_shape(shape, sizeof shape, &wanted[i]);
        while (t < end && strcmp(t->name, wanted[i].name)) t++;
        if (t == end) die(FAILED, "%s has no tensor %s" OTHER_MODEL, path, wanted[i].name);
        if (strcmp(t->dtype, DTYPE))
            die(FAILED, "%s: the tensor %s is not of dtype %s", path, t->name, DTYPE);
        if (strcmp(t->shape, shape))
            die(FAILED, "%s: the tensor %s has shape %s, this model's has %s" OTHER_MODEL,
                path, t->name, t->shape, shape);
        size_t elements = tensor_elements(&wanted[i]);
        if (fseeko(s.file, (off_t)(8 + s.header_size + t->begin), SEEK_SET) ||
            fread(wanted[i].data, sizeof(real), elements, s.file) != elements)
            die(FAILED, "cannot read the tensor %s of %s: %s", t->name, path,
                ferror(s.file) ? strerror(errno) : "the file has become shorter");
    }
    if (s.count != count)
        die(FAILED, "%s has %d tensors, this model has %d" OTHER_MODEL, path, s.count, count);
    safetensors_close(&s);
}

// ---------------------------------------------------------------------------
// A run's checkpoint

typedef struct {
    int step;             // steps done
    double seconds;       // spent on them
    long log_bytes;       // the length of log.csv
    int diverged_step;    // 0: none
} State;

enum { MAX_METADATA = NUM_FLAGS + 16 };

static void checkpoint_path(const Config *cfg, char out[MAX_TEXT]) {
    format_text(out, MAX_TEXT, "%s/model.safetensors", cfg->out);
}

static const char *metadata_value(const Metadata *meta, int count, const char *key) {
    for (int i = 0; i < count; i++)
        if (!strcmp(meta[i].key, key)) return meta[i].value;
    return NULL;
}

static void metadata_add(Metadata *meta, int *count, const char *key, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void metadata_add(Metadata *meta, int *count, const char *key, const char *format, ...) {
    va_list args;
    va_start(args, format);
    strcpy(meta[*count].key, key);
    vsnprintf(meta[*count].value, sizeof meta->value, format, args);
    va_end(args);
    ++*count;
}

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
                t->rows = table[k].initial == ONES ? 0 : table[k].rows;
                t->cols = table[k].cols;
                t->data = groups[g] + table[k].offset + (size_t)l * parameter_size(&table[k]);
            }
    return count;
}

// Writes model.safetensors to the run's folder, whole or not at all.
static void checkpoint_save(const Config *cfg, const Parameter table[NUM_KINDS], real *params,
                            real *m, real *v, const State *state) {
    char path[MAX_TEXT], text[MAX_TEXT];
    static Metadata meta[MAX_METADATA];
    int count = 0;
    for (int i = 0; i < NUM_FLAGS; i++) {
        if (FLAGS[i].scope != THE_RUN) continue;
        flag_text(cfg, &FLAGS[i], text);
        metadata_add(meta, &count, FLAGS[i].name, "%s", text);
    }
    metadata_add(meta, &count, "step", "%d", state->step);
    metadata_add(meta, &count, "seconds", "%.3f", state->seconds);
    metadata_add(meta, &count, "log_bytes", "%ld", state->log_bytes);
    metadata_add(meta, &count, "diverged_step", "%d", state->diverged_step);
    checkpoint_path(cfg, path);
    Tensor *tensors;
    int tensor_count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_write(path, tensors, tensor_count, meta, count);
    free(tensors);
}

// A number of the State in the metadata. Dies if it is missing or not in [0, most].
static double state_number(const char *path, const Metadata *meta, int count, const char *key,
                           double most) {
    const char *text = metadata_value(meta, count, key);
    double value = text ? strtod(text, NULL) : -1;
    if (!(value >= 0 && value <= most))
        die(FAILED, "%s: not a checkpoint of this program: '%s' is missing from its metadata or "
            "not a count", path, key);
    return value;
}

// Reads model.safetensors from the run's folder into params, m and v.
static State checkpoint_load(const Config *cfg, const Parameter table[NUM_KINDS], real *params,
                             real *m, real *v) {
    char path[MAX_TEXT];
    static Metadata meta[MAX_METADATA];
    State state;
    checkpoint_path(cfg, path);
    int count = safetensors_read_metadata(path, meta, MAX_METADATA);
    state.step = (int)state_number(path, meta, count, "step", INT32_MAX);
    state.seconds = state_number(path, meta, count, "seconds", 1e15);
    state.log_bytes = (long)state_number(path, meta, count, "log_bytes", 1e15);
    state.diverged_step = (int)state_number(path, meta, count, "diverged_step", INT32_MAX);
    if (state.step > cfg->steps)
        die(FAILED, "%s: %d steps are done, more than -steps %d", path, state.step, cfg->steps);
    Tensor *tensors;
    int tensor_count = checkpoint_tensors(table, params, m, v, &tensors);
    safetensors_read(path, tensors, tensor_count);
    free(tensors);
    return state;
}

// Sets the flags of the run in -out from its checkpoint, except for those given.
static void config_load(Config *cfg, const char *given[NUM_FLAGS]) {
    char path[MAX_TEXT], rates[MAX_RUNS][MAX_RATE];
    static Metadata meta[MAX_METADATA];
    checkpoint_path(cfg, path);
    if (access(path, F_OK))
        die(FAILED, "%s: there is no saved model: -out names the folder of a run, or of one run of "
            "a sweep (%s/lr1e-2)", path, cfg->out);
    int count = safetensors_read_metadata(path, meta, MAX_METADATA);
    for (int i = 0; i < NUM_FLAGS; i++) {
        if (given[i] || FLAGS[i].scope != THE_RUN) continue;
        const char *text = metadata_value(meta, count, FLAGS[i].name);
        if (!text)
            die(FAILED, "%s: not a checkpoint of this program: its metadata has no '%s'", path,
                FLAGS[i].name);
        flag_set(cfg, &FLAGS[i], text, path);
    }
    if (learning_rates(cfg->lr_text, rates, path) > 1)
        die(FAILED, "%s: -lr: '%s' is not one learning rate", path, cfg->lr_text);
    config_finish(cfg, path);
}

// The Config of a command line: the defaults, then, with -resume or -sample, the flags saved in the
// checkpoint, then the flags given. Exits with a message on anything wrong; -h prints the help.
static void config_parse(Config *cfg, int argc, char **argv) {
    const char *given[NUM_FLAGS];
    flags_parse(cfg, given, argc, argv);
    if (cfg->resume || cfg->sample) config_load(cfg, given);
    config_finish(cfg, NULL);
}

#endif

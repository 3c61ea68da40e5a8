// fuzz.c: libFuzzer on every reader of bytes from outside: `make fuzz`, or
// FUZZ=bin|safetensors|resume|flags|tokenizer build/fuzz CORPUS, where the folder gets a few inputs
// to begin with. Whatever the bytes, the code must take them, or exit with the right status.
#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// ---------------------------------------------------------------------------
// An exit of the program comes back here. What it held then is let go; what is held after a return
// is a leak.

typedef enum { MEMORY, STREAM, DESCRIPTOR, MAP, PATHS } Kind;
static struct { Kind kind; void *what; size_t size; } held[64];
static int holding, status;    // the latter of the exit
static jmp_buf survived;

static void *hold(Kind kind, void *what, size_t size) {
    if (!what || what == MAP_FAILED) return what;
    if (holding == sizeof held / sizeof held[0]) abort();
    held[holding].kind = kind;
    held[holding].what = what;
    held[holding].size = size;
    holding++;
    return what;
}

static void *let_go(void *what) {
    int i = 0;
    if (!what) return what;
    while (i < holding && held[i].what != what) i++;
    if (i == holding) abort();
    held[i] = held[--holding];
    return what;
}

static void let_go_of_all(void) {
    while (holding--) {
        void *what = held[holding].what;
        glob_t paths = {.gl_pathc = held[holding].size, .gl_pathv = what};
        switch (held[holding].kind) {
        case MEMORY: free(what); break;
        case STREAM: fclose(what); break;
        case DESCRIPTOR: close((int)(intptr_t)what); break;
        case MAP: munmap(what, held[holding].size); break;
        case PATHS: globfree(&paths);
        }
    }
    holding = 0;
}

static int hold_descriptor(int number) {
    hold(DESCRIPTOR, (void *)(intptr_t)(number < 0 ? 0 : number), 0);
    return number;
}

static int hold_paths(int status, const glob_t *paths) {
    hold(PATHS, paths->gl_pathv, paths->gl_pathc);
    return status;
}

static ssize_t hold_line(char **line, size_t *room, FILE *file) {
    let_go(*line);
    ssize_t length = getline(line, room, file);
    hold(MEMORY, *line, 0);
    return length;
}

__attribute__((noreturn)) static void survive(int number) {
    status = number;
    longjmp(survived, 1);
}

static int no_signals(void) { return -1; }

#define exit survive
#define malloc(size) hold(MEMORY, (malloc)(size), 0)
#define calloc(count, size) hold(MEMORY, (calloc)(count, size), 0)
#define realloc(old, size) hold(MEMORY, (realloc)(let_go(old), size), 0)
#define free(memory) (free)(let_go(memory))
#define getline hold_line
#define fopen(path, mode) (FILE *)hold(STREAM, (fopen)(path, mode), 0)
#define fclose(file) (fclose)((FILE *)let_go(file))
#define open(path, flags) hold_descriptor((open)(path, flags))
#define close(number) (close)((int)(intptr_t)let_go((void *)(intptr_t)(number)))
#define mmap(at, size, ...) hold(MAP, (mmap)(at, size, __VA_ARGS__), size)
#define munmap(map, size) (munmap)(let_go(map), size)
#define glob(pattern, flags, error, paths) hold_paths((glob)(pattern, flags, error, paths), paths)
#define globfree(paths) (let_go((paths)->gl_pathv), (globfree)(paths))
#define sigaction(number, action, old) no_signals()    // the fuzzer's own stay
#define main train_gpt_main
#include "../../train_gpt.c"
#undef main

// ---------------------------------------------------------------------------
// Tools of the targets

static char folder[] = "/dev/shm/train_gpt_fuzz_XXXXXX";    // files in memory

static const char *path_of(const char *name) {
    static char paths[4][64];
    static int next;
    char *path = paths[next++ % 4];
    format_text(path, 64, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *name, const void *head, size_t head_size, const void *data,
                       size_t size) {
    FILE *file = fopen(path_of(name), "wb");
    if (!file || fwrite(head, 1, head_size, file) != head_size
        || fwrite(data, 1, size, file) != size || fclose(file))
        abort();
}

static size_t read_file(const char *path, char *data, size_t room) {
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(data, 1, room, file) : 0;
    if (file) fclose(file);
    return size;
}

static void check(bool right) { if (!right) abort(); }

static uint8_t take(const uint8_t **data, size_t *size) {
    return *size ? (*size)--, *(*data)++ : 0;
}

// ---------------------------------------------------------------------------
// The targets. A return: the bytes were taken.

enum { WIDE = 1, RIGHT_HEADER = 2, TWO_SHARDS = 4, OWN_VAL = 8, BARE_SECOND = 16 };

// Options, T, the vocabulary, then one file or two: with llm.c's header, or as they are. The second
// may lack the header of the first.
static void fuzz_bin(const uint8_t *data, size_t size) {
    enum { B = 2, MOST_T = 64 };
    int options = take(&data, &size), width = options & WIDE ? 4 : 2;
    int T = 1 + take(&data, &size) % MOST_T;
    int vocab = take(&data, &size) << 8;
    int inputs[B * MOST_T], targets[B * MOST_T];
    vocab |= take(&data, &size);
    const char *const names[2] = {"0.bin", "1.bin"};
    size_t sizes[2] = {options & (TWO_SHARDS | OWN_VAL) ? size / 2 : size, size / 2};
    for (int i = 0; i < 2; i++) {
        uint32_t header[256] = {20240520, 1, (uint32_t)(sizes[i] / width)};
        bool right = options & RIGHT_HEADER && !(i && options & BARE_SECOND);
        if (options & WIDE) {
            header[0] = 20240801;
            header[1] = 7;
        }
        unlink(path_of(names[i]));
        if (i == 0 || options & (TWO_SHARDS | OWN_VAL))
            write_file(names[i], header, right ? sizeof header : 0, data + (i ? sizes[0] : 0),
                       right ? sizes[i] / width * width : sizes[i]);
    }
    DataLoader loader;
    dataloader_init(&loader, path_of(options & TWO_SHARDS ? "?.bin" : names[0]),
                    options & OWN_VAL ? path_of(names[1]) : NULL, vocab, T, size);
    // a read past the end of a mapping is not always seen
    for (size_t i = 0; i < loader.train.paths.gl_pathc; i++) {
        const Shard *shard = &loader.train.shards[i];
        check(shard->kind == loader.val.shards[0].kind
              && shard->tokens + (shard->first + shard->count) * shard->kind->width
              <= (unsigned char *)shard->map + shard->size);
    }
    for (int64_t step = 0; step < 3; step++) {
        dataloader_train(&loader, step, B, inputs, targets);
        int64_t last = loader.val_windows - B;
        if (last >= 0)
            dataloader_val(&loader, step == 2 ? last : last / 2 * step, B, inputs, targets);
        for (int i = 0; i < B * T; i++) {
            check(inputs[i] >= 0 && inputs[i] < loader.vocab && targets[i] >= 0
                  && targets[i] < loader.vocab);
            check((i + 1) % T == 0 || targets[i] == inputs[i + 1]);
        }
    }
    dataloader_free(&loader);
}

// A byte, then a file; or (from 128 on) a header: its length is put before it, the byte's excess
// over 128 in bytes after it. What is taken must come back from a file that is written of it.
static void fuzz_safetensors(const uint8_t *data, size_t size) {
    static const char *const name = "x.safetensors";
    static Metadata meta, again;
    static real values[2][32];
    int mode = take(&data, &size);
    uint64_t length = size;
    memset(values, 0, sizeof values);
    char *file = (char *)allocate(size + 128, 1);
    memcpy(file, data, size);
    write_file(name, &length, mode < 128 ? 0 : sizeof length, file,
               mode < 128 ? size : size + (size_t)mode - 128);
    free(file);
    for (int pass = 0; pass < 2; pass++) {
        Tensor wanted[3] = {{"a", 2, {2, 3}, values[pass], 0, 0},
                            {"b", 1, {5, 0}, values[pass] + 8, 0, 0},
                            {"", 2, {1, 1}, values[pass] + 16, 0, 0}};
        safetensors_read(path_of(name), wanted, 3, 2 + (size % 2 == 0), &meta);
        safetensors_write(path_of(name), wanted, 3, &meta);
    }
    check(!memcmp(values[0], values[1], sizeof values[0]));
    safetensors_read(path_of(name), NULL, 0, 0, &again);
    check(meta.count == again.count);
    for (int i = 0; i < meta.count; i++)
        check(!strcmp(meta.pair[i].key, again.pair[i].key)
              && !strcmp(meta.pair[i].value, again.pair[i].value));
}

static Metadata saved;    // of a true run
static char saved_log[1 << 14];
static Parameter saved_table[NUM_KINDS];

static void set_metadata(Metadata *meta, const char *key, const char *value) {
    int i = 0;
    while (i < meta->count && strcmp(meta->pair[i].key, key)) i++;
    if (i == MAX_METADATA) return;
    if (i == meta->count) meta->count++;
    snprintf(meta->pair[i].key, sizeof meta->pair->key, "%s", key);
    snprintf(meta->pair[i].value, sizeof meta->pair->value, "%s", value);
}

// Lines of KEY=VALUE for the metadata of a true run's checkpoint, an empty line, and the run's log.
// "weights" is not of the metadata but the value of all weights. The log's length is right if not
// given.
static void fuzz_resume(const uint8_t *data, size_t size) {
    static Metadata meta;
    static real params[4096], moments[4096];
    char number[32], *text = (char *)allocate(size + 1, 1), *line = text, *next;
    memcpy(text, data, size);
    meta = saved;
    memset(params, 0, sizeof params);
    mkdir(path_of("run"), 0777);
    char *blank = strstr(text, "\n\n"), *log = blank ? blank + 2 : text + strlen(text);
    size_t log_size = size - (size_t)(log - text);
    write_file("run/log.csv", "", 0, log, log_size);
    snprintf(number, sizeof number, "%zu", log_size);
    set_metadata(&meta, "log_bytes", number);
    if (blank) *blank = 0;
    for (; line; line = next) {
        if ((next = strchr(line, '\n'))) *next++ = 0;
        char *value = strchr(line, '=');
        if (!value) continue;
        *value++ = 0;
        if (strcmp(line, "weights")) set_metadata(&meta, line, value);
        else
            for (size_t i = 0; i < 4096; i++)
                params[i] = (real)fmax(-FLT_MAX, fmin(strtod(value, NULL), FLT_MAX));
    }
    free(text);

    Tensor *tensors;
    int tensor_count = checkpoint_tensors(saved_table, params, moments, moments, &tensors);
    safetensors_write(path_of("run/model.safetensors"), tensors, tensor_count, &meta);
    free(tensors);

    char *argv[] = {"train_gpt", "-resume", "-out", (char *)path_of("run"), NULL};
    Config cfg;
    GPT g;
    config_parse(&cfg, 4, argv);
    gpt_layout(&g, &cfg, cfg.vocab, cfg.batch, cfg.T, NULL);
    gpt_free(&g);
    bool endless = !strcmp(cfg.data, "synthetic") || !strcmp(cfg.data, "bigram");
    if (g.bytes > 1e6 || endless) return;    // right, and takes too long
    interrupted = cfg.steps > 8 ? SIGTERM : 0;
    train(&cfg, 1, NULL);
}

// Arguments, each ended by a byte 0. A byte from 128 on stands for a flag.
static void fuzz_flags(const uint8_t *data, size_t size) {
    enum { MOST = 40 };
    char *argv[MOST + 1] = {"train_gpt"}, rates[MAX_RUNS][MAX_RATE], value[MAX_TEXT];
    char *text = (char *)allocate(33 * size + 1, 1), *to = text;
    int argc = 1;
    while (size && argc < MOST) {
        argv[argc++] = to;
        for (uint8_t c; (c = take(&data, &size)); )
            if (c < 128) *to++ = (char)c;
            else to += sprintf(to, "-%s", FLAGS[c % NUM_FLAGS].name);
        *to++ = 0;
    }
    Config cfg;
    config_parse(&cfg, argc, argv);
    free(text);
    int count = learning_rates(cfg.lr_text, rates, NULL);
    for (int i = 0; i < count; i++)
        check(strtod(rates[i], NULL) > 0 && (i == 0 || strcmp(rates[i], rates[i - 1])));
    check(cfg.d % cfg.heads == 0 && cfg.warmup >= 0 && cfg.warmup <= cfg.steps && *cfg.out);
    for (int i = 0; i < NUM_FLAGS; i++) {    // a value's text is that value again
        Config same = cfg;
        flag_text(&cfg, &FLAGS[i], value);
        flag_set(&same, &FLAGS[i], value, NULL);
        check(!memcmp(&same, &cfg, sizeof cfg));
    }
    Parameter table[NUM_KINDS];
    GPT g;
    gpt_layout(&g, &cfg, cfg.vocab, cfg.batch, cfg.T, NULL);
    gpt_free(&g);
    check(isfinite(g.bytes) && parameter_table(&cfg, cfg.vocab, table) >= (size_t)cfg.d);
    for (int step = 0; step <= cfg.steps; step += 1 + cfg.steps / 8)
        check(learning_rate(&cfg, step) >= 0);
}

// A vocabulary of 2 bytes, then a vocabulary file: with a header made right (an even vocabulary) or
// as it is.
static void fuzz_tokenizer(const uint8_t *data, size_t size) {
    int V = take(&data, &size) << 8;
    V |= take(&data, &size);
    uint32_t header[256] = {20240328, 2, (uint32_t)V, 0};
    write_file("tokenizer", header, V % 2 ? 0 : sizeof header, data, size);
    Tokenizer t = tokenizer_read(path_of("tokenizer"), V);
    check(t.count > 0 && t.count <= V && t.end_of_text >= 0 && t.end_of_text < t.count);
    for (int i = 0; i < t.count; i++) check(t.token[i][0] > 0);
    free(t.token);
}

// ---------------------------------------------------------------------------
// What libFuzzer calls

enum { BIN, SAFETENSORS, RESUME, ARGUMENTS, TOKENIZER, NUM_TARGETS };
static const struct {
    const char *name;
    void (*target)(const uint8_t *, size_t);
    int least_status, most_status;
} TARGETS[NUM_TARGETS] = {
    {"bin", fuzz_bin, FAILED, FAILED},
    {"safetensors", fuzz_safetensors, FAILED, FAILED},
    {"resume", fuzz_resume, FAILED, FAILED},
    {"flags", fuzz_flags, 0, USAGE},
    {"tokenizer", fuzz_tokenizer, FAILED, FAILED},
};
static int chosen;

static void seed(const char *corpus, const void *data, size_t size) {
    static int count;
    char path[MAX_TEXT];
    format_text(path, sizeof path, "%s/seed_%d", corpus, count++);
    FILE *file = (fopen)(path, "wb");
    check(file && fwrite(data, 1, size, file) == size && !(fclose)(file));
}

static void seed_text(const char *corpus, const char *text) { seed(corpus, text, strlen(text)); }

// What a run of the trainer left, and commands of README.md.
static void seeds(const char *corpus) {
    static char data[1 << 15];
    Tensor tensors[2] = {{"a", 2, {2, 3}, (real[6]){1, 2}, 0, 0},
                         {"b", 1, {5, 0}, (real[5]){3}, 0, 0}};
    Metadata meta = {2, {{"key", "value"}, {"quote", "\"\n\\"}}};
    const char commands[][40] = {"-lr", "-lr\0003e-4,1e-2\0-wd\0000x1p-9",
                                 "-d\000128\0-warmup\00025%\0-mu_param\0simple", "-h",
                                 "-sample\0-out\0x\0-d\00016"};
    switch (chosen) {
    case BIN:
        for (int options = 0; options < 32; options++) {
            const uint32_t header[256] = {20240520, 1, 512};
            const char first[4] = {(char)options, 7, 1, 0};    // T 8, vocabulary 256
            memset(data, 0, 2052);
            memcpy(data, first, 4);
            if (!(options & (RIGHT_HEADER | WIDE))) memcpy(data + 4, header, sizeof header);
            seed(corpus, data, options & RIGHT_HEADER ? 404 : 2052);
        }
        for (int kind = FIRST_MAGIC; kind < NUM_FILE_KINDS; kind++) {
            const FileKind *known = &FILE_KINDS[kind];
            memset(data, 'x', 404);
            memcpy(data, "\0\7\1", 4);
            memcpy(data + 4 + known->place, known->magic, (size_t)known->length);
            seed(corpus, data, 404);
        }
        break;
    case SAFETENSORS:
        safetensors_write(path_of("x.safetensors"), tensors, 2, &meta);
        seed(corpus, data, 1 + read_file(path_of("x.safetensors"), data + 1, sizeof data - 1));
        seed_text(corpus, "\xac{\"__metadata__\":{\"k\":\"\\u0041\\n\"},\"b\":{\"shape\":[5],"
                          "\"data_offsets\":[24,44],\"dtype\":\"F32\"},"
                          "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}} ");
        break;
    case RESUME:
        for (int i = 0; i < saved.count; i++) {
            if (!strcmp(saved.pair[i].key, "data")) continue;    // a file of this run alone
            sprintf(data, "%s=%s\n\n%s", saved.pair[i].key, saved.pair[i].value, saved_log);
            seed_text(corpus, data);
        }
        sprintf(data, "step=2\nqk_norm=0\nwarmup=4\n\n%s", saved_log);
        seed_text(corpus, data);
        seed_text(corpus, "step=0\nweights=1e30\n\nstep,val_loss\n0,5\n");
        seed_text(corpus, "step=1\nsteps=9\n\nstep,val_loss\n0,\"5\"");
        break;
    case ARGUMENTS:
        for (int i = 0; i < NUM_FLAGS; i++)
            seed(corpus, data,
                 (size_t)sprintf(data, "-%s%c%s", FLAGS[i].name, 0,
                                 *FLAGS[i].initial ? FLAGS[i].initial : "x"));
        for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
            seed(corpus, commands[i], sizeof commands[i]);
        break;
    case TOKENIZER:
        for (int made_right = 0; made_right < 2; made_right++) {
            const uint32_t header[256] = {20240328, 2, 4, 3};
            const char words[] = "\001a\002bc\001\n\003end";
            size_t at = made_right ? 2 : 2 + sizeof header;
            memset(data, 0, 2);
            data[1] = (char)(made_right ? 4 : 5);    // 5 tokens: one is padding
            memcpy(data + 2, header, sizeof header);
            memcpy(data + at, words, sizeof words - 1);
            seed(corpus, data, at + sizeof words - 1);
        }
    }
}

static int free_descriptor(void) {
    int number = (open)("/dev/null", O_RDONLY);
    (close)(number);
    return number;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int before;
    before = free_descriptor();
    if (setjmp(survived) == 0) {
        TARGETS[chosen].target(data, size);
        check(holding == 0);    // else a leak
    } else {
        check(status >= TARGETS[chosen].least_status && status <= TARGETS[chosen].most_status);
        let_go_of_all();
    }
    check(free_descriptor() == before);
    interrupted = 0;
    return 0;
}

static void remove_folder(void) {
    char command[MAX_TEXT];
    format_text(command, sizeof command, "rm -r %s", folder);
    check(!system(command));
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *name = getenv("FUZZ");
    while (chosen < NUM_TARGETS && (!name || strcmp(name, TARGETS[chosen].name))) chosen++;
    if (chosen == NUM_TARGETS) {
        fputs("fuzz: set FUZZ to bin, safetensors, resume, flags or tokenizer\n", stderr);
        (exit)(USAGE);
    }
    check(mkdtemp(folder) && !atexit(remove_folder));
    if (setjmp(survived)) abort();
    for (int i = 0; i < 100; i++) saved_log[i] = (char)('a' + i % 26);
    write_file("text", "", 0, saved_log, 100);
    char *run[] = {"train_gpt", "-d", "4", "-layers", "1", "-heads", "2", "-T", "4", "-batch", "2",
                   "-steps", "4", "-vocab", "128", "-eval_tokens", "8", "-eval_every", "2",
                   "-log_every", "1", "-checkpoint_every", "2", "-data", (char *)path_of("text"),
                   "-out", (char *)path_of("run"), NULL};
    Config cfg;
    Progress quiet = {.sweep = getppid()};
    config_parse(&cfg, sizeof run / sizeof run[0] - 1, run);
    train(&cfg, 1, &quiet);
    check(!interrupted && parameter_table(&cfg, cfg.vocab, saved_table) <= 4096);
    saved_log[read_file(path_of("run/log.csv"), saved_log, sizeof saved_log - 1)] = 0;
    safetensors_read(path_of("run/model.safetensors"), NULL, 0, 0, &saved);
    for (int i = 1; i < *argc; i++) {
        struct stat info;
        if (stat((*argv)[i], &info) || !S_ISDIR(info.st_mode)) continue;
        seeds((*argv)[i]);
        break;
    }
    return 0;
}

// dataloader.h: where tokens come from: an invented language (the default), a bigram source of any
// vocabulary (neither needs a file), any text file, llm.c's .bin shards, or nanoGPT's. Plain C that
// is also valid C++.
//
// Nothing here remembers anything: a training batch is a function of (seed, step), a validation
// window of its number. So a run that was stopped goes on with the very rows it would have had.
#ifndef DATALOADER_H
#define DATALOADER_H

#include <glob.h>
#include "lib/base.h"    // die, allocate, random_stream, random_below, random_u64

// ---------------------------------------------------------------------------
// Draws by weight

// Zipf's law: the weight of a rank, 1 / (rank + 2.7) for ranks from 1. Here the first is 0.
static uint32_t zipf(int rank) { return (1u << 28) / (uint32_t)(10 * rank + 37); }

// One of n items. below[i] is the mass of the items before the i-th, below[n] that of all.
static int draw(uint64_t *random, const uint32_t *below, int n) {
    uint32_t mass = random_below(random, below[n]);
    int lo = 0, hi = n;                            // below[lo] <= mass < below[hi]
    while (hi - lo > 1) {
        int middle = (lo + hi) / 2;
        if (below[middle] <= mass) lo = middle;
        else hi = middle;
    }
    return lo;
}

// ---------------------------------------------------------------------------
// An invented written language: what it is made of
//
//     Ejat bulvayo pabima puspo?
//     Munlu wehe dazuju dikor munlu ejat, raspe hali risla pa hozilu pa rafo.
//     Wapuk lulok lawu lawu go ni pohuhi missaka kubat!
//
// What there is to learn, from easy to hard: the letters and syllables; the words; which classes
// of words follow which; each word's favourite followers; that a line repeats its own words; that
// the class of a line's first word decides the mark at its end. A newline forgets everything, so a
// row of text that starts with one hides nothing from its reader, and the exact probability of
// every next character can be computed: no model can have a lower loss.
//
// Only integers decide the text: it is the same on every machine, to the last bit.

enum {
    N_WORDS = 1000,
    N_CLASSES = 16,      // classes of words, like nouns or verbs
    N_FOLLOWERS = 4,     // a word's favourite next words
    N_REMEMBERED = 8,    // the last words of a line, likely to come back in it
    MAX_WORD = 10,       // bytes: three syllables of three letters, and the final 0
    LINE_START = N_WORDS,    // stands for the last word if there is none
    LANGUAGE_SEED = 1,   // the one language of all runs

    // The next word, in shares of 40: 3 to each of the last word's followers, 1 to each remembered
    // word, the other 28 - remembered to the grammar. A line's first word has only the grammar.
    FOLLOWER_SHARE = 3, GRAMMAR_SHARE = 28,
    // What comes after a word, in shares of 25: a comma, the line's end (from its third word on),
    // otherwise a space.
    COMMA_SHARE = 2, END_SHARE = 5, AFTER_SHARES = 25, SHORTEST_LINE = 3
};

typedef struct {
    char spelling[MAX_WORD];
    int kind;                                      // its class, 0 .. N_CLASSES-1
    uint32_t frequency;
    int followers[N_FOLLOWERS];
} Word;

typedef struct {
    Word words[N_WORDS + 1];                       // by spelling, then LINE_START
    // [k][w]: the grammar's mass (< 2^31) of the words 0 .. w-1 after a word of class k
    uint32_t below[N_CLASSES + 1][N_WORDS + 1];
} Language;

static void language_shuffle(uint64_t *random, char *items, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)random_below(random, (uint32_t)i + 1);
        char swap = items[i];
        items[i] = items[j];
        items[j] = swap;
    }
}

// One of n letters. The i-th, from 1, has the weight i^-0.3, here in percent.
static char language_letter(uint64_t *random, const char *letters, int n) {
    static const int weights[18] = {
        100, 81, 72, 66, 62, 58, 56, 54, 52, 50, 49, 47, 46, 45, 44, 44, 43, 42
    };
    int total = 0, i = 0;
    for (int k = 0; k < n; k++) total += weights[k];
    int left = (int)random_below(random, (uint32_t)total);
    while (left >= weights[i]) left -= weights[i++];
    return letters[i];
}

static int language_by_spelling(const void *a, const void *b) {
    return strcmp(((const Word *)a)->spelling, ((const Word *)b)->spelling);
}

// Language number `seed`. The one that the program uses is LANGUAGE_SEED.
static void language_init(Language *lang, uint64_t seed) {
    uint64_t random = random_stream(seed, 0, 0);
    memset(lang, 0, sizeof *lang);

    // The lexicon, the most frequent word first: words of (C)V(C) syllables, frequent ones short.
    char consonants[] = "bdfghjklmnprstvwyz", vowels[] = "aeiou";
    uint32_t class_frequency[N_CLASSES] = {0};
    language_shuffle(&random, consonants, 18);
    language_shuffle(&random, vowels, 5);
    for (int rank = 0; rank < N_WORDS; rank++) {
        Word *word = &lang->words[rank];
        for (int other = -1; other < rank; ) {     // until no other word is spelled like it
            char *s = word->spelling;
            int syllables = 1 + (rank >= 30) + (rank >= 100 && random_below(&random, 2));
            for (int i = 0; i < syllables; i++) {
                if (random_below(&random, 10) < 9) *s++ = language_letter(&random, consonants, 18);
                *s++ = language_letter(&random, vowels, 5);
                if (random_below(&random, 4) < 1) *s++ = language_letter(&random, "nsrltk", 6);
            }
            *s = 0;
            other = 0;
            while (other < rank && strcmp(word->spelling, lang->words[other].spelling) != 0)
                other++;
        }
        word->kind = (int)random_below(&random, N_CLASSES);
        word->frequency = zipf(rank);
        class_frequency[word->kind] += word->frequency;
    }
    qsort(lang->words, N_WORDS, sizeof(Word), language_by_spelling);

    // The grammar: each class (and the start of a line) has its own order of classes to follow it,
    // with the weights place^-2; words share their class's weight by frequency.
    for (int kind = 0; kind <= N_CLASSES; kind++) {
        char place[N_CLASSES];
        for (int i = 0; i < N_CLASSES; i++) place[i] = (char)(i + 1);
        language_shuffle(&random, place, N_CLASSES);
        for (int w = 0; w < N_WORDS; w++) {
            int next = lang->words[w].kind;
            uint64_t weight = (1u << 30) / (uint32_t)(place[next] * place[next]);
            uint64_t mass = weight * lang->words[w].frequency / class_frequency[next];
            lang->below[kind][w + 1] = lang->below[kind][w] + (uint32_t)mass;
        }
    }

    lang->words[LINE_START].kind = N_CLASSES;
    for (int w = 0; w < N_WORDS; w++)
        for (int i = 0; i < N_FOLLOWERS; i++)
            lang->words[w].followers[i] = (int)random_below(&random, N_WORDS);
    for (int i = 0; i < N_FOLLOWERS; i++)          // LINE_START has itself, which is never written
        lang->words[LINE_START].followers[i] = LINE_START;
}

// ---------------------------------------------------------------------------
// The language in use: writing it, and reading it with the probability of every character

typedef struct {
    int last;                                      // its last word, or LINE_START
    int words;                                     // how many it has so far
    int remembered[N_REMEMBERED];                  // the last of these, in any order
    const char *end;                               // how it will end: "" before its first word
} Line;

static void line_start(Line *line) {
    memset(line, 0, sizeof *line);
    line->last = LINE_START;
    line->end = "";
}

static void line_add(const Language *lang, Line *line, int word) {
    static const char *const ends[3] = {".\n", "?\n", "!\n"};
    if (line->words == 0) line->end = ends[lang->words[word].kind % 3];
    line->remembered[line->words++ % N_REMEMBERED] = word;
    line->last = word;
}

static int line_remembered(const Line *line) {
    return line->words < N_REMEMBERED ? line->words : N_REMEMBERED;
}

static int language_next_word(const Language *lang, const Line *line, uint64_t *random) {
    const Word *last = &lang->words[line->last];
    int shares = GRAMMAR_SHARE + (line->words ? N_FOLLOWERS * FOLLOWER_SHARE : 0);
    int share = (int)random_below(random, (uint32_t)shares);
    if (share >= GRAMMAR_SHARE) return last->followers[(share - GRAMMAR_SHARE) / FOLLOWER_SHARE];
    if (share < line_remembered(line)) return line->remembered[share];
    return draw(random, lang->below[last->kind], N_WORDS);
}

// Writes the n characters that follow a newline.
static void language_write(const Language *lang, uint64_t *random, int *text, int n) {
    Line line;
    line_start(&line);
    for (int i = 0; i < n; ) {
        int word = language_next_word(lang, &line, random), first = i;
        for (const char *s = lang->words[word].spelling; *s && i < n; s++) text[i++] = *s;
        if (line.words == 0) text[first] += 'A' - 'a';
        line_add(lang, &line, word);

        int share = (int)random_below(random, AFTER_SHARES);
        const char *after = share < COMMA_SHARE ? ", " : " ";
        if (line.words >= SHORTEST_LINE && share >= AFTER_SHARES - END_SHARE) after = line.end;
        for (const char *s = after; *s && i < n; s++) text[i++] = *s;
        if (after == line.end) line_start(&line);
    }
}

// Has read some text from the start of a line on.
typedef struct {
    Line line;                                     // its whole words
    int letters;                                   // read of the next word
    int lo, hi;                                    // the range of the words that begin with them
    uint64_t mass;                                 // of that range
    const char *due;                               // must come first: the space of ", "
} Reader;

// The chance that the line's next word is one of lo .. hi-1, in a unit that depends on the line.
static uint64_t language_mass(const Language *lang, const Line *line, int lo, int hi) {
    const Word *last = &lang->words[line->last];
    const uint32_t *below = lang->below[last->kind];
    int remembered = line_remembered(line), shares = 0;
    for (int i = 0; i < N_FOLLOWERS; i++)
        if (lo <= last->followers[i] && last->followers[i] < hi) shares += FOLLOWER_SHARE;
    for (int i = 0; i < remembered; i++)
        if (lo <= line->remembered[i] && line->remembered[i] < hi) shares++;
    return (uint64_t)shares * below[N_WORDS]
         + (uint64_t)(GRAMMAR_SHARE - remembered) * (below[hi] - below[lo]);
}

static void reader_next_word(const Language *lang, Reader *reader) {
    reader->letters = 0;
    reader->lo = 0;
    reader->hi = N_WORDS;
    reader->mass = language_mass(lang, &reader->line, 0, N_WORDS);
}

static void reader_start(const Language *lang, Reader *reader) {
    line_start(&reader->line);
    reader_next_word(lang, reader);
    reader->due = "";
}

// The first word in the reader's range whose next letter is not before this one.
static int reader_bound(const Language *lang, const Reader *reader, int letter) {
    int lo = reader->lo, hi = reader->hi;
    while (lo < hi) {
        int middle = (lo + hi) / 2;
        if (lang->words[middle].spelling[reader->letters] < letter) lo = middle + 1;
        else hi = middle;
    }
    return lo;
}

// Reads the character c and returns the probability that it had, given all that was read before.
// After a character of probability 0 the reader must not be used any more.
static double reader_read(const Language *lang, Reader *reader, int c) {
    Line *line = &reader->line;
    if (*reader->due) {
        if (c != *reader->due) return 0;
        reader->due++;
        if (c == '\n') reader_start(lang, reader);
        return 1;
    }

    int end = line->words + 1 >= SHORTEST_LINE ? END_SHARE : 0;
    const char *after = c == ',' ? ", " : c == ' ' ? " " : line->end;
    int share = 0;
    if (c == ',') share = COMMA_SHARE;
    else if (c == ' ') share = AFTER_SHARES - COMMA_SHARE - end;
    else if (c == *after) share = end;
    int capital = line->words == 0 && reader->letters == 0;
    int letter = capital ? c - 'A' + 'a' : c;
    if (share) letter = 0;                         // the word ends here, as its spelling does
    else if (letter < 'a' || letter > 'z') return 0;

    int lo = reader_bound(lang, reader, letter), hi = reader_bound(lang, reader, letter + 1);
    uint64_t mass = language_mass(lang, line, lo, hi);
    double p = (double)mass / (double)reader->mass;
    if (letter) {
        reader->letters++;
        reader->lo = lo;
        reader->hi = hi;
        reader->mass = mass;
        return p;
    }
    if (mass) {
        line_add(lang, line, lo);
        reader_next_word(lang, reader);
        reader->due = after + 1;
    }
    return p * share / AFTER_SHARES;
}

// Adds to *nats -log p of each of the n characters that follow a newline.
static void language_nats(const Language *lang, const int *text, int n, double *nats) {
    Reader reader;
    reader_start(lang, &reader);
    for (int i = 0; i < n; i++) *nats -= log(reader_read(lang, &reader, text[i]));
}

// ---------------------------------------------------------------------------
// A bigram source, of any vocabulary: the next token depends on the last one alone. With
// probability 0.9 it is that token's follower, otherwise a draw by Zipf's law, token 0 being the
// most frequent. A model without layers can learn it. Most tokens are rare, as in a real
// vocabulary, which bytes of text cannot show.

enum { FOLLOWER_TENTHS = 9 };

typedef struct {
    int V;
    int *follower;                                 // (V) a permutation of the tokens
    uint32_t *below;                               // (V+1) Zipf's mass of the tokens 0 .. v-1
} Bigram;

// The source with the vocabulary V: the same in all runs.
static void bigram_init(Bigram *source, int V) {
    uint64_t random = random_stream(LANGUAGE_SEED, 1, 0);
    source->V = V;
    source->follower = (int *)allocate((size_t)V, sizeof(int));
    source->below = (uint32_t *)allocate((size_t)V + 1, sizeof(uint32_t));
    for (int v = 0; v < V; v++) {                  // v goes to a random place among 0 .. v
        int place = (int)random_below(&random, (uint32_t)v + 1);
        source->follower[v] = source->follower[place];
        source->follower[place] = v;
        source->below[v + 1] = source->below[v] + zipf(v);
    }
}

// Writes the n tokens that follow the token `last`.
static void bigram_write(const Bigram *source, uint64_t *random, int last, int *tokens, int n) {
    for (int i = 0; i < n; i++) {
        if (random_below(random, 10) < FOLLOWER_TENTHS) last = source->follower[last];
        else last = draw(random, source->below, source->V);
        tokens[i] = last;
    }
}

// Adds to *nats -log p of each of the n tokens that follow the token `last`.
static void bigram_nats(const Bigram *source, int last, const int *tokens, int n, double *nats) {
    double follower = FOLLOWER_TENTHS / 10.0;
    for (int i = 0; i < n; last = tokens[i++]) {
        int next = tokens[i];
        double mass = (double)(source->below[next + 1] - source->below[next]);
        double p = (1 - follower) * mass / (double)source->below[source->V];
        if (next == source->follower[last]) p += follower;
        *nats -= log(p);
    }
}

// ---------------------------------------------------------------------------
// Files, told apart by their content, not by their names

typedef struct {
    const char *name;      // what such a file holds
    const char *magic;     // the bytes that mark it
    int length, place;     // of the magic, in bytes
    int width;             // bytes per token; 0: refused
    uint32_t version;      // of llm.c's header; 0: no header
    int vocab;             // without -vocab; 0: -vocab is needed
    const char *remedy;    // if refused
} FileKind;

#define MAGIC(bytes) bytes, sizeof(bytes) - 1
#define REFUSED 0, 0, 0
#define TO_UTF_8(from) "convert it first (iconv -f " from " -t utf-8)"

// The kinds without magic come first. llm.c's numbers are from its dev/data/data_common.py.
enum { BYTES, UINT16, FIRST_MAGIC };
static const FileKind FILE_KINDS[] = {
    {"text or bytes", MAGIC(""), 0, 1, 0, 256, NULL},
    {"uint16 tokens", MAGIC(""), 0, 2, 0, 0, NULL},
    {"llm.c's uint16 tokens", MAGIC("\x88\xd8\x34\x01"), 0, 2, 1, 50257, NULL},     // 20240520
    {"llm.c's uint32 tokens", MAGIC("\xa1\xd9\x34\x01"), 0, 4, 7, 128256, NULL},    // 20240801
    {"llm.c's multiple choice", MAGIC("\x8a\xd8\x34\x01"), 0, REFUSED, "give .bin tokens"},
    {"llm.c's tokenizer", MAGIC("\xc8\xd7\x34\x01"), 0, REFUSED, "give .bin tokens"},
    {"a NumPy array", MAGIC("\x93NUMPY"), 0, REFUSED, "write its uint16 tokens with tofile"},
    {"gzip data", MAGIC("\x1f\x8b\x08"), 0, REFUSED, "gunzip it first"},
    {"zstd data", MAGIC("\x28\xb5\x2f\xfd"), 0, REFUSED, "unzstd it first"},
    {"xz data", MAGIC("\xfd" "7zXZ"), 0, REFUSED, "unxz it first"},
    {"bzip2 data", MAGIC("1AY&SY"), 4, REFUSED, "bunzip2 it first"},
    {"a PDF", MAGIC("%PDF-"), 0, REFUSED, "make it text first (pdftotext)"},
    {"a Parquet table", MAGIC("PAR1\x15"), 0, REFUSED, "write its column of text to a file"},
    {"a zip archive", MAGIC("PK\x03\x04"), 0, REFUSED, "unzip it first"},
    // UTF-32 comes first: its mark begins with that of UTF-16
    {"UTF-32 text", MAGIC("\xff\xfe\0\0"), 0, REFUSED, TO_UTF_8("utf-32")},
    {"UTF-32 text", MAGIC("\0\0\xfe\xff"), 0, REFUSED, TO_UTF_8("utf-32")},
    {"UTF-16 text", MAGIC("\xff\xfe"), 0, REFUSED, TO_UTF_8("utf-16")},
    {"UTF-16 text", MAGIC("\xfe\xff"), 0, REFUSED, TO_UTF_8("utf-16")},
};
enum { NUM_FILE_KINDS = sizeof(FILE_KINDS) / sizeof(FILE_KINDS[0]) };

// Whether bytes look like text: no NUL, and hardly any other control character that text lacks.
static bool looks_like_text(const unsigned char *bytes, size_t size) {
    enum { ESCAPE = 27 };    // begins a color of a terminal
    size_t strange = 0;
    for (size_t i = 0; i < size; i++) {
        int c = bytes[i];
        if (c == 0) return false;
        strange += c < ' ' && !(c >= '\a' && c <= '\r') && c != ESCAPE;
    }
    return strange <= size / 64;
}

// Whether bytes look like uint16 tokens below 256: the high bytes are 0, the low ones are not all.
static bool looks_like_small_uint16(const unsigned char *bytes, size_t size) {
    bool any = false;
    for (size_t i = 0; i < size; i++) {
        if (i % 2 && bytes[i]) return false;
        any |= bytes[i] != 0;
    }
    return any;
}

// The kind of a file, from its first 2^16 bytes. nanoGPT's tokens have no header: with a vocabulary
// above 256 a file that is not text holds uint16 tokens. With a smaller one it holds bytes, unless
// it looks like uint16 tokens, as nanoGPT's of single characters do. Dies if this needs -vocab.
static const FileKind *file_kind(const char *path, const unsigned char *bytes, size_t size,
                                 int vocab) {
    static bool said;    // it is said once, not for every file and every run of a sweep
    size_t sample = size < 1 << 16 ? size : 1 << 16;
    for (int i = FIRST_MAGIC; i < NUM_FILE_KINDS; i++) {
        const FileKind *kind = &FILE_KINDS[i];
        size_t length = (size_t)kind->length, place = (size_t)kind->place;
        if (size >= place + length && memcmp(bytes + place, kind->magic, length) == 0) return kind;
    }
    if (looks_like_text(bytes, sample)) return &FILE_KINDS[BYTES];
    if (!vocab)
        die(FAILED, "%s: is not text and has no known header: give -vocab 256 if its bytes are "
            "the tokens, or -vocab 50257 (or the vocab_size in nanoGPT's meta.pkl) if it holds "
            "uint16 tokens", path);
    bool uint16 = vocab > 256 || (size % 2 == 0 && looks_like_small_uint16(bytes, sample));
    if (!said) print_sentence("%s: is not text and has no header: read as %s", path,
                              uint16 ? "uint16 tokens" : "bytes");
    said = true;
    return &FILE_KINDS[uint16 ? UINT16 : BYTES];
}

// ---------------------------------------------------------------------------
// Files, mapped rather than read, so that they may be larger than memory

typedef struct {
    const char *path;
    void *map;                     // the whole file
    size_t size;                   // its bytes
    const unsigned char *tokens;   // where its tokens begin
    const FileKind *kind;
    int64_t first, count;          // the tokens of this file that are used: first .. first+count-1
    int64_t rows;                  // the rows of T+1 tokens within them
} Shard;

typedef struct {                   // the training data or the validation data
    Shard *shards;
    glob_t paths;                  // as many, sorted
    int64_t stride;                // tokens from the start of a row to that of the next
    int64_t rows;                  // in all shards
} Part;

static const char *volatile reading = "";    // the file of the last token looked at

// A read past the end of a mapped file that has become shorter raises SIGBUS. A handler may call
// write and _exit, but not die.
static void on_bus_error(int number) {
    const char *const parts[] = {
        program_name(), ": ", reading, ": cannot be read any more: was it cut short meanwhile? "
        "The last checkpoint, if any, is intact\n"
    };
    (void)number;
    for (int i = 0; i < 4; i++)
        if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0) break;
    _exit(FAILED);
}

// A little-endian number of `width` bytes.
static uint32_t read_number(const unsigned char *bytes, int width) {
    uint32_t number = 0;
    while (width-- > 0) number = number << 8 | bytes[width];
    return number;
}

// Maps one file and finds its kind. llm.c's .bin has a header of 256 int32: magic, version, number
// of tokens.
static void shard_open(Shard *shard, const char *path, int vocab) {
    enum { HEADER = 256 * 4 };
    struct stat info;
    int file = open(path, O_RDONLY | O_NONBLOCK);    // a pipe must not wait for its writer
    if (file < 0 || fstat(file, &info))
        die(FAILED, "%s: cannot read it (%s): give 'synthetic', a text file, or .bin shards "
            "(a path or a pattern)", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        die(FAILED, "%s: is a %s, not a file: give a text file, or .bin shards "
            "(a path or a pattern)", path, S_ISDIR(info.st_mode) ? "directory" : "device");
    if (info.st_size == 0) die(FAILED, "%s: is empty: give a file with text or tokens", path);

    shard->path = path;
    shard->size = (size_t)info.st_size;
    shard->map = mmap(NULL, shard->size, PROT_READ, MAP_PRIVATE, file, 0);
    if (shard->map == MAP_FAILED)
        die(FAILED, "%s: cannot map its %lld bytes (%s): give smaller files", path,
            (long long)shard->size, strerror(errno));
    close(file);
    const unsigned char *bytes = (const unsigned char *)shard->map;

    reading = path;
    const FileKind *kind = file_kind(path, bytes, shard->size, vocab);
    if (!kind->width)
        die(FAILED, "%s: holds %s: %s", path, kind->name, kind->remedy);
    shard->kind = kind;
    shard->tokens = bytes;
    shard->count = info.st_size / kind->width;
    if (!kind->version && info.st_size % kind->width)
        die(FAILED, "%s: has %lld bytes, but uint16 tokens take 2 each: is it truncated?", path,
            (long long)info.st_size);
    if (!kind->version) return;
    if (shard->size < HEADER)
        die(FAILED, "%s: has %lld bytes, fewer than the %d of a .bin header: is it truncated?",
            path, (long long)shard->size, HEADER);
    uint32_t version = read_number(bytes + 4, 4);
    if (version != kind->version)
        die(FAILED, "%s: has version %u, but %s have version %u: make it with llm.c's dev/data "
            "scripts", path, version, kind->name, kind->version);
    shard->tokens += HEADER;
    shard->count = read_number(bytes + 8, 4);
    int64_t size = HEADER + kind->width * shard->count;
    if (info.st_size != size)
        die(FAILED, "%s: has %lld bytes, but its header's %lld tokens take %lld: is it truncated?",
            path, (long long)info.st_size, (long long)shard->count, (long long)size);
}

// Opens the file, or every file that matches the pattern, in sorted order.
static void part_open(Part *part, const char *pattern, int vocab) {
    // GLOB_NOCHECK: a pattern without a match stands for itself, and shard_open says what is wrong.
    if (glob(pattern, GLOB_NOCHECK, NULL, &part->paths) != 0)
        die(FAILED, "%s: cannot look for the files of this pattern", pattern);
    part->shards = (Shard *)allocate(part->paths.gl_pathc, sizeof(Shard));
    signal(SIGBUS, on_bus_error);
    for (size_t i = 0; i < part->paths.gl_pathc; i++)
        shard_open(&part->shards[i], part->paths.gl_pathv[i], vocab);
}

// Dies if a file is of another kind than `first`, the first one of -data.
static void part_check_kind(const Part *part, const Shard *first) {
    for (size_t i = 0; i < part->paths.gl_pathc; i++) {
        const Shard *shard = &part->shards[i];
        if (shard->kind != first->kind)
            die(FAILED, "%s: holds %s, but %s holds %s: all files of -data and -val must be of one "
                "kind", shard->path, shard->kind->name, first->path, first->kind->name);
    }
}

static int64_t part_tokens(const Part *part) {
    int64_t tokens = 0;
    for (size_t i = 0; i < part->paths.gl_pathc; i++) tokens += part->shards[i].count;
    return tokens;
}

// Keeps the tokens from .. to-1, counted through all shards.
static void part_keep(Part *part, int64_t from, int64_t to) {
    for (size_t i = 0; i < part->paths.gl_pathc; i++) {
        Shard *shard = &part->shards[i];
        int64_t lo = from < 0 ? 0 : from < shard->count ? from : shard->count;
        int64_t hi = to < 0 ? 0 : to < shard->count ? to : shard->count;
        from -= shard->count;
        to -= shard->count;
        shard->first = lo;
        shard->count = hi - lo;
    }
}

// Counts the rows of T+1 tokens, each within one shard, that start every `stride` tokens.
static void part_count_rows(Part *part, const char *name, int T, int64_t stride) {
    int64_t longest = 0;
    part->stride = stride;
    for (size_t i = 0; i < part->paths.gl_pathc; i++) {
        Shard *shard = &part->shards[i];
        shard->rows = shard->count > T ? (shard->count - T - 1) / stride + 1 : 0;
        part->rows += shard->rows;
        if (shard->count > longest) longest = shard->count;
    }
    if (part->rows == 0)
        die(FAILED, "%s: too short: its %s part has %lld tokens in one piece, -T %d takes %lld: "
            "give more data or a smaller -T", part->shards[0].path, name, (long long)longest, T,
            (long long)T + 1);
}

// The token at a place of a shard. Dies if it is not below vocab.
static int shard_token(const Shard *shard, int64_t at, int vocab) {
    int width = shard->kind->width;
    reading = shard->path;
    uint32_t token = read_number(shard->tokens + at * width, width);
    if (token >= (uint32_t)vocab)
        die(FAILED, "%s: token %u at position %lld is not below the vocabulary of %d: "
            "give a larger -vocab, or a saved model data like that it was trained on", shard->path,
            token, (long long)at, vocab);
    return (int)token;
}

// Checks the first 2^24 tokens of a part, before any is used. Data of any size still opens at once;
// a wrong token after these is found when it is drawn.
static void part_check_tokens(const Part *part, int vocab) {
    int64_t left = (int64_t)1 << 24;
    for (size_t i = 0; i < part->paths.gl_pathc; i++) {
        const Shard *shard = &part->shards[i];
        if (vocab >= (int64_t)1 << 8 * shard->kind->width) return;    // every token is below it
        for (int64_t at = 0; at < shard->count && left > 0; at++, left--)
            shard_token(shard, shard->first + at, vocab);
    }
}

static void part_close(Part *part) {
    for (size_t i = 0; i < part->paths.gl_pathc; i++)
        munmap(part->shards[i].map, part->shards[i].size);
    free(part->shards);
    globfree(&part->paths);
}

// ---------------------------------------------------------------------------
// The loader

typedef struct {
    int vocab;                     // every token is below it
    int T;                         // tokens a row
    int64_t val_windows;           // validation windows (INT64_MAX: without end)
    uint64_t seed;                 // of the training rows
    bool invented;                 // synthetic or bigram
    Language *language;            // if synthetic, otherwise NULL
    Bigram bigram;                 // if bigram
    Part train, val;               // if files
} DataLoader;

// data: "synthetic", "bigram", or files (a path or a pattern), all of one kind: text (its bytes are
// the tokens), llm.c's shards of uint16 or uint32 tokens, or nanoGPT's uint16 tokens.
// val: files for validation; NULL or "": the last tenth of data, all shards counted together.
// vocab: 0 for the natural one: 256, 4096 for bigram, GPT-2's 50257 for llm.c's uint16 tokens and
// Llama 3's 128256 for its uint32 tokens. T >= 1.
// Dies (FAILED) if a file is missing, unreadable, empty, damaged, of another kind or too short.
static void dataloader_init(DataLoader *loader, const char *data, const char *val, int vocab, int T,
                            uint64_t seed) {
    bool own_val = val && *val;
    memset(loader, 0, sizeof *loader);
    loader->T = T;
    loader->seed = seed;
    loader->vocab = vocab ? vocab : 256;

    bool synthetic = strcmp(data, "synthetic") == 0, bigram = strcmp(data, "bigram") == 0;
    loader->invented = synthetic || bigram;
    if (loader->invented) {
        if (own_val)
            die(FAILED, "%s: %s data includes validation rows: leave -val out", val, data);
        loader->val_windows = INT64_MAX;
    }
    if (synthetic) {
        if (loader->vocab < 128)
            die(FAILED, "synthetic: its tokens are ASCII characters: -vocab must be at least 128, "
                "not %d", vocab);
        loader->language = (Language *)allocate(1, sizeof(Language));
        language_init(loader->language, LANGUAGE_SEED);
        return;
    }
    if (bigram) {
        if (!vocab) loader->vocab = 4096;
        if (vocab == 1)
            die(FAILED, "bigram: one token leaves nothing to learn: -vocab must be at least 2");
        bigram_init(&loader->bigram, loader->vocab);
        return;
    }

    Part *train = &loader->train, *validation = &loader->val;
    if (!*data) die(FAILED, "-data: is empty: give 'synthetic', a text file, or .bin shards");
    part_open(train, data, vocab);
    part_open(validation, own_val ? val : data, vocab);
    part_check_kind(train, &train->shards[0]);
    part_check_kind(validation, &train->shards[0]);
    if (!vocab) loader->vocab = train->shards[0].kind->vocab;
    if (!own_val) {
        int64_t tokens = part_tokens(train), split = tokens - tokens / 10;
        part_keep(train, 0, split);
        part_keep(validation, split, tokens);
    }
    part_count_rows(train, "training", T, 1);
    part_count_rows(validation, own_val ? "validation" : "validation (the last tenth)", T, T);
    loader->val_windows = validation->rows;
    part_check_tokens(train, loader->vocab);
    part_check_tokens(validation, loader->vocab);
    // Training rows are random places: without this the system reads megabytes ahead for each.
    for (size_t i = 0; i < train->paths.gl_pathc; i++)
        posix_madvise(train->shards[i].map, train->shards[i].size, POSIX_MADV_RANDOM);
}

// inputs and targets (T): a row of the language from the start of a line on, or of the bigram
// source from a draw on.
static void dataloader_invented_row(const DataLoader *loader, uint64_t random, int *inputs,
                                    int *targets) {
    const Bigram *bigram = &loader->bigram;
    int T = loader->T;
    inputs[0] = loader->language ? '\n' : draw(&random, bigram->below, bigram->V);
    if (loader->language) language_write(loader->language, &random, targets, T);
    else bigram_write(bigram, &random, inputs[0], targets, T);
    memcpy(inputs + 1, targets, (size_t)(T - 1) * sizeof(int));
}

// inputs and targets (T): row number `row` of a part. Dies if a token is not below vocab.
static void dataloader_file_row(const DataLoader *loader, const Part *part, int64_t row,
                                int *inputs, int *targets) {
    const Shard *shard = part->shards;
    while (row >= shard->rows) row -= (shard++)->rows;
    int64_t start = shard->first + row * part->stride;
    for (int t = 0; t <= loader->T; t++) {
        int token = shard_token(shard, start + t, loader->vocab);
        if (t < loader->T) inputs[t] = token;
        if (t > 0) targets[t - 1] = token;
    }
}

// inputs and targets (B, T), targets[t] being what follows inputs[t]: the training batch of a step.
// Rows of files start anywhere, all places being equally likely.
static void dataloader_train(const DataLoader *loader, int64_t step, int B, int *inputs,
                             int *targets) {
    for (int b = 0; b < B; b++, inputs += loader->T, targets += loader->T) {
        uint64_t random = random_stream(loader->seed, (uint64_t)step, (uint64_t)b);
        if (loader->invented) dataloader_invented_row(loader, random, inputs, targets);
        else {                     // a file may have more than 2^32 rows, too many for random_below
            int64_t row = (int64_t)(random_u64(&random) % (uint64_t)loader->train.rows);
            dataloader_file_row(loader, &loader->train, row, inputs, targets);
        }
    }
}

// inputs and targets (rows, T): the validation windows `window` .. window+rows-1, which must be
// below val_windows. They are the same for every seed.
static void dataloader_val(const DataLoader *loader, int64_t window, int rows, int *inputs,
                           int *targets) {
    for (int b = 0; b < rows; b++, window++, inputs += loader->T, targets += loader->T) {
        // No training row has the number -1, so none comes from the same stream.
        uint64_t random = random_stream(0, (uint64_t)window, (uint64_t)-1);
        if (loader->invented) dataloader_invented_row(loader, random, inputs, targets);
        else dataloader_file_row(loader, &loader->val, window, inputs, targets);
    }
}

// The loss, in nats a token, of a reader who knows the language or the bigram source, on the first
// `windows` validation windows: the mean of -log p(next token | the row so far). NAN of files.
static double dataloader_entropy_floor(const DataLoader *loader, int64_t windows) {
    if (!loader->invented) return NAN;
    int T = loader->T;
    int *inputs = (int *)allocate(2 * (size_t)T, sizeof(int)), *targets = inputs + T;
    double nats = 0;
    for (int64_t window = 0; window < windows; window++) {
        dataloader_val(loader, window, 1, inputs, targets);
        if (loader->language) language_nats(loader->language, targets, T, &nats);
        else bigram_nats(&loader->bigram, inputs[0], targets, T, &nats);
    }
    free(inputs);
    return nats / ((double)windows * T);
}

// The tokens in the files, for training and for validation; 0 if they are invented.
static double dataloader_tokens(const DataLoader *loader) {
    return (double)(part_tokens(&loader->train) + part_tokens(&loader->val));
}

// The number of validation windows for a loss over this many tokens: at least 1.
static int64_t eval_windows(const DataLoader *loader, int eval_tokens) {
    int64_t windows = eval_tokens / loader->T > 0 ? eval_tokens / loader->T : 1;
    return windows < loader->val_windows ? windows : loader->val_windows;
}

static void dataloader_free(DataLoader *loader) {
    part_close(&loader->train);    // empty without files
    part_close(&loader->val);
    free(loader->language);
    free(loader->bigram.follower);
    free(loader->bigram.below);
}

#endif

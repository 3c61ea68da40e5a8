// data_shim.c: dataloader.h as a library, for test_data.py. As C or C++: both must give the same
// text.
#include "../../dataloader.h"

#ifdef __cplusplus
#define EXPORT extern "C" __attribute__((visibility("default")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// ---------------------------------------------------------------------------
// The loader

EXPORT DataLoader *loader_new(const char *data, const char *val, int vocab, int T, uint64_t seed) {
    DataLoader *loader = (DataLoader *)malloc(sizeof(DataLoader));
    dataloader_init(loader, data, val, vocab, T, seed);
    return loader;
}

EXPORT void loader_delete(DataLoader *loader) {
    dataloader_free(loader);
    free(loader);
}

EXPORT int loader_vocab(const DataLoader *loader) { return loader->vocab; }
EXPORT int64_t loader_val_windows(const DataLoader *loader) { return loader->val_windows; }

EXPORT void loader_train(const DataLoader *loader, int64_t step, int B, int *inputs, int *targets) {
    dataloader_train(loader, step, B, inputs, targets);
}

EXPORT void loader_val(const DataLoader *loader, int64_t window, int rows, int *inputs,
                       int *targets) {
    dataloader_val(loader, window, rows, inputs, targets);
}

EXPORT double loader_entropy_floor(const DataLoader *loader, int64_t windows) {
    return dataloader_entropy_floor(loader, windows);
}

// ---------------------------------------------------------------------------
// The bigram source

EXPORT int bigram_follower(const DataLoader *loader, int v) { return loader->bigram.follower[v]; }

// The sum of -log p over the n tokens after tokens[0]
EXPORT double bigram_nats_after(const DataLoader *loader, const int *tokens, int n) {
    double nats = 0;
    bigram_nats(&loader->bigram, tokens[0], tokens + 1, n, &nats);
    return nats;
}

// ---------------------------------------------------------------------------
// The language

EXPORT Language *language_new(uint64_t seed) {
    Language *lang = (Language *)malloc(sizeof(Language));
    language_init(lang, seed);
    return lang;
}

EXPORT void language_delete(Language *lang) { free(lang); }

// The tables, with 0 <= w < 1000 and 0 <= kind <= 16 (16: the start of a line).
EXPORT const char *language_spelling(const Language *lang, int w) {
    return lang->words[w].spelling;
}
EXPORT int language_kind(const Language *lang, int w) { return lang->words[w].kind; }
EXPORT uint32_t language_frequency(const Language *lang, int w) { return lang->words[w].frequency; }
EXPORT int language_follower(const Language *lang, int w, int i) {
    return lang->words[w].followers[i];
}
EXPORT uint32_t language_grammar(const Language *lang, int kind, int w) {
    return lang->below[kind][w + 1] - lang->below[kind][w];
}

EXPORT void language_text(const Language *lang, uint64_t random, int *text, int n) {
    language_write(lang, &random, text, n);
}

// text (n): what follows a newline. seen (n): the probability that each character had.
// If `all` is not NULL, all (n, 256): the probability that each possible one had in its place.
EXPORT void language_probabilities(const Language *lang, const int *text, int n, double *seen,
                                   double *all) {
    Reader reader;
    reader_start(lang, &reader);
    for (int i = 0; i < n; i++) {
        for (int c = 0; all && c < 256; c++) {
            Reader trial = reader;
            all[(size_t)i * 256 + c] = reader_read(lang, &trial, c);
        }
        seen[i] = reader_read(lang, &reader, text[i]);
    }
}

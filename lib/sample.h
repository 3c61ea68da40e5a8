// lib/sample.h: text drawn from a model. It continues a prompt, and is written as bytes, as the
// numbers of tokens, or as the text of each token in a vocabulary file.
#ifndef SAMPLE_H
#define SAMPLE_H

#include "flags.h"    // Config, parse_number; die, allocate, random_uniform

// ---------------------------------------------------------------------------
// A vocabulary file: llm.c's gpt2_tokenizer.bin (its llmc/tokenizer.h reads it too)
//
//   256 uint32   magic number, version, number of tokens; in version 2 the end-of-text token, which
//                in version 1 is GPT-2's; zeros
//   tokens       for each a byte, its length from 1 to 255, and then its bytes

typedef struct {
    int count;                     // tokens; 0: no file
    int end_of_text;
    unsigned char (*token)[256];   // (count) the length, and then the bytes
} Tokenizer;

// Reads -tokenizer for a model of V tokens. Dies unless it is the vocabulary file of such a model.
// V may be padded to a multiple of 128, as is usual for speed.
static Tokenizer tokenizer_read(const char *path, int V) {
    enum { MAGIC = 20240328, GPT2_END_OF_TEXT = 50256, PADDING = 128 };
    uint32_t header[256];
    FILE *file = fopen(path, "rb");
    if (!file) die(FAILED, "-tokenizer: cannot read %s: %s", path, strerror(errno));
    if (fread(header, sizeof header, 1, file) != 1 || header[0] != MAGIC || header[1] < 1 ||
        header[1] > 2)
        die(FAILED, "%s: is not a vocabulary file of version 1 or 2: give the gpt2_tokenizer.bin "
            "that llm.c makes", path);
    int64_t count = header[2], end_of_text = GPT2_END_OF_TEXT;
    if (header[1] == 2) end_of_text = header[3];
    if (count > V || V >= count + PADDING || end_of_text >= count)
        die(FAILED, "%s: has %lld tokens and the end-of-text token %lld, but the model has %d "
            "tokens: give the vocabulary file of its data", path, (long long)count,
            (long long)end_of_text, V);
    Tokenizer t = {(int)count, (int)end_of_text, NULL};
    t.token = (unsigned char (*)[256])allocate((size_t)count, sizeof *t.token);
    for (int i = 0; i < t.count; i++) {
        int length = getc(file);
        if (length <= 0 || fread(t.token[i] + 1, 1, (size_t)length, file) != (size_t)length)
            die(FAILED, "%s: is damaged: token %d of %d is empty, or the file ends before it", path,
                i, t.count);
        t.token[i][0] = (unsigned char)length;
    }
    if (getc(file) != EOF)
        die(FAILED, "%s: is damaged: it goes on after its %d tokens", path, t.count);
    fclose(file);
    return t;
}

// ---------------------------------------------------------------------------
// Sampling

// A token drawn from softmax(logits / temperature) (V); the most likely one at temperature 0.
static int sample_token(const real *logits, int V, double temperature, uint64_t *random) {
    int best = 0;
    double sum = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    if (temperature == 0) return best;
    for (int i = 0; i < V; i++) sum += exp((logits[i] - logits[best]) / temperature);
    double target = random_uniform(random) * sum;
    for (int i = 0; i < V; i++) {
        target -= exp((logits[i] - logits[best]) / temperature);
        if (target < 0) return i;
    }
    return best;
}

// The tokens of -prompt: its bytes, or the numbers that it lists. Returns their count. Dies if one
// is not below V.
static int prompt_tokens(const char *prompt, bool bytes, int V, int tokens[MAX_TEXT]) {
    int n = 0;
    char text[MAX_TEXT], *rest = text, *word;
    if (bytes) {
        for (; prompt[n]; n++) {
            tokens[n] = (unsigned char)prompt[n];
            if (tokens[n] >= V)
                die(USAGE, "-prompt: its byte %d, which is %d, is not a token of this model; its "
                    "tokens are the bytes below %d", n + 1, tokens[n], V);
        }
        return n;
    }
    strcpy(text, prompt);
    while ((word = strsep(&rest, " "))) {
        if (!*word) continue;
        double number = parse_number(word);
        if (!(number >= 0 && number < V && number == floor(number)))
            die(USAGE, "-prompt: '%s' is not a token of this model; its tokens are numbers from 0 "
                "to %d, such as -prompt \"0 %d\"; text is not encoded, not even with -tokenizer",
                word, V - 1, V - 1);
        tokens[n++] = (int)number;
    }
    return n;
}

// A control character: of ASCII, or the last byte of one of U+0080 to U+009F, or such a byte alone
static bool is_control(unsigned char byte, unsigned char before) {
    if (byte >= 0x80) return byte < 0xa0 && (before < 0x80 || before == 0xc2);
    return iscntrl(byte) && byte != '\n' && byte != '\t';
}

// Writes one token: its bytes, on a terminal with a dot for a control character, or its number.
static void sample_write(int token, const Tokenizer *t, bool bytes, bool terminal) {
    static unsigned char before;
    unsigned char byte = (unsigned char)token;
    const unsigned char *text = t->token ? t->token[token] + 1 : &byte;
    int length = t->token ? t->token[token][0] : bytes ? 1 : 0;    // 0: it has only a number
    if (length == 0) printf("%d ", token);
    for (int i = 0; i < length; i++) {
        putchar(terminal && is_control(text[i], before) ? '.' : text[i]);
        before = text[i];
    }
}

static void check_logits(const Config *cfg, const real *logits, int V) {
    for (int i = 0; i < V; i++)
        if (!isfinite(logits[i]))
            die(FAILED, "%s/model.safetensors: its logits are not finite: the run diverged; "
                "-sample needs another -out", cfg->out);
}

// Writes the tokens of -prompt and then -sample more. Without a prompt the model goes on from a
// newline or, with a vocabulary above 256, from the end-of-text token, which is GPT-2's last.
// logits_after(model, context, used): the logits (V) of the token after context (used).
static void sample_text(const Config *cfg, const real *(*logits_after)(void *, const int *, int),
                        void *model) {
    int T = cfg->T, V = cfg->vocab, used = 0, drawn = V, prompt[MAX_TEXT];
    bool terminal = isatty(STDOUT_FILENO), bytes = V <= 256 && strcmp(cfg->data, "bigram");
    int *context = (int *)allocate((size_t)T, sizeof(int));
    uint64_t random = (uint64_t)cfg->seed;
    Tokenizer tokenizer = {0, V - 1, NULL};
    if (bytes && *cfg->tokenizer)
        die(USAGE, "-tokenizer: the tokens of this model are bytes; leave -tokenizer out");
    if (*cfg->tokenizer) {
        tokenizer = tokenizer_read(cfg->tokenizer, V);
        drawn = tokenizer.count;    // padding has no text
    }
    int n = prompt_tokens(cfg->prompt, bytes, drawn, prompt);
    if (n == 0) context[used++] = V <= 256 ? '\n' % V : tokenizer.end_of_text;
    for (int i = 0; i < n + cfg->sample; i++) {
        int token;
        if (i < n) token = prompt[i];
        else {
            const real *logits = logits_after(model, context, used);
            check_logits(cfg, logits, V);
            token = sample_token(logits, drawn, cfg->temperature, &random);
        }
        sample_write(token, &tokenizer, bytes, terminal);
        if (used == T) memmove(context, context + 1, (size_t)(T - 1) * sizeof(int));
        else used++;
        context[used - 1] = token;
    }
    putchar('\n');
    if (fflush(stdout) || ferror(stdout))
        die(FAILED, "cannot write the sample: %s", strerror(errno));
    free(context);
    free(tokenizer.token);
}

#endif

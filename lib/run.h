// lib/run.h: a run's log, live line, summary, diagnosis and end; the output of -eval; signals and
// memory.
#ifndef RUN_H
#define RUN_H

#include "checkpoint.h"    // State, path_in, flag_text

// ---------------------------------------------------------------------------
// The measurements of a run: the columns of log.csv

// Activations whose RMS over a batch and over the layers is logged. ACT_C_ATTN is q, k and v before
// qk-norm but after -kappa, ACT_ATT the output of attention, ACT_C_FC the MLP before GELU,
// ACT_RESIDUAL the last residual.
enum { ACT_WTE, ACT_C_ATTN, ACT_ATT, ACT_C_FC, ACT_RESIDUAL, ACT_LOGITS, NUM_ACTIVATIONS };
// Sums over activations: of the squares of each kind, and of the output logits themselves
enum { SUM_LOGITS = NUM_ACTIVATIONS, NUM_SUMS };
static const char *const ACTIVATIONS[NUM_ACTIVATIONS] = {
    "wte", "c_attn", "att", "c_fc", "residual", "logits"
};

// What is logged layer by layer: the largest |scale q.k|; the RMS of q and of k as attention sees
// them, and the cosine between the two of that largest (E.1); the RMS of the block's output (C.1);
// and of two tensors' gradients and updates (E.12, E.13). train_gpt_cu: the first, and gradients.
enum {
    MAX_ATTN_LOGIT, Q_RMS, K_RMS, QK_COSINE, BLOCK_RMS, C_FC_GRAD_RMS, C_FC_UPDATE_RMS,
    ATTN_C_PROJ_GRAD_RMS, ATTN_C_PROJ_UPDATE_RMS, NUM_BY_LAYER
};
static const char *const BY_LAYER[NUM_BY_LAYER] = {
    "max_attn_logit", "q_rms", "k_rms", "qk_cosine", "block_rms", "c_fc_grad_rms",
    "c_fc_update_rms", "attn_c_proj_grad_rms", "attn_c_proj_update_rms"
};

typedef struct {
    double train_loss, val_loss;            // nats per token; NAN: not measured at this step
    double grad_norm;                       // of all gradients together, before clipping
    double log_z;                           // the mean of log Z
    // of logged steps only
    double mean_logit;                      // of the output logits, over rows and vocabulary
    double by_layer[NUM_BY_LAYER][MAX_LAYERS];
    double act_rms[NUM_ACTIVATIONS];
    double grad_rms[NUM_KINDS];             // of the gradient, before clipping
    double param_rms[NUM_KINDS];
    double update_rms[NUM_KINDS];           // of AdamW's update without the learning rate
} Stats;

// ---------------------------------------------------------------------------
// A run and its results

// The results of a run: its row of summary.csv.
typedef struct {
    Config cfg;
    int threads;
    size_t parameters, non_embedding;    // all of them; without the embedding and the head
    double initial_loss, best_loss, final_loss, entropy_floor;
    int diverged_step;                   // 0: not diverged
    double max_attn_logit, log_z, grad_norm, seconds, tokens_per_second;
} Summary;

// STOPPED: by a signal, with a checkpoint; BROKEN: failed.
typedef enum { WAITING, RUNNING, DONE, STOPPED, BROKEN } RunState;

// The messages from a run to its sweep, in memory that the two processes share.
typedef struct {
    RunState state;
    pid_t sweep;
    int step;
    double loss;            // the training loss of this step
    double seconds_left;    // a whole number
    Summary summary;        // once the run is DONE
} Progress;

typedef struct {
    const Config *cfg;
    const Parameter *table;
    size_t num_parameters;
    int threads;
    double entropy_floor;         // NAN: not known
    Progress *progress;           // NULL: a single run, which shows itself
    State start;                  // at the checkpoint; zeros: a new run
    int diverged_step;            // 0: not diverged
    double data_tokens;           // in the data's files; 0: invented data
    FILE *log;
    double started, shown;        // by now(); shown: the live line
} Run;

// ---------------------------------------------------------------------------
// Signals and memory

static volatile sig_atomic_t interrupted = 0;    // the signal that asks the run to stop

static void on_signal(int number) { interrupted = number; }

// From here on a signal stops the run after the current step, with a checkpoint. An ignored signal
// stays ignored: nohup's SIGHUP, the SIGINT of a script's background job.
static void catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;    // the write of a checkpoint continues
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!sigaction(numbers[i], NULL, &old) && old.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    signal(SIGXFSZ, SIG_IGN);        // a file that grows too large is a failed write
    signal(SIGCHLD, SIG_DFL);        // if it is ignored, a sweep cannot wait for its runs
}

// The stream for a last message: after SIGPIPE nobody reads stdout.
static FILE *listener(void) { return interrupted == SIGPIPE ? stderr : stdout; }

// The command that goes on with the run in this folder. A checkpoint does not hold -micro_batch (0:
// not given), without which the run would need more memory and round differently.
static void say_resume(const char *folder, int micro_batch) {
    fprintf(listener(), "%s -resume ", shell_word(program));
    if (micro_batch) fprintf(listener(), "-micro_batch %d ", micro_batch);
    fprintf(listener(), "-out ");
    fprintf(listener(), "%s\n", shell_word(folder));
}

// The number in the first line of this format; NAN if there is none.
static double number_in(const char *path, const char *format) {
    double number = NAN;
    char line[128];
    FILE *file = fopen(path, "r");
    while (file && isnan(number) && fgets(line, sizeof line, file)) sscanf(line, format, &number);
    if (file) fclose(file);
    return number;
}

// Dies, before anything is allocated, if the machine or the container has less free memory. The
// page cache of the container does not count. fmin ignores NAN, which stands for no limit.
static void check_memory(double bytes) {
    double limit = number_in("/sys/fs/cgroup/memory.max", "%lf");
    double machine = 1024 * number_in("/proc/meminfo", "MemAvailable: %lf");
    double available = fmin(machine, limit - number_in("/sys/fs/cgroup/memory.stat", "anon %lf"));
    if (bytes > available)
        die(FAILED, "the run needs %.3g GB of memory and %.3g GB are free; try a smaller -d, "
            "-layers, -T or -batch", 1e-9 * bytes, 1e-9 * available);
}

// ---------------------------------------------------------------------------
// Reading log.csv

typedef struct {
    int rows, cols;
    char (*names)[64];
    double *values;      // (rows,cols); NAN: an empty cell
} Csv;

// Reads the numbers in a run's log. Dies if it has no header.
static Csv csv_read(const Config *cfg) {
    Csv csv = {-1, 1, NULL, NULL};    // -1: the header is not a row
    char path[MAX_TEXT], *line = NULL;
    size_t room = 0;
    path_in(cfg, "log.csv", path);
    FILE *file = fopen(path, "r");
    if (!file) die(FAILED, "%s: %s", path, strerror(errno));
    while (getline(&line, &room, file) > 0) csv.rows++;
    rewind(file);
    if (getline(&line, &room, file) <= 0) die(FAILED, "%s: cannot be read, or is empty", path);
    for (char *c = line; *c; c++) csv.cols += *c == ',';
    csv.names = (char (*)[64])allocate((size_t)csv.cols, 64);
    csv.values = (double *)allocate((size_t)csv.rows * (size_t)csv.cols, sizeof(double));
    double *value = csv.values;
    for (int i = -1; i < csv.rows; i++) {
        char *rest = line;
        line[strcspn(line, "\r\n")] = 0;
        for (int j = 0; j < csv.cols; j++) {
            const char *cell = strsep(&rest, ",");
            if (i < 0) snprintf(csv.names[j], 64, "%s", cell);
            else *value++ = cell ? parse_number(cell) : NAN;
        }
        if (getline(&line, &room, file) <= 0) break;
    }
    fclose(file);
    free(line);
    return csv;
}

static void csv_free(Csv *csv) {
    free(csv->names);
    free(csv->values);
}

// The position of a column; -1 if the log does not have it.
static int csv_column(const Csv *csv, const char *name) {
    int column = csv->cols - 1;
    while (column >= 0 && strcmp(csv->names[column], name)) column--;
    return column;
}

// A cell; NAN if there is no such row or column.
static double csv_cell(const Csv *csv, int row, int column) {
    bool exists = row >= 0 && row < csv->rows && column >= 0;
    return exists ? csv->values[(size_t)row * (size_t)csv->cols + (size_t)column] : NAN;
}

static double csv_value(const Csv *csv, int row, const char *name) {
    return csv_cell(csv, row, csv_column(csv, name));
}

// The largest (sign 1) or least (-1) value of a column.
static double csv_extreme(const Csv *csv, const char *name, double sign) {
    int column = csv_column(csv, name);
    double best = NAN;
    for (int i = 0; i < csv->rows; i++) {
        double x = csv_cell(csv, i, column);
        if (!isnan(x) && !(sign * x <= sign * best)) best = x;
    }
    return best;
}

// The last value of a column.
static double csv_last(const Csv *csv, const char *name) {
    int column = csv_column(csv, name), row = csv->rows - 1;
    while (row > 0 && isnan(csv_cell(csv, row, column))) row--;
    return csv_cell(csv, row, column);
}

// The largest attention logit of any layer, 0 if there is none.
static double max_attn_logit(const Csv *log, int layers) {
    double most = 0;
    for (int l = 0; l < layers; l++) {
        char name[64];
        snprintf(name, sizeof name, "max_attn_logit_%d", l);
        most = fmax(most, csv_extreme(log, name, 1));    // fmax ignores NAN
    }
    return most;
}

// ---------------------------------------------------------------------------
// Writing log.csv

__attribute__((noreturn))
static void log_fail(const Config *cfg) {
    die(FAILED, "cannot write %s/log.csv: %s (the last checkpoint is intact)", cfg->out,
        strerror(errno));
}

// Dies unless this can be the log that the checkpoint was written beside: a row ends at log_bytes,
// and its step is not after the checkpoint's.
static void log_check(FILE *log, const char *path, const State *state) {
    char *line = NULL;
    size_t room = 0;
    long at = 0, n = 0;
    while (at < state->log_bytes && (n = getline(&line, &room, log)) > 0) at += n;
    if (at != state->log_bytes || line[n - 1] != '\n' || strtol(line, NULL, 10) > state->step)
        die(FAILED, "%s: not the log of this checkpoint: no row up to step %d ends at byte %ld",
            path, state->step, state->log_bytes);
    free(line);
}

// The header. log_row writes the columns in the same order.
static void log_header(FILE *log, const Config *cfg, const Parameter *table) {
    static const char *const groups[3] = {"grad", "param", "update"};
    fprintf(log, "step,tokens,lr,train_loss,val_loss,grad_norm,log_z,mean_logit");
    for (int i = 0; i < NUM_BY_LAYER; i++)
        for (int l = 0; l < cfg->layers; l++) fprintf(log, ",%s_%d", BY_LAYER[i], l);
    for (int a = 0; a < NUM_ACTIVATIONS; a++) fprintf(log, ",act_rms_%s", ACTIVATIONS[a]);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < NUM_KINDS; k++)
            if (table[k].copies) fprintf(log, ",%s_rms_%s", groups[i], table[k].kind);
    fprintf(log, ",tokens_per_second\n");
}

static void log_number(FILE *file, double value) {
    if (isnan(value)) fputs(",", file);
    else fprintf(file, ",%.9g", value);
}

// The tokens trained on after a step. A resume may have changed -batch and -T.
static double run_tokens(const Run *run, int step) {
    double steps = step - run->start.step;
    return run->start.tokens + steps * run->cfg->batch * run->cfg->T;
}

// measured: whether the step measured more than its losses, the gradient's norm and log Z.
static void log_row(Run *run, const Stats *s, int step, int measured) {
    const Config *cfg = run->cfg;
    const double *groups[3] = {s->grad_rms, s->param_rms, s->update_rms};
    double tokens = run_tokens(run, step);
    double speed = (tokens - run->start.tokens) / (now() - run->started);
    fprintf(run->log, "%d,%.0f", step, tokens);
    log_number(run->log, step ? learning_rate(cfg, step) : NAN);
    if (step && isnan(s->train_loss)) fputs(",nan", run->log);    // measured, and not a number
    else log_number(run->log, s->train_loss);
    log_number(run->log, s->val_loss);
    log_number(run->log, s->grad_norm);
    log_number(run->log, s->log_z);
    log_number(run->log, measured ? s->mean_logit : NAN);
    for (int i = 0; i < NUM_BY_LAYER; i++)
        for (int l = 0; l < cfg->layers; l++)
            log_number(run->log, measured ? s->by_layer[i][l] : NAN);
    for (int a = 0; a < NUM_ACTIVATIONS; a++) log_number(run->log, measured ? s->act_rms[a] : NAN);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < NUM_KINDS; k++)
            if (run->table[k].copies) log_number(run->log, measured ? groups[i][k] : NAN);
    log_number(run->log, step ? speed : NAN);
    fputc('\n', run->log);
    if (fflush(run->log) || ferror(run->log)) log_fail(cfg);
}

// Locks a run's log until the process ends. Dies if another process has it, or had it and replaced
// it since this one opened it.
static void log_lock(int file, const char *path) {
    struct stat ours, there;
    if ((flock(file, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) || fstat(file, &ours) ||
        stat(path, &there) || ours.st_ino != there.st_ino)
        die(FAILED, "%s: another process is writing it; wait until it has ended, or choose "
            "another -out", path);
}

// Opens log.csv: a new one or, to resume, the existing one, truncated to its length at the
// checkpoint. An older run's results stay until the new run's first checkpoint replaces them: then
// the old log is locked too, and the new one is log.csv.new.
static FILE *log_open(const Config *cfg, const Parameter *table, const State *state) {
    char path[MAX_TEXT], fresh[MAX_TEXT], summary[MAX_TEXT], model[MAX_TEXT], part[MAX_TEXT];
    bool resumed = state->log_bytes > 0;
    struct stat info;
    // the longest path comes first: if -out is too long, this dies before a folder is made
    path_in(cfg, "model.safetensors.new.tmp", part);
    path_in(cfg, "model.safetensors", model);
    path_in(cfg, "summary.csv", summary);
    path_in(cfg, "log.csv.new", fresh);
    path_in(cfg, "log.csv", path);
    make_folders(cfg->out);
    results_check(cfg);
    results_replace(cfg);
    if (access(path, F_OK) && !access(summary, F_OK))
        die(FAILED, "%s belongs to a sweep: choose another -out", summary);
    if (!lstat(path, &info) && S_ISLNK(info.st_mode))    // the log of another run may be behind it
        die(FAILED, "%s is a link to another file: choose another -out, or remove it", path);
    catch_signals();
    static FILE *logs[2];    // old and new; the old one stays open, and so locked, to the end
    logs[0] = fopen(path, resumed ? "r+" : "a");
    if (!logs[0])
        die(FAILED, "cannot write %s%s: %s", path, resumed ? ", which -resume needs" : "",
            strerror(errno));
    log_lock(fileno(logs[0]), path);
    // remove what a new run left that was killed before its first checkpoint
    if ((unlink(fresh) && errno != ENOENT) || (unlink(part) && errno != ENOENT))
        die(FAILED, "cannot remove %s: %s", fresh, strerror(errno));
    bool replaces = !resumed && (!access(summary, F_OK) || !access(model, F_OK));
    if (replaces) {
        logs[1] = fopen(fresh, "w");
        if (!logs[1]) die(FAILED, "cannot write %s: %s", fresh, strerror(errno));
        log_lock(fileno(logs[1]), fresh);
    }
    FILE *log = logs[replaces];
    if (resumed) log_check(log, path, state);
    if (resumed && unlink(summary) && errno != ENOENT)
        die(FAILED, "cannot replace %s: %s", summary, strerror(errno));
    if (ftruncate(fileno(log), state->log_bytes) || fseek(log, 0, SEEK_END))
        die(FAILED, "cannot truncate %s: %s", replaces ? fresh : path, strerror(errno));
    if (!resumed) log_header(log, cfg, table);
    return log;
}

// ---------------------------------------------------------------------------
// The run, from its start to each step

// Opens the log and prints the run's size, and what a resume changed. bytes: of memory.
// data_tokens: in the data's files. device: the GPU; NULL: the CPU. progress: of the sweep to which
// the run belongs, which then prints nothing; NULL: a single run.
static Run run_begin(const Config *cfg, const Parameter *table, size_t num_parameters, double bytes,
                     const State *state, double data_tokens, double entropy_floor,
                     const char *device, int threads, Progress *progress) {
    Run run = {cfg, table, num_parameters, threads, entropy_floor, progress, *state,
               state->diverged_step, data_tokens, log_open(cfg, table, state), 0, 0};
    run.started = now();
    if (progress) return run;
    char where[300], fresh[MAX_TEXT];
    if (device) snprintf(where, sizeof where, "on %s", device);
    else snprintf(where, sizeof where, "%d thread%s", threads, threads > 1 ? "s" : "");
    printf("%s:\n", cfg->out);
    print_sentence("%zu parameters, %d layers of width %d, %d heads, %s, %.1f MB of memory",
                   num_parameters, cfg->layers, cfg->d, cfg->heads, where, 1e-6 * bytes);
    if (!isnan(entropy_floor))
        printf("no model can go below a validation loss of %.4f: the entropy of the language\n",
               entropy_floor);
    path_in(cfg, "log.csv.new", fresh);
    if (!access(fresh, F_OK))
        printf("the older results in this folder stay until the first checkpoint\n");
    if (state->log_bytes) print_sentence("resuming after step %d%s", state->step, resume_changes);
    else if (*cfg->init) print_sentence("starting from the weights of %s", cfg->init);
    if (state->data_tokens > 0 && data_tokens > 0 && data_tokens != state->data_tokens)
        print_sentence("the data has %.0f tokens now, and had %.0f at the checkpoint: its batches "
                       "differ from here on", data_tokens, state->data_tokens);
    return run;
}

// A live line on a terminal, and a line that stays at each validation. In a sweep: the figures for
// the sweep's line. The fields that a narrow terminal has no room for come last.
static void run_show(Run *run, const Stats *s, int step) {
    const Config *cfg = run->cfg;
    Progress *progress = run->progress;
    double seconds = now() - run->started, steps = step - run->start.step;
    double left = step ? floor(seconds / steps * (cfg->steps - step)) : 0;
    if (progress) {
        progress->step = step;
        progress->loss = s->train_loss;
        progress->seconds_left = left;
        if (getppid() != progress->sweep) interrupted = SIGTERM;    // the sweep was killed
        return;
    }
    bool live = isatty(STDOUT_FILENO);
    bool stays = !isnan(s->val_loss) || step == cfg->steps || run->diverged_step;
    if (!stays && (!live || interrupted || seconds - run->shown < 0.2)) return;
    run->shown = seconds;
    char train[32] = "", val[32] = "", rest[128] = "";
    if (step) snprintf(train, sizeof train, "  train %#.5g", fabs(s->train_loss));    // not -nan
    if (!isnan(s->val_loss)) snprintf(val, sizeof val, "  val %#.5g", s->val_loss);
    if (step)
        snprintf(rest, sizeof rest, "  lr %.1e  grad %.2g  %.0f:%02.0f left  %.0f tok/s",
                 learning_rate(cfg, step), fabs(s->grad_norm), floor(left / 60), fmod(left, 60),
                 steps * cfg->batch * cfg->T / seconds);
    if (live) printf("\r\033[K");
    print_fields("step %*d/%d%s%s%s", (int)log10(cfg->steps + 1.0) + 1, step, cfg->steps, train,
                 val, rest);
    if (stays) putchar('\n');
    fflush(stdout);
}

// Logs and shows step 0: the loss at initialization, before any update.
static void run_initial(Run *run, Stats *s, double val_loss) {
    s->train_loss = s->grad_norm = s->log_z = NAN;
    s->val_loss = val_loss;
    log_row(run, s, 0, 0);
    run_show(run, s, 0);
    run->started = now();
    run->shown = 0;
}

// Whether a gradient of this norm makes AdamW's v overflow, clipped as it is.
static bool gradient_overflows(const Config *cfg, double norm) {
    return norm > LARGEST_SQUARED && (cfg->clip == 0 || cfg->clip > LARGEST_SQUARED);
}

// Logs and shows a step. logged: whether log.csv gets a row for it. A step that ends the run always
// gets one.
static void run_step(Run *run, const Stats *s, int step, int logged) {
    bool fatal = run->diverged_step || gradient_overflows(run->cfg, s->grad_norm);
    if (logged || fatal) log_row(run, s, step, logged);
    run_show(run, s, step);
}

static double run_seconds(const Run *run) { return run->start.seconds + now() - run->started; }

// The state after a step, with log.csv on the disk up to there.
static State run_state(Run *run, int step) {
    long bytes = fflush(run->log) || fsync(fileno(run->log)) ? -1 : ftell(run->log);
    if (bytes < 0) log_fail(run->cfg);
    State state = {step, run_seconds(run), bytes, run->diverged_step, run_tokens(run, step),
                   run->data_tokens};
    return state;
}

// ---------------------------------------------------------------------------
// summary.csv

// Writes a cell, in quotes if the text needs them.
static void csv_write_text(FILE *file, const char *text) {
    const char *quote = strpbrk(text, ",\"") ? "\"" : "";
    fputs(quote, file);
    for (; *text; text++) {
        if (*text == '"') fputc('"', file);
        fputc(*text, file);
    }
    fputs(quote, file);
}

// A run diverged if its final loss is not below the loss at initialization.
static bool summary_diverged(const Summary *s) { return !(s->final_loss < s->initial_loss); }

static void summary_row(FILE *file, const Summary *s) {
    for (int i = 0; i < NUM_FLAGS; i++) {
        char text[MAX_TEXT];
        flag_text(&s->cfg, &FLAGS[i], text);
        bool of_the_run = FLAGS[i].scope != THE_COMMAND || !strcmp(FLAGS[i].name, "out");
        csv_write_text(file, of_the_run ? text : FLAGS[i].initial);
        fputc(',', file);
    }
    fprintf(file, "%d,%zu,%zu", s->threads, s->parameters, s->non_embedding);
    log_number(file, s->initial_loss);
    log_number(file, s->best_loss);
    if (isnan(s->final_loss)) fputs(",nan", file);
    else log_number(file, s->final_loss);
    log_number(file, s->entropy_floor);
    fprintf(file, ",%d,", summary_diverged(s));
    if (s->diverged_step) fprintf(file, "%d", s->diverged_step);
    log_number(file, s->max_attn_logit);
    log_number(file, s->log_z);
    log_number(file, s->grad_norm);
    fprintf(file, ",%.3f,%.0f\n", s->seconds, s->tokens_per_second);
}

// Writes summary.csv to the folder of cfg: the flags and the results of n runs.
static void summary_write(const Config *cfg, const Summary *runs, int n) {
    char path[MAX_TEXT];
    path_in(cfg, "summary.csv", path);
    FILE *file = atomic_open(path);
    for (int i = 0; i < NUM_FLAGS; i++) fprintf(file, "%s,", FLAGS[i].name);
    fprintf(file, "threads,parameters,parameters_non_embedding,initial_loss,best_loss,final_loss,"
            "entropy_floor,diverged,diverged_step,max_attn_logit,log_z,grad_norm,seconds,"
            "tokens_per_second\n");
    for (int i = 0; i < n; i++) summary_row(file, &runs[i]);
    atomic_close(file, path);
}

// The results after the last step, derived from log.csv.
static Summary run_summary(const Run *run, int step) {
    const Config *cfg = run->cfg;
    Summary s;
    Csv log = csv_read(cfg);
    s.cfg = *cfg;
    s.threads = run->threads;
    s.parameters = run->num_parameters;
    s.non_embedding = run->num_parameters - parameter_size(&run->table[WTE])
                      - parameter_size(&run->table[LM_HEAD]);
    s.initial_loss = csv_value(&log, 0, "val_loss");
    s.best_loss = csv_extreme(&log, "val_loss", -1);
    s.final_loss = run->diverged_step ? NAN : csv_last(&log, "val_loss");
    s.entropy_floor = run->entropy_floor;
    s.diverged_step = run->diverged_step;
    s.max_attn_logit = max_attn_logit(&log, cfg->layers);
    s.log_z = csv_last(&log, "log_z");
    s.grad_norm = csv_last(&log, "grad_norm");
    s.seconds = run_seconds(run);
    s.tokens_per_second = run_tokens(run, step) / fmax(s.seconds, 1e-9);
    csv_free(&log);
    return s;
}

// ---------------------------------------------------------------------------
// -eval: the validation loss of a saved model

// Prints the loss, a mean over `windows` sequences, and the perplexity, exp(loss). state: from the
// model's checkpoint.
static void eval_print(const Config *cfg, const State *state, double loss, int64_t windows) {
    if (!isfinite(loss))
        die(FAILED, "%s/model.safetensors: its loss is not finite: the run diverged; -eval needs "
            "another -out", cfg->out);
    print_sentence("%s after step %d, on %.0f tokens of %s:", cfg->out, state->step,
                   (double)windows * cfg->T, *cfg->val ? cfg->val : cfg->data);
    printf("validation loss %.6f nats per token, perplexity %.6g\n", loss, exp(loss));
    if (fflush(stdout) || ferror(stdout))
        die(FAILED, "cannot write the validation loss: %s", strerror(errno));
}

// ---------------------------------------------------------------------------
// The diagnosis: what went wrong, as the log shows it, and the flag that fixes it

// A finished run and its log. Each rule below looks for one cause. If it finds it, it writes a
// sentence and returns true.
typedef struct {
    const Config *cfg;
    const Csv *log;
    int last;                       // the last row of the log
    double initial, best, final;    // validation losses; final: NAN if the run diverged
    double train;                   // the last training loss
    double logit;                   // the largest attention logit
    char *out;                      // the sentence (MAX_TEXT)
} Findings;

__attribute__((format(printf, 2, 3)))
static bool finding(const Findings *f, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(f->out, MAX_TEXT, format, args);
    va_end(args);
    return true;
}

// A loss that did not fall, with a flag so extreme that it could not at any learning rate
static bool finds_extreme_flag(const Findings *f) {
    const Config *cfg = f->cfg;
    double decay = cfg->wd * (cfg->wd_independent ? 1 : cfg->lr), square = cfg->beta1 * cfg->beta1;
    if (f->final < f->initial) return false;
    const char *end = isfinite(f->final) ? "did not fall" : "was not finite";
    if (cfg->kappa > 1e4)    // the most that the paper tries
        return finding(f, "the loss %s with attention logits near -kappa %g: a smaller -kappa "
                       "fixes it", end, cfg->kappa);
    if (decay > 1)           // each step turns the signs of the weights; above 2 they also grow
        return finding(f, "the loss %s: each step of weight decay subtracts %.3g times the "
                       "weight; a smaller -wd fixes it", end, decay);
    // (1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2)), about 1, bounds an update otherwise
    if (cfg->beta2 < square)
        return finding(f, "the loss %s: AdamW's updates have no bound with -beta2 below beta1^2; "
                       "a -beta2 above %.4g fixes it", end, square);
    return false;
}

// The weight is the cost of a log Z that is one nat off.
static bool finds_z_loss(const Findings *f) {
    return f->cfg->z_loss > f->initial &&
           finding(f, "a z-loss of weight %g outweighs the loss itself (log Z is %.2g): a smaller "
                   "-z_loss fixes it", f->cfg->z_loss, csv_last(f->log, "log_z"));
}

static bool finds_overflow(const Findings *f) {
    double norm = csv_extreme(f->log, "grad_norm", 1);
    return gradient_overflows(f->cfg, norm) &&
           finding(f, "the gradient's norm grew to %.2g, whose square a float does not hold: a "
                   "lower -lr fixes it", norm);
}

static bool finds_infinity(const Findings *f) {
    return !isfinite(f->final) &&
           finding(f, "the loss was not finite at step %.0f: a lower -lr fixes it",
                   csv_value(f->log, f->last, "step"));
}

// Half a nat each way is more than the noise of a batch.
static bool finds_overfitting(const Findings *f) {
    return f->best < f->initial && f->final > f->best + 0.5 && f->train < f->best - 0.5 &&
           finding(f, "the validation loss rose from %.2f to %.2f while the training loss fell to "
                   "%.2f, as the model has memorized its data: fewer -steps or more -data fixes "
                   "it", f->best, f->final, f->train);
}

// A matrix starts with an RMS of 1/sqrt(columns). Training makes those of the layers grow, some
// more than others, unless the decay is faster. Without layers there is the embedding.
static bool finds_decay(const Findings *f) {
    Parameter table[NUM_KINDS];
    char name[64];
    int first = f->cfg->layers ? C_ATTN : WTE;
    double rms = NAN;
    if (f->cfg->wd == 0) return false;
    parameter_table(f->cfg, 1, table);
    for (int k = LM_HEAD - 1; k >= first; k--) {    // c_attn, or wte, comes last
        if (table[k].role == NORM || !table[k].copies) continue;
        snprintf(name, sizeof name, "param_rms_%s", table[k].kind);
        rms = csv_value(f->log, f->last, name);
        if (!(rms * sqrt(table[k].cols) < 0.3)) return false;    // NAN too
    }
    return finding(f, "the weights have decayed, each matrix to less than 0.3 of its initial RMS "
                   "(%s to %.2g, from %.2g): a smaller -wd fixes it", table[first].kind, rms,
                   1 / sqrt(table[first].cols));
}

// Past 100 softmax looks at one token only. At ten times -attn_cap the slope of the cap is 1e-8, so
// that no gradient passes. -kappa sets the logits; relu2 does not saturate; and bigrams need no
// attention. qk-norm is no cure for a run that has it, nor may it stand beside -qk_clip.
static bool finds_logits(const Findings *f) {
    char name[64];
    int layers = f->cfg->layers;
    double limit = f->cfg->attn_cap > 0 ? 10 * f->cfg->attn_cap : 100;
    bool bounded = f->cfg->qk_norm || f->cfg->qk_clip > 0;
    if (!(f->logit > limit) || f->cfg->kappa > 0 || f->cfg->attention != ATTENTION_SOFTMAX ||
        !strcmp(f->cfg->data, "bigram"))
        return false;
    for (int row = 0; row <= f->last; row++)
        for (int l = 0; l < layers; l++) {
            snprintf(name, sizeof name, "max_attn_logit_%d", l);
            if (csv_value(f->log, row, name) > limit)
                return finding(f, "attention logits grew past %g%s, first in layer %d of %d (%s) "
                               "at step %.0f, up to %.3g: %s fixes it", limit,
                               f->cfg->attn_cap > 0 ? ", ten times -attn_cap" : "", l + 1, layers,
                               name, csv_value(f->log, row, "step"), f->logit,
                               bounded ? "a lower -lr" : "-qk_norm 1");
        }
    return false;
}

// AdamW divides by the root of the mean square gradient, plus epsilon. Norms, whose gradients may
// be small, have too few values to matter. Attention logits past 100 make gradients vanish too.
static bool finds_epsilon(const Findings *f) {
    Parameter table[NUM_KINDS];
    char name[64];
    double norm = csv_value(f->log, f->last, "grad_norm"), eps = f->cfg->eps;
    double scale = f->cfg->clip > 0 && norm > f->cfg->clip ? f->cfg->clip / norm : 1;
    parameter_table(f->cfg, 1, table);
    for (int k = 0; k < NUM_KINDS; k++) {
        snprintf(name, sizeof name, "grad_rms_%s", table[k].kind);
        double rms = csv_value(f->log, f->last, name);
        if (table[k].role == NORM || !(rms * scale < 0.1 * eps) || f->logit > 100 ||
            uses_muon(f->cfg, table, k)) continue;
        snprintf(name, sizeof name, "update_rms_%s", table[k].kind);
        return finding(f, "the updates of %s are small (RMS %.2g, before the learning rate) as "
                       "the RMS of its %sgradient, %.2g, is below a tenth of epsilon, %g: a %s "
                       "fixes it", table[k].kind, csv_value(f->log, f->last, name),
                       scale < 1 ? "clipped " : "", rms * scale, eps,
                       rms < 0.1 * eps ? "smaller -eps" : "larger -clip");
    }
    return false;
}

// The weights of -init may be as good already as these steps can make them.
static bool finds_no_descent(const Findings *f) {
    bool near = f->final < f->initial + 0.01;
    return !(f->final < f->initial) && !(near && *f->cfg->init) &&
           finding(f, "the final validation loss, %.3f, is not below the initial %.3f: a %s -lr "
                   "fixes it", f->final, f->initial, near ? "higher" : "lower");
}

// The losses of tokens differ by about 2 nats: the second term is five standard errors of the mean
// of a batch.
static bool finds_spike(const Findings *f) {
    double noise = 0.5 + 10 / sqrt((double)f->cfg->batch * f->cfg->T);
    for (int row = 1; row <= f->last; row++) {
        double loss = csv_value(f->log, row, "train_loss"), step = csv_value(f->log, row, "step");
        if (loss > f->initial + noise)
            return finding(f, "the training loss rose from %.2f to %.2f at step %.0f: a %s fixes "
                           "it", f->initial, loss, step,
                           f->cfg->beta2 < f->cfg->beta1 * f->cfg->beta1 ? "larger -beta2" :
                           step <= 0.1 * f->cfg->steps ? "lower -lr or a longer -warmup" :
                           "lower -lr");
    }
    return false;
}

// In bfloat16, with its 8 bits, logits from 128 to 256 are whole numbers. In float a shift of all
// logits costs nothing.
static bool finds_rounding(const Findings *f) {
    double log_z = csv_last(f->log, "log_z");
    return (f->cfg->bf16_logits || BF16_LOGITS) && fabs(log_z) > 128 &&
           finding(f, "mean log Z drifted to %.4g, where bfloat16 rounds logits to multiples of "
                   "%g: %s fixes it", log_z, exp2(floor(log2(fabs(log_z))) - 7),
                   f->cfg->z_loss > 0 ? "a larger -z_loss" : "-z_loss 1e-4");
}

// Prints the prefix and the sentence of the first rule that finds something, and returns true.
// Prints nothing if the loss is within 0.05 nats of its floor: the entropy of the language, or 0.
static bool diagnose(const Summary *s, const char *prefix) {
    static bool (*const rules[])(const Findings *) = {
        finds_extreme_flag, finds_z_loss, finds_overflow, finds_infinity, finds_overfitting,
        finds_decay, finds_logits, finds_epsilon, finds_no_descent, finds_spike, finds_rounding,
    };
    enum { NUM_RULES = sizeof rules / sizeof rules[0] };
    char text[MAX_TEXT];
    Csv log = csv_read(&s->cfg);
    int last = log.rows - 1, rule = 0;
    Findings f = {&s->cfg, &log, last, s->initial_loss, s->best_loss, s->final_loss,
                  csv_value(&log, last, "train_loss"), s->max_attn_logit, text};
    bool trained = last > 0 && !(f.final < fmax(s->entropy_floor, 0) + 0.05);
    while (trained && rule < NUM_RULES && !rules[rule](&f)) rule++;
    csv_free(&log);
    if (!trained || rule == NUM_RULES) return false;
    print_sentence("%s%s", prefix, text);
    return true;
}

// ---------------------------------------------------------------------------
// The end of a run

// Ends a run that is finished, has diverged or was stopped by a signal. Returns the exit status.
// The log, and with it the folder's lock, is closed last.
static int run_end(Run *run, int step) {
    const Config *cfg = run->cfg;
    int status = 0;
    if (interrupted && step < cfg->steps && !run->diverged_step) {
        status = 128 + interrupted;
        if (!run->progress) {
            fprintf(listener(), "\nstopped after step %d; go on with:\n", step);
            say_resume(cfg->out, cfg->micro_batch);
        }
    } else {
        Summary summary = run_summary(run, step);
        summary_write(cfg, &summary, 1);
        if (run->progress) run->progress->summary = summary;
        else {
            printf("\nwrote log.csv, summary.csv and model.safetensors to\n%s\n", cfg->out);
            diagnose(&summary, "diagnosis: ");
        }
    }
    if (fclose(run->log)) log_fail(cfg);
    return status;
}

#endif

// lib/run.h: a run's log, its live line, its summary, its diagnosis.
#ifndef RUN_H
#define RUN_H

#include "checkpoint.h"    // State

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

#endif

// lib/sweep.h: several learning rates, and text drawn from a model.
#ifndef SWEEP_H
#define SWEEP_H

#include "run.h"    // Progress, Summary, diagnose, catch_signals

// ---------------------------------------------------------------------------
// The report at the end of a sweep

// The loss that counts for a run (section 2.2): the final one, at most the one at initialization.
static double sweep_loss(const Summary *s) {
    return s->final_loss < s->initial_loss ? s->final_loss : s->initial_loss;
}

static void sweep_table(const Summary *runs, int n) {
    printf("\n%9s  %11s  %19s  %8s  %13s  %8s  %8s\n", "LR", "final loss", "max attention logit",
           "log Z", "gradient norm", "diverged", "seconds");
    for (int i = 0; i < n; i++) {
        const Summary *s = &runs[i];
        printf("%9s  %11.4f  %19.4g  %8.4g  %13.3g  %8s  %8.1f\n", s->cfg.lr_text,
               fabs(s->final_loss), s->max_attn_logit, s->log_z, s->grad_norm,
               summary_diverged(s) ? "yes" : "no", s->seconds);
    }
}

// The losses in the terminal: one column of 7 characters per run, higher losses higher up.
static void sweep_chart(const Summary *runs, int n) {
    enum { HEIGHT = 12 };
    double least = INFINITY, most = -INFINITY, entropy_floor = runs[0].entropy_floor;
    for (int i = 0; i < n; i++) {
        least = fmin(least, sweep_loss(&runs[i]));
        most = fmax(most, sweep_loss(&runs[i]));
    }
    if (!isfinite(least)) return;
    least = fmin(least, entropy_floor);    // fmin ignores NAN
    double step = fmax(most - least, 1e-3) / HEIGHT;
    printf("\nfinal validation loss, nats (x: diverged%s)\n",
           isnan(entropy_floor) ? "" : "; dots: the entropy of the language");
    for (int row = HEIGHT; row >= 0; row--) {
        const char *blank = round((entropy_floor - least) / step) == row ? "...." : "    ";
        printf("%7.3f |", least + row * step);
        for (int i = 0; i < n; i++) {
            bool here = round((sweep_loss(&runs[i]) - least) / step) == row;
            char mark = summary_diverged(&runs[i]) ? 'x' : 'o';
            printf("%.2s%c%s", blank, here ? mark : *blank, blank);
        }
        putchar('\n');
    }
    printf("         ");
    for (int i = 0; i < n; i++) printf(" %-6.6s", runs[i].cfg.lr_text);
    printf(" learning rate\n");
}

// LR sensitivity (section 2.2): the mean loss over the learning rates from X to 3e-1, minus the
// smallest.
static void sweep_sensitivity(const Summary *runs, int n) {
    static const char *const from[2] = {"3e-4", "3e-3"};
    printf("\nLR sensitivity, nats (0: the learning rate does not matter)\n");
    for (int g = 0; g < 2; g++) {
        double best = INFINITY, sum = 0;
        int count = 0;
        for (int i = 0; i < n; i++) {
            double lr = runs[i].cfg.lr, loss = sweep_loss(&runs[i]);
            if (lr < strtod(from[g], NULL) || lr > 0.3) continue;
            best = fmin(best, loss);
            sum += loss;
            count++;
        }
        printf("  %s to 3e-1: ", from[g]);
        if (count < 2) printf("needs two learning rates in that range\n");
        else printf("%.3f (of %d learning rates)\n", sum / count - best, count);
    }
}

// Writes DIR/summary.csv, one row per run, and shows table, chart, sensitivity and diagnosis.
static void sweep_report(const Config *cfg, const Summary *runs, int n) {
    int found = 0;
    summary_write(cfg, runs, n);
    if (n == 0) return;
    sweep_table(runs, n);
    sweep_chart(runs, n);
    sweep_sensitivity(runs, n);
    printf("\nthe runs are in %s\n", cfg->out);
    for (int i = 0; i < n; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "%s lr %.15s: ", found ? "          " : "diagnosis:",
                 runs[i].cfg.lr_text);
        found += diagnose(&runs[i].cfg, prefix);
    }
    if (!found) printf("diagnosis: nothing went wrong\n");
}

// ---------------------------------------------------------------------------
// The sweep itself

// A run's line: of the live display, or at its end.
static void sweep_line(const char *lr, const Progress *p, int steps, bool live) {
    static const char *const words[] = {"waiting", "starting", "done", "stopped", "failed"};
    printf("%slr %-6s  ", live ? "\r\033[K" : "", lr);
    if (p->step)
        printf("step %*d/%d  train %6.4f  ", (int)log10(steps + 1.0) + 1, p->step, steps,
               fabs(p->loss));
    if (p->step && p->state == RUNNING)
        printf("%.0f:%02.0f left\n", floor(p->seconds_left / 60), fmod(p->seconds_left, 60));
    else printf("%s\n", words[p->state]);
}

// One of the runs, in its process.
static int sweep_run(const Config *cfg, const char *lr, int threads, Progress *progress,
                     int (*train)(const Config *, int, Progress *)) {
    Config run = *cfg;
    strcpy(run.lr_text, lr);
    run.lr = strtod(lr, NULL);
    format_text(run.out, MAX_TEXT, "%s/lr%s", cfg->out, lr);
    return train(&run, threads, progress);
}

// Whether a run has ended. Sets its state, and reports a run that a signal killed.
static bool sweep_ended(pid_t pid, const char *lr, Progress *progress) {
    int status;
    if (waitpid(pid, &status, WNOHANG) != pid) return false;
    progress->state = status == 0 ? DONE : WEXITSTATUS(status) > 128 ? STOPPED : BROKEN;
    if (WIFSIGNALED(status))
        fprintf(stderr, "train_gpt: the run at -lr %s was killed by signal %d\n", lr,
                WTERMSIG(status));
    return true;
}

// Trains once for each of n learning rates, `jobs` at a time, each in a process with this number of
// threads. bytes: the memory of one run. train(cfg, threads, progress) is one run and returns its
// exit status. Returns the exit status of the sweep.
static int sweep(const Config *cfg, char lr[MAX_RUNS][MAX_RATE], int n, int jobs, int threads,
                 double bytes, int (*train)(const Config *, int, Progress *)) {
    pid_t pid[MAX_RUNS];
    char path[MAX_TEXT];
    Progress *progress = (Progress *)mmap(NULL, sizeof(Progress) * MAX_RUNS, PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);    // zeros: WAITING
    if (progress == MAP_FAILED) die(FAILED, "no memory for the sweep: %s", strerror(errno));
    bool live = isatty(STDOUT_FILENO), drawn = false;
    int running = 0, next = 0;    // runs in progress; the next one to start
    catch_signals();
    make_folders(cfg->out);
    path_in(cfg, "log.csv", path);
    if (!access(path, F_OK))
        die(FAILED, "%s belongs to a single run: choose another -out for a sweep", path);
    path_in(cfg, "summary.csv", path);
    if (unlink(path) && errno != ENOENT)    // an older sweep's
        die(FAILED, "cannot replace %s: %s", path, strerror(errno));
    printf("%d learning rates, %d at a time, %d steps each, %.1f MB of memory per run\n", n, jobs,
           cfg->steps, 1e-6 * bytes);
    while (running || (next < n && !interrupted)) {
        // start the next runs
        while (next < n && running < jobs && !interrupted) {
            fflush(stdout);
            progress[next].sweep = getpid();
            pid[next] = fork();
            if (pid[next] < 0 && running) break;    // too many processes: try again later
            if (pid[next] < 0) die(FAILED, "cannot start a process: %s", strerror(errno));
            if (pid[next] == 0)
                exit(sweep_run(cfg, lr[next], threads, &progress[next], train));
            progress[next++].state = RUNNING;
            running++;
        }
        usleep(50000);
        // look for runs that have ended
        for (int i = 0; i < next; i++) {
            if (progress[i].state != RUNNING) continue;
            if (interrupted) kill(pid[i], SIGTERM);    // Ctrl-C reaches all, a SIGTERM only this
            if (!sweep_ended(pid[i], lr[i], &progress[i])) continue;
            running--;
            if (progress[i].state == BROKEN) drawn = false;    // go on below its message
            else if (!live) sweep_line(lr[i], &progress[i], cfg->steps, live);
        }
        // show all
        if (live && drawn) printf("\033[%dA", n);
        for (int i = 0; live && i < n; i++) sweep_line(lr[i], &progress[i], cfg->steps, live);
        drawn = true;
        fflush(stdout);
    }
    Summary *done = (Summary *)allocate((size_t)n, sizeof(Summary));
    int count = 0, unfinished = 0;    // runs that are done; that a signal stopped or left waiting
    const char *stopped = NULL;       // the first stopped one's learning rate
    for (int i = 0; i < n; i++) {
        RunState state = progress[i].state;
        if (state == DONE) done[count++] = progress[i].summary;
        if (state == BROKEN) printf("%9s  failed: see the message above\n", lr[i]);
        if (state == STOPPED && !stopped) stopped = lr[i];
        unfinished += state == STOPPED || state == WAITING;
    }
    if (unfinished) {
        fprintf(listener(), "\nstopped; start the sweep again with the same command");
        if (stopped)
            fprintf(listener(), ", or go on with one run: ./train_gpt -resume -out %s/lr%s",
                    cfg->out, stopped);
        fputc('\n', listener());
    }
    bool cut_short = interrupted && unfinished;
    if (!cut_short) sweep_report(cfg, done, count);
    free(done);
    return cut_short ? 128 + interrupted : count < n ? FAILED : 0;
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

// Writes -sample tokens: bytes as they are; the tokens of -data bigram, or of a vocabulary larger
// than 256, as numbers.
// logits_after(model, context, used): the logits (V) of the token after context (used).
static void sample_text(const Config *cfg, const real *(*logits_after)(void *, const int *, int),
                        void *model) {
    int T = cfg->T, V = cfg->vocab, used = 1;
    int *context = (int *)allocate((size_t)T, sizeof(int));
    uint64_t random = (uint64_t)cfg->seed;
    double temperature = cfg->temperature / mu_logit_scale(cfg);
    bool bytes = V <= 256 && strcmp(cfg->data, "bigram");
    context[0] = V <= 256 ? '\n' % V : V - 1;    // a text follows a newline, or GPT-2's last token
    for (int i = 0; i < cfg->sample; i++) {
        int token = sample_token(logits_after(model, context, used), V, temperature, &random);
        if (bytes) putchar(token);
        else printf("%d ", token);
        if (used == T) memmove(context, context + 1, (size_t)(T - 1) * sizeof(int));
        else used++;
        context[used - 1] = token;
    }
    putchar('\n');
    if (fflush(stdout) || ferror(stdout))
        die(FAILED, "cannot write the sample: %s", strerror(errno));
    free(context);
}

#endif

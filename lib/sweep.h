// lib/sweep.h: several learning rates.
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
    printf("\n%13s  %10s  %9s  %9s  %9s  %8s  %8s\n", "learning rate", "validation", "max attn",
           "log Z", "gradient", "diverged", "seconds");
    printf("%13s  %10s  %9s  %9s  %9s\n", "", "loss", "logit", "", "norm");
    for (int i = 0; i < n; i++) {
        const Summary *s = &runs[i];
        printf("%13s  %#10.5g  %9.4g  %9.4g  %9.3g  %8s  %8.1f\n", s->cfg.lr_text,
               fabs(s->final_loss), s->max_attn_logit, s->log_z, s->grad_norm,
               summary_diverged(s) ? "yes" : "no", s->seconds);
    }
}

// The losses in the terminal: a column for each run, higher losses higher up. More than ten runs
// have narrower columns, and only some of them a label.
static void sweep_chart(const Summary *runs, int n) {
    enum { HEIGHT = 12, LABEL = 7 };
    double least = INFINITY, most = -INFINITY, entropy_floor = runs[0].entropy_floor;
    int width = n > 10 ? 70 / n : LABEL;
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
        char blank = round((entropy_floor - least) / step) == row ? '.' : ' ';
        printf("%7.3f |", least + row * step);
        for (int i = 0; i < n; i++) {
            bool here = round((sweep_loss(&runs[i]) - least) / step) == row;
            char mark = summary_diverged(&runs[i]) ? 'x' : 'o';
            for (int j = 0; j < width; j++) putchar(here && j == width / 3 ? mark : blank);
        }
        putchar('\n');
    }
    printf("     LR  ");
    int every = (LABEL + width - 1) / width;
    for (int i = 0; i < n; i += every) {
        const char *text = runs[i].cfg.lr_text;
        char label[MAX_RATE];
        if (strlen(text) < LABEL) strcpy(label, text);
        else snprintf(label, sizeof label, "%.0e", runs[i].cfg.lr);
        printf("%*s%-*s", i ? every * width - LABEL + 1 : 0, "", LABEL - 1, label);
    }
    putchar('\n');
}

// LR sensitivity (section 2.2): the mean loss over the paper's seven learning rates, minus the
// smallest.
static void sweep_sensitivity(const Summary *runs, int n) {
    static const double rates[] = {3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1};
    enum { NUM_RATES = sizeof rates / sizeof rates[0] };
    double best = INFINITY, sum = 0;
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < NUM_RATES; j++) {
            if (runs[i].cfg.lr != rates[j]) continue;
            best = fmin(best, sweep_loss(&runs[i]));
            sum += sweep_loss(&runs[i]);
            count++;
        }
    if (count < NUM_RATES)
        printf("\nLR sensitivity needs the paper's seven learning rates: -lr 3e-4:3e-1\n");
    else
        printf("\nLR sensitivity, nats (0: the learning rate does not matter): %.3f\n",
               sum / NUM_RATES - best);
}

// Writes DIR/summary.csv, one row per run, and shows table, chart, sensitivity and diagnosis. Of no
// run there is nothing to say, and an older sweep's summary.csv stays. all: whether none failed.
static void sweep_report(const Config *cfg, const Summary *runs, int n, bool all) {
    int found = 0;
    if (n == 0) return;
    summary_write(cfg, runs, n);
    sweep_table(runs, n);
    sweep_chart(runs, n);
    sweep_sensitivity(runs, n);
    printf("\nthe runs are in %s\n", cfg->out);
    for (int i = 0; i < n; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "diagnosis: lr %.15s: ", runs[i].cfg.lr_text);
        found += diagnose(&runs[i], prefix);
    }
    if (!found) printf("diagnosis: nothing %swent wrong\n", all ? "" : "else ");
}

// ---------------------------------------------------------------------------
// The sweep itself

// A run's line: of the live display, or at its end.
static void sweep_line(const char *lr, const Progress *p, int steps) {
    static const char *const words[] = {"waiting", "starting", "done", "stopped", "failed"};
    char figures[64] = "", state[32];
    snprintf(state, sizeof state, "%s", words[p->state]);
    if (p->step)
        snprintf(figures, sizeof figures, "step %*d/%d  train %#.5g  ",
                 (int)log10(steps + 1.0) + 1, p->step, steps, fabs(p->loss));
    if (p->step && p->state == RUNNING)
        snprintf(state, sizeof state, "%.0f:%02.0f left", floor(p->seconds_left / 60),
                 fmod(p->seconds_left, 60));
    print_fields("lr %-6s  %s%s", lr, figures, state);
    putchar('\n');
}

// Draws the live display over its last `drawn` lines: the lines of all n runs or, if the terminal
// has too few rows, those of the running ones, and how many runs are in each state. Returns the
// number of lines.
static int sweep_show(char lr[MAX_RUNS][MAX_RATE], const Progress *progress, int n, int steps,
                      int drawn) {
    int rows = terminal_size().ws_row, lines = 0, count[BROKEN + 1] = {0};
    if (drawn) printf("\033[%dA\r\033[J", drawn);
    for (int i = 0; i < n; i++) {
        RunState state = progress[i].state;
        count[state]++;
        if (n >= rows && (state != RUNNING || lines >= rows - 2)) continue;
        sweep_line(lr[i], &progress[i], steps);
        lines++;
    }
    if (n < rows) return lines;
    print_fields("%d running  %d done  %d waiting  %d failed  %d stopped", count[RUNNING],
                 count[DONE], count[WAITING], count[BROKEN], count[STOPPED]);
    putchar('\n');
    return lines + 1;
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
        fprintf(stderr, "%s: the run at -lr %s was killed by signal %d\n", program_name(), lr,
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
    bool live = isatty(STDOUT_FILENO);
    int running = 0, next = 0;    // runs in progress; the next one to start
    int drawn = 0;                // lines of the live display
    catch_signals();
    make_folders(cfg->out);
    results_check(cfg);
    for (int i = 0; i < n; i++) {    // before any of its runs replaces another one's results
        format_text(path, sizeof path, "%s/lr%s", cfg->out, lr[i]);
        init_check(cfg, path);
    }
    path_in(cfg, "log.csv", path);
    if (!access(path, F_OK))
        die(FAILED, "%s belongs to a single run: choose another -out for a sweep", path);
    path_in(cfg, "summary.csv", path);
    print_sentence("%d learning rates, %d at a time, %d steps each, %.1f MB of memory per run", n,
                   jobs, cfg->steps, 1e-6 * bytes);
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
            if (progress[i].state == DONE) unlink(path);    // an older sweep's results end here
            if (progress[i].state == BROKEN) drawn = 0;    // go on below its message
            else if (!live) sweep_line(lr[i], &progress[i], cfg->steps);
        }
        // show them
        if (live) drawn = sweep_show(lr, progress, n, cfg->steps, drawn);
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
        fprintf(listener(), "\nstopped; start the sweep again with the same command%s\n",
                stopped ? ", or go on with one run:" : "");
        if (stopped) {
            format_text(path, sizeof path, "%s/lr%s", cfg->out, stopped);
            say_resume(path, cfg->micro_batch);
        }
    }
    bool cut_short = interrupted && unfinished;
    if (!cut_short) sweep_report(cfg, done, count, count == n);
    free(done);
    return cut_short ? 128 + interrupted : count < n ? FAILED : 0;
}

#endif

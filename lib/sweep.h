// lib/sweep.h: several learning rates, and sampling.
#ifndef SWEEP_H
#define SWEEP_H

#include "run.h"    // diagnose, Progress

// ---------------------------------------------------------------------------
// The sweep over learning rates

// Section 2.2: the mean over the grid of min(final loss, loss at initialisation) - the best final loss.
// count: of the learning rates in [from, to]; NAN where there is none.
static double lr_sensitivity(const double *lr, const double *loss, int n, double from, double to, int *count) {
    double best = INFINITY, sum = 0;
    *count = 0;
    for (int i = 0; i < n; i++) {
        if (lr[i] < from * (1 - 1e-9) || lr[i] > to * (1 + 1e-9) || isnan(loss[i])) continue;
        best = fmin(best, loss[i]);
        sum += loss[i];
        ++*count;
    }
    return *count ? sum / *count - best : NAN;
}

static void sweep_chart(char lr[MAX_RUNS][16], const double *loss, const double *diverged, int n, double entropy_floor) {
    enum { HEIGHT = 12, WIDTH = 7 };
    double least = INFINITY, most = -INFINITY;
    for (int i = 0; i < n; i++)
        if (!isnan(loss[i])) least = fmin(least, loss[i]), most = fmax(most, loss[i]);
    if (!isfinite(least)) return;
    if (!isnan(entropy_floor)) least = fmin(least, entropy_floor);
    double step = fmax(most - least, 1e-3) / HEIGHT;
    printf("\nfinal loss, nats (x: diverged%s)\n", isnan(entropy_floor) ? "" : "; dots: the entropy of the language");
    for (int row = HEIGHT; row >= 0; row--) {
        printf("%7.3f |", least + row * step);
        int at_floor = !isnan(entropy_floor) && row == (int)floor((entropy_floor - least) / step + 0.5);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < WIDTH; j++)
                putchar(j == WIDTH / 2 && !isnan(loss[i]) && row == (int)floor((loss[i] - least) / step + 0.5) ? diverged[i] ? 'x' : 'o' : at_floor ? '.' : ' ');
        putchar('\n');
    }
    printf("         ");
    for (int i = 0; i < n; i++) {
        int indent = strlen(lr[i]) < WIDTH ? (WIDTH - (int)strlen(lr[i])) / 2 : 0;
        printf("%*s%-*.*s", indent, "", WIDTH - indent, WIDTH - indent, lr[i]);
    }
    printf(" learning rate\n");
}

// Reads the runs' summaries, joins them into DIR/summary.csv, and shows table, chart, sensitivity, diagnosis.
static void sweep_report(const Config *cfg, const Config *runs, const Progress *progress, char lr[MAX_RUNS][16], int n) {
    char path[MAX_TEXT], *line = NULL;
    size_t room = 0;
    double rate[MAX_RUNS], loss[MAX_RUNS], diverged[MAX_RUNS], entropy_floor = NAN;
    path_in(cfg, "summary.csv", path);
    FILE *joined = atomic_open(path);
    printf("\n%9s  %11s  %19s  %8s  %13s  %8s  %8s\n", "LR", "final loss", "max attention logit", "log Z", "gradient norm", "diverged", "seconds");
    for (int i = 0, header = 0; i < n; i++) {
        char from[MAX_TEXT];
        path_in(&runs[i], "summary.csv", from);
        rate[i] = strtod(lr[i], NULL), loss[i] = diverged[i] = NAN;
        FILE *file = progress[i].state == DONE ? fopen(from, "r") : NULL;
        if (!file) { printf("%9s  failed: see the message above\n", lr[i]); continue; }
        for (int row = 0; getline(&line, &room, file) > 0; row++)
            if (row || !header) fputs(line, joined);
        header = 1;
        fclose(file);
        Csv csv = csv_read(from);
        double final = csv_value(&csv, 0, "final_loss"), initial = csv_value(&csv, 0, "initial_loss");
        diverged[i] = csv_value(&csv, 0, "diverged");
        entropy_floor = csv_value(&csv, 0, "entropy_floor");
        loss[i] = final < initial ? final : initial;
        printf("%9s  %11.4f  %19.4g  %8.4g  %13.3g  %8s  %8.1f\n", lr[i], fabs(final), csv_value(&csv, 0, "max_attn_logit"), csv_value(&csv, 0, "log_z"),
               csv_value(&csv, 0, "grad_norm"), diverged[i] ? "yes" : "no", csv_value(&csv, 0, "seconds"));
        csv_free(&csv);
    }
    atomic_close(joined, path);
    free(line);
    sweep_chart(lr, loss, diverged, n, entropy_floor);
    printf("\nLR sensitivity, nats (0: the learning rate does not matter)\n");
    static const char *const from[2] = {"3e-4", "3e-3"};
    for (int g = 0; g < 2; g++) {
        int count;
        double value = lr_sensitivity(rate, loss, n, strtod(from[g], NULL), 0.3, &count);
        if (count < 2) printf("  %s to 3e-1: needs two learning rates of that range\n", from[g]);
        else printf("  %s to 3e-1: %.3f (of %d learning rates)\n", from[g], value, count);
    }
    printf("\nthe runs are in %s\n", cfg->out);
    int found = 0;
    for (int i = 0; i < n; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "%s lr %s: ", found ? "          " : "diagnosis:", lr[i]);
        if (!isnan(loss[i])) found += diagnose(&runs[i], prefix);
    }
    if (!found) printf("diagnosis: nothing went wrong\n");
}

// Trains once for each learning rate, `jobs` at a time, a process of so many threads each; returns the exit status.
// train(cfg, threads, progress) is one run.
static int sweep(const Config *cfg, char lr[MAX_RUNS][16], int n, int jobs, int threads, double bytes, int (*train)(const Config *, int, Progress *)) {
    Config *runs = (Config *)allocate((size_t)n, sizeof(Config));
    pid_t pid[MAX_RUNS];
    Progress *progress = (Progress *)mmap(NULL, sizeof(Progress) * MAX_RUNS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (progress == (Progress *)MAP_FAILED) die(FAILED, "no memory for the sweep: %s", strerror(errno));
    catch_signals();
    char path[MAX_TEXT];
    make_folders(cfg->out);
    path_in(cfg, "log.csv", path);
    if (!access(path, F_OK)) die(FAILED, "%s: of a single run: choose another -out for a sweep", path);
    for (int i = 0; i < n; i++) {
        runs[i] = *cfg;
        progress[i].sweep = getpid();
        strcpy(runs[i].lr_text, lr[i]);
        runs[i].lr = strtod(lr[i], NULL);
        format_text(runs[i].out, MAX_TEXT, "%s/lr%s", cfg->out, lr[i]);
        path_in(&runs[i], "summary.csv", path);
        if (cfg->resume && !access(path, F_OK)) progress[i].state = DONE;
        checkpoint_path(&runs[i], path);
        runs[i].resume = cfg->resume && !access(path, F_OK);
        if (runs[i].resume) checkpoint_check_flags(&runs[i]);
        pid[i] = 0;
    }
    int live = isatty(STDOUT_FILENO), drawn = 0, failed = 0;
    printf("%d learning rates, %d at a time, %d steps each, %.1f MB of memory a run\n", n, jobs, cfg->steps, 1e-6 * bytes);
    for (int running = 0, waiting = 1; running || waiting; ) {
        waiting = 0;
        for (int i = 0; i < n; i++) {
            if (progress[i].state != WAITING) continue;
            if (interrupted || running >= jobs) { waiting = !interrupted; break; }
            fflush(stdout);
            pid[i] = fork();
            if (pid[i] < 0 && running) { waiting = 1; break; }    // too many processes: later
            if (pid[i] < 0) die(FAILED, "cannot start a process: %s", strerror(errno));
            if (!pid[i]) exit(train(&runs[i], threads, &progress[i]));
            progress[i].state = RUNNING;
            running++;
        }
        usleep(50000);
        for (int i = 0; i < n; i++) {
            int status;
            if (progress[i].state != RUNNING) continue;
            if (interrupted) kill(pid[i], SIGTERM);    // Ctrl-C reaches all, a SIGTERM only this process
            if (waitpid(pid[i], &status, WNOHANG) != pid[i]) continue;
            progress[i].state = status ? BROKEN : DONE;
            if (WIFSIGNALED(status)) fprintf(stderr, "train_gpt: the run at -lr %s was killed by signal %d\n", lr[i], WTERMSIG(status));
            failed |= status && !interrupted;
            running--;
            if (!live && !status) printf("lr %-6s done: step %d/%d  loss %.4f\n", lr[i], progress[i].step, cfg->steps, progress[i].loss), fflush(stdout);
        }
        for (int i = 0; live && i < n; i++) {
            static const char *word[4] = {"waiting", "", "done", "stopped"};
            char left[16];
            time_text(progress[i].seconds_left, left);
            if (i == 0 && drawn) printf("\033[%dA", n);
            printf("\r\033[Klr %-6s  step %*d/%d  loss %6.4f  ", lr[i], (int)log10(cfg->steps + 1.0) + 1, progress[i].step, cfg->steps, progress[i].loss);
            printf(progress[i].state == RUNNING ? "%s left\n" : "%s\n", progress[i].state == RUNNING ? left : word[progress[i].state]);
        }
        drawn = 1;
        fflush(stdout);
    }
    if (interrupted) fprintf(listener(), "\nstopped; go on with the same command and -resume\n");
    else sweep_report(cfg, runs, progress, lr, n);
    free(runs);
    return interrupted ? 128 + interrupted : failed ? FAILED : 0;
}

// A token drawn from softmax(logits / temperature) (V); at temperature 0 the likeliest.
static int sample_token(const real *logits, int V, double temperature, uint64_t *random) {
    int best = 0;
    double sum = 0;
    for (int i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    if (temperature == 0) return best;
    for (int i = 0; i < V; i++) sum += exp((logits[i] - logits[best]) / temperature);
    double target = random_uniform(random) * sum;
    for (int i = 0; i < V; i++)
        if ((target -= exp((logits[i] - logits[best]) / temperature)) < 0) return i;
    return best;
}

// Writes -sample tokens, each drawn from the logits that logits_after(model, context, used) gives for the token after the first
// `used` of context: bytes as they are, the tokens of a larger vocabulary as numbers.
static void sample_text(const Config *cfg, const real *(*logits_after)(void *, const int *, int), void *model) {
    int T = cfg->T, V = cfg->vocab, *context = (int *)allocate((size_t)T, sizeof(int)), used = 1;
    uint64_t random = (uint64_t)cfg->seed;
    context[0] = V <= 256 ? '\n' % V : V - 1;    // a text starts with a line; GPT-2's texts with its last token
    for (int i = 0; i < cfg->sample; i++) {
        int token = sample_token(logits_after(model, context, used), V, cfg->temperature / mu_logit_scale(cfg), &random);
        if (V <= 256) putchar(token);
        else printf("%d ", token);
        if (used == T) memmove(context, context + 1, (size_t)(T - 1) * sizeof(int));
        else used++;
        context[used - 1] = token;
    }
    putchar('\n');
    if (fflush(stdout) || ferror(stdout)) die(FAILED, "cannot write the sample: %s", strerror(errno));
    free(context);
}

#endif

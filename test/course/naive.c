// The naive matrix multiply, the reference of speed for the exercise: naive FD COUNT. Its input is
// that of products in driver.c.
#include <stdio.h>
#include <stdlib.h>

static void get(float *x, size_t n) {
    static double y[4096];
    for (size_t m; n; x += m, n -= m) {
        m = fread(y, sizeof *y, n < 4096 ? n : 4096, stdin);
        if (!m) exit(1);
        for (size_t i = 0; i < m; i++) x[i] = (float)y[i];
    }
}

int main(int argc, char **argv) {
    FILE *answers = fdopen(atoi(argv[1]), "wb");
    int count = argc > 2 ? atoi(argv[2]) : 0;
    while (count--) {
        float head[7] = {0};
        get(head, 7);
        int M = (int)head[0], N = (int)head[1], K = (int)head[2];
        float *a = malloc(sizeof(float) * M * K), *b = malloc(sizeof(float) * K * N);
        get(a, (size_t)M * K);
        get(b, (size_t)K * N);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                float sum = 0;
                for (int k = 0; k < K; k++)
                    sum += a[head[3] ? k * M + i : i * K + k] * b[head[4] ? j * K + k : k * N + j];
                double y = sum;
                fwrite(&y, sizeof y, 1, answers);
            }
        free(a);
        free(b);
    }
    return fclose(answers);
}

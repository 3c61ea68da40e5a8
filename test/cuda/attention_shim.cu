// train_gpt.cu's attention as a library with shim.c's two functions (test_attention.py). Arrays are
// float; numbers are rounded to act on their way to the device.
#define main train_gpt_main
#include "../../train_gpt.cu"
#undef main

// n numbers on the device, from host, or NaN where host is NULL
template <class number> static number *to_device(const float *host, size_t n) {
    number *rounded = (number *)allocate(n, sizeof(number)), *device = NULL;
    for (size_t i = 0; host && i < n; i++) rounded[i] = number(host[i]);
    check(cudaMalloc(&device, n * sizeof(number)));
    check(cudaMemset(device, 0xFF, n * sizeof(number)));
    if (host) check(cudaMemcpy(device, rounded, n * sizeof(number), cudaMemcpyHostToDevice));
    free(rounded);
    return device;
}

// and frees them there
template <class number> static void to_host(float *host, number *device, size_t n) {
    number *rounded = (number *)allocate(n, sizeof(number));
    check(cudaDeviceSynchronize());
    check(cudaMemcpy(rounded, device, n * sizeof(number), cudaMemcpyDeviceToHost));
    check(cudaFree(device));
    for (size_t i = 0; i < n; i++) host[i] = (float)rounded[i];
    free(rounded);
}

extern "C" {

void shim_attention_forward(float *out, float *softmax, const float *qk, const float *qkv,
                            double scale, int B, int T, int NH, int HS, double *largest) {
    size_t n = (size_t)B * T * NH * HS, statistics = (size_t)B * NH * T * 2;
    act *o = to_device<act>(NULL, n), *x = to_device<act>(qk, 2 * n);
    act *y = to_device<act>(qkv, 3 * n);
    float *s = to_device<float>(NULL, statistics), top = 0, *t = to_device<float>(&top, 1);
    attention_forward(o, s, largest ? t : NULL, x, y, (float)scale, B, T, NH, HS);
    to_host(out, o, n);
    to_host(softmax, s, statistics);
    to_host(&top, t, 1);
    check(cudaFree(x));
    check(cudaFree(y));
    if (largest) *largest = top;
}

void shim_attention_backward(float *dqkv, const float *dout, const float *out,
                             const float *softmax, const float *qk, const float *qkv,
                             double scale, int B, int T, int NH, int HS) {
    size_t n = (size_t)B * T * NH * HS, rows = (size_t)B * NH * T;
    act *gradient = to_device<act>(NULL, 3 * n);
    act *from[] = {to_device<act>(dout, n), to_device<act>(out, n), to_device<act>(qk, 2 * n),
                   to_device<act>(qkv, 3 * n)};
    float *s = to_device<float>(softmax, 2 * rows), *scratch = to_device<float>(NULL, rows);
    attention_backward(gradient, from[0], from[1], s, from[2], from[3], (float)scale, scratch,
                       B, T, NH, HS);
    to_host(dqkv, gradient, 3 * n);
    for (act *x : from) check(cudaFree(x));
    check(cudaFree(s));
    check(cudaFree(scratch));
}

}

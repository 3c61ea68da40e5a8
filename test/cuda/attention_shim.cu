// train_gpt.cu's attention as a library (test_attention.py): shim.c's two functions, and the same
// with a cap. Arrays are float; numbers are rounded to act on their way to the device.
#include <algorithm>

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

// largest (NH), unless NULL
void shim_capped_forward(float *out, float *softmax, const float *qk, const float *qkv,
                         double scale, double cap, int B, int T, int NH, int HS,
                         float *largest) {
    size_t n = (size_t)B * T * NH * HS, statistics = (size_t)B * NH * T * 2;
    act *o = to_device<act>(NULL, n), *x = to_device<act>(qk, 2 * n);
    act *y = to_device<act>(qkv, 3 * n);
    float *s = to_device<float>(NULL, statistics), *tops = (float *)allocate(NH, sizeof(float));
    float *t = to_device<float>(tops, NH);
    attention_forward(o, s, largest ? t : NULL, x, y, (float)scale, (float)cap, B, T, NH, HS);
    to_host(out, o, n);
    to_host(softmax, s, statistics);
    to_host(largest ? largest : tops, t, NH);
    check(cudaFree(x));
    check(cudaFree(y));
    free(tops);
}

void shim_attention_forward(float *out, float *softmax, const float *qk, const float *qkv,
                            double scale, int B, int T, int NH, int HS, double *largest) {
    float *tops = (float *)allocate(NH, sizeof(float));
    shim_capped_forward(out, softmax, qk, qkv, scale, 0, B, T, NH, HS, largest ? tops : NULL);
    if (largest) *largest = *std::max_element(tops, tops + NH);
    free(tops);
}

void shim_capped_backward(float *dqkv, const float *dout, const float *out, const float *softmax,
                          const float *qk, const float *qkv, double scale, double cap,
                          int B, int T, int NH, int HS) {
    size_t n = (size_t)B * T * NH * HS, rows = (size_t)B * NH * T;
    act *gradient = to_device<act>(NULL, 3 * n);
    act *from[] = {to_device<act>(dout, n), to_device<act>(out, n), to_device<act>(qk, 2 * n),
                   to_device<act>(qkv, 3 * n)};
    float *s = to_device<float>(softmax, 2 * rows), *scratch = to_device<float>(NULL, rows);
    attention_backward(gradient, from[0], from[1], s, from[2], from[3], (float)scale, (float)cap,
                       scratch, B, T, NH, HS);
    to_host(dqkv, gradient, 3 * n);
    for (act *x : from) check(cudaFree(x));
    check(cudaFree(s));
    check(cudaFree(scratch));
}

void shim_attention_backward(float *dqkv, const float *dout, const float *out,
                             const float *softmax, const float *qk, const float *qkv,
                             double scale, int B, int T, int NH, int HS) {
    shim_capped_backward(dqkv, dout, out, softmax, qk, qkv, scale, 0, B, T, NH, HS);
}

}

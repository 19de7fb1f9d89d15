/* The activations, element by element. Part of gradcore.h, whose conventions hold. */
#ifndef GC_ACTIVATION_H
#define GC_ACTIVATION_H

#include "base/status.h"

/* With z = p x where p occurs: tanh; sigmoid; max(0, x); leaky: x > 0 ? x : p x; elu: q (x > 0 ? x : p expm1(x)), which is
 * selu too; gelu: x P(Z <= x), or with P's tanh form; softplus: z > q ? x : log(1 + exp(z)) / p;
 * silu: x sigmoid(x). */
enum {
    GC_IDENTITY = 0, GC_TANH = 1, GC_SIGMOID = 2, GC_RELU = 3, GC_LEAKY_RELU = 4, GC_ELU = 5, GC_GELU = 6, GC_GELU_TANH = 7,
    GC_SOFTPLUS = 8, GC_SILU = 9
};

typedef struct gc_activation {
    int kind, threads;
    ptrdiff_t n;
    double p, q;
    const void *in;  /* (n,) x forward; backward y for tanh, sigmoid and relu, x for the others */
    const void *dy;  /* (n,) backward only */
    void *out;       /* (n,) y, or dL/dx; it may be the same array as an input */
} gc_activation;

typedef struct gc_activation_kernels {
    int (*run)(const gc_activation *); /* forward, or with dy set backward */
} gc_activation_kernels;

#endif

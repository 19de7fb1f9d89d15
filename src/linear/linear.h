/* y = x W^T + b and its gradients. Part of gradcore.h, whose conventions hold. */
#ifndef GC_LINEAR_H
#define GC_LINEAR_H

#include "base/status.h"

typedef struct gc_linear {
    int threads;            /* at most so many; fixed from `work` to the call that it is for */
    ptrdiff_t N, F, O;      /* rows, in_features, out_features */
    const void *x, *w, *b;  /* (N, F), (O, F), (O,); b is NULL without a bias, and not read backward */
    void *y;                /* (N, O); forward only */
    const void *dy;         /* (N, O); NULL forward */
    void *dx, *dw, *db;     /* (N, F) overwritten; (O, F) and (O,) added to; db is NULL without a bias */
    void *work;             /* scratch, `work` bytes, 64-byte aligned */
} gc_linear;

typedef struct gc_linear_kernels {
    size_t (*work)(const gc_linear *); /* for the forward pass, or with dy set for the backward pass */
    int (*forward)(const gc_linear *);
    int (*backward)(const gc_linear *);
} gc_linear_kernels;

#endif

/* The sum of a residual connection. Part of gradcore.h, whose conventions hold. */
#ifndef GC_RESIDUAL_H
#define GC_RESIDUAL_H

#include "base/status.h"

/* out = a + scale b. Forward a is x and b the branch's output; backward a is dL/dy and b the branch's dL/dx. */
typedef struct gc_residual {
    int threads;
    ptrdiff_t n;
    double scale;
    const void *a, *b; /* (n,); a is NULL for zeros */
    void *out;         /* (n,); it may be the same array as an input */
} gc_residual;

typedef struct gc_residual_kernels {
    int (*add)(const gc_residual *);
} gc_residual_kernels;

#endif

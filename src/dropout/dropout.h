/* Elements dropped at random. Part of gradcore.h, whose conventions hold. */
#ifndef GC_DROPOUT_H
#define GC_DROPOUT_H

#include "base/status.h"

/* out = in m / (1 - p), where m is 0 with probability p, else 1; 0 in for p = 1. m follows from the key and the element's number
 * alone, so the backward pass makes it again: that takes no longer than to read it. */
typedef struct gc_dropout {
    int threads;
    ptrdiff_t n;
    uint64_t key;
    double p;       /* from 0 to 1 */
    const void *in; /* (n,) x, or dL/dy */
    void *out;      /* (n,) y, or dL/dx; it may be the same array as `in` */
} gc_dropout;

typedef struct gc_dropout_kernels {
    int (*run)(const gc_dropout *); /* forward, and backward */
} gc_dropout_kernels;

#endif

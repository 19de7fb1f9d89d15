/* One vector of each sequence: the mean of its steps. Part of gradcore.h, whose conventions hold. */
#ifndef GC_POOLING_H
#define GC_POOLING_H

#include "base/status.h"

typedef struct gc_mean {
    int threads;
    int batch_first;          /* x and dx are (B, T, F) */
    ptrdiff_t T, B, F;
    const ptrdiff_t *lengths; /* (B,) from 0 to T; NULL for T */
    const void *x;            /* (T, B, F); what is past a sequence's end is not read; NULL backward */
    void *y;                  /* (B, F) zeros for a length of 0 */
    const void *dy;           /* (B, F) backward only */
    void *dx;                 /* (T, B, F) zero past a sequence's end */
} gc_mean;

typedef struct gc_pooling_kernels {
    int (*mean)(const gc_mean *); /* forward, or with dy set backward */
} gc_pooling_kernels;

#endif

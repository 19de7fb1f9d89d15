/* Rows of a table by their numbers: the gradient. The forward pass is gc_copy_rows. Part of gradcore.h, whose conventions hold. */
#ifndef GC_EMBEDDING_H
#define GC_EMBEDDING_H

#include "base/status.h"

/* dw[at[i]] += dy[i] for i = 0, 1, ... in this order, but for rows of number `skip`. */
typedef struct gc_embedding {
    int threads;
    ptrdiff_t N, E;      /* numbers, features of a row */
    const ptrdiff_t *at; /* (N,) rows of dw */
    ptrdiff_t skip;      /* -1 for none */
    const void *dy;      /* (N, E) */
    void *dw;            /* (rows, E) added to */
} gc_embedding;

typedef struct gc_embedding_kernels {
    int (*backward)(const gc_embedding *);
} gc_embedding_kernels;

#endif

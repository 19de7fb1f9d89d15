/* The Jacobians of the steps of one recurrent layer and direction, times vectors. Part of gradcore.h, whose conventions hold. */
#ifndef GC_JACOBIAN_H
#define GC_JACOBIAN_H

#include <stddef.h>

/* What a forward pass has kept: gates, h_in and c_in of gc_recurrent. The last two may be NULL where the cell's factors do not
 * need them. */
typedef struct gc_tape {
    int cell;
    ptrdiff_t H;
    const void *gates, *h_in, *c_in;
} gc_tape;

/* v = J_n ... J_1 v for every vector of every sample, or with `transposed` J_n^T ... J_1^T v, whatever order the caller has
 * put the steps in. A state is h, or h and c: P * H numbers. Each step of each sample has the cell's D factors. */
typedef struct gc_jacobian {
    int cell, transposed, threads;
    ptrdiff_t H, B, m, steps;       /* B samples, each with m vectors */
    const double *factors;          /* (steps, B, D, H) */
    const double *packed;           /* jacobian_packed */
    double *v;                      /* (B, m, P*H) in and out */
    double *log_norm;               /* (steps, B, m) or NULL: each step's vectors are scaled to norm 1, these were ln of it */
    double *work;                   /* jacobian_work bytes, 64-byte aligned */
} gc_jacobian;

#endif

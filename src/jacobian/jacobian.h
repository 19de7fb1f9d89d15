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

/* The factors (n, D, H) of these n rows of a tape, which is of either type. */
typedef int gc_jacobian_factors(int threads, const gc_tape *tape, ptrdiff_t n, const ptrdiff_t *rows, double *factors);

/* v = J_n ... J_1 v for every vector of every sample, or with `transposed` J_n^T ... J_1^T v, whatever order the caller has
 * put the steps in. A state is h, or h and c: P * H numbers. Each step of each sample has the cell's D factors. */
typedef struct gc_jacobian {
    int cell, transposed, threads;
    ptrdiff_t H, B, m, steps;       /* B samples, each with m vectors */
    const double *factors;          /* (steps, B, D, H) */
    const double *packed;           /* what `packed` has written */
    double *v;                      /* (B, m, P*H) in and out */
    double *log_norm;               /* (steps, B, m) or NULL: each step's vectors are scaled to norm 1, these were ln of it */
    double *work;                   /* `work` bytes, 64-byte aligned */
} gc_jacobian;

typedef struct gc_jacobian_kernels {
    /* W_hh for the products of one way: how many doubles, which are written unless `packed` is NULL */
    size_t (*packed)(int cell, int transposed, ptrdiff_t H, const double *w_hh, double *packed);
    size_t (*work)(const gc_jacobian *);
    int (*product)(const gc_jacobian *);
    /* v (B, k, n) with k <= n, in place: each sample's rows by orthonormal ones, or, with pivots (B, k) for scratch, only by
     * some that are far from parallel; logs (B, k) = ln abs of the diagonal of the triangular matrix that leads from these to v:
     * -inf for a row that depends on earlier ones; inf or NaN for one that is not finite, and NaN for those behind it. */
    int (*separate)(int threads, ptrdiff_t B, ptrdiff_t k, ptrdiff_t n, double *v, double *logs, ptrdiff_t *pivots);
} gc_jacobian_kernels;

#endif

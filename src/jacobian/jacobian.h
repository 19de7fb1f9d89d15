/* The Jacobians of the steps of one recurrent layer and direction, times vectors. Part of gradcore.h, whose conventions hold. */
#ifndef GC_JACOBIAN_H
#define GC_JACOBIAN_H

#include <stddef.h>

#include "recurrent/recurrent.h"

/* What a forward pass has kept: gates, h_in and c_in of gc_recurrent, the last two of which may be NULL where the cell's factors
 * do not need them; and its norm and zoneout, of which gradients are not read. */
typedef struct gc_tape {
    int cell;
    ptrdiff_t H;
    const void *gates, *h_in, *c_in;
    gc_recurrent_norm norm;
    gc_zoneout zoneout;
} gc_tape;

/* What is between the states of a step beside the cell, and needs rows of its own behind the cell's D in `factors`. */
enum {
    GC_NORMED = 1, /* layer norm: G rows u' and, with c, c', as norm.inc.h has them */
    GC_ZONED = 2,  /* zoneout: P rows k and P rows 1 - k, P being the number of parts of a state */
    GC_MASKED = 4  /* recurrent dropout: a row of its mask, which the caller writes */
};

static inline ptrdiff_t gc_jacobian_rows(int cell, int beside)
{
    const gc_cell *its = &gc_cells[cell];
    return its->D + (beside & GC_NORMED ? its->G + its->has_c : 0) + (beside & GC_ZONED ? 2 * (1 + its->has_c) : 0) +
           (beside & GC_MASKED ? 1 : 0);
}

/* The factors (n, gc_jacobian_rows, H) of these n rows of a tape, which is of either type. With layer norm the first G, which
 * multiply W_hh v, have its gains and scales in them. `masked`: leave a row for the mask. */
typedef int gc_jacobian_factors(int threads, const gc_tape *tape, int masked, ptrdiff_t n, const ptrdiff_t *rows,
                                double *factors);

/* v = J_n ... J_1 v for every vector of every sample, or with `transposed` J_n^T ... J_1^T v, whatever order the caller has
 * put the steps in. A state is h, or h and c: P * H numbers. */
typedef struct gc_jacobian {
    int cell, beside, transposed, threads;
    ptrdiff_t H, B, m, steps;       /* B samples, each with m vectors */
    const double *factors;          /* (steps, B, gc_jacobian_rows, H) */
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

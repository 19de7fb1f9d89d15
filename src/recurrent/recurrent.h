/* One recurrent layer, one direction, a batch of sequences. Part of gradcore.h, whose conventions hold. */
#ifndef GC_RECURRENT_H
#define GC_RECURRENT_H

#include <stddef.h>
#include <stdint.h>

#include "recurrent/cell.h"

#define GC_NORM_EPS 1e-5 /* of layer norm, added to a variance */

/* Layer norm of W_ih x, of W_hh h and, for a cell with c, of c where the output is made of it. All NULL without; norm.inc.h has
 * the formulas. */
typedef struct gc_recurrent_norm {
    const void *ih, *hh;            /* (G*H,) gains */
    const void *c, *c_bias;         /* (H,), NULL for a cell without c */
    void *kept;                     /* (S, norm_row of the table) tape, NULL for inference */
    void *d_ih, *d_hh;              /* backward: like ih, hh, c and c_bias; adds */
    void *d_c, *d_c_bias;
} gc_recurrent_norm;

/* Zoneout: each unit of h and c keeps its old value with probability p, 0 for none. zoneout.inc.h has the formulas. */
typedef struct gc_zoneout {
    double p;
    int mean;                       /* each unit keeps the part p of it instead, as in inference */
    uint64_t key;                   /* what the masks depend on beside the row of the tape and the unit */
} gc_zoneout;

/* Elements from one row to the next of the tape's arrays, whose rows have n elements that count: not a multiple of 2 KiB, or
 * the rows that a product reads side by side would meet in a few sets of the cache. */
static inline ptrdiff_t gc_row(ptrdiff_t n, size_t real_size)
{
    return (size_t)n * real_size % 2048 ? n : n + 64 / (ptrdiff_t)real_size;
}

/* Rows are packed: the sequences are sorted by length, longest first, and step t holds offsets[t+1] - offsets[t] rows, the
 * sequences still alive, as a prefix of the batch. S = offsets[T] rows in all. G and K are the cell's; H' is H rounded up to a
 * multiple of `lanes`, and `gates` keeps K blocks for every `lanes` units. `reverse` walks the steps from T-1 to 0. */
typedef struct gc_recurrent {
    int cell, reverse, threads;     /* at most so many threads; fixed from *_work to the call that it is for */
    ptrdiff_t T, B, F, H;             /* F features in x_t; not I, which <complex.h> defines */
    const ptrdiff_t *offsets;       /* (T+1,) */
    const void *w_ih, *w_hh;        /* (G*H, F), (G*H, H) */
    const void *b_ih, *b_hh;        /* (G*H,), both NULL without biases */
    const void *x;                  /* (S, F) */
    gc_recurrent_norm norm;
    gc_zoneout zoneout;
    const void *mask;               /* recurrent dropout: (B, H) factors on the h_{t-1} that meets W_hh; NULL for none */
    void *h_met;                    /* (S, gc_row(H')) tape with a mask: that product, which inference has not; else NULL */

    /* forward */
    void *y;                        /* (S, H) with row stride ld_y: h_t; its rows are y_at, as those of dy */
    ptrdiff_t ld_y;
    const ptrdiff_t *y_at;          /* (S,) or NULL for 0, 1, ...: where a padded batch has them */
    void *h, *c;                    /* (B, H) in: initial state, out: final state; c is NULL for a cell without one */
    void *gates;                    /* (S, gc_row(K*H')), NULL for inference, as the two below */
    void *h_in, *c_in;              /* (S, gc_row(H')) state entering each step; c_in is NULL for a cell without c */

    /* backward: reads x, gates, h_in, c_in of the forward pass */
    const void *dy;                 /* (S, H) with row stride ld_y, in the rows y_at */
    void *dh, *dc;                  /* (B, H) in: dL/d(final state), out: dL/d(initial state); dc is NULL without c */
    void *dx;                       /* (S, F); adds when dx_adds, NULL when not wanted */
    int dx_adds;
    void *dw_ih, *dw_hh;            /* like w_ih, w_hh; adds */
    void *db_ih, *db_hh;            /* like b_ih, b_hh; adds */
    double step_clip;               /* largest norm of a sample's dL/dh_t as it is propagated; INFINITY for none */
    double *dh_norm, *dc_norm;      /* (S,) each sample's norm of the total dL/dh_t before clipping, and dL/dc_t; or NULL */

    void *work;                     /* scratch, *_work bytes, 64-byte aligned */
} gc_recurrent;

typedef struct gc_recurrent_kernels {
    size_t (*forward_work)(const gc_recurrent *);
    size_t (*backward_work)(const gc_recurrent *);
    int (*forward)(const gc_recurrent *);
    int (*backward)(const gc_recurrent *);
    ptrdiff_t (*norm_row)(int cell, ptrdiff_t H); /* elements of a row of gc_recurrent_norm's tape */
} gc_recurrent_kernels;

#endif

/* The table of kernels: what the C side offers and what each pointer means. Read this first.
 *
 * Conventions
 *   - Arrays are C-contiguous and aligned to their element; shapes are in comments, last axis fastest.
 *   - `void *` stands for float * in real[GC_F32] and double * in real[GC_F64]; sizes are ptrdiff_t, in elements.
 *   - Inputs (const) may alias each other; an output aliases nothing unless its comment says so.
 *   - "adds" means +=, the caller zeroes; every other output is overwritten whole.
 *   - Kernels that return int return a status, see below; they never print, never touch Python, and give the same bits for
 *     any thread count.
 */
#ifndef GRADCORE_H
#define GRADCORE_H

#include "activation/activation.h"
#include "base/rows.h"
#include "base/spans.h"
#include "base/status.h"
#include "base/threads.h"
#include "clip/clip.h"
#include "linear/linear.h"
#include "optim/optim.h"

/* ---- recurrent: one layer, one direction, a batch of sequences -------------------------------------------------------- */

enum { GC_RNN_TANH = 0, GC_RNN_RELU = 1, GC_LSTM = 2, GC_GRU = 3 };

/* Elements from one row to the next of the tape's arrays, whose rows have n elements that count: not a multiple of 2 KiB, or
 * the rows that a product reads side by side would meet in a few sets of the cache. */
static inline ptrdiff_t gc_row(ptrdiff_t n, size_t real_size)
{
    return (size_t)n * real_size % 2048 ? n : n + 64 / (ptrdiff_t)real_size;
}

/* Rows are packed: the sequences are sorted by length, longest first, and step t holds offsets[t+1] - offsets[t] rows, the
 * sequences still alive, as a prefix of the batch. S = offsets[T] rows in all. G is the cell's number of gates (RNN 1,
 * LSTM 4: i,f,g,o, GRU 3: r,z,n). H' is H rounded up to a multiple of `lanes`; for every `lanes` units `gates` keeps K
 * blocks (RNN 1: h; LSTM 4: i,f,g,o; GRU 4: n,r,z and q = W_hn h + b_hn), all after their activation but q. `reverse` walks
 * the steps from T-1 to 0. */
typedef struct gc_recurrent {
    int cell, reverse, threads;     /* at most so many threads; fixed from recurrent_*_work to the call that it is for */
    ptrdiff_t T, B, F, H;             /* F features in x_t; not I, which <complex.h> defines */
    const ptrdiff_t *offsets;       /* (T+1,) */
    const void *w_ih, *w_hh;        /* (G*H, F), (G*H, H) */
    const void *b_ih, *b_hh;        /* (G*H,), both NULL without biases */
    const void *x;                  /* (S, F) */

    /* forward */
    void *y;                        /* (S, H) with row stride ld_y: h_t; its rows are y_at, as those of dy */
    ptrdiff_t ld_y;
    const ptrdiff_t *y_at;          /* (S,) or NULL for 0, 1, ...: where a padded batch has them */
    void *h, *c;                    /* (B, H) in: initial state, out: final state; c is NULL but for LSTM */
    void *gates;                    /* (S, gc_row(K*H')), NULL for inference, as the two below */
    void *h_in, *c_in;              /* (S, gc_row(H')) state entering each step; c_in is NULL but for LSTM */

    /* backward: reads x, gates, h_in, c_in of the forward pass */
    const void *dy;                 /* (S, H) with row stride ld_y, in the rows y_at */
    void *dh, *dc;                  /* (B, H) in: dL/d(final state), out: dL/d(initial state); dc is NULL but for LSTM */
    void *dx;                       /* (S, F); adds when dx_adds, NULL when not wanted */
    int dx_adds;
    void *dw_ih, *dw_hh;            /* like w_ih, w_hh; adds */
    void *db_ih, *db_hh;            /* like b_ih, b_hh; adds */
    double step_clip;               /* largest norm of a sample's dL/dh_t as it is propagated; INFINITY for none */
    double *dh_norm, *dc_norm;      /* (S,) each sample's norm of the total dL/dh_t before clipping, and dL/dc_t; or NULL */

    void *work;                     /* scratch of recurrent_*_work() bytes, 64-byte aligned */
} gc_recurrent;

/* ---- jacobian: of the steps of one layer and direction, times vectors --------------------------------------------------- */

/* v = J_n ... J_1 v for every vector of every sample, or with `transposed` J_n^T ... J_1^T v, whatever order the caller has
 * put the steps in. A state is h, for LSTM h and c: P * H numbers. Each step of each sample has D factors (RNN 1, GRU 4,
 * LSTM 6; jacobian.inc.h has what they are). */
typedef struct gc_jacobian {
    int cell, transposed, threads;
    ptrdiff_t H, B, m, steps;       /* B samples, each with m vectors */
    const double *factors;          /* (steps, B, D, H) */
    const double *packed;           /* jacobian_packed */
    double *v;                      /* (B, m, P*H) in and out */
    double *log_norm;               /* (steps, B, m) or NULL: each step's vectors are scaled to norm 1, these were ln of it */
    double *work;                   /* jacobian_work bytes, 64-byte aligned */
} gc_jacobian;

/* ---- the table -------------------------------------------------------------------------------------------------------- */

typedef struct gc_kernels {
    ptrdiff_t lanes; /* elements of a vector */
    size_t (*recurrent_forward_work)(const gc_recurrent *);
    size_t (*recurrent_backward_work)(const gc_recurrent *);
    int (*recurrent_forward)(const gc_recurrent *);
    int (*recurrent_backward)(const gc_recurrent *);
    /* The factors (n, D, H) of these rows of a tape, which h_in (GRU) and c_in (LSTM) belong to; may be NULL for the others. */
    int (*jacobian_factors)(int threads, int cell, ptrdiff_t H, ptrdiff_t n, const ptrdiff_t *rows, const void *gates,
                            const void *h_in, const void *c_in, double *factors);

    const gc_linear_kernels *linear;
    const gc_activation_kernels *activation;
    const gc_clip_kernels *clip;
    const gc_optim_kernels *optim;

    /* n rounds of nothing but multiply-adds on each thread: how many they were. For measuring the processor's limit. */
    double (*multiply_adds)(int threads, ptrdiff_t n);
} gc_kernels;

typedef struct gc_table {
    const char *isa;
    gc_kernels real[2]; /* [GC_F32], [GC_F64] */
    size_t (*jacobian_packed)(int cell, int transposed, ptrdiff_t H, const double *w_hh, double *packed); /* how many doubles,
                                                                                       which are written unless NULL */
    size_t (*jacobian_work)(const gc_jacobian *);
    int (*jacobian_product)(const gc_jacobian *);
    /* v (B, k, n) with k <= n, in place: each sample's rows by orthonormal ones, or, with pivots (B, k) for scratch, only by
     * some that are far from parallel; logs (B, k) = ln abs of the diagonal of the triangular matrix that leads from these to v:
     * -inf for a row that depends on earlier ones; inf or NaN for one that is not finite, and NaN for those behind it. */
    int (*jacobian_separate)(int threads, ptrdiff_t B, ptrdiff_t k, ptrdiff_t n, double *v, double *logs,
                             ptrdiff_t *pivots);
    /* n elements; halves as their bits. Exact, and back rounded once, to the nearest or else to even. */
    void (*halves_to_doubles)(const uint16_t *half, ptrdiff_t n, double *x);
    void (*doubles_to_halves)(const double *x, ptrdiff_t n, uint16_t *half);
} gc_table;

/* ---- base/dispatch.c ------------------------------------------------------------------------------------------------------- */

/* The table for `wanted`, or for the best instruction set of this processor when `wanted` is NULL or empty; NULL where the
 * processor or the build lacks it. `supported`, of `size` bytes, receives the names that would work, separated by
 * ", ", or as many of them as it holds. */
const gc_table *gc_select(const char *wanted, char *supported, size_t size);

#endif

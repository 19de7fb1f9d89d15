/* The table of kernels: what the C side offers and what each pointer means. Read this first.
 *
 * Conventions
 *   - Arrays are C-contiguous and aligned to their element; shapes are in comments, last axis fastest.
 *   - `void *` stands for float * in real[GC_F32] and double * in real[GC_F64]; sizes are ptrdiff_t, in elements.
 *   - Inputs (const) may alias each other; an output aliases nothing unless its comment says so.
 *   - "adds" means +=, the caller zeroes; every other output is overwritten whole.
 *   - Kernels return GC_OK or GC_NOMEM, never print, never touch Python, and give the same bits for any thread count.
 */
#ifndef GRADCORE_H
#define GRADCORE_H

#include <stddef.h>
#include <stdint.h>

enum { GC_OK = 0, GC_NOMEM = 1 };
enum { GC_F32 = 0, GC_F64 = 1 };

/* ---- recurrent: one layer, one direction, a batch of sequences -------------------------------------------------------- */

enum { GC_RNN_TANH = 0, GC_RNN_RELU = 1, GC_LSTM = 2, GC_GRU = 3 };

/* Rows are packed: the sequences are sorted by length, longest first, and step t holds offsets[t+1] - offsets[t] rows, the
 * sequences still alive, as a prefix of the batch. S = offsets[T] rows in all. G is the cell's number of gates (RNN 1,
 * LSTM 4: i,f,g,o, GRU 3: r,z,n); `gates` keeps K blocks of H a row (RNN 1: h; LSTM 4: i,f,g,o; GRU 4: r,z,n and
 * q = W_hn h + b_hn), all after their activation but q. `reverse` walks the steps from T-1 to 0. */
typedef struct gc_recurrent {
    int cell, reverse, threads;     /* at most so many threads; fixed from recurrent_*_work to the call that it is for */
    ptrdiff_t T, B, F, H;             /* F features in x_t; not I, which <complex.h> defines */
    const ptrdiff_t *offsets;       /* (T+1,) */
    const void *w_ih, *w_hh;        /* (G*H, F), (G*H, H) */
    const void *b_ih, *b_hh;        /* (G*H,), both NULL without biases */
    const void *x;                  /* (S, F) */

    /* forward */
    void *y;                        /* (S, H) with row stride ld_y: h_t */
    ptrdiff_t ld_y;
    void *h, *c;                    /* (B, H) in: initial state, out: final state; c is NULL but for LSTM */
    void *gates;                    /* (S, K*H), NULL for inference, as the two below */
    void *h_in, *c_in;              /* (S, H) state entering each step; c_in is NULL but for LSTM */

    /* backward: reads x, gates, h_in, c_in of the forward pass */
    const void *dy;                 /* (S, H) with row stride ld_y */
    void *dh, *dc;                  /* (B, H) in: dL/d(final state), out: dL/d(initial state); dc is NULL but for LSTM */
    void *dx;                       /* (S, F); adds when dx_adds, NULL when not wanted */
    int dx_adds;
    void *dw_ih, *dw_hh;            /* like w_ih, w_hh; adds */
    void *db_ih, *db_hh;            /* like b_ih, b_hh; adds */
    double step_clip;               /* largest norm of a sample's dL/dh_t as it is propagated; INFINITY for none */
    double *dh_norm, *dc_norm;      /* (S,) each sample's norm of the total dL/dh_t before clipping, and dL/dc_t */

    void *work;                     /* scratch of recurrent_*_work() bytes, 64-byte aligned */
} gc_recurrent;

/* ---- linear: x W^T + b and the activations ----------------------------------------------------------------------------- */

typedef struct gc_linear {
    int threads;            /* at most so many; fixed from linear_work to the call that it is for */
    ptrdiff_t N, F, O;      /* rows, in_features, out_features */
    const void *x, *w, *b;  /* (N, F), (O, F), (O,); b is NULL without a bias, and not read backward */
    void *y;                /* (N, O); forward only */
    const void *dy;         /* (N, O); NULL forward */
    void *dx, *dw, *db;     /* (N, F) overwritten; (O, F) and (O,) added to; db is NULL without a bias */
    void *work;             /* scratch of linear_work() bytes, 64-byte aligned */
} gc_linear;

/* With z = p x where p occurs: tanh; sigmoid; max(0, x); leaky: x > 0 ? x : p x; elu: q (x > 0 ? x : p expm1(x)), which is
 * selu too; gelu: x P(Z <= x), or with P's tanh form; softplus: z > q ? x : log(1 + exp(z)) / p. */
enum {
    GC_IDENTITY = 0, GC_TANH = 1, GC_SIGMOID = 2, GC_RELU = 3, GC_LEAKY_RELU = 4, GC_ELU = 5, GC_GELU = 6, GC_GELU_TANH = 7,
    GC_SOFTPLUS = 8
};

/* ---- the table -------------------------------------------------------------------------------------------------------- */

typedef struct gc_kernels {
    size_t (*recurrent_forward_work)(const gc_recurrent *);
    size_t (*recurrent_backward_work)(const gc_recurrent *);
    void (*recurrent_forward)(const gc_recurrent *);
    void (*recurrent_backward)(const gc_recurrent *);

    size_t (*linear_work)(const gc_linear *); /* for the forward pass, or with dy set for the backward pass */
    void (*linear_forward)(const gc_linear *);
    void (*linear_backward)(const gc_linear *);
    /* n elements each; y or dx may be the same array as any input. `kept` is y for tanh, sigmoid and relu, x for the others */
    void (*activation_forward)(int threads, int kind, ptrdiff_t n, double p, double q, const void *x, void *y);
    void (*activation_backward)(int threads, int kind, ptrdiff_t n, double p, double q, const void *kept, const void *dy,
                                void *dx);
} gc_kernels;

typedef struct gc_table {
    const char *isa;
    gc_kernels real[2]; /* [GC_F32], [GC_F64] */
} gc_table;

/* ---- dispatch.c ------------------------------------------------------------------------------------------------------- */

/* The table for `wanted`, or for the best instruction set of this processor when `wanted` is NULL or empty; NULL where the
 * processor or the build lacks it. `supported` receives the names that would work, separated by ", ". */
const gc_table *gc_select(const char *wanted, char supported[64]);

/* ---- threads.c: the only door to OpenMP ------------------------------------------------------------------------------- */

typedef struct gc_team gc_team;

/* Run body(arg, team, thread) on up to n threads, thread 0 being the caller. Fewer threads may come: ask the team. */
void gc_parallel(int n, void (*body)(void *arg, gc_team *team, int thread), void *arg);
int gc_team_size(const gc_team *team);
void gc_barrier(gc_team *team); /* every thread of the team waits for the others */

void gc_set_num_threads(int n);
int gc_get_num_threads(void);
int gc_has_openmp(void);

/* Flush subnormals to zero in the calling thread; the mode found is returned, to be given back to gc_ftz_leave. */
unsigned long long gc_ftz_enter(void);
void gc_ftz_leave(unsigned long long mode);

#endif

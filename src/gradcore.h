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

#include <stddef.h>
#include <stdint.h>

/* After GC_STOPPED, which only a kernel of more than a moment can return, what it was to write is of no use, and what it was to
 * add to is spoilt. */
enum { GC_OK = 0, GC_NOMEM = 1, GC_STOPPED = 2 };
enum { GC_F32 = 0, GC_F64 = 1, GC_F16 = 2 }; /* GC_F16 has no kernels: norms and clipping take it as doubles */

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

/* ---- norm, optim: lists of arrays ------------------------------------------------------------------------------------- */

enum { GC_BLOCK = 4096 }; /* elements: the unit of work and of rounding; a block belongs to one array */
enum { GC_GRAD, GC_PARAM, GC_MEAN, GC_SQUARE, GC_EXTRA, GC_OPERANDS };

/* One array of a list, of any element type; for an optimizer the arrays of the same shape that go with it. */
typedef struct gc_span {
    void *data[GC_OPERANDS]; /* (n,) each, aliasing nothing; norms and clipping use GC_GRAD alone */
    ptrdiff_t n;
    ptrdiff_t first_block;   /* blocks are numbered through the list: gc_number_blocks sets it */
    int real;                /* GC_F32 or GC_F64; without an optimizer GC_F16 too */
} gc_span;

/* What a block tells about its finite entries, and how many it has that are not. */
typedef struct gc_norm_block {
    double sum, rest;          /* of (|g| / unit)^p, rest being what rounding took from sum; 0 when p is INFINITY */
    double largest;            /* |g|, without units */
    ptrdiff_t n_nan, n_inf;
    ptrdiff_t first_nonfinite; /* its index in the block, -1 for none */
} gc_norm_block;

/* What is known of an array or of a whole list: root * unit is the norm of the finite entries, in two factors because it
 * may lie beyond the range of double. */
typedef struct gc_norm {
    double root, unit;
    double sum;                /* of (|g| / unit)^p */
    double largest;            /* |g| */
    ptrdiff_t n_nan, n_inf;
    ptrdiff_t worst;           /* index of the first entry that is not finite, else -1; for a list else of the largest */
    ptrdiff_t worst_array;     /* for a list: which array that is, -1 without entries */
    ptrdiff_t largest_block;   /* index where the block with the first largest entry begins */
} gc_norm;

/* g is the gradient times factor[0] * factor[1] (0 where it is not finite), plus l2 * p + l1 * sign(p). optim.inc.h has the
 * formulas. */
enum { GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD, GC_SPAM };
typedef struct gc_update {
    int rule;
    double factor[2];
    double l2, l1, shrink, step;
    double keep_mean, take_mean, keep_square, take_square;
    double eps, root;
    double now, past;          /* SGD with momentum: shares of gradient and momentum in the change */
    double momentum;           /* RMSprop */
    double threshold;          /* SPAM: of g^2 over v, above which g is a spike */
} gc_update;

/* sum += x for sums that must not lose digits: what rounding takes away goes to rest. */
static inline void gc_add(double *sum, double *rest, double x)
{
    const double s = *sum + x, seen = s - *sum;
    *rest += (*sum - (s - seen)) + (x - seen);
    *sum = s;
}

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

    size_t (*linear_work)(const gc_linear *); /* for the forward pass, or with dy set for the backward pass */
    int (*linear_forward)(const gc_linear *);
    int (*linear_backward)(const gc_linear *);
    /* n elements each; y or dx may be the same array as any input. `kept` is y for tanh, sigmoid and relu, x for the others */
    int (*activation_forward)(int threads, int kind, ptrdiff_t n, double p, double q, const void *x, void *y);
    int (*activation_backward)(int threads, int kind, ptrdiff_t n, double p, double q, const void *kept, const void *dy,
                               void *dx);

    /* One block of n <= GC_BLOCK elements. unit > 0 divides the entries; with p 1 or 2 it is a power of two. */
    void (*norm_block)(const void *g, ptrdiff_t n, double p, double unit, gc_norm_block *out);
    ptrdiff_t (*norm_find)(const void *g, ptrdiff_t n, double largest); /* index of the first entry with this magnitude */
    void (*scale_block)(void *g, ptrdiff_t n, const double factor[2]);  /* g *= both; 0 where g is not finite */
    void (*clamp_block)(void *g, ptrdiff_t n, double limit);            /* to [-limit, limit]; NaN stays */
    /* How many spikes were cut, which only SPAM does. */
    ptrdiff_t (*update_block)(const gc_update *, void *const data[GC_OPERANDS], ptrdiff_t start, ptrdiff_t n);

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

/* ---- dispatch.c ------------------------------------------------------------------------------------------------------- */

/* The table for `wanted`, or for the best instruction set of this processor when `wanted` is NULL or empty; NULL where the
 * processor or the build lacks it. `supported`, of `size` bytes, receives the names that would work, separated by
 * ", ", or as many of them as it holds. */
const gc_table *gc_select(const char *wanted, char *supported, size_t size);

/* ---- spans.c, norm.c, optim.c: lists of arrays, with the block kernels of one table ------------------------------------- */

typedef void (*gc_block_body)(void *arg, ptrdiff_t array, ptrdiff_t start, ptrdiff_t n);

void gc_number_blocks(gc_span *spans, ptrdiff_t n);
ptrdiff_t gc_number_of_blocks(const gc_span *spans, ptrdiff_t n);
/* body for every block of the list, in one parallel region; which thread gets which block depends on their numbers only.
 * `how` and what is returned are gc_parallel's. */
int gc_over_blocks(const gc_span *spans, ptrdiff_t n, int how, gc_block_body body, void *arg);

/* p is positive or INFINITY; `arrays` (n,) and `all` are overwritten. Reads only. */
int gc_norm_measure(const gc_table *, const gc_span *spans, ptrdiff_t n, double p, gc_norm *arrays, gc_norm *all);
/* Each array by its two factors of `factors` (n, 2). */
void gc_norm_scale(const gc_table *, const gc_span *spans, ptrdiff_t n, const double *factors);
void gc_norm_clamp(const gc_table *, const gc_span *spans, ptrdiff_t n, double limit);
/* How many spikes were cut. */
ptrdiff_t gc_optim_update(const gc_table *, const gc_span *spans, ptrdiff_t n, const gc_update *);

/* ---- rows.c ------------------------------------------------------------------------------------------------------------- */

/* to[to_at[i]] = from[from_at[i]] for n rows of so many bytes; an index that is NULL stands for i, `from` NULL for zeros. */
int gc_copy_rows(ptrdiff_t n, size_t size, const void *from, const ptrdiff_t *from_at, void *to, const ptrdiff_t *to_at);

/* ---- threads.c: the only door to OpenMP ------------------------------------------------------------------------------- */

typedef struct gc_team gc_team;

typedef void (*gc_body)(void *arg, gc_team *team, int thread);
enum { GC_EXACT = 1, GC_WHOLE = 2 }; /* subnormal numbers are kept, not flushed to zero; it is not stopped half way */

/* Run body(arg, team, thread) on up to n threads, thread 0 being the caller. Fewer threads may come: ask the team. GC_STOPPED
 * if gc_stopped has said so to any of them. */
int gc_parallel(int n, int how, gc_body body, void *arg);
int gc_team_size(const gc_team *team);
/* Every thread of the team waits for the others. All get the same answer: whether to stop, and then they return at once. */
int gc_barrier(gc_team *team);

/* Whether this thread of the team is to return soon, leaving things as they are, without another barrier. To be asked about
 * every millisecond. */
int gc_stopped(gc_team *team, int thread);
/* What thread 0 asks ten times a second, in the caller's floating-point mode: 0 to go on. */
void gc_set_ask(int (*ask)(void));

void gc_set_num_threads(int n);
int gc_get_num_threads(void);
int gc_has_openmp(void);

#endif

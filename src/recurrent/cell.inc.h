/* What the functions of a cell get, and the table of these functions. Each cell is a file in cells/. */
#ifndef REAL
#error "cell.inc.h needs real.inc.h, simd.inc.h and vmath.inc.h"
#endif

/* One row of one step, units [u0, u1) of one sequence: what both passes of a cell work on. Arrays stand at unit 0 and are (H,)
 * unless said otherwise. In `gates` and `pre` every V units have K blocks of V: those of the units from j on, j being a multiple
 * of V, begin at j * K. */
typedef struct {
    ptrdiff_t u0, u1, H;

    /* the tape: forward it is written, unless gates is NULL; backward it is read */
    REAL *gates;      /* (H'/V, K, V) */
    REAL *c_in;       /* c_{t-1} */
    const REAL *h_in; /* h_{t-1}; NULL forward, where h is just that */
    int stream;       /* the tape is too long for the caches */

    union {
        struct {             /* forward */
            const REAL *pre; /* (., K, V), pre-activations; stands at unit u0: its blocks begin at (j - u0) * K */
            REAL *h, *c;     /* in: state before the step, out: after it */
            REAL *y;         /* out: h_t */
        };
        struct {            /* backward */
            const REAL *dh; /* dL/dh_t, which step clipping multiplies by both of scale */
            REAL scale[2];
            REAL *dc;       /* in: dL/dc_t but for what comes through h_t, out: dL/dc_{t-1} */
            REAL *dc_total; /* out: all of dL/dc_t, whose norm is measured */
            REAL *bypass;   /* out: the part of dL/dh_{t-1} that does not pass W_hh */
            REAL *dg;       /* (K, H), out: dL/d(pre-activation) */
        };
    };
} FN(cell_row);

/* n rows of the forward pass, their arrays as far apart as is said, those of y in the rows y_at; NULL for 0, 1, ... */
typedef struct {
    ptrdiff_t n;
    FN(cell_row) first;
    ptrdiff_t gates_row, state_row, pre_row, y_row;
    const ptrdiff_t *y_at; /* (n,) */
} FN(cell_rows);

/* From row b - 1 to row b. */
INLINE void FN(to_next_row)(const FN(cell_rows) *rows, FN(cell_row) *row, ptrdiff_t b)
{
    row->pre += rows->pre_row;
    row->h += row->H;
    if (row->c) row->c += row->H;
    if (!rows->y_at)
        row->y += rows->y_row;
    else if (b < rows->n)
        row->y += (rows->y_at[b] - rows->y_at[b - 1]) * rows->y_row;
    if (row->gates) row->gates += rows->gates_row;
    if (row->c_in) row->c_in += rows->state_row;
}

/* To the tape: past the caches when it is too long for them. */
INLINE void FN(keep)(const FN(cell_row) *p, REAL *to, VEC value)
{
    if (p->stream)
        FN(v_stream)(to, value);
    else
        FN(v_store)(to, value);
}

/* h_t of the units from j on: to the state and to y. */
INLINE void FN(put_h)(const FN(cell_row) *p, ptrdiff_t j, VEC h)
{
    FN(v_put)(p->h + j, h, p->u1 - j);
    FN(v_put)(p->y + j, h, p->u1 - j);
}

/* dL/dh of the units from j on, after step clipping. */
INLINE VEC FN(clipped_dh)(const FN(cell_row) *p, ptrdiff_t j)
{
    return FN(v_mul)(FN(v_mul)(FN(v_get)(p->dh + j, p->u1 - j), FN(v_set1)(p->scale[0])), FN(v_set1)(p->scale[1]));
}

/* c' of one row, c_t by layer norm, and what is made of it. */
typedef struct {
    const REAL *gain, *bias; /* (H,) */
    REAL mean, scale;        /* forward: c' = (c_t - mean) scale */
    REAL *c;                 /* c', forward out, unless NULL, backward in: blocks of V */
    ptrdiff_t group;         /* elements from one block to the next */
    REAL *dn;                /* backward, out: (2, H), the gain's and the bias's gradient of this row */
} FN(c_norm);

/* A cell's file has its passes for V units, forward(p, j) and backward(p, j), and makes of them functions for all of the rows.
 * These work on copies: the compiler would take each vector that is stored for a change of what a pointer leads to. */
typedef struct {
    void (*step)(const FN(cell_rows) *);
    void (*step_back)(const FN(cell_row) *);
    void (*factors)(const FN(cell_row) *, const FN(c_norm) *, double *to); /* (D, H); NULL but for layer norm of c_t */
    /* with layer norm of c_t, for a cell that has it: the step in two parts, between which all of c_t is known */
    void (*step_to_c)(const FN(cell_rows) *);
    void (*step_from_c)(const FN(cell_row) *, const FN(c_norm) *);
    void (*step_from_c_back)(const FN(cell_row) *, const FN(c_norm) *); /* dg of what step_from_c uses, and dn */
    void (*step_to_c_back)(const FN(cell_row) *);                       /* from dc, which has all of dL/dc_t by now */
} FN(cell);

#if GC_BITS == 64
/* The same for vectors that the step's Jacobian carries along, always in double. A vector v is (P, H), of which h is the first
 * part and c the second; factors is (D, H). */
typedef struct {
    /* v = J v, with pre (G, H) = W_hh v_h; and the transpose: pre = what W_hh^T is to multiply, and v what stays beside it. With
     * layer norm of c_t, its c' is given, through which c passes on its way to h; else NULL. */
    void (*carry)(ptrdiff_t H, const double *factors, const double *normed_c, const double *pre, double *v);
    void (*carry_back)(ptrdiff_t H, const double *factors, const double *normed_c, double *pre, double *v);
} jacobian_cell;

static void take_out_norm(ptrdiff_t n, const double *normed, double *y);

#define FACTOR(d) FN(v_get)(factors + (d)*H + j, H - j)
#define PRE(g) FN(v_get)(pre + (g)*H + j, H - j)
#define PUT_PRE(g, value) FN(v_put)(pre + (g)*H + j, value, H - j)
#endif

#include "recurrent/cells/gru.inc.h"
#include "recurrent/cells/lstm.inc.h"
#include "recurrent/cells/rnn.inc.h"

#define CELL(number, function, ...) [number] = &FN(function),
static const FN(cell) *const FN(cells)[GC_CELLS] = {
#include "recurrent/cells.def"
};
#undef CELL

#if GC_BITS == 64
#define CELL(number, function, ...) [number] = &function##_jacobian,
static const jacobian_cell *const jacobian_cells[GC_CELLS] = {
#include "recurrent/cells.def"
};
#undef CELL
#undef FACTOR
#undef PRE
#undef PUT_PRE
#endif

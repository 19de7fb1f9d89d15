/* Layer norm within a cell (Ba, Kiros and Hinton, 2016), on one row of one step: between the products and the cell.
 *
 * forward    (n1)  a = W_ih x_t and u = W_hh h_{t-1}, each over its G*H features: a' = (a - mean) / sqrt(variance + eps), u' too
 *            (n2)  the pre-activations are a' gain_ih + b_ih + u' gain_hh + b_hh, of a GRU's n and q each its own part
 *            (n3)  for a cell with c: c' over its H units, of which the output is made with a gain and a bias; see the cell
 * backward         dgain = sum of d a', db = sum of d;   dL/da = scale (e - mean(e) - a' mean(e a')) with e = d gain,
 *                  d = dL/d(pre-activation), scale = 1 / sqrt(variance + eps)
 * tape             a row of `norm` has for every V units the blocks a' (G), u' (G) and, with c, c'; behind them the scales of a, u
 *                  and c
 * twin             gradcore/reference/recurrent.py: _normalized, _normalized_backward, _sums
 *
 * A row's sums are made by whoever needs them, always from the whole row in the same order: no bit depends on the team.
 */
#ifndef REAL
#error "norm.inc.h needs real.inc.h, simd.inc.h and cell.inc.h"
#endif

#ifndef GC_NORM_SIZES
#define GC_NORM_SIZES
enum { NORM_SCALES = 64 / sizeof(float) }; /* elements behind the blocks of a row, of which three are used */
#endif

/* Elements of the tape for V units, and of a row before it is padded. */
INLINE ptrdiff_t FN(norm_group)(const gc_cell *cell) { return (2 * cell->G + cell->has_c) * V; }
INLINE ptrdiff_t FN(norm_scales_at)(const gc_cell *cell, ptrdiff_t H) { return (H + V - 1) / V * FN(norm_group)(cell); }
INLINE ptrdiff_t FN(norm_row)(const gc_cell *cell, ptrdiff_t H)
{
    return gc_row(FN(norm_scales_at)(cell, H) + NORM_SCALES, sizeof(REAL));
}

/* The sum of the elements of n <= 4 vectors. */
INLINE double FN(total)(const int n, const VEC *sums)
{
    REAL lanes[V];
    double total = 0;
    FN(v_store)(lanes, n == 1 ? sums[0] : n == 2 ? FN(v_add)(sums[0], sums[1])
                       : n == 3 ? FN(v_add)(FN(v_add)(sums[0], sums[1]), sums[2])
                                : FN(v_add)(FN(v_add)(sums[0], sums[1]), FN(v_add)(sums[2], sums[3])));
    for (int i = 0; i < V; i++) total += lanes[i];
    return total;
}

typedef struct {
    REAL mean, scale;
} FN(moments);

/* (n1) of the G blocks of every V units in a row, which are `group` elements apart. G is a constant where this is inlined. */
INLINE FN(moments) FN(moments_of)(const int G, ptrdiff_t H, const REAL *row, ptrdiff_t group)
{
    VEC sums[4], squares[4];
    for (int k = 0; k < G; k++) sums[k] = squares[k] = FN(v_zero)();
    const REAL *at = row;
    for (ptrdiff_t j = 0; j < H; j += V, at += group)
#pragma GCC unroll 4
        for (int k = 0; k < G; k++) sums[k] = FN(v_add)(sums[k], FN(v_get)(at + k * V, H - j));
    const double n = (double)(G * H), mean = FN(total)(G, sums) / n;
    const VEC less = FN(v_set1)((REAL)mean);
    at = row;
    for (ptrdiff_t j = 0; j < H; j += V, at += group)
#pragma GCC unroll 4
        for (int k = 0; k < G; k++) {
            VEC d = FN(v_sub)(FN(v_get)(at + k * V, H - j), less);
            if (H - j < V) {
                REAL lanes[V];
                FN(v_store)(lanes, d);
                d = FN(v_load_n)(lanes, H - j);
            }
            squares[k] = FN(v_fma)(d, d, squares[k]);
        }
    return (FN(moments)){(REAL)mean, (REAL)(1 / sqrt(FN(total)(G, squares) / n + GC_NORM_EPS))};
}

/* Units [u0, u1) of n rows, u0 being a multiple of V: (n2). */
typedef struct {
    ptrdiff_t n, u0, u1;
    const REAL *a, *u; /* (n, sums_row), products [H'/V][K][V] in the cell's blocks */
    ptrdiff_t sums_row;
    const FN(moments) *moments; /* (n, 2) */
    const REAL *gain, *bias;    /* [H'/V][2G][V], [H'/V][K][V] */
    REAL *to;                   /* (n, to_row) pre-activations; stands at unit u0 */
    ptrdiff_t to_row;
    REAL *norm; /* the tape, or NULL */
    ptrdiff_t norm_row;
    int stream;
} FN(mix_job);

/* The row's factors of dL/d(pre-activation), backward. */
typedef struct {
    ptrdiff_t n, H, u0, u1;
    const REAL *dg; /* (n, dg_row), [K][H] */
    ptrdiff_t dg_row;
    const REAL *norm; /* the tape */
    ptrdiff_t norm_row;
    const REAL *gain;
    REAL *da, *du; /* (n, d_row), [G][H]: of the products, each in the order of its blocks */
    ptrdiff_t d_row;
} FN(norm_back_job);

/* Sums over n rows: to (., K + 2G + 2, V) for the units from u0 on: of dg, of dg a', of dg u' and, with c, of both of dn. */
typedef struct {
    ptrdiff_t n, H, u0, u1;
    const REAL *dg;
    ptrdiff_t dg_row;
    const REAL *norm;
    ptrdiff_t norm_row;
    const REAL *dn; /* (n, 2, H), or NULL */
    REAL *to;
} FN(norm_sum_job);

INLINE void FN(moments_of_rows)(const gc_cell *cell, ptrdiff_t H, ptrdiff_t n, const REAL *a, const REAL *u, ptrdiff_t sums_row,
                                FN(moments) *to)
{
    const int G = cell->G, K = cell->K;
    for (ptrdiff_t b = 0; b < n; b++) {
        to[2 * b] = FN(moments_of)(G, H, a + b * sums_row, K * V);
        to[2 * b + 1] = FN(moments_of)(G, H, u + b * sums_row + (K - G) * V, K * V);
    }
}

INLINE void FN(mix)(const gc_cell *cell, const FN(mix_job) *job)
{
    const int G = cell->G, K = cell->K, stream = job->stream;
    const ptrdiff_t u0 = job->u0, u1 = job->u1, group = FN(norm_group)(cell);
    for (ptrdiff_t b = 0; b < job->n; b++) {
        const FN(moments) of_a = job->moments[2 * b], of_u = job->moments[2 * b + 1];
        const VEC mean_a = FN(v_set1)(of_a.mean), scale_a = FN(v_set1)(of_a.scale);
        const VEC mean_u = FN(v_set1)(of_u.mean), scale_u = FN(v_set1)(of_u.scale);
        const REAL *a = job->a + b * job->sums_row + u0 * K, *u = job->u + b * job->sums_row + u0 * K + (K - G) * V;
        const REAL *gain = job->gain + u0 * 2 * G, *bias = job->bias + u0 * K;
        REAL *to = job->to + b * job->to_row, *norm = job->norm ? job->norm + b * job->norm_row + u0 / V * group : NULL;
        for (ptrdiff_t j = u0; j < u1; j += V, a += K * V, u += K * V, gain += 2 * G * V, bias += K * V, to += K * V) {
            VEC sum[4], kept[8];
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) sum[k] = FN(v_load)(bias + k * V);
#pragma GCC unroll 4
            for (int k = 0; k < G; k++) {
                kept[k] = FN(v_mul)(FN(v_sub)(FN(v_load)(a + k * V), mean_a), scale_a);
                kept[G + k] = FN(v_mul)(FN(v_sub)(FN(v_load)(u + k * V), mean_u), scale_u);
            }
#pragma GCC unroll 4
            for (int k = 0; k < G; k++) {
                sum[k] = FN(v_fma)(kept[k], FN(v_load)(gain + k * V), sum[k]);
                sum[K - G + k] = FN(v_fma)(kept[G + k], FN(v_load)(gain + (G + k) * V), sum[K - G + k]);
            }
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) FN(v_store)(to + k * V, sum[k]);
            if (!norm) continue;
#pragma GCC unroll 8
            for (int k = 0; k < 2 * G; k++)
                if (stream)
                    FN(v_stream)(norm + k * V, kept[k]);
                else
                    FN(v_store)(norm + k * V, kept[k]);
            norm += group;
        }
    }
}

INLINE void FN(norm_back)(const gc_cell *cell, const FN(norm_back_job) *job)
{
    const int G = cell->G, K = cell->K;
    const ptrdiff_t H = job->H, u0 = job->u0, u1 = job->u1, group = FN(norm_group)(cell), scales_at = FN(norm_scales_at)(cell, H);
    for (ptrdiff_t b = 0; b < job->n; b++) {
        const REAL *dg = job->dg + b * job->dg_row, *row = job->norm + b * job->norm_row;
        REAL *to[2] = {job->da + b * job->d_row, job->du + b * job->d_row};
        VEC mean[2], slope[2], scale[2];
#pragma GCC unroll 2
        for (int which = 0; which < 2; which++) { /* a, u */
            const REAL *d = dg + which * (K - G) * H, *norm = row + which * G * V, *gain = job->gain + which * G * V;
            VEC sums[4], products[4];
            for (int k = 0; k < G; k++) sums[k] = products[k] = FN(v_zero)();
            for (ptrdiff_t j = 0; j < H; j += V, norm += group, gain += 2 * G * V)
#pragma GCC unroll 4
                for (int k = 0; k < G; k++) {
                    const VEC e = FN(v_mul)(FN(v_get)(d + k * H + j, H - j), FN(v_load)(gain + k * V));
                    sums[k] = FN(v_add)(sums[k], e);
                    products[k] = FN(v_fma)(e, FN(v_load)(norm + k * V), products[k]);
                }
            const double n = (double)(G * H);
            mean[which] = FN(v_set1)((REAL)(FN(total)(G, sums) / n));
            slope[which] = FN(v_set1)((REAL)(FN(total)(G, products) / n));
            scale[which] = FN(v_set1)(row[scales_at + which]);
        }
#pragma GCC unroll 2
        for (int which = 0; which < 2; which++) {
            const REAL *d = dg + which * (K - G) * H, *norm = row + u0 / V * group + which * G * V;
            const REAL *gain = job->gain + u0 * 2 * G + which * G * V;
            for (ptrdiff_t j = u0; j < u1; j += V, norm += group, gain += 2 * G * V)
#pragma GCC unroll 4
                for (int k = 0; k < G; k++) {
                    const VEC e = FN(v_mul)(FN(v_get)(d + k * H + j, H - j), FN(v_load)(gain + k * V));
                    const VEC rest = FN(v_fnma)(FN(v_load)(norm + k * V), slope[which], FN(v_sub)(e, mean[which]));
                    FN(v_put)(to[which] + k * H + j, FN(v_mul)(scale[which], rest), u1 - j);
                }
        }
    }
}

INLINE void FN(norm_sum)(const gc_cell *cell, const FN(norm_sum_job) *job)
{
    const int G = cell->G, K = cell->K;
    const ptrdiff_t H = job->H, u0 = job->u0, u1 = job->u1, group = FN(norm_group)(cell), sums = (K + 2 * G + 2) * V;
    for (ptrdiff_t b = 0; b < job->n; b++) {
        const REAL *dg = job->dg + b * job->dg_row, *norm = job->norm + b * job->norm_row + u0 / V * group;
        const REAL *dn = job->dn ? job->dn + b * 2 * H : NULL;
        REAL *to = job->to;
        for (ptrdiff_t j = u0; j < u1; j += V, norm += group, to += sums) {
            VEC d[4];
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) {
                d[k] = FN(v_get)(dg + k * H + j, u1 - j);
                FN(v_store)(to + k * V, FN(v_add)(FN(v_load)(to + k * V), d[k]));
            }
#pragma GCC unroll 8
            for (int k = 0; k < 2 * G; k++) {
                const VEC its = d[k < G ? k : K - 2 * G + k];
                FN(v_store)(to + (K + k) * V, FN(v_fma)(its, FN(v_load)(norm + k * V), FN(v_load)(to + (K + k) * V)));
            }
            for (int k = 0; k < 2 && dn; k++) {
                REAL *sum = to + (K + 2 * G + k) * V;
                FN(v_store)(sum, FN(v_add)(FN(v_load)(sum), FN(v_get)(dn + k * H + j, u1 - j)));
            }
        }
    }
}

/* All of these for each cell, whose numbers of blocks are then constants. */
typedef struct {
    void (*moments)(ptrdiff_t H, ptrdiff_t n, const REAL *a, const REAL *u, ptrdiff_t sums_row, FN(moments) *to);
    void (*mix)(const FN(mix_job) *);
    void (*back)(const FN(norm_back_job) *);
    void (*sum)(const FN(norm_sum_job) *);
} FN(cell_norm);

#define CELL(number, function, ...)                                                                                            \
    static void FN(function##_moments)(ptrdiff_t H, ptrdiff_t n, const REAL *a, const REAL *u, ptrdiff_t sums_row,             \
                                       FN(moments) *to)                                                                        \
    {                                                                                                                          \
        FN(moments_of_rows)(&gc_cells[number], H, n, a, u, sums_row, to);                                                      \
    }                                                                                                                          \
    static void FN(function##_mix)(const FN(mix_job) *job) { FN(mix)(&gc_cells[number], job); }                                \
    static void FN(function##_norm_back)(const FN(norm_back_job) *job) { FN(norm_back)(&gc_cells[number], job); }              \
    static void FN(function##_norm_sum)(const FN(norm_sum_job) *job) { FN(norm_sum)(&gc_cells[number], job); }
#include "recurrent/cells.def"
#undef CELL

#define CELL(number, function, ...)                                                                                            \
    [number] = {FN(function##_moments), FN(function##_mix), FN(function##_norm_back), FN(function##_norm_sum)},
static const FN(cell_norm) FN(cell_norms)[GC_CELLS] = {
#include "recurrent/cells.def"
};
#undef CELL

/* The gains by unit, [H'/V][2G][V], in the order of the blocks; 0 beyond H. */
static void FN(pack_gains)(const gc_recurrent *s, REAL *to)
{
    const gc_cell *cell = &gc_cells[s->cell];
    const ptrdiff_t H = s->H, G = cell->G;
    const REAL *ih = s->norm.ih, *hh = s->norm.hh;
    memset(to, 0, (size_t)((H + V - 1) / V * V * 2 * G) * sizeof(REAL));
    for (ptrdiff_t k = 0; k < G; k++)
        for (ptrdiff_t u = 0; u < H; u++) {
            REAL *at = to + u / V * 2 * G * V + u % V;
            at[k * V] = ih[gate_of(k, cell->first_gate, G) * H + u];
            at[(G + k) * V] = hh[k * H + u];
        }
}

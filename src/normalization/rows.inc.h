/* Layer norm and RMS norm: every row for itself, read from memory once forward and once backward. */
#ifndef REAL
#error "normalization/rows.inc.h needs real.inc.h and simd.inc.h"
#endif

#ifndef GC_ROW_NORM_ONCE
#define GC_ROW_NORM_ONCE
enum {
    SUM_LANES = 16,      /* independent sums of a row's moments */
    SUM_CHUNK = 2048,    /* elements that one vector of sums takes in before they go on in float64 */
    MOST_BLOCK_ROWS = 128, /* rows whose part of dw and db is one sum: what is left after it is made in float64 */
    LEAST_BLOCK_ROWS = 16,
    BLOCKS_WANTED = 32   /* for threads to share, where the rows are few */
};

INLINE int norm_threads(double N, double F, int threads) { return N * F * MOVED < SERIAL_WORK ? 1 : threads; }

/* It depends on the problem only, never on the threads. */
INLINE ptrdiff_t norm_block(ptrdiff_t N)
{
    return gc_min(MOST_BLOCK_ROWS, gc_max(LEAST_BLOCK_ROWS, N / BLOCKS_WANTED));
}
#endif

/* The sum of a vector's elements, in a fixed order. */
INLINE double FN(sum_of)(VEC v)
{
    REAL lane[V];
    FN(v_store)(lane, v);
#pragma GCC unroll 4
    for (int half = V / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return (double)lane[0];
}

/* v, but 0 after the first n elements. */
INLINE VEC FN(v_only)(VEC v, ptrdiff_t n)
{
    REAL kept[V] = {0};
    if (n >= V) return v;
    FN(v_store_n)(kept, v, n);
    return FN(v_load)(kept);
}

/* The sums of d = x - shift and of d^2 over a row, as far as asked for by constants. */
INLINE void FN(sums_around)(const REAL *x, ptrdiff_t n, REAL shift, const int first, const int second, double *sum,
                            double *squares)
{
    const VEC off = FN(v_set1)(shift);
    *sum = *squares = 0;
    for (ptrdiff_t at = 0, to; at < n; at = to) {
        VEC s[2] = {FN(v_zero)(), FN(v_zero)()}, q[2] = {FN(v_zero)(), FN(v_zero)()};
        ptrdiff_t i = at;
        to = gc_min(n, at + SUM_CHUNK);
        for (; i + 2 * V <= to; i += 2 * V)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                const VEC d = FN(v_sub)(FN(v_load)(x + i + k * V), off);
                if (first) s[k] = FN(v_add)(s[k], d);
                if (second) q[k] = FN(v_fma)(d, d, q[k]);
            }
        for (; i < to; i += V) {
            const VEC d = FN(v_only)(FN(v_sub)(FN(v_get)(x + i, n - i), off), n - i);
            if (first) s[0] = FN(v_add)(s[0], d);
            if (second) q[0] = FN(v_fma)(d, d, q[0]);
        }
        if (first) *sum += FN(sum_of)(FN(v_add)(s[0], s[1]));
        if (second) *squares += FN(sum_of)(FN(v_add)(q[0], q[1]));
    }
}

/* Whether a sum of n squares was beyond the range of float32, or some of its terms were. */
INLINE int FN(beyond_range)(double squares, double n)
{
    return GC_BITS == 32 && !(squares > 1e-28 * n && squares < 1e38);
}

/* The mean of n elements, 0 unless centered, and the sum of the squares around it: in float64. */
static void FN(exact_moments)(const REAL *x, ptrdiff_t n, ptrdiff_t apart, int centered, double *mean, double *squares)
{
    double sum = 0;
    *mean = *squares = 0;
    for (ptrdiff_t i = 0; centered && i < n; i++) *mean += (double)x[i * apart] / (double)n;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double d = (double)x[i * apart] - *mean;
        sum += d;
        *squares += d * d;
    }
    const double off = centered ? sum / (double)n : 0;
    *mean += off;
    *squares -= off * sum;
}

/* The same of a row, in vectors where their range suffices. */
INLINE void FN(row_moments)(const REAL *x, ptrdiff_t n, const int centered, double *mean, double *squares)
{
    double about = 0, sum = 0;
    if (centered) FN(sums_around)(x, n, 0, 1, 0, &about, squares);
    about = (double)(REAL)(about / (double)n);
    FN(sums_around)(x, n, (REAL)about, centered, 1, &sum, squares);
    const double off = sum / (double)n; /* what rounding has left */
    *mean = about + off;
    if (FN(beyond_range)(*squares, (double)n))
        FN(exact_moments)(x, n, 1, centered, mean, squares);
    else
        *squares -= off * sum;
    if (*squares < 0) *squares = 0; /* a NaN stays */
}

/* A mean in two parts, so that x - mean has the digits of x, and what the difference is multiplied by. */
typedef struct {
    VEC high, low, factor;
} FN(scaling);

INLINE FN(scaling) FN(scaling_of)(double mean, double factor)
{
    const REAL high = (REAL)mean;
    return (FN(scaling)){FN(v_set1)(high), FN(v_set1)((REAL)(mean - (double)high)), FN(v_set1)((REAL)factor)};
}

INLINE VEC FN(v_normalized)(VEC x, const FN(scaling) *of, const int centered)
{
    if (centered) x = FN(v_sub)(FN(v_sub)(x, of->high), of->low);
    return FN(v_mul)(x, of->factor);
}

INLINE void FN(row_forward_one)(const gc_row_norm *s, ptrdiff_t row, const int centered)
{
    const ptrdiff_t n = s->F;
    const REAL *x = (const REAL *)s->x + row * n, *w = s->w, *b = s->b;
    REAL *y = (REAL *)s->y + row * n;
    double mean, squares;
    FN(row_moments)(x, n, centered, &mean, &squares);                     /* (n1) */
    if (centered) s->mean[row] = mean;
    s->rstd[row] = 1 / sqrt(squares / (double)n + s->eps);                /* (n2) */
    const FN(scaling) of = FN(scaling_of)(mean, s->rstd[row]);
    for (ptrdiff_t i = 0; i < n; i += V) {
        PREFETCH(x + n + i); /* of the next row: memory is the limit here */
        VEC v = FN(v_normalized)(FN(v_get)(x + i, n - i), &of, centered); /* (n3) */
        if (w) v = FN(v_mul)(v, FN(v_get)(w + i, n - i));                 /* (n4) */
        if (b) v = FN(v_add)(v, FN(v_get)(b + i, n - i));
        FN(v_put)(y + i, v, n - i);
    }
}

static void FN(row_forward_body)(void *arg, gc_team *team, int thread)
{
    const gc_row_norm *s = arg;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(s->N, team, thread, &first, &end);
    for (ptrdiff_t row = first; row < end && !gc_stop_after(&watch, MOVED * (double)s->F); row++)
        if (s->centered)
            FN(row_forward_one)(s, row, 1);
        else
            FN(row_forward_one)(s, row, 0);
}

static int FN(row_forward)(const gc_row_norm *s)
{
    if (!s->F) return GC_OK;
    return gc_parallel(norm_threads((double)s->N, (double)s->F, s->threads), 0, FN(row_forward_body), (void *)s);
}

/* ---- backward ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    const gc_row_norm *s;
    ptrdiff_t rows, blocks;
    REAL *sums; /* for each block of rows: its parts of dw and db, (blocks, 2, F) */
} FN(row_plan);

static size_t FN(plan_rows)(FN(row_plan) *plan, const gc_row_norm *s)
{
    gc_arena arena = {s->work, 0};
    plan->s = s;
    plan->rows = norm_block(s->N);
    plan->blocks = (s->N + plan->rows - 1) / plan->rows;
    plan->sums = s->dw || s->db ? gc_take(&arena, plan->blocks * 2 * s->F, sizeof(REAL)) : NULL;
    return arena.used;
}

static size_t FN(row_work)(const gc_row_norm *s)
{
    FN(row_plan) plan;
    gc_row_norm measured = *s;
    measured.work = NULL;
    return FN(plan_rows)(&plan, &measured);
}

/* dL/dx of one row; adds to the sums (2, F) of its block, unless they are NULL. Inverts (n1) to (n4). */
INLINE void FN(row_back_one)(const gc_row_norm *s, ptrdiff_t row, REAL *sums, const int centered)
{
    const ptrdiff_t n = s->F;
    const REAL *x = (const REAL *)s->x + row * n, *dy = (const REAL *)s->dy + row * n, *w = s->w;
    REAL *dx = (REAL *)s->dx + row * n;
    const FN(scaling) of = FN(scaling_of)(centered ? s->mean[row] : 0, s->rstd[row]);
    double sum = 0, along = 0;
    for (ptrdiff_t at = 0, to; at < n; at = to) {
        VEC sum_here = FN(v_zero)(), along_here = FN(v_zero)();
        to = gc_min(n, at + SUM_CHUNK);
        for (ptrdiff_t i = at; i < to; i += V) {
            PREFETCH(dx + i);
            const VEC normalized = FN(v_normalized)(FN(v_get)(x + i, n - i), &of, centered);
            VEC d = FN(v_get)(dy + i, n - i), product = FN(v_mul)(d, normalized);
            if (sums) {
                FN(v_put)(sums + i, FN(v_add)(FN(v_get)(sums + i, n - i), product), n - i);
                FN(v_put)(sums + n + i, FN(v_add)(FN(v_get)(sums + n + i, n - i), d), n - i);
            }
            if (w) {
                const VEC gain = FN(v_get)(w + i, n - i);
                d = FN(v_mul)(d, gain);
                product = FN(v_mul)(product, gain);
            }
            if (centered) sum_here = FN(v_add)(sum_here, d);
            along_here = FN(v_add)(along_here, product);
        }
        if (centered) sum += FN(sum_of)(sum_here);
        along += FN(sum_of)(along_here);
    }
    const VEC mean = FN(v_set1)((REAL)(sum / (double)n)), slope = FN(v_set1)((REAL)(along / (double)n));
    for (ptrdiff_t i = 0; i < n; i += V) {
        PREFETCH(x + n + i);
        PREFETCH(dy + n + i);
        const VEC normalized = FN(v_normalized)(FN(v_get)(x + i, n - i), &of, centered);
        VEC d = FN(v_get)(dy + i, n - i);
        if (w) d = FN(v_mul)(d, FN(v_get)(w + i, n - i));
        if (centered) d = FN(v_sub)(d, mean);
        FN(v_put)(dx + i, FN(v_mul)(of.factor, FN(v_fnma)(normalized, slope, d)), n - i);
    }
}

/* Adds the blocks' sums of the columns [first, end), in their order. */
static void FN(add_sums)(REAL *to, const REAL *sums, ptrdiff_t blocks, ptrdiff_t row, ptrdiff_t first, ptrdiff_t end)
{
    for (ptrdiff_t j = first; to && j < end; j += SUM_LANES) {
        const ptrdiff_t n = gc_min(SUM_LANES, end - j);
        double total[SUM_LANES] = {0};
        for (ptrdiff_t block = 0; block < blocks; block++)
            for (ptrdiff_t lane = 0; lane < n; lane++) total[lane] += (double)sums[block * row + j + lane];
        for (ptrdiff_t lane = 0; lane < n; lane++) to[j + lane] += (REAL)total[lane];
    }
}

static void FN(row_backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(row_plan) *plan = arg;
    const gc_row_norm *s = plan->s;
    const ptrdiff_t F = s->F;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(plan->blocks, team, thread, &first, &end);
    for (ptrdiff_t block = first; block < end; block++) {
        REAL *sums = plan->sums ? plan->sums + block * 2 * F : NULL;
        if (sums) memset(sums, 0, (size_t)(2 * F) * sizeof *sums);
        for (ptrdiff_t row = block * plan->rows; row < gc_min(s->N, (block + 1) * plan->rows); row++) {
            if (gc_stop_after(&watch, 2 * MOVED * (double)F)) return;
            if (s->centered)
                FN(row_back_one)(s, row, sums, 1);
            else
                FN(row_back_one)(s, row, sums, 0);
        }
    }
    if (!plan->sums || gc_wait(&watch)) return;
    gc_share_tiles(F, SUM_LANES, team, thread, &first, &end);
    FN(add_sums)(s->dw, plan->sums, plan->blocks, 2 * F, first, end);
    FN(add_sums)(s->db, plan->sums + F, plan->blocks, 2 * F, first, end);
}

static int FN(row_backward)(const gc_row_norm *s)
{
    FN(row_plan) plan;
    if (!s->F || !s->N) return GC_OK;
    FN(plan_rows)(&plan, s);
    return gc_parallel(norm_threads((double)s->N, (double)s->F, s->threads), 0, FN(row_backward_body), &plan);
}

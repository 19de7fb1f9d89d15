/* Batch norm: every column for itself, over all rows. Blocks of rows by some columns, which fit in the caches, are what threads
 * share; their means and sums of squares are combined in the blocks' order (Chan, Golub, LeVeque 1979, equations 2.1). */
#ifndef REAL
#error "normalization/columns.inc.h needs rows.inc.h"
#endif

#ifndef GC_COLUMN_NORM_ONCE
#define GC_COLUMN_NORM_ONCE
enum { TILE_COLUMNS = 256 }; /* by at most MOST_BLOCK_ROWS: 128 or 256 KiB */
#endif

typedef struct {
    const gc_column_norm *s;
    ptrdiff_t rows, blocks, tiles;
    double *mean, *squares;                        /* (blocks, F), of a block; forward */
    REAL *sums;                                    /* (blocks, 2, F): of dy xhat and dy in a block; backward */
    REAL *high, *low, *rstd, *scale, *mean_dy, *slope; /* (F,) what a column's elements are made with */
} FN(column_plan);

static size_t FN(plan_columns)(FN(column_plan) *plan, const gc_column_norm *s)
{
    gc_arena arena = {s->work, 0};
    plan->s = s;
    plan->rows = norm_block(s->N);
    plan->blocks = (s->N + plan->rows - 1) / plan->rows;
    plan->tiles = (s->F + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const ptrdiff_t found = s->dy || s->given ? 0 : plan->blocks * s->F;
    plan->mean = gc_take(&arena, found, sizeof(double));
    plan->squares = gc_take(&arena, found, sizeof(double));
    plan->sums = gc_take(&arena, s->dy ? plan->blocks * 2 * s->F : 0, sizeof(REAL));
    REAL **const columns[] = {&plan->high, &plan->low, &plan->rstd, &plan->scale, &plan->mean_dy, &plan->slope};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) *columns[i] = gc_take(&arena, s->F, sizeof(REAL));
    return arena.used;
}

static size_t FN(column_work)(const gc_column_norm *s)
{
    FN(column_plan) plan;
    gc_column_norm measured = *s;
    measured.work = NULL;
    return FN(plan_columns)(&plan, &measured);
}

/* The mean of each column of a block, and the sum of the squares around it: (c1), as (n1) and (n2) of a row. */
static void FN(block_moments)(const FN(column_plan) *plan, ptrdiff_t block, ptrdiff_t tile)
{
    const gc_column_norm *s = plan->s;
    const ptrdiff_t F = s->F, r0 = block * plan->rows, r1 = gc_min(s->N, r0 + plan->rows);
    const ptrdiff_t j0 = tile * TILE_COLUMNS, n = gc_min(TILE_COLUMNS, F - j0);
    const REAL *x = (const REAL *)s->x + j0;
    const double count = (double)(r1 - r0);
    REAL about[TILE_COLUMNS] = {0}, sum[TILE_COLUMNS] = {0}, squares[TILE_COLUMNS] = {0};
    for (ptrdiff_t r = r0; r < r1; r++)
        for (ptrdiff_t j = 0; j < n; j += V)
            FN(v_store)(about + j, FN(v_add)(FN(v_load)(about + j), FN(v_get)(x + r * F + j, n - j)));
    for (ptrdiff_t j = 0; j < n; j++) about[j] = (REAL)((double)about[j] / count);
    for (ptrdiff_t r = r0; r < r1; r++)
        for (ptrdiff_t j = 0; j < n; j += V) {
            const VEC d = FN(v_sub)(FN(v_get)(x + r * F + j, n - j), FN(v_load)(about + j));
            FN(v_store)(sum + j, FN(v_add)(FN(v_load)(sum + j), d));
            FN(v_store)(squares + j, FN(v_fma)(d, d, FN(v_load)(squares + j)));
        }
    for (ptrdiff_t j = 0; j < n; j++) {
        const double off = (double)sum[j] / count; /* what rounding has left */
        double mean = (double)about[j] + off, around = (double)squares[j] - off * (double)sum[j];
        if (FN(beyond_range)((double)squares[j], count)) FN(exact_moments)(x + r0 * F + j, r1 - r0, F, 1, &mean, &around);
        plan->mean[block * F + j0 + j] = mean;
        plan->squares[block * F + j0 + j] = around < 0 ? 0 : around; /* a NaN stays */
    }
}

/* Mean and variance of the columns [first, end), from those of the blocks. */
static void FN(combine_moments)(const FN(column_plan) *plan, ptrdiff_t first, ptrdiff_t end)
{
    const gc_column_norm *s = plan->s;
    double n = 0;
    for (ptrdiff_t j = first; j < end; j++) s->mean[j] = s->var[j] = 0;
    for (ptrdiff_t block = 0; block < plan->blocks; block++) {
        const double more = (double)(gc_min(s->N, (block + 1) * plan->rows) - block * plan->rows);
        const double share = more / (n + more), *mean = plan->mean + block * s->F, *squares = plan->squares + block * s->F;
        for (ptrdiff_t j = first; j < end; j++) {
            const double apart = mean[j] - s->mean[j];
            s->mean[j] += apart * share;
            s->var[j] += squares[j] + apart * apart * (n * share);
        }
        n += more;
    }
    for (ptrdiff_t j = first; j < end; j++) s->var[j] /= n;
}

/* What (c2) needs of the columns [first, end). */
static void FN(prepare_columns)(const FN(column_plan) *plan, ptrdiff_t first, ptrdiff_t end)
{
    const gc_column_norm *s = plan->s;
    const REAL *w = s->w;
    for (ptrdiff_t j = first; j < end; j++) {
        const double rstd = 1 / sqrt(s->var[j] + s->eps);
        plan->high[j] = (REAL)s->mean[j];
        plan->low[j] = (REAL)(s->mean[j] - (double)plan->high[j]);
        plan->rstd[j] = (REAL)rstd;
        plan->scale[j] = (REAL)(rstd * (w ? (double)w[j] : 1));
    }
}

INLINE VEC FN(v_centered)(const FN(column_plan) *plan, const REAL *x, ptrdiff_t j, ptrdiff_t left)
{
    return FN(v_sub)(FN(v_sub)(FN(v_get)(x + j, left), FN(v_get)(plan->high + j, left)), FN(v_get)(plan->low + j, left));
}

static void FN(column_forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(column_plan) *plan = arg;
    const gc_column_norm *s = plan->s;
    const REAL *b = s->b;
    const ptrdiff_t F = s->F, units = s->given ? 0 : plan->blocks * plan->tiles;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(units, team, thread, &first, &end);
    for (ptrdiff_t unit = first; unit < end; unit++) {
        if (gc_stop_after(&watch, MOVED * (double)plan->rows * TILE_COLUMNS)) return;
        FN(block_moments)(plan, unit / plan->tiles, unit % plan->tiles);
    }
    if (gc_wait(&watch)) return;
    gc_share_tiles(F, SUM_LANES, team, thread, &first, &end);
    if (!s->given) FN(combine_moments)(plan, first, end);
    FN(prepare_columns)(plan, first, end);
    if (gc_wait(&watch)) return;
    gc_share(s->N, team, thread, &first, &end);
    for (ptrdiff_t row = first; row < end && !gc_stop_after(&watch, MOVED * (double)F); row++) {
        const REAL *x = (const REAL *)s->x + row * F;
        REAL *y = (REAL *)s->y + row * F;
        for (ptrdiff_t j = 0; j < F; j += V) {
            VEC v = FN(v_mul)(FN(v_centered)(plan, x, j, F - j), FN(v_get)(plan->scale + j, F - j)); /* (c2) */
            if (b) v = FN(v_add)(v, FN(v_get)(b + j, F - j));
            FN(v_put)(y + j, v, F - j);
        }
    }
}

static int FN(column_forward)(const gc_column_norm *s)
{
    FN(column_plan) plan;
    if (!s->N || !s->F) return GC_OK;
    FN(plan_columns)(&plan, s);
    return gc_parallel(norm_threads((double)s->N, (double)s->F, s->threads), 0, FN(column_forward_body), &plan);
}

/* Each column's sums of dy xhat and of dy over a block. */
static void FN(block_sums)(const FN(column_plan) *plan, ptrdiff_t block, ptrdiff_t tile)
{
    const gc_column_norm *s = plan->s;
    const ptrdiff_t F = s->F, r0 = block * plan->rows, r1 = gc_min(s->N, r0 + plan->rows);
    const ptrdiff_t j0 = tile * TILE_COLUMNS, j1 = gc_min(F, j0 + TILE_COLUMNS);
    REAL *along = plan->sums + block * 2 * F, *plain = along + F;
    for (ptrdiff_t j = j0; j < j1; j++) along[j] = plain[j] = 0;
    for (ptrdiff_t row = r0; row < r1; row++) {
        const REAL *x = (const REAL *)s->x + row * F, *dy = (const REAL *)s->dy + row * F;
        for (ptrdiff_t j = j0; j < j1; j += V) {
            const VEC d = FN(v_get)(dy + j, F - j);
            const VEC normalized = FN(v_mul)(FN(v_centered)(plan, x, j, F - j), FN(v_get)(plan->rstd + j, F - j));
            FN(v_put)(along + j, FN(v_add)(FN(v_get)(along + j, F - j), FN(v_mul)(d, normalized)), F - j);
            FN(v_put)(plain + j, FN(v_add)(FN(v_get)(plain + j, F - j), d), F - j);
        }
    }
}

/* inverts (c1) and (c2) */
static void FN(column_backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(column_plan) *plan = arg;
    const gc_column_norm *s = plan->s;
    const ptrdiff_t F = s->F, row_of_sums = 2 * F;
    REAL *const parts[] = {plan->slope, plan->mean_dy}, *const sums[] = {s->dw, s->db};
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share_tiles(F, SUM_LANES, team, thread, &first, &end);
    FN(prepare_columns)(plan, first, end);
    if (gc_wait(&watch)) return;
    gc_share(plan->blocks * plan->tiles, team, thread, &first, &end);
    for (ptrdiff_t unit = first; unit < end; unit++) {
        if (gc_stop_after(&watch, MOVED * (double)plan->rows * TILE_COLUMNS)) return;
        FN(block_sums)(plan, unit / plan->tiles, unit % plan->tiles);
    }
    if (gc_wait(&watch)) return;
    gc_share_tiles(F, SUM_LANES, team, thread, &first, &end);
    for (int part = 0; part < 2; part++) {
        for (ptrdiff_t j = first; j < end; j++) parts[part][j] = 0;
        FN(add_sums)(parts[part], plan->sums + part * F, plan->blocks, row_of_sums, first, end);
        for (ptrdiff_t j = first; j < end; j++) {
            if (sums[part]) sums[part][j] += parts[part][j];
            parts[part][j] /= (REAL)s->N;
        }
    }
    if (gc_wait(&watch)) return;
    gc_share(s->N, team, thread, &first, &end);
    for (ptrdiff_t row = first; row < end && !gc_stop_after(&watch, 2 * MOVED * (double)F); row++) {
        const REAL *x = (const REAL *)s->x + row * F, *dy = (const REAL *)s->dy + row * F;
        REAL *dx = (REAL *)s->dx + row * F;
        for (ptrdiff_t j = 0; j < F; j += V) {
            const VEC normalized = FN(v_mul)(FN(v_centered)(plan, x, j, F - j), FN(v_get)(plan->rstd + j, F - j));
            const VEC d = FN(v_sub)(FN(v_get)(dy + j, F - j), FN(v_get)(plan->mean_dy + j, F - j));
            const VEC rest = FN(v_fnma)(normalized, FN(v_get)(plan->slope + j, F - j), d);
            FN(v_put)(dx + j, FN(v_mul)(FN(v_get)(plan->scale + j, F - j), rest), F - j);
        }
    }
}

static int FN(column_backward)(const gc_column_norm *s)
{
    FN(column_plan) plan;
    if (!s->N || !s->F) return GC_OK;
    FN(plan_columns)(&plan, s);
    return gc_parallel(norm_threads((double)s->N, (double)s->F, s->threads), 0, FN(column_backward_body), &plan);
}

static const gc_normalization_kernels FN(normalization_kernels) = {FN(row_forward),    FN(row_work),       FN(row_backward),
                                                                   FN(column_work),    FN(column_forward), FN(column_backward)};

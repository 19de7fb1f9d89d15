/* The mean over the steps of each sequence, and its gradient. */
#ifndef REAL
#error "pooling.inc.h needs real.inc.h and simd.inc.h"
#endif

#ifndef GC_POOLING_SIZES
#define GC_POOLING_SIZES
enum {
    STEP_BLOCK = 64, /* steps that are added up by themselves: rounding errors grow with that and with the blocks */
    STRIP = 512      /* columns at a time, whose sums stay in L1 beside the row that is read */
};
#endif

INLINE ptrdiff_t FN(length_of)(const gc_mean *s, ptrdiff_t b) { return s->lengths ? s->lengths[b] : s->T; }

/* y = mean over t < n of x[t * step], for `width` columns of one sequence, at most STRIP. */
static void FN(mean_strip)(const REAL *x, ptrdiff_t step, ptrdiff_t n, ptrdiff_t width, REAL *y, gc_watch *watch)
{
    REAL sum[STRIP], part[STRIP];
    for (ptrdiff_t k = 0; k < width; k++) sum[k] = 0;
    for (ptrdiff_t t = 0; t < n;) {
        const ptrdiff_t end = gc_min(n, t + STEP_BLOCK);
        if (gc_stop_after(watch, (double)(end - t) * (double)width * MOVED)) return;
        for (ptrdiff_t k = 0; k < width; k++) part[k] = 0;
        for (; t < end; t++)
            for (ptrdiff_t k = 0; k < width; k++) part[k] += x[t * step + k];
        for (ptrdiff_t k = 0; k < width; k++) sum[k] += part[k];
    }
    for (ptrdiff_t k = 0; k < width; k++) y[k] = sum[k] / (REAL)gc_max(n, 1);
}

static void FN(mean_body)(void *arg, gc_team *team, int thread)
{
    const gc_mean *s = arg;
    const int together = !s->lengths && !s->batch_first; /* the sequences are as one with more features */
    const ptrdiff_t F = together ? s->B * s->F : s->F;
    const ptrdiff_t sequence = s->batch_first ? s->T * F : F, step = s->batch_first ? F : s->B * s->F;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share_tiles(s->B * s->F, 64 / sizeof(REAL), team, thread, &first, &end); /* columns of y */
    for (ptrdiff_t at = first, width; at < end; at += width) {
        const ptrdiff_t b = at / F, column = at % F, n = FN(length_of)(s, b);
        width = gc_min(gc_min(F - column, end - at), STRIP);
        FN(mean_strip)((const REAL *)s->x + b * sequence + column, step, n, width, (REAL *)s->y + at, &watch);
        if (watch.stop) return;
    }
}

static void FN(mean_back_body)(void *arg, gc_team *team, int thread)
{
    const gc_mean *s = arg;
    const ptrdiff_t F = s->F, T = s->T, B = s->B;
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share(T * B, team, thread, &first, &end); /* rows of dx */
    for (ptrdiff_t row = first; row < end; row++) {
        const ptrdiff_t b = s->batch_first ? row / T : row % B, t = s->batch_first ? row % T : row / B;
        const ptrdiff_t n = FN(length_of)(s, b);
        const REAL *dy = (const REAL *)s->dy + b * F;
        REAL *dx = (REAL *)s->dx + row * F;
        const VEC share = FN(v_set1)(R(1.0) / (REAL)gc_max(n, 1));
        if (t < n)
            for (ptrdiff_t f = 0; f < F; f += V) FN(v_put)(dx + f, FN(v_mul)(share, FN(v_get)(dy + f, F - f)), F - f);
        else
            memset(dx, 0, (size_t)F * sizeof(REAL));
        if (gc_stop_after(&watch, (double)F * MOVED)) return;
    }
}

static int FN(mean_run)(const gc_mean *s)
{
    const int threads = (double)s->T * (double)s->B * (double)s->F < SERIAL_ELEMENTS ? 1 : s->threads;
    return gc_parallel(threads, 0, s->dy ? FN(mean_back_body) : FN(mean_body), (void *)s);
}

static const gc_pooling_kernels FN(pooling_kernels) = {FN(mean_run)};

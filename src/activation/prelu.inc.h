/* The rectifier whose slope below zero is learned: one pass forward, one back, which adds up the slopes' gradients as it goes. */
#ifndef REAL
#error "prelu.inc.h needs real.inc.h and simd.inc.h"
#endif

#ifndef GC_PRELU_ONCE
#define GC_PRELU_ONCE
enum { ONE_SLOPE_COLUMNS = 256, MOST_SUMS = 64 };

/* Elements as rows of columns, of which with one slope the last row need not be whole. Rows come in blocks, for each of which the
 * products are added up by themselves: which ones, does not depend on the threads. */
typedef struct {
    ptrdiff_t columns, rows, blocks;
} gc_prelu_shape;

INLINE gc_prelu_shape gc_prelu_cut(const gc_prelu *s)
{
    const ptrdiff_t columns = s->C == 1 ? ONE_SLOPE_COLUMNS : s->C, rows = s->n ? (s->n + columns - 1) / columns : 0;
    return (gc_prelu_shape){columns, rows, gc_min(rows, MOST_SUMS)};
}
#endif

static size_t FN(prelu_work)(const gc_prelu *s)
{
    const gc_prelu_shape shape = gc_prelu_cut(s);
    return (size_t)shape.blocks * (size_t)shape.columns * sizeof(REAL);
}

static void FN(prelu_body)(void *arg, gc_team *team, int thread)
{
    const gc_prelu *s = arg;
    const gc_prelu_shape shape = gc_prelu_cut(s);
    const VEC zero = FN(v_zero)(), one = FN(v_set1)(R(1.0));
    gc_watch watch = {team, thread, 0, 0};
    ptrdiff_t first, end;
    gc_share(shape.blocks, team, thread, &first, &end);
    for (ptrdiff_t block = first; block < end; block++) {
        REAL *sums = s->dy ? (REAL *)s->work + block * shape.columns : NULL;
        if (s->dy) memset(sums, 0, (size_t)shape.columns * sizeof(REAL));
        for (ptrdiff_t row = gc_cut(shape.rows, block, shape.blocks); row < gc_cut(shape.rows, block + 1, shape.blocks); row++) {
            const ptrdiff_t at = row * shape.columns, width = gc_min(shape.columns, s->n - at);
            const REAL *x = (const REAL *)s->x + at, *w = s->w;
            for (ptrdiff_t k = 0; k < width; k += V) {
                const ptrdiff_t left = width - k;
                const VEC in = FN(v_get)(x + k, left), slope = s->C == 1 ? FN(v_set1)(w[0]) : FN(v_get)(w + k, left);
                if (!s->dy) {
                    FN(v_put)((REAL *)s->y + at + k, FN(v_select_gt)(in, zero, in, FN(v_mul)(slope, in)), left);
                    continue;
                }
                const VEC d = FN(v_get)((const REAL *)s->dy + at + k, left);
                /* finite, or NaN, which must show in dx */
                const VEC below = FN(v_max)(FN(v_sub)(zero, one), FN(v_min)(zero, in));
                FN(v_put)((REAL *)s->dx + at + k, FN(v_mul)(d, FN(v_select_gt)(in, zero, one, FN(v_fma)(below, zero, slope))), left);
                const VEC product = FN(v_select_gt)(in, zero, zero, FN(v_mul)(d, in));
                FN(v_put)(sums + k, FN(v_add)(FN(v_get)(sums + k, left), product), left);
            }
            if (gc_stop_after(&watch, (double)width * MOVED)) return;
        }
    }
}

static int FN(prelu_run)(const gc_prelu *s)
{
    const gc_prelu_shape shape = gc_prelu_cut(s);
    const int status = gc_parallel(s->n < SERIAL_ELEMENTS ? 1 : s->threads, 0, FN(prelu_body), (void *)s);
    if (status != GC_OK || !s->dy) return status;
    for (ptrdiff_t k = 0; k < s->C; k++) {
        double sum = 0;
        for (ptrdiff_t block = 0; block < shape.blocks; block++)
            for (ptrdiff_t i = k; i < shape.columns; i += s->C) sum += (double)((const REAL *)s->work)[block * shape.columns + i];
        ((REAL *)s->dw)[k] += (REAL)sum;
    }
    return GC_OK;
}

static const gc_prelu_kernels FN(prelu_kernels) = {FN(prelu_work), FN(prelu_run)};

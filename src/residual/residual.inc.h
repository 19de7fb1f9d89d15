/* The sum of a residual connection, element by element. */
#ifndef REAL
#error "residual.inc.h needs real.inc.h, simd.inc.h and activation.inc.h"
#endif

static void FN(residual_body)(void *arg, gc_team *team, int thread)
{
    const gc_residual *s = arg;
    const REAL *a = s->a, *b = s->b;
    REAL *out = s->out;
    const VEC scale = FN(v_set1)((REAL)s->scale);
    ptrdiff_t first, end;
    gc_watch watch = {team, thread, 0, 0};
    gc_share_tiles(s->n, ELEMENT_BLOCK, team, thread, &first, &end);
    for (ptrdiff_t at = first, to; at < end && !gc_stop_after(&watch, MOVED * ELEMENT_BLOCK); at = to) {
        to = gc_min(end, at + ELEMENT_BLOCK);
        for (ptrdiff_t i = at; i < to; i += V) {
            VEC v = FN(v_mul)(scale, FN(v_get)(b + i, to - i));
            if (a) v = FN(v_add)(FN(v_get)(a + i, to - i), v);
            FN(v_put)(out + i, v, to - i);
        }
    }
}

static int FN(residual_add)(const gc_residual *s)
{
    return gc_parallel(s->n < SERIAL_ELEMENTS ? 1 : s->threads, 0, FN(residual_body), (void *)s);
}

static const gc_residual_kernels FN(residual_kernels) = {FN(residual_add)};

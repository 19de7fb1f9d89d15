/* The gradient of a table whose rows were looked up. Threads share columns, not rows: then each has the same work, however often
 * a row occurs, and adds to a row in the order of the numbers. */
#ifndef REAL
#error "embedding.inc.h needs real.inc.h and simd.inc.h"
#endif

#ifndef GC_EMBEDDING_SIZES
#define GC_EMBEDDING_SIZES
enum { ROWS_AHEAD = 8, LINE_BYTES = 64 }; /* rows of a large table come from memory: they are fetched that much earlier */
#endif

static void FN(embedding_body)(void *arg, gc_team *team, int thread)
{
    const gc_embedding *s = arg;
    const ptrdiff_t N = s->N, E = s->E;
    const int line = LINE_BYTES / sizeof(REAL);
    ptrdiff_t first, end;
    gc_share_tiles(E, line, team, thread, &first, &end);
    gc_watch watch = {team, thread, 0, 0};
    for (ptrdiff_t i = 0; i < N && first < end; i++) {
        const REAL *dy = (const REAL *)s->dy + i * E;
        REAL *dw = (REAL *)s->dw + s->at[i] * E;
        if (i + ROWS_AHEAD < N) {
            const REAL *next = (const REAL *)s->dw + s->at[i + ROWS_AHEAD] * E;
            for (ptrdiff_t e = first; e < end; e += line) PREFETCH(next + e);
        }
        if (s->at[i] != s->skip)
            for (ptrdiff_t e = first; e < end; e += V)
                FN(v_put)(dw + e, FN(v_add)(FN(v_get)(dw + e, end - e), FN(v_get)(dy + e, end - e)), end - e);
        if (gc_stop_after(&watch, (double)(end - first) * MOVED)) return;
    }
}

static int FN(embedding_backward)(const gc_embedding *s)
{
    return gc_parallel((double)s->N * (double)s->E < SERIAL_ELEMENTS ? 1 : s->threads, 0, FN(embedding_body), (void *)s);
}

static const gc_embedding_kernels FN(embedding_kernels) = {FN(embedding_backward)};

/* Dropout: one pass, which draws as it goes. */
#ifndef REAL
#error "dropout.inc.h needs real.inc.h"
#endif

static void FN(dropout_body)(void *arg, gc_team *team, int thread)
{
    const gc_dropout *s = arg;
    const double words = 4294967296.0, below = s->p * words;
    const uint32_t drop = below < words ? (uint32_t)below : UINT32_MAX;
    const REAL scale = s->p < 1 ? (REAL)(1 / (1 - s->p)) : 0;
    ptrdiff_t first, end;
    gc_share_tiles(s->n, ELEMENT_BLOCK, team, thread, &first, &end); /* whole blocks of words */
    for (ptrdiff_t at = first; at < end; at += THREEFRY_WORDS) {
        if (at % LOOK_ELEMENTS == 0 && at > first && gc_stopped(team, thread)) return;
        const REAL *in = (const REAL *)s->in + at;
        REAL *out = (REAL *)s->out + at;
        uint32_t words_of[THREEFRY_WORDS];
        gc_threefry(s->key, (uint64_t)at / THREEFRY_WORDS, words_of);
        if (end - at >= THREEFRY_WORDS)
            for (int i = 0; i < THREEFRY_WORDS; i++) out[i] = in[i] * (words_of[i] >= drop ? scale : 0);
        else
            for (int i = 0; i < end - at; i++) out[i] = in[i] * (words_of[i] >= drop ? scale : 0);
    }
}

static int FN(dropout_run)(const gc_dropout *s)
{
    return gc_parallel(s->n < SERIAL_ELEMENTS ? 1 : s->threads, 0, FN(dropout_body), (void *)s);
}

static const gc_dropout_kernels FN(dropout_kernels) = {FN(dropout_run)};

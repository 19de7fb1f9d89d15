/* The chunks in which a sequence is walked, and who of the team does which part of them. Included by recurrent.inc.h only. */
#ifndef GC_CHUNK_H
#define GC_CHUNK_H

enum {
    FORWARD_ROWS = 128,          /* rows of a chunk forward: as often each panel of W_ih is used before the next */
    BACKWARD_ROWS = 512,         /* backward: the more, the fewer passes over the weights' gradients */
    TOGETHER_BYTES = 256 * 1024, /* size of W_ih up to which each step reads it again beside W_hh */
    NARROW = 4,                  /* input features up to which a vector of them would be mostly empty */
    STREAM_BYTES = 16 << 20,     /* size of the gates beyond which they are not worth keeping in the caches */
    FEW_ROWS = 4,                /* sequences for each thread below which it costs less to share the units, if ... */
    UNIT_WORK = 15000,           /* ... a step has as many multiply-adds for each thread: they outweigh waiting */
    LARGE_W = 1000 * 1000,       /* elements of W_hh, far more than L2 holds: all threads would read it from L3, ... */
    SOME_ROWS = 17               /* ... so that sharing the units pays up to here */
};

INLINE ptrdiff_t n_gates(const gc_recurrent *s) { return gc_cells[s->cell].G; }
INLINE ptrdiff_t n_alive(const gc_recurrent *s, ptrdiff_t t) { return s->offsets[t + 1] - s->offsets[t]; }

/* Which gate is number k if they are counted from `first` on, and round. */
INLINE ptrdiff_t gate_of(ptrdiff_t k, ptrdiff_t first, ptrdiff_t G) { return first + k < G ? first + k : first + k - G; }

/* The step that is walked as number i. */
INLINE ptrdiff_t step_at(const gc_recurrent *s, ptrdiff_t i) { return s->reverse ? s->T - 1 - i : i; }

/* One thread's part of a chunk of steps, [i0, i1) in the order of the walk. */
typedef struct {
    ptrdiff_t i0, i1;
    ptrdiff_t alive, first, end; /* sequences that live in the chunk; the thread's own */
    ptrdiff_t u0, u1;            /* the thread's own units */
    ptrdiff_t row0, rows;        /* the chunk's first row, and how many it has */
    int by_units;
} gc_chunk;

/* The thread works for all sequences, on its share of the units, in multiples of `panel`. */
INLINE void share_units(const gc_recurrent *s, gc_chunk *chunk, ptrdiff_t panel, gc_team *team, int thread)
{
    gc_share_tiles(s->H, panel, team, thread, &chunk->u0, &chunk->u1);
    chunk->first = 0;
    chunk->end = chunk->alive;
}

/* The chunk that begins (forward) or ends (backward) with step `at` and has about `most` rows, shared by sequences or by
 * units. Where it ends does not depend on the team, because the weights' gradients are summed chunk by chunk. */
INLINE gc_chunk chunk_of(const gc_recurrent *s, int backward, ptrdiff_t at, ptrdiff_t most, ptrdiff_t panel, gc_team *team,
                         int thread)
{
    gc_chunk chunk = {at, at, 0, 0, 0, 0, s->H, 0, 0, 0};
    const int size = gc_team_size(team);
    while (chunk.rows < most && (backward ? chunk.i0 > 0 : chunk.i1 < s->T))
        chunk.rows += n_alive(s, step_at(s, backward ? --chunk.i0 : chunk.i1++));
    ptrdiff_t t = s->reverse ? step_at(s, chunk.i1 - 1) : chunk.i0; /* the earliest step, where most are alive */
    chunk.alive = n_alive(s, t);
    chunk.row0 = s->offsets[t];
    const double w = (double)(n_gates(s) * s->H) * (double)s->H;
    chunk.by_units = size > 1 && chunk.alive < (ptrdiff_t)size * (w > LARGE_W ? SOME_ROWS : FEW_ROWS) &&
                     (s->H + panel - 1) / panel >= size && (double)chunk.alive * w > (double)UNIT_WORK * size;
    if (chunk.by_units)
        share_units(s, &chunk, panel, team, thread);
    else
        gc_share(chunk.alive, team, thread, &chunk.first, &chunk.end);
    return chunk;
}

/* How many of the thread's sequences live at step t. */
INLINE ptrdiff_t own_rows(const gc_recurrent *s, const gc_chunk *chunk, ptrdiff_t t)
{
    return gc_max(0, gc_min(chunk->end, n_alive(s, t)) - chunk->first);
}

/* Where there are fewer sequences than threads and not enough units to share either, only the input's part and the weights'
 * gradients are shared out, and every chunk waits for them: that wants more work to pay. */
INLINE int recurrent_threads(const gc_recurrent *s)
{
    const double GH = (double)(n_gates(s) * s->H), rows = (double)s->offsets[s->T];
    const int shared = s->B >= s->threads || (double)s->B * GH * (double)s->H > (double)UNIT_WORK * s->threads;
    const double work = shared ? rows * GH * (double)(s->F + s->H) : rows * GH * (double)s->F / 16;
    return work < SERIAL_WORK ? 1 : s->threads;
}

/* Rows of scratch that hold any chunk. */
INLINE ptrdiff_t chunk_rows(const gc_recurrent *s, ptrdiff_t most) { return gc_min(most - 1 + s->B, s->offsets[s->T]); }

#endif

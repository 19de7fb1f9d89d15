/* How work and scratch are divided: the same for every element type. Included by per_isa.c only. */
#ifndef GC_PARTS_H
#define GC_PARTS_H

enum { SERIAL_WORK = 200 * 1000 }; /* multiply-adds below which one thread is faster than starting a team */

/* This thread's share [first, end) of the n sequences. */
INLINE void share(ptrdiff_t n, gc_team *team, int thread, ptrdiff_t *first, ptrdiff_t *end)
{
    *first = n * thread / gc_team_size(team);
    *end = n * (thread + 1) / gc_team_size(team);
}

/* This thread's share of n rows, in whole tiles of `unit`. */
INLINE void share_tiles(ptrdiff_t n, ptrdiff_t unit, gc_team *team, int thread, ptrdiff_t *first, ptrdiff_t *end)
{
    share((n + unit - 1) / unit, team, thread, first, end);
    *first = gc_min(*first * unit, n);
    *end = gc_min(*end * unit, n);
}

/* Hands out parts of the scratch, each on a cache line of its own; with base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
} gc_arena;

INLINE void *take(gc_arena *arena, ptrdiff_t n, size_t size)
{
    void *part = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)n * size + 63) / 64 * 64;
    return part;
}

#endif

/* How work and scratch are divided: the same for every element type. */
#ifndef GC_WORK_H
#define GC_WORK_H

#include "base/compiler.h"
#include "base/threads.h"

enum {
    SERIAL_WORK = 200 * 1000,      /* multiply-adds below which one thread is faster than starting a team */
    LOOK_AFTER = 10 * 1000 * 1000, /* from one look whether to stop to the next: a tenth of a millisecond to a few */
    MOVED = 20                     /* multiply-adds that take as long as moving an element from memory to memory */
};

/* Kernels that go element by element. */
enum {
    SERIAL_ELEMENTS = 16 * 1024, /* below which one thread is faster than starting a team */
    ELEMENT_BLOCK = 1024,        /* what threads share: whole pages of cache lines */
    LOOK_ELEMENTS = 256 * 1024   /* from one look whether to stop to the next */
};

/* Passes over long arrays fetch what they will need so many bytes later: the processor's own prefetching does not keep ahead of
 * more than a few operations an element. */
enum { AHEAD = 2048, FEW = 64 /* elements between two looks ahead */ };
#define FETCH_AHEAD(array, n)                                                                                                  \
    do                                                                                                                         \
        for (int line = 0; line < (int)((n) * sizeof *(array)); line += 64)                                                    \
            PREFETCH((const char *)(array) + AHEAD + line);                                                                    \
    while (0)

INLINE ptrdiff_t gc_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t gc_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* n * i / parts, also where the product has no place in a ptrdiff_t. */
INLINE ptrdiff_t gc_cut(ptrdiff_t n, ptrdiff_t i, ptrdiff_t parts) { return n / parts * i + n % parts * i / parts; }

/* This thread's share [first, end) of the n sequences. Thread 0, which asks whether to stop, has no fewer than any other. */
INLINE void gc_share(ptrdiff_t n, gc_team *team, int thread, ptrdiff_t *first, ptrdiff_t *end)
{
    const ptrdiff_t size = gc_team_size(team);
    *first = (n * thread + size - 1) / size;
    *end = (n * (thread + 1) + size - 1) / size;
}

/* This thread's share of n rows, in whole tiles of `unit`. */
INLINE void gc_share_tiles(ptrdiff_t n, ptrdiff_t unit, gc_team *team, int thread, ptrdiff_t *first, ptrdiff_t *end)
{
    gc_share((n + unit - 1) / unit, team, thread, first, end);
    *first = gc_min(*first * unit, n);
    *end = gc_min(*end * unit, n);
}

/* One thread's count of multiply-adds, or of what takes as long, since it last looked whether to stop. */
typedef struct {
    gc_team *team;
    int thread, stop;
    double work;
} gc_watch;

/* After so much work: whether to stop. Once it says so it stays so. */
INLINE int gc_stop_after(gc_watch *watch, double work)
{
    if ((watch->work += work) > LOOK_AFTER) {
        watch->work = 0;
        watch->stop = gc_stopped(watch->team, watch->thread);
    }
    return watch->stop;
}

/* Waits for the team; whether to stop, as all are told here and some know already. These return without waiting. */
INLINE int gc_wait(gc_watch *watch) { return watch->stop || (watch->stop = gc_barrier(watch->team)); }

/* Hands out parts of the scratch, each on a cache line of its own; with base NULL it only counts. */
typedef struct {
    char *base;
    size_t used;
} gc_arena;

INLINE void *gc_take(gc_arena *arena, ptrdiff_t n, size_t size)
{
    void *part = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)n * size + 63) / 64 * 64;
    return part;
}

#endif

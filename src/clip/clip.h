/* Norms and clipping of a list of arrays. Part of gradcore.h, whose conventions hold. */
#ifndef GC_CLIP_H
#define GC_CLIP_H

#include "base/spans.h"

/* What a block tells about its finite entries, and how many it has that are not. */
typedef struct gc_norm_block {
    double sum, rest;          /* of (|g| / unit)^p, rest being what rounding took from sum; 0 when p is INFINITY */
    double largest;            /* |g|, without units */
    ptrdiff_t n_nan, n_inf;
    ptrdiff_t first_nonfinite; /* its index in the block, -1 for none */
} gc_norm_block;

/* What is known of an array or of a whole list: root * unit is the norm of the finite entries, in two factors because it
 * may lie beyond the range of double. */
typedef struct gc_norm {
    double root, unit;
    double sum;                /* of (|g| / unit)^p */
    double largest;            /* |g| */
    ptrdiff_t n_nan, n_inf;
    ptrdiff_t worst;           /* index of the first entry that is not finite, else -1; for a list else of the largest */
    ptrdiff_t worst_array;     /* for a list: which array that is, -1 without entries */
    ptrdiff_t largest_block;   /* index where the block with the first largest entry begins */
} gc_norm;

/* One block of n <= GC_BLOCK elements. */
typedef struct gc_clip_kernels {
    /* unit > 0 divides the entries; with p 1 or 2 it is a power of two */
    void (*measure)(const void *g, ptrdiff_t n, double p, double unit, gc_norm_block *out);
    ptrdiff_t (*find)(const void *g, ptrdiff_t n, double largest); /* index of the first entry with this magnitude */
    void (*scale)(void *g, ptrdiff_t n, const double factor[2]);   /* g *= both; 0 where g is not finite */
    void (*clamp)(void *g, ptrdiff_t n, double limit);             /* to [-limit, limit]; NaN stays */
} gc_clip_kernels;

/* sum += x for sums that must not lose digits: what rounding takes away goes to rest. */
static inline void gc_add(double *sum, double *rest, double x)
{
    const double s = *sum + x, seen = s - *sum;
    *rest += (*sum - (s - seen)) + (x - seen);
    *sum = s;
}

struct gc_table;

/* p is positive or INFINITY; `arrays` (n,) and `all` are overwritten. Reads only. */
int gc_clip_measure(const struct gc_table *, const gc_span *spans, ptrdiff_t n, double p, gc_norm *arrays, gc_norm *all);
/* Each array by its two factors of `factors` (n, 2). */
void gc_clip_scale(const struct gc_table *, const gc_span *spans, ptrdiff_t n, const double *factors);
void gc_clip_clamp(const struct gc_table *, const gc_span *spans, ptrdiff_t n, double limit);

#endif

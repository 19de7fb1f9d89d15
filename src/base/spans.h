/* Lists of arrays of any element type, as numbered blocks. */
#ifndef GC_SPANS_H
#define GC_SPANS_H

#include "base/status.h"

enum { GC_BLOCK = 4096 }; /* elements: the unit of work and of rounding; a block belongs to one array */
enum { GC_GRAD, GC_PARAM, GC_MEAN, GC_SQUARE, GC_EXTRA, GC_OPERANDS };

/* One array of a list, of any element type; for an optimizer the arrays of the same shape that go with it. */
typedef struct gc_span {
    void *data[GC_OPERANDS]; /* (n,) each, aliasing nothing; norms and clipping use GC_GRAD alone */
    ptrdiff_t n;
    ptrdiff_t first_block;   /* blocks are numbered through the list: gc_number_blocks sets it */
    int real;                /* GC_F32 or GC_F64; without an optimizer GC_F16 too */
} gc_span;

typedef void (*gc_block_body)(void *arg, ptrdiff_t array, ptrdiff_t start, ptrdiff_t n);

void gc_number_blocks(gc_span *spans, ptrdiff_t n);
ptrdiff_t gc_number_of_blocks(const gc_span *spans, ptrdiff_t n);
/* body for every block of the list, in one parallel region; which thread gets which block depends on their numbers only.
 * `how` and what is returned are gc_parallel's. */
int gc_over_blocks(const gc_span *spans, ptrdiff_t n, int how, gc_block_body body, void *arg);

#endif

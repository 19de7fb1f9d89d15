/* Optimizers, a list of parameters a step. Part of gradcore.h, whose conventions hold. */
#ifndef GC_OPTIM_H
#define GC_OPTIM_H

#include "base/spans.h"

/* g is the gradient times factor[0] * factor[1] (0 where it is not finite), plus l2 * p + l1 * sign(p). optim.inc.h has the
 * formulas. GC_AVERAGE, no optimizer, takes g as it is. `bound` is at least the largest |g|, and finite only if every entry is. */
enum { GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD, GC_SPAM, GC_NADAM, GC_LION, GC_AVERAGE, GC_RULES };
typedef struct gc_update {
    int rule;
    double factor[2], bound;
    double l2, l1, shrink, step;
    double keep_mean, take_mean, keep_square, take_square;
    double eps, root;
    double now, past;          /* SGD with momentum, NAdam, Lion: shares of gradient and momentum in the change */
    double momentum;           /* RMSprop */
    double threshold;          /* SPAM: of g^2 over v, above which g is a spike */
} gc_update;

typedef struct gc_optim_kernels {
    /* n elements from `start` on; returns how many spikes were cut, which only SPAM does */
    ptrdiff_t (*update)(const gc_update *, void *const data[GC_OPERANDS], ptrdiff_t start, ptrdiff_t n);
} gc_optim_kernels;

struct gc_table;

/* How many spikes were cut. */
ptrdiff_t gc_optim_update(const struct gc_table *, const gc_span *spans, ptrdiff_t n, const gc_update *);

#endif

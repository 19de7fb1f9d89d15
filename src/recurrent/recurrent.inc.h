/* The recurrent kernels: a whole sequence forward, and back through time, in one parallel region each.
 *
 * The team shares the work of a step by sequences: each thread takes its own through all steps and waits for nobody. Where
 * there are too few sequences it shares the units instead, and waits for all of h_t once a step (twice backward).
 *
 * The steps are walked in chunks. Forward, the input's part of the gates is one product over a chunk (or, where W_ih is
 * small, made step by step); each step adds the recurrent part, panel by panel, and turns each panel into gates and state
 * while it is in cache. Backward, a chunk's dL/d(pre-activation) goes into the weights' gradients and dL/dx before the next
 * chunk overwrites it.
 *
 * What a row of the tape or of the scratch holds, H' being H rounded up to whole vectors:
 *   gates  [H'/V][K][V]    the cell's K blocks for every V units
 *   dg     [K][H]          dL/d(pre-activation), block by block in the same order
 */
#ifndef REAL
#error "recurrent.inc.h needs real.inc.h, simd.inc.h, vmath.inc.h and gemm/"
#endif

#include "recurrent/chunk.h"

#include "recurrent/cell.inc.h"

#include "recurrent/norm.inc.h"
#include "recurrent/zoneout.inc.h"

#include "recurrent/backward.inc.h"
#include "recurrent/forward.inc.h"

static size_t FN(recurrent_backward_work)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    return FN(plan_backward)(&plan, &measured);
}

/* With a tape as much as the backward pass will want, so that one buffer serves both. */
static size_t FN(recurrent_forward_work)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    gc_recurrent measured = *s;
    measured.work = NULL;
    const size_t forward = FN(plan_forward)(&plan, &measured);
    measured.dx = s->y; /* it will be wanted */
    const size_t backward = s->gates ? FN(recurrent_backward_work)(&measured) : 0;
    return forward > backward ? forward : backward;
}

static int FN(recurrent_forward)(const gc_recurrent *s)
{
    FN(forward_plan) plan;
    FN(plan_forward)(&plan, s);
    return gc_parallel(recurrent_threads(s), 0, FN(forward_body), &plan);
}

static int FN(recurrent_backward)(const gc_recurrent *s)
{
    FN(backward_plan) plan;
    FN(plan_backward)(&plan, s);
    return gc_parallel(recurrent_threads(s), 0, FN(backward_body), &plan);
}

static ptrdiff_t FN(recurrent_norm_row)(int cell, ptrdiff_t H) { return FN(norm_row)(&gc_cells[cell], H); }

static const gc_recurrent_kernels FN(recurrent_kernels) = {FN(recurrent_forward_work), FN(recurrent_backward_work),
                                                           FN(recurrent_forward), FN(recurrent_backward),
                                                           FN(recurrent_norm_row)};

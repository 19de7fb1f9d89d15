/* y = x W^T + b and its gradients. */
#ifndef REAL
#error "linear.inc.h needs real.inc.h, simd.inc.h, vmath.inc.h and gemm.inc.h"
#endif

#ifndef GC_LINEAR_ONCE
#define GC_LINEAR_ONCE
INLINE int linear_threads(const gc_linear *s)
{
    return (double)s->N * (double)s->F * (double)s->O < SERIAL_WORK ? 1 : s->threads;
}
#endif

typedef struct {
    const gc_linear *s;
    REAL *packed;   /* W^T for the forward product, W for dL/dx */
    REAL *products; /* scratch of gemm_tn, a part for each thread */
    REAL *copies;   /* scratch of gemm, likewise, or NULL */
    ptrdiff_t copy; /* the elements of a part */
} FN(linear_plan);

static size_t FN(plan_linear)(FN(linear_plan) *plan, const gc_linear *s)
{
    gc_arena arena = {s->work, 0};
    plan->s = s;
    plan->packed = gc_take(&arena, s->dy ? FN(packed_size)(s->O, s->F) : FN(packed_size)(s->F, s->O), sizeof(REAL));
    plan->products = s->dy ? gc_take(&arena, linear_threads(s) * FN(gemm_tn_work)(), sizeof(REAL)) : NULL;
    plan->copy = s->dy ? FN(gemm_copy)(s->N, s->F, s->O) : FN(gemm_copy)(s->N, s->O, s->F);
    plan->copies = plan->copy ? gc_take(&arena, linear_threads(s) * plan->copy, sizeof(REAL)) : NULL;
    return arena.used;
}

INLINE REAL *FN(copy_of)(const FN(linear_plan) *plan, int thread)
{
    return plan->copies ? plan->copies + thread * plan->copy : NULL;
}

static size_t FN(linear_work)(const gc_linear *s)
{
    FN(linear_plan) plan;
    gc_linear measured = *s;
    measured.work = NULL;
    return FN(plan_linear)(&plan, &measured);
}

static void FN(linear_forward_body)(void *arg, gc_team *team, int thread)
{
    const FN(linear_plan) *plan = arg;
    const gc_linear *s = plan->s;
    ptrdiff_t N = s->N, F = s->F, O = s->O, first, end;
    gc_watch watch = {team, thread, 0, 0};
    const FN(unpacked) w = {.K = F, .N = O, .at = s->w, .row = 1, .column = F}; /* W^T */
    FN(pack)(&w, NR, plan->packed, thread, gc_team_size(team), &watch);
    if (gc_wait(&watch)) return;
    gc_share(N, team, thread, &first, &end);
    const FN(gemm_job) y = {.M = end - first, .N = O, .K = F, .j1 = O, .a = (const REAL *)s->x + first * F, .a_row = F,
                            .b = plan->packed, .c = (REAL *)s->y + first * O, .c_row = O, .start = s->b,
                            .copy = FN(copy_of)(plan, thread)};
    FN(gemm)(&y, &watch); /* (l1) */
}

static int FN(linear_forward)(const gc_linear *s)
{
    FN(linear_plan) plan;
    FN(plan_linear)(&plan, s);
    return gc_parallel(linear_threads(s), 0, FN(linear_forward_body), &plan);
}

/* inverts (l1) */
static void FN(linear_backward_body)(void *arg, gc_team *team, int thread)
{
    const FN(linear_plan) *plan = arg;
    const gc_linear *s = plan->s;
    const REAL *dy = s->dy;
    ptrdiff_t N = s->N, F = s->F, O = s->O, first, end;
    gc_watch watch = {team, thread, 0, 0};
    const FN(unpacked) w = {.K = O, .N = F, .at = s->w, .row = F, .column = 1};
    FN(pack)(&w, NR, plan->packed, thread, gc_team_size(team), &watch);
    gc_share(O, team, thread, &first, &end);
    const FN(gemm_tn_job) dw = {.m0 = first, .m1 = end, .N = F, .K = N, .a = dy, .a_row = O, .b = s->x, .b_row = F,
                                .c = s->dw, .c_row = F, .sums = s->db,
                                .work = plan->products + thread * FN(gemm_tn_work)()};
    FN(gemm_tn)(&dw, &watch);
    if (gc_wait(&watch)) return;
    gc_share(N, team, thread, &first, &end);
    const FN(gemm_job) dx = {.M = end - first, .N = F, .K = O, .j1 = F, .a = dy + first * O, .a_row = O, .b = plan->packed,
                             .c = (REAL *)s->dx + first * F, .c_row = F, .copy = FN(copy_of)(plan, thread)};
    FN(gemm)(&dx, &watch);
}

static int FN(linear_backward)(const gc_linear *s)
{
    FN(linear_plan) plan;
    FN(plan_linear)(&plan, s);
    return gc_parallel(linear_threads(s), 0, FN(linear_backward_body), &plan);
}

static const gc_linear_kernels FN(linear_kernels) = {FN(linear_work), FN(linear_forward), FN(linear_backward)};

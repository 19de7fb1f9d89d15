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
} FN(linear_plan);

static size_t FN(plan_linear)(FN(linear_plan) *plan, const gc_linear *s)
{
    gc_arena arena = {s->work, 0};
    plan->s = s;
    plan->packed = take(&arena, s->dy ? FN(packed_size)(s->O, s->F) : FN(packed_size)(s->F, s->O), sizeof(REAL));
    plan->products = s->dy ? take(&arena, linear_threads(s) * FN(gemm_tn_work)(), sizeof(REAL)) : NULL;
    return arena.used;
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
    FN(pack)(F, O, NR, s->w, 1, F, 0, plan->packed, thread, gc_team_size(team), &watch);
    if (barrier(&watch)) return;
    share(N, team, thread, &first, &end);
    FN(gemm)(end - first, 0, O, O, F, (const REAL *)s->x + first * F, F, plan->packed, 0, (REAL *)s->y + first * O, O,
             s->b, 0, NULL, 0, &watch); /* (l1) */
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
    FN(pack)(O, F, NR, s->w, F, 1, 0, plan->packed, thread, gc_team_size(team), &watch);
    share(O, team, thread, &first, &end);
    FN(gemm_tn)(first, end, F, N, dy, O, s->x, F, s->dw, F, s->db,
                plan->products + thread * FN(gemm_tn_work)(), &watch);
    if (barrier(&watch)) return;
    share(N, team, thread, &first, &end);
    FN(gemm)(end - first, 0, F, F, O, dy + first * O, O, plan->packed, 0, (REAL *)s->dx + first * F, F, NULL, 0, NULL, 0,
             &watch);
}

static int FN(linear_backward)(const gc_linear *s)
{
    FN(linear_plan) plan;
    FN(plan_linear)(&plan, s);
    return gc_parallel(linear_threads(s), 0, FN(linear_backward_body), &plan);
}

static const gc_linear_kernels FN(linear_kernels) = {FN(linear_work), FN(linear_forward), FN(linear_backward)};

/* What the processor can do at most: the yardstick of bench/peers.py. */
#ifndef REAL
#error "peak.inc.h needs real.inc.h and simd.inc.h"
#endif

typedef struct {
    ptrdiff_t n;
    double sum, made;
} FN(peak_job);

static void FN(peak_body)(void *arg, gc_team *team, int thread)
{
    FN(peak_job) *job = arg;
    VEC sum[12], shrink = FN(v_set1)(R(0.5)), one = FN(v_set1)(R(1.0)); /* enough sums to hide the latency */
    REAL total[V];
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) sum[i] = FN(v_set1)((REAL)i);
    for (ptrdiff_t k = 0; k < job->n; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) sum[i] = FN(v_fma)(sum[i], shrink, one);
    }
    for (int i = 1; i < 12; i++) sum[0] = FN(v_add)(sum[0], sum[i]);
    FN(v_store)(total, sum[0]);
    if (thread) return;
    job->sum = (double)total[0]; /* so that it is computed */
    job->made = 12.0 * V * (double)job->n * gc_team_size(team);
}

/* n rounds on each of so many threads, or of those that come; the multiply-adds made. */
static double FN(multiply_adds)(int threads, ptrdiff_t n)
{
    FN(peak_job) job = {n, 0, 0};
    gc_parallel(threads, 0, FN(peak_body), &job);
    return job.sum > 0 ? job.made : 0;
}

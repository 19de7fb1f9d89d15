/* C = start + A B, with B packed. */
#ifndef REAL
#error "gemm.inc.h needs real.inc.h, simd.inc.h, tile.inc.h and pack.inc.h"
#endif

/* Columns [j0, j1) of C (M, N) = start + A (M, K) B (K, N); j0 is a multiple of V. */
typedef struct {
    ptrdiff_t M, N, K, j0, j1;
    const REAL *a; /* (M, K), rows a_row apart, as those of c and start by theirs */
    ptrdiff_t a_row;
    const REAL *b; /* packed */
    REAL *c;       /* (M, N) */
    ptrdiff_t c_row;
    const REAL *start; /* (M, N), or (N,) with start_row 0; NULL for zeros, C itself to add to it */
    ptrdiff_t start_row;
    int back;       /* begin at B's end: where the walk before has ended */
    gc_lines ahead; /* is fetched meanwhile */
    REAL *copy;     /* gemm_copy elements of scratch, or NULL */
} FN(gemm_job);

/* More rows of a tile than L1 has ways for are copied to another distance if they lie whole pages apart: 2048 rows, K = 2048,
 * N = 512: 90 -> 114 GFLOP/s. Half as many as a block, because the copy is in L2 too. */
enum { FN(copied_rows) = BLOCK / 2 };
INLINE ptrdiff_t FN(copied_row)(ptrdiff_t K) { return (K + V - 1) / V * V + V; }

/* The elements of scratch that gemm wants as `copy` for (M, K) rows that follow each other; 0 if it is better without. */
INLINE ptrdiff_t FN(gemm_copy)(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K)
{
    const int meet = K > 0 && K * (ptrdiff_t)sizeof(REAL) % PAGE == 0;
    return meet && gc_min(M, MR) > WAYS && N > NR ? FN(copied_rows) * FN(copied_row)(K) : 0;
}

/* B is walked through once for each block of rows, to and fro: what L2 has kept of one walk is where the next begins. Returns
 * early if it is to stop. */
static void FN(gemm)(const FN(gemm_job) *job, gc_watch *watch)
{
    const ptrdiff_t M = job->M, N = job->N, K = job->K, j0 = job->j0, j1 = job->j1, c_row = job->c_row;
    const REAL *start = job->start;
    if (j0 == j1) return; /* of rows that hold nothing there may be more than can be counted */
    uintptr_t line = job->ahead.line;
    const ptrdiff_t most = job->copy ? FN(copied_rows) : BLOCK, blocks = (M + most - 1) / most;
    const ptrdiff_t depths = gc_max(1, (K + DEPTH - 1) / DEPTH);
    const ptrdiff_t wide = FN(columns_at_once)(M, K), first = j0 / NR * NR, steps = (j1 - first + wide - 1) / wide;
    const ptrdiff_t last = (j1 - 1) / NR * NR;
    int back = job->back;
    for (ptrdiff_t block = 0; block < blocks; block++, back = !back) {
        const ptrdiff_t m = gc_cut(M, block, blocks), rows = gc_cut(M, block + 1, blocks) - m;
        const REAL *a = job->a + m * job->a_row;
        ptrdiff_t a_row = job->a_row;
        if (job->copy) {
            a_row = FN(copied_row)(K);
            for (ptrdiff_t i = 0; i < rows; i++, a += job->a_row)
                for (ptrdiff_t k = 0; k < K; k += V) FN(v_store)(job->copy + i * a_row + k, FN(v_get)(a + k, K - k));
            a = job->copy;
        }
        for (ptrdiff_t i = 0; i < steps; i++) {
            const ptrdiff_t at = first + (back ? steps - 1 - i : i) * wide, j_end = gc_min(j1, at + wide);
            if (gc_stop_after(watch, (double)(rows * wide) * (double)K)) return;
            for (ptrdiff_t j = gc_max(j0, at), n; j < j_end; j += n) {
                const ptrdiff_t panel = j / NR * NR, width = (gc_min(NR, N - panel) + V - 1) / V * V;
                const ptrdiff_t next_panel = back ? gc_max(panel - NR, first) : gc_min(panel + NR, last);
                REAL *to = job->c + m * c_row + j;
                n = j_end - j <= NR + V ? gc_min(panel + NR, j_end) - j : j_end - j;
                for (ptrdiff_t depth = 0; depth < depths; depth++) {
                    const ptrdiff_t k0 = gc_cut(K, depth, depths), depth_k = gc_cut(K, depth + 1, depths) - k0;
                    const REAL *b = job->b + panel * K + k0 * width + j % NR;
                    const REAL *next = depth < depths - 1 ? b + width * depth_k : job->b + next_panel * K;
                    FN(product) p = {.K = depth_k, .a = a + k0, .a_row = a_row, .a_column = 1, .b = b,
                                     .b_row = width, .b_panel = NR * K, .c = to, .c_row = c_row,
                                     .start = depth ? to : start ? start + m * job->start_row + j : NULL,
                                     .start_row = depth ? c_row : job->start_row, .ahead = {line, job->ahead.end}, .ahead_k = 64,
                                     .ahead_tile = depth_k * 64, .next = FN(next_panel)(next, K, N)};
                    FN(panel)(rows, n, &p);
                    line = p.ahead.line;
                }
            }
        }
    }
}

/* C += A^T B: sums over many rows, those of a weight's gradient. */
#ifndef REAL
#error "gemm_tn.inc.h needs real.inc.h, simd.inc.h, tile.inc.h and pack.inc.h"
#endif

/* A tile reads MR elements of each row of A^T. Where the registers hold few vectors they are packed as stripes of just MR
 * columns, so that nothing else comes to L1 beside the panel of B; V elements are left between two stripes, because the last
 * vector of a row reaches over its end. Stores of whole cache lines that overlap would cost more than they save. */
#define STRIPE_SIZE(kc) ((kc)*STRIPE + V)

/* Elements of scratch that each thread needs for gemm_tn. */
INLINE ptrdiff_t FN(gemm_tn_work)(void)
{
    return NC_BYTES / (ptrdiff_t)sizeof(REAL) + COLUMNS / STRIPE * STRIPE_SIZE(KC);
}

/* Pack n <= COLUMNS columns of A (K, n) as stripes, and add to `sums`, unless it is NULL, each column's sum. */
INLINE void FN(pack_columns)(ptrdiff_t K, const ptrdiff_t n, const REAL *a, ptrdiff_t a_row, REAL *packed, REAL *sums)
{
    VEC sum[COLUMNS / V];
    for (ptrdiff_t j = 0; j < n; j += V) sum[j / V] = FN(v_zero)();
    for (ptrdiff_t k = 0; k < K; k++, a += a_row) {
        for (ptrdiff_t s = 0; s < n; s += STRIPE) {
            REAL *to = packed + s / STRIPE * STRIPE_SIZE(K) + k * STRIPE;
            for (ptrdiff_t i = 0; i < gc_min(STRIPE, n - s); i += V) FN(v_store)(to + i, FN(v_get)(a + s + i, n - s - i));
        }
        for (ptrdiff_t j = 0; j < n; j += V) sum[j / V] = FN(v_add)(sum[j / V], FN(v_get)(a + j, n - j));
    }
    for (ptrdiff_t j = 0; sums && j < n; j += V) FN(v_put)(sums + j, FN(v_add)(FN(v_get)(sums + j, n - j), sum[j / V]), n - j);
}

static void FN(pack_stripes)(ptrdiff_t K, ptrdiff_t n, const REAL *a, ptrdiff_t a_row, REAL *packed, REAL *sums)
{
    if (n == COLUMNS)
        FN(pack_columns)(K, COLUMNS, a, a_row, packed, sums);
    else
        FN(pack_columns)(K, n, a, a_row, packed, sums);
}

/* Rows [m0, m1) of C (M, N) += A^T B, with A (K, M) and B (K, N). */
typedef struct {
    ptrdiff_t m0, m1, N, K;
    const REAL *a; /* (K, M), rows a_row apart, as those of b and c by theirs */
    ptrdiff_t a_row;
    const REAL *b; /* (K, N) */
    ptrdiff_t b_row;
    REAL *c; /* (M, N) */
    ptrdiff_t c_row;
    REAL *sums; /* (M,), to which the sums of A's columns are added; or NULL */
    REAL *work; /* gemm_tn_work elements */
} FN(gemm_tn_job);

/* The sums are made in blocks of at most KC rows. Returns early if it is to stop. */
static void FN(gemm_tn)(const FN(gemm_tn_job) *job, gc_watch *watch)
{
    const ptrdiff_t m0 = job->m0, m1 = job->m1, N = job->N, a_row = job->a_row, c_row = job->c_row;
    const ptrdiff_t blocks = (job->K + KC - 1) / KC, line = 64 / (ptrdiff_t)sizeof(REAL);
    REAL *packed_b = job->work, *packed_a = job->work + NC_BYTES / (ptrdiff_t)sizeof(REAL);
    if (m0 == m1) return;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        const ptrdiff_t k0 = gc_cut(job->K, block, blocks), kc = gc_cut(job->K, block + 1, blocks) - k0;
        const ptrdiff_t NC = gc_max(1, NC_BYTES / (ptrdiff_t)sizeof(REAL) / kc / WIDE) * WIDE;
        for (ptrdiff_t j0 = 0; j0 < gc_max(N, 1); j0 += NC) { /* once without columns, for the sums */
            const ptrdiff_t columns = gc_min(NC, N - j0);
            const FN(unpacked) b = {.K = kc, .N = columns, .at = job->b + k0 * job->b_row + j0, .row = job->b_row, .column = 1};
            FN(pack)(&b, WIDE, packed_b, 0, 1, watch);
            for (ptrdiff_t m = m0; m < m1; m += COLUMNS) {
                const ptrdiff_t rows = gc_min(COLUMNS, m1 - m);
                if (gc_stop_after(watch, (double)(rows * columns) * (double)kc)) return;
                const REAL *from = job->a + k0 * a_row + m;
                const uintptr_t end = (uintptr_t)(from + kc * a_row + 2 * COLUMNS - 1);
                FN(pack_stripes)(kc, rows, from, a_row, packed_a, job->sums && !j0 ? job->sums + m : NULL);
                for (ptrdiff_t j = 0; j < columns; j += WIDE) {
                    const ptrdiff_t n = gc_min(WIDE, columns - j);
                    for (ptrdiff_t i = 0; i < rows; i += STRIPE) {
                        REAL *to = job->c + (m + i) * c_row + j0 + j;
                        /* the columns of A that come next, a line of their rows for each tile */
                        const gc_lines ahead = {j ? 0 : (uintptr_t)(from + COLUMNS + i / STRIPE * line), end};
                        FN(product) p = {.K = kc, .a = packed_a + i / STRIPE * STRIPE_SIZE(kc), .a_row = 1, .a_column = STRIPE,
                                         .b = packed_b + j * kc, .b_row = (n + V - 1) / V * V, .b_panel = NR, .c = to,
                                         .c_row = c_row, .start = to, .start_row = c_row, .ahead = ahead,
                                         .ahead_k = a_row * (ptrdiff_t)sizeof(REAL), .ahead_tile = 64};
                        FN(panel)(gc_min(STRIPE, rows - i), n, &p);
                    }
                }
            }
        }
    }
}
#undef STRIPE_SIZE

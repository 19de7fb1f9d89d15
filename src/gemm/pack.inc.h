/* B of a product, packed into the panels that the micro-kernel reads. */
#ifndef REAL
#error "pack.inc.h needs real.inc.h, simd.inc.h and tile.inc.h"
#endif

/* A (K, N) matrix is packed as panels [K][NR], the last one as narrow as whole vectors allow and filled up with zeros; the
 * panel of column j, a multiple of NR, begins at element j * K. */
INLINE ptrdiff_t FN(packed_size)(ptrdiff_t K, ptrdiff_t N) { return K * ((N + V - 1) / V * V); }

/* to[k * to_row + j] = from[j * from_row + k] for j < n <= V, and 0 up to V: V columns of packed B from rows. */
static void FN(transpose)(ptrdiff_t K, ptrdiff_t n, const REAL *from, ptrdiff_t from_row, REAL *to, ptrdiff_t to_row)
{
    for (ptrdiff_t k = 0; k < K; k += V) {
        VEC rows[V];
#pragma GCC unroll 16
        for (int j = 0; j < V; j++) rows[j] = j < n ? FN(v_get)(from + j * from_row + k, K - k) : FN(v_zero)();
        FN(v_transpose)(rows);
        if (K - k >= V) {
#pragma GCC unroll 16
            for (int i = 0; i < V; i++) FN(v_store)(to + (k + i) * to_row, rows[i]);
        } else {
            for (int i = 0; i < K - k; i++) FN(v_store)(to + (k + i) * to_row, rows[i]);
        }
    }
}

/* B[k, n] = at[k * row + n * column] for k < K and n < N, where one of the two is 1. If that is column, the rows begin with
 * first_row and go round. */
typedef struct {
    ptrdiff_t K, N;
    const REAL *at;
    ptrdiff_t row, column, first_row;
} FN(unpacked);

/* Pack this thread's share of B in panels of `nr` columns: NR, WIDE for gemm_tn. Returns early if it is to stop, which cannot
 * be where watch is NULL. */
static void FN(pack)(const FN(unpacked) *b, ptrdiff_t nr, REAL *packed, int thread, int n_threads, gc_watch *watch)
{
    const ptrdiff_t K = b->K, row = b->row, panels = (b->N + nr - 1) / nr;
    for (ptrdiff_t p = panels * thread / n_threads; p < panels * (thread + 1) / n_threads; p++) {
        if (watch && gc_stop_after(watch, (double)K * (double)(MOVED * nr))) return;
        ptrdiff_t n = gc_min(nr, b->N - p * nr), width = (n + V - 1) / V * V;
        const REAL *from = b->at + p * nr * b->column;
        REAL *to = packed + p * nr * K;
        if (row == 1) {
            for (ptrdiff_t j = 0; j < n; j += V)
                FN(transpose)(K, gc_min(V, n - j), from + j * b->column, b->column, to + j, width);
            continue;
        }
        for (ptrdiff_t k = 0; k < K; k++, to += width) {
            const REAL *from_k = from + (k + b->first_row < K ? k + b->first_row : k + b->first_row - K) * row;
            for (ptrdiff_t j = 0; j < n; j += V) FN(v_store)(to + j, FN(v_get)(from_k + j, n - j));
        }
    }
}

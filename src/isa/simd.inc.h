/* Vectors for REAL: VEC holds V of them. The files beside this one have the operations that the kernels need, and the block
 * sizes of their products, for one instruction set each: the only intrinsics of the project. Below is what is made of them.
 *
 *   v_load v_store     whole vectors, from and to any address; v_load_n, v_store_n the first n < V elements, the others being 0
 *                      when loaded and left alone when stored
 *   v_stream           past the caches, to an aligned place; STREAM_FENCE() before another thread may read it
 *   v_set1 v_zero      the same number in all elements
 *   v_add v_sub v_mul v_div v_abs
 *   v_fma v_fnma       a b + c, c - a b; rounded once in v3, v4 and NEON, twice in the others
 *   v_min v_max        their second operand where either is a NaN
 *   v_select_gt        a > b ? x : y, so y where either is a NaN
 *   v_flip             a where sign is positive, -a where it is negative; zeros have signs
 *   v_shift            the bits of each element, moved to the left
 *   v_zip_first        a0 b0 a1 b1 ... of the first halves, v_zip_second of the second halves
 */
#ifndef REAL
#error "simd.inc.h needs real.inc.h"
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "v4.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "v3.h"
#elif !defined(__GNUC__) || defined(GC_SCALAR)
#include "scalar.h"
#elif defined(__aarch64__) && !defined(GC_VECTOR_BYTES)
#include "neon.h"
#else
#include "gnu.h"
#endif

#ifndef STREAM_FENCE
#define STREAM_FENCE() ((void)0)
#endif

enum { FN(lanes) = V };

#if GC_BITS == 32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_MAGIC 0x1.8p23f /* adding it rounds to an integer, which stands in the low bits of the sum */
#else
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_MAGIC 0x1.8p52
#endif

/* The multiple n of `step`, 1 or 2, next to x k; *power is 2^(n - less), or 0 in the binade below the normal numbers.
 * Both come from one sum: its last place is worth `step`, and its low bits are the exponent of the power. */
INLINE VEC FN(v_nearest)(VEC x, REAL k, int step, int less, VEC *power)
{
    VEC magic = FN(v_set1)((REAL)step * ROUND_MAGIC + (REAL)(EXPONENT_BIAS - less));
    VEC sum = FN(v_fma)(x, FN(v_set1)(k), magic);
    *power = FN(v_shift)(sum, MANTISSA_BITS + step - 1);
    return FN(v_sub)(sum, magic);
}

/* The first n of V elements; the others are 0 when loaded and left alone when stored. */
INLINE VEC FN(v_get)(const REAL *p, ptrdiff_t n) { return n >= V ? FN(v_load)(p) : FN(v_load_n)(p, n); }
INLINE void FN(v_put)(REAL *p, VEC v, ptrdiff_t n)
{
    if (n >= V)
        FN(v_store)(p, v);
    else
        FN(v_store_n)(p, v, n);
}

#if V > 1
/* rows[k][i] and rows[i][k] change places: zipping the two halves of the rows moves one bit of the row's number to the
 * column's. */
INLINE void FN(v_transpose)(VEC rows[V])
{
#pragma GCC unroll 4
    for (int bits = V; bits > 1; bits /= 2) {
        VEC zipped[V];
#pragma GCC unroll 8
        for (int i = 0; i < V / 2; i++) {
            zipped[2 * i] = FN(v_zip_first)(rows[i], rows[i + V / 2]);
            zipped[2 * i + 1] = FN(v_zip_second)(rows[i], rows[i + V / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < V; i++) rows[i] = zipped[i];
    }
}
#else
INLINE void FN(v_transpose)(VEC rows[V]) { (void)rows; }
#endif

#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUND_MAGIC

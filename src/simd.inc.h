/* The vector operations that the kernels need, for REAL: VEC holds V of them. The only intrinsics of the project.
 *
 * Four sets: AVX-512, AVX2 with FMA, vectors of the GNU C dialect (SSE, NEON, whatever the compiler makes of them),
 * and one element at a time for other compilers. v_fma rounds once in the first two and twice in the others.
 */
#ifndef REAL
#error "simd.inc.h needs real.inc.h"
#endif

#if GC_BITS == 32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_MAGIC 0x1.8p23f /* adding it rounds to an integer, which stands in the low bits of the sum */
#else
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_MAGIC 0x1.8p52
#endif

/* ---- AVX-512 ---------------------------------------------------------------------------------------------------------- */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define GC_REGISTERS 32
#if GC_BITS == 32
#define V 16
#define VEC __m512
#define MM(op) _mm512_##op##_ps
#define MM_INT(op) _mm512_##op##_epi32
#define MM_CAST(v) _mm512_castps_si512(v)
#define MM_BACK(v) _mm512_castsi512_ps(v)
#define MASK(n) ((__mmask16)((1u << (n)) - 1))
#else
#define V 8
#define VEC __m512d
#define MM(op) _mm512_##op##_pd
#define MM_INT(op) _mm512_##op##_epi64
#define MM_CAST(v) _mm512_castpd_si512(v)
#define MM_BACK(v) _mm512_castsi512_pd(v)
#define MASK(n) ((__mmask8)((1u << (n)) - 1))
#endif
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return MM(maskz_loadu)(MASK(n), p); }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { MM(mask_storeu)(p, MASK(n), v); }
INLINE VEC FN(v_abs)(VEC a) { return MM(abs)(a); }
/* a > b ? x : y; the comparison with a NaN is false */
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y)
{
#if GC_BITS == 32
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
#else
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_GT_OQ), y, x);
#endif
}
/* a0 b0 a1 b1 ... of the first and of the second halves */
#if GC_BITS == 32
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}
#else
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
}
#endif
#define GC_X86_OPS

/* ---- AVX2 + FMA ------------------------------------------------------------------------------------------------------- */
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define GC_REGISTERS 16
#if GC_BITS == 32
#define V 8
#define VEC __m256
#define MM(op) _mm256_##op##_ps
#define MM_INT(op) _mm256_##op##_epi32
#define MM_CAST(v) _mm256_castps_si256(v)
#define MM_BACK(v) _mm256_castsi256_ps(v)
#else
#define V 4
#define VEC __m256d
#define MM(op) _mm256_##op##_pd
#define MM_INT(op) _mm256_##op##_epi64
#define MM_CAST(v) _mm256_castpd_si256(v)
#define MM_BACK(v) _mm256_castsi256_pd(v)
#endif
INLINE __m256i FN(mask)(ptrdiff_t n)
{
#if GC_BITS == 32
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#else
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
#endif
}
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return MM(maskload)(p, FN(mask)(n)); }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { MM(maskstore)(p, FN(mask)(n), v); }
INLINE VEC FN(v_abs)(VEC a) { return MM(andnot)(MM(set1)(R(-0.0)), a); }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y) { return MM(blendv)(y, x, MM(cmp)(a, b, _CMP_GT_OQ)); }
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
#if GC_BITS == 32
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
#else
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
#endif
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
#if GC_BITS == 32
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
#else
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
#endif
}
#define GC_X86_OPS

/* ---- vectors of the GNU C dialect: 16 bytes; GC_VECTOR_BYTES=64 tests what AVX-512 runs where the processor lacks it ------- */
#elif defined(__GNUC__) && !defined(GC_SCALAR)
#ifndef GC_VECTOR_BYTES
#define GC_VECTOR_BYTES 16
#endif
#define GC_REGISTERS (GC_VECTOR_BYTES == 64 ? 32 : 16)
#define V (GC_VECTOR_BYTES * 8 / GC_BITS)
#if GC_BITS == 32
typedef float gc_vec_f32 __attribute__((vector_size(GC_VECTOR_BYTES)));
typedef float gc_vec_unaligned_f32 __attribute__((vector_size(GC_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t gc_bits_f32 __attribute__((vector_size(GC_VECTOR_BYTES)));
#else
typedef double gc_vec_f64 __attribute__((vector_size(GC_VECTOR_BYTES)));
typedef double gc_vec_unaligned_f64 __attribute__((vector_size(GC_VECTOR_BYTES), aligned(8), may_alias));
typedef uint64_t gc_bits_f64 __attribute__((vector_size(GC_VECTOR_BYTES)));
#endif
#define VEC FN(gc_vec)
#define BITS FN(gc_bits)
INLINE VEC FN(v_load)(const REAL *p) { return *(const FN(gc_vec_unaligned) *)p; }
INLINE void FN(v_store)(REAL *p, VEC v) { *(FN(gc_vec_unaligned) *)p = v; }
INLINE void FN(v_stream)(REAL *p, VEC v) { FN(v_store)(p, v); }
INLINE VEC FN(v_set1)(REAL a) { return a - (VEC){0}; }
INLINE VEC FN(v_zero)(void) { return (VEC){0}; }
INLINE VEC FN(v_add)(VEC a, VEC b) { return a + b; }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return a - b; }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return a * b; }
INLINE VEC FN(v_div)(VEC a, VEC b) { return a / b; }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return a * b + c; }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return c - a * b; }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y)
{
    BITS mask = (BITS)(a > b);
    return (VEC)((mask & (BITS)x) | (~mask & (BITS)y));
}
INLINE VEC FN(v_min)(VEC a, VEC b) { return FN(v_select_gt)(b, a, a, b); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return FN(v_select_gt)(a, b, a, b); }
INLINE VEC FN(v_abs)(VEC a) { return (VEC)((BITS)a & ~(BITS)FN(v_set1)(R(-0.0))); }
INLINE VEC FN(v_flip)(VEC a, VEC sign) { return (VEC)((BITS)a ^ ((BITS)sign & (BITS)FN(v_set1)(R(-0.0)))); }
INLINE VEC FN(v_shift)(VEC a, int count) { return (VEC)((BITS)a << count); }
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n)
{
    VEC v = {0};
    memcpy(&v, p, (size_t)n * sizeof(REAL));
    return v;
}
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { memcpy(p, &v, (size_t)n * sizeof(REAL)); }
INLINE VEC FN(v_zip_first)(VEC a, VEC b)
{
    VEC v;
    for (int i = 0; i < V; i++) v[i] = i % 2 ? b[i / 2] : a[i / 2];
    return v;
}
INLINE VEC FN(v_zip_second)(VEC a, VEC b)
{
    VEC v;
    for (int i = 0; i < V; i++) v[i] = i % 2 ? b[V / 2 + i / 2] : a[V / 2 + i / 2];
    return v;
}
#undef BITS

/* ---- one element at a time; GC_SCALAR asks for it, to test it ------------------------------------------------------------ */
#else
#define GC_REGISTERS 16
#define V 1
#define VEC REAL
INLINE VEC FN(v_load)(const REAL *p) { return *p; }
INLINE void FN(v_store)(REAL *p, VEC v) { *p = v; }
INLINE void FN(v_stream)(REAL *p, VEC v) { *p = v; }
INLINE VEC FN(v_set1)(REAL a) { return a; }
INLINE VEC FN(v_zero)(void) { return 0; }
INLINE VEC FN(v_add)(VEC a, VEC b) { return a + b; }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return a - b; }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return a * b; }
INLINE VEC FN(v_div)(VEC a, VEC b) { return a / b; }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return a * b + c; }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return c - a * b; }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y) { return a > b ? x : y; }
INLINE VEC FN(v_min)(VEC a, VEC b) { return b > a ? a : b; }
INLINE VEC FN(v_max)(VEC a, VEC b) { return a > b ? a : b; }
INLINE VEC FN(v_abs)(VEC a) { return (REAL)fabs(a); }
INLINE VEC FN(v_flip)(VEC a, VEC sign) { return signbit(sign) ? -a : a; }
INLINE VEC FN(v_shift)(VEC a, int count)
{
#if GC_BITS == 32
    uint32_t bits;
#else
    uint64_t bits;
#endif
    memcpy(&bits, &a, sizeof a);
    bits <<= count;
    memcpy(&a, &bits, sizeof a);
    return a;
}
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n) { return n ? *p : 0; }
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n) { if (n) *p = v; }
#endif

/* ---- what the two AVX sets spell alike -------------------------------------------------------------------------------- */
#ifdef GC_X86_OPS
INLINE VEC FN(v_load)(const REAL *p) { return MM(loadu)(p); }
INLINE void FN(v_store)(REAL *p, VEC v) { MM(storeu)(p, v); }
/* past the caches, to an aligned place; STREAM_FENCE() before another thread may read it */
INLINE void FN(v_stream)(REAL *p, VEC v) { MM(stream)(p, v); }
INLINE VEC FN(v_set1)(REAL a) { return MM(set1)(a); }
INLINE VEC FN(v_zero)(void) { return MM(setzero)(); }
INLINE VEC FN(v_add)(VEC a, VEC b) { return MM(add)(a, b); }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return MM(sub)(a, b); }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return MM(mul)(a, b); }
INLINE VEC FN(v_div)(VEC a, VEC b) { return MM(div)(a, b); }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return MM(fmadd)(a, b, c); }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return MM(fnmadd)(a, b, c); } /* c - a b */
/* a where sign is positive, -a where it is negative; zeros have signs */
INLINE VEC FN(v_flip)(VEC a, VEC sign) { return MM(xor)(a, MM(and)(sign, MM(set1)(R(-0.0)))); }
/* min and max return their second operand when either is a NaN, in every set */
INLINE VEC FN(v_min)(VEC a, VEC b) { return MM(min)(a, b); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return MM(max)(a, b); }
/* the bits of each element, moved to the left */
INLINE VEC FN(v_shift)(VEC a, int count) { return MM_BACK(MM_INT(slli)(MM_CAST(a), count)); }
#define STREAM_FENCE() _mm_sfence()
#undef GC_X86_OPS
#undef MM
#undef MM_INT
#undef MM_CAST
#undef MM_BACK
#undef MASK
#endif

#ifndef STREAM_FENCE
#define STREAM_FENCE() ((void)0)
#endif

enum { FN(lanes) = V };

/* ---- made of the above ------------------------------------------------------------------------------------------------ */

/* The integer next to a, ties to even, for |a| < 2^(MANTISSA_BITS - 1). */
INLINE VEC FN(v_round)(VEC a)
{
    return FN(v_sub)(FN(v_add)(a, FN(v_set1)(ROUND_MAGIC)), FN(v_set1)(ROUND_MAGIC));
}

/* 2^n for an integer-valued n whose power is a normal number */
INLINE VEC FN(v_pow2)(VEC n)
{
    return FN(v_shift)(FN(v_add)(n, FN(v_set1)(ROUND_MAGIC + EXPONENT_BIAS)), MANTISSA_BITS);
}

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
#define v_transpose_f32(rows) ((void)(rows))
#define v_transpose_f64(rows) ((void)(rows))
#endif

/* The sum of the squares of n elements from p, in float64, in a fixed order; plain C, which the compiler vectorises. */
INLINE double FN(sum_squares)(const REAL *p, ptrdiff_t n)
{
    double sums[8] = {0};
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; lane++) sums[lane] += (double)p[i + lane] * (double)p[i + lane];
    for (int lane = 0; i + lane < n; lane++) sums[lane] += (double)p[i + lane] * (double)p[i + lane];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUND_MAGIC

/* The L2 norm of n elements, right wherever it is representable. */
INLINE double FN(l2_norm)(const REAL *p, ptrdiff_t n)
{
    double sum = FN(sum_squares)(p, n);
#if GC_BITS == 64
    if (!(sum > 1e-280 && sum < 1e300)) {
        double largest = 0, scaled = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            if (isnan(p[i])) return p[i];
            largest = fmax(largest, fabs(p[i]));
        }
        if (largest == 0 || isinf(largest)) return largest;
        for (ptrdiff_t i = 0; i < n; i++) scaled += (p[i] / largest) * (p[i] / largest);
        return largest * sqrt(scaled);
    }
#endif
    return sqrt(sum);
}

/* Vectors of the GNU C dialect, for any processor: 16 bytes; GC_VECTOR_BYTES=64 tests what v4.h runs where the processor
 * lacks it. */
#ifndef GC_SIZES
#define GC_SIZES
#define FUSED 0 /* whether v_fma rounds once, at its end */
#ifndef GC_VECTOR_BYTES
#define GC_VECTOR_BYTES 16
#endif
/* Block sizes: v3's, or v4's where it stands in for that. */
#if GC_VECTOR_BYTES == 64
#define MR 14
#define MR_3 9
#define LOW 6
#define KC 384
#define NC_BYTES (384 * 1024)
#define WIDE (2 * NR)
#define DEPTH 1024
#define PAIR_BYTES (32 * 1024)
#define STRIPE COLUMNS
#define PREFETCH_NEXT(address) PREFETCH_L2(address)
#define FETCH_BYTES (1 << 19)
#else
#define MR 6
#define MR_3 4
#define LOW 3
#define KC 288
#define NC_BYTES (1024 * 1024)
#define WIDE NR
#define DEPTH 640
#define PAIR_BYTES 0
#define STRIPE MR
#define PREFETCH_NEXT(address) PREFETCH(address)
#define FETCH_BYTES 0
#endif
#endif

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
/* What compares equal to 0 as a zero of its sign: where subnormal numbers count as zeros, a selection passes their bits on. */
INLINE VEC FN(v_flushed)(VEC a)
{
    return (VEC)((BITS)a & (~(BITS)(a == (VEC){0}) | (BITS)FN(v_set1)(R(-0.0))));
}
INLINE VEC FN(v_min)(VEC a, VEC b) { return FN(v_select_gt)(b, a, a, FN(v_flushed)(b)); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return FN(v_select_gt)(a, b, a, FN(v_flushed)(b)); }
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

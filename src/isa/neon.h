/* NEON, which every aarch64 has. */
#ifndef GC_SIZES
#define GC_SIZES
#define FUSED 1
#include <arm_neon.h>

/* Block sizes: v3's for what caches hold, since vectors are as narrow or narrower; not measured on a processor yet. */
#define MR 10 /* 20 sums; of 24 and more gcc 12, which loads ahead, spills three to seven at every k */
#define MR_3 7
#define LOW 5
#define KC 288
#define NC_BYTES (1024 * 1024)
#define WIDE NR
#define DEPTH 640
#define PAIR_BYTES 0
#define STRIPE 8
#define PREFETCH_NEXT(address) PREFETCH(address)
#define FETCH_BYTES 0
#endif

#if GC_BITS == 32
#define V 4
#define VEC float32x4_t
#define NEON(op) op##_f32
#define NEON_BITS(op) op##_u32
#define BITS(v) vreinterpretq_u32_f32(v)
#define FROM_BITS(v) vreinterpretq_f32_u32(v)
INLINE VEC FN(v_shift)(VEC a, int count) { return FROM_BITS(vshlq_u32(BITS(a), vdupq_n_s32(count))); }
#else
#define V 2
#define VEC float64x2_t
#define NEON(op) op##_f64
#define NEON_BITS(op) op##_u64
#define BITS(v) vreinterpretq_u64_f64(v)
#define FROM_BITS(v) vreinterpretq_f64_u64(v)
INLINE VEC FN(v_shift)(VEC a, int count) { return FROM_BITS(vshlq_u64(BITS(a), vdupq_n_s64(count))); }
#endif
INLINE VEC FN(v_load)(const REAL *p) { return NEON(vld1q)(p); }
INLINE void FN(v_store)(REAL *p, VEC v) { NEON(vst1q)(p, v); }
INLINE void FN(v_stream)(REAL *p, VEC v) { NEON(vst1q)(p, v); }
INLINE VEC FN(v_set1)(REAL a) { return NEON(vdupq_n)(a); }
INLINE VEC FN(v_zero)(void) { return NEON(vdupq_n)(0); }
INLINE VEC FN(v_add)(VEC a, VEC b) { return NEON(vaddq)(a, b); }
INLINE VEC FN(v_sub)(VEC a, VEC b) { return NEON(vsubq)(a, b); }
INLINE VEC FN(v_mul)(VEC a, VEC b) { return NEON(vmulq)(a, b); }
INLINE VEC FN(v_div)(VEC a, VEC b) { return NEON(vdivq)(a, b); }
INLINE VEC FN(v_fma)(VEC a, VEC b, VEC c) { return NEON(vfmaq)(c, a, b); }
INLINE VEC FN(v_fnma)(VEC a, VEC b, VEC c) { return NEON(vfmsq)(c, a, b); }
INLINE VEC FN(v_select_gt)(VEC a, VEC b, VEC x, VEC y) { return NEON(vbslq)(NEON(vcgtq)(a, b), x, y); }
/* not vminq and vmaxq, which return a NaN whichever operand it is */
INLINE VEC FN(v_min)(VEC a, VEC b) { return FN(v_select_gt)(b, a, a, b); }
INLINE VEC FN(v_max)(VEC a, VEC b) { return FN(v_select_gt)(a, b, a, b); }
INLINE VEC FN(v_abs)(VEC a) { return NEON(vabsq)(a); }
INLINE VEC FN(v_flip)(VEC a, VEC sign)
{
    return FROM_BITS(NEON_BITS(veorq)(BITS(a), NEON_BITS(vandq)(BITS(sign), BITS(FN(v_set1)(R(-0.0))))));
}
INLINE VEC FN(v_zip_first)(VEC a, VEC b) { return NEON(vzip1q)(a, b); }
INLINE VEC FN(v_zip_second)(VEC a, VEC b) { return NEON(vzip2q)(a, b); }
INLINE VEC FN(v_load_n)(const REAL *p, ptrdiff_t n)
{
    REAL lanes[V] = {0};
    for (ptrdiff_t i = 0; i < n; i++) lanes[i] = p[i];
    return FN(v_load)(lanes);
}
INLINE void FN(v_store_n)(REAL *p, VEC v, ptrdiff_t n)
{
    REAL lanes[V];
    FN(v_store)(lanes, v);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = lanes[i];
}
#undef NEON
#undef NEON_BITS
#undef BITS
#undef FROM_BITS

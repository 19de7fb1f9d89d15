/* The element type of the templates that follow. Define GC_BITS as 32 or 64, include this, then the templates; include
 * real_end.inc.h when done. FN(name) is name_f32 or name_f64. */
#if !defined(GC_BITS) || (GC_BITS != 32 && GC_BITS != 64)
#error "define GC_BITS as 32 or 64 before including real.inc.h"
#endif
#ifdef REAL
#error "real.inc.h is open already: include real_end.inc.h first"
#endif

#if GC_BITS == 32
#define REAL float
#define FN(name) name##_f32
#define R(constant) constant##f
#else
#define REAL double
#define FN(name) name##_f64
#define R(constant) constant
#endif

/* Closes what real.inc.h and simd.inc.h opened. */
#ifndef REAL
#error "real_end.inc.h without real.inc.h"
#endif
#undef REAL
#undef FN
#undef R
#undef GC_BITS
#undef V
#undef VEC
#undef GC_REGISTERS
#undef MR
#undef MR_3
#undef LOW
#undef NW
#undef DEPTH
#undef STRIPE
#undef STRIPE_SIZE
#undef PREFETCH_NEXT
#undef FETCH_BYTES
#undef PAIR_BYTES
#undef WIDE
#undef NR
#undef NV
#undef PANEL
#undef STREAM_FENCE

/* What a kernel returns, and the types of its elements. */
#ifndef GC_STATUS_H
#define GC_STATUS_H

#include <stddef.h>
#include <stdint.h>

/* After GC_STOPPED, which only a kernel of more than a moment can return, what it was to write is of no use, and what it was to
 * add to is spoilt. */
enum { GC_OK = 0, GC_NOMEM = 1, GC_STOPPED = 2 };
enum { GC_F32 = 0, GC_F64 = 1, GC_F16 = 2 }; /* GC_F16 has no kernels: norms and clipping take it as doubles */

#endif

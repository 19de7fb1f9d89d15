/* Rows of arrays. */
#ifndef GC_ROWS_H
#define GC_ROWS_H

#include "base/status.h"

/* to[to_at[i]] = from[from_at[i]] for n rows of so many bytes; an index that is NULL stands for i, `from` NULL for zeros. */
int gc_copy_rows(ptrdiff_t n, size_t size, const void *from, const ptrdiff_t *from_at, void *to, const ptrdiff_t *to_at);

#endif

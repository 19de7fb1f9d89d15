/* Normalization of rows (layer norm, RMS norm) and of columns (batch norm), and its gradients. Part of gradcore.h, whose
 * conventions hold.
 *
 * Rows: xhat = (x - mean) / sqrt(var + eps) over the F elements of each row, y = xhat w + b; RMS norm has no mean, and the mean
 * square in place of var. Columns: the same over the N elements of each column. Means and variances are made in float64,
 * from differences to a first mean, so that a large mean costs no digits. */
#ifndef GC_NORMALIZATION_H
#define GC_NORMALIZATION_H

#include "base/status.h"

typedef struct gc_row_norm {
    int threads, centered;  /* at most so many; whether the mean is taken off */
    ptrdiff_t N, F;         /* rows, elements of each */
    double eps;             /* forward only */
    const void *x, *w, *b;  /* (N, F), (F,), (F,); w and b are NULL for ones and zeros; b is not read backward */
    void *y;                /* (N, F); forward only */
    double *mean, *rstd;    /* (N,) means, not touched unless centered, and 1 / sqrt(var + eps): forward writes, backward reads */
    const void *dy;         /* (N, F); backward only, as all below */
    void *dx, *dw, *db;     /* (N, F) overwritten; (F,) added to, or NULL */
    void *work;             /* scratch, `row_work` bytes, 64-byte aligned; backward only */
} gc_row_norm;

typedef struct gc_column_norm {
    int threads, given;     /* at most so many; whether forward reads mean and var, in place of taking those of x */
    ptrdiff_t N, F;         /* rows, columns */
    double eps;
    const void *x, *w, *b;  /* as above */
    void *y;                /* (N, F); forward only */
    double *mean, *var;     /* (F,) of each column, the sum of squares over N; backward reads what forward has written */
    const void *dy;         /* (N, F); NULL forward */
    void *dx, *dw, *db;     /* as above */
    void *work;             /* scratch, `column_work` bytes, 64-byte aligned */
} gc_column_norm;

typedef struct gc_normalization_kernels {
    int (*row_forward)(const gc_row_norm *);
    size_t (*row_work)(const gc_row_norm *);
    int (*row_backward)(const gc_row_norm *);
    size_t (*column_work)(const gc_column_norm *); /* for the forward pass, or with dy set for the backward pass */
    int (*column_forward)(const gc_column_norm *);
    int (*column_backward)(const gc_column_norm *);
} gc_normalization_kernels;

#endif

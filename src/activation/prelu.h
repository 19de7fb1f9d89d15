/* The rectifier whose slope below zero is learned. Part of gradcore.h, whose conventions hold. */
#ifndef GC_PRELU_H
#define GC_PRELU_H

#include "base/status.h"

/* y = x > 0 ? x : w x. */
typedef struct gc_prelu {
    int threads;
    ptrdiff_t n, C;  /* elements, and slopes: one for all, or one for each of the last axis, which n is a multiple of */
    const void *x;   /* (n,) */
    const void *w;   /* (C,) */
    void *y;         /* (n,) forward only */
    const void *dy;  /* (n,); NULL forward */
    void *dx;        /* (n,) */
    void *dw;        /* (C,) added to */
    void *work;      /* scratch, `work` bytes, 64-byte aligned; backward only */
} gc_prelu;

typedef struct gc_prelu_kernels {
    size_t (*work)(const gc_prelu *);
    int (*run)(const gc_prelu *); /* forward, or with dy set backward */
} gc_prelu_kernels;

#endif

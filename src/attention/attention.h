/* Attention of many heads among the steps of each sequence, and its gradients. Part of gradcore.h, whose conventions hold. */
#ifndef GC_ATTENTION_H
#define GC_ATTENTION_H

#include "base/status.h"

/* For each sequence and head, with a row of Q, K, V for each step: Y = softmax(Q K^T / sqrt(D)) V. The logits are made block
 * by block and never stored. Step t of sequence b is row first[b] + t * step of the arrays. */
typedef struct gc_attention {
    int threads;              /* at most so many; fixed from `work` to the call that it is for */
    int causal;               /* a step sees itself and those before it; else all of its sequence */
    ptrdiff_t S, B;           /* rows, sequences */
    ptrdiff_t heads, D;       /* D features of each head */
    const ptrdiff_t *first;   /* (B,) */
    const ptrdiff_t *lengths; /* (B,) steps */
    ptrdiff_t step;
    const void *qkv;          /* (S, 3, heads, D): query, key, value */
    void *y;                  /* (S, heads, D); written forward, read backward */
    void *largest, *sum;      /* (S, heads): each query's largest logit, and the sum of exp(logit - largest); likewise */
    const void *dy;           /* (S, heads, D); NULL forward */
    void *dqkv;               /* (S, 3, heads, D); overwritten where a row is a step's */
    void *work;               /* scratch, `work` bytes, 64-byte aligned */
} gc_attention;

typedef struct gc_attention_kernels {
    size_t (*work)(const gc_attention *); /* for the forward pass, or with dy set for the backward pass */
    int (*forward)(const gc_attention *);
    int (*backward)(const gc_attention *);
} gc_attention_kernels;

#endif

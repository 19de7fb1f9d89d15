# Fills gc_attention from arrays. Shapes and meanings: attention.h.

cdef int fill_attention(gc_attention *s, tuple steps, cnp.ndarray qkv, cnp.ndarray y, cnp.ndarray largest,
                        cnp.ndarray total, bint write) except -1:
    """What forward and backward share; returns the row of the table. steps is (first, lengths, step, heads, causal)."""
    cdef int real = real_of(qkv)
    cdef cnp.ndarray first = steps[0], lengths = steps[1]
    cdef Py_ssize_t b
    s.threads = gc_get_num_threads()
    s.step, s.heads, s.causal = steps[2], steps[3], steps[4]
    s.B, s.S = cnp.PyArray_SIZE(lengths), cnp.PyArray_DIM(y, 0)
    s.D = cnp.PyArray_DIM(y, 1) // s.heads
    s.first = <const Py_ssize_t *> typed_pointer(first, cnp.NPY_INTP, s.B, False)
    s.lengths = <const Py_ssize_t *> typed_pointer(lengths, cnp.NPY_INTP, s.B, False)
    for b in range(s.B):
        if s.lengths[b] < 0 or s.first[b] < 0 or (
                s.lengths[b] and s.first[b] + (s.lengths[b] - 1) * s.step >= s.S) or s.step < 1:
            raise ValueError("kernel argument: steps beyond the rows")
    s.qkv = pointer(qkv, real, 3 * s.S * s.heads * s.D, False)
    s.y = pointer(y, real, s.S * s.heads * s.D, write)
    s.largest = pointer(largest, real, s.S * s.heads, write)
    s.sum = pointer(total, real, s.S * s.heads, write)
    s.dy, s.dqkv, s.work = NULL, NULL, NULL
    return real


def attention_forward(tuple steps, qkv, y, largest, total, take):
    """Writes y, largest and total. take(n) lends n bytes of scratch."""
    cdef gc_attention s
    cdef int real = fill_attention(&s, steps, qkv, y, largest, total, True)
    cdef size_t n = TABLE.real[real].attention.work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].attention.forward(&s))
    return work


def attention_backward(tuple steps, qkv, y, largest, total, dy, dqkv, take):
    """Writes dqkv. take(n) lends n bytes of scratch."""
    cdef gc_attention s
    cdef int real = fill_attention(&s, steps, qkv, y, largest, total, False)
    s.dy = pointer(dy, real, s.S * s.heads * s.D, False)
    s.dqkv = pointer(dqkv, real, 3 * s.S * s.heads * s.D, True)
    cdef size_t n = TABLE.real[real].attention.work(&s)
    work = take(n)
    s.work = typed_pointer(work, cnp.NPY_UINT8, n, True)
    with nogil:
        checked(TABLE.real[real].attention.backward(&s))
    return work

# Fills gc_embedding from arrays. Shapes and meanings: embedding.h.

def embedding_backward(cnp.ndarray at not None, Py_ssize_t skip, cnp.ndarray dy not None, cnp.ndarray dw not None):
    """Adds the rows of dy to those of dw that `at` numbers."""
    cdef gc_embedding s
    cdef int real = real_of(dw)
    s.threads, s.skip = gc_get_num_threads(), skip
    s.N, s.E = cnp.PyArray_SIZE(at), cnp.PyArray_DIM(dw, 1)
    s.at = row_numbers(at, dw)
    s.dy = pointer(dy, real, s.N * s.E, False)
    s.dw = pointer(dw, real, 0, True)
    with nogil:
        checked(TABLE.real[real].embedding.backward(&s))

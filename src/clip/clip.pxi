# Lists of arrays as spans. Meanings: spans.h, clip.h.
from libc.math cimport INFINITY, NAN
from libc.stdlib cimport free, malloc, qsort


ctypedef struct extent:
    const char *low
    const char *high


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef const char *x = (<const extent *> a).low
    cdef const char *y = (<const extent *> b).low
    return (x > y) - (x < y)


cdef extent extent_of(cnp.ndarray a) noexcept:
    """The first byte of an array and the one after its last, whatever its strides."""
    cdef extent e
    cdef Py_ssize_t reach
    cdef int axis
    e.low = e.high = <const char *> cnp.PyArray_DATA(a)
    if cnp.PyArray_SIZE(a) == 0:
        return e
    e.high += cnp.PyArray_ITEMSIZE(a)
    for axis in range(cnp.PyArray_NDIM(a)):
        reach = (cnp.PyArray_DIM(a, axis) - 1) * cnp.PyArray_STRIDE(a, axis)
        if reach < 0:
            e.low += reach
        else:
            e.high += reach
    return e


def bounds(cnp.ndarray a):
    """The addresses of an array's first byte and of the one after its last."""
    cdef extent e = extent_of(a)
    return <size_t> e.low, <size_t> e.high


def plain(list arrays, bint write):
    """Whether the kernels can work on all of them as they are: contiguous float arrays without overlap."""
    cdef Py_ssize_t n = len(arrays), i
    cdef cnp.ndarray a
    cdef bint good = True
    cdef extent *extents = <extent *> malloc(max(n, 1) * sizeof(extent))
    if extents == NULL:
        raise MemoryError
    for i in range(n):
        item = arrays[i]
        if not cnp.PyArray_CheckExact(item):
            good = False
            break
        a = item
        if (not cnp.PyArray_ISCARRAY_RO(a)
                or cnp.PyArray_TYPE(a) not in (cnp.NPY_FLOAT16, cnp.NPY_FLOAT32, cnp.NPY_FLOAT64)
                or (write and not cnp.PyArray_ISWRITEABLE(a))):
            good = False
            break
        extents[i] = extent_of(a)
    if good:
        qsort(extents, n, sizeof(extent), by_address)
        for i in range(n - 1):
            if extents[i].high > extents[i + 1].low and extents[i + 1].high > extents[i + 1].low:
                good = False
                break
    free(extents)
    return good


cdef gc_span *spans_of(list arrays, bint write, bint halves) except NULL:
    """To be freed by the caller. Arrays of float16 are refused unless `halves`."""
    cdef Py_ssize_t n = len(arrays), i
    cdef int operand
    cdef bint half
    cdef cnp.ndarray a
    cdef gc_span *spans = <gc_span *> malloc(max(n, 1) * sizeof(gc_span))
    if spans == NULL:
        raise MemoryError
    try:
        for i in range(n):
            a = arrays[i]
            half = halves and cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT16
            spans[i].real = GC_F16 if half else real_of(a)
            spans[i].n = cnp.PyArray_SIZE(a)
            for operand in range(GC_OPERANDS):
                spans[i].data[operand] = NULL
            if half:
                spans[i].data[GC_GRAD] = typed_pointer(a, cnp.NPY_FLOAT16, spans[i].n, write)
            else:
                spans[i].data[GC_GRAD] = pointer(a, spans[i].real, spans[i].n, write)
    except BaseException:
        free(spans)
        raise
    gc_number_blocks(spans, n)
    return spans


def norm(list arrays, double p):
    """(root, unit, n_nan, n_inf, worst_array, worst) of the list, and (n, 4): each array's norm, that of its finite
    entries alone, and the latter's root and unit."""
    cdef Py_ssize_t n = len(arrays), i
    cdef gc_norm total
    cdef int status
    cdef cnp.npy_intp[2] shape
    shape[0], shape[1] = n, 4
    cdef cnp.ndarray each = cnp.PyArray_EMPTY(2, shape, cnp.NPY_FLOAT64, 0)
    cdef double *out = <double *> cnp.PyArray_DATA(each)
    cdef gc_span *spans = spans_of(arrays, False, True)
    cdef gc_norm *found = <gc_norm *> malloc(max(n, 1) * sizeof(gc_norm))
    if found == NULL:
        free(spans)
        raise MemoryError
    with nogil:
        status = gc_clip_measure(TABLE, spans, n, p, found, &total)
        if status == GC_OK:
            for i in range(n):
                out[4 * i + 1] = found[i].root * found[i].unit
                out[4 * i] = NAN if found[i].n_nan else INFINITY if found[i].n_inf else out[4 * i + 1]
                out[4 * i + 2], out[4 * i + 3] = found[i].root, found[i].unit
    free(found)
    free(spans)
    if status == GC_NOMEM:
        raise MemoryError
    checked(status)
    return total.root, total.unit, total.n_nan, total.n_inf, total.worst_array, total.worst, each


def scale(list arrays, cnp.ndarray factors):
    """Multiplies the entries of each array by its two factors of (n, 2), in place; what is not finite becomes 0."""
    cdef Py_ssize_t n = len(arrays)
    cdef const double *pairs = <const double *> pointer(factors, GC_F64, 2 * n, False)
    cdef gc_span *spans = spans_of(arrays, True, True)
    with nogil:
        gc_clip_scale(TABLE, spans, n, pairs)
    free(spans)


def clamp(list arrays, double limit):
    """Limits every entry to [-limit, limit], in place."""
    cdef Py_ssize_t n = len(arrays)
    cdef gc_span *spans = spans_of(arrays, True, True)
    with nogil:
        gc_clip_clamp(TABLE, spans, n, limit)
    free(spans)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True
"""The one extension module: arrays in, kernels run with the GIL released, a status turned into an exception. No policy.

Every function takes arrays that its caller has checked; what is checked here again is only what memory safety needs.
The functions of a subject are in <subject>/<subject>.pxi.
"""
import os
import threading

cimport numpy as cnp
from c_kernels cimport *

cnp.import_array()

cdef const gc_table *TABLE = NULL


def _select():
    global TABLE
    cdef char supported[64]
    wanted = os.environ.get("GRADCORE_ISA", "").encode()
    TABLE = gc_select(wanted, supported, sizeof(supported))
    if TABLE is NULL:
        choices = (<bytes> supported).decode() or "none (it lacks SSE4.2)"
        raise ImportError(f"GRADCORE_ISA={wanted.decode()}: this processor and this build support {choices}")


_select()


def isa():
    """The name of the instruction set in use."""
    return TABLE.isa.decode()


def has_openmp():
    return bool(gc_has_openmp())


def set_num_threads(int n):
    gc_set_num_threads(n)


def get_num_threads():
    return gc_get_num_threads()


def multiply_adds(dtype, Py_ssize_t n):
    """Multiply-adds made in n rounds of nothing else on all threads."""
    cdef int real = GC_F32 if dtype == "float32" else GC_F64
    cdef double made
    with nogil:
        made = TABLE.real[real].multiply_adds(gc_get_num_threads(), n)
    return made


cdef extern from *:
    """
    /* -1, which says that an exception is set, where Python's handler of a signal had raised one. */
    static int gc_checked(int status) { return status == GC_STOPPED ? -1 : status; }
    """
    int checked "gc_checked"(int status) except -1 nogil

    int PyErr_CheckSignals() noexcept
    unsigned long PyThread_get_thread_ident() nogil

cdef unsigned long main_thread = threading.main_thread().ident


def _forked():
    """The thread that has forked is the main one of the child."""
    global main_thread
    main_thread = PyThread_get_thread_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


cdef int asked() noexcept nogil:
    """Whether a signal has come whose handler raises, as that of Ctrl-C does. Python hands them to its main thread."""
    if PyThread_get_thread_ident() != main_thread:
        return 0
    with gil:
        return PyErr_CheckSignals() != 0


gc_set_ask(asked)


def together(list calls):
    """Makes the calls; Python handles no signal between two of them if neither is Python code."""
    for call in calls:
        call()


cdef int real_of(cnp.ndarray a) except -1:
    """GC_F32 or GC_F64, the row of the table for this array."""
    cdef int t = cnp.PyArray_TYPE(a)
    if t == cnp.NPY_FLOAT32:
        return GC_F32
    if t == cnp.NPY_FLOAT64:
        return GC_F64
    raise TypeError(f"expected float32 or float64, got {a.dtype}")


cdef void *pointer(cnp.ndarray a, int real, Py_ssize_t size, bint write) except? NULL:
    """The data of a C-contiguous, aligned, native array of at least `size` elements; NULL for None."""
    if a is None:
        return NULL
    cdef int want = cnp.NPY_FLOAT32 if real == GC_F32 else cnp.NPY_FLOAT64
    return typed_pointer(a, want, size, write)


cdef void *typed_pointer(cnp.ndarray a, int typenum, Py_ssize_t size, bint write) except? NULL:
    if (cnp.PyArray_TYPE(a) != typenum or not cnp.PyArray_ISCARRAY_RO(a) or cnp.PyArray_SIZE(a) < size
            or (write and not cnp.PyArray_ISWRITEABLE(a))):
        raise ValueError(
            f"kernel argument: expected at least {size} contiguous elements, got {a.dtype} {(<object> a).shape}")
    return cnp.PyArray_DATA(a)


include "recurrent/recurrent.pxi"
include "jacobian/jacobian.pxi"
include "linear/linear.pxi"
include "activation/activation.pxi"
include "activation/prelu.pxi"
include "dropout/dropout.pxi"
include "attention/attention.pxi"
include "embedding/embedding.pxi"
include "normalization/normalization.pxi"
include "residual/residual.pxi"
include "pooling/pooling.pxi"
include "clip/clip.pxi"
include "optim/optim.pxi"

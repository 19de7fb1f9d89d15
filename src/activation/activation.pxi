# Fills gc_activation from arrays. Shapes and meanings: activation.h.

IDENTITY, TANH, SIGMOID, RELU = GC_IDENTITY, GC_TANH, GC_SIGMOID, GC_RELU
LEAKY_RELU, ELU, GELU, GELU_TANH = GC_LEAKY_RELU, GC_ELU, GC_GELU, GC_GELU_TANH
SOFTPLUS, SILU = GC_SOFTPLUS, GC_SILU


cdef int run_activation(int kind, double p, double q, cnp.ndarray given, cnp.ndarray dy, cnp.ndarray out) except -1:
    """Forward where dy is None."""
    cdef gc_activation s
    cdef int real = real_of(given)
    s.kind, s.threads, s.n, s.p, s.q = kind, gc_get_num_threads(), cnp.PyArray_SIZE(given), p, q
    s.input = pointer(given, real, s.n, False)
    s.dy = pointer(dy, real, s.n, False)
    s.out = pointer(out, real, s.n, True)
    with nogil:
        checked(TABLE.real[real].activation.run(&s))
    return 0


def activation_forward(int kind, double p, double q, cnp.ndarray x not None, cnp.ndarray y not None):
    """Writes y."""
    run_activation(kind, p, q, x, None, y)


def activation_backward(int kind, double p, double q, cnp.ndarray kept not None, cnp.ndarray dy not None,
                        cnp.ndarray dx not None):
    """Writes dx."""
    run_activation(kind, p, q, kept, dy, dx)

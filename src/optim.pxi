# Fills gc_update and spans. Meanings: gradcore.h.

SGD, ADAM, RMSPROP, ADAGRAD, SPAM = GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD, GC_SPAM


def update(int rule, double factor0, double factor1, list grads, list params,
           *, list mean=None, list square=None, list extra=None, double l2=0, double l1=0, double shrink=1, double step,
           double keep_mean=0, double take_mean=0, double keep_square=0, double take_square=0, double eps=0,
           double root=1, double now=0, double past=0, double momentum=0, double threshold=0, dict counts=None):
    """One step, in place; adds to counts["n_spikes"], unless it is None, how many were cut.

    mean, square and extra hold an array for each parameter, or are None where the rule has no use for them.
    """
    cdef gc_update u
    cdef gc_span *spans
    cdef Py_ssize_t n = len(grads), i, spikes
    cdef int operand
    if rule != GC_SGD and square is None or rule in (GC_ADAM, GC_SPAM) and mean is None:
        raise ValueError("kernel argument: the rule needs more state")
    u.rule, u.l2, u.l1, u.shrink, u.step = rule, l2, l1, shrink, step
    u.factor[0], u.factor[1] = factor0, factor1
    u.keep_mean, u.take_mean, u.keep_square, u.take_square = keep_mean, take_mean, keep_square, take_square
    u.eps, u.root, u.now, u.past, u.momentum, u.threshold = eps, root, now, past, momentum, threshold
    spans = spans_of(grads, False, False)
    try:
        for operand, arrays in ((GC_PARAM, params), (GC_MEAN, mean), (GC_SQUARE, square), (GC_EXTRA, extra)):
            if arrays is None:
                continue
            if len(arrays) != n:
                raise ValueError("kernel argument: one array is needed for each gradient")
            for i in range(n):
                spans[i].data[operand] = pointer(arrays[i], spans[i].real, spans[i].n, True)
        with nogil:
            spikes = gc_optim_update(TABLE, spans, n, &u)
    finally:
        free(spans)
    if counts is not None:
        counts["n_spikes"] += spikes

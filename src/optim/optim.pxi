# Fills gc_update and spans. Meanings: optim.h.

SGD, ADAM, RMSPROP, ADAGRAD, SPAM = GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD, GC_SPAM


cdef class Update:
    """One step of some arrays. Nothing that may fail is left for `run`, so that all groups take theirs or none does.

    mean, square and extra hold an array for each parameter, or are None where the rule has no use for them.
    """
    cdef gc_update u
    cdef gc_span *spans
    cdef Py_ssize_t n
    cdef tuple lent  # whose memory the spans are of

    def __cinit__(self, int rule, list grads, list params,
                  *, list mean=None, list square=None, list extra=None, double l2=0, double l1=0, double shrink=1,
                  double step, double keep_mean=0, double take_mean=0, double keep_square=0, double take_square=0,
                  double eps=0, double root=1, double now=0, double past=0, double momentum=0, double threshold=0):
        cdef gc_update *u = &self.u
        cdef Py_ssize_t i
        cdef int operand
        if rule != GC_SGD and square is None or rule in (GC_ADAM, GC_SPAM) and mean is None:
            raise ValueError("kernel argument: the rule needs more state")
        u.rule, u.l2, u.l1, u.shrink, u.step = rule, l2, l1, shrink, step
        u.keep_mean, u.take_mean, u.keep_square, u.take_square = keep_mean, take_mean, keep_square, take_square
        u.eps, u.root, u.now, u.past, u.momentum, u.threshold = eps, root, now, past, momentum, threshold
        self.n, self.lent = len(grads), (grads, params, mean, square, extra)
        self.spans = spans_of(grads, False, False)
        for operand, arrays in ((GC_PARAM, params), (GC_MEAN, mean), (GC_SQUARE, square), (GC_EXTRA, extra)):
            if arrays is None:
                continue
            if len(arrays) != self.n:
                raise ValueError("kernel argument: one array is needed for each gradient")
            for i in range(self.n):
                self.spans[i].data[operand] = pointer(arrays[i], self.spans[i].real, self.spans[i].n, True)

    def __dealloc__(self):
        free(self.spans)

    def run(self, double factor0, double factor1, dict counts=None):
        """Updates in place, with the gradients times the factors; counts["n_spikes"] grows by those that were cut."""
        cdef Py_ssize_t spikes
        self.u.factor[0], self.u.factor[1] = factor0, factor1
        with nogil:
            spikes = gc_optim_update(TABLE, self.spans, self.n, &self.u)
        if counts is not None:
            counts["n_spikes"] += spikes

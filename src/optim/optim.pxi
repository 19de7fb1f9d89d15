# Fills gc_update and spans. Meanings: optim.h.

SGD, ADAM, RMSPROP, ADAGRAD = GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD
SPAM, NADAM, LION, AVERAGE = GC_SPAM, GC_NADAM, GC_LION, GC_AVERAGE

# The numbers of gc_update, as they are where a rule says nothing of them; of `step` every rule does.
_RATES = {
    "step": 0.0, "shrink": 1.0, "l2": 0.0, "l1": 0.0, "keep_mean": 0.0, "take_mean": 0.0, "keep_square": 0.0,
    "take_square": 0.0, "eps": 0.0, "root": 1.0, "now": 0.0, "past": 0.0, "momentum": 0.0, "threshold": 0.0,
}


cdef class Update:
    """One step of some arrays. Nothing that may fail is left for `run`, so that all groups take theirs or none does.

    moments holds an array for each parameter under "mean", "square" and "extra", as far as the rule uses them.
    """
    cdef gc_update u
    cdef gc_span *spans
    cdef readonly Py_ssize_t n  # of arrays
    cdef tuple lent  # whose memory the spans are of

    def __cinit__(self, int rule, list grads, list params, dict moments, dict rates):
        cdef gc_update *u = &self.u
        cdef Py_ssize_t i
        cdef int operand
        cdef list mean = moments.get("mean"), square = moments.get("square"), extra = moments.get("extra")
        if rule not in (GC_SGD, GC_LION, GC_AVERAGE) and square is None:
            raise ValueError("kernel argument: the rule needs more state")
        if rule in (GC_ADAM, GC_SPAM, GC_NADAM, GC_LION) and mean is None:
            raise ValueError("kernel argument: the rule needs more state")
        cdef dict its = _RATES | rates
        if len(its) > len(_RATES):
            raise ValueError(f"kernel argument: expected the rates {', '.join(_RATES)}, got {', '.join(rates)}")
        u.rule, u.step, u.shrink, u.l2, u.l1 = rule, its["step"], its["shrink"], its["l2"], its["l1"]
        u.keep_mean, u.take_mean = its["keep_mean"], its["take_mean"]
        u.keep_square, u.take_square = its["keep_square"], its["take_square"]
        u.eps, u.root, u.now, u.past = its["eps"], its["root"], its["now"], its["past"]
        u.momentum, u.threshold = its["momentum"], its["threshold"]
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

    def run(self, double factor0, double factor1, double bound, dict counts=None):
        """Updates in place, with the gradients times the factors; counts["n_spikes"] grows by those that were cut."""
        cdef Py_ssize_t spikes
        self.u.factor[0], self.u.factor[1], self.u.bound = factor0, factor1, bound
        with nogil:
            spikes = gc_optim_update(TABLE, self.spans, self.n, &self.u)
        if counts is not None:
            counts["n_spikes"] += spikes

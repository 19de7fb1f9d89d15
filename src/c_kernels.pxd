# What gradcore.h declares, and nothing else.

cdef extern from "gradcore.h" nogil:
    enum:
        GC_OK, GC_NOMEM
        GC_F32, GC_F64
        GC_RNN_TANH, GC_RNN_RELU, GC_LSTM, GC_GRU

    ctypedef struct gc_recurrent:
        int cell, reverse, threads
        Py_ssize_t T, B, F, H
        const Py_ssize_t *offsets
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *x
        void *y
        Py_ssize_t ld_y
        void *h
        void *c
        void *gates
        void *h_in
        void *c_in
        const void *dy
        void *dh
        void *dc
        void *dx
        int dx_adds
        void *dw_ih
        void *dw_hh
        void *db_ih
        void *db_hh
        double step_clip
        double *dh_norm
        double *dc_norm
        void *work

    enum:
        GC_IDENTITY, GC_TANH, GC_SIGMOID, GC_RELU, GC_LEAKY_RELU, GC_ELU, GC_GELU, GC_GELU_TANH, GC_SOFTPLUS

    ctypedef struct gc_linear:
        int threads
        Py_ssize_t N, F, O
        const void *x
        const void *w
        const void *b
        void *y
        const void *dy
        void *dx
        void *dw
        void *db
        void *work

    ctypedef struct gc_kernels:
        size_t (*recurrent_forward_work)(const gc_recurrent *) noexcept nogil
        size_t (*recurrent_backward_work)(const gc_recurrent *) noexcept nogil
        void (*recurrent_forward)(const gc_recurrent *) noexcept nogil
        void (*recurrent_backward)(const gc_recurrent *) noexcept nogil
        size_t (*linear_work)(const gc_linear *) noexcept nogil
        void (*linear_forward)(const gc_linear *) noexcept nogil
        void (*linear_backward)(const gc_linear *) noexcept nogil
        void (*activation_forward)(int threads, int kind, Py_ssize_t n, double p, double q, const void *x,
                                   void *y) noexcept nogil
        void (*activation_backward)(int threads, int kind, Py_ssize_t n, double p, double q, const void *kept,
                                    const void *dy, void *dx) noexcept nogil

    ctypedef struct gc_table:
        const char *isa
        gc_kernels real[2]

    const gc_table *gc_select(const char *wanted, char *supported)
    void gc_set_num_threads(int n)
    int gc_get_num_threads()
    int gc_has_openmp()

# What gradcore.h declares, and nothing else.

from libc.stdint cimport uint64_t

cdef extern from "gradcore.h" nogil:
    enum:
        GC_OK, GC_NOMEM, GC_STOPPED
        GC_F32, GC_F64, GC_F16
        GC_CELLS

    ctypedef struct gc_cell:
        const char *name
        int G, K
        int first_gate
        int D
        bint has_c
        bint bypass

    const gc_cell gc_cells[]

    ctypedef struct gc_recurrent_norm:
        const void *ih
        const void *hh
        const void *c
        const void *c_bias
        void *kept
        void *d_ih
        void *d_hh
        void *d_c
        void *d_c_bias

    ctypedef struct gc_zoneout:
        double p
        int mean
        unsigned long long key

    ctypedef struct gc_recurrent:
        int cell, reverse, threads
        Py_ssize_t T, B, F, H
        const Py_ssize_t *offsets
        const void *w_ih
        const void *w_hh
        const void *b_ih
        const void *b_hh
        const void *x
        gc_recurrent_norm norm
        gc_zoneout zoneout
        const void *mask
        void *h_met
        void *y
        Py_ssize_t ld_y
        const Py_ssize_t *y_at
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

    ctypedef struct gc_tape:
        int cell
        Py_ssize_t H
        const void *gates
        const void *h_in
        const void *c_in
        gc_recurrent_norm norm
        gc_zoneout zoneout

    enum:
        GC_NORMED, GC_ZONED, GC_MASKED

    Py_ssize_t gc_jacobian_rows(int cell, int beside)

    ctypedef struct gc_jacobian:
        int cell, beside, transposed, threads
        Py_ssize_t H, B, m, steps
        const double *factors
        const double *packed
        double *v
        double *log_norm
        double *work

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

    ctypedef struct gc_linear_kernels:
        size_t (*work)(const gc_linear *) noexcept nogil
        int (*forward)(const gc_linear *) noexcept nogil
        int (*backward)(const gc_linear *) noexcept nogil

    enum:
        GC_IDENTITY, GC_TANH, GC_SIGMOID, GC_RELU, GC_LEAKY_RELU, GC_ELU, GC_GELU, GC_GELU_TANH, GC_SOFTPLUS, GC_SILU

    ctypedef struct gc_activation:
        int kind, threads
        Py_ssize_t n
        double p, q
        const void *input "in"
        const void *dy
        void *out

    ctypedef struct gc_activation_kernels:
        int (*run)(const gc_activation *) noexcept nogil

    ctypedef struct gc_prelu:
        int threads
        Py_ssize_t n, C
        const void *x
        const void *w
        void *y
        const void *dy
        void *dx
        void *dw
        void *work

    ctypedef struct gc_prelu_kernels:
        size_t (*work)(const gc_prelu *) noexcept nogil
        int (*run)(const gc_prelu *) noexcept nogil

    ctypedef struct gc_dropout:
        int threads
        Py_ssize_t n
        uint64_t key
        double p
        const void *input "in"
        void *out

    ctypedef struct gc_dropout_kernels:
        int (*run)(const gc_dropout *) noexcept nogil

    ctypedef struct gc_attention:
        int threads, causal
        Py_ssize_t S, B
        Py_ssize_t heads, D
        const Py_ssize_t *first
        const Py_ssize_t *lengths
        Py_ssize_t step
        const void *qkv
        void *y
        void *largest
        void *sum
        const void *dy
        void *dqkv
        void *work

    ctypedef struct gc_attention_kernels:
        size_t (*work)(const gc_attention *) noexcept nogil
        int (*forward)(const gc_attention *) noexcept nogil
        int (*backward)(const gc_attention *) noexcept nogil
    ctypedef struct gc_mean:
        int threads, batch_first
        Py_ssize_t T, B, F
        const Py_ssize_t *lengths
        const void *x
        void *y
        const void *dy
        void *dx

    ctypedef struct gc_pooling_kernels:
        int (*mean)(const gc_mean *) noexcept nogil

    ctypedef struct gc_embedding:
        int threads
        Py_ssize_t N, E
        const Py_ssize_t *at
        Py_ssize_t skip
        const void *dy
        void *dw

    ctypedef struct gc_embedding_kernels:
        int (*backward)(const gc_embedding *) noexcept nogil

    ctypedef struct gc_row_norm:
        int threads, centered
        Py_ssize_t N, F
        double eps
        const void *x
        const void *w
        const void *b
        void *y
        double *mean
        double *rstd
        const void *dy
        void *dx
        void *dw
        void *db
        void *work

    ctypedef struct gc_column_norm:
        int threads, given
        Py_ssize_t N, F
        double eps
        const void *x
        const void *w
        const void *b
        void *y
        double *mean
        double *var
        const void *dy
        void *dx
        void *dw
        void *db
        void *work

    ctypedef struct gc_normalization_kernels:
        int (*row_forward)(const gc_row_norm *) noexcept nogil
        size_t (*row_work)(const gc_row_norm *) noexcept nogil
        int (*row_backward)(const gc_row_norm *) noexcept nogil
        size_t (*column_work)(const gc_column_norm *) noexcept nogil
        int (*column_forward)(const gc_column_norm *) noexcept nogil
        int (*column_backward)(const gc_column_norm *) noexcept nogil

    ctypedef struct gc_residual:
        int threads
        Py_ssize_t n
        double scale
        const void *a
        const void *b
        void *out

    ctypedef struct gc_residual_kernels:
        int (*add)(const gc_residual *) noexcept nogil

    Py_ssize_t gc_row(Py_ssize_t n, size_t real_size)

    ctypedef struct gc_recurrent_kernels:
        size_t (*forward_work)(const gc_recurrent *) noexcept nogil
        size_t (*backward_work)(const gc_recurrent *) noexcept nogil
        int (*forward)(const gc_recurrent *) noexcept nogil
        int (*backward)(const gc_recurrent *) noexcept nogil
        Py_ssize_t (*norm_row)(int cell, Py_ssize_t H) noexcept nogil

    ctypedef struct gc_jacobian_kernels:
        size_t (*packed)(int cell, int transposed, Py_ssize_t H, const double *w_hh, double *packed) noexcept nogil
        size_t (*work)(const gc_jacobian *) noexcept nogil
        int (*product)(const gc_jacobian *) noexcept nogil
        int (*separate)(int threads, Py_ssize_t B, Py_ssize_t k, Py_ssize_t n, double *v, double *logs,
                        Py_ssize_t *pivots) noexcept nogil

    ctypedef struct gc_kernels:
        Py_ssize_t lanes
        const gc_recurrent_kernels *recurrent
        int (*jacobian_factors)(int threads, const gc_tape *tape, int masked, Py_ssize_t n, const Py_ssize_t *rows,
                                double *factors) noexcept nogil
        const gc_linear_kernels *linear
        const gc_activation_kernels *activation
        const gc_prelu_kernels *prelu
        const gc_dropout_kernels *dropout
        const gc_attention_kernels *attention
        const gc_embedding_kernels *embedding
        const gc_normalization_kernels *normalization
        const gc_residual_kernels *residual
        const gc_pooling_kernels *pooling
        double (*multiply_adds)(int threads, Py_ssize_t n) noexcept nogil

    enum:
        GC_GRAD, GC_PARAM, GC_MEAN, GC_SQUARE, GC_EXTRA, GC_OPERANDS
        GC_SGD, GC_ADAM, GC_RMSPROP, GC_ADAGRAD, GC_SPAM, GC_NADAM, GC_LION, GC_AVERAGE

    ctypedef struct gc_span:
        void *data[5]
        Py_ssize_t n
        int real

    ctypedef struct gc_norm:
        double root, unit, largest
        Py_ssize_t n_nan, n_inf
        Py_ssize_t worst, worst_array

    ctypedef struct gc_update:
        int rule
        double factor[2]
        double bound
        double l2, l1, shrink, step
        double keep_mean, take_mean, keep_square, take_square
        double eps, root
        double now, past
        double momentum
        double threshold

    ctypedef struct gc_table:
        const char *isa
        gc_kernels real[2]
        const gc_jacobian_kernels *jacobian

    const gc_table *gc_select(const char *wanted, char *supported, size_t size)
    void gc_set_num_threads(int n)
    int gc_get_num_threads()
    int gc_has_openmp()
    void gc_set_ask(int (*ask)() noexcept nogil)

    int gc_copy_rows(Py_ssize_t n, size_t size, const void *source, const Py_ssize_t *source_at, void *to,
                     const Py_ssize_t *to_at)

    void gc_number_blocks(gc_span *spans, Py_ssize_t n)
    int gc_clip_measure(const gc_table *, const gc_span *spans, Py_ssize_t n, double p, gc_norm *arrays, gc_norm *all)
    void gc_clip_scale(const gc_table *, const gc_span *spans, Py_ssize_t n, const double *factors)
    void gc_clip_clamp(const gc_table *, const gc_span *spans, Py_ssize_t n, double limit)
    Py_ssize_t gc_optim_update(const gc_table *, const gc_span *spans, Py_ssize_t n, const gc_update *)

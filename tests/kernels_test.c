/* The kernels without Python, for processors that have none here, and for sanitizers: every cell forward and backward and its
 * Jacobians against plain loops and their central differences, linear layers, activations and normalization, the norm of a list of arrays
 * and its scaling, two optimizers. tests/test_c.py has the commands. */
#define _POSIX_C_SOURCE 200112L /* posix_memalign */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gradcore.h"

/* Three sequences of 4, 3 and 1 steps; H fills no vector of any instruction set. */
enum { T = 4, B = 3, H = 19, S = 8 };
static int F; /* features of the input: few and more have kernels of their own */
static const ptrdiff_t OFFSETS[T + 1] = {0, 3, 5, 7, 8};

enum { W_IH, W_HH, B_IH, B_HH, X, H0, C0, PARTS };
static const char *const NAMES[PARTS] = {"backward: w_ih", "backward: w_hh", "backward: b_ih", "backward: b_hh",
                                          "backward: x",    "backward: h",    "backward: c"};

static int failures;

static double random_number(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / (1 << 23) - 1;
}

/* Not a byte more than asked for: what is read or written behind it is seen by a sanitizer. */
static void *zeros(ptrdiff_t n, size_t size)
{
    void *array;
#ifdef _WIN32
    if (!(array = _aligned_malloc((size_t)n * size + 1, 64))) exit(2);
#else
    if (posix_memalign(&array, 64, (size_t)n * size)) exit(2);
#endif
    memset(array, 0, (size_t)n * size);
    return array;
}

static void release(void *array)
{
#ifdef _WIN32
    _aligned_free(array);
#else
    free(array);
#endif
}

static double get(int real, const void *a, ptrdiff_t i) { return real == GC_F32 ? ((const float *)a)[i] : ((const double *)a)[i]; }

static void *typed(int real, const double *from, ptrdiff_t n)
{
    void *a = zeros(n, real == GC_F32 ? 4 : 8);
    for (ptrdiff_t i = 0; i < n; i++)
        if (real == GC_F32)
            ((float *)a)[i] = (float)from[i];
        else
            ((double *)a)[i] = from[i];
    return a;
}

static void check(const char *isa, int real, const char *what, const char *part, double error, double norm)
{
    const double limit = real == GC_F32 ? 1e-5 : 1e-8; /* the differences have 1e-10 */
    if (error <= limit * norm) return;
    printf("%s float%d %s: %s is off by %g of %g\n", isa, real == GC_F32 ? 32 : 64, what, part, error, norm);
    failures++;
}

/* Compares n elements with what they should be. */
static void compare(const char *isa, int real, const char *what, const char *part, const void *got, const double *want,
                    ptrdiff_t n)
{
    double error = 0, norm = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        error += pow(get(real, got, i) - want[i], 2);
        norm += want[i] * want[i];
    }
    check(isa, real, what, part, sqrt(error), sqrt(norm));
}

static double logistic(double a) { return 1 / (1 + exp(-a)); }

/* One step of one sequence, by the formulas. */
static void plain_step(int cell, double *const in[PARTS], const double *x, double h[H], double c[H])
{
    double a[4 * H], u[4 * H];
    for (int m = 0; m < gc_cells[cell].G * H; m++) {
        a[m] = in[B_IH][m];
        u[m] = in[B_HH][m];
        for (int f = 0; f < F; f++) a[m] += in[W_IH][m * F + f] * x[f];
        for (int k = 0; k < H; k++) u[m] += in[W_HH][m * H + k] * h[k];
    }
    for (int k = 0; k < H; k++) {
        if (cell == GC_LSTM) {
            c[k] = logistic(a[H + k] + u[H + k]) * c[k] + logistic(a[k] + u[k]) * tanh(a[2 * H + k] + u[2 * H + k]);
            h[k] = logistic(a[3 * H + k] + u[3 * H + k]) * tanh(c[k]);
        } else if (cell == GC_GRU) {
            const double n = tanh(a[2 * H + k] + logistic(a[k] + u[k]) * u[2 * H + k]), z = logistic(a[H + k] + u[H + k]);
            h[k] = (1 - z) * n + z * h[k];
        } else {
            h[k] = cell == GC_RNN_TANH ? tanh(a[k] + u[k]) : fmax(0, a[k] + u[k]);
        }
    }
}

/* y, h and c of the whole batch; returns y . dy + h . dh + c . dc. */
static double plain_forward(int cell, double *const in[PARTS], double *y, double *h, double *c, const double *dy,
                            const double *dh, const double *dc)
{
    double loss = 0;
    memcpy(h, in[H0], B * H * sizeof *h);
    memcpy(c, in[C0], B * H * sizeof *c);
    for (int t = 0; t < T; t++)
        for (ptrdiff_t row = OFFSETS[t]; row < OFFSETS[t + 1]; row++) {
            const ptrdiff_t b = row - OFFSETS[t];
            plain_step(cell, in, in[X] + row * F, h + b * H, c + b * H);
            memcpy(y + row * H, h + b * H, H * sizeof *h);
        }
    for (int i = 0; i < S * H; i++) loss += y[i] * dy[i];
    for (int i = 0; i < B * H; i++) loss += h[i] * dh[i] + (gc_cells[cell].has_c ? c[i] * dc[i] : 0);
    return loss;
}

/* The Jacobian of the first step of the first sequence, whose tape this is: times a vector, and transposed. */
static void test_jacobian(const gc_table *table, int real, const gc_recurrent *tape, double *const in[PARTS])
{
    const int cell = tape->cell, P = 1 + gc_cells[cell].has_c, D = gc_cells[cell].D;
    const gc_tape kept = {.cell = cell, .H = H, .gates = tape->gates, .h_in = tape->h_in, .c_in = tape->c_in};
    const ptrdiff_t row = 0;
    double *factors = zeros(D * H, 8), v[2 * H], u[2 * H], both[2] = {0, 0}, norm = 0, want[2 * H], *moved[2];
    table->real[real].jacobian_factors(1, &kept, 0, 1, &row, factors);
    for (int i = 0; i < P * H; i++) v[i] = random_number(), u[i] = random_number();
    for (int transposed = 0; transposed < 2; transposed++) {
        double *packed = zeros((ptrdiff_t)table->jacobian->packed(cell, transposed, H, NULL, NULL), 8);
        table->jacobian->packed(cell, transposed, H, in[W_HH], packed);
        gc_jacobian s = {.cell = cell, .transposed = transposed, .threads = 1, .H = H, .B = 1, .m = 1, .steps = 1};
        s.factors = factors, s.packed = packed, moved[transposed] = s.v = zeros(P * H, 8);
        memcpy(s.v, transposed ? u : v, (size_t)(P * H) * 8);
        s.work = zeros((ptrdiff_t)table->jacobian->work(&s), 1);
        table->jacobian->product(&s);
        release(packed), release(s.work);
    }
    for (int sign = 1; sign >= -1; sign -= 2) {
        const double step = 1e-5;
        double h[H], c[H];
        for (int k = 0; k < H; k++) {
            h[k] = in[H0][k] + sign * step * v[k];
            c[k] = in[C0][k] + (P == 2 ? sign * step * v[H + k] : 0);
        }
        plain_step(cell, in, in[X], h, c);
        for (int i = 0; i < P * H; i++)
            want[i] = sign > 0 ? (i < H ? h[i] : c[i - H]) : (want[i] - (i < H ? h[i] : c[i - H])) / (2 * step);
    }
    for (int i = 0; i < P * H; i++) {
        both[0] += u[i] * moved[0][i];
        both[1] += v[i] * moved[1][i];
        norm += fabs(u[i] * want[i]);
        check(table->isa, real, gc_cells[cell].name, "jacobian: J v", fabs(moved[0][i] - want[i]), 1);
    }
    check(table->isa, GC_F64, gc_cells[cell].name, "jacobian: u J v both ways", fabs(both[0] - both[1]), norm);
    release(factors), release(moved[0]), release(moved[1]);
}

static void test_cell(const gc_table *table, int real, int cell)
{
    const gc_kernels *kernels = &table->real[real];
    const size_t size = real == GC_F32 ? 4 : 8;
    const char *name = gc_cells[cell].name;
    const int has_c = gc_cells[cell].has_c;
    const ptrdiff_t G = gc_cells[cell].G, lanes = kernels->lanes, padded = (H + lanes - 1) / lanes * lanes;
    const ptrdiff_t gates_row = gc_row(gc_cells[cell].K * padded, size), state_row = gc_row(padded, size);
    const ptrdiff_t n[PARTS] = {G * H * F, G * H * H, G * H, G * H, S * F, B * H, B * H};
    const int parts = has_c ? PARTS : C0;
    double *in[PARTS], dy[S * H], dstate[2][B * H], y[S * H], h[B * H], c[B * H];
    void *given[PARTS], *found[PARTS];
    for (int part = 0; part < PARTS; part++) {
        in[part] = zeros(n[part], sizeof(double));
        for (ptrdiff_t i = 0; i < n[part]; i++) in[part][i] = (float)(random_number() * (part == W_HH ? 0.4 : 1));
        given[part] = typed(real, in[part], n[part]);
        found[part] = zeros(n[part], size);
    }
    for (int i = 0; i < S * H; i++) dy[i] = (float)random_number();
    for (int i = 0; i < 2 * B * H; i++) dstate[i / (B * H)][i % (B * H)] = (float)random_number();
    release(found[H0]), release(found[C0]);
    found[H0] = typed(real, dstate[0], B * H);
    found[C0] = typed(real, dstate[1], B * H);

    gc_recurrent s = {.cell = cell, .threads = 1, .T = T, .B = B, .F = F, .H = H, .offsets = OFFSETS, .ld_y = H};
    s.w_ih = given[W_IH], s.w_hh = given[W_HH], s.b_ih = given[B_IH], s.b_hh = given[B_HH], s.x = given[X];
    s.h = given[H0], s.c = has_c ? given[C0] : NULL;
    s.y = zeros(S * H, size), s.gates = zeros(S * gates_row, size), s.h_in = zeros(S * state_row, size);
    s.c_in = has_c ? zeros(S * state_row, size) : NULL;
    s.work = zeros((ptrdiff_t)kernels->recurrent->forward_work(&s), 1);
    kernels->recurrent->forward(&s);
    release(s.work);

    plain_forward(cell, in, y, h, c, dy, dstate[0], dstate[1]);
    compare(table->isa, real, name, "forward: y", s.y, y, S * H);
    compare(table->isa, real, name, "forward: the final h", s.h, h, B * H);
    if (s.c) compare(table->isa, real, name, "forward: the final c", s.c, c, B * H);
    test_jacobian(table, real, &s, in);

    double norms[S], largest = 0;
    s.dy = typed(real, dy, S * H), s.dh = found[H0], s.dc = has_c ? found[C0] : NULL, s.dx = found[X];
    s.dw_ih = found[W_IH], s.dw_hh = found[W_HH], s.db_ih = found[B_IH], s.db_hh = found[B_HH];
    s.step_clip = INFINITY, s.dh_norm = norms;
    s.work = zeros((ptrdiff_t)kernels->recurrent->backward_work(&s), 1);
    kernels->recurrent->backward(&s);
    for (int row = 0; row < S; row++) largest = fmax(largest, norms[row]);
    if (!(largest > 0 && largest < INFINITY)) check(table->isa, real, name, "backward: dh_norm", largest, 0);

    for (int part = 0; part < parts; part++) {
        double *want = zeros(n[part], sizeof(double));
        for (ptrdiff_t i = 0; i < n[part]; i++) {
            const double kept = in[part][i], step = 1e-5;
            in[part][i] = kept + step;
            want[i] = plain_forward(cell, in, y, h, c, dy, dstate[0], dstate[1]);
            in[part][i] = kept - step;
            want[i] = (want[i] - plain_forward(cell, in, y, h, c, dy, dstate[0], dstate[1])) / (2 * step);
            in[part][i] = kept;
        }
        compare(table->isa, real, name, NAMES[part], found[part], want, n[part]);
        release(want);
    }

    void *const own[] = {s.y, s.gates, s.h_in, s.c_in, (void *)s.dy, s.work};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) release(own[i]);
    for (int part = 0; part < PARTS; part++) release(in[part]), release(given[part]), release(found[part]);
}

static void test_linear(const gc_table *table, int real)
{
    enum { N = 37, IN = 9, OUT = 21 };
    const gc_kernels *kernels = &table->real[real];
    const size_t size = real == GC_F32 ? 4 : 8;
    double x[N * IN], w[OUT * IN], b[OUT], dy[N * OUT], y[N * OUT], dx[N * IN] = {0}, dw[OUT * IN] = {0}, db[OUT] = {0};
    double *const filled[] = {x, w, b, dy};
    const int sizes[] = {N * IN, OUT * IN, OUT, N * OUT};
    for (int a = 0; a < 4; a++)
        for (int i = 0; i < sizes[a]; i++) filled[a][i] = (float)random_number();
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OUT; o++) {
            y[n * OUT + o] = b[o];
            db[o] += dy[n * OUT + o];
            for (int i = 0; i < IN; i++) {
                y[n * OUT + o] += x[n * IN + i] * w[o * IN + i];
                dx[n * IN + i] += dy[n * OUT + o] * w[o * IN + i];
                dw[o * IN + i] += dy[n * OUT + o] * x[n * IN + i];
            }
        }
    gc_linear s = {.threads = 1, .N = N, .F = IN, .O = OUT};
    s.x = typed(real, x, N * IN), s.w = typed(real, w, OUT * IN), s.b = typed(real, b, OUT), s.y = zeros(N * OUT, size);
    s.work = zeros((ptrdiff_t)kernels->linear->work(&s), 1);
    kernels->linear->forward(&s);
    release(s.work);
    s.dy = typed(real, dy, N * OUT), s.dx = zeros(N * IN, size), s.dw = zeros(OUT * IN, size), s.db = zeros(OUT, size);
    s.work = zeros((ptrdiff_t)kernels->linear->work(&s), 1);
    kernels->linear->backward(&s);
    compare(table->isa, real, "linear", "y", s.y, y, N * OUT);
    compare(table->isa, real, "linear", "dx", s.dx, dx, N * IN);
    compare(table->isa, real, "linear", "dw", s.dw, dw, OUT * IN);
    compare(table->isa, real, "linear", "db", s.db, db, OUT);
    void *const own[] = {(void *)s.x, (void *)s.w, (void *)s.b, s.y, s.work, (void *)s.dy, s.dx, s.dw, s.db};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) release(own[i]);
}

/* More rows than memory has bytes, of nothing: nobody counts them. */
static void test_empty_linear(const gc_table *table, int real)
{
    gc_linear s = {.threads = 2, .N = (ptrdiff_t)1 << 60};
    s.x = s.w = s.y = zeros(1, 8), s.work = zeros((ptrdiff_t)table->real[real].linear->work(&s) + 1, 1);
    table->real[real].linear->forward(&s);
    release(s.y), release(s.work);
}

static void activation(const gc_table *table, int real, gc_activation s, const void *in, const void *dy, void *out)
{
    s.in = in, s.dy = dy, s.out = out;
    if (table->real[real].activation->run(&s) != GC_OK) exit(2);
}

/* Of the rows, or of the columns, of which each is a sequence of its own in y and dy: dx against central differences of the
 * values, which for float32 are those in double. */
static void test_norm(const gc_table *table, int real, int columns)
{
    enum { N = 21, W = 37 };
    const double step = 1e-5, eps = 0.1;
    double x[N * W], w[W], b[W], dy[N * W], *moved = zeros(N * W, 8), *y = zeros(N * W, 8), want[N * W], at[2];
    double *mean = zeros(N + W, 8), *second = zeros(N + W, 8), dw[W] = {0}, db[W] = {0};
    const char *what = columns ? "norm of columns" : "norm of rows";
    for (int i = 0; i < N * W; i++) x[i] = (float)(3 * random_number()), dy[i] = (float)random_number();
    for (int i = 0; i < W; i++) w[i] = (float)random_number(), b[i] = (float)random_number();
    gc_row_norm r = {.threads = 1, .centered = 1, .N = N, .F = W, .eps = eps, .x = moved, .w = w, .b = b, .y = y, .mean = mean};
    gc_column_norm c = {.threads = 1, .N = N, .F = W, .eps = eps, .x = moved, .w = w, .b = b, .y = y, .mean = mean};
    r.rstd = c.var = second;
    const gc_normalization_kernels *exact = table->real[GC_F64].normalization, *kernels = table->real[real].normalization;
    c.work = zeros((ptrdiff_t)exact->column_work(&c), 1);
    for (int i = 0; i < N * W; i++) {
        for (int sign = 0; sign < 2; sign++) {
            memcpy(moved, x, sizeof x);
            moved[i] += sign ? -step : step;
            if ((columns ? exact->column_forward(&c) : exact->row_forward(&r)) != GC_OK) exit(2);
            at[sign] = 0;
            for (int j = 0; j < N * W; j++) at[sign] += y[j] * dy[j];
        }
        want[i] = (at[0] - at[1]) / (2 * step);
    }
    memcpy(moved, x, sizeof x);
    if ((columns ? exact->column_forward(&c) : exact->row_forward(&r)) != GC_OK) exit(2);
    for (int i = 0; i < N * W; i++) db[i % W] += dy[i], dw[i % W] += dy[i] * (y[i] - b[i % W]) / w[i % W];
    release(c.work);

    void *x_ = typed(real, x, N * W), *w_ = typed(real, w, W), *b_ = typed(real, b, W), *dy_ = typed(real, dy, N * W);
    void *y_ = typed(real, x, N * W), *dx_ = typed(real, x, N * W), *dw_ = zeros(W, 8), *db_ = zeros(W, 8), *work;
    r.x = c.x = x_, r.w = c.w = w_, r.b = c.b = b_, r.y = c.y = y_;
    c.work = work = zeros((ptrdiff_t)kernels->column_work(&c), 1);
    if ((columns ? kernels->column_forward(&c) : kernels->row_forward(&r)) != GC_OK) exit(2);
    release(work);
    r.dy = c.dy = dy_, r.dx = c.dx = dx_, r.dw = c.dw = dw_, r.db = c.db = db_;
    r.work = c.work = work = zeros((ptrdiff_t)(columns ? kernels->column_work(&c) : kernels->row_work(&r)), 1);
    if ((columns ? kernels->column_backward(&c) : kernels->row_backward(&r)) != GC_OK) exit(2);
    compare(table->isa, real, what, "y", y_, y, N * W);
    compare(table->isa, real, what, "dx", dx_, want, N * W);
    compare(table->isa, real, what, "dw", dw_, dw, W);
    compare(table->isa, real, what, "db", db_, db, W);
    void *const own[] = {moved, y, mean, second, x_, w_, b_, dy_, y_, dx_, dw_, db_, work};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) release(own[i]);
}

/* Each derivative against central differences of the values, which for float32 are those in double. */
static void test_activation(const gc_table *table, int real, int kind)
{
    enum { N = 37 };
    const int keeps_y = kind == GC_TANH || kind == GC_SIGMOID || kind == GC_RELU;
    const gc_activation s = {.kind = kind, .threads = 1, .n = N, .p = 0.5, .q = kind == GC_SOFTPLUS ? 20 : 1};
    const double step = 1e-5;
    double x[N], dy[N], *moved[2], *y = zeros(N, 8), want[N];
    char what[32];
    snprintf(what, sizeof what, "activation %d", kind);
    for (int i = 0; i < N; i++) x[i] = (float)(3 * random_number()), dy[i] = (float)random_number();
    activation(table, GC_F64, s, x, NULL, y);
    for (int sign = 0; sign < 2; sign++) {
        moved[sign] = zeros(N, 8);
        for (int i = 0; i < N; i++) moved[sign][i] = x[i] + (sign ? -step : step);
        activation(table, GC_F64, s, moved[sign], NULL, moved[sign]);
    }
    for (int i = 0; i < N; i++) want[i] = dy[i] * (moved[0][i] - moved[1][i]) / (2 * step);
    void *given = typed(real, x, N), *out = typed(real, x, N), *d = typed(real, dy, N), *dx = typed(real, dy, N);
    activation(table, real, s, given, NULL, out);
    activation(table, real, s, keeps_y ? out : given, d, dx);
    compare(table->isa, real, what, "y", out, y, N);
    compare(table->isa, real, what, "dx", dx, want, N);
    release(y), release(moved[0]), release(moved[1]), release(given), release(out), release(d), release(dx);
}

/* A step of SGD and one of Adam for two parameters, one of them longer than a block. */
static void test_optimizers(const gc_table *table, int real)
{
    const int sizes[2] = {GC_BLOCK + 37, 5};
    for (int run = 0; run < 2 * (GC_ADAM + 1); run++) {
        const int rule = run / 2, tame = run % 2;
        gc_span spans[2];
        double *values[2][GC_OPERANDS] = {{NULL}};
        for (int a = 0; a < 2; a++) {
            spans[a] = (gc_span){.n = sizes[a], .real = real};
            for (int k = GC_GRAD; k <= (rule == GC_SGD ? GC_PARAM : GC_SQUARE); k++) {
                values[a][k] = zeros(sizes[a], 8);
                for (int i = 0; i < sizes[a]; i++) values[a][k][i] = (float)fabs(random_number());
                spans[a].data[k] = typed(real, values[a][k], sizes[a]);
            }
        }
        gc_update u = {.rule = rule, .factor = {tame ? 0.5 : 1, tame ? 1 : 0.5}, .bound = tame ? 100 : INFINITY, .shrink = 1, .step = 0.25, .keep_mean = 0.5, .take_mean = 0.5,
                       .keep_square = 0.75, .take_square = 0.25, .eps = 0.125, .root = 1, .now = 1};
        gc_number_blocks(spans, 2);
        gc_optim_update(table, spans, 2, &u);
        for (int a = 0; a < 2; a++) {
            double *p = values[a][GC_PARAM], *m = values[a][GC_MEAN], *v = values[a][GC_SQUARE];
            for (int i = 0; i < sizes[a]; i++) {
                const double g = values[a][GC_GRAD][i] / 2;
                if (rule == GC_ADAM) {
                    m[i] = 0.5 * m[i] + 0.5 * g, v[i] = 0.75 * v[i] + 0.25 * g * g;
                    p[i] -= 0.25 * m[i] / (sqrt(v[i]) + 0.125);
                } else {
                    p[i] -= 0.25 * g;
                }
            }
            compare(table->isa, real, rule == GC_SGD ? "SGD" : "Adam", "a parameter", spans[a].data[GC_PARAM], p, sizes[a]);
            for (int k = 0; k < GC_OPERANDS; k++) release(values[a][k]), release(spans[a].data[k]);
        }
    }
}

/* ln det(a a^T) for a (k, n) */
static double log_gram(ptrdiff_t k, ptrdiff_t n, const double *a)
{
    double *gram = zeros(k * k, 8), sum = 0;
    for (ptrdiff_t i = 0; i < k; i++)
        for (ptrdiff_t j = 0; j < k; j++)
            for (ptrdiff_t m = 0; m < n; m++) gram[i * k + j] += a[i * n + m] * a[j * n + m];
    for (ptrdiff_t i = 0; i < k; i++) {
        sum += log(gram[i * k + i]);
        for (ptrdiff_t r = i + 1; r < k; r++)
            for (ptrdiff_t j = k - 1; j >= i; j--) gram[r * k + j] -= gram[r * k + i] / gram[i * k + i] * gram[i * k + j];
    }
    release(gram);
    return sum;
}

/* v = R q: the volume that its rows span is that of q's times the diagonal of R. */
static void test_separation(const gc_table *table, int orthonormal)
{
    enum { SAMPLES = 2, K = 7 };
    double *v = zeros(SAMPLES * K * H, 8), *q = zeros(SAMPLES * K * H, 8), *logs = zeros(SAMPLES * K, 8);
    ptrdiff_t *pivots = orthonormal ? NULL : zeros(SAMPLES * K, sizeof(ptrdiff_t));
    for (int i = 0; i < SAMPLES * K * H; i++) q[i] = v[i] = random_number();
    if (table->jacobian->separate(1, SAMPLES, K, H, q, logs, pivots) != GC_OK) exit(2);
    for (int b = 0; b < SAMPLES; b++) {
        const double want = log_gram(K, H, v + b * K * H), after = log_gram(K, H, q + b * K * H);
        double got = after;
        for (int r = 0; r < K; r++) got += 2 * logs[b * K + r];
        check(table->isa, GC_F64, "separation", "the volume", fabs(got - want), fabs(want));
        if (orthonormal) check(table->isa, GC_F64, "separation", "the volume of orthonormal rows", fabs(after), 1);
    }
    release(v), release(q), release(logs), release(pivots);
}

/* Two arrays, of which one has entries whose squares are not representable; then all of it halved. */
static void test_clip(const gc_table *table)
{
    enum { N = 5000 };
    double *large = zeros(N, 8), got, want = 0;
    float *small = zeros(7, 4);
    for (int i = 0; i < N; i++) {
        large[i] = random_number() * 1e200;
        want += pow(large[i] / 1e200, 2);
    }
    for (int i = 0; i < 7; i++) small[i] = (float)random_number();
    gc_span spans[2] = {{.data = {large}, .n = N, .real = GC_F64}, {.data = {small}, .n = 7, .real = GC_F32}};
    gc_norm arrays[2], all;
    const double factors[4] = {0.5, 1, 0.5, 1}, first = large[0];
    gc_number_blocks(spans, 2);
    if (gc_clip_measure(table, spans, 2, 2, arrays, &all) != GC_OK) exit(2);
    got = all.root * all.unit / 1e200;
    check(table->isa, GC_F64, "norm", "that of two arrays", fabs(got - sqrt(want)), sqrt(want));
    got = arrays[1].root * arrays[1].unit, want = 0;
    for (int i = 0; i < 7; i++) want += (double)small[i] * small[i];
    check(table->isa, GC_F32, "norm", "that of the second array", fabs(got - sqrt(want)), sqrt(want));
    gc_clip_scale(table, spans, 2, factors);
    check(table->isa, GC_F64, "norm", "a scaled entry", fabs(large[0] - first / 2), fabs(first) / 2);
    large[4321] = NAN;
    gc_clip_measure(table, spans, 2, 2, arrays, &all);
    if (all.n_nan != 1 || all.worst_array != 0 || all.worst != 4321)
        check(table->isa, GC_F64, "norm", "the place of a NaN", (double)all.worst, 0);
    release(large), release(small);
}

/* ---- the floating-point mode ------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <xmmintrin.h>
static void flush_to_zero(int on) { _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u); }
#elif defined(__aarch64__)
static void flush_to_zero(int on)
{
    unsigned long long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(on ? mode | 1ull << 24 : mode & ~(1ull << 24)));
}
#else
#define NO_MODE
#endif

#ifndef NO_MODE
static int flushes(void)
{
    volatile float tiny = 1e-40f, one = 1;
    return tiny * one == 0;
}

static int flushed_when_asked;
static int ask(void)
{
    flushed_when_asked = flushes();
    return 1;
}

static void look_at_mode(void *arg, gc_team *team, int thread)
{
    atomic_int *n_flushing = arg;
    atomic_fetch_add(n_flushing, flushes());
    while (!gc_stopped(team, thread)) {}
}

/* Every thread flushes, or none where the kernel is exact, whatever the caller does, who keeps what it has; and it is in the
 * caller's mode that gc_set_ask's function is called. */
static void test_modes(void)
{
    gc_set_ask(ask);
    for (int own = 0; own < 2; own++)
        for (int how = 0; how <= GC_EXACT; how++) {
            atomic_int n_flushing = 0;
            flush_to_zero(own);
            const int status = gc_parallel(1, how, look_at_mode, &n_flushing), after = flushes();
            flush_to_zero(0);
            if (status != GC_STOPPED || n_flushing != !how || after != own || flushed_when_asked != own) {
                printf("flush to zero: caller %d, how %d: kernel %d, handler %d, afterwards %d\n", own, how, n_flushing,
                       flushed_when_asked, after);
                failures++;
            }
        }
    gc_set_ask(NULL);
}
#else
static void test_modes(void) {}
#endif

int main(void)
{
    char supported[64], list[64];
    gc_select(NULL, supported, sizeof supported);
    strcpy(list, supported);
    for (char *isa = strtok(list, ", "); isa; isa = strtok(NULL, ", ")) {
        const gc_table *table = gc_select(isa, supported, sizeof supported);
        for (int real = GC_F32; real <= GC_F64; real++) {
            for (int cell = 0; cell < GC_CELLS; cell++)
                for (F = 2; F <= 9; F += 7) test_cell(table, real, cell);
            for (int kind = GC_IDENTITY; kind <= GC_SILU; kind++) test_activation(table, real, kind);
            test_linear(table, real);
            test_empty_linear(table, real);
            for (int columns = 0; columns < 2; columns++) test_norm(table, real, columns);
            test_optimizers(table, real);
        }
        test_separation(table, 0);
        test_separation(table, 1);
        test_clip(table);
        printf("%s: %d elements of float32 in a vector\n", isa, (int)table->real[GC_F32].lanes);
    }
    test_modes();
    if (failures) printf("%d failures\n", failures);
    return failures > 0;
}

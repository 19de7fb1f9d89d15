/* The kernels in random shapes: recurrent, linear and normalizing layers and attention against a reference in double, written
 * from the formulas and from nothing in src/; activations, lists of arrays and Jacobians for what must hold of them. Whatever
 * the number of threads, the bits are the same. Arrays begin at any element, end where they end, and hold NaN until they are
 * written, or what MemorySanitizer knows not to be set.
 *
 * kernels_fuzz [rounds [seed]] prints a hash of all outputs: the same before and after a change that is to change nothing.
 * tests/test_c.py has the commands. */
#define _POSIX_C_SOURCE 200112L /* posix_memalign */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gradcore.h"

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define UNSET(p, bytes) __msan_poison(p, bytes)
#endif
#endif
#ifndef UNSET
#define UNSET(p, bytes) ((void)0)
#endif

enum { MOST_THREADS = 8 };

static const gc_table *table;
static int real; /* GC_F32 or GC_F64: of the arrays that are tested */
static int failures;
static char subject[300];

static void fail(const char *what, double got, double limit)
{
    printf("%s: %s: %g, not %g\n", subject, what, got, limit);
    if (++failures == 20) exit(1);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------------- */

static uint64_t state = 88172645463325252u;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static int between(int least, int most) { return least + (int)(draw() % (uint64_t)(most - least + 1)); }
static int one_in(int n) { return between(1, n) == 1; }
static double uniform(void) { return (double)(draw() >> 11) / (double)(1ull << 52) - 1; } /* [-1, 1) */

/* ---- arrays ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    void *base, *p;
    size_t bytes;
} array;

static array allocated(size_t bytes, size_t offset)
{
    array a = {.bytes = bytes};
#ifdef _WIN32
    if (!(a.base = _aligned_malloc(offset + bytes + 1, 64))) exit(2);
#else
    if (posix_memalign(&a.base, 64, offset + bytes)) exit(2);
#endif
    a.p = (char *)a.base + offset;
    memset(a.p, 0xff, bytes); /* NaN */
    return a;
}

static void release(array a)
{
#ifdef _WIN32
    _aligned_free(a.base);
#else
    free(a.base);
#endif
}

static array marked(ptrdiff_t n, size_t size) { return allocated((size_t)n * size, size * (size_t)between(0, 3)); }

/* To be written before it is read. */
static array unset(ptrdiff_t n, size_t size)
{
    const array a = marked(n, size);
    UNSET(a.p, a.bytes);
    return a;
}

static array scratch(size_t bytes)
{
    const array a = allocated(bytes, 0);
    UNSET(a.p, a.bytes);
    return a;
}

static size_t real_size(void) { return real == GC_F32 ? 4 : 8; }
static double get(array a, ptrdiff_t i) { return real == GC_F32 ? ((const float *)a.p)[i] : ((const double *)a.p)[i]; }

static void put(array a, ptrdiff_t i, double x)
{
    if (real == GC_F32)
        ((float *)a.p)[i] = (float)x;
    else
        ((double *)a.p)[i] = x;
}

static array typed(const double *from, ptrdiff_t n)
{
    const array a = marked(n, real_size());
    for (ptrdiff_t i = 0; i < n; i++) put(a, i, from[i]);
    return a;
}

static array blank(ptrdiff_t n)
{
    const array a = marked(n, real_size());
    memset(a.p, 0, a.bytes);
    return a;
}

static double *zeros(ptrdiff_t n)
{
    double *a = calloc((size_t)n + 1, sizeof *a);
    if (!a) exit(2);
    return a;
}

/* Exact in float32, so that both types have the same problem. */
static double *uniforms(ptrdiff_t n, double scale)
{
    double *a = zeros(n);
    for (ptrdiff_t i = 0; i < n; i++) a[i] = (float)(scale * uniform());
    return a;
}

/* ---- outputs ----------------------------------------------------------------------------------------------------------- */

static uint64_t hash = 1469598103934665603u;

static void check(const char *what, double error, double norm, double limit)
{
    if (!(error <= limit * (norm + 1e-3))) fail(what, error / (norm + 1e-3), limit);
}

static void compare(const char *what, array got, const double *want, ptrdiff_t n, double limit)
{
    double error = 0, norm = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        error += pow(get(got, i) - want[i], 2);
        norm += want[i] * want[i];
    }
    check(what, sqrt(error), sqrt(norm), limit);
}

/* What the runs with other numbers of threads must find as well. */
typedef struct {
    int n, run;
    array kept[20];
} outputs;

static void output(outputs *all, int number, array a)
{
    if (!all->run) {
        const unsigned char *byte = a.p;
        for (size_t i = 0; i < a.bytes; i++) hash = (hash ^ byte[i]) * 1099511628211u;
        all->kept[number] = allocated(a.bytes, 0);
        memcpy(all->kept[number].p, a.p, a.bytes);
        all->n = number < all->n ? all->n : number + 1;
    } else if (memcmp(all->kept[number].p, a.p, a.bytes)) {
        fail("other bits with other threads in output", number, -1);
    }
    release(a);
}

static void forget(outputs *all)
{
    for (int i = 0; i < all->n; i++) release(all->kept[i]);
}

/* How many threads each run has. */
static int threads_of(int run) { return run ? between(2, MOST_THREADS) : 1; }

/* ---- recurrent: the reference ------------------------------------------------------------------------------------------- */

enum { W_IH, W_HH, B_IH, B_HH, X, H0, C0, DY, DH, DC, NORM_IH, NORM_HH, NORM_C, NORM_C_BIAS, MASK, PARTS };

typedef struct {
    int cell, G, K, has_c, reverse, bias, T, B, F, H;
    int norm, masked, mean; /* layer norm, recurrent dropout, zoneout as in inference */
    uint64_t key;
    ptrdiff_t S, *offsets;
    double step_clip, zoneout, *in[PARTS];
    ptrdiff_t n[PARTS];
    /* found: what each row's step had, and the results */
    double *gates, *h_in, *c_in; /* (S, 5, H), (S, H), (S, H) */
    double *y, *h, *c, *dh, *dc, *dx, *dw_ih, *dw_hh, *db_ih, *db_hh, *dh_norm, *dc_norm;
    double *normed[3], *scale[3]; /* of the products with x and h and of c: (S, G*H) or (S, H), and (S,) */
    double *d_gain[4];            /* by NORM_IH, NORM_HH, NORM_C, NORM_C_BIAS */
} problem;

/* Threefry-4x32 of twelve rounds: word number `word` of a counter. */
static uint32_t threefry(uint64_t key, uint64_t counter, int word)
{
    static const int turns[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
    uint32_t k[5] = {(uint32_t)key, (uint32_t)(key >> 32)}, x[4] = {(uint32_t)counter, (uint32_t)(counter >> 32)};
    k[4] = 0x1BD11BDAu ^ k[0] ^ k[1];
    for (int i = 0; i < 4; i++) x[i] += k[i];
    for (int round = 0; round < 12; round++) {
        for (int half = 0; half < 2; half++) {
            const int a = 2 * half, b = round % 2 ? 3 - a : a + 1, turn = turns[round % 8][half];
            x[a] += x[b];
            x[b] = (x[b] << turn | x[b] >> (32 - turn)) ^ x[a];
        }
        const int s = round / 4 + 1;
        for (int i = 0; i < 4 && round % 4 == 3; i++) x[i] += k[(s + i) % 5] + (i == 3 ? (uint32_t)s : 0);
    }
    return x[word];
}

/* How much of its old value a unit keeps. */
static double kept_part(const problem *p, int part, ptrdiff_t row, int j)
{
    if (p->mean || p->zoneout == 0) return p->zoneout;
    const ptrdiff_t group = (2 * row + part) * ((p->H + 63) / 64) + j / 64;
    return threefry(p->key, (uint64_t)(16 * group + j % 16), j % 64 / 16) < p->zoneout * 4294967296.0;
}

/* Mean 0 and variance 1, in place; returns the factor. */
static double normalize(double *a, int n)
{
    double mean = 0, variance = 0;
    for (int i = 0; i < n; i++) mean += a[i] / n;
    for (int i = 0; i < n; i++) variance += (a[i] - mean) * (a[i] - mean) / n;
    const double scale = 1 / sqrt(variance + 1e-5);
    for (int i = 0; i < n; i++) a[i] = (a[i] - mean) * scale;
    return scale;
}

/* dL/d(normalized) to dL/d(before), in place. */
static void normalize_back(double *d, const double *normed, double scale, int n)
{
    double mean = 0, slope = 0;
    for (int i = 0; i < n; i++) mean += d[i] / n, slope += d[i] * normed[i] / n;
    for (int i = 0; i < n; i++) d[i] = scale * (d[i] - mean - normed[i] * slope);
}

static double sigmoid(double a) { return 1 / (1 + exp(-a)); }

/* From the two products, gates in the order of the weights, to the gates and the state. */
static void plain_step(const problem *p, ptrdiff_t row, const double *a, const double *u, double *h, double *c, double *kept)
{
    const int H = p->H;
    double *shown = p->has_c ? p->normed[2] + row * H : NULL;
    for (int j = 0; j < H && p->cell == GC_LSTM; j++)
        shown[j] = sigmoid(a[H + j] + u[H + j]) * c[j] + sigmoid(a[j] + u[j]) * tanh(a[2 * H + j] + u[2 * H + j]);
    if (p->has_c && p->norm) p->scale[2][row] = normalize(shown, H);
    for (int j = 0; j < H; j++) {
        if (p->cell == GC_LSTM) {
            const double i = sigmoid(a[j] + u[j]), f = sigmoid(a[H + j] + u[H + j]);
            const double g = tanh(a[2 * H + j] + u[2 * H + j]), o = sigmoid(a[3 * H + j] + u[3 * H + j]);
            const double n = p->norm ? p->in[NORM_C][j] * shown[j] + p->in[NORM_C_BIAS][j] : shown[j];
            c[j] = f * c[j] + i * g;
            h[j] = o * tanh(n);
            kept[j] = i, kept[H + j] = f, kept[2 * H + j] = g, kept[3 * H + j] = o, kept[4 * H + j] = tanh(n);
        } else if (p->cell == GC_GRU) {
            const double r = sigmoid(a[j] + u[j]), z = sigmoid(a[H + j] + u[H + j]), q = u[2 * H + j];
            const double n = tanh(a[2 * H + j] + r * q);
            h[j] = (1 - z) * n + z * h[j];
            kept[j] = n, kept[H + j] = r, kept[2 * H + j] = z, kept[3 * H + j] = q;
        } else {
            h[j] = kept[j] = p->cell == GC_RNN_TANH ? tanh(a[j] + u[j]) : fmax(0, a[j] + u[j]);
        }
    }
}

/* From dL/dh and, for LSTM, dL/dc to those of both products; dL/dc becomes that of the state before, `rest` the part of
 * dL/dh_{t-1} that does not pass W_hh. Returns the sum of the squares of dL/dc. */
static double plain_step_back(const problem *p, ptrdiff_t row, const double *kept, const double *h_in, const double *c_in,
                              const double *dh, double *dc, double *da, double *du, double *rest)
{
    const int H = p->H;
    double squares = 0, *through = zeros(H);
    for (int j = 0; j < H && p->has_c; j++) {
        through[j] = dh[j] * kept[3 * H + j] * (1 - kept[4 * H + j] * kept[4 * H + j]);
        if (!p->norm) continue;
        p->d_gain[2][j] += through[j] * p->normed[2][row * H + j];
        p->d_gain[3][j] += through[j];
        through[j] *= p->in[NORM_C][j];
    }
    if (p->has_c && p->norm) normalize_back(through, p->normed[2] + row * H, p->scale[2][row], H);
    for (int j = 0; j < H; j++) {
        const double d = dh[j];
        rest[j] = 0;
        if (p->cell == GC_LSTM) {
            const double i = kept[j], f = kept[H + j], g = kept[2 * H + j], o = kept[3 * H + j], tanh_c = kept[4 * H + j];
            const double e = dc[j] + through[j];
            squares += e * e;
            da[j] = e * g * i * (1 - i), da[H + j] = e * c_in[j] * f * (1 - f);
            da[2 * H + j] = e * i * (1 - g * g), da[3 * H + j] = d * tanh_c * o * (1 - o);
            dc[j] = e * f;
        } else if (p->cell == GC_GRU) {
            const double n = kept[j], r = kept[H + j], z = kept[2 * H + j], q = kept[3 * H + j];
            const double dn = d * (1 - z) * (1 - n * n);
            da[j] = dn * q * r * (1 - r), da[H + j] = d * (h_in[j] - n) * z * (1 - z), da[2 * H + j] = dn;
            rest[j] = d * z;
        } else {
            da[j] = p->cell == GC_RNN_TANH ? d * (1 - kept[j] * kept[j]) : kept[j] > 0 ? d : 0;
        }
    }
    memcpy(du, da, (size_t)(p->G * H) * sizeof *du);
    for (int j = 0; j < H && p->cell == GC_GRU; j++) du[2 * H + j] = da[2 * H + j] * kept[H + j];
    free(through);
    return squares;
}

static void plain_forward(problem *p)
{
    const int F = p->F, H = p->H, GH = p->G * H;
    double *a = zeros(GH), *u = zeros(GH);
    memcpy(p->h, p->in[H0], (size_t)p->n[H0] * sizeof *p->h);
    memcpy(p->c, p->in[C0], (size_t)p->n[C0] * sizeof *p->c);
    for (int i = 0; i < p->T; i++) {
        const int t = p->reverse ? p->T - 1 - i : i;
        for (ptrdiff_t row = p->offsets[t]; row < p->offsets[t + 1]; row++) {
            double *h = p->h + (row - p->offsets[t]) * H, *c = p->c + (row - p->offsets[t]) * H;
            memcpy(p->h_in + row * H, h, (size_t)H * sizeof *h);
            memcpy(p->c_in + row * H, c, (size_t)H * sizeof *c);
            const double *mask = p->masked ? p->in[MASK] + (row - p->offsets[t]) * H : NULL;
            for (int m = 0; m < GH; m++) {
                a[m] = u[m] = 0;
                for (int f = 0; f < F; f++) a[m] += p->in[W_IH][m * F + f] * p->in[X][row * F + f];
                for (int k = 0; k < H; k++) u[m] += p->in[W_HH][m * H + k] * (mask ? mask[k] * h[k] : h[k]);
            }
            for (int which = 0; which < 2 && p->norm; which++) {
                p->scale[which][row] = normalize(which ? u : a, GH);
                memcpy(p->normed[which] + row * GH, which ? u : a, (size_t)GH * sizeof *a);
            }
            for (int m = 0; m < GH; m++) {
                if (p->norm) a[m] *= p->in[NORM_IH][m], u[m] *= p->in[NORM_HH][m];
                if (p->bias) a[m] += p->in[B_IH][m], u[m] += p->in[B_HH][m];
            }
            plain_step(p, row, a, u, h, c, p->gates + row * 5 * H);
            for (int j = 0; j < H; j++) {
                const double k = kept_part(p, 0, row, j), k_c = kept_part(p, 1, row, j);
                h[j] = k * p->h_in[row * H + j] + (1 - k) * h[j];
                c[j] = k_c * p->c_in[row * H + j] + (1 - k_c) * c[j];
            }
            memcpy(p->y + row * H, h, (size_t)H * sizeof *h);
        }
    }
    free(a), free(u);
}

static void plain_backward(problem *p)
{
    const int F = p->F, H = p->H, GH = p->G * H;
    double *da = zeros(GH), *du = zeros(GH), *rest = zeros(H), *kept = zeros(H), *kept_c = zeros(H);
    memcpy(p->dh, p->in[DH], (size_t)p->n[DH] * sizeof *p->dh);
    memcpy(p->dc, p->in[DC], (size_t)p->n[DC] * sizeof *p->dc);
    for (int i = p->T - 1; i >= 0; i--) {
        const int t = p->reverse ? p->T - 1 - i : i;
        for (ptrdiff_t row = p->offsets[t]; row < p->offsets[t + 1]; row++) {
            double *dh = p->dh + (row - p->offsets[t]) * H, *dc = p->dc + (row - p->offsets[t]) * H, squares = 0;
            const double *h_in = p->h_in + row * H;
            for (int j = 0; j < H; j++) dh[j] += p->in[DY][row * H + j], squares += dh[j] * dh[j];
            p->dh_norm[row] = sqrt(squares);
            const double scale = p->dh_norm[row] > p->step_clip ? p->step_clip / p->dh_norm[row] : 1;
            double before = 0;
            for (int j = 0; j < H; j++) {
                dh[j] *= scale;
                before += dc[j] * dc[j];
                kept[j] = kept_part(p, 0, row, j) * dh[j], kept_c[j] = kept_part(p, 1, row, j) * dc[j];
                dh[j] -= kept[j], dc[j] -= kept_c[j];
            }
            squares = plain_step_back(p, row, p->gates + row * 5 * H, h_in, p->c_in + row * H, dh, dc, da, du, rest);
            p->dc_norm[row] = sqrt(p->zoneout > 0 ? before : squares);
            const double *mask = p->masked ? p->in[MASK] + (row - p->offsets[t]) * H : NULL;
            for (int j = 0; j < H; j++) dh[j] = rest[j] + kept[j], dc[j] += kept_c[j];
            for (int m = 0; m < GH; m++) {
                p->db_ih[m] += da[m];
                p->db_hh[m] += du[m];
                if (!p->norm) continue;
                p->d_gain[0][m] += da[m] * p->normed[0][row * GH + m];
                p->d_gain[1][m] += du[m] * p->normed[1][row * GH + m];
                da[m] *= p->in[NORM_IH][m], du[m] *= p->in[NORM_HH][m];
            }
            if (p->norm) normalize_back(da, p->normed[0] + row * GH, p->scale[0][row], GH);
            if (p->norm) normalize_back(du, p->normed[1] + row * GH, p->scale[1][row], GH);
            for (int m = 0; m < GH; m++) {
                for (int f = 0; f < F; f++) {
                    p->dw_ih[m * F + f] += da[m] * p->in[X][row * F + f];
                    p->dx[row * F + f] += da[m] * p->in[W_IH][m * F + f];
                }
                for (int k = 0; k < H; k++) {
                    p->dw_hh[m * H + k] += du[m] * h_in[k] * (mask ? mask[k] : 1);
                    dh[k] += du[m] * p->in[W_HH][m * H + k] * (mask ? mask[k] : 1);
                }
            }
        }
    }
    free(da), free(du), free(rest), free(kept), free(kept_c);
}

/* ---- recurrent ---------------------------------------------------------------------------------------------------------- */

/* Lengths that sort: all equal, any, or some of them full. */
static void draw_lengths(problem *p)
{
    const int kind = between(0, 2);
    p->offsets = malloc((size_t)(p->T + 1) * sizeof *p->offsets);
    if (!p->offsets) exit(2);
    memset(p->offsets, 0, (size_t)(p->T + 1) * sizeof *p->offsets);
    for (int b = 0; b < p->B; b++) {
        const int length = kind == 0 || (kind == 2 && one_in(2)) ? p->T : between(0, p->T);
        for (int t = 0; t < length; t++) p->offsets[t + 1]++; /* how many live at step t */
    }
    for (int t = 0; t < p->T; t++) p->offsets[t + 1] += p->offsets[t];
    p->S = p->offsets[p->T];
}

static problem *draw_problem(int most_units)
{
    problem *p = calloc(1, sizeof *p);
    if (!p) exit(2);
    p->cell = between(GC_RNN_TANH, GC_GRU);
    p->G = p->cell == GC_LSTM ? 4 : p->cell == GC_GRU ? 3 : 1;
    p->K = p->G == 1 ? 1 : 4;
    p->has_c = p->cell == GC_LSTM;
    p->reverse = one_in(2);
    p->bias = !one_in(5);
    p->T = one_in(10) ? between(0, 1) : between(1, 14);
    p->B = one_in(12) ? between(0, 1) : between(1, one_in(2) ? 6 : 24);
    p->F = one_in(3) ? between(1, 5) : between(1, 40);
    p->H = between(1, most_units);
    p->step_clip = one_in(3) ? fabs(uniform()) * 2 : INFINITY;
    p->norm = one_in(3) && p->H >= 16; /* of few numbers the variance may be near to nothing */
    p->zoneout = one_in(4) ? one_in(8) ? 1 : fabs(uniform()) : 0;
    p->mean = one_in(4), p->masked = one_in(4), p->key = draw();
    draw_lengths(p);
    const ptrdiff_t GH = p->G * p->H, state = (ptrdiff_t)p->B * p->H, steps = p->S * p->H;
    const ptrdiff_t n[PARTS] = {GH * p->F, GH * p->H, GH, GH, p->S * p->F, state, state, steps, state, state,
                                GH, GH, p->H, p->H, state};
    for (int part = 0; part < PARTS; part++) {
        p->n[part] = n[part];
        p->in[part] = uniforms(n[part], part == W_HH ? 1.5 / sqrt(p->H) : part == W_IH ? 1.5 / sqrt(p->F) : 1);
    }
    for (ptrdiff_t i = 0; i < n[MASK]; i++) p->in[MASK][i] = p->in[MASK][i] < 0 ? 0 : 1.25;
    for (int i = 0; i < 3; i++) p->normed[i] = zeros(i < 2 ? p->S * GH : steps), p->scale[i] = zeros(p->S);
    for (int i = 0; i < 4; i++) p->d_gain[i] = zeros(n[NORM_IH + i]);
    p->gates = zeros(5 * steps), p->h_in = zeros(steps), p->c_in = zeros(steps), p->y = zeros(steps);
    p->h = zeros(state), p->c = zeros(state), p->dh = zeros(state), p->dc = zeros(state);
    p->dx = zeros(n[X]), p->dw_ih = zeros(n[W_IH]), p->dw_hh = zeros(n[W_HH]), p->db_ih = zeros(GH), p->db_hh = zeros(GH);
    p->dh_norm = zeros(p->S), p->dc_norm = zeros(p->S);
    plain_forward(p);
    plain_backward(p);
    snprintf(subject, sizeof subject, "%s float%d, cell %d, T %d, B %d, F %d, H %d, S %d%s%s%s%s, zoneout %g, step_clip %g", table->isa,
             real == GC_F32 ? 32 : 64, p->cell, p->T, p->B, p->F, p->H, (int)p->S, p->reverse ? ", reverse" : "",
             p->bias ? "" : ", no bias", p->norm ? ", layer norm" : "", p->masked ? ", masked" : "", p->zoneout, p->step_clip);
    return p;
}

static void free_problem(problem *p)
{
    double *const own[] = {p->gates, p->h_in, p->c_in,  p->y,     p->h,     p->c,     p->dh,     p->dc,
                           p->dx,    p->dw_ih, p->dw_hh, p->db_ih, p->db_hh, p->dh_norm, p->dc_norm};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) free(own[i]);
    for (int part = 0; part < PARTS; part++) free(p->in[part]);
    for (int i = 0; i < 3; i++) free(p->normed[i]), free(p->scale[i]);
    for (int i = 0; i < 4; i++) free(p->d_gain[i]);
    free(p->offsets);
    free(p);
}

/* Where the layer's rows and columns are in y and dy. */
typedef struct {
    ptrdiff_t rows, row, column, *at; /* at (S,): any rows, each once */
    int in_order;
} place;

static place draw_place(const problem *p)
{
    place y = {.in_order = one_in(2)};
    const int directions = between(1, 2);
    y.rows = y.in_order ? p->S : (ptrdiff_t)p->T * p->B;
    y.row = directions * p->H, y.column = between(0, directions - 1) * p->H;
    y.at = malloc((size_t)(y.rows + 1) * sizeof *y.at);
    if (!y.at) exit(2);
    for (ptrdiff_t i = 0; i < y.rows; i++) y.at[i] = i;
    for (ptrdiff_t i = y.rows - 1; i > 0 && !y.in_order; i--) {
        const ptrdiff_t j = (ptrdiff_t)(draw() % (uint64_t)(i + 1)), moved = y.at[i];
        y.at[i] = y.at[j], y.at[j] = moved;
    }
    return y;
}

/* The layer's part of y, packed; what is not its part must be as it was. */
static void check_y(const problem *p, const place *y, array whole, double limit)
{
    array packed = blank(p->S * p->H);
    ptrdiff_t written = 0;
    for (ptrdiff_t row = 0; row < p->S; row++)
        for (int j = 0; j < p->H; j++) put(packed, row * p->H + j, get(whole, y->at[row] * y->row + y->column + j));
    for (ptrdiff_t i = 0; i < y->rows * y->row; i++) written += !isnan(get(whole, i));
    compare("y", packed, p->y, p->S * p->H, limit);
    if (written != p->S * p->H) fail("elements of y written", (double)written, (double)(p->S * p->H));
    release(packed);
}

static void check_norms(const char *what, array norms, const double *want, ptrdiff_t n, double limit)
{
    double error = 0, norm = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        error += pow(((double *)norms.p)[i] - want[i], 2);
        norm += want[i] * want[i];
    }
    check(what, sqrt(error), sqrt(norm), limit);
}

static void fuzz_recurrent(int most_units)
{
    problem *p = draw_problem(most_units);
    const gc_kernels *kernels = &table->real[real];
    const size_t size = real_size();
    const place y = draw_place(p);
    const ptrdiff_t lanes = kernels->lanes, padded = (p->H + lanes - 1) / lanes * lanes;
    const ptrdiff_t gates_row = gc_row(p->K * padded, size), state_row = gc_row(padded, size);
    const ptrdiff_t norm_row = kernels->recurrent->norm_row(p->cell, p->H);
    const int keeps = p->masked || !one_in(5), wants_dx = !one_in(6), dx_adds = one_in(2), wants_norms = !one_in(4);
    const double limit = real == GC_F32 ? 2e-4 : 1e-10, limit_back = 10 * limit;
    outputs all = {.n = 0};
    for (int n_runs = one_in(4) ? 4 : 2; all.run < n_runs; all.run++) {
        array in[PARTS];
        for (int part = 0; part < PARTS; part++)
            if (part != DY) in[part] = typed(p->in[part], p->n[part]);
        const array gates = unset(keeps ? p->S * gates_row : 0, size), h_in = unset(keeps ? p->S * state_row : 0, size);
        const array c_in = unset(keeps && p->has_c ? p->S * state_row : 0, size), whole = marked(y.rows * y.row, size);
        const array norm = unset(keeps && p->norm ? p->S * norm_row : 0, size);
        const array h_met = unset(p->masked ? p->S * state_row : 0, size);
        gc_recurrent s;
        memset(&s, 0x5a, sizeof s); /* what is not set here is not read */
        s.cell = p->cell, s.reverse = p->reverse, s.threads = threads_of(all.run);
        s.T = p->T, s.B = p->B, s.F = p->F, s.H = p->H, s.offsets = p->offsets;
        s.w_ih = in[W_IH].p, s.w_hh = in[W_HH].p, s.x = in[X].p;
        s.b_ih = p->bias ? in[B_IH].p : NULL, s.b_hh = p->bias ? in[B_HH].p : NULL;
        s.gates = keeps ? gates.p : NULL, s.h_in = keeps ? h_in.p : NULL, s.c_in = keeps && p->has_c ? c_in.p : NULL;
        memset(&s.norm, 0, sizeof s.norm);
        if (p->norm) s.norm.ih = in[NORM_IH].p, s.norm.hh = in[NORM_HH].p, s.norm.kept = keeps ? norm.p : NULL;
        if (p->norm && p->has_c) s.norm.c = in[NORM_C].p, s.norm.c_bias = in[NORM_C_BIAS].p;
        s.zoneout.p = p->zoneout, s.zoneout.mean = p->mean, s.zoneout.key = p->key;
        s.mask = p->masked ? in[MASK].p : NULL, s.h_met = p->masked ? h_met.p : NULL;
        s.ld_y = y.row, s.y_at = y.in_order ? NULL : y.at;
        gc_recurrent back = s;
        s.y = (char *)whole.p + (size_t)y.column * size, s.h = in[H0].p, s.c = p->has_c ? in[C0].p : NULL, s.work = NULL;
        const size_t bytes = kernels->recurrent->forward_work(&s);
        array work = scratch(bytes);
        s.work = work.p;
        if (kernels->recurrent->forward(&s) != GC_OK) fail("status", 1, GC_OK);
        release(work);
        check_y(p, &y, whole, limit);
        compare("h", in[H0], p->h, p->n[H0], limit);
        if (p->has_c) compare("c", in[C0], p->c, p->n[C0], limit);

        if (keeps) {
            const array dy = unset(y.rows * y.row, size), dw_ih = blank(p->n[W_IH]), dw_hh = blank(p->n[W_HH]);
            const array db_ih = blank(p->n[B_IH]), db_hh = blank(p->n[B_HH]);
            array d_gain[4];
            for (int i = 0; i < 4; i++) d_gain[i] = blank(p->n[NORM_IH + i]);
            back.norm.d_ih = d_gain[0].p, back.norm.d_hh = d_gain[1].p, back.norm.d_c = d_gain[2].p;
            back.norm.d_c_bias = d_gain[3].p;
            const array dx = dx_adds || !wants_dx ? blank(p->n[X]) : unset(p->n[X], size);
            const array dh_norm = unset(wants_norms ? p->S : 0, 8), dc_norm = unset(wants_norms && p->has_c ? p->S : 0, 8);
            for (ptrdiff_t row = 0; row < p->S; row++)
                for (int j = 0; j < p->H; j++) put(dy, y.at[row] * y.row + y.column + j, p->in[DY][row * p->H + j]);
            back.dy = (char *)dy.p + (size_t)y.column * size, back.dh = in[DH].p, back.dc = p->has_c ? in[DC].p : NULL;
            back.dx = wants_dx ? dx.p : NULL, back.dx_adds = dx_adds, back.dw_ih = dw_ih.p, back.dw_hh = dw_hh.p;
            back.db_ih = p->bias ? db_ih.p : NULL, back.db_hh = p->bias ? db_hh.p : NULL;
            back.dh_norm = wants_norms ? dh_norm.p : NULL, back.dc_norm = wants_norms && p->has_c ? dc_norm.p : NULL;
            back.step_clip = p->step_clip, back.work = NULL;
            const size_t bytes_back = kernels->recurrent->backward_work(&back);
            if (bytes_back > bytes) fail("scratch, beyond that of the forward pass", (double)bytes_back, (double)bytes);
            work = scratch(bytes_back);
            back.work = work.p;
            if (kernels->recurrent->backward(&back) != GC_OK) fail("status", 1, GC_OK);
            release(work), release(dy);
            compare("dh", in[DH], p->dh, p->n[DH], limit_back);
            if (p->has_c) compare("dc", in[DC], p->dc, p->n[DC], limit_back);
            if (wants_dx) compare("dx", dx, p->dx, p->n[X], limit_back);
            compare("dw_ih", dw_ih, p->dw_ih, p->n[W_IH], limit_back);
            compare("dw_hh", dw_hh, p->dw_hh, p->n[W_HH], limit_back);
            if (p->bias) compare("db_ih", db_ih, p->db_ih, p->n[B_IH], limit_back);
            if (p->bias) compare("db_hh", db_hh, p->db_hh, p->n[B_HH], limit_back);
            for (int i = 0; i < (p->has_c ? 4 : 2) && p->norm; i++)
                compare("a gain's gradient", d_gain[i], p->d_gain[i], p->n[NORM_IH + i], limit_back);
            for (int i = 0; i < 4; i++) output(&all, 12 + i, d_gain[i]);
            if (wants_norms) check_norms("dh_norm", dh_norm, p->dh_norm, p->S, limit_back);
            if (wants_norms && p->has_c) check_norms("dc_norm", dc_norm, p->dc_norm, p->S, limit_back);
            output(&all, 0, dx), output(&all, 1, dw_ih), output(&all, 2, dw_hh), output(&all, 3, db_ih);
            output(&all, 4, db_hh), output(&all, 5, dh_norm), output(&all, 6, dc_norm);
        }
        output(&all, 7, whole), output(&all, 8, in[H0]), output(&all, 9, in[C0]);
        output(&all, 10, in[DH]), output(&all, 11, in[DC]);
        for (int part = W_IH; part <= X; part++) release(in[part]);
        for (int part = NORM_IH; part <= MASK; part++) release(in[part]);
        release(gates), release(h_in), release(c_in), release(norm), release(h_met);
    }
    forget(&all);
    free(y.at);
    free_problem(p);
}

/* ---- linear ------------------------------------------------------------------------------------------------------------ */

static void fuzz_linear(void)
{
    const ptrdiff_t N = between(0, one_in(4) ? 500 : 60), page = one_in(8) ? 1024 : 0; /* rows that are whole pages */
    const ptrdiff_t F = page && one_in(2) ? page : between(0, one_in(4) ? 150 : 40);
    const ptrdiff_t O = page && F != page ? page : between(0, one_in(4) ? 150 : 40);
    const int bias = one_in(2);
    const gc_kernels *kernels = &table->real[real];
    const double limit = real == GC_F32 ? 1e-4 : 1e-12;
    double *x = uniforms(N * F, 1), *w = uniforms(O * F, 1), *b = uniforms(O, bias), *dy = uniforms(N * O, 1);
    double *y = zeros(N * O), *dx = zeros(N * F), *dw = zeros(O * F), *db = zeros(O);
    snprintf(subject, sizeof subject, "%s float%d, linear, N %d, F %d, O %d, bias %d", table->isa, real == GC_F32 ? 32 : 64,
             (int)N, (int)F, (int)O, bias);
    for (ptrdiff_t n = 0; n < N; n++)
        for (ptrdiff_t o = 0; o < O; o++) {
            const double d = dy[n * O + o];
            y[n * O + o] = b[o];
            db[o] += d;
            for (ptrdiff_t f = 0; f < F; f++) {
                y[n * O + o] += x[n * F + f] * w[o * F + f];
                dw[o * F + f] += d * x[n * F + f];
                dx[n * F + f] += d * w[o * F + f];
            }
        }
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array x_ = typed(x, N * F), w_ = typed(w, O * F), b_ = typed(b, O), dy_ = typed(dy, N * O);
        const array y_ = unset(N * O, real_size()), dx_ = unset(N * F, real_size()), dw_ = blank(O * F), db_ = blank(O);
        gc_linear s = {.threads = threads_of(all.run), .N = N, .F = F, .O = O, .x = x_.p, .w = w_.p, .y = y_.p};
        s.b = bias ? b_.p : NULL;
        array work = scratch(kernels->linear->work(&s));
        s.work = work.p;
        if (kernels->linear->forward(&s) != GC_OK) fail("status", 1, GC_OK);
        release(work);
        s.y = NULL, s.dy = dy_.p, s.dx = dx_.p, s.dw = dw_.p, s.db = bias ? db_.p : NULL, s.work = NULL;
        work = scratch(kernels->linear->work(&s));
        s.work = work.p;
        if (kernels->linear->backward(&s) != GC_OK) fail("status", 1, GC_OK);
        compare("y", y_, y, N * O, limit);
        compare("dx", dx_, dx, N * F, limit);
        compare("dw", dw_, dw, O * F, limit);
        if (bias) compare("db", db_, db, O, limit);
        output(&all, 0, y_), output(&all, 1, dx_), output(&all, 2, dw_), output(&all, 3, db_);
        release(work), release(x_), release(w_), release(b_), release(dy_);
    }
    forget(&all);
    double *const own[] = {x, w, b, dy, y, dx, dw, db};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) free(own[i]);
}

/* ---- attention --------------------------------------------------------------------------------------------------------- */

/* One head of one sequence: n rows of D features; a row of each array is `row` apart. */
static void plain_attention(int causal, ptrdiff_t n, ptrdiff_t D, ptrdiff_t row, const double *q, const double *k, const double *v,
                            double *y, ptrdiff_t y_row, const double *dy, double *dq, double *dk, double *dv)
{
    double *w = zeros(n), *dw = zeros(n);
    for (ptrdiff_t i = 0; i < n; i++) {
        const ptrdiff_t seen = causal ? i + 1 : n;
        double largest = -INFINITY, sum = 0, mean = 0;
        for (ptrdiff_t j = 0; j < seen; j++) {
            w[j] = dw[j] = 0;
            for (ptrdiff_t d = 0; d < D; d++) w[j] += q[i * row + d] * k[j * row + d], dw[j] += dy[i * y_row + d] * v[j * row + d];
            largest = fmax(largest, w[j] /= sqrt((double)D));
        }
        for (ptrdiff_t j = 0; j < seen; j++) sum += w[j] = exp(w[j] - largest);
        for (ptrdiff_t j = 0; j < seen; j++) w[j] /= sum, mean += w[j] * dw[j];
        for (ptrdiff_t j = 0; j < seen; j++)
            for (ptrdiff_t d = 0; d < D; d++) {
                const double dlogit = w[j] * (dw[j] - mean) / sqrt((double)D);
                y[i * y_row + d] += w[j] * v[j * row + d];
                dv[j * row + d] += w[j] * dy[i * y_row + d];
                dq[i * row + d] += dlogit * k[j * row + d];
                dk[j * row + d] += dlogit * q[i * row + d];
            }
    }
    free(w), free(dw);
}

/* Sequences that end at any step, one after another or side by side, whose other rows are left as they are. */
static void fuzz_attention(void)
{
    const ptrdiff_t T = between(0, one_in(3) ? 400 : 40), B = between(0, 4), heads = between(1, 4), D = between(1, one_in(4) ? 80 : 20);
    const ptrdiff_t E = heads * D, S = T * B, side_by_side = one_in(2);
    const int causal = one_in(2);
    const double limit = real == GC_F32 ? 1e-4 : 1e-12;
    const gc_kernels *kernels = &table->real[real];
    ptrdiff_t first[4], lengths[4];
    double *qkv = uniforms(3 * S * E, one_in(4) ? 10 : 1), *dy = uniforms(S * E, 1), *y = zeros(S * E), *dqkv = zeros(3 * S * E);
    snprintf(subject, sizeof subject, "%s float%d, attention, T %d, B %d, heads %d, D %d%s%s", table->isa,
             real == GC_F32 ? 32 : 64, (int)T, (int)B, (int)heads, (int)D, causal ? ", causal" : "",
             side_by_side ? ", side by side" : "");
    const ptrdiff_t step = side_by_side && B ? B : 1;
    for (ptrdiff_t b = 0; b < B; b++) {
        first[b] = side_by_side ? b : b * T;
        lengths[b] = one_in(2) ? T : between(0, (int)T);
        for (ptrdiff_t h = 0; h < heads; h++) {
            const ptrdiff_t at = first[b] * E + h * D, at_3 = 3 * first[b] * E + h * D;
            plain_attention(causal, lengths[b], D, 3 * E * step, qkv + at_3, qkv + at_3 + E, qkv + at_3 + 2 * E, y + at, E * step,
                            dy + at, dqkv + at_3, dqkv + at_3 + E, dqkv + at_3 + 2 * E);
        }
    }
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array qkv_ = typed(qkv, 3 * S * E), dy_ = typed(dy, S * E), y_ = blank(S * E), dqkv_ = blank(3 * S * E);
        const array largest = blank(S * heads), sum = blank(S * heads);
        gc_attention s = {.threads = threads_of(all.run), .causal = causal, .S = S, .B = B, .heads = heads, .D = D,
                          .first = first, .lengths = lengths, .step = step, .qkv = qkv_.p, .y = y_.p, .largest = largest.p,
                          .sum = sum.p};
        array work = scratch(kernels->attention->work(&s));
        s.work = work.p;
        if (kernels->attention->forward(&s) != GC_OK) fail("status", 1, GC_OK);
        release(work);
        s.dy = dy_.p, s.dqkv = dqkv_.p, s.work = NULL;
        work = scratch(kernels->attention->work(&s));
        s.work = work.p;
        if (kernels->attention->backward(&s) != GC_OK) fail("status", 1, GC_OK);
        compare("y", y_, y, S * E, limit);
        compare("dqkv", dqkv_, dqkv, 3 * S * E, limit);
        output(&all, 0, y_), output(&all, 1, dqkv_), output(&all, 2, largest), output(&all, 3, sum);
        release(work), release(qkv_), release(dy_);
    }
    forget(&all);
    free(qkv), free(dy), free(y), free(dqkv);
}

/* ---- normalization of rows and of columns, and the sum of a residual connection -------------------------------------------- */

/* Element i of the group that is normalized. */
typedef struct {
    ptrdiff_t n, first, apart;
} group;

/* Of n elements: mean (0 unless centered) and mean of the squares around it. */
static void plain_moments(const double *x, group g, int centered, double *mean, double *var)
{
    *mean = *var = 0;
    for (ptrdiff_t i = 0; centered && i < g.n; i++) *mean += x[g.first + i * g.apart] / (double)g.n;
    for (ptrdiff_t i = 0; i < g.n; i++) *var += pow(x[g.first + i * g.apart] - *mean, 2) / (double)g.n;
}

static void fuzz_norm(int columns)
{
    const ptrdiff_t N = between(columns ? 1 : 0, one_in(3) ? 700 : 40), F = between(0, one_in(3) ? 600 : 40);
    const int centered = columns || one_in(2), gain = one_in(2), bias = centered && gain && one_in(2), given = columns && one_in(4);
    const ptrdiff_t groups = columns ? F : N;
    const gc_normalization_kernels *kernels = table->real[real].normalization;
    const double limit = real == GC_F32 ? 2e-5 : 1e-11, eps = 0.1;
    double *x = uniforms(N * F, 2), *w = uniforms(F, 1), *b = uniforms(F, 1), *dy = uniforms(N * F, 1);
    double *y = zeros(N * F), *dx = zeros(N * F), *dw = zeros(F), *db = zeros(F), *mean = zeros(groups), *var = zeros(groups);
    snprintf(subject, sizeof subject, "%s float%d, norm of %s, N %d, F %d, centered %d, gain %d, bias %d, given %d", table->isa,
             real == GC_F32 ? 32 : 64, columns ? "columns" : "rows", (int)N, (int)F, centered, gain, bias, given);
    for (ptrdiff_t k = 0; k < groups; k++) {
        const group g = {columns ? N : F, columns ? k : k * F, columns ? F : 1};
        plain_moments(x, g, centered, &mean[k], &var[k]);
        if (given) mean[k] = uniform(), var[k] = fabs(uniform());
        const double rstd = 1 / sqrt(var[k] + eps);
        double sum = 0, along = 0;
        for (ptrdiff_t i = 0; i < g.n; i++) {
            const ptrdiff_t at = g.first + i * g.apart, f = at % F;
            const double normalized = (x[at] - mean[k]) * rstd, d = dy[at] * (gain ? w[f] : 1);
            y[at] = normalized * (gain ? w[f] : 1) + (bias ? b[f] : 0);
            dw[f] += dy[at] * normalized;
            db[f] += dy[at];
            sum += centered ? d / (double)g.n : 0;
            along += d * normalized / (double)g.n;
        }
        for (ptrdiff_t i = 0; i < g.n; i++) {
            const ptrdiff_t at = g.first + i * g.apart;
            const double normalized = (x[at] - mean[k]) * rstd, d = dy[at] * (gain ? w[at % F] : 1);
            dx[at] = rstd * (d - sum - along * normalized);
        }
    }
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const int threads = threads_of(all.run);
        const array x_ = typed(x, N * F), w_ = typed(w, F), b_ = typed(b, F), dy_ = typed(dy, N * F);
        const array y_ = unset(N * F, real_size()), dx_ = unset(N * F, real_size()), dw_ = blank(F), db_ = blank(F);
        const array mean_ = unset(groups, 8), second = unset(groups, 8); /* rstd of rows, var of columns */
        array work = {.base = NULL};
        if (columns) {
            if (given) memcpy(mean_.p, mean, mean_.bytes), memcpy(second.p, var, second.bytes);
            gc_column_norm s = {.threads = threads, .given = given, .N = N, .F = F, .eps = eps, .x = x_.p, .y = y_.p};
            s.w = gain ? w_.p : NULL, s.b = bias ? b_.p : NULL, s.mean = mean_.p, s.var = second.p;
            work = scratch(kernels->column_work(&s)), s.work = work.p;
            if (kernels->column_forward(&s) != GC_OK) fail("status", 1, GC_OK);
            release(work);
            s.dy = dy_.p, s.dx = dx_.p, s.dw = gain ? dw_.p : NULL, s.db = bias ? db_.p : NULL, s.work = NULL;
            work = scratch(kernels->column_work(&s)), s.work = work.p;
            if (kernels->column_backward(&s) != GC_OK) fail("status", 1, GC_OK);
        } else {
            gc_row_norm s = {.threads = threads, .centered = centered, .N = N, .F = F, .eps = eps, .x = x_.p, .y = y_.p};
            s.w = gain ? w_.p : NULL, s.b = bias ? b_.p : NULL, s.mean = centered ? mean_.p : NULL, s.rstd = second.p;
            if (kernels->row_forward(&s) != GC_OK) fail("status", 1, GC_OK);
            s.dy = dy_.p, s.dx = dx_.p, s.dw = gain ? dw_.p : NULL, s.db = bias ? db_.p : NULL;
            work = scratch(kernels->row_work(&s)), s.work = work.p;
            if (kernels->row_backward(&s) != GC_OK) fail("status", 1, GC_OK);
        }
        compare("y", y_, y, N * F, limit);
        compare("dx", dx_, dx, N * F, limit * 10); /* of few elements differences are left */
        if (gain) compare("dw", dw_, dw, F, limit);
        if (bias) compare("db", db_, db, F, limit);
        output(&all, 0, y_), output(&all, 1, dx_), output(&all, 2, dw_), output(&all, 3, db_);
        release(work), release(x_), release(w_), release(b_), release(dy_), release(mean_), release(second);
    }
    forget(&all);
    double *const own[] = {x, w, b, dy, y, dx, dw, db, mean, var};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) free(own[i]);
}

static void fuzz_residual(void)
{
    const ptrdiff_t n = one_in(4) ? between(0, 40000) : between(0, 70);
    const int plain = one_in(3);
    double *a = uniforms(n, 1), *b = uniforms(n, 1), *want = zeros(n);
    for (ptrdiff_t i = 0; i < n; i++) want[i] = (plain ? 0 : a[i]) + 0.5 * b[i];
    snprintf(subject, sizeof subject, "%s float%d, residual, n %d", table->isa, real == GC_F32 ? 32 : 64, (int)n);
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array a_ = typed(a, n), b_ = typed(b, n), out = all.run == 2 ? typed(b, n) : unset(n, real_size());
        const gc_residual s = {.threads = threads_of(all.run), .n = n, .scale = 0.5, .a = plain ? NULL : a_.p,
                               .b = all.run == 2 ? out.p : b_.p, .out = out.p};
        if (table->real[real].residual->add(&s) != GC_OK) fail("status", 1, GC_OK);
        compare("sum", out, want, n, 1e-6);
        output(&all, 0, out);
        release(a_), release(b_);
    }
    forget(&all);
    free(a), free(b), free(want);
}

/* ---- activations: finite, in place or not -------------------------------------------------------------------------------- */

static void fuzz_activation(void)
{
    const int kind = between(GC_IDENTITY, GC_SILU), keeps_y = kind == GC_TANH || kind == GC_SIGMOID || kind == GC_RELU;
    const ptrdiff_t n = one_in(4) ? between(0, 40000) : between(0, 70);
    const gc_kernels *kernels = &table->real[real];
    double *x = uniforms(n, 5), *dy = uniforms(n, 1);
    snprintf(subject, sizeof subject, "%s float%d, activation %d, n %d", table->isa, real == GC_F32 ? 32 : 64, kind, (int)n);
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const int threads = threads_of(all.run), in_place = all.run == 2;
        const array x_ = typed(x, n), dy_ = typed(dy, n), y = in_place ? typed(x, n) : unset(n, real_size());
        const array dx = in_place ? typed(dy, n) : unset(n, real_size());
        gc_activation s = {.kind = kind, .threads = threads, .n = n, .p = 0.5, .q = 20, .in = in_place ? y.p : x_.p, .out = y.p};
        if (kernels->activation->run(&s) != GC_OK) fail("status", 1, GC_OK);
        s.in = keeps_y ? y.p : x_.p, s.dy = in_place ? dx.p : dy_.p, s.out = dx.p;
        if (kernels->activation->run(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t i = 0; i < n; i++)
            if (!isfinite(get(y, i)) || !isfinite(get(dx, i))) fail("not finite at", (double)i, -1);
        output(&all, 0, y), output(&all, 1, dx);
        release(x_), release(dy_);
    }
    forget(&all);
    free(x), free(dy);
}

/* ---- a learned slope: against plain loops ----------------------------------------------------------------------------------- */

static void fuzz_prelu(void)
{
    const ptrdiff_t C = one_in(2) ? 1 : between(1, 80), n = C * (one_in(4) ? between(0, 30000 / (int)C) : between(0, 9));
    const gc_kernels *kernels = &table->real[real];
    double *x = uniforms(n, 5), *dy = uniforms(n, 1), *w = uniforms(C, 1), *start = uniforms(C, 1), *dw = zeros(C);
    for (ptrdiff_t k = 0; k < C; k++) dw[k] = start[k];
    for (ptrdiff_t i = 0; i < n; i++) dw[i % C] += x[i] > 0 ? 0 : dy[i] * x[i];
    snprintf(subject, sizeof subject, "%s float%d, prelu, n %d, slopes %d", table->isa, real == GC_F32 ? 32 : 64, (int)n, (int)C);
    const double limit = real == GC_F32 ? 1e-4 : 1e-12;
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array x_ = typed(x, n), dy_ = typed(dy, n), w_ = typed(w, C), dw_ = typed(start, C);
        const array y = unset(n, real_size()), dx = unset(n, real_size());
        gc_prelu s = {.threads = threads_of(all.run), .n = n, .C = C, .x = x_.p, .w = w_.p, .y = y.p};
        if (kernels->prelu->run(&s) != GC_OK) fail("status", 1, GC_OK);
        s.dy = dy_.p, s.dx = dx.p, s.dw = dw_.p;
        const array work = scratch(kernels->prelu->work(&s));
        s.work = work.p;
        if (kernels->prelu->run(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t i = 0; i < n; i++) {
            const double slope = x[i] > 0 ? 1 : w[i % C];
            if (fabs(get(y, i) - slope * x[i]) > limit) fail("y", get(y, i), slope * x[i]);
            if (fabs(get(dx, i) - slope * dy[i]) > limit) fail("dx", get(dx, i), slope * dy[i]);
        }
        for (ptrdiff_t k = 0; k < C; k++)
            if (fabs(get(dw_, k) - dw[k]) > limit * sqrt((double)n + 1)) fail("dw", get(dw_, k), dw[k]);
        output(&all, 0, y), output(&all, 1, dx), output(&all, 2, dw_);
        release(x_), release(dy_), release(w_), release(work);
    }
    forget(&all);
    free(x), free(dy), free(w), free(start), free(dw);
}

/* ---- dropout: zero, or scaled; the same again for another array ---------------------------------------------------------- */

static void fuzz_dropout(void)
{
    const ptrdiff_t n = one_in(4) ? between(0, 40000) : between(0, 140);
    const double p = between(0, 4) / 4.0, scale = p < 1 ? 1 / (1 - p) : 0;
    const gc_kernels *kernels = &table->real[real];
    double *x = uniforms(n, 5);
    const uint64_t key = (uint64_t)between(0, 1 << 30) << 30 ^ (uint64_t)between(0, 1 << 30);
    snprintf(subject, sizeof subject, "%s float%d, dropout %g, n %d", table->isa, real == GC_F32 ? 32 : 64, p, (int)n);
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array x_ = typed(x, n), y = unset(n, real_size()), z = unset(n, real_size());
        gc_dropout s = {.threads = threads_of(all.run), .n = n, .key = key, .p = p, .in = x_.p, .out = y.p};
        if (kernels->dropout->run(&s) != GC_OK) fail("status", 1, GC_OK);
        s.in = y.p, s.out = z.p;
        if (kernels->dropout->run(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t i = 0; i < n; i++) {
            if (get(y, i) != 0 && fabs(get(y, i) - scale * get(x_, i)) > 1e-5) fail("neither zero nor scaled", get(y, i), get(x_, i));
            if (fabs(get(z, i) - scale * get(y, i)) > 1e-5) fail("another mask", get(z, i), get(y, i));
        }
        output(&all, 0, y), output(&all, 1, z);
        release(x_);
    }
    forget(&all);
    free(x);
}

/* ---- embedding: a sum for each row, in order --------------------------------------------------------------------------------- */

static void fuzz_embedding(void)
{
    const ptrdiff_t rows = between(1, 50), E = between(0, 80), N = one_in(4) ? between(0, 1000) : between(0, 20);
    const ptrdiff_t skip = one_in(2) ? between(0, (int)rows - 1) : -1;
    const gc_kernels *kernels = &table->real[real];
    double *dy = uniforms(N * E, 1), *start = uniforms(rows * E, 1), *want = zeros(rows * E);
    ptrdiff_t *at = calloc((size_t)N + 1, sizeof *at);
    if (!at) exit(2);
    for (ptrdiff_t i = 0; i < N; i++) at[i] = between(0, (int)rows - 1);
    memcpy(want, start, (size_t)(rows * E) * sizeof *want);
    for (ptrdiff_t i = 0; i < N; i++)
        for (ptrdiff_t e = 0; e < E && at[i] != skip; e++) want[at[i] * E + e] += dy[i * E + e];
    snprintf(subject, sizeof subject, "%s float%d, embedding %d x %d, n %d, without %d", table->isa, real == GC_F32 ? 32 : 64,
             (int)rows, (int)E, (int)N, (int)skip);
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array dy_ = typed(dy, N * E), dw = typed(start, rows * E);
        const gc_embedding s = {.threads = threads_of(all.run), .N = N, .E = E, .at = at, .skip = skip, .dy = dy_.p, .dw = dw.p};
        if (kernels->embedding->backward(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t i = 0; i < rows * E; i++)
            if (fabs(get(dw, i) - want[i]) > (real == GC_F32 ? 1e-3 : 1e-10)) fail("sum", get(dw, i), want[i]);
        output(&all, 0, dw);
        release(dy_);
    }
    forget(&all);
    free(dy), free(start), free(want), free(at);
}

/* ---- the mean over steps ------------------------------------------------------------------------------------------------- */

static void fuzz_mean(void)
{
    const ptrdiff_t T = one_in(4) ? between(0, 300) : between(0, 9), B = between(0, 6), F = one_in(4) ? between(0, 1200) : between(0, 40);
    const int ragged = one_in(2), batch_first = one_in(2);
    const gc_kernels *kernels = &table->real[real];
    double *x = uniforms(T * B * F, 1), *dy = uniforms(B * F, 1);
    ptrdiff_t *lengths = calloc((size_t)B + 1, sizeof *lengths);
    if (!lengths) exit(2);
    for (ptrdiff_t b = 0; b < B; b++) lengths[b] = ragged ? between(0, (int)T) : T;
    snprintf(subject, sizeof subject, "%s float%d, mean of %d x %d x %d, ragged %d, batch first %d", table->isa,
             real == GC_F32 ? 32 : 64, (int)T, (int)B, (int)F, ragged, batch_first);
    const double limit = real == GC_F32 ? 1e-5 : 1e-13;
    outputs all = {.n = 0};
    for (; all.run < 3; all.run++) {
        const array x_ = typed(x, T * B * F), dy_ = typed(dy, B * F);
        const array y = unset(B * F, real_size()), dx = unset(T * B * F, real_size());
        gc_mean s = {.threads = threads_of(all.run), .batch_first = batch_first, .T = T, .B = B, .F = F,
                     .lengths = ragged ? lengths : NULL, .x = x_.p, .y = y.p};
        if (kernels->pooling->mean(&s) != GC_OK) fail("status", 1, GC_OK);
        s.x = NULL, s.y = NULL, s.dy = dy_.p, s.dx = dx.p;
        if (kernels->pooling->mean(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t b = 0; b < B; b++)
            for (ptrdiff_t f = 0; f < F; f++) {
                double sum = 0;
                for (ptrdiff_t t = 0; t < T; t++) {
                    const ptrdiff_t at = ((batch_first ? b * T + t : t * B + b)) * F + f;
                    const double part = t < lengths[b] ? get(dy_, b * F + f) / (double)lengths[b] : 0;
                    if (t < lengths[b]) sum += get(x_, at) / (double)lengths[b];
                    if (fabs(get(dx, at) - part) > limit) fail("gradient", get(dx, at), part);
                }
                if (fabs(get(y, b * F + f) - sum) > limit) fail("mean", get(y, b * F + f), sum);
            }
        output(&all, 0, y), output(&all, 1, dx);
        release(x_), release(dy_);
    }
    forget(&all);
    free(x), free(dy), free(lengths);
}

/* ---- lists of arrays: norms, clipping, optimizers ------------------------------------------------------------------------ */

enum { MOST_ARRAYS = 8 };

typedef struct {
    ptrdiff_t n_arrays;
    gc_span spans[MOST_ARRAYS];
    array data[MOST_ARRAYS][GC_OPERANDS];
} list;

/* The same numbers for the same seed. */
static list draw_list(uint64_t seed, int halves)
{
    list l = {.n_arrays = 0};
    state = seed;
    l.n_arrays = between(0, MOST_ARRAYS);
    for (int i = 0; i < l.n_arrays; i++) {
        gc_span *span = &l.spans[i];
        *span = (gc_span){.n = one_in(3) ? between(0, 20000) : between(0, 100), .real = between(GC_F32, halves ? GC_F16 : GC_F64)};
        for (int k = 0; k < GC_OPERANDS; k++) {
            array *a = &l.data[i][k];
            *a = marked(span->n, span->real == GC_F16 ? 2 : span->real == GC_F32 ? 4 : 8);
            span->data[k] = a->p;
            for (ptrdiff_t j = 0; j < span->n; j++) {
                const double x = k == GC_GRAD || k == GC_PARAM ? uniform() : fabs(uniform());
                if (span->real == GC_F16)
                    ((uint16_t *)a->p)[j] = (uint16_t)(draw() & 0xbbff); /* below 2 */
                else if (span->real == GC_F32)
                    ((float *)a->p)[j] = (float)x;
                else
                    ((double *)a->p)[j] = x;
            }
        }
    }
    gc_number_blocks(l.spans, l.n_arrays);
    return l;
}

static void output_list(outputs *all, list *l)
{
    array joined = {.bytes = 0};
    for (int i = 0; i < l->n_arrays; i++)
        for (int k = 0; k < GC_OPERANDS; k++) joined.bytes += l->data[i][k].bytes;
    joined = allocated(joined.bytes, 0);
    char *to = joined.p;
    for (int i = 0; i < l->n_arrays; i++)
        for (int k = 0; k < GC_OPERANDS; k++) {
            memcpy(to, l->data[i][k].p, l->data[i][k].bytes);
            to += l->data[i][k].bytes;
            release(l->data[i][k]);
        }
    output(all, 0, joined);
}

static double power_sum(const list *l, double p)
{
    double sum = 0;
    for (int i = 0; i < l->n_arrays; i++)
        for (ptrdiff_t j = 0; j < l->spans[i].n; j++) {
            double x;
            if (l->spans[i].real == GC_F16)
                table->halves_to_doubles((uint16_t *)l->data[i][GC_GRAD].p + j, 1, &x);
            else
                x = l->spans[i].real == GC_F32 ? ((float *)l->data[i][GC_GRAD].p)[j] : ((double *)l->data[i][GC_GRAD].p)[j];
            sum = isinf(p) ? fmax(sum, fabs(x)) : sum + pow(fabs(x), p);
        }
    return sum;
}

static void fuzz_norms(void)
{
    static const double powers[] = {1, 2, INFINITY, 3, 0.5};
    const uint64_t seed = draw();
    double factors[2 * MOST_ARRAYS];
    for (int i = 0; i < 2 * MOST_ARRAYS; i++) factors[i] = uniform();
    snprintf(subject, sizeof subject, "%s, norms of the list %llx", table->isa, (unsigned long long)seed);
    outputs all = {.n = 0};
    for (; all.run < 2; all.run++) {
        list l = draw_list(seed, 1);
        gc_set_num_threads(threads_of(all.run));
        array norms = allocated(5 * sizeof(double), 0);
        for (int i = 0; i < 5; i++) {
            gc_norm each[MOST_ARRAYS], whole;
            const double p = powers[i], sum = power_sum(&l, p), want = isinf(p) ? sum : pow(sum, 1 / p);
            if (gc_clip_measure(table, l.spans, l.n_arrays, p, each, &whole) != GC_OK) fail("status", 1, GC_OK);
            ((double *)norms.p)[i] = whole.root * whole.unit;
            check("norm", fabs(whole.root * whole.unit - want), want, 1e-11);
        }
        gc_clip_scale(table, l.spans, l.n_arrays, factors);
        gc_clip_clamp(table, l.spans, l.n_arrays, 0.25);
        if (power_sum(&l, INFINITY) > 0.25) fail("largest entry", power_sum(&l, INFINITY), 0.25);
        output_list(&all, &l);
        output(&all, 1, norms);
    }
    forget(&all);
}

static void fuzz_optimizer(int rule)
{
    const uint64_t seed = draw();
    const int lacks = between(GC_EXTRA, GC_OPERANDS), lacks_mean = one_in(2);
    snprintf(subject, sizeof subject, "%s, rule %d for the list %llx", table->isa, rule, (unsigned long long)seed);
    const gc_update u = {.rule = rule, .factor = {one_in(2) ? 0.5 : 1, 1}, .bound = one_in(2) ? 1e6 : INFINITY,
                         .l1 = one_in(2) ? 0.1 : 0, .shrink = 1, .step = 1e-3, .keep_mean = 0.9,
                         .take_mean = 0.1, .keep_square = 0.99, .take_square = 0.01, .eps = 1e-8, .root = 1, .now = 1,
                         .past = 0.5, .momentum = 0.9, .threshold = 50};
    outputs all = {.n = 0};
    for (; all.run < 2; all.run++) {
        list l = draw_list(seed, 0);
        gc_set_num_threads(threads_of(all.run));
        for (int i = 0; i < l.n_arrays; i++) {
            if (lacks < GC_OPERANDS) l.spans[i].data[lacks] = NULL;
            if (lacks_mean && (rule == GC_SGD || rule == GC_RMSPROP)) l.spans[i].data[GC_MEAN] = NULL;
        }
        gc_optim_update(table, l.spans, l.n_arrays, &u);
        output_list(&all, &l);
    }
    forget(&all);
}

/* ---- Jacobians: finite, whatever the shape ------------------------------------------------------------------------------- */

static array doubles(ptrdiff_t n)
{
    const array a = marked(n, 8);
    for (ptrdiff_t i = 0; i < n; i++) ((double *)a.p)[i] = uniform();
    return a;
}

static void fuzz_jacobian(void)
{
    const int cell = between(GC_RNN_TANH, GC_GRU), transposed = one_in(2), logs = one_in(2), orthonormal = one_in(2);
    const int beside = one_in(2) ? between(0, GC_NORMED | GC_ZONED | GC_MASKED) : 0;
    const ptrdiff_t G = cell == GC_LSTM ? 4 : cell == GC_GRU ? 3 : 1, D = gc_jacobian_rows(cell, beside);
    const ptrdiff_t H = between(1, 60), B = between(0, 5), m = between(0, 6), steps = between(0, 5);
    const ptrdiff_t row = (cell == GC_LSTM ? 2 : 1) * H, k = m < row ? m : row;
    const array w = doubles(G * H * H), factors = doubles(steps * B * D * H), given = doubles(B * m * row);
    const array packed = scratch(8 * table->jacobian->packed(cell, transposed, H, NULL, NULL));
    snprintf(subject, sizeof subject, "%s, Jacobian of cell %d, beside %d, H %d, B %d, m %d, steps %d", table->isa, cell, beside,
             (int)H, (int)B, (int)m, (int)steps);
    table->jacobian->packed(cell, transposed, H, w.p, packed.p);
    outputs all = {.n = 0};
    for (; all.run < 2; all.run++) {
        const int threads = threads_of(all.run);
        const array v = marked(B * m * row, 8), log_norm = unset(logs ? steps * B * m : 0, 8);
        memcpy(v.p, given.p, given.bytes);
        gc_jacobian s = {.cell = cell, .beside = beside, .transposed = transposed, .threads = threads, .H = H, .B = B, .m = m, .steps = steps,
                         .factors = factors.p, .packed = packed.p, .v = v.p, .log_norm = logs ? log_norm.p : NULL};
        const array work = scratch(table->jacobian->work(&s));
        s.work = work.p;
        if (table->jacobian->product(&s) != GC_OK) fail("status", 1, GC_OK);
        for (ptrdiff_t i = 0; i < B * m * row; i++)
            if (!isfinite(((double *)v.p)[i])) fail("not finite at", (double)i, -1);
        const array kept = marked(B * k * row, 8), diagonal = unset(B * k, 8), pivots = unset(B * k, sizeof(ptrdiff_t));
        if (k == m) {
            memcpy(kept.p, v.p, v.bytes);
            if (table->jacobian->separate(threads, B, k, row, kept.p, diagonal.p, orthonormal ? NULL : pivots.p) != GC_OK)
                fail("status", 1, GC_OK);
            output(&all, 2, kept), output(&all, 3, diagonal);
        } else {
            release(kept), release(diagonal);
        }
        output(&all, 0, v), output(&all, 1, log_norm);
        release(pivots), release(work);
    }
    forget(&all);
    release(w), release(factors), release(given), release(packed);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? atol(argv[1]) : 100;
    char names[64], list_of[64];
    if (argc > 2) state ^= strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15u;
    gc_set_num_threads(MOST_THREADS); /* before the first team */
    gc_select(NULL, names, sizeof names);
    for (long round = 0; round < rounds; round++) {
        memcpy(list_of, names, sizeof names);
        for (char *isa = strtok(list_of, ", "); isa; isa = strtok(NULL, ", ")) {
            table = gc_select(isa, (char[64]){0}, 64);
            real = between(GC_F32, GC_F64);
            fuzz_recurrent(one_in(5) ? 180 : 90);
            if (round % 2 == 0) fuzz_linear();
            if (round % 4 == 0) fuzz_activation(), fuzz_prelu(), fuzz_dropout(), fuzz_embedding(), fuzz_mean(), fuzz_jacobian();
            if (round % 4 == 2) fuzz_norm(0), fuzz_norm(1), fuzz_residual();
            if (round % 2 == 1) fuzz_attention();
            if (round % 4 == 1) fuzz_norms();
            for (int rule = GC_SGD; rule < GC_RULES && round % 4 == 3; rule++) fuzz_optimizer(rule);
        }
    }
    printf("%s: %ld rounds, %d failures, hash %016llx\n", names, rounds, failures, (unsigned long long)hash);
    return failures > 0;
}

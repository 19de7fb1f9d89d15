/* What everybody needs to know of a cell: the kernels, the Jacobians and Python ask this table and never for a cell's name. What
 * a cell computes stands in its file in cells/.
 *
 * A new cell is a row of cells.def, a file in cells/ and its #include in cell.inc.h. */
#ifndef GC_CELL_H
#define GC_CELL_H

#define CELL(number, ...) number,
enum {
#include "recurrent/cells.def"
    GC_CELLS
};
#undef CELL

/* A step makes G products with W_ih x_t and G with W_hh h_{t-1}, one for each of the weights' gates. They start from K blocks
 * of pre-activations for every group of units, which the tape keeps after their activation: the recurrent products go to the
 * last G blocks, in the order of the gates, the input's to the first G, of which the first is `first_gate` and the others follow
 * in turn. Blocks that both go to are sums of the two. */
typedef struct gc_cell {
    const char *name; /* of its number: GC_LSTM */
    int G, K;
    int first_gate;
    int D;      /* factors of a step's Jacobian */
    int has_c;  /* its state is h and c, not h alone */
    int bypass; /* part of h_{t-1} reaches h_t beside W_hh */
} gc_cell;

#define CELL(number, function, ...) [number] = {.name = #number, __VA_ARGS__},
static const gc_cell gc_cells[GC_CELLS] = {
#include "recurrent/cells.def"
};
#undef CELL

#endif

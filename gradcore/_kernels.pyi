from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_Take = Callable[[int], _Array]

RNN_TANH: int
RNN_RELU: int
LSTM: int
GRU: int
IDENTITY: int
TANH: int
SIGMOID: int
RELU: int
LEAKY_RELU: int
ELU: int
GELU: int
GELU_TANH: int
SOFTPLUS: int
SGD: int
ADAM: int
RMSPROP: int
ADAGRAD: int
SPAM: int

def cells() -> dict[str, dict[str, Any]]: ...
def isa() -> str: ...
def has_openmp() -> bool: ...
def together(calls: list[Callable[[], Any]]) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def multiply_adds(dtype: np.dtype[Any], n: int) -> float: ...
def tape_layout(dtype: np.dtype[Any], kept: int, H: int) -> tuple[int, int, int]: ...
def copy_rows(source: _Array | None, source_at: _Array | None, to: _Array, to_at: _Array | None) -> None: ...
def jacobian_factors(
    cell: int, H: int, rows: _Array, gates: _Array, h_in: _Array | None, c_in: _Array | None
) -> _Array: ...
def jacobian_packed(cell: int, transposed: bool, w_hh: _Array, take: _Take) -> _Array: ...
def jacobian_product(
    cell: int, transposed: bool, factors: _Array, packed: _Array, v: _Array, log_norm: _Array | None, take: _Take
) -> _Array: ...
def jacobian_separate(v: _Array, orthonormal: bool) -> _Array: ...
def recurrent_forward(
    cell: int,
    reverse: bool,
    offsets: _Array,
    B: int,
    weights: list[_Array | None],
    x: _Array,
    y: _Array,
    y_at: _Array | None,
    column: int,
    h: _Array,
    c: _Array | None,
    gates: _Array | None,
    h_in: _Array | None,
    c_in: _Array | None,
    take: _Take,
) -> _Array: ...
def recurrent_backward(
    cell: int,
    reverse: bool,
    offsets: _Array,
    B: int,
    weights: list[_Array | None],
    x: _Array,
    gates: _Array | None,
    h_in: _Array | None,
    c_in: _Array | None,
    dy: _Array,
    y_at: _Array | None,
    column: int,
    dh: _Array,
    dc: _Array | None,
    dx: _Array | None,
    dx_adds: bool,
    d_weights: list[_Array | None],
    step_clip: float,
    dh_norm: _Array | None,
    dc_norm: _Array | None,
    take: _Take,
) -> _Array: ...
def linear_forward(x: _Array, w: _Array, b: _Array | None, y: _Array, N: int, take: _Take) -> _Array: ...
def linear_backward(
    x: _Array, w: _Array, dy: _Array, dx: _Array, dw: _Array, db: _Array | None, N: int, take: _Take
) -> _Array: ...
def activation_forward(kind: int, p: float, q: float, x: _Array, y: _Array) -> None: ...
def activation_backward(kind: int, p: float, q: float, kept: _Array, dy: _Array, dx: _Array) -> None: ...
def bounds(a: _Array) -> tuple[int, int]: ...
def plain(arrays: list[Any], write: bool) -> bool: ...
def norm(arrays: list[_Array], p: float) -> tuple[float, float, int, int, int, int, _Array]: ...
def scale(arrays: list[_Array], factors: _Array) -> None: ...
def clamp(arrays: list[_Array], limit: float) -> None: ...

class Update:
    def __init__(
        self,
        rule: int,
        grads: list[_Array],
        params: list[_Array],
        *,
        mean: list[_Array] | None = None,
        square: list[_Array] | None = None,
        extra: list[_Array] | None = None,
        l2: float = 0,
        l1: float = 0,
        shrink: float = 1,
        step: float,
        keep_mean: float = 0,
        take_mean: float = 0,
        keep_square: float = 0,
        take_square: float = 0,
        eps: float = 0,
        root: float = 1,
        now: float = 0,
        past: float = 0,
        momentum: float = 0,
        threshold: float = 0,
    ) -> None: ...
    def run(self, factor0: float, factor1: float, counts: dict[str, Any] | None = None) -> None: ...

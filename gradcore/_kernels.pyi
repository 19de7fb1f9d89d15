from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]
_Take = Callable[[int], _Array]
_Steps = tuple[int, bool, _Array, int]
_Tape = tuple[_Array | None, ...]
_Noise = tuple[_Array | None, float, bool, int]
_Out = tuple[_Array, _Array | None, int]
_Sequences = tuple[_Array, _Array, int, int, bool]
_State = tuple[_Array, _Array | None]

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
SILU: int
SGD: int
ADAM: int
RMSPROP: int
ADAGRAD: int
SPAM: int
NADAM: int
LION: int
AVERAGE: int

def cells() -> dict[str, dict[str, Any]]: ...
def isa() -> str: ...
def has_openmp() -> bool: ...
def together(calls: list[Callable[[], Any]]) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def multiply_adds(dtype: np.dtype[Any], n: int) -> float: ...
def tape_layout(dtype: np.dtype[Any], cell: int, H: int) -> tuple[int, int, int, int]: ...
def copy_rows(source: _Array | None, source_at: _Array | None, to: _Array, to_at: _Array | None) -> None: ...
def jacobian_factors(
    cell: int, H: int, rows: _Array, tape: _Tape, weights: list[_Array | None] = ..., noise: _Noise | None = None
) -> _Array: ...
def jacobian_rows(cell: int, weights: list[_Array | None], noise: _Noise | None) -> tuple[int, int, int, int]: ...
def jacobian_packed(cell: int, transposed: bool, w_hh: _Array, take: _Take) -> _Array: ...
def jacobian_product(
    cell: int,
    transposed: bool,
    factors: _Array,
    packed: _Array,
    v: _Array,
    log_norm: _Array | None,
    take: _Take,
    weights: list[_Array | None] = ...,
    noise: _Noise | None = None,
) -> _Array: ...
def jacobian_separate(v: _Array, orthonormal: bool) -> _Array: ...
def recurrent_forward(
    steps: _Steps,
    weights: list[_Array | None],
    x: _Array,
    tape: _Tape,
    out: _Out,
    state: _State,
    take: _Take,
    noise: _Noise | None = None,
) -> _Array: ...
def recurrent_backward(
    steps: _Steps,
    weights: tuple[list[_Array | None], list[_Array | None]],
    rows: tuple[_Array, _Array | None, bool],
    tape: _Tape,
    out: _Out,
    state: _State,
    limits: tuple[float, _Array | None, _Array | None],
    take: _Take,
    noise: _Noise | None = None,
) -> _Array: ...
def linear_forward(x: _Array, w: _Array, b: _Array | None, y: _Array, N: int, take: _Take) -> _Array: ...
def linear_backward(
    x: _Array, w: _Array, dy: _Array, dx: _Array, dw: _Array, db: _Array | None, N: int, take: _Take
) -> _Array: ...
def activation_forward(kind: int, p: float, q: float, x: _Array, y: _Array) -> None: ...
def activation_backward(kind: int, p: float, q: float, kept: _Array, dy: _Array, dx: _Array) -> None: ...
def dropout(p: float, key: int, given: _Array, out: _Array) -> None: ...
def attention_forward(
    steps: _Sequences, qkv: _Array, y: _Array, largest: _Array, total: _Array, take: _Take
) -> _Array: ...
def attention_backward(
    steps: _Sequences,
    qkv: _Array,
    y: _Array,
    largest: _Array,
    total: _Array,
    dy: _Array,
    dqkv: _Array,
    take: _Take,
) -> _Array: ...
def prelu_forward(x: _Array, w: _Array, y: _Array) -> None: ...
def prelu_backward(x: _Array, w: _Array, dy: _Array, dx: _Array, dw: _Array, take: _Take) -> _Array: ...
def mean_forward(x: _Array, y: _Array, lengths: _Array | None, batch_first: bool) -> None: ...
def mean_backward(dy: _Array, dx: _Array, lengths: _Array | None, batch_first: bool) -> None: ...
def embedding_backward(at: _Array, skip: int, dy: _Array, dw: _Array) -> None: ...
def row_norm_forward(
    x: _Array, w: _Array | None, b: _Array | None, y: _Array, F: int, eps: float, mean: _Array | None, rstd: _Array
) -> None: ...
def row_norm_backward(
    x: _Array,
    w: _Array | None,
    dy: _Array,
    dx: _Array,
    dw: _Array | None,
    db: _Array | None,
    F: int,
    mean: _Array | None,
    rstd: _Array,
    take: _Take,
) -> _Array: ...
def column_norm_forward(
    x: _Array,
    w: _Array | None,
    b: _Array | None,
    y: _Array,
    N: int,
    eps: float,
    given: bool,
    mean: _Array,
    var: _Array,
    take: _Take,
) -> _Array: ...
def column_norm_backward(
    x: _Array,
    w: _Array | None,
    dy: _Array,
    dx: _Array,
    dw: _Array | None,
    db: _Array | None,
    N: int,
    eps: float,
    mean: _Array,
    var: _Array,
    take: _Take,
) -> _Array: ...
def residual_add(a: _Array | None, scale: float, b: _Array, out: _Array) -> None: ...
def bounds(a: _Array) -> tuple[int, int]: ...
def plain(arrays: list[Any], write: bool) -> bool: ...
def norm(arrays: list[_Array], p: float) -> tuple[float, float, int, int, int, int, _Array]: ...
def scale(arrays: list[_Array], factors: _Array) -> None: ...
def clamp(arrays: list[_Array], limit: float) -> None: ...

class Update:
    n: int
    def __init__(
        self,
        rule: int,
        grads: list[_Array],
        params: list[_Array],
        moments: dict[str, list[_Array]],
        rates: dict[str, float],
    ) -> None: ...
    def run(self, factor0: float, factor1: float, bound: float, counts: dict[str, Any] | None = None) -> None: ...

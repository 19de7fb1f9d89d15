"""Initializers: each fills an array in place and returns it.

Names and arguments are those of ``torch.nn.init``. Weights are (out, in); further axes multiply both fans. Any writable
float32 or float64 array will do, strided views too, such as one gate's block of a recurrent matrix. Numbers are drawn
in float64 and rounded once, so both dtypes get the same ones.
"""

from gradcore.init.chrono import chrono_
from gradcore.init.gain import calculate_gain
from gradcore.init.plain import constant_, normal_, uniform_
from gradcore.init.structure import eye_, orthogonal_, sparse_
from gradcore.init.variance import kaiming_normal_, kaiming_uniform_, lecun_normal_, xavier_normal_, xavier_uniform_

__all__ = [
    "calculate_gain",
    "chrono_",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "normal_",
    "orthogonal_",
    "sparse_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]

"""The NumPy twin of every kernel: slow, plain, and the judge of the fast one.

Imports numpy only, works in the dtype of what it is given, and is written from the formulas, step by step. One
section per subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erfc, pi, sqrt

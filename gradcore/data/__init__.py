"""Data to learn from: tasks of the literature, series and texts as batches of NumPy arrays.

README.md says where the bundled series come from.
"""

from gradcore.data.sampling import sample
from gradcore.data.sequences import Streams, Windows, pad_sequence, streams, windows
from gradcore.data.sources import SourceError, load
from gradcore.data.standardizer import Standardizer
from gradcore.data.tasks import Batches, Task, adding, copy, temporal_order

__all__ = [
    "Batches",
    "SourceError",
    "Standardizer",
    "Streams",
    "Task",
    "Windows",
    "adding",
    "copy",
    "load",
    "pad_sequence",
    "sample",
    "streams",
    "temporal_order",
    "windows",
]

"""Data to learn from: tasks of the literature, series and texts as batches of NumPy arrays.

README.md says where the bundled series come from.
"""

from gradcore.data.sources import SourceError, load
from gradcore.data.tasks import Batches, Task, adding, copy, temporal_order

__all__ = ["Batches", "SourceError", "Task", "adding", "copy", "load", "temporal_order"]

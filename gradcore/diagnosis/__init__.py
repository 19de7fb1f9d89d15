"""Why gradients explode or vanish, and which remedy helps."""

from gradcore.diagnosis.config import Config, configure
from gradcore.diagnosis.parts import Diagnosis, Study
from gradcore.diagnosis.pipeline import diagnose, study

__all__ = ["Config", "Diagnosis", "Study", "configure", "diagnose", "study"]

"""What a student does with advice: one file a method."""

from agents.guidance.base import Guidance
from agents.guidance.config import METHODS, GuidanceConfig

__all__ = ["METHODS", "Guidance", "GuidanceConfig"]

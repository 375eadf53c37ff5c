"""What a student does with advice: one file a method."""

from agents.guidance.base import Guidance
from agents.guidance.config import AUTO, METHODS, GuidanceConfig, find_method, load_method

__all__ = ["AUTO", "METHODS", "Guidance", "GuidanceConfig", "find_method", "load_method"]

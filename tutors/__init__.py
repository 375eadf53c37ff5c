"""Tutors: who gives advice, who keeps it, and how often it is asked for."""

from tutors.config import TutorConfig
from tutors.factory import DEFAULT_URL, connect_servers, make_analyst, make_tutor, open_advisor

__all__ = ["DEFAULT_URL", "TutorConfig", "connect_servers", "make_analyst", "make_tutor", "open_advisor"]

"""The advice store: every answer ever paid for, in a database. `python -m tutors.store` manages one."""

from tutors.display import without_password
from tutors.store.advice_store import FREE, AdviceStore, Cost, recorded_identities
from tutors.store.database import reason, store_error
from tutors.store.identity import digest_of, identity_of, question_of

__all__ = [
    "FREE",
    "AdviceStore",
    "Cost",
    "digest_of",
    "identity_of",
    "question_of",
    "reason",
    "recorded_identities",
    "store_error",
    "without_password",
]

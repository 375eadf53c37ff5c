"""Many runs: studies, searches, reports."""

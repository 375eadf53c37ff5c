"""A language model behind an HTTP server as a tutor."""

"""The local page: a server that predicts, and what the browser shows."""

"""Logs of what was shown: columns, requests, and the histories beside them."""

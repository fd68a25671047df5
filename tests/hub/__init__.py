"""The local Hub that tests publish to and pull from: see ``server``."""

"""A model answers: the classifier and the runtimes behind it."""

"""Folders in, parts out: slices, protocols, outlines, and the versioned splits."""

"""Copies in a folder of images, within and across its parts."""

"""Outputs that are complete or not there: written to a temporary name, then moved into place.

What may be done here: reading and writing of files and folders. Nothing here knows what is in them.
"""

"""Data sets of one's own: what a usable sample is, checking all of them, and converting annotations."""

"""Deployment: exported folders, the runtimes that run them, and what predictions are written as.

`export` needs the toolkits that build a model; `runtime`, `images`, `tiling` and `results` read exported folders only.
"""

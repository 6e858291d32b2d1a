"""Matplotlib figures: speech over time, progression plots, an evaluation, a sweep.

Each module has one function that takes arrays or plain values and returns a figure; `figures.save_figure` writes a PNG.
Only matplotlib's object interface is used, never pyplot, and no math text: no state is shared, so callbacks may plot,
and threads too, each its own figures.
"""

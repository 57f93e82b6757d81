"""Widgets: a person's clicks in, the same plans, runs and figures as the notebooks' out.

Start with `start` (one call each) and `view` (the playground's board: `models` is its list,
`pictures` are its live pictures, `shown` its texts and tables, `history` what was tried before).
`session` is its logic, `choice` the available models and targets, `elements` are small parts that
ipywidgets lacks, and `explorer` is the clickable heatmap.
"""

from fusinglib.widgets.start import explorer as explorer
from fusinglib.widgets.start import playground as playground

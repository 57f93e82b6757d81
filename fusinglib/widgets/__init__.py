"""Widgets: a person's clicks in, the same plans, runs and pictures as the notebooks' out.

Begin with `start` (one call each) and `view` (the playground as it is seen). `session` is what it
does, apart from how it looks; `choice` says which models and targets there are. `explorer` is the
heatmap to click on.
"""

from fusinglib.widgets.start import explorer as explorer
from fusinglib.widgets.start import playground as playground

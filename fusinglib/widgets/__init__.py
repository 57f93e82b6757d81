"""Widgets: a person's clicks in, the same plans, runs and pictures as the notebooks' out.

Begin with `start` (the one call) and `view` (what is seen). `session` is what is done, apart from
how it looks; `choice` says which models and targets there are, `curves` draws while runs go on.
"""

from fusinglib.widgets.start import playground as playground

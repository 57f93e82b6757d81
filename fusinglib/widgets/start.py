"""The playground, and the heatmap to click on, in one call each."""

import pandas as pd

from fusinglib.study import parameters
from fusinglib.study.settings import FusePlayground, PairwiseHeatmap
from fusinglib.widgets.explorer import PairExplorer
from fusinglib.widgets.view import Playground


def playground(settings: FusePlayground | None = None, **chosen) -> Playground:
    """A playground as a widget, ready to be shown: `fusinglib.widgets.playground()`.

    `chosen` are parameters of the notebook `fuse_playground`, such as `models`, `target` or
    `common`; its others are the notebook's own. Or all `settings` are given. Raises `InputError`
    for parameters that do not fit, and for models that are not there.
    """
    parameters.check("fuse_playground", chosen)
    settings = settings or FusePlayground.from_parameters(
        {**parameters.defaults("fuse_playground"), **chosen}
    )
    return Playground(settings)


def explorer(settings: PairwiseHeatmap, results: pd.DataFrame) -> PairExplorer:
    """The pairwise heatmap as buttons, from the settings and results of its notebook."""
    return PairExplorer(settings, results)

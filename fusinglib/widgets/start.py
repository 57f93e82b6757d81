"""The playground and the clickable heatmap, in one call each."""

import pandas as pd

from fusinglib.study import parameters
from fusinglib.study.settings import FusePlayground, PairwiseHeatmap
from fusinglib.widgets.explorer import PairExplorer
from fusinglib.widgets.session import end_others
from fusinglib.widgets.view import Playground


def playground(settings: FusePlayground | None = None, **chosen) -> Playground:
    """A playground widget, ready to be displayed: `fusinglib.widgets.playground()`.

    `chosen` are parameters of the notebook `fuse_playground`, such as `models`, `target` or
    `common`; the others keep the notebook's values. Alternatively pass complete `settings`. Raises
    `InputError` for invalid parameters and missing models. What earlier ones still run is stopped.
    """
    parameters.check("fuse_playground", chosen)
    settings = settings or FusePlayground.from_parameters(
        {**parameters.defaults("fuse_playground"), **chosen}
    )
    end_others()
    return Playground(settings)


def explorer(settings: PairwiseHeatmap, results: pd.DataFrame) -> PairExplorer:
    """The pairwise heatmap as buttons, from the settings and results of its notebook."""
    return PairExplorer(settings, results)

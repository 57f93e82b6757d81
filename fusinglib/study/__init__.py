"""Study: a notebook's parameters in, finished runs in a store out.

Begin with `plans`: an experiment as a graph of runs, each named by its key. `settings` checks the
values, `parameters` reads them from notebooks and files, `experiments` makes plans of them,
`calibration` says what they cost, `execution` carries plans out, `cluster` on the workers of Dask,
`steps` is what a worker does for one run, `store` keeps what came out, and `notebooks` executes
notebooks in batch.
"""

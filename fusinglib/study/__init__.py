"""Study: a notebook's parameters in, finished runs in a store out.

Begin with `study`, what a notebook calls, and `plans`: an experiment as a graph of runs, each named
by its key. `settings` checks the values, `parameters` reads them from notebooks and files,
`experiments` makes plans of them, `resolver` finds the models that they name, `costs` says what
they take, `execution` carries plans out as `schedule` says, on `pools` of processes or a `cluster`
of Dask; `steps` is what a worker does for one run, `store` keeps what came out, and `notebooks`
executes notebooks in batch.
"""

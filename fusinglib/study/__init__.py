"""Study: a notebook's parameters in, finished runs in a store out.

Start with `study`, what a notebook calls, and `plans`: an experiment as a graph of runs, each
identified by its key; `arms` are further base models. `settings` validates the values, `parameters`
reads them from notebooks and files, `experiments` turns them into plans, `resolver` finds the
models that they name, `costs` estimates what they take, `execution` executes plans in the order of
`schedule`, on `pools` of processes or a Dask `cluster`; `steps` is what a worker does for one run,
`store` keeps the results, `notebooks` executes notebooks, and `summary` makes them one page.
"""

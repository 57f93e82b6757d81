"""Evaluation: tidy results in, tables, intervals, verdicts and figures out.

Start with `tables` (a row per run to the table of a paper), `statistics` (of arrays of runs) and
`worlds` (every interval, in one world or many, and the sources of uncertainty). `figures` draws;
`claims` gives verdicts on the paper's claims, `reference` holds its numbers; `sweeps` are tables
over weight decay or source size; `pairs` and `paths` serve the heatmap and the loss path, `planner`
the seed planner, `playground` the comparison of a few models on one target and `tried` that of all
earlier ones; `ranking` compares methods with the mean and `shrinkage` the mean with shorter
updates; `exploration` asks when fusing helps; `headlines` say what was found in a sentence.
"""

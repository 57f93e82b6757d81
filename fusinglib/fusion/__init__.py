"""Fusing: files of models in, a file of a model out. Knows nothing of studies, needs numpy alone.

Begin with `engine` (`fuse` and `leave_one_out`) and `methods` (the formulas). `opening`,
`checkpoints`, `adapters`, `pickles` and `tensors` say what models hold; `compatibility` whether
they fit each other, `geometry` where they lie; `streaming` reads them side by side; `measures`
gathers what a method must know of whole tensors; `output` writes the result, whole or not at all.
"""

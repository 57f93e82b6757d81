"""Fusing: model files in, one model file out. Knows nothing about studies and needs only numpy.

Start with `engine` (`fuse`), `methods` (the formulas) and `adapter_sums` (LoRA). `opening`,
`checkpoints`, `remote`, `adapters`, `pickles` and `tensors` say what models contain;
`compatibility` whether they fit together, `normal` which differences are bookkeeping; `geometry`
how far they have moved; `streaming` reads them in parallel; `chosen`, `varying` and `measures` say
what a method gets for each tensor; `recipes` are files that say what is fused and how; `licences`
are read from cards; `output` writes the result atomically, `upload` hands it to the Hub.
"""

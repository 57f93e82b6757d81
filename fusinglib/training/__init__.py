"""Training: a task and a base model in, a finetuned model and its scores out.

Start with `finetuning`, the training loop; `stacked` trains many runs as one. `tasks` is the table
of tasks, `rows` reads theirs (own `files` among them), `data` makes splits of these (`groups` finds
texts in common, `description` summarizes), `tokens` caches token ids, `models` are T5 and encoders,
`folders` hold them, `scoring` scores labels, `cards` record what a model was trained on.
`settings` holds the settings.
`miniworld` generates the miniature world, `pretraining` trains its model, and by `estimation`,
`fisher` and `gram` say how much weights and inputs matter.
"""

"""Training: a task and a base model in, a finetuned model and its scores out.

Begin with `finetuning`, the loop. `tasks` is the table of tasks, `data` makes splits and texts of
their rows (`groups` finds those that share texts, `description` says what they are like), `tokens`
keeps what tokenizers make of them, `models` are T5 and encoders, `scoring` scores labels, `cards`
say what a model was trained on; `settings` says how all that is done.
`miniworld` writes the miniature world, `pretraining` trains its model, and `fisher` estimates what
each weight of a finetuned model matters.
"""

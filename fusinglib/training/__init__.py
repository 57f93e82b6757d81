"""Training: a task and a base model in, a finetuned model and its scores out.

Begin with `finetuning`, the loop. `tasks` is the table of tasks, `data` makes splits and texts of
their rows, `models` turns texts into tokens and answers (T5 and encoders), `scoring` scores labels;
`settings` says how all that is done. `miniworld` writes the miniature world, `pretraining` trains
its model, and `fisher` estimates what each weight of a finetuned model matters.
"""

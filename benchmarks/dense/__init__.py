"""The dense bench: micro backbones at equal budget on digit scenes, one row of a CSV a (model, task, seed).

`plan` says what there is to train, `train` trains a row, `run` all that are missing, each in a process of its own, `rows` keeps the
results, and `report` turns them into tables and a plot. All models of a task share one recipe: the shipped micro config, in which
`set_backbone` puts another model.
"""

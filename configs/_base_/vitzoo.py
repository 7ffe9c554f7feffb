# What makes a config ours: the backbones are found, a terminal shows a progress bar, a resumed run repeats what the first would have done.
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook'), dict(type='vitzoo.ReseedHook')]

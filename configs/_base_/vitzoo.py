# What makes a config ours: the backbones are found, and a terminal shows a progress bar.
custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)
custom_hooks = [dict(type='vitzoo.ProgressBarHook')]

# The digits demo with the hook of own_evaluation.py, which the second line imports.
_base_ = '../configs/patchmix_vit-digits.py'
custom_imports = dict(imports=['mmpatchmix.registry', 'own_evaluation'], allow_failed_imports=False)

default_hooks = dict(clusters=dict(type='mmpatchmix.ClusterHook'))

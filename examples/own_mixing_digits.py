# The digits demo with the mixing of own_mixing.py, which the second line imports.
_base_ = '../configs/patchmix_vit-digits.py'
custom_imports = dict(imports=['mmpatchmix.registry', 'own_mixing'], allow_failed_imports=False)

model = dict(data_preprocessor=dict(mixing=dict(type='mmpatchmix.mix_bands', height=4)))

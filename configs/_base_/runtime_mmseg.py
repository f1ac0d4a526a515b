# The runtime of segmentation: mmseg's scope and pictures.
_base_ = './runtime.py'

default_scope = 'mmseg'
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=2), visualization=dict(type='SegVisualizationHook')
)
visualizer = dict(type='SegLocalVisualizer', name='visualizer')

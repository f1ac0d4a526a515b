# The runtime of detection: mmdet's scope and pictures, a checkpoint of every epoch.
_base_ = './runtime.py'

custom_imports = dict(
    imports=[
        'mmpatchmix.registry',
        'mmpatchmix.datasets.coco_files',
        'mmpatchmix.models.detection.full_precision',
    ]
)
default_scope = 'mmdet'
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=2),
    visualization=dict(type='DetVisualizationHook'),
    # Compares num_classes of the heads with the classes of the data.
    num_classes=dict(type='NumClassCheckHook'),
)
env_cfg = dict(cudnn_benchmark=False)  # images differ in size
visualizer = dict(type='DetLocalVisualizer', name='visualizer')

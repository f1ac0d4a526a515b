"""Data sets and the crops of the workers."""

from mmpatchmix import registry  # prepares the stack before it is imported
from mmpatchmix.datasets.digits import Digits
from mmpatchmix.datasets.image_folder import ImageFolder
from mmpatchmix.datasets.load_any_image import LoadAnyImage
from mmpatchmix.datasets.multi_crop import LoadMultiCrop, MultiCrop
from mmpatchmix.datasets.pack_views import PackViews, channels_first
from mmpatchmix.datasets.sharded_images import ShardedImages
from mmpatchmix.datasets.skip_unreadable import CustomDataset
from mmpatchmix.datasets.view_transforms import ResizeCentre, ResizeEdge, TransformViews

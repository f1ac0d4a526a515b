"""Files of the Hugging Face hub by name: ``hf:ORG/NAME[@REVISION][:FILE]``."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Weights in the folder of a model, the first kind that there is.
_WEIGHTS = ('model*.safetensors*', 'pytorch_model*')


def resolve(path: str | Path) -> Path:
    """Return a path, or the local copy of a file or folder of the hub.

    Downloads, cache, tokens and offline mode are those of ``huggingface_hub``. Without FILE,
    configs and weights are downloaded.

    Raises:
        ValueError: If the name is malformed, or its repository is no folder of a model.
        OSError: If there is no such file, or no access to it.
    """
    if not str(path).startswith('hf:'):
        return Path(path)
    from huggingface_hub import hf_hub_download, snapshot_download

    match = re.fullmatch(r'hf:([^/@:]+/[^/@:]+)(?:@([^:]+))?(?::(.+))?', str(path))
    if match is None:
        raise ValueError(f'{path} must be hf:ORG/NAME, hf:ORG/NAME:FILE or hf:ORG/NAME@REVISION.')
    repo, revision, file = match.groups()
    with _explain(path):
        if file:
            return Path(hf_hub_download(repo, file, revision=revision))
        for weights in _WEIGHTS:
            patterns = ['config.json', 'preprocessor_config.json', weights]
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
            if any(folder.glob(weights)) and (folder / 'config.json').is_file():
                return folder
    raise ValueError(
        f'{path} has no config.json with weights: name a file of it, hf:{repo}:FILE '
        f'(https://huggingface.co/{repo}/tree/main).'
    )


def push(folder: str | Path, repo: str) -> str:
    """Upload a folder to ``ORG/NAME``, private if it is new; return the address."""
    from huggingface_hub import HfApi

    with _explain(repo):
        url = HfApi().create_repo(repo, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message='Upload a backbone')
    return str(url)


@contextmanager
def _explain(name: str | Path) -> Iterator[None]:
    """Raise errors of the hub's client and of the network in one line."""
    try:
        yield
    except Exception as error:
        text = ' '.join(str(error).split())
        raise OSError(f'{name}: {type(error).__name__}: {text}') from error

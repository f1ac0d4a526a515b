"""How mmengine's hook saves the best checkpoint without a moment in which there is none."""

from typing import Any

from mmengine import dist
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner


class KeepsFiles(LocalBackend):
    """A file backend that notes down what it is asked to remove."""

    def __init__(self) -> None:
        self.outdated: set[str] = set()

    def remove(self, filepath: str) -> None:
        """Note down a file."""
        self.outdated.add(str(filepath))


class SavesAside:
    """The Runner as mmengine's hook sees it when it saves the best checkpoint."""

    def __init__(self, runner: Runner, hook: CheckpointHook) -> None:
        self.runner, self.hook = runner, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **settings: Any) -> None:
        """Write aside, verify, rename; called on all ranks."""
        for name in ('file_client_args', 'backend_args'):
            settings.pop(name)
        self.runner.call_hook('prepare_checkpoint')
        self.hook._refuse_infinite_weights(self.runner)
        if dist.is_main_process():
            self.hook._write(self.runner, self.runner.save_checkpoint, filename, **settings)

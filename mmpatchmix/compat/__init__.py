"""What makes the OpenMMLab stack run on today's torch, one reason per file."""


def prepare_openmmlab() -> None:
    """Apply every workaround; called before anything of OpenMMLab is imported."""

"""Find a config by its path, or a recipe by its name."""

import difflib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# Of an installed package (put there as mmpretrain does it), and of the repository.
FOLDERS = (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs')


def list_recipes() -> dict[str, Path]:
    """Return the shipped configs by name, such as ``linear/vit-s_in1k``."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1])
    files = sorted(folder.rglob('*.py'))
    names = {file.relative_to(folder).with_suffix('').as_posix(): file for file in files}
    return {name: file for name, file in names.items() if not name.startswith('_base_')}


def find_config(name: str) -> Path:
    """Return the file of a config.

    Args:
        name: A path, or the name of a shipped recipe.

    Raises:
        FileNotFoundError: If it is neither; near names are listed.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = list_recipes()
    if name in recipes:
        return recipes[name]
    wanted = name.removesuffix('.py').removeprefix('configs/')
    near = [recipe for recipe in recipes if recipe.rpartition('/')[2] == wanted]
    near = near or difflib.get_close_matches(wanted, recipes, n=3)
    raise FileNotFoundError(
        f'there is no config {name}, neither a file nor a recipe'
        + (f'; did you mean {" or ".join(near)}?' if near else f': {", ".join(recipes)}.')
    )

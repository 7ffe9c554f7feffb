"""The answer of `load_checkpoint`."""
from dataclasses import asdict, dataclass, field


@dataclass
class LoadReport:
    """What became of a checkpoint.

    loaded: entries of the model that came from the file. renamed: published name to ours. dropped: entries of the file that belong to
    another published form and have no place in the model. new: entries of the model that the file does not have and that keep their
    initial values. adapted: entries of the model whose values were changed for its number of image channels (first convolutions), its
    image size (position tables) or its patch size. num_others: how many of the dropped belong to other modules than the model (the neck
    of a detector).
    """
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    num_others: int = 0

    def __str__(self) -> str:
        return (f'{len(self.loaded)} loaded ({len(self.renamed)} renamed), {len(self.dropped)} dropped, {len(self.new)} new'
                + (f', {len(self.adapted)} adapted' if self.adapted else ''))

    def to_dict(self) -> dict:
        return asdict(self)

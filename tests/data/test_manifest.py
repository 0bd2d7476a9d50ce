"""Manifests: the shipped ones read, mistakes are named with the nearest right word."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stmae_data.errors import ManifestError
from stmae_data.manifest import label_slug, load_manifest, shipped

SMALL = """
name = "small"
release = "1"
kind = "kinetics"
from = ["raw"]

[splits.train]
annotations = ["raw/train.csv"]

[splits.val]
words = ["validate"]

[labels]
names = ["b", "a"]
[labels.synonyms]
"Old A" = "a"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["k400", "k600", "k700", "k700-2020", "web"])
def test_shipped_manifest_reads_under_its_own_name(name: str) -> None:
    assert name in shipped()
    found = load_manifest(name)
    assert found.name == name
    assert found.path is None
    assert not found.is_redistributable


@pytest.mark.parametrize(
    ("name", "table"), [("k400", "k400"), ("k600", "k600"), ("k700", "k700"), ("k700-2020", "k700")]
)
def test_shipped_labels_are_the_published_lists(name: str, table: str, shared_dir: Path) -> None:
    published = (shared_dir / "real" / "labels" / f"label_map_{table}.txt").read_text().splitlines()
    labels = load_manifest(name).labels
    assert list(labels) == published
    assert list(labels) == sorted(labels), "the index is the rank among the sorted labels"
    assert len({label_slug(label) for label in labels}) == len(labels)


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    found = load_manifest(path)
    assert found.roots == (tmp_path / "raw",)
    assert found.split("train").annotations == (str(tmp_path / "raw" / "train.csv"),)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_manifest(str(path)) == found


def test_split_goes_by_any_of_its_words(tmp_path: Path) -> None:
    found = load_manifest(write(tmp_path, SMALL))
    assert found.split("Validate").name == "val"
    assert found.split_of_word("dev") is None
    with pytest.raises(ManifestError, match=r"small has no split 'vall'; it has train, val .did you mean 'val'"):
        found.split("vall")


def test_three_spellings_of_a_label_are_one() -> None:
    spellings = [
        "massaging person's head",
        "massaging_person's_head",
        "massaging_persons_head",
        ' "Massaging person’s head" ',
    ]
    assert {label_slug(each) for each in spellings} == {"massaging_persons_head"}
    spellings = ["petting animal (not cat)", "petting_animal_(not_cat)", "petting_animal_not_cat"]
    assert {label_slug(each) for each in spellings} == {"petting_animal_not_cat"}


def test_unknown_manifest_names_the_shipped_and_the_nearest() -> None:
    with pytest.raises(ManifestError, match=r"no manifest 'k40'.*'k400'.*shipped are .*k400, k600.*FILE\.toml"):
        load_manifest("k40")


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.toml cannot be read \(No such file"):
        load_manifest(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('release = "1"', 'relase = "1"', r"unknown key 'relase' \(did you mean 'release'\?\)"),
        (
            'words = ["validate"]',
            'word = ["validate"]',
            r"\[splits.val\] has an unknown key 'word' \(did you mean 'words'",
        ),
        ('names = ["b", "a"]', "names = 3", r"\[labels\]: names is 3, wanted a list of texts"),
        ('release = "1"', "", "does not say 'release'"),
        ('kind = "kinetics"', 'kind = "kinetix"', r"kind is 'kinetix' \(did you mean 'kinetics'\?\)"),
        ('name = "small"', 'name = "../small"', "name is '../small'"),
        ('release = "1"', 'release = "1"\nshard_bytes = 0', "shard_bytes is 0, wanted more than 0"),
        ('release = "1"', 'release = "1"\nseed = true', "seed is True, wanted a whole number"),
        ('release = "1"', 'release = "1"\nfiles = "pieces"', "files is 'pieces'"),
        ("[splits.val]", "[splits.Val]", "small letters"),
        ('words = ["validate"]', 'words = ["train"]', "'train' names both split train and split val"),
        ('names = ["b", "a"]', 'names = ["a b", "A_B"]', "'a_b' stands twice"),
        ('release = "1"', 'release = "1"\nevaluation_splits = ["dev"]', "no split 'dev'"),
        ('release = "1"', 'release = "1', "is not TOML"),
        ('"Old A" = "a"', '"Old A" = 1', "must map texts to texts"),
    ],
)
def test_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(ManifestError, match=message):
        load_manifest(write(tmp_path, SMALL.replace(old, new)))


def test_manifest_without_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="names no split"):
        load_manifest(write(tmp_path, 'name = "a"\nrelease = "1"\nkind = "folder"\n[splits]\n'))

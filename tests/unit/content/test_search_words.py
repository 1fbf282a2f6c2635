"""What a person typed, taken apart: words, exclusions and names."""

from __future__ import annotations

import pytest

from resources.content.search_words import read_words


@pytest.mark.parametrize(
    ("query", "wanted", "excluded"),
    [
        ("refund -shipping", "refund", "-shipping"),
        ("-shipping refund", "refund", "-shipping"),
        ("jaguar -car -cars", "jaguar", "-car -cars"),
        ("-parcels", "", "-parcels"),
        ('noon -"free of charge" parcels', "noon parcels", '-"free of charge"'),
        ('"free of charge"', '"free of charge"', ""),
        ("python -m pip install", "python m pip install", ""),
        ("ls -l", "ls l", ""),
        ("find . -name x", "find name x", ""),
        ("run --verbose", "run verbose", ""),
        ("at -40 degrees", "at 40 degrees", ""),
        ("KX-4417 third-party", "KX-4417 third-party", ""),
        ("os.path.join a.b U.S.A. 3.11", "os_path_join a.b U.S.A. 3.11", ""),
        ("input/output /usr/local ./configure", "input_output usr_local . configure", ""),
        ('"', "", ""),
        ("- -- ???", "", ""),
        ("terms or conditions", "terms or conditions", ""),
    ],
)
def test_words_and_what_shall_not_be_there(query: str, wanted: str, excluded: str) -> None:
    read = read_words(query)
    assert (read.wanted, read.excluded) == (wanted, excluded)
    assert read.query == f"{wanted} {excluded}".strip()


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("how do I use start_new_thread", "start_new_thread"),
        ("what is os.path.join for", "os_path_join"),
        ("KX-4417 does not load", "KX-4417"),
        ("what does assertEqual compare", "assertEqual"),
        ("why is it a TypeError -list", "TypeError"),
        ('who says "free of charge" here', '"free of charge"'),
        ("how do I send it back", ""),
        ("What Is The URL", ""),
        ("os.path.join", ""),
    ],
)
def test_names_are_what_nobody_types_by_accident(query: str, names: str) -> None:
    read = read_words(query)
    assert read.names == names
    assert read.named == (f"{names} {read.excluded}".strip() if names else None)


def test_the_model_reads_the_question_as_it_was_typed_without_what_shall_not_be_there() -> None:
    assert read_words("python -m pip install?").meaning == "python -m pip install?"
    assert read_words("a big jaguar -car").meaning == "a big jaguar"


def test_parts_of_names_are_words_that_may_stand_apart() -> None:
    assert read_words("csv.DictReader fieldnames -tsv").apart == "csv DictReader fieldnames -tsv"
    assert read_words("reader of fieldnames").apart is None
    assert read_words("csv.DictReader fieldnames").count == 3

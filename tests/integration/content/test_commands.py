"""`omniops embed`, `omniops search`, and what `env` and `doctor` say of models: output, exit status, errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from resources.settings import EmbeddingSettings
from tests.support.embedding_server import KEY, EmbeddingServer, serve_embeddings
from tests.support.pages import SHOP, add_customer, add_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from tests.integration.content.conftest import Call
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

MODEL = "test-48"


@pytest.fixture
def shop(database: Database) -> UUID:
    customer = add_customer(database, "shop")
    add_pages(database, customer, SHOP)
    return customer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    """An endpoint that is the configured provider."""
    with serve_embeddings() as served:
        given = served.environment(MODEL, api_key=KEY, max_tries=1)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        yield served


def vectors(database: Database) -> object:
    return database.value("SELECT count(*) FROM page_embeddings")


# --- embed ------------------------------------------------------------------------------------------------------


def test_a_model_is_prepared_used_listed_and_forgotten(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    assert omniops("embed", "--models") == (0, "Nothing was embedded yet.\n", "")
    status, out, err = omniops("embed", "--prepare", "--json")
    assert (status, err) == (0, "")
    made = json.loads(out)
    assert (made["model"], made["dimensions"], len(made["indexes"])) == (MODEL, 48, 2)
    assert "was ready already" in omniops("embed", "--prepare")[1]
    status, out, _ = omniops("embed", "--missing", "--json", "--limit", "1")
    assert (status, json.loads(out)["pages"]) == (0, 1)
    status, out, _ = omniops("embed", "--missing", "--customer", "shop", "--json")
    done = json.loads(out)
    assert (status, done["pages"], done["stopped"]) == (0, len(SHOP) - 1, None)
    assert "pages" in omniops("embed", "--missing")[1]
    listed = json.loads(omniops("embed", "--models", "--json")[1])
    assert [(one["model"], one["in_use"], one["waiting_pages"], one["indexed"]) for one in listed] == [
        (MODEL, True, 0, True)
    ]
    assert MODEL in omniops("embed", "--models")[1]
    status, _, err = omniops("embed", "--forget", MODEL)
    assert status == 2
    assert "--yes" in err
    assert "search would be full text alone" in err
    status, out, _ = omniops("embed", "--forget", MODEL, "--yes", "--json")
    assert (status, json.loads(out)["pages"], vectors(database)) == (0, len(SHOP), 0)


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "words"),
    [
        ((), {}, 2, "say one of --missing"),
        (("--missing", "--prepare"), {}, 2, "say one of --missing"),
        (("--models", "--customer", "shop"), {}, 2, "go with --missing"),
        (("--missing", "--limit", "0"), {}, 2, "--limit"),
        (("--missing", "--customer", "nobody"), {}, 1, "no customer 'nobody'"),
        (("--forget", "word2vec"), {}, 2, "no vectors were made with 'word2vec'"),
        (("--missing",), {"OMNIOPS_EMBEDDINGS": "none"}, 2, "OMNIOPS_EMBEDDINGS is none"),
        (("--missing",), {"OMNIOPS_EMBEDDINGS": "word2vec"}, 1, "must be one of minilm, openai, none"),
        (
            ("--missing",),
            {"OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS": "100"},
            1,
            "100, but one piece of a page may have 512",
        ),
        (("--missing",), {"OMNIOPS_EMBEDDINGS_MODEL": "unknown"}, 1, "omniops embed --prepare"),
        (("--missing",), {"OMNIOPS_EMBEDDINGS_MODEL": ""}, 1, "OMNIOPS_EMBEDDINGS_MODEL must name"),
        (("--missing",), {"OMNIOPS_EMBEDDINGS_DIMENSIONS": "96"}, 1, "48 dimensions in this database, not of 96"),
        (("--prepare",), {"OMNIOPS_EMBEDDINGS_DIMENSIONS": "96"}, 1, "48 dimensions in this database, not of 96"),
        (
            ("--missing",),
            {"OMNIOPS_EMBEDDINGS_API_KEY": "", "OMNIOPS_EMBEDDINGS_URL": "https://api.openai.com/v1"},
            1,
            "OMNIOPS_EMBEDDINGS_API_KEY",
        ),
        (("--missing",), {"OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE": "0"}, 1, "OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE"),
        (
            ("--missing",),
            {"OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE": "0", "OMNIOPS_EMBEDDINGS_URL": "http://169.254.169.254/v1"},
            1,
            "OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE",
        ),
        (("--missing",), {"OMNIOPS_EMBEDDINGS_URL": f"http://x:{KEY}@127.0.0.1/v1"}, 1, "_API_KEY"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence_without_the_key_and_writes_nothing(
    arguments: tuple[str, ...], environment: dict[str, str], status: int, words: str, database: Database, shop: UUID,
    server: EmbeddingServer, omniops: Call,
) -> None:  # fmt: skip
    assert omniops("embed", "--prepare")[0] == 0
    assert omniops("embed", "--missing", "--json")[0] == 0
    before, asked = vectors(database), len(server.asked)
    add_pages(database, shop, {"/new": "# New\n\nThis waits."})
    ended = omniops("embed", *arguments, **environment)
    assert (ended[0], ended[1]) == (status, "")
    assert words in ended[2]
    assert KEY not in ended[2]
    assert "Traceback" not in ended[2]
    assert (vectors(database), len(server.asked)) == (before, asked)


def test_an_endpoint_that_refuses_or_gives_another_width_is_an_error_that_says_so(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    omniops("embed", "--prepare")
    server.answer = lambda *_: (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    status, out, err = omniops("embed", "--missing")
    assert (status, out) == (1, "")
    assert "OMNIOPS_EMBEDDINGS_API_KEY is missing or wrong" in err
    assert KEY not in err
    server.answer = lambda *_: None
    server.dimensions = 96
    status, out, err = omniops("embed", "--missing")
    assert (status, out, vectors(database)) == (1, "", 0)
    assert "OMNIOPS_EMBEDDINGS_DIMENSIONS is 48" in err


def test_trouble_after_the_first_batch_is_exit_1_and_what_is_stored_is_said(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    add_pages(database, shop, {f"/{n}": f"# {n}\n\nPage {n}." for n in range(20)})
    omniops("embed", "--prepare")
    server.answer = lambda number, _: (503, {}, {}) if number else None
    bounded = {"OMNIOPS_EMBEDDINGS_BATCH": "8", "OMNIOPS_EMBEDDINGS_CONCURRENCY": "1"}
    status, out, _ = omniops("embed", "--missing", "--json", **bounded)
    done = json.loads(out)
    assert status == 1
    assert "answered 503" in done["stopped"]
    assert 0 < done["pages"] < 24
    server.answer = lambda *_: None
    assert json.loads(omniops("embed", "--missing", "--json")[1])["pages"] == 24 - done["pages"]


def test_a_budget_smaller_than_a_page_is_no_trouble_and_runs_until_it_is_done(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    add_pages(database, shop, {"/long": "# Long\n\n" + " ".join(f"Sentence {n} says little." for n in range(60))})
    bounded = {"OMNIOPS_EMBEDDINGS_MAX_TOKENS": "64", "OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS": "200"}
    omniops("embed", "--prepare")
    said = []
    for _ in range(20):
        status, out, _ = omniops("embed", "--missing", "--json", **bounded)
        said.append(json.loads(out))
        assert status == 0
        if said[-1]["stopped"] is None:
            break
        assert "may send 200 tokens" in said[-1]["stopped"]
    assert said[-1]["stopped"] is None
    assert [one["unfinished"] for one in said[1:-1]] == [1] * (len(said) - 2)
    assert "of one page a part is embedded and kept" in said[1]["stopped"]
    assert len(said) > 3
    assert vectors(database) == len(server.texts) == len(set(server.texts)) == sum(one["embedded"] for one in said)


# --- search -----------------------------------------------------------------------------------------------------


def test_search_prints_pages_with_the_words_marked_and_the_arms(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    omniops("embed", "--prepare")
    omniops("embed", "--missing")
    status, out, err = omniops("search", "money", "back", "--customer", "shop", "--limit", "2")
    assert (status, err) == (0, "")
    assert out.lstrip().startswith("1. Returns")
    assert "https://shop.example/returns" in out
    assert "words and meaning (similarity 0." in out
    assert "**" not in out
    status, out, _ = omniops("search", "money back", "--customer", "shop", "--json")
    found = json.loads(out)
    assert (found["mode"], found["model"], found["notice"]) == ("hybrid", MODEL, None)
    assert set(found["results"][0]) == {
        "url", "title", "snippet", "heading", "score", "found_by", "domain", "page_id",
        "similarity",
    }  # fmt: skip
    assert "**money**" in found["results"][0]["snippet"]


def test_without_vectors_search_is_full_text_and_says_so_on_standard_error(
    database: Database, shop: UUID, omniops: Call
) -> None:
    status, out, err = omniops("search", "refunds", "--customer", "shop")
    assert status == 0
    assert "by words" in out
    assert "full text alone" in err
    assert "omniops embed --missing" in err
    none = json.loads(omniops("search", "refunds", "--customer", "shop", "--json", OMNIOPS_EMBEDDINGS="none")[1])
    assert (none["mode"], none["model"]) == ("text", None)
    assert "OMNIOPS_EMBEDDINGS is none" in none["notice"]
    assert omniops("search", "zebra", "--customer", "shop")[1] == "Nothing was found.\n"


def test_an_endpoint_in_trouble_leaves_full_text_and_says_so(
    database: Database, shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    omniops("embed", "--prepare")
    omniops("embed", "--missing")
    server.answer = lambda *_: (500, {}, {})
    status, out, err = omniops("search", "refunds", "--customer", "shop", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["mode"] == "text"
    assert "answered 500" in json.loads(out)["notice"]
    assert KEY not in out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("",), 2, "empty"),
        (("x" * 2_000,), 2, "2,000 characters"),
        (("refunds", "--limit", "0"), 2, "limit is 0"),
        (("refunds", "--limit", "101"), 2, "limit is 101"),
        (("refunds", "--domain", "https://shop.example/"), 2, "domain"),
        (("refunds", "--customer", "nobody"), 1, "no customer 'nobody'"),
        (("refunds", "--customer", "No Slug"), 1, "No Slug"),
        ((), 2, "QUERY"),
    ],
)
def test_a_wrong_search_is_said_in_words(
    arguments: tuple[str, ...], status: int, words: str, shop: UUID, omniops: Call
) -> None:
    customer = () if "--customer" in arguments else ("--customer", "shop")
    ended = omniops("search", *arguments, *customer)
    assert (ended[0], ended[1]) == (status, "")
    assert words in ended[2]


# --- env and doctor ---------------------------------------------------------------------------------------------


def test_env_gives_the_models_settings_and_never_the_key(
    server: EmbeddingServer, omniops: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = omniops("env")
    assert status == 0
    assert KEY not in out
    assert "API_KEY" not in out
    lines = dict(line.removeprefix("export ").split("=", 1) for line in out.splitlines())
    again = EmbeddingSettings.from_environment({name: value.strip("'") for name, value in lines.items()})
    given = EmbeddingSettings.from_environment()
    assert {**again.as_environment()} == {**given.as_environment()}
    assert (again.provider, again.model, again.dimensions, again.url) == ("openai", MODEL, 48, server.url)


def test_the_doctor_says_which_model_there_is_how_many_pages_wait_and_what_is_wrong(
    shop: UUID, server: EmbeddingServer, omniops: Call
) -> None:
    def finding(**environment: str) -> dict[str, Any]:
        findings = json.loads(omniops("doctor", "--json", **environment)[1])
        (found,) = (one for one in findings if one["part"] == "embeddings")
        return dict(found)

    missing = finding()
    assert not missing["ok"]
    assert "omniops embed --prepare" in missing["what_to_do"]
    omniops("embed", "--prepare")
    ready = finding()
    assert ready["ok"]
    assert f"{MODEL} (openai), 48 dimensions; {len(SHOP)} pages wait" in ready["found"]
    omniops("embed", "--missing")
    assert "; 0 pages wait" in finding()["found"]
    assert finding(OMNIOPS_EMBEDDINGS="none") == {
        "part": "embeddings", "ok": True, "found": "none: search is full text alone", "what_to_do": "",
    }  # fmt: skip
    assert not finding(OMNIOPS_EMBEDDINGS="word2vec")["ok"]
    assert len(server.asked) == 1, "the endpoint was asked to embed, and for nothing else"


def test_a_website_that_was_never_read_is_named(database: Database, shop: UUID, omniops: Call) -> None:
    """A mistyped domain is no success with nothing to do."""
    status, out, err = omniops("embed", "--missing", "--domain", "nowhere.example")
    assert (status, out, "nowhere.example" in err) == (2, "", True)
    assert vectors(database) == 0

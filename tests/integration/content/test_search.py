"""Search: both arms and their fusion, languages, snippets, tenants, the cache, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from resources.content.embed import embed_missing
from resources.content.embeddings.minilm import MiniLM
from resources.content.embeddings.openai_compatible import OpenAICompatible
from resources.content.hybrid_search import InvalidSearch, Search
from resources.content.search_cache import forget_searches
from resources.postgres.connection import DatabaseError
from resources.postgres.content import index_waiting_content
from resources.postgres.search import Vectors, pages_with_words, vectors_of
from resources.postgres.tenancy import service_connection, tenant_connection, tenant_pipeline
from resources.redis import RedisWithFallback
from resources.settings import EmbeddingSettings
from tests.support.pages import SHOP, add_customer, add_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database

MINILM = MiniLM.shared(2)


@pytest.fixture
def shop(database: Database) -> UUID:
    customer = add_customer(database, "shop")
    add_pages(database, customer, SHOP)
    return customer


@pytest.fixture
def embedded(database: Database, shop: UUID) -> UUID:
    embed_missing(database.engine, MINILM)
    return shop


def paths(found: Any) -> list[str]:
    return [one.url.removeprefix("https://shop.example") for one in found]


# --- what is found ---------------------------------------------------------------------------------------------


def test_a_paraphrase_is_found_by_vectors_and_a_name_by_full_text(database: Database, embedded: UUID) -> None:
    search = Search(database.engine, MINILM)
    found = search.search("can I send back what I bought and be reimbursed", embedded)
    assert found.mode == "hybrid"
    assert found.notice is None
    assert found.model == MINILM.model
    assert paths(found)[0] == "/returns"
    assert found[0].found_by == "vector"
    # The score only ranks; by the similarity an answer is told from what is merely the least bad.
    nothing_like_it = search.search("quantum chromodynamics on a lattice", embedded)
    assert nothing_like_it[0].score > 0.9
    assert found[0].similarity is not None
    assert nothing_like_it[0].similarity is not None
    assert found[0].similarity > nothing_like_it[0].similarity + 0.2
    named = search.search("KX-4417 charger", embedded)
    assert paths(named)[0] == "/batteries"
    assert named[0].found_by == "both"
    assert named[0].score == 1.0
    assert "**charger**" in named[0].snippet
    assert len(set(paths(named))) == len(named) == len(SHOP)
    assert [one.score for one in named] == sorted((one.score for one in named), reverse=True)


def test_without_vectors_it_is_full_text_and_says_so(database: Database, shop: UUID) -> None:
    none = Search(database.engine).search("refunds", shop)
    assert (none.mode, paths(none), none[0].found_by) == ("text", ["/returns"], "text")
    assert none[0].similarity is None
    assert none.notice is not None
    assert "OMNIOPS_EMBEDDINGS is none" in none.notice
    not_yet = Search(database.engine, MINILM).search("refunds", shop)
    assert (not_yet.mode, paths(not_yet)) == ("text", ["/returns"])
    assert not_yet.notice is not None
    assert "omniops embed --missing" in not_yet.notice


def test_an_endpoint_in_trouble_costs_the_vectors_and_not_the_search(database: Database, shop: UUID) -> None:
    settings = EmbeddingSettings(
        provider="openai", url="http://127.0.0.1:9/v1", model="test", dimensions=384, max_tries=1, allow_private=True
    )
    with database.engine.begin() as connection:  # as if it had embedded them before its trouble
        connection.execute(
            text("""
                INSERT INTO page_embeddings
                    (page_id, customer_id, model, chunk_index, chunk_text, chunk_hash, embedding)
                SELECT id, customer_id, 'test', 0, 'x', 'x', array_fill(1, ARRAY[384])::real[]::halfvec
                FROM scraped_pages""")
        )
    cache = RedisWithFallback(database.redis_url)
    search = Search(database.engine, OpenAICompatible(settings), cache)
    for _ in range(2):  # not cached either
        found = search.search("refunds", shop)
        assert (found.mode, paths(found)) == ("text", ["/returns"])
        assert found.notice is not None
        assert "127.0.0.1" in found.notice
    cache.close()


def test_words_are_read_by_the_language_of_the_page(database: Database) -> None:
    customer = add_customer(database, "languages")
    add_pages(database, customer, {"/en": "# Houses\n\nWe build houses."}, lang="en-GB")
    add_pages(database, customer, {"/de": "# Häuser\n\nWir bauen Häuser aus Holz."}, lang="de")
    add_pages(database, customer, {"/xx": "# Huizen\n\nWij bouwen houtenhuizen."}, lang="xx")
    search = Search(database.engine)
    assert paths(search.search("building house", customer)) == ["/en"]
    german = search.search("Haus Holz", customer)
    assert paths(german) == ["/de"]
    assert "**Häuser**" in german[0].snippet
    assert paths(search.search("houtenhuizen", customer)) == ["/xx"]


def test_all_words_where_a_page_has_them_else_some(database: Database, shop: UUID) -> None:
    search = Search(database.engine)
    assert paths(search.search("money back", shop)) == ["/returns"]
    some = search.search("zebra parcels", shop)
    assert paths(some) == ["/shipping"]
    assert paths(search.search('"working day"', shop)) == ["/shipping"]
    assert paths(search.search("noon -parcels", shop)) == []
    assert paths(search.search("the of and", shop)) == []


def test_nothing_found_says_why(database: Database, embedded: UUID) -> None:
    nobody = add_customer(database, "nobody")
    unindexed = add_customer(database, "unindexed")
    add_pages(database, unindexed, SHOP, index=False)
    for search in (Search(database.engine), Search(database.engine, MINILM)):
        for query, customer, domain, why in (
            ("-parcels", embedded, None, "only what shall not be there"),
            ("-parcels", embedded, "nowhere.example", "shop.example"),
            ("???", embedded, None, "no word in the question"),
            ("refund", embedded, "nowhere.example", "nothing was found on nowhere.example"),
            ("refund", nobody, None, "no pages yet"),
            ("refund", unindexed, None, "no page of this customer's is indexed yet"),
        ):
            found = search.search(query, customer, domain=domain)
            assert len(found) == 0
            assert found.notice is not None
            assert why in found.notice, (query, found.notice)
    for query, why in (
        ("the of and", "stand everywhere"),
        ("noon -parcels", "has none of -parcels"),
        ("zebra", "no page has one of these words"),
    ):
        notice = Search(database.engine).search(query, embedded).notice
        assert notice is not None
        assert why in notice


def test_a_word_that_shall_not_be_there_is_on_no_page_that_vectors_find(database: Database, embedded: UUID) -> None:
    search = Search(database.engine, MINILM)
    assert paths(search.search("when do you send it", embedded)) != []
    found = search.search("when do you send it -parcels", embedded)
    assert found.mode == "hybrid"
    assert set(paths(found)) == {"/returns", "/opening-hours", "/batteries"}


def test_a_command_is_found_as_it_is_pasted(database: Database) -> None:
    customer = add_customer(database, "commands")
    add_pages(
        database,
        customer,
        {"/pip": "# Installing\n\nRun python -m pip install --user spam.", "/x": "# Python\n\nA pip."},
    )
    assert paths(Search(database.engine).search("python -m pip install --user", customer)) == ["/pip"]


def test_names_are_found_whole_and_by_their_parts(database: Database) -> None:
    customer = add_customer(database, "names")
    add_pages(
        database, customer,
        {
            "/path": "# Paths\n\nCall `os.path.join(a, b)` for it; see also config.yaml.",
            "/join": "# Joining\n\nYou join a club; os is a bone, and a path is narrow. Yaml has a config.",
            "/reader": "# Readers\n\nThe class DictReader. Its attribute fieldnames is a list.",
            "/io": "# Devices\n\nInput/output errors, and version 3.11 of 19.99 euro.",
        },
    )  # fmt: skip
    search = Search(database.engine)
    for query in ("os.path.join", "path.join", "config.yaml"):
        assert paths(search.search(query, customer)) == ["/path"], query
    assert set(paths(search.search("path join", customer))) == {"/path", "/join"}
    assert paths(search.search("DictReader.fieldnames", customer)) == ["/reader"]
    assert paths(search.search("output", customer)) == ["/io"]
    assert paths(search.search("3.11", customer)) == ["/io"]
    assert "**os.path.join**(a" in search.search("os.path.join", customer)[0].snippet
    assert "see also **config.yaml**" in search.search("config.yaml", customer)[0].snippet
    assert "**Input**/output" in search.search("input", customer)[0].snippet


def test_the_page_with_the_name_is_among_the_first_however_long_the_question_is(
    database: Database, embedded: UUID
) -> None:
    add_pages(
        database, embedded,
        {f"/charging-{n}": f"# Charging {n}\n\nHow long the charger takes for battery {n}." for n in range(30)},
    )  # fmt: skip
    embed_missing(database.engine, MINILM)
    found = Search(database.engine, MINILM).search(
        "how long does the charger take until the battery of a KX-4417 is full", embedded, 3
    )
    assert "/batteries" in paths(found)


def test_snippets_begin_and_end_with_whole_words(database: Database, embedded: UUID) -> None:
    filler = "Donaudampfschifffahrtsgesellschaft considerations nevertheless. " * 60
    add_pages(database, embedded, {"/long": f"# Long\n\n{filler}A marten sleeps. {filler}"})
    whole = {*filler.split(), "A", "**marten**", "sleeps.", "Long"}
    for search in (Search(database.engine), Search(database.engine, MINILM)):
        (found, *_) = search.search("martens", embedded)
        assert "**marten**" in found.snippet
        assert set(found.snippet.split()) <= whole
    unbroken = "\u6f22" * 3_000
    add_pages(database, embedded, {"/unbroken": f"# Unbroken\n\n{unbroken}"})
    assert Search(database.engine).search("unbroken", embedded)[0].snippet != ""


def test_pages_stay_found_until_they_are_indexed_anew(database: Database, shop: UUID) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE website_content SET title_search = NULL"))
    add_pages(database, shop, {"/new": "# New\n\nRefunds of late."}, index=False)
    search = Search(database.engine)
    assert paths(search.search("refunds", shop)) == ["/returns"]
    # What is not found yet, first.
    assert index_waiting_content(database.engine, 1) == 1
    assert set(paths(search.search("refunds", shop))) == {"/returns", "/new"}
    assert index_waiting_content(database.engine, 100) == len(SHOP)
    assert index_waiting_content(database.engine, 100) == 0


def test_a_page_that_is_gone_is_not_found(database: Database, embedded: UUID) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET removed_at = now() WHERE url LIKE '%/returns'"))
    found = Search(database.engine, MINILM).search("refunds money back", embedded)
    assert found.mode == "hybrid"
    assert "/returns" not in paths(found)


def test_one_website_of_several(database: Database, embedded: UUID) -> None:
    add_pages(database, embedded, {"/returns": SHOP["/returns"]}, domain="outlet.example")
    embed_missing(database.engine, MINILM)
    search = Search(database.engine, MINILM)
    assert {one.domain for one in search.search("refund", embedded)} == {"shop.example", "outlet.example"}
    assert {one.domain for one in search.search("refund", embedded, domain="Outlet.example")} == {"outlet.example"}
    assert len(search.search("refund", embedded, domain="nowhere.example")) == 0


def test_a_snippet_is_the_passage_with_the_words_wherever_it_stands(database: Database) -> None:
    customer = add_customer(database, "long")
    filler = "Nothing to see in this sentence, or in the next. " * 400
    add_pages(database, customer, {"/long": f"# Long\n\n{filler}\n\nThe <b>marten</b> sleeps & dreams.\n\n{filler}"})
    found = Search(database.engine).search("martens", customer)
    assert "**marten**" in found[0].snippet
    assert len(found[0].snippet) < 600


def test_two_models_and_the_switch_between_them_is_the_provider(database: Database, embedded: UUID) -> None:
    class Other(MiniLM):
        model = "another-384"

    from resources.postgres.embeddings import prepare_model

    other = Other(1)
    before = Search(database.engine, other).search("send back what I bought", embedded)
    assert before.mode == "text"
    prepare_model(database.owner_url, other.model, 384)
    embed_missing(database.engine, other)
    for provider in (MINILM, other):
        found = Search(database.engine, provider).search("send back what I bought", embedded)
        assert (found.mode, found.model, paths(found)[0]) == ("hybrid", provider.model, "/returns")


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_are_found_one_by_one_and_by_the_index(
    database: Database, embedded: UUID, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        other = add_customer(database, f"other-{number}")
        add_pages(database, other, {f"/{n}": f"# Refunds {n}\n\nReturns and refunds, number {n}." for n in range(30)})
    embed_missing(database.engine, MINILM)
    if not exact:
        monkeypatch.setattr("resources.postgres.search._FEW_VECTORS", 0)
        monkeypatch.setattr("resources.postgres.search._EVEN_COST", 0)
    with tenant_pipeline(embedded, engine=database.engine) as connection:
        assert vectors_of(connection, MINILM.model)() == Vectors(any=True, few=exact)
    found = Search(database.engine, MINILM).search("returns and refunds", embedded)
    assert len(found) == len(SHOP)
    assert paths(found)[0] == "/returns"


# --- whose ------------------------------------------------------------------------------------------------------


def test_nobody_finds_anothers_pages(database: Database, embedded: UUID) -> None:
    other = add_customer(database, "other")
    add_pages(database, other, {"/secret": "# Secret returns\n\nThe refunds of the other customer."})
    embed_missing(database.engine, MINILM)
    search = Search(database.engine, MINILM)
    assert "/secret" not in paths(search.search("secret refunds of the other customer", embedded, 100))
    assert paths(search.search("secret refunds", other)) == ["/secret"]


def test_full_text_asks_the_context_and_nothing_else(database: Database, shop: UUID) -> None:
    question = "SELECT count(*) FROM search_pages(search_query('refunds', false), NULL, 10)"
    with tenant_connection(shop, engine=database.engine) as connection:
        assert connection.scalar(text(question)) == 1
        # A function's search path is no way in.
        connection.execute(text("CREATE TEMPORARY TABLE website_content (page_id bigint)"))
        assert connection.scalar(text(question)) == 1
    with tenant_connection(uuid4(), engine=database.engine) as connection:
        assert connection.scalar(text(question)) == 0
        # Another's query does not open another's pages.
        assert connection.scalar(text("SELECT count(*) FROM search_pages('refund'::tsquery, NULL, 10)")) == 0
    with service_connection(engine=database.engine) as connection:
        assert connection.scalar(text(question)) == 0  # no context, no rows
    for claims in ("", "{}", '{"customer_id": null}'):
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT set_config('request.jwt.claims', :claims, true), "
                    "set_config('role', 'authenticated', true)"
                ),
                {"claims": claims},
            )
            assert connection.scalar(text(question)) == 0
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL ROLE anon"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            connection.execute(text(question))
        connection.rollback()


def test_a_tenant_cannot_reach_the_working_tables(database: Database, shop: UUID) -> None:
    for table in ("embedding_models", "search_configurations"):
        with tenant_connection(shop, engine=database.engine) as connection, pytest.raises(ProgrammingError):
            connection.execute(text(f"SELECT * FROM omniops_meta.{table}"))


def test_a_refusal_of_the_database_is_a_sentence_and_leaves_no_role_behind(database: Database, shop: UUID) -> None:
    with (
        pytest.raises(DatabaseError, match="refused"),
        tenant_pipeline(shop, engine=database.engine) as connection,
    ):
        connection.execute("SELECT 1 / (SELECT count(*) FROM customers WHERE id <> %s)", (shop,))
    with (
        pytest.raises(DatabaseError, match="permission denied"),
        tenant_pipeline(shop, engine=database.engine) as connection,
    ):
        connection.execute("SELECT * FROM omniops_meta.embedding_models").fetchall()
    with database.engine.begin() as connection:
        assert connection.scalar(text("SELECT current_setting('request.jwt.claims', true)")) in (None, "")
        assert connection.scalar(text("SELECT current_user = session_user")) is True


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(database: Database) -> Iterator[RedisWithFallback]:
    client = RedisWithFallback(database.redis_url)
    yield client
    client.close()


def test_results_are_cached_by_customer_and_forgotten_when_content_changes(
    database: Database, embedded: UUID, cache: RedisWithFallback
) -> None:
    search = Search(database.engine, MINILM, cache, cache_seconds=60)
    first = search.search("refunds", embedded)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET url = url || '?changed' WHERE url LIKE '%/returns'"))
    assert search.search("  refunds ", embedded) == first
    assert search.search("refunds", embedded, limit=3) != first
    other = add_customer(database, "other")
    assert len(search.search("refunds", other)) == 0
    forget_searches(cache, other)
    assert search.search("refunds", embedded) == first
    forget_searches(cache, embedded)
    assert paths(search.search("refunds", embedded))[0] == "/returns?changed"


def test_embedding_makes_cached_results_old(database: Database, shop: UUID, cache: RedisWithFallback) -> None:
    search = Search(database.engine, MINILM, cache, cache_seconds=60)
    assert search.search("refunds", shop).mode == "text"
    embed_missing(database.engine, MINILM, cache=cache)
    assert search.search("refunds", shop).mode == "hybrid"


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"query": " \n "}, "the query is empty"),
        ({"query": "a\x00b"}, "NUL"),
        ({"query": "x" * 1_001}, "1,001 characters, and 1,000 are the most"),
        ({"limit": 0}, "from 1 to 100"),
        ({"limit": 101}, "from 1 to 100"),
        ({"limit": True}, "from 1 to 100"),
        ({"domain": "https://shop.example/"}, "must be a host"),
        ({"customer_id": "shop"}, "not a uuid"),
        ({"customer_id": uuid4()}, "there is no customer"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    database: Database, shop: UUID, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidSearch, match=says):
        Search(database.engine).search(**{"query": "refunds", "customer_id": shop, **given})


@pytest.mark.parametrize(
    "query",
    [
        "'; DROP TABLE customers; --",
        "a & | ! b",
        "((",
        '"',
        "%s %(x)s :x",
        "\\",
        "🦀",
        "\ud800 refunds",
        "-",
        "or or",
    ],
)
def test_any_text_is_a_query(database: Database, shop: UUID, query: str) -> None:
    Search(database.engine).search(query, shop)
    assert database.value("SELECT count(*) FROM customers") == 1


def test_of_very_many_pages_with_a_word_those_with_it_in_the_title_come_first(database: Database) -> None:
    customer = add_customer(database, "many")
    add_pages(database, customer, {f"/{n}": f"# Page {n}\n\nA badger." for n in range(450)})
    long = "Where badgers live, and what else there is to say of the wood and of its other animals. " * 20
    add_pages(database, customer, {"/badgers": f"# Badgers\n\n{long}"})
    with tenant_pipeline(customer, engine=database.engine) as connection:
        few = pages_with_words(connection, "badgers", domain=None, limit=10)
        many = pages_with_words(connection, "badgers", domain=None, limit=1_000)
        found = few()
        assert len(found) == len(set(found)) == 10
        assert len(many()) == 451
    titled = database.value("SELECT id FROM scraped_pages WHERE url LIKE '%/badgers'")
    assert found[0] == titled
    assert len(Search(database.engine).search("badgers", customer, 100)) == 100

"""What a user would take instead: Scrapy, with an item pipeline that writes the same rows in batches.

Scrapy's own scheduler, duplicate filter and robots.txt middleware; logging, telnet console, cookies and
autothrottle off. The rows, their trigger and their constraints are the project's; a batch of 100 pages is one
transaction, and one statement for each table.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import psycopg
import scrapy
from scrapy import signals
from scrapy.crawler import CrawlerProcess
from scrapy.linkextractors import LinkExtractor

from bench.contenders.stores import meter, new_job
from resources import stack
from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import site_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from scrapy.crawler import Crawler
    from scrapy.http import Response

    from bench.measure import Meter

BATCH = 100

_INSERT_RESULTS = """
    INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status, processing_time_ms, content_hash,
                                    depth, tries, bytes)
    SELECT %(job)s, %(customer)s, r.url, 'success', r.http_status, r.ms, r.content_hash, r.depth, 1, r.bytes
    FROM unnest(%(urls)s::text[], %(statuses)s::integer[], %(ms)s::integer[], %(hashes)s::text[],
                %(depths)s::integer[], %(bytes)s::bigint[]) AS r (url, http_status, ms, content_hash, depth, bytes)
"""
_INSERT_PAGES = """
    INSERT INTO scraped_pages (customer_id, domain, url, title, description, canonical_url, lang, http_status, etag,
                               last_modified, content_hash, last_job_id)
    SELECT %(customer)s, %(domain)s, p.url, p.title, p.description, p.canonical_url, p.lang, p.http_status, p.etag,
           p.last_modified, p.content_hash, %(job)s
    FROM unnest(%(urls)s::text[], %(titles)s::text[], %(descriptions)s::text[], %(canonicals)s::text[],
                %(langs)s::text[], %(statuses)s::integer[], %(etags)s::text[], %(modified)s::text[],
                %(hashes)s::text[])
             AS p (url, title, description, canonical_url, lang, http_status, etag, last_modified, content_hash)
"""
_INSERT_TEXTS = """
    INSERT INTO website_content (page_id, customer_id, text, markdown, word_count, search)
    SELECT p.id, p.customer_id, c.text, c.markdown, c.words, to_tsvector('english', c.text)
    FROM unnest(%(urls)s::text[], %(texts)s::text[], %(markdowns)s::text[], %(words)s::integer[])
             AS c (url, text, markdown, words)
    JOIN scraped_pages AS p ON p.customer_id = %(customer)s AND p.url = c.url
"""
# An item's keys, as the statements name their lists.
_KEYS = """
    urls statuses ms hashes depths bytes titles descriptions canonicals langs etags modified texts markdowns words
"""


class PagesSpider(scrapy.Spider):
    """Follows every link of one site."""

    name = "pages"

    def __init__(self, url: str, links: str, order: dict[str, Any], meter: Meter) -> None:
        super().__init__()
        self.order = order
        self.meter = meter
        self.start_urls = [url]
        self.allowed_domains = [site_of(url).partition(":")[0]]
        self._text = order["text"]
        self._main = order["main"]
        self._extractor = LinkExtractor(allow_domains=[site_of(url)]) if links == "extractor" else None

    async def start(self) -> AsyncIterator[Any]:
        """The start url; without `dont_filter`, so that a link back to it is no second page."""
        for url in self.start_urls:
            yield scrapy.Request(url)

    def parse(self, response: Response) -> Iterator[Any]:
        """The page's item, and its links."""
        yield self._item(response)
        if self._extractor is not None:
            for link in self._extractor.extract_links(response):
                yield scrapy.Request(link.url)
        else:
            for href in response.css("a::attr(href)").getall():
                yield scrapy.Request(response.urljoin(href))

    def _item(self, response: Response) -> dict[str, Any]:
        from hashlib import blake2b

        header = response.headers.get
        text = markdown = None
        if self._main:
            import trafilatura

            # As its documentation has it for speed, and once: the text is the markdown.
            text = markdown = (
                trafilatura.extract(response.text, response.url, fast=True, output_format="markdown") or ""
            )
        elif self._text:
            found = response.xpath("//body//text()[not(ancestor::script or ancestor::style)]").getall()
            text = " ".join(" ".join(found).split())
        return {
            "urls": response.url,
            "statuses": response.status,
            "ms": round(response.meta["download_latency"] * 1_000),
            "hashes": blake2b(response.body, digest_size=16).hexdigest(),
            "depths": response.meta["depth"],
            "bytes": len(response.body),
            "titles": response.css("title::text").get(),
            "descriptions": response.css('meta[name="description"]::attr(content)').get(),
            "canonicals": response.css('link[rel="canonical"]::attr(href)').get(),
            "langs": response.css("html::attr(lang)").get(),
            "etags": (header("ETag") or b"").decode() or None,
            "modified": (header("Last-Modified") or b"").decode() or None,
            "texts": text,
            "markdowns": markdown,
            "words": text.count(" ") + 1 if text else 0,
        }


class PostgresPipeline:
    """Gathers items and writes them, `BATCH` at a time."""

    def __init__(self, order: dict[str, Any], meter: Meter) -> None:
        self._order = order
        self._meter = meter
        self._text = order["text"]
        self._connection: psycopg.Connection = order["connection"]
        self._items: list[dict[str, Any]] = []
        self.written = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> PostgresPipeline:
        """Made by Scrapy; what it needs came with the spider, since settings hold no connections."""
        spider = crawler.spider
        if not isinstance(spider, PagesSpider):
            msg = "this pipeline is for the spider `pages`"
            raise TypeError(msg)
        return cls(spider.order, spider.meter)

    def process_item(self, item: dict[str, Any]) -> dict[str, Any]:
        """Take an item; write when a batch is full."""
        self._items.append(item)
        if len(self._items) >= BATCH:
            self._write()
        return item

    def close_spider(self) -> None:
        """Write the rest."""
        self._write()
        self._order["written"] = self.written

    def _write(self) -> None:
        items, self._items = self._items, []
        if not items:
            return
        values: dict[str, Any] = {key: [item[key] for item in items] for key in _KEYS.split()}
        values |= {key: self._order[key] for key in ("job", "customer", "domain")}
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(_INSERT_PAGES, values)
            if self._text:
                cursor.execute(_INSERT_TEXTS, values)
            # Last, so that the lock on the job's statistics is short.
            cursor.execute(_INSERT_RESULTS, values)
        self.written += len(items)
        self._meter.page_count(self.written)


def main() -> None:
    """Crawl once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--text", action="store_true", help="keep the pages' texts, full-text indexed")
    parser.add_argument("--main", action="store_true", help="keep their main text, by trafilatura, instead")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--links", choices=("extractor", "css"), default="css")
    parser.add_argument("--uvloop", action="store_true", help="run Scrapy's reactor on uvloop")
    options = parser.parse_args()
    job = new_job(CrawlPlan(urls=(options.url,)))
    measure = meter("scrapy-main" if options.main else "scrapy-text" if options.text else "scrapy")
    with psycopg.connect(stack.endpoints().database_url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        order = {
            "job": job.job_id,
            "customer": job.customer_id,
            "domain": site_of(options.url),
            "text": options.text or options.main,
            "main": options.main,
            "connection": connection,
            "written": 0,
        }
        process = CrawlerProcess(
            {
                "LOG_ENABLED": False,
                "TELNETCONSOLE_ENABLED": False,
                "COOKIES_ENABLED": False,
                "AUTOTHROTTLE_ENABLED": False,
                "ROBOTSTXT_OBEY": True,
                "DOWNLOAD_DELAY": 0,
                "CONCURRENT_REQUESTS": options.concurrency,
                "CONCURRENT_REQUESTS_PER_DOMAIN": options.concurrency,
                "ASYNCIO_EVENT_LOOP": "uvloop.Loop" if options.uvloop else None,
                "ITEM_PIPELINES": {PostgresPipeline: 300},
            }
        )
        crawler = process.create_crawler(PagesSpider)
        # From the spider's first request to the pipeline's last commit.
        crawler.signals.connect(measure.start, signal=signals.spider_opened, weak=False)
        crawler.signals.connect(lambda: measure.stop(order["written"]), signal=signals.spider_closed, weak=False)
        process.crawl(crawler, url=options.url, links=options.links, order=order, meter=measure)
        process.start()
        job.manager.update_job_status(job.job_id, "completed", finish_reason="exhausted")
    measured = measure.measured
    measured.job_id = job.job_id
    measured.details = {
        "concurrency": options.concurrency,
        "links": options.links,
        "uvloop": options.uvloop,
        "reason": crawler.stats.get_value("finish_reason") if crawler.stats else None,
        "robots": crawler.stats.get_value("robotstxt/request_count") if crawler.stats else None,
    }
    measured.print()
    stack.release()


if __name__ == "__main__":
    main()

"""A website made by scripts, on `tests.support.site`: honest pages, and pages that are a browser's trouble."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from aiohttp import web

from tests.support.site import Page

if TYPE_CHECKING:
    from tests.support.site import Site

# One script routes by path, asks the server for its data after a while, and draws links by the history API.
_APP = """
const render = async () => {
  await new Promise(done => setTimeout(done, 300));
  const answer = await fetch('/api' + location.pathname);
  const data = answer.ok ? await answer.json() : {title: 'Lost', text: 'No such page.', links: []};
  document.title = data.title;
  const root = document.getElementById('root');
  root.innerHTML = '<h1></h1><p></p><nav></nav>';
  root.querySelector('h1').textContent = data.title;
  root.querySelector('p').textContent = data.text;
  for (const link of data.links) {
    const a = document.createElement('a');
    a.href = link; a.textContent = link;
    a.onclick = (event) => { event.preventDefault(); history.pushState({}, '', link); render(); };
    root.querySelector('nav').append(a);
  }
};
render();
"""
SHELL = (
    b"<!doctype html><html lang='en'><head><title>App</title></head><body><div id='root'></div>"
    b"<noscript>You need to enable JavaScript to run this app.</noscript>"
    b"<script type='module' src='/static/app.js'></script></body></html>"
)


def text_of(path: str) -> str:
    """What the application says on a page."""
    return f"Everything about {path}, told by a script. " * 8


def add_application(site: Site, pages: dict[str, list[str]]) -> None:
    """Pages by path, with the links that they show once their script has run."""
    site.pages["/static/app.js"] = Page(_APP.encode(), headers={"Content-Type": "text/javascript"})
    for path, links in pages.items():
        site.pages[path] = Page(SHELL, headers={"Content-Type": "text/html", "ETag": '"shell"'})
        data = {"title": f"Title of {path}", "text": text_of(path), "links": links}
        site.pages["/api" + path] = Page(json.dumps(data).encode(), headers={"Content-Type": "application/json"})


def add_script(site: Site, path: str, script: str, *, body: str = "", head: str = "") -> None:
    """A page with some words and this script."""
    said = f"<p>These are the words of {path} as the server sent them.</p>{body}"
    page = (
        f"<!doctype html><html><head><title>{path}</title>{head}</head><body>{said}<script>{script}</script></body>"
    )
    site.pages[path] = Page(page.encode())


def add_endless_list(site: Site, path: str, chunks: int) -> None:
    """A list that grows when its end is scrolled to, so many times."""
    add_script(
        site,
        path,
        """
        let n = 0;
        const more = async () => {
          const items = await (await fetch('/items?chunk=' + n)).json();
          n += 1;
          for (const item of items) {
            const row = document.createElement('p');
            row.style.height = '200px';
            row.textContent = item;
            document.getElementById('list').append(row);
          }
        };
        new IntersectionObserver(seen => { if (seen.some(s => s.isIntersecting) && n < CHUNKS) more(); },
                                 {rootMargin: '50px'}).observe(document.getElementById('end'));
        """.replace("CHUNKS", str(chunks)),
        body="<div id='list'></div><div id='end' style='height: 10px'></div>",
    )
    for chunk in range(chunks):
        items = [f"Item {chunk * 10 + n} of the list" for n in range(10)]
        site.pages[f"/items?chunk={chunk}"] = Page(
            json.dumps(items).encode(), headers={"Content-Type": "application/json"}
        )


def add_flood(site: Site, path: str, megabytes: int) -> None:
    """An answer of so many megabytes, piece by piece."""

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        for _ in range(megabytes):
            await response.write(b"x" * 2**20)
        return response

    site.pages[path] = flood


def add_silence(site: Site, path: str) -> None:
    """A path that never answers."""

    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3_600)
        return web.Response()

    site.pages[path] = silent

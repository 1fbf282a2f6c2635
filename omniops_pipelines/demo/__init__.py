"""A small company website that ships with the project, so that a crawl needs no network.

``pages/`` holds the content, one fragment a page; :mod:`.site` wraps the fragments in one layout,
and :mod:`.server` serves the result on loopback. Nothing here knows of Dagster, of the crawler or of
the stores: to them this is a website like any other.
"""

from omniops_pipelines.demo.server import DemoSite, serve_demo_site

__all__ = ["DemoSite", "serve_demo_site"]

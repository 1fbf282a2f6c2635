"""Rendering: pages that scripts make, in a browser that is kept behind the crawl's own guard.

What belongs here: Chromium (`chromium`, `browser`), its way out (`proxy`), one page in it (`tab`), and the choice of
pages that need it (`shells`, `fetcher`). What does not: what is fetched and when (the crawl), and what a page says
(`page`). Playwright is an optional package: nothing here imports it until a browser is started.
"""

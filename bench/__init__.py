"""Benchmarks of the crawl, side by side with what one would take instead. See README.md."""

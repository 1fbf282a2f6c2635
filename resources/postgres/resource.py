"""The permanent tier as a Dagster resource: the face that jobs and assets use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from resources import stack
from resources.postgres.frontier import CrawlFrontier
from resources.postgres.jobs import PersistentJobManager
from resources.settings import Settings

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from resources.services import Endpoints


class PostgresResource(dg.ConfigurableResource[None]):
    """Postgres, by `OMNIOPS_DATABASE_URL` or embedded."""

    database_url: str = Field(
        default="",
        description="A postgresql:// url. Empty: OMNIOPS_DATABASE_URL, or else the embedded Postgres.",
    )

    def _settings(self) -> Settings:
        settings = Settings.from_environment()
        if not self.database_url:
            return settings
        return replace(settings, database_url=self.database_url)

    def endpoints(self) -> Endpoints:
        """The addresses in use; an embedded server is held until the process ends."""
        return stack.endpoints(self._settings())

    def engine(self) -> Engine:
        """The process's pool of connections."""
        return stack.database_engine(self._settings())

    def frontier(self, job_id: str, customer_id: UUID | str) -> CrawlFrontier:
        """A job's frontier, on connections whose transactions end where their process is frozen."""
        lease = self._settings().crawl_lease_seconds
        return CrawlFrontier(self.crawl_engine(), job_id, customer_id, lease_seconds=lease)

    def crawl_engine(self) -> Engine:
        """The pool of those who crawl."""
        return stack.crawl_engine(self._settings())

    def job_manager(self) -> PersistentJobManager:
        """The audit trail of jobs."""
        return PersistentJobManager(self.engine(), stack.cache(self._settings()))

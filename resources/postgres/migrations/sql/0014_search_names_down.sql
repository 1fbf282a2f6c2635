-- Back to revision 0013. Texts stay indexed as they are: names with a dot are found when their page is indexed anew.
DROP INDEX public.website_content_search, public.website_content_unindexed;
ALTER TABLE public.website_content DROP COLUMN title_search;
CREATE INDEX website_content_search ON public.website_content USING gin (search) WITH (fastupdate = on);
CREATE INDEX website_content_unindexed ON public.website_content (page_id) WHERE search IS NULL;

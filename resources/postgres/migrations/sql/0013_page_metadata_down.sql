-- Back to what revisions 0005, 0007 and 0010 have; their functions follow.
DROP FUNCTION public.crawl_commit_batch, public.put_down_page_version;
DROP TRIGGER website_content_versions ON public.website_content;
CREATE TRIGGER website_content_versions AFTER UPDATE OF text ON public.website_content
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text) EXECUTE FUNCTION public.keep_page_version();
DROP TRIGGER scraped_pages_retitled ON public.scraped_pages;
CREATE TRIGGER scraped_pages_retitled AFTER UPDATE OF title ON public.scraped_pages
    FOR EACH ROW WHEN (NEW.title IS DISTINCT FROM OLD.title)
    EXECUTE FUNCTION public.scraped_pages_retitled();
ALTER TABLE omniops_meta.page_html DROP COLUMN source_hash;
ALTER TABLE public.scraped_pages DROP COLUMN published_at;
COMMENT ON COLUMN public.scraped_pages.content_hash IS 'Of the normalised main text.';
COMMENT ON COLUMN public.website_content.updated_at IS NULL;

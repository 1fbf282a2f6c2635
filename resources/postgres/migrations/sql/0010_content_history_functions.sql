-- The text that an update replaces is kept, ten versions of a page at most. A page read again from the same HTML
-- (setting omniops.same_page) has not said anything else, only we have understood it otherwise. With its owner's rights:
-- customers may change their content, and see nothing of omniops_meta.
CREATE FUNCTION public.keep_page_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF coalesce(current_setting('omniops.same_page', true), '') = 'on' THEN
        RETURN NULL;
    END IF;
    INSERT INTO omniops_meta.page_versions (page_id, customer_id, valid_from, valid_to, markdown, text)
    VALUES (OLD.page_id, OLD.customer_id, OLD.updated_at, greatest(NEW.updated_at, OLD.updated_at), OLD.markdown, OLD.text)
    ON CONFLICT (page_id, valid_to) DO NOTHING;
    DELETE FROM omniops_meta.page_versions AS v
    WHERE v.page_id = OLD.page_id
      AND v.valid_to < (SELECT k.valid_to FROM omniops_meta.page_versions AS k WHERE k.page_id = OLD.page_id
                        ORDER BY k.valid_to DESC OFFSET 9 LIMIT 1);
    RETURN NULL;
END
$$;
-- Of the columns that are set: full-text indexing sets another one, and pays nothing for this.
CREATE TRIGGER website_content_versions AFTER UPDATE OF text ON public.website_content
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text) EXECUTE FUNCTION public.keep_page_version();

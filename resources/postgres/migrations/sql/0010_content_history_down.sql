DROP TRIGGER website_content_versions ON public.website_content;
DROP FUNCTION public.keep_page_version;
DROP TABLE omniops_meta.site_blocks, omniops_meta.page_html, omniops_meta.page_versions;

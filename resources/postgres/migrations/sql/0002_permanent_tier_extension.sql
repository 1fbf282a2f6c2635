-- pgvector has to be there for page_embeddings. Where this role may not install it, somebody who may has to.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS vector;
EXCEPTION WHEN insufficient_privilege OR undefined_file THEN
    RAISE EXCEPTION 'the extension "vector" (pgvector) is missing, and this role cannot install it (%): have a superuser run CREATE EXTENSION vector in this database',
        SQLERRM USING ERRCODE = 'feature_not_supported';
END
$$;

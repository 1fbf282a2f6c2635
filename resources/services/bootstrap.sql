-- Run once in a new cluster, in single-user mode, connected to template1: what stands here is in every later
-- database too, so that a test's or a tenant's own database has the extensions without a superuser.
-- A statement ends with a semicolon and an empty line.
CREATE EXTENSION vector;

CREATE EXTENSION pg_trgm;

CREATE EXTENSION pg_stat_statements;

CREATE EXTENSION unaccent;

-- Migrates, and makes the roles that Supabase brings where they are missing.
CREATE ROLE omniops_owner LOGIN CREATEROLE NOSUPERUSER NOBYPASSRLS;

-- Runs the program. Row-level security binds it.
CREATE ROLE omniops LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOBYPASSRLS;

GRANT pg_read_all_stats TO omniops_owner, omniops;

GRANT pg_read_all_settings TO omniops;

CREATE DATABASE omniops OWNER omniops_owner;

REVOKE ALL ON DATABASE omniops FROM PUBLIC;

GRANT CONNECT, TEMPORARY ON DATABASE omniops TO omniops;


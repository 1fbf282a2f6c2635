DROP TABLE omniops_meta.waiting_vectors;

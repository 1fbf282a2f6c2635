"""The ephemeral tier without a server: keys, the store in memory, rate windows."""

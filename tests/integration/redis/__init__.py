"""The ephemeral tier on real Valkey servers, which are killed, frozen, filled and restarted."""

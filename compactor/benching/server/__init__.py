"""The server scenario: a batching server in this process, or a running endpoint over HTTP."""

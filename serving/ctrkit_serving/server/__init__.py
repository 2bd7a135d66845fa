"""The server: Open Inference Protocol v2 over HTTP and gRPC, versions, admission, metrics."""

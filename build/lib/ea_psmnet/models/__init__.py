"""The network: configuration, features, aggregation and weights."""

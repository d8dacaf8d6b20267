"""Policy files: weights, normalizer, action bounds and metadata, without pickle."""

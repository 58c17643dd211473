"""TFRecord with a typed schema: what a record holds, its bytes, shards and their manifest, and reading in order."""

"""Text in, batches of token ids out: readers, tokenizers, TFRecord, batching by length."""

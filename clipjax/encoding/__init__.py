"""Images and texts to embeddings, in padded batches; prompts and the zero-shot head."""

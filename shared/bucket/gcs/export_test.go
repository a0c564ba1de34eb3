package gcs

// Small chunks, so that objects need not be large to go out in pieces.
func init() { chunkSize = 1 << 20 }

package azure

// Small pieces, so that objects need not be large to go out in several.
func init() { blockSize, copyWhole, copyBlock = 1<<20, 2<<20, 1<<20 }

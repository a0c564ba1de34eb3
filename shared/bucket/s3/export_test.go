package s3

// Small limits, so that objects need not be large to be copied in parts.
func init() { copyLimit, copyPart = 4<<20, 5<<20 }

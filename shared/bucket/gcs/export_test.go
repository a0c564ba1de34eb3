package gcs

import (
	"time"

	"google.golang.org/grpc/status"
)

// AnswerTimeout has servers be patient for so long, until the function it returns is called.
func AnswerTimeout(d time.Duration) func() {
	was := answerTimeout
	answerTimeout = d
	return func() { answerTimeout = was }
}

// Translate says in the bucket's words what a server said over gRPC.
func Translate(s *status.Status) error { return translate(asAnswer(s)) }

// Small chunks, so that objects need not be large to go out in pieces.
func init() { chunkSize = 1 << 20 }

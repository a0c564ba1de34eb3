package topology

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// TestElecting: what nodes answer while a cluster elects is to be waited for, and nothing else that they say.
func TestElecting(t *testing.T) {
	t.Parallel()
	for code, passes := range map[jetstream.ErrorCode]bool{unavailable: true, jetstream.JSErrCodeJetStreamNotEnabled: false} {
		api := &jetstream.APIError{Code: 503, ErrorCode: code}
		err := electing(fmt.Errorf("bind: %w", api))
		if errors.Is(err, ErrNoLeader) != passes || !errors.Is(err, api) {
			t.Errorf("%d: %v", code, err)
		}
	}
	if err := electing(nil); err != nil {
		t.Error(err)
	}
}

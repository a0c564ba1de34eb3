package scanner

import (
	"errors"

	"millrace/shared/event"
	"millrace/shared/store"
)

// ReadNotification reads a stored notification as the scanner does, for those who explain what came of it. about is
// false for one that is well formed and not about a change of one of the connector's objects.
func ReadNotification(c store.Connector, data []byte) (n event.Notification, about bool, err error) {
	n, err = decode(c, data)
	if errors.Is(err, errIgnored) {
		return n, false, nil
	}
	return n, err == nil, err
}

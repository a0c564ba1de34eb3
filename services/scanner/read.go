package scanner

import (
	"errors"

	"millrace/shared/event"
	"millrace/shared/store"
)

// ReadNotification reads a stored notification as the scanner does, for those who explain what came of it: the changes
// it tells of, none for one that is well formed and not about a change of one of the connector's objects.
func ReadNotification(c store.Connector, data []byte) ([]event.Notification, error) {
	list, err := decode(c, data)
	if errors.Is(err, errIgnored) {
		return nil, nil
	}
	return list, err
}

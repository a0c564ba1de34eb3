package scanner

import (
	"context"
	"errors"
	"iter"
	"log/slog"

	"millrace/shared/bucket"
	"millrace/shared/event"
	"millrace/shared/match"
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

// List lists a bucket as scans do, in no order, for those who measure that by itself.
func (c Config) List(
	ctx context.Context, src bucket.Source, conn store.Connector, selects *match.Matcher,
) iter.Seq2[event.Object, error] {
	return func(yield func(event.Object, error) bool) {
		c.setDefaults()
		l := newListing(src, conn, selects, newLimits(c.ListRequests, c.ListRate), nil)
		for pg, err := range l.pages(ctx) {
			if err != nil {
				yield(event.Object{}, err)
				return
			}
			for _, f := range pg.files {
				if f.refused == "" && !yield(f.Object, nil) {
					return
				}
			}
		}
	}
}

// Matching is what a scanner does to a notification before it asks anybody, for those who measure that by itself.
type Matching struct{ n notifications }

// NewMatching returns the matching of a configuration.
func NewMatching(connectors []store.Connector, automations []store.Automation) *Matching {
	c := newConfig(nil, nil, nil, slog.New(slog.DiscardHandler))
	for i := range connectors {
		c.seeConnector(store.Change[store.Connector]{Key: connectors[i].ID, Value: &connectors[i]})
	}
	for i := range automations {
		c.seeAutomation(store.Change[store.Automation]{Key: automations[i].ID, Value: &automations[i]})
	}
	return &Matching{notifications{config: c}}
}

// Read returns how many automations want the objects that a notification of a connector is about.
func (m *Matching) Read(ctx context.Context, connector string, data []byte) (wanted int, err error) {
	c, err := m.n.config.connector(ctx, connector)
	for _, to := range m.n.readOne(nil, 0, c, err, data) {
		if to.err != nil {
			return 0, to.err
		}
		wanted += len(to.wanted)
	}
	return wanted, nil
}

package service

import (
	"context"

	"millrace/shared/control"
	"millrace/shared/event"
)

// Router returns a control-plane router whose dead letters go to the dead stream.
func (e Env) Router() (*control.Router, error) {
	return control.New(control.Config{
		Connect: e.Connect,
		Logger:  e.Log,
		Metrics: e.Metrics,
		Dead: func(ctx context.Context, l control.Letter) error {
			return e.Bus.Bury(ctx, event.Dead{
				Consumer: l.Consumer, Stream: l.Stream, Subject: l.Subject, Reason: l.Reason, Stage: l.Stage,
				Delivered: l.Delivered, Header: l.Header, Data: l.Data,
			})
		},
	})
}

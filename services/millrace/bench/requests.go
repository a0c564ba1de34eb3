package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"millrace/shared/broker"
)

// answers measures what the API costs over NATS: the slowest of a hundred requests for a record, beside requests to a
// program that answers the same bytes without doing anything.
func answers(ctx context.Context, l *lab) (_ []Row, err error) {
	up, err := l.up(ctx, settings{data: filepath.Join(l.dir, "data"), bus: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, up.stop()) }()
	var index struct {
		ID string `json:"index_id"`
	}
	if err := up.Do(ctx, http.MethodPost, "/indexes", map[string]string{"name": "Bench"}, &index); err != nil {
		return nil, err
	}
	body := []byte(`{"index_id": "` + index.ID + `"}`)
	n := 100 * l.size.requests

	// p99 of n requests one after the other, in µs.
	measure := func(subject string, body []byte) (p99 float64, answer []byte, err error) {
		took := make([]float64, 0, n)
		for i := range n + n/10 { // the first tenth warms up
			begin := time.Now()
			m, err := up.conn.RequestWithContext(ctx, subject, body)
			if err != nil {
				return 0, nil, fmt.Errorf("request %s: %w", subject, err)
			}
			if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
				return 0, nil, fmt.Errorf("request %s: %s", subject, m.Header.Get(micro.ErrorHeader))
			}
			if answer = m.Data; i >= n/10 {
				took = append(took, float64(time.Since(begin).Nanoseconds())/1e3)
			}
		}
		return quantile(took, 0.99), answer, nil
	}
	get := names.Subject("api", "indexes", "get")
	_, bytes, err := measure(get, body)
	if err != nil {
		return nil, err
	}
	responder, err := broker.Dial("nats://"+up.conn.ConnectedAddr(), "bench responder")
	if err != nil {
		return nil, err
	}
	defer responder.Close()
	if _, err := responder.Subscribe("bench.bare", func(m *nats.Msg) { _ = m.Respond(bytes) }); err != nil {
		return nil, err
	}
	if err := responder.Flush(); err != nil {
		return nil, err
	}
	p, err := l.alternate(
		func(int) (float64, error) { v, _, err := measure(get, body); return v, err },
		func(int) (float64, error) { v, _, err := measure("bench.bare", body); return v, err },
	)
	if err != nil {
		return nil, err
	}
	door, _, err := measure(names.Subject("api", "auth", "validate"), nil)
	if err != nil {
		return nil, err
	}
	row := Row{
		What:   "`nats req millrace.api.indexes.get`, p99",
		Beside: "p99 of a bare NATS request with the same answer",
		Target: Target{Ratio: true, N: 2},
		How: fmt.Sprintf("%s requests one after the other over a connection of TCP to `millrace up`, which reads the record from its broker for each. "+
			"The yardstick goes over the same broker to another connection that answers the same %d bytes at once.", digits(float64(n)), len(bytes)),
		Also: []string{"p99 of `auth.validate`, which reads nothing: " + digits(door) + " µs"},
	}
	p.into(&row, "µs")
	return []Row{row}, nil
}

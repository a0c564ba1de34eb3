package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// load is requests that many clients send at a time, each over a connection of its own. It costs little beside what is
// measured, which shares the processor with it: requests are ready to be sent, and answers are only looked at.
type load struct {
	addr    string
	clients int
	request func(i int) []byte // as it goes over the wire
	want    int                // the status of success
}

// wire spells a request to a server at addr.
func wire(method, addr, path string, header http.Header, body []byte) []byte {
	out := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, addr)
	for name, values := range header {
		for _, v := range values {
			out = fmt.Appendf(out, "%s: %s\r\n", name, v)
		}
	}
	if body != nil {
		out = fmt.Appendf(out, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	return append(append(out, "\r\n"...), body...)
}

// loadTime bounds one load.
const loadTime = 5 * time.Minute

// run sends n requests, and returns how many were answered per second and how long each took, in ms. With a rate they leave
// evenly, so many per second, and what waits for a client that is still busy counts as time that it took.
func (l load) run(ctx context.Context, n int, rate float64) (perSec float64, took []float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	took = make([]float64, n)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for range l.clients {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.addr)
		if err != nil {
			return 0, nil, err
		}
		conns = append(conns, conn)
		deadline, _ := ctx.Deadline()
		_ = conn.SetDeadline(deadline)
	}
	start := time.Now()
	for _, conn := range conns {
		g.Go(func() error {
			in := bufio.NewReaderSize(conn, 64<<10)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				begin := time.Now()
				if rate > 0 {
					begin = start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
					time.Sleep(time.Until(begin))
				}
				if err := l.ask(conn, in, l.request(i)); err != nil {
					return fmt.Errorf("request %d: %w", i, err)
				}
				took[i] = ms(time.Since(begin))
			}
			return ctx.Err()
		})
	}
	err = g.Wait()
	return perSecond(n, start), took, err
}

func (l load) ask(conn net.Conn, in *bufio.Reader, request []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != l.want {
		words, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return fmt.Errorf("%s: %s", res.Status, words)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

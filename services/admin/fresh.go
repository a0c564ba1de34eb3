package admin

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/shared/topology"
)

// shared answers many who ask the same thing at a time with one question. Whoever asks gets the answer to a question that
// was put after they came, so it is as fresh as if they had put it themselves.
type shared[T any] struct {
	ask func(context.Context) (T, error)

	mu     sync.Mutex
	asking bool
	next   *round[T] // of those who came since the last question was put; nil: nobody did
}

type round[T any] struct {
	many   bool
	done   chan struct{}
	answer T
	err    error
}

// gather is the least time between two questions while there are several who ask, so that the next has many of them.
const gather = 2 * time.Millisecond

func (s *shared[T]) get(ctx context.Context) (T, error) {
	s.mu.Lock()
	r := s.next
	if r == nil {
		r = &round[T]{done: make(chan struct{})}
		s.next = r
	} else {
		r.many = true
	}
	if !s.asking {
		s.asking = true
		go s.run()
	}
	s.mu.Unlock()
	select {
	case <-r.done:
		return r.answer, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (s *shared[T]) run() {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		if s.asking = r != nil; !s.asking {
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		put := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout) // of nobody who may leave
		r.answer, r.err = s.ask(ctx)
		cancel()
		close(r.done)
		if r.many {
			time.Sleep(gather - time.Since(put))
		}
	}
}

// versions change with every write to what a page of media is made of, and with everything that is removed from it.
type versions struct{ indexes, runs, media, mediaCount, reports, reportCount uint64 }

func (a *Admin) askVersions(ctx context.Context) (v versions, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { v.indexes, err = a.indexes.Last(ctx); return err })
	g.Go(func() (err error) { v.runs, err = a.runs.Last(ctx); return err })
	g.Go(func() error {
		s, err := a.bus.State(ctx, topology.Media)
		v.media, v.mediaCount = s.LastSeq, s.Msgs
		return err
	})
	g.Go(func() error {
		s, err := a.bus.State(ctx, topology.Reports)
		v.reports, v.reportCount = s.LastSeq, s.Msgs
		return err
	})
	return v, g.Wait()
}

// mediaPages are pages of media as they were answered, for as long as nothing changes: clients ask for the same ones again
// and again.
type mediaPages struct {
	mu    sync.Mutex
	at    versions
	pages map[listVideos][]byte
}

// maxMediaPages bounds the memory of mediaPages: each has about a kilobyte per medium.
const maxMediaPages = 100

func (p *mediaPages) get(at versions, asked listVideos) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	page, ok := p.pages[asked]
	return page, ok && p.at == at
}

// put remembers a page that was read after everything had come to these versions, so it may know of what came later, too;
// who asks then is told so by the versions.
func (p *mediaPages) put(at versions, asked listVideos, page []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pages == nil || p.at != at || len(p.pages) == maxMediaPages {
		p.at, p.pages = at, make(map[listVideos][]byte)
	}
	p.pages[asked] = page
}

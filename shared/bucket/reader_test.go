package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

var errBroken = errors.New("connection reset")

func content(n int) []byte { return bytes.Repeat([]byte("0123456789"), n/10+1)[:n] }

func TestReaderResumesWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &scripted{data: content(100)}
		src.script = []func([]byte) (io.ReadCloser, error){
			breakAfter(30, errBroken),
			refuse(errBroken),
			refuse(ErrUnavailable),
			breakAfter(20, io.EOF),
			breakAfter(0, errBroken),
		}
		var progress int64
		r := NewReader(t.Context(), src, src.object(), ReaderOptions{OnProgress: func(n int64) { progress += n }})
		defer r.Close()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, src.data) {
			t.Fatalf("read %q, %v", got, err)
		}
		if progress != 100 || r.Offset() != 100 {
			t.Errorf("progress %d, offset %d, want 100", progress, r.Offset())
		}
		want := []string{"a.mp4@1 0+-1", "a.mp4@1 30+-1", "a.mp4@1 30+-1", "a.mp4@1 30+-1", "a.mp4@1 50+-1", "a.mp4@1 50+-1"}
		if !slices.Equal(src.opens, want) {
			t.Errorf("opened %q", src.opens)
		}
	})
}

// summing is a source whose answers bring a checksum of what was asked for, as its listings do not.
type summing struct{ scripted }

func (s *summing) Open(ctx context.Context, path, version string, offset, length int64) (io.ReadCloser, error) {
	body, err := s.scripted.Open(ctx, path, version, offset, length)
	h := NewChecksum()
	h.Write(s.data[offset:])
	return &summingBody{body, wanted{NewChecksum(), Want{Size: h.Size(), CRC32C: h.CRC32C()}}}, err
}

type summingBody struct {
	io.ReadCloser
	sum Sum
}

func (b *summingBody) TakeSum() Sum { return b.sum }

// The checksum of the first answer is one of all bytes, however many answers they come in, also through a wrapper.
func TestReaderHoldsAllAnswersAgainstTheFirst(t *testing.T) {
	t.Parallel()
	wrong := func(rest []byte) (io.ReadCloser, error) {
		rest = bytes.Clone(rest)
		rest[10] ^= 1
		return breakAfter(30, errBroken)(rest)
	}
	for _, tt := range []struct {
		name   string
		script []func([]byte) (io.ReadCloser, error)
		want   error
	}{
		{"whole", nil, nil},
		{"broken", []func([]byte) (io.ReadCloser, error){breakAfter(0, errBroken), breakAfter(30, errBroken), breakAfter(20, io.EOF)}, nil},
		{"wrong before it broke", []func([]byte) (io.ReadCloser, error){wrong}, ErrChecksum},
		{"wrong after it broke", []func([]byte) (io.ReadCloser, error){breakAfter(5, errBroken), wrong}, ErrChecksum},
	} {
		src := &summing{scripted{data: content(100), script: tt.script}}
		obj := src.object()
		obj.CRC32C = ""
		r := NewReader(t.Context(), NewMetrics(nil).Source(src), obj, ReaderOptions{Backoff: func(int) time.Duration { return 0 }})
		if got, err := io.ReadAll(r); !errors.Is(err, tt.want) || len(got) != 100 {
			t.Errorf("%s: %d bytes, %v; want %v", tt.name, len(got), err, tt.want)
		}
		r.Close()
	}
}

func TestReaderGivesUp(t *testing.T) {
	throttled := &ThrottledError{RetryAfter: 7 * time.Second, Err: ErrThrottled}
	tests := []struct {
		name    string
		script  func(data []byte) []func([]byte) (io.ReadCloser, error)
		want    error
		opens   int
		atLeast time.Duration
	}{
		{"at once when it was overwritten", func([]byte) []func([]byte) (io.ReadCloser, error) {
			return []func([]byte) (io.ReadCloser, error){breakAfter(10, errBroken), refuse(ErrChanged)}
		}, ErrChanged, 2, 0},
		{"after four attempts without a byte", func([]byte) []func([]byte) (io.ReadCloser, error) {
			return slices.Repeat([]func([]byte) (io.ReadCloser, error){refuse(errBroken)}, 9)
		}, errBroken, 4, 300 * time.Millisecond},
		{"no sooner than the storage asks", func([]byte) []func([]byte) (io.ReadCloser, error) {
			return []func([]byte) (io.ReadCloser, error){refuse(throttled), refuse(ErrPermission)}
		}, ErrPermission, 2, 7 * time.Second},
		{"for wrong bytes", func(data []byte) []func([]byte) (io.ReadCloser, error) {
			return []func([]byte) (io.ReadCloser, error){func(rest []byte) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(bytes.ToLower(bytes.Repeat([]byte("x"), len(rest))))), nil
			}}
		}, ErrChecksum, 1, 0},
		{"for too many bytes", func(data []byte) []func([]byte) (io.ReadCloser, error) {
			return []func([]byte) (io.ReadCloser, error){func(rest []byte) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(string(rest) + "more")), nil
			}}
		}, ErrChanged, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				src := &scripted{data: content(100)}
				src.script = tt.script(src.data)
				r := NewReader(t.Context(), src, src.object(), ReaderOptions{})
				defer r.Close()
				_, err := io.ReadAll(r)
				if !errors.Is(err, tt.want) || len(src.opens) != tt.opens {
					t.Errorf("%v after %d opens, want %v after %d", err, len(src.opens), tt.want, tt.opens)
				}
				if took := time.Since(start); took < tt.atLeast {
					t.Errorf("gave up after %s, want at least %s", took, tt.atLeast)
				}
				if _, again := r.Read(make([]byte, 1)); !errors.Is(again, tt.want) {
					t.Errorf("then %v", again)
				}
			})
		})
	}
}

// A trickle would hold its reader for days; what comes slowly but steadily is read.
func TestReaderTrickle(t *testing.T) {
	for name, c := range map[string]struct {
		piece int
		want  error
	}{"a byte a second": {1, ErrStalled}, "a kilobyte a second": {1 << 10, nil}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &scripted{data: content(200 << 10)}
				src.script = []func([]byte) (io.ReadCloser, error){func(rest []byte) (io.ReadCloser, error) {
					return io.NopCloser(&slow{rest, c.piece}), nil
				}}
				start := time.Now()
				r := NewReader(t.Context(), src, src.object(), ReaderOptions{})
				defer r.Close()
				if _, err := io.ReadAll(r); !errors.Is(err, c.want) {
					t.Errorf("%v after %s", err, time.Since(start))
				}
				if took := time.Since(start); c.want != nil && took > 2*time.Minute {
					t.Errorf("gave up after %s", took)
				}
			})
		})
	}
}

// slow gives a piece each second.
type slow struct {
	rest  []byte
	piece int
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(s.piece, len(p))], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Who is hasty hears at once that the storage is throttled, unless that would cost what was read.
func TestReaderHasty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttled := &ThrottledError{RetryAfter: 7 * time.Second, Err: ErrThrottled}
		src := &scripted{data: content(100)}
		src.script = []func([]byte) (io.ReadCloser, error){refuse(throttled), breakAfter(50, errBroken), refuse(throttled)}
		read := func() error {
			r := NewReader(t.Context(), src, src.object(), ReaderOptions{Hasty: true})
			defer r.Close()
			_, err := io.ReadAll(r)
			return err
		}
		if err := read(); RetryAfter(err) != 7*time.Second || len(src.opens) != 1 {
			t.Errorf("%v after %d opens", err, len(src.opens))
		}
		if err := read(); err != nil || len(src.opens) != 4 {
			t.Errorf("in the middle: %v after %d opens", err, len(src.opens))
		}
	})
}

func TestReaderWithoutVersionIsNotResumed(t *testing.T) {
	src := &scripted{data: content(100)}
	src.script = []func([]byte) (io.ReadCloser, error){breakAfter(10, errBroken)}
	obj := src.object()
	obj.Version = ""
	r := NewReader(t.Context(), src, obj, ReaderOptions{})
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, errBroken) || len(src.opens) != 1 {
		t.Errorf("%v after %d opens", err, len(src.opens))
	}
}

func TestReaderStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &scripted{data: content(100)}
		r := NewReader(t.Context(), src, src.object(), ReaderOptions{Stall: 10 * time.Second})
		defer r.Close()
		src.script = []func([]byte) (io.ReadCloser, error){src.hang(func() context.Context { return r.ctx }, 40)}

		buf := make([]byte, 40)
		if _, err := io.ReadFull(r, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the consumer takes its time, which is no stall
		start := time.Now()
		_, err := r.Read(buf)
		if !errors.Is(err, ErrStalled) || errors.Is(err, context.Canceled) || Permanent(err) {
			t.Errorf("stalled read: %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("gave up after %s", took)
		}
	})
}

func TestReaderCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		src := &scripted{data: content(100)}
		src.script = slices.Repeat([]func([]byte) (io.ReadCloser, error){refuse(errBroken)}, 9)
		r := NewReader(ctx, src, src.object(), ReaderOptions{Backoff: func(int) time.Duration { return time.Hour }, Stall: -1})
		defer r.Close()
		time.AfterFunc(time.Second, cancel)
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled read: %v", err)
		}
	})
}

func TestReaderEmptyObject(t *testing.T) {
	src := &scripted{}
	r := NewReader(t.Context(), src, src.object(), ReaderOptions{})
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || len(got) != 0 {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestReaderIsAReader(t *testing.T) {
	src := &scripted{data: content(10_000)}
	r := NewReader(t.Context(), src, src.object(), ReaderOptions{})
	defer r.Close()
	if err := iotest.TestReader(r, src.data); err != nil {
		t.Error(err)
	}
}

func TestFile(t *testing.T) {
	for _, size := range []int{0, 1, fileBlock - 1, fileBlock, 3*fileBlock + 17} {
		src := &scripted{data: content(size)}
		if err := iotest.TestReader(NewFile(t.Context(), src, src.object(), ReaderOptions{}), src.data); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestFileAsksOncePerBlock(t *testing.T) {
	src := &scripted{data: content(40 * fileBlock)}
	f := NewFile(t.Context(), src, src.object(), ReaderOptions{})
	buf := make([]byte, 8)
	for _, offset := range []int64{0, 8, 100, 40*fileBlock - 8, 4, 40*fileBlock - 100} {
		if _, err := f.ReadAt(buf, offset); err != nil {
			t.Fatal(err)
		}
	}
	if len(src.opens) != 2 {
		t.Errorf("opened %q, want the first block and the last", src.opens)
	}
	for offset := int64(0); offset < f.Size(); offset += fileBlock {
		if _, err := f.ReadAt(buf, offset); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.blocks) != fileBlocks || f.recent.Len() != fileBlocks {
		t.Errorf("keeps %d blocks, want %d", len(f.blocks), fileBlocks)
	}
}

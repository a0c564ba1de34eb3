package s3test

import (
	"crypto/md5" //nolint:gosec // the protocol wants it
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/shared/bucket/faulttest"
)

// Queue is as much of SQS as pulling from a queue needs, over real HTTP: no module has a server that speaks today's
// protocol.
type Queue struct {
	// URL is the address of the queue.
	URL string
	// Hidden is how long a message that was received and not deleted stays away. To be set before the first request;
	// NewQueue sets it to 30 s.
	Hidden time.Duration

	*faulttest.Layer

	mu       sync.Mutex
	messages []*message
	changed  chan struct{} // closed, and replaced, when a message comes
	receipts int
}

type message struct {
	body    string
	receipt string
	until   time.Time // hidden
}

// NewQueue runs a queue until the test ends.
func NewQueue(t testing.TB) *Queue {
	t.Helper()
	q := &Queue{Hidden: 30 * time.Second, changed: make(chan struct{})}
	q.Layer = faulttest.New(http.HandlerFunc(q.serve))
	server := httptest.NewServer(q.Layer)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	q.URL = server.URL + "/123456789012/drops"
	return q
}

// Send puts a message into the queue.
func (q *Queue) Send(body string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.messages = append(q.messages, &message{body: body})
	close(q.changed)
	q.changed = make(chan struct{})
}

// Len returns how many messages the queue holds, those that were received and not deleted among them.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

func (q *Queue) serve(w http.ResponseWriter, r *http.Request) {
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if !strings.Contains(r.Header.Get("Authorization"), "Credential="+AccessKeyID+"/") {
		refuse(w, http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
		return
	}
	var in struct {
		QueueURL string `json:"QueueUrl"`
		Max      int    `json:"MaxNumberOfMessages"`
		Wait     int    `json:"WaitTimeSeconds"`
		Entries  []struct {
			ID      string `json:"Id"`
			Receipt string `json:"ReceiptHandle"`
		} `json:"Entries"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "SerializationException", err.Error())
		return
	}
	if !strings.HasSuffix(in.QueueURL, "/123456789012/drops") {
		refuse(w, http.StatusBadRequest, "QueueDoesNotExist", "The specified queue does not exist.")
		return
	}
	switch action {
	case "ReceiveMessage":
		answer(w, map[string]any{"Messages": q.receive(r, in.Max, time.Duration(in.Wait)*time.Second)})
	case "DeleteMessageBatch":
		deleted := make([]map[string]string, len(in.Entries))
		for i, e := range in.Entries {
			q.remove(e.Receipt)
			deleted[i] = map[string]string{"Id": e.ID}
		}
		answer(w, map[string]any{"Successful": deleted, "Failed": []any{}})
	default:
		refuse(w, http.StatusBadRequest, "InvalidAction", action)
	}
}

func (q *Queue) receive(r *http.Request, most int, wait time.Duration) []map[string]string {
	end := time.NewTimer(wait)
	defer end.Stop()
	for {
		got, changed := q.take(most)
		if len(got) > 0 {
			return got
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // one that was hidden
		case <-end.C:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

func (q *Queue) take(most int) (got []map[string]string, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		if len(got) == most || time.Now().Before(m.until) {
			continue
		}
		q.receipts++
		m.receipt, m.until = fmt.Sprint(q.receipts), time.Now().Add(q.Hidden)
		sum := md5.Sum([]byte(m.body)) //nolint:gosec // see above
		got = append(got, map[string]string{
			"MessageId": m.receipt, "ReceiptHandle": m.receipt, "Body": m.body, "MD5OfBody": hex.EncodeToString(sum[:]),
		})
	}
	return got, q.changed
}

func (q *Queue) remove(receipt string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, m := range q.messages {
		if m.receipt == receipt {
			q.messages = append(q.messages[:i], q.messages[i+1:]...)
			return
		}
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + code, "message": message})
}

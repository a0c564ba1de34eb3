package millrace_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"millrace/services/millrace/client"
	"millrace/shared/bucket/gcs/gcstest"
	"millrace/shared/topology"
)

// The invariants of docs/design.md §4 and the tests that fail when their mechanism is taken out. Those without a package
// are here, on the whole product.
//
//	I1  no loss       TestStory (whileDown), TestStorySplit, TestKill; scanner: TestEnablingScansAtOnce, TestDrift,
//	                  TestArrivalAgainstPurge; importer: TestSuperseded; debouncer: TestSweepAdoptsOrphans
//	I2  once          TestKill, TestStory (sameBytes); scanner: TestDuplicatedAndReorderedNotificationsChangeNothing,
//	                  TestWindowIsPlannedOnceWhereverThePlannerStops, TestTwoPlannersOfOneWindow;
//	                  here, with I1 and I3 to I5: TestNotificationsThriceInAnyOrder;
//	                  importer: TestNothingIsImportedTwice, TestCrashBehindTheCommitPoint, TestTwoImporters
//	I3  one run       TestKill, TestStory; preset-trigger: TestOneRunPerJob, TestNoRun, TestCrashBetweenSteps
//	I4  exact set     TestStory, TestBulkDrops, TestKill (followRun); preset-trigger: TestRunOfJob,
//	                  TestWaitsForTheReport
//	I5  integrity     TestKill, TestStory (genuine); dir and gcs: the suite of buckettest, TestRewrittenWhileRead,
//	                  TestCorruptedBodies; dir: TestLostWritesAreRememberedUntilPutAgain
//	I6  debounce      TestStory (bursts, nextJob), TestBulkDrops; window: TestMergeIsCommutativeAndIdempotent,
//	                  TestDue, TestNewDeadlines, TestDayLongWindows; debouncer: TestWindowClosesOnceWhenQuiet,
//	                  TestOverdueWindowsCloseAtTheStart
//	I7  state         TestKill and every follow (progress goes forward and adds up); window: TestLifeOfARecord,
//	                  TestMergeFromManySides, TestConcurrentCloses; importer: TestFold; preset-trigger: TestFoldGoesForward
//	I8  ack chain     TestAcknowledgedIsThere, TestStorySplit; broker: TestDurableByDefault; bus: TestNoAnswerIsUnknown,
//	                  TestUnsettledIsBounded; brokertest: TestCluster
//	I9  nothing stuck TestStory, TestStorySplit, TestBulkDrops, TestKill (atRest), TestBadNotifications;
//	                  scanner: TestSweepMakesUpForLostRings; bus: TestLeaseOfADeadProcessRunsOut
//	I10 webhooks      TestWebhooksSurviveKill; webhooks: TestRetried, TestGivenUp, TestRestart, TestTwice,
//	                  TestPrivateAddress; egress: TestDial, TestRebinding
//	I11 pause         TestStory (whilePaused), TestAcknowledgedIsThere; window: TestHoldAndRelease; admin: TestPauseHolds
//	I12 secrets       TestSecretsStayInside; secret: TestStringNeverShows, TestSealOpen; broker: TestRedact;
//	                  admin: TestGCSForm, TestEnsureKey; webhooks: TestSecretStaysInside

// TestAcknowledgedIsThere: whatever was acknowledged is there after a kill -9 in the very next moment: a notification, a
// configuration, a pause, a command.
func TestAcknowledgedIsThere(t *testing.T) {
	t.Parallel()
	storage := gcstest.Start(t, "bucket")
	listen := freeAddr(t)
	up := startUp(t, "--nats-listen", listen, "--executor", "exec="+countBytes)
	p := wire(t, up.api, up.inbox)
	res := postForm(t, up.url, map[string]string{
		"name": "Cloud", "bucket": "bucket", "gcp_project_id": "test", "endpoint_url": storage.URL, "import_mode": "new_only",
	}, storage.Credentials(t))
	var cloud struct {
		ID string `json:"connector_id"`
	}
	must(t, json.Unmarshal(res.body, &cloud))
	killed := func() {
		t.Helper()
		up.restart()
		up.waitReady(up.url)
	}

	// A configuration, as it was put.
	p.automate(p.index, "2s", obj{"connector_id": cloud.ID, "source_prefix": "cams/"})
	killed()
	var at struct {
		automation
		Connector string `json:"connector_id"`
		Prefix    string `json:"source_prefix"`
	}
	must(t, p.api.Get(t.Context(), "/indexes/"+p.index+"/automations/import", &at))
	if at.Connector != cloud.ID || at.Prefix != "cams/" {
		t.Errorf("the automation is %+v", at)
	}

	// A pause, and three notifications: each is in the stream, whoever had it in hand when it died.
	p.pause()
	killed()
	nc := dial(t, "nats://"+listen)
	notified := topology.Topology{Prefix: "millrace"}.Stream(topology.Notifications)
	for i := range 3 {
		name := fmt.Sprintf("cams/%d.mp4", i)
		generation := storage.Put("bucket", name, fmt.Appendf(sample(t, "audio.wav"), "%d", i))
		note := fmt.Appendf(nil, `{"message":{"attributes":{"eventType":"OBJECT_FINALIZE","bucketId":"bucket","objectId":%q,"objectGeneration":"%d"}}}`, name, generation)
		if res := request(t, up.url, http.MethodPost, "/notifications/"+cloud.ID, note); res.status != http.StatusOK {
			t.Fatalf("%d %s", res.status, res.body)
		}
		killed()
		msgs := stored(t, nc, notified)
		if len(msgs) != i+1 || !bytes.Equal(msgs[i].Data, note) {
			t.Fatalf("%d notifications are stored, want %d", len(msgs), i+1)
		}
	}
	waiting(t, nc, 3)
	if jobs, err := p.jobs(p.index); err != nil || len(jobs) > 0 {
		t.Errorf("%d jobs while paused, %v", len(jobs), err)
	}

	// A resume.
	p.resume()
	killed()
	j := p.nthJob(1)
	if j = p.follow(j.ID, 2*patience); len(j.Videos) != 3 {
		t.Errorf("%+v", j)
	}

	// A command.
	p.drop("here.mp4", sample(t, "video.mp4"))
	var manual client.Job
	must(t, p.api.Do(t.Context(), http.MethodPost, "/import-jobs", obj{"connector_id": p.connector, "index_id": p.index}, &manual))
	killed()
	if j = p.follow(manual.ID, 2*patience); len(j.Videos) != 1 {
		t.Errorf("%+v", j)
	}

	// A cancellation: either it was too late, or it holds.
	for i := range 50 {
		p.drop(fmt.Sprintf("more %d.png", i), fmt.Appendf(sample(t, "photo.png"), "%d", i))
	}
	must(t, p.api.Do(t.Context(), http.MethodPost, "/import-jobs", obj{"connector_id": p.connector, "index_id": p.index}, &manual))
	err := p.api.Do(t.Context(), http.MethodPost, "/import-jobs/"+manual.ID+"/cancel", nil, nil)
	killed()
	must(t, p.api.Get(t.Context(), "/import-jobs/"+manual.ID, &j))
	var late *client.Problem
	if err == nil && j.Status != "cancelled" || err != nil && !errors.As(err, &late) {
		t.Errorf("cancelled with %v, and is %s", err, j.Status)
	}
	atRest(t, nc, "millrace")
}

// waiting waits until n arrivals are stored and part of their window. The window's own count leaves out what was merged
// out of order, as happens when a debouncer dies with arrivals in hand.
func waiting(t testing.TB, nc *nats.Conn, n int) {
	t.Helper()
	js, err := jetstream.New(nc)
	must(t, err)
	stream := topology.Topology{Prefix: "millrace"}.Stream(topology.Arrivals)
	within(t, 2*patience, "the arrivals are merged", func() error {
		cons, err := js.Consumer(t.Context(), stream, topology.DebouncerArrivals)
		if err != nil {
			return err
		}
		arrivals := len(stored(t, nc, stream))
		if i := cons.CachedInfo(); arrivals != n || i.NumPending > 0 || i.NumAckPending > 0 {
			return fmt.Errorf("%d arrivals, %d pending, %d unacknowledged", arrivals, i.NumPending, i.NumAckPending)
		}
		return nil
	})
}

package admin

import "testing"

func TestSubjects(t *testing.T) {
	for operation, want := range map[[2]string]string{
		{"GET", "/import-jobs"}:                                         "import-jobs.list",
		{"POST", "/import-jobs"}:                                        "import-jobs.create",
		{"GET", "/import-jobs/{job_id}"}:                                "import-jobs.get",
		{"POST", "/import-jobs/{job_id}/cancel"}:                        "import-jobs.cancel",
		{"POST", "/import-jobs/{job_id}/retry-failed"}:                  "import-jobs.retry-failed",
		{"POST", "/import-jobs/{id}/files/retry"}:                       "import-jobs.retry-file",
		{"GET", "/import-jobs/{job_id}/files"}:                          "import-jobs.files",
		{"PUT", "/prompts/{prompt_id}"}:                                 "prompts.put",
		{"PATCH", "/connectors/{connector_id}"}:                         "connectors.update",
		{"DELETE", "/videos/{video_id}"}:                                "videos.delete",
		{"POST", "/connectors/s3"}:                                      "connectors.create-s3",
		{"GET", "/automations"}:                                         "automations.list",
		{"GET", "/indexes/{index_id}/automations/import"}:               "automations.get",
		{"PUT", "/indexes/{index_id}/automations/import"}:               "automations.put",
		{"POST", "/indexes/{index_id}/automations/import/pause"}:        "automations.pause",
		{"POST", "/indexes/{index_id}/automations/export/resume"}:       "export-automations.resume",
		{"GET", "/indexes/{index_id}/videos"}:                           "indexes.videos",
		{"GET", "/webhooks/events"}:                                     "webhooks.events",
		{"GET", "/webhooks/{webhook_id}"}:                               "webhooks.get",
		{"GET", "/webhooks/{webhook_id}/deliveries"}:                    "webhooks.deliveries",
		{"GET", "/webhooks/deliveries/{delivery_id}"}:                   "webhook-deliveries.get",
		{"POST", "/webhooks/deliveries/{delivery_id}/retry"}:            "webhook-deliveries.retry",
		{"POST", "/webhooks/{webhook_id}/rotate-secret"}:                "webhooks.rotate-secret",
		{"POST", "/exports/prompt-run/{run_id}"}:                        "exports.prompt-run",
		{"POST", "/videos/batch/status"}:                                "videos.batch-status",
		{"GET", "/prompt-runs/{run_id}/videos/{video_id}/video-result"}: "prompt-runs.video-result",
		{"GET", "/explain"}:                                             "explain.get",
		{"GET", "/dead"}:                                                "dead.list",
		{"POST", "/dead/{id}/replay"}:                                   "dead.replay",
		{"GET", "/rate-limit/status"}:                                   "rate-limit.status",
		{"DELETE", "/things/{id}/parts"}:                                "things.delete-parts",
	} {
		if got := subjectOf(operation[0], operation[1]); got != want {
			t.Errorf("%s %s is %s, want %s", operation[0], operation[1], got, want)
		}
	}
}

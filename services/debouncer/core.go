package debouncer

import (
	"millrace/shared/event"
	"millrace/shared/store"
)

// Request is the job that a window of an automation becomes, for whoever drives windows without a debouncer, as the
// simulation does (services/sim).
func Request(a *store.Automation) event.JobRequested { return request(a) }

package admin

import (
	"context"
	"net/http"
	"time"
)

// What a key can ask about itself and its account. There are no plans and no billing here, so much of it is constant.

type rateLimits struct {
	UserID     string                   `json:"user_id"`
	PlanID     string                   `json:"plan_id"`
	Categories map[category]categoryUse `json:"categories" nullable:"false" doc:"read, write and notification, as far as they have limits"`
}

type usageTotals struct {
	Tokens   int `json:"total_tokens"`
	Searches int `json:"total_searches"`
}

type usage struct {
	UserID      string         `json:"user_id"`
	PeriodStart string         `json:"period_start" format:"date-time"`
	PeriodEnd   string         `json:"period_end" format:"date-time"`
	Metrics     map[string]any `json:"metrics" nullable:"false"`
	ModelUsage  map[string]any `json:"model_usage" nullable:"false"`
	AuthUsage   map[string]any `json:"auth_usage" nullable:"false"`
	Totals      usageTotals    `json:"totals"`
}

type usageHistory struct {
	UserID  string `json:"user_id"`
	Periods []any  `json:"periods" nullable:"false"`
}

type usageBreakdown struct {
	UserID      string         `json:"user_id"`
	PeriodStart string         `json:"period_start" format:"date-time"`
	PeriodEnd   string         `json:"period_end" format:"date-time"`
	Breakdown   map[string]any `json:"breakdown" nullable:"false"`
	Totals      usageTotals    `json:"totals"`
}

func (a *Admin) accountRoutes() {
	register(a, route{
		method: "GET", path: "/auth/validate", scope: anyKey, status: http.StatusNoContent, tag: "Account",
		summary: "Check a key", about: "204 for any active key, whatever its scopes.",
	}, func(context.Context, *none) (*struct{}, error) { return nil, nil })

	const tag = "Account"
	limits := route{
		method: "GET", path: "/rate-limit/status", scope: anyKey, tag: tag, summary: "See what a key may still ask for",
		about: "Each server process counts for itself; this one answers.",
	}
	register(a, limits, a.rateLimits)
	limits.method, limits.path, limits.summary = "POST", "/rate-limit/refresh", "See afresh what a key may still ask for"
	register(a, limits, a.rateLimits)

	const nothing = "Nothing is metered here: always empty."
	register(a, route{method: "GET", path: "/usage", scope: read, tag: tag, summary: "Usage of this month", about: nothing}, getUsage)
	register(a, route{method: "GET", path: "/usage/history", scope: read, tag: tag, summary: "Usage over time", about: nothing},
		func(context.Context, *none) (*body[usageHistory], error) {
			return &body[usageHistory]{usageHistory{UserID: owner, Periods: make([]any, 0)}}, nil
		})
	register(a, route{method: "GET", path: "/usage/details", scope: read, tag: tag, summary: "Usage, item by item", about: nothing},
		func(context.Context, *none) (*body[[]any], error) { return &body[[]any]{make([]any, 0)}, nil })
	register(a, route{method: "GET", path: "/usage/breakdown", scope: read, tag: tag, summary: "Usage by kind", about: nothing},
		func(context.Context, *none) (*body[usageBreakdown], error) {
			start, end := thisMonth()
			return &body[usageBreakdown]{usageBreakdown{
				UserID: owner, PeriodStart: start, PeriodEnd: end, Breakdown: make(map[string]any),
			}}, nil
		})
	register(a, route{method: "GET", path: "/usage/metric-types", scope: public, tag: tag, summary: "What is metered", about: nothing},
		func(context.Context, *none) (*body[[]any], error) { return &body[[]any]{make([]any, 0)}, nil })
}

func (a *Admin) rateLimits(ctx context.Context, _ *none) (*body[rateLimits], error) {
	limits := rateLimits{UserID: owner, PlanID: "self_hosted", Categories: make(map[category]categoryUse)}
	if asked, ok := ctx.Value(askedKey{}).(*asked); ok {
		limits.Categories = a.limiter.status(asked.key)
	}
	return &body[rateLimits]{limits}, nil
}

func getUsage(context.Context, *none) (*body[usage], error) {
	start, end := thisMonth()
	return &body[usage]{usage{
		UserID: owner, PeriodStart: start, PeriodEnd: end,
		Metrics: make(map[string]any), ModelUsage: make(map[string]any), AuthUsage: make(map[string]any),
	}}, nil
}

func thisMonth() (start, end string) {
	now := time.Now().UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	return stamp(first), stamp(first.AddDate(0, 1, 0))
}

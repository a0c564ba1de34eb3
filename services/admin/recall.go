package admin

import "sync"

// jobFiles are the three arrays of a job, and never change.
type jobFiles struct {
	videos          []string
	failed, skipped []map[string]string
}

// recall remembers the files of jobs that are settled: clients go on asking for a job that has ended, and its report is
// long to read for what never changes. It holds up to two generations of jobs; what nobody asks for during one is forgotten.
type recall struct {
	mu         sync.Mutex
	young, old map[string]jobFiles // by job
}

// generation is how many jobs make one: with maxListedFiles each, all of it is some megabytes.
const generation = 500

func (r *recall) get(job string) (jobFiles, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.young[job]
	if !ok {
		if f, ok = r.old[job]; ok {
			r.add(job, f)
		}
	}
	return f, ok
}

func (r *recall) put(job string, f jobFiles) {
	if len(f.videos)+len(f.failed)+len(f.skipped) > maxListedFiles {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(job, f)
}

func (r *recall) add(job string, f jobFiles) {
	if len(r.young) >= generation {
		r.old, r.young = r.young, nil
	}
	if r.young == nil {
		r.young = make(map[string]jobFiles, generation)
	}
	r.young[job] = f
}

package ublk

// Handler serves one queue. All calls come on the queue's own locked thread, so a handler needs no
// locks for what only its queue touches, and must not block: its I/O goes through Queue.NewSQE.
type Handler interface {
	// Start is called before the first request. It may register files and buffers. What it submits
	// is begun after all queues have started.
	Start(q *Queue) error
	// Handle takes a request, which must lead to exactly one q.Complete(r.Tag, …), now or later,
	// on this thread.
	Handle(q *Queue, r *Request)
	// Completion delivers completions of the handler's own submissions.
	Completion(q *Queue, userData uint64, res int32, flags uint32)
	// Woken is called after one or more calls of q.Wake.
	Woken(q *Queue)
	// BeforeWait is called once per round of the loop, before it submits and waits.
	BeforeWait(q *Queue)
	// Stop is called when no request is left and none will come, once for each Start that
	// succeeded, even if the device then did not start. Submissions in flight are completed first
	// if they end by themselves; timeouts and polls are cancelled. The handler may submit more
	// until nothing is in flight; Completion is called for all of it.
	Stop(q *Queue)
}

// HandlerFunc is a handler that completes each request before it returns.
type HandlerFunc func(q *Queue, r *Request)

// Start does nothing.
func (f HandlerFunc) Start(*Queue) error { return nil }

// Handle calls f.
func (f HandlerFunc) Handle(q *Queue, r *Request) { f(q, r) }

// Completion does nothing.
func (f HandlerFunc) Completion(*Queue, uint64, int32, uint32) {}

// Woken does nothing.
func (f HandlerFunc) Woken(*Queue) {}

// BeforeWait does nothing.
func (f HandlerFunc) BeforeWait(*Queue) {}

// Stop does nothing.
func (f HandlerFunc) Stop(*Queue) {}

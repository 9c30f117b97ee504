package ublk

// hooks is a handler made of functions; those that are nil do nothing.
type hooks struct {
	start      func(q *Queue) error
	handle     func(q *Queue, r *Request)
	completion func(q *Queue, userData uint64, res int32, flags uint32)
	woken      func(q *Queue)
	before     func(q *Queue)
	stop       func(q *Queue)
}

func (h *hooks) Start(q *Queue) error {
	if h.start == nil {
		return nil
	}
	return h.start(q)
}
func (h *hooks) Handle(q *Queue, r *Request) { h.handle(q, r) }
func (h *hooks) Completion(q *Queue, userData uint64, res int32, flags uint32) {
	h.completion(q, userData, res, flags)
}
func (h *hooks) Woken(q *Queue)      { call(h.woken, q) }
func (h *hooks) BeforeWait(q *Queue) { call(h.before, q) }
func (h *hooks) Stop(q *Queue)       { call(h.stop, q) }

func call(f func(*Queue), q *Queue) {
	if f != nil {
		f(q)
	}
}

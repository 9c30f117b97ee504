package ublk

// Unshare is for a request with the flag InShared whose memory the handler does not have: an earlier
// server has registered it. Handle is called with it once more, now or later, as with any other
// request. It returns false in mode Copy, where nobody but who has the memory can reach the data, and
// the request is still to be completed.
func (q *Queue) Unshare(r *Request) bool {
	if q.mode == Copy || r.Flags&InShared == 0 {
		return false
	}
	r.Flags &^= InShared
	q.handle(r)
	return true
}
